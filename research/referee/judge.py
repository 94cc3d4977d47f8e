"""One trial: apply a change, run it beside the baseline pair by pair, decide and record.

`begin` writes the first row of whatever needs runs; `judge` writes the last row of a trial.
"""

import math
import os
import platform
import re
import secrets
import shutil
import statistics
import subprocess
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from nanoloop.data import Data
from nanoloop.options import UserError, require
from research.referee import patch, verdict
from research.referee.ledger import new_id, now
from research.referee.runs import ARMS, Options, PairRunner, Setup, scores
from research.referee.verdict import Night, Noise

SPLITS = ("val", "test")  # of a trial's two rounds
# All others: 1.
EXIT_CODES = {"keep": 0, "keep (simpler)": 0, "invalid": 3, "crash": 3, "disturbed": 4}


def exit_code(row: dict) -> int:
    return EXIT_CODES.get(row["verdict"], 1)


def hardware() -> str:
    """Name the kind of machine: scores are compared within one kind only."""
    info = Path("/proc/cpuinfo").read_text()
    names = re.findall(r"^model name\s*: (.*)$", info, re.MULTILINE) or [platform.machine()]
    parts = [f"{os.cpu_count()} × {names[0]}"]
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        parts += subprocess.run(query, capture_output=True, text=True).stdout.splitlines()
    return ", ".join(parts)


def begin(kind: str, setup: Setup, **more) -> dict:
    """Write a row to the ledger before what needs runs; return it. more: its other fields."""
    parent = ""
    with suppress(UserError):  # no repository, or no git
        parent = patch.git(setup.root, "rev-parse", "HEAD").strip()
    row = {
        "id": new_id(kind),
        "state": "begun",
        "kind": kind,
        "time": now(),
        "hypothesis": "",
        "config": setup.options.config,
        "budget": setup.budget,
        "options": asdict(setup.options),
        "parent": parent,
        "tree": patch.hash_of(sorted(setup.base.items())),
        "hardware": hardware(),
        "data": setup.data.fingerprint,
        "data_folder": setup.data.folder.name,
        "versions": {"python": platform.python_version(), "torch": version("torch")},
    }
    return setup.ledger.append(row | more)


def try_change(
    options: Options,
    root: Path,
    *,
    patch_file: str | None = None,
    settings: str | None = None,
    tree: str | None = None,
    hypothesis: str = "",
    echo=print,
    **more,
) -> dict:
    """Judge a change and record it; return the finished row. Raises UserError.

    Give one of patch_file, settings ("key=value …") and tree. root: the folder whose recipe is the
    baseline. echo: called with a line of text for each pair. more: fields of the row.
    """
    count = 3 - [patch_file, settings, tree].count(None)
    require(count == 1, f"give one of PATCH, --set and --tree, got {count}")
    setup = Setup(options, root)
    more["hypothesis"] = (hypothesis or settings or "")[:2000]
    try:
        if settings is not None:
            change = patch.from_settings(setup.base, options.config, settings, root)
        elif patch_file is not None:
            hint = "name a file that `git diff` has written"
            require(Path(patch_file).is_file(), f"PATCH={patch_file} is no file: {hint}")
            change = patch.from_patch(setup.base, Path(patch_file).read_bytes())
        else:
            change = patch.from_tree(setup.base, Path(tree), root)
        patch.refuse(not change.files, "it changes nothing")
        noise_row(setup)  # before the data is prepared
        is_copy = patch.copies(change, held_out_text(setup.data))
        patch.refuse(is_copy, "it spells out held-out text")
    except patch.Invalid as error:
        return setup.ledger.end(begin("trial", setup, **more), str(error), verdict="invalid")
    night = Night.of(setup.ledger.trials())
    alpha = night.alpha()
    more |= {"alpha": alpha, "lost_before": night.lost}
    more["seeds"] = [new_seeds(count) for _, count in verdict.rounds(alpha, options.max_pairs)]
    return judge("trial", change, setup, echo, **more)


def new_seeds(count: int) -> list[int]:
    """Draw seeds that no patch can know."""
    return [secrets.randbelow(2**31) for _ in range(count)]


def held_out_text(data: Data) -> bytes:
    splits = [data.splits[name] for name in SPLITS]
    return b"\n".join(data.tokenizer.decode_bytes(s.read(0, len(s))) for s in splits)


def replay(earlier: dict, folder: str) -> dict:
    """Repeat a recorded trial with its change, seeds and level; return the new row.

    Raises UserError.
    """
    number = earlier["id"]
    require(earlier.get("pairs"), f"trial {number} has no scored pair, so it cannot be repeated")
    setup = Setup(Options(**earlier["options"] | {"folder": folder}), patch.ROOT)
    is_same = patch.hash_of(sorted(setup.base.items())) == earlier["tree"]
    message = f"trial {number} had another tree: check out commit '{earlier['parent']}' first"
    if "number" in earlier:
        message += f", of the loop's repository {folder}/repo"
    require(is_same, message)
    message = f"trial {number} had other data than '{setup.recipe.data}': prepare that again"
    require(setup.data.fingerprint == earlier["data"], message)
    pairs = earlier["pairs"]
    return judge(
        "replay",
        patch.from_patch(setup.base, earlier["diff"].encode()),
        setup,
        print,
        seeds=[[pair["seed"] for pair in pairs if pair["split"] == split] for split in SPLITS],
        replay_of=number,
        **{name: earlier[name] for name in ("alpha", "lost_before", "hypothesis")},
    )


def judge(kind: str, change: patch.Change, setup: Setup, echo, **more) -> dict:
    """Run a trial's pairs until it is decided, and record it; return the finished row.

    kind: "trial", or "replay" of one. more: fields of the row: "seeds", of the pairs on the
    validation split and of those on the test split; "alpha", the trial's level; "lost_before", what
    simpler changes may have lost; and others. Raises UserError.
    """
    known = noise_row(setup)
    runs = 2 * sum(map(len, more["seeds"]))
    echo(f"at most {plan(setup.options, runs, known.get('run_seconds'))}")
    row = begin(kind, setup, diff=change.diff, tokens=change.tokens, **more)
    rounds = verdict.rounds(row["alpha"], setup.options.max_pairs)
    rules = {
        "lost": row["lost_before"],
        "minimum_effect": setup.options.minimum_effect,
        "noise": Noise.of(known),
        "tokens": change.tokens,
    }
    pairs = []
    result = {"state": "interrupted", "verdict": "undecided", "reason": "the judge was interrupted"}
    try:
        with closing(PairRunner(setup, patch.apply(setup.base, change))) as runner:
            row["isolation"] = runner.slots[0].box.isolation
            result = decide(runner, pairs, row["seeds"], rounds, rules, echo) | {"state": "done"}
    finally:
        row |= result | {"pairs": pairs, "differences": differences(pairs, "val")}
        setup.ledger.append(row)
    return row


def decide(
    runner: PairRunner,
    pairs: list[dict],
    seeds: list[list[int]],
    rounds: list[tuple[float, int]],
    rules: dict,
    echo,
) -> dict:
    """Run pairs, added to `pairs`, until the trial is decided; return what its row says of that.

    A trial has seeds for all pairs, a replay only for those that decided the trial. An agent may
    read what is echoed and the reason, so neither holds a score on the test split.
    """
    decisions = []
    for split, chosen, (level, max_pairs) in zip(SPLITS, seeds, rounds):
        decision = None
        for pair in runner.run(chosen, split):
            pairs.append(pair)
            failure = pair.get("failed") or same_for_every_seed(pairs, split)
            if failure:
                return failure
            found = differences(pairs, split)
            decision = verdict.decide(found, level=level, max_pairs=max_pairs, **rules)
            figures = ", ".join(f"{arm} {pair[arm]['bpb']:.4f}" for arm in ARMS)
            result = f"{figures}, difference {found[-1]:+.4f} bits per byte"
            echo(f"{split} pair {len(found)}: {result if split == 'val' else 'scored'}")
            if decision:
                break
        if decision is None:
            return {"verdict": "undecided", "reason": "the repeated pairs do not decide it"}
        decisions.append(decision)
        if not decision.verdict.startswith("keep"):
            break
    return asdict(verdict.conclude(*decisions))


def differences(pairs: list[dict], split: str) -> list[float]:
    """Return candidate - baseline, bits per byte, of the pairs that have both."""
    return [candidate - baseline for baseline, candidate in scores(pairs, split)]


def same_for_every_seed(pairs: list[dict], split: str = "val") -> dict | None:
    """Refuse a candidate with one score for several seeds, unlike the baseline."""
    baseline, candidate = zip(*scores(pairs, split, "first"))
    repeats = len(set(candidate)) < len(candidate)
    if repeats and len(set(baseline)) == len(baseline):
        reason = "it scores the same with any seed: it ignores the seed it is given"
        return {"verdict": "invalid", "reason": reason}
    return None


# --------------------------------------------------------------------------------------------------
# The noise floor


def noise_row(setup: Setup) -> dict:
    """Return the latest noise floor of this recipe, budget, machine and data.

    Raises UserError where none is: without it, a recipe that is mostly a little better and
    sometimes much worse would pass.
    """
    options = setup.options
    wanted = {
        "kind": "noise",
        "state": "done",
        "config": options.config,
        "budget": setup.budget,
        "hardware": hardware(),
    }
    for row in reversed(setup.ledger.trials()):
        # Data that is missing is prepared only where a floor of it may exist.
        if wanted.items() <= row.items() and row.get("data") == setup.data.fingerprint:
            return row
    flags = f"--config={options.config} --budget={setup.budget} --folder={options.folder}"
    raise UserError(
        f"{setup.ledger.path} holds no noise floor for this recipe, budget, machine and data. "
        f"Measure it once, with {2 * NoiseOptions.pairs} runs:\n"
        f"    python -m research noise {flags}"
    )


def plan(options: Options, runs: int, run_seconds: float | None) -> str:
    """Say how many runs follow, and for how long if the seconds of one are known."""
    if run_seconds is None:
        return f"{runs} runs"
    minutes = math.ceil(runs * run_seconds / options.workers / 60)
    return f"{runs} runs of about {run_seconds:.0f} s, {verdict.plural(minutes, 'minute')}"


@dataclass(frozen=True)
class NoiseOptions(Options):
    """Measure how far apart runs of one recipe are, and what can be seen above that."""

    pairs: int = 12  # of runs that differ by their seeds alone


def measure_noise(options: NoiseOptions, root: Path = patch.ROOT) -> None:
    """Run the recipe against itself with other seeds; record the differences and what they allow.

    A pair's runs have one clock, one machine and one text, so their difference has all noise that
    the difference of a change can have which alters training entirely.
    """
    require(
        options.pairs >= 3,
        f"pairs must be at least 3, or the spread means nothing, got {options.pairs}",
    )
    setup = Setup(options, root)
    setup.seed_step = 1
    row = begin("noise", setup)
    # Start-up and scoring are known after the first pair.
    budget_seconds = setup.amount if setup.kind == "seconds" else None
    print(f"{plan(options, 2 * options.pairs, budget_seconds)} at least")
    pairs = []
    with closing(PairRunner(setup, setup.base)) as runner:
        for pair in runner.run(new_seeds(options.pairs), "val"):
            pairs.append(pair)
            failure = pair.get("failed")
            if failure:
                require(failure["verdict"] == "disturbed", f"a run failed: {failure}")
                result = f"left out: {failure['reason']}"
            else:
                result = f"difference {differences([pair], 'val')[0]:+.5f} bits per byte"
            print(f"pair {len(pairs)}: {result}")
            if len(pairs) == 1:
                print(plan(options, 2 * options.pairs - 2, pair["seconds"] / 2), "follow")
    found = differences(pairs, "val")
    require(
        len(found) >= 3,
        f"{len(found)} pairs are undisturbed, too few: wait until the machine is quiet",
    )
    floor = Noise.of({"differences": found}).sd
    alpha = Night.of(setup.ledger.trials()).alpha()
    reason = f"noise floor of a pair: {floor:.5f} bits per byte"
    row |= {"state": "done", "differences": found, "noise": floor, "reason": reason}
    row["run_seconds"] = round(statistics.median(pair["seconds"] / 2 for pair in pairs), 2)
    setup.ledger.append(row)
    seen = []
    for count in (8, 16, options.max_pairs):
        effect = verdict.smallest_effect(floor, count, alpha)
        seen.append(f"{-effect:.4f} with --max_pairs={count}")
    print(reason)
    print(f"a change is kept four times in five if its true difference is {', '.join(seen)}")
