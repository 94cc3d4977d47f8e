"""Changes that the loop makes by itself, from what it has judged.

confirm    runs a change that was kept in three pairs at a larger scale, and says in its commit
           whether the gain transfers, is bound to its scale, or that this is open
recombine  joins two near misses when five trials in a row have gained nothing
sweep      searches the numbers of the newest change that was kept, where none can be joined
prune      reverts each change that was kept, alone, after every five of them: what gains nothing
           is kept out as a simplification

`propose` names the next change that is due; the loop judges it like any other. The ledger says what
was done, so a loop that is stopped does nothing twice.
"""

import math
import re
import shutil
from ast import literal_eval
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np

from nanoloop.options import UserError, require
from research.brief import BARREN, is_kept, kind_of, near_misses, one_line, validation_mean
from research.referee import patch, verdict
from research.referee.judge import differences, new_seeds
from research.referee.ledger import Ledger, new_id, now
from research.referee.patch import Change, Tree, git, read_tree
from research.referee.runs import PairRunner, Setup, Slot, undisturbed
from research.tune import search

KEEPS = 5  # changes kept as better, after which each is reverted alone
NEAR_MISSES = 6  # that are joined two by two, the best first
SCALE_PAIRS = 3
SWEEP_SEEDS = 2
SWEEP_NUMBERS = 4  # at most, of one change
NUMBER = r"(?<![\w.])(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?(?![\w.])"


@dataclass(frozen=True)
class Proposal:
    """A change that an operator makes. facts: fields of its row."""

    change: Change
    facts: dict


def propose(rows: list[dict], repo: Path) -> Proposal | None:
    """Return the next change that is due, None if there is none.

    rows: the ended trials of one recipe, budget, machine and data, oldest first.
    """
    is_stuck = is_plateau(rows)
    return next(recombinations(rows, repo) if is_stuck else prunings(rows, repo), None)


def is_plateau(rows: list[dict]) -> bool:
    """Say whether the last trials, none by an operator, gained nothing."""
    scored = [row for row in rows if row.get("differences")]
    last = scored[-BARREN:]
    is_idle = not any(is_kept(row) or row.get("operator") for row in last)
    return len(last) == BARREN and is_idle


def made_by(operator: str, rows: list[dict]) -> list[dict]:
    return [row for row in rows if row.get("operator") == operator]


# --------------------------------------------------------------------------------------------------
# Recombine and prune


def recombinations(rows: list[dict], repo: Path) -> Iterator[Proposal]:
    """Yield pairs of near misses that fit together and were not tried, the best first."""
    base = read_tree(repo)
    tried = [set(row["parents"]) for row in made_by("recombine", rows)]
    near = [
        row for row in near_misses(rows) if not row.get("operator") and validation_mean(row) < 0
    ]
    for pair in combinations(near[:NEAR_MISSES], 2):
        parents = [row["id"] for row in pair]
        change = None if set(parents) in tried else join([row["diff"] for row in pair], base)
        if change:
            claim = f"{parents[0]} and {parents[1]} gain together what each lacks alone"
            predicted = sum(map(validation_mean, pair))
            yield Proposal(change, facts("recombine", parents, claim, predicted=predicted))


def prunings(rows: list[dict], repo: Path) -> Iterator[Proposal]:
    """Yield the reverts that are due and remove tokens, the oldest change first."""
    base = read_tree(repo)
    kept = [row for row in rows if row["verdict"] == "keep"]
    number = len(kept) // KEEPS
    reverts = made_by("prune", rows)
    done = {row["parents"][0] for row in reverts if row["round"] == number or is_kept(row)}
    commits = kept_commits(repo)
    for row in kept if number else []:
        commit = commits.get(row["id"])
        change = None
        if commit and row["id"] not in done:
            change = join([git(repo, "diff", commit, f"{commit}^")], base)
        if change and change.tokens < 0:
            claim = f"{row['id']} gains nothing any more"
            more = {"round": number, "mechanism": "simplification"}
            yield Proposal(change, facts("prune", [row["id"]], claim, **more))


def kept_commits(repo: Path) -> dict[str, str]:
    """Return the commit of each trial that was kept."""
    lines = git(repo, "log", "--format=%H %(trailers:key=Trial,valueonly,separator=%x2C)")
    pairs = [line.split() for line in lines.splitlines()]
    return {pair[1]: pair[0] for pair in pairs if len(pair) == 2}


def clone(repo: Path, folder: Path) -> None:
    """Clone a repository into a folder, in place of what is there."""
    shutil.rmtree(folder, ignore_errors=True)
    git(repo, "clone", "-q", "--no-hardlinks", ".", str(folder))


def facts(operator: str, parents: list[str], claim: str, **more) -> dict:
    return {"operator": operator, "parents": parents, "hypothesis": claim} | more


def join(diffs: list[str], base: Tree) -> Change | None:
    """Return the change that the diffs make together; None where one of them does not fit."""
    tree = base
    try:
        for diff in diffs:
            tree = patch.apply(tree, patch.from_patch(tree, diff.encode()))
    except patch.Invalid:
        return None
    change = patch.make_change(base, tree)
    return change if change.files else None


# --------------------------------------------------------------------------------------------------
# Sweep


@dataclass(frozen=True)
class Number:
    """A number in the source: its line, from 0, and its column."""

    path: str
    line: int
    start: int
    text: str

    def __str__(self):
        return f"{self.path}:{self.line + 1}:{self.start}"

    def values(self):
        """Return the Optuna distribution of what it may become."""
        from optuna.distributions import FloatDistribution, IntDistribution

        value = literal_eval(self.text)
        if isinstance(value, int):
            return IntDistribution(max(1, value // 2), 2 * value)
        return FloatDistribution(value / 3, 3 * value, log=True)


def sweep(options, ledger: Ledger, repo: Path, rows: list[dict], floor: dict) -> Proposal | None:
    """Search the numbers of the newest kept change that was not searched yet.

    Returns the change to the best ones; None if none are better, which the ledger then says. Each
    setting is scored on the validation split, as `tune` does it.
    """
    searched = [row["parents"][0] for row in made_by("sweep", rows)]
    kept = [row for row in rows if row["verdict"] == "keep" and row["id"] not in searched]
    base = read_tree(repo)
    numbers = added_numbers(kept[-1]["diff"], base) if kept else []
    if not numbers:
        return None
    trial = kept[-1]["id"]
    row = facts("sweep", [trial], f"{trial} gains more with other numbers")

    def score(settings: dict, seed: int, slot: Slot) -> float:
        slot.install("baseline", with_numbers(base, numbers, settings))
        return undisturbed(lambda: slot.run_alone(seed))

    with closing(Slot(Setup(options, repo), {})) as slot:
        study = search(
            {str(number): number.values() for number in numbers},
            score,
            ledger.folder,
            options.sweep_tries,
            SWEEP_SEEDS,
            [slot],
            verdict.Noise.of(floor).sd,
            {str(number): literal_eval(number.text) for number in numbers},
            f"{trial} ",
        )
    change = patch.make_change(base, with_numbers(base, numbers, study.best_params))
    if change.files:
        return Proposal(change, row)
    row |= {"id": new_id("trial"), "time": now()} | kind_of(floor)
    ledger.end(row, f"none of {len(study.trials)} settings was better")
    return None


def added_numbers(diff: str, tree: Tree) -> list[Number]:
    """List the numbers other than 0 in lines that a diff adds.

    A line that the tree no longer has, or has twice, does not count.
    """
    found = []
    path = ""
    for line in diff.splitlines():
        if line.startswith("+++ "):
            path = line.removeprefix("+++ b/")
        lines = tree.get(path, b"").decode().split("\n")
        code = line[1:]
        if line.startswith("+") and lines.count(code) == 1:
            for match in re.finditer(NUMBER, code.split("#")[0]):
                if float(match[0]):
                    found.append(Number(path, lines.index(code), match.start(), match[0]))
    return found[:SWEEP_NUMBERS]


def with_numbers(tree: Tree, numbers: list[Number], settings: dict) -> Tree:
    """Return the tree with each number replaced by its setting."""
    new = dict(tree)
    # From right to left, so that the columns before stay true.
    for number in reversed(numbers):
        lines = new[number.path].decode().split("\n")
        line = lines[number.line]
        rest = line[number.start + len(number.text) :]
        value = settings[str(number)]
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        if value != literal_eval(number.text):
            lines[number.line] = line[: number.start] + text + rest
        new[number.path] = "\n".join(lines).encode()
    return new


# --------------------------------------------------------------------------------------------------
# Confirm at a larger scale


def confirm(options, repo: Path, trial: dict, noise: verdict.Noise) -> str:
    """Run the newest commit of `repo` beside its parent at a larger scale; say what came out.

    options.scale: "3x" is three times the budget; "n_layer=4" sets options of both.
    """
    folder = Path(options.folder).resolve() / "operator"
    clone(repo, folder)
    candidate = read_tree(folder)
    git(folder, "checkout", "-q", "HEAD^")
    setup = Setup(options, folder)
    factor = read_factor(options.scale)
    if factor:
        budget = f"{factor * setup.amount:.12g}{setup.kind}"
        setup = Setup(replace(setup.options, budget=budget), folder)
    else:
        setup.base = enlarge(setup.base, options, folder)
        candidate = enlarge(candidate, options, folder)
    try:
        with closing(PairRunner(setup, candidate)) as runner:
            pairs = list(runner.run(new_seeds(SCALE_PAIRS), "val"))
        found = conclude(differences(pairs, "val"), trial["mean"], noise)
    except UserError as error:  # the recipe itself does not run at this scale
        found = f"open: {one_line(error)}"
    shutil.rmtree(folder)
    return f"at {options.scale} {found}"


def read_factor(scale: str) -> float | None:
    """Read the factor of "3x"; None where the scale is a list of options."""
    text = scale.removesuffix("x")
    is_factor = text != scale and text.replace(".", "", 1).isdigit()
    is_known = is_factor or "=" in scale
    require(is_known, f"--scale={scale}: write it as 3x, or as options such as n_layer=4")
    return float(text) if is_factor else None


def enlarge(tree: Tree, options, root: Path) -> Tree:
    return patch.apply(tree, patch.from_settings(tree, options.config, options.scale, root))


def conclude(found: list[float], gain: float, noise: verdict.Noise) -> str:
    """Say what differences at a larger scale mean; gain: at the smaller one, below 0."""
    from scipy.stats import t

    if not found:
        return "open: no pair could be scored"
    mean = float(np.mean(found))
    _, (deviation,), df = verdict.deviations(np.array([found]), noise)
    half = float(t.isf(0.025, df)) * deviation / math.sqrt(len(found))
    label = "open"
    if mean + half < 0:
        label = "transfers"
    elif mean - half > gain / 2:
        label = "bound to its scale"
    return (
        f"{label}: {mean:+.4f} ± {half:.4f} bits per byte over {verdict.plural(len(found), 'pair')}"
    )
