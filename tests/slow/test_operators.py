"""What the loop does by itself: join near misses, revert what gains nothing, confirm at scale.

The agents are real processes. Where scores are invented, the true gain of a tree is the sum of the
effects that its model.py names, and what counts as one is said in each test.
"""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from research import loop
from research.operators import confirm, sweep
from research.referee import patch
from research.referee.ledger import Ledger
from research.referee.patch import git, read_tree
from research.referee.verdict import MINIMUM_EFFECT, Night, Noise, conclude, decide, rounds
from tests.slow.test_loop import FLOOR, KIND
from tests.trials import make_project, prepare_words

NOISE = 0.004  # bits per byte, of a pair's difference
AGENT = """
import pathlib
number = int(pathlib.Path.cwd().parent.name) - 1
name, line = EDITS[number]
with open(name, "a") as file:
    file.write(line + "\\n")
pathlib.Path("HYPOTHESIS.md").write_text(f"claim: {line}")
"""


def make_agent(folder: Path, edits: list[tuple[str, str]]) -> str:
    """Write an agent that appends its n-th line to the n-th file; return its command."""
    folder.mkdir()
    (folder / "agent.py").write_text(f"EDITS = {edits!r}\n{AGENT}")
    return f"{sys.executable} {folder / 'agent.py'}"


class SumJudge:
    """The referee without its training: a tree is worth the effects that its files name.

    An effect is a line such as GAIN_3 = -0.01. Two of one value are one idea, whatever their names.
    """

    def __init__(self, ledger: Ledger, minimum_effect: float = MINIMUM_EFFECT, night: int = 0):
        self.ledger = ledger
        self.minimum_effect = minimum_effect
        self.night = night

    def __call__(self, repo: Path, tree: str, hypothesis: str, **row) -> dict:
        base = read_tree(repo)
        change = patch.from_tree(base, Path(tree), repo)
        effect = self.worth(patch.apply(base, change)) - self.worth(base)
        rng = np.random.default_rng([self.night, len(self.ledger.trials())])
        night = Night.of(self.ledger.trials())
        row |= KIND | {"kind": "trial", "hypothesis": hypothesis, "diff": change.diff}
        row |= {"tokens": change.tokens, "parent": git(repo, "rev-parse", "HEAD").strip()}
        decisions = []
        found = []
        for level, max_pairs in rounds(night.alpha(), 24):
            differences = []
            decision = None
            while decision is None:
                differences.append(effect + NOISE * rng.standard_normal())
                decision = decide(
                    differences,
                    level=level,
                    max_pairs=max_pairs,
                    noise=Noise(NOISE, 8),
                    minimum_effect=self.minimum_effect,
                    tokens=change.tokens,
                    lost=night.lost,
                )
            found += differences
            decisions.append(decision)
            if not decision.verdict.startswith("keep"):
                break
        decision = conclude(*decisions)
        row |= {"state": "done", "differences": found, "mean": decision.mean}
        row |= {"verdict": decision.verdict, "interval": decision.interval}
        return self.ledger.append(row | {"reason": decision.reason})

    def worth(self, tree: dict[str, bytes]) -> float:
        text = b"\n".join(tree.values()).decode()
        return sum(float(value) for value in re.findall(r"^GAIN_\d+ = (\S+)$", text, re.M))


def run_loop(folder: Path, edits: list[tuple[str, str]], judge, agents: int = 1) -> list[dict]:
    """Let an agent make the edits, one an attempt; return the ledger's rows."""
    options = loop.LoopOptions(
        agent=make_agent(folder / "agent", edits),
        folder=str(folder / "book"),
        tries=len(edits),
        agents=agents,
        scale=None,
        sweep_tries=0,
    )
    loop.run(options, judge, FLOOR, echo=lambda line: None)
    return Ledger(folder / "book").trials()


def made_by(operator: str, rows: list[dict]) -> list[dict]:
    return [row for row in rows if row.get("operator") == operator]


def test_two_half_size_gains_fail_alone_and_pass_together(tmp_path):
    """In most of ten nights; one that is missed with a loss by bad luck is not joined."""
    bad = [("nanoloop/loss.py", f"GAIN_{number} = 0.0{number}") for number in range(3, 6)]
    halves = [("model.py", "GAIN_1 = -0.0025"), ("train.py", "GAIN_2 = -0.0026")]
    alone = 0
    joined = []
    for night in range(10):
        folder = tmp_path / str(night)
        folder.mkdir()
        rows = run_loop(folder, halves + bad, SumJudge(Ledger(folder / "book"), night=night))
        alone += sum(row["verdict"] == "keep" for row in rows if "number" in row)
        for row in made_by("recombine", rows):
            assert set(row["parents"]) == {rows[0]["id"], rows[1]["id"]}
            joined.append(row["verdict"])
    assert alone <= 4
    assert len(joined) >= 3
    assert joined.count("keep") >= 0.6 * len(joined)


class KeepsFiveUnseen(SumJudge):
    """Keeps the first five changes, whatever they are worth."""

    def __call__(self, repo: Path, **row) -> dict:
        row = super().__call__(repo, **row)
        if row.get("number"):
            row |= {"verdict": "keep"}
            self.ledger.append(row)
        return row


def test_only_what_gains_nothing_is_pruned(tmp_path):
    names = ["model.py", "train.py", *(f"nanoloop/{part}.py" for part in patch.PARTS[:3])]
    worth = ["-0.05", "0.0", "-0.051", "-0.0", "-0.052"]
    edits = [(name, f"GAIN_{i} = {value}") for i, (name, value) in enumerate(zip(names, worth))]
    judge = KeepsFiveUnseen(Ledger(tmp_path / "book"), minimum_effect=0.02)
    rows = run_loop(tmp_path, edits, judge)
    reverts = made_by("prune", rows)
    assert [row["parents"][0] for row in reverts] == [row["id"] for row in rows[:5]]
    is_gone = [row["verdict"] == "keep (simpler)" for row in reverts]
    assert is_gone == [float(value) == 0 for value in worth]
    tree = b"".join(read_tree(tmp_path / "book/repo").values()).decode()
    assert [line in tree for _, line in edits] == [float(value) != 0 for value in worth]


def test_agents_that_work_at_once_begin_from_one_commit_and_are_rebased(tmp_path):
    """Two fit together. The third changes the same line as the first."""
    edits = [
        ("model.py", "GAIN_1 = -0.05"),
        ("train.py", "GAIN_2 = -0.051"),
        ("model.py", "GAIN_3 = -0.06"),
    ]
    rows = run_loop(tmp_path, edits, SumJudge(Ledger(tmp_path / "book")), agents=3)
    assert [row["verdict"] for row in rows] == ["keep", "keep", "none"]
    assert rows[2]["reason"].startswith("a change kept meanwhile is in its way")
    assert rows[1]["parent"] != rows[0]["parent"]
    tree = b"".join(read_tree(tmp_path / "book/repo").values()).decode()
    assert "GAIN_1" in tree and "GAIN_2" in tree and "GAIN_3" not in tree


def make_repository(folder: Path, rates: list[str]) -> Path:
    """Make a repository of a small recipe with a commit for each muon_lr; return its folder."""
    root = make_project(folder / "root", prepare_words(folder), max_steps=60)
    config = root / "config/tiny.py"
    recipe = config.read_text()
    git(root, "init", "-q")
    for rate in rates:
        config.write_text(f"{recipe}muon_lr = {rate}\n")
        git(root, "add", "-A")
        git(root, "commit", "-q", "-m", f"A rate of {rate}")
    return root


def options_for(folder: Path, **more) -> loop.LoopOptions:
    return loop.LoopOptions(config="config/tiny.py", folder=str(folder / "book"), **more)


@pytest.mark.parametrize(
    ("rate", "label"),
    [("0.02 if n_embd < 64 else 0.002", "bound to its scale"), ("0.02", "transfers")],
)
def test_a_gain_that_ends_at_a_width_is_bound_to_its_scale(tmp_path, rate, label):
    """Real runs, at width 32 and 64."""
    root = make_repository(tmp_path, ["0.002", rate])
    options = options_for(tmp_path, scale="n_embd=64")
    found = confirm(options, root, {"mean": -0.15}, Noise(0.02, 11))
    assert found.startswith(f"at n_embd=64 {label}: ")


def test_a_sweep_finds_better_numbers_in_a_kept_change(tmp_path):
    """Real runs: the rate that was kept is far too low."""
    root = make_repository(tmp_path, ["0.0002", "0.002"])
    options = options_for(tmp_path, sweep_tries=5)
    diff = git(root, "diff", "HEAD^", "HEAD")
    rows = [{"id": "t1", "verdict": "keep", "diff": diff}]
    proposal = sweep(options, Ledger(tmp_path / "book"), root, rows, FLOOR)
    rate = re.search(r"^\+muon_lr = (.+)$", proposal.change.diff, re.M)[1]
    assert 0.002 < float(rate) <= 0.006
    assert proposal.facts["operator"] == "sweep" and proposal.facts["parents"] == ["t1"]
