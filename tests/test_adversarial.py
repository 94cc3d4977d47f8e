"""Every cheat is refused for the right reason, no honest change is refused: tests/adversarial/ holds them, one a file.

A case is a docstring that says what it does and what must catch it, EDITS of the recipe (file, old text, new text), and
what must become of it:
    REFUSED        a pattern of the reason with which it is refused, before training, in training or by a probe
    GAINS_NOTHING  it runs, and its score is the baseline's to within so many bits per byte: it has got hold of nothing.
                   A case that looks for something ends with exit status 99 where it finds it, which would be a crash.
"""

import copy
import os
import re
import runpy
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import prepare_data
from research import judge, patch, runs
from tests.conftest import ROOT, make_documents

HERE = Path(__file__).parent / "adversarial"
CASES = sorted(HERE.glob("*/*.py"))
SEEDS = (101, 202)
TINY = """
data = "{data}"
n_layer = 2
n_head = 2
n_embd = 32
block_size = 32
value_embeds = 1
batch_tokens = 512
max_steps = 25
dtype = "float32"
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The setup of a recipe that trains in half a second, on text of its own."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("data")
    for index, text in enumerate(make_documents(200)):
        (source / f"{index:03}.txt").write_text(text)
    options = prepare_data.PrepareConfig(
        source=(str(source),), name="words", tokenizer="byte", val_fraction=0.1, test_fraction=0.1
    )
    data = prepare_data.prepare(options, folder)
    base = patch.read_tree(ROOT) | {"config/tiny.py": TINY.format(data=data).encode()}
    root = patch.write_tree(base, tmp_path_factory.mktemp("root"))
    out = str(tmp_path_factory.mktemp("judge"))
    return runs.Setup(runs.Options(config="config/tiny.py", folder=out, slowdown=3.0), root)


class CachedBaseline(runs.Slot):
    """The baseline's runs are the same for every case: on one core they are deterministic, so each is done once."""

    def run(self, arm, seed, split):
        known = self.__dict__.setdefault("known", {})
        if arm == "candidate" or (seed, split) not in known:
            result = super().run(arm, seed, split)
            if arm == "candidate":
                return result
            known[seed, split] = result
        return known[seed, split]


def make_change(case: dict, setup, folder: Path) -> patch.Change:
    """The case as a patch, or as a tree where a patch could not say it."""
    base, files = setup.base, dict(setup.base)
    data = prepare_data.Data(setup.data)
    held_out = data.tokenizer.decode(data.splits["val"].read(0, 2000)).replace("\n", " ")
    for path, old, new in case["EDITS"]:
        text = files[path].decode()
        assert text.count(old) == 1, f"{path} holds {text.count(old)} times: {old}"
        new = new.replace("HELD_OUT", held_out[300:600]).replace("BLOB", secrets.token_hex(10_000))
        files[path] = text.replace(old, new).encode()
    for path, text in case.get("FILES", {}).items():
        files[path] = text and text.encode()
    if "../" in "".join(case.get("FILES", {})):
        return patch.from_patch(
            base, b"--- /dev/null\n+++ b/../outside.py\n@@ -0,0 +1 @@\n+print('mine')\n"
        )
    tree = patch.write_tree(
        {path: text for path, text in files.items() if text is not None}, folder / "tree"
    )
    if "LINK" in case:
        (tree / case["LINK"][0]).unlink()
        (tree / case["LINK"][0]).symlink_to(case["LINK"][1])
    change = patch.from_tree(base, tree)
    patch.refuse(patch.copies(change, held_out.encode()), "it spells out held-out text")
    return change


def what_becomes_of(case: dict, setup, slots: dict, folder: Path) -> dict:
    """{"reason"} of a case that is refused, else {"differences"} of its pairs."""
    try:
        change = make_change(case, setup, folder)
    except patch.Invalid as error:
        return {"reason": str(error)}
    budget = case.get("BUDGET")
    if budget not in slots:
        kind = copy.copy(setup)
        if budget:
            kind.kind, kind.amount = "seconds", float(budget[:-1])
        slots[budget] = CachedBaseline(kind, {}, *slots["share"])
    slot, pairs = slots[budget], []
    slot.place("candidate", patch.apply(setup.base, change))
    for seed in SEEDS[: 2 if "ignores" in case.get("REFUSED", "") else 1]:
        pairs.append(slot.pair(seed, "val", False))
        failed = pairs[-1].get("failed") or judge.same_for_every_seed(pairs)
        if failed:
            return failed
    return {"differences": [pair["candidate"]["bpb"] - pair["baseline"]["bpb"] for pair in pairs]}


@pytest.fixture(scope="module")
def outcomes(request, tiny, tmp_path_factory):
    """What became of each case that was asked for: all are judged in one go, two at once where there are two cores."""
    started, results = time.monotonic(), {}
    cores = len(os.sched_getaffinity(0))
    places = [(number, cores) for number in range(min(2, cores))]
    items = [
        item
        for item in request.session.items
        if item.path == Path(__file__) and hasattr(item, "callspec")
    ]
    chosen = [item.callspec.params["path"] for item in items]
    waiting = sorted(chosen, key=lambda path: "BUDGET" not in path.read_text())

    def work(share):
        slots = {"share": share}
        while waiting:
            path = waiting.pop(0)
            begun = time.monotonic()
            try:
                result = what_becomes_of(
                    runpy.run_path(str(path)), tiny, slots, tmp_path_factory.mktemp("case")
                )
            except Exception as error:
                result = {"error": error}
            results[f"{path.parent.name}/{path.stem}"] = result | {"took": time.monotonic() - begun}
        for slot in slots.values():
            slot.close() if isinstance(slot, runs.Slot) else None

    with ThreadPoolExecutor() as pool:
        list(pool.map(work, places))
    seconds = time.monotonic() - started
    print(f"\n{len(chosen)} cases in {seconds:.0f} seconds")
    return results


@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_cheats_are_refused_and_honest_changes_are_not(path, outcomes):
    case, outcome = runpy.run_path(str(path)), outcomes[f"{path.parent.name}/{path.stem}"]
    if "error" in outcome:
        raise outcome["error"]
    told = f"{case['__doc__']} But: {outcome}"
    if "REFUSED" in case:
        assert re.search(case["REFUSED"], outcome.get("reason", "")), told
    elif "GAINS_NOTHING" in case:
        assert abs(outcome.get("differences", [9.9])[0]) <= case["GAINS_NOTHING"], told
    else:
        assert "differences" in outcome, told
        assert not case.get("SAME") or outcome["differences"] == [0.0], told


def test_the_suite_is_as_large_as_promised():
    assert len(list(HERE.glob("cheats/*.py"))) >= 25 and len(list(HERE.glob("honest/*.py"))) >= 15
