"""The proof by agents whose share is known: one knows what is off, one changes nothing."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("optuna")  # an optional library

from research import prove
from research.prove import BUGS, PARTS, ProveOptions, choose
from research.referee.ledger import Ledger
from research.referee.patch import ROOT, apply, from_settings, from_tree, read_tree
from research.referee.runs import Options

LESSON = "config/lesson.py"
# Undoes the next edit that is still there; if none is, adds a function that nothing uses.
AGENT = """
import pathlib
edits = {edits!r}
calls = pathlib.Path({calls!r})
number = len(calls.read_text()) if calls.exists() else 0
with open(calls, "a") as file:
    file.write("x")
turn = number % max(1, len(edits))
found = [
    (path, text, replacement)
    for text, replacement in edits[turn:] + edits[:turn]
    for path in sorted(pathlib.Path(".").glob("**/*.py"))
    if replacement in path.read_bytes()
]
if found:
    path, text, replacement = found[0]
    path.write_bytes(path.read_bytes().replace(replacement, text))
else:
    with open("model.py", "a") as file:
        file.write(f"\\n\\ndef unused():\\n    return {{number}}\\n")
"""


def make_agent(folder: Path, name: str, edits: list) -> str:
    """Write an agent; return its command."""
    script = folder / f"{name}.py"
    script.write_text(AGENT.format(edits=edits, calls=str(folder / f"{name}.calls")))
    return f"{sys.executable} {script}"


def edits_of(options: ProveOptions) -> list[tuple[bytes, bytes]]:
    """Return what the oracle knows: the parts come first, since small gaps are seen late."""
    off = choose(options)
    return [edit for name, edit in (PARTS | BUGS).items() if name in off]


def the_result(folder: Path) -> tuple[Path, dict]:
    """Return the folder of the only proof in `folder`, and its result."""
    (path,) = folder.glob("*/prove.json")
    return path.parent, json.loads(path.read_text())


KIND = {"config": LESSON, "budget": "60steps", "data": "d1", "hardware": "2 × cpu"}
FLOOR = KIND | {"id": "n", "kind": "noise", "state": "done", "differences": [0.004, -0.004] * 4}
BASE = read_tree(ROOT)
EDITS = edits_of(ProveOptions(parts=1))


def loss(tree: dict[str, bytes]) -> float:
    """Count what is off; an option of `tune` helps a little."""
    source = b"".join(content for _, content in sorted(tree.items()))
    off = sum(replacement in source for _, replacement in EDITS)
    return 2 + off / 10 - (b"\nbeta2 = 0.99\n" in source) / 20


class Stop(Exception):
    """A kill."""


@pytest.fixture
def quick(monkeypatch):
    """Make proofs quick; `left` is the number of scores until a Stop, `done` that of all."""
    clock = SimpleNamespace(left=10**9, done=0)

    def score(tree: dict[str, bytes]) -> float:
        clock.left -= 1
        clock.done += 1
        if clock.left < 0:
            raise Stop
        return loss(tree)

    def make_setup(options, root):
        shared = Options(config=options.config, folder=options.folder)
        ledger = Ledger(Path(options.folder))
        # Somebody may work in the checkout while the test runs.
        base = BASE if root == ROOT else read_tree(root)
        return SimpleNamespace(base=base, options=shared, ledger=ledger, data=None)

    def try_change(options, root, tree=None, settings=None, **row):
        ledger = Ledger(Path(options.folder))
        base = read_tree(root)
        if tree:
            change = from_tree(base, Path(tree), root)
        else:
            change = from_settings(base, LESSON, settings, root)
        row = {"id": f"t{len(ledger.trials())}", "hypothesis": "", "parent": ""} | KIND | row
        row |= {"kind": "trial", "state": "begun", "diff": change.diff, "tokens": change.tokens}
        ledger.append(row)
        difference = score(apply(base, change)) - loss(base)
        verdict = "keep" if difference < -0.01 else "reject"
        row |= {"state": "done", "verdict": verdict, "reason": verdict}
        return ledger.append(row | {"differences": [difference] * 3})

    class Slot:
        def __init__(self, setup, candidate):
            pass

        def install(self, arm, tree):
            self.tree = tree

        def run_baseline(self, seed, split):
            assert split == "test"
            return {"bpb": score(self.tree) + seed % 97 / 1e4}

        def close(self):
            pass

    def search(options, root):
        score(read_tree(root))
        try_change(options, root, settings="beta2=0.99")

    for module in (prove, prove.loop):
        monkeypatch.setattr(module, "Setup", make_setup)
        monkeypatch.setattr(module, "try_change", try_change)
        monkeypatch.setattr(module, "noise_row", lambda setup: FLOOR)
    monkeypatch.setattr(prove.loop, "training_data", lambda data, folder: None)
    monkeypatch.setattr(prove, "Slot", Slot)
    monkeypatch.setattr(prove.tune, "main", search)
    return clock


def options_of(folder: Path) -> ProveOptions:
    """Return the options of a proof by the oracle."""
    folder.mkdir(exist_ok=True)
    agent = make_agent(folder, "agent", EDITS)
    return ProveOptions(agent=agent, folder=str(folder / "out"), parts=1, tries=4, seeds=3)


def test_a_table_a_picture_and_a_file_say_what_came_out(tmp_path, quick, capsys):
    options = options_of(tmp_path)
    prove.main(options)
    printed = capsys.readouterr().out
    folder, result = the_result(tmp_path / "out")
    shares = result["shares"]
    assert shares["agent"] == shares["whole"] == pytest.approx([1, 1, 1])
    assert shares["broken"] == [0, 0, 0]
    assert shares["tune"] == pytest.approx([1 / 6, 1 / 6, 1 / 6])
    assert result["off"] == choose(options) and len(result["scores"]) == 3
    page = (folder / "prove.html").read_text()
    assert "agent     100.0% of the gap, 95 % interval 100.0% to 100.0%" in printed
    assert page.count('<figure data-x="0"') == 1 and "100.0 to 100.0 %" in page
    done = quick.done
    prove.main(options)
    assert quick.done == done and the_result(tmp_path / "out") == (folder, result)


SCORES = 4 + 4 + 2 + 3 * 5  # of the agent, random options, tune, and the last recipes
STOPS = {"agent": 2, "random": 6, "tune's trial": 9, "the last recipes": 17}


@pytest.mark.parametrize("stop", STOPS)
def test_a_proof_that_is_stopped_resumes_and_repeats_nothing(tmp_path, quick, stop):
    """A trial that is stopped counts as one of the tries, as in `loop`; what is finished stays."""
    options = options_of(tmp_path)
    quick.left = STOPS[stop]
    with pytest.raises(Stop):
        prove.main(options)
    quick.left = 10**9
    prove.main(options)
    assert SCORES <= quick.done <= SCORES + 5
    shares = the_result(tmp_path / "out")[1]["shares"]
    assert shares["agent"] == pytest.approx([1, 1, 1])
    assert shares["tune"] == pytest.approx([1 / 6, 1 / 6, 1 / 6])


def test_other_options_are_another_proof(tmp_path, quick):
    options = options_of(tmp_path)
    prove.main(options)
    prove.main(replace(options, tries=1))
    assert len(list((tmp_path / "out").glob("*/prove.json"))) == 2
