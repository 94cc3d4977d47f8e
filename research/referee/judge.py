"""One trial: apply a change, run it beside the baseline pair by pair, decide and record.

`begin` writes the first row of whatever needs runs; `judge` writes the last row of a trial.
"""

import contextlib
import math
import os
import platform
import re
import secrets
import shutil
import statistics
import subprocess
import time
from contextlib import closing
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from nanoloop.data import Data
from nanoloop.options import UserError, require
from research.referee import patch, verdict
from research.referee.ledger import Ledger, new_id, now
from research.referee.runs import ARMS, Options, PairRunner, Setup, scores
from research.referee.verdict import Night, Noise

EXIT_CODES = {"keep": 0, "keep (simpler)": 0, "invalid": 3, "crash": 3}  # all others: 1


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
    """Write the row before a trial to the ledger; return it."""
    parent = ""
    with contextlib.suppress(UserError):  # no repository, or no git
        parent = patch.git(setup.root, "rev-parse", "HEAD").strip()
    row = {
        "id": new_id(kind),
        "state": "begun",
        "kind": kind,
        "time": now(),
        "hypothesis": "",
        "config": setup.options.config,
        "budget": setup.options.budget,
        "options": asdict(setup.options),
        "parent": parent,
        "tree": patch.hash_of(sorted(setup.base.items())),
        "hardware": hardware(),
        "data": Data(setup.data).fingerprint,
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
            change = patch.from_patch(setup.base, Path(patch_file).read_bytes())
        else:
            change = patch.from_tree(setup.base, Path(tree), root)
        patch.refuse(not change.files, "it changes nothing")
        is_copy = patch.copies(change, held_out_text(Data(setup.data)))
        patch.refuse(is_copy, "it spells out held-out text")
    except patch.Invalid as error:
        reason = str(error)
        row = begin("trial", setup, idea=patch.hash_of(reason), **more)
        return setup.ledger.append(row | {"state": "done", "verdict": "invalid", "reason": reason})
    alpha = Night.of(setup.ledger.trials()).alpha()
    seeds = [new_seeds(options.max_pairs), new_seeds(options.max_pairs)]
    return judge(change, setup, seeds, alpha, echo, **more)


def new_seeds(count: int) -> list[int]:
    """Draw seeds that no patch can know."""
    return [secrets.randbelow(2**31) for _ in range(count)]


def held_out_text(data: Data) -> bytes:
    splits = [data.splits["val"], data.splits["test"]]
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
    require(is_same, message)
    pairs = earlier["pairs"]
    return judge(
        patch.from_patch(setup.base, earlier["diff"].encode()),
        setup,
        [[pair["seed"] for pair in pairs if pair["split"] == split] for split in ("val", "test")],
        earlier["alpha"],
        print,
        hypothesis=earlier["hypothesis"],
        replay_of=number,
    )


def judge(
    change: patch.Change, setup: Setup, seeds: list[list[int]], alpha: float, echo, **more
) -> dict:
    """Run a trial's pairs until it is decided, and record it; return the finished row.

    seeds: of the pairs on the validation split and of those on the test split. alpha: the trial's
    level. more: fields of the row; with "replay_of" all seeds are used.
    """
    started = time.time()
    is_replay = "replay_of" in more
    row = begin(
        "replay" if is_replay else "trial",
        setup,
        diff=change.diff,
        idea=change.idea,
        tokens=change.tokens,
        seeds=seeds,
        alpha=alpha,
        **more,
    )
    noise = known_noise(setup.ledger, setup.options)
    if not noise:
        echo("the noise floor is unknown: measure it with python -m research noise")
    rules = {
        "alpha": alpha,
        "minimum_effect": setup.options.minimum_effect,
        "max_pairs": setup.options.max_pairs,
        "noise": noise,
        "tokens": change.tokens,
    }
    pairs: list[dict] = []
    result = {"state": "interrupted", "verdict": "undecided", "reason": "the judge was interrupted"}
    try:
        with closing(PairRunner(setup, patch.apply(setup.base, change))) as runner:
            result = decide(runner, pairs, seeds, rules, echo, stops_early=not is_replay)
    finally:
        row["state"] = "done"
        row["pairs"] = pairs
        row["differences"] = differences(pairs, "val")
        row["isolation"] = pairs[0]["isolation"] if pairs else None
        row |= result
        setup.ledger.append(row | {"run_seconds": round(time.time() - started, 1)})
    return row


def decide(
    runner: PairRunner,
    pairs: list[dict],
    seeds: list[list[int]],
    rules: dict,
    echo,
    stops_early: bool,
) -> dict:
    """Run pairs, added to `pairs`, until the trial is decided; return what its row says of that.

    stops_early: a round ends when it is decided; otherwise with its last seed.
    """
    rounds = [("val", seeds[0], verdict.decide), ("test", seeds[1], verdict.confirm)]
    for split, chosen, decide_round in rounds:
        for pair in runner.run(chosen, split):
            pairs.append(pair)
            failure = pair.get("failed") or same_for_every_seed(pairs, split)
            if failure:
                return failure
            found = differences(pairs, split)
            decision = decide_round(found, **rules)
            figures = ", ".join(f"{arm} {pair[arm]['bpb']:.4f}" for arm in ARMS)
            result = f"difference {found[-1]:+.4f} bits per byte"
            echo(f"{split} pair {len(found)}: {figures}, {result}")
            if decision and stops_early:
                break
        if decision is None:
            return {"verdict": "undecided", "reason": "the repeated pairs do not decide it"}
        if not decision.verdict.startswith("keep"):
            break
    return {
        "verdict": decision.verdict,
        "reason": decision.reason,
        "mean": finite(decision.mean),
        "interval": [finite(end) for end in decision.interval],
    }


def finite(value: float) -> float | None:
    """Return None for what JSON cannot hold."""
    return value if math.isfinite(value) else None


def differences(pairs: list[dict], split: str) -> list[float]:
    """Return candidate - baseline, bits per byte, of the pairs that have both."""
    return [candidate - baseline for baseline, candidate in scores(pairs, split)]


def same_for_every_seed(pairs: list[dict], split: str = "val") -> dict | None:
    """Refuse a candidate with one score for several seeds, unlike the baseline."""
    baseline, candidate = zip(*scores(pairs, split))
    repeats = len(set(candidate)) < len(candidate)
    if repeats and len(set(baseline)) == len(baseline):
        reason = "it scores the same with any seed: it ignores the seed it is given"
        return {"verdict": "invalid", "reason": reason}
    return None


# --------------------------------------------------------------------------------------------------
# The noise floor


def known_noise(ledger: Ledger, options: Options) -> Noise | None:
    """Return the noise floor measured last for this recipe, budget and machine, if any."""
    wanted = ("noise", "done", options.config, options.budget, hardware())
    for row in reversed(ledger.trials()):
        names = ("kind", "state", "config", "budget", "hardware")
        if tuple(row.get(name) for name in names) == wanted:
            return Noise.of(row["differences"])
    return None


@dataclass(frozen=True)
class NoiseOptions(Options):
    """Measure how far apart runs of one recipe are, and what can be seen above that."""

    pairs: int = 8  # of runs that differ by chance alone


def measure_noise(options: NoiseOptions) -> None:
    """Run the recipe against itself, slightly changed; record the differences and what they allow.

    The change, learning rates a ten-thousandth higher, means nothing; without it the two runs
    of a seed would be equal to the bit.
    """
    message = f"pairs must be at least 3, or the spread means nothing, got {options.pairs}"
    require(options.pairs >= 3, message)
    setup = Setup(options, patch.ROOT)
    rates = {name: getattr(setup.recipe, name) for name in ("muon_lr", "learning_rate")}
    settings = " ".join(f"{name}={rate * 1.0001}" for name, rate in rates.items())
    change = patch.from_settings(setup.base, options.config, settings, setup.root)
    row = begin("noise", setup)
    pairs = []
    with closing(PairRunner(setup, patch.apply(setup.base, change))) as runner:
        for pair in runner.run(new_seeds(options.pairs), "val"):
            require("failed" not in pair, f"a run failed: {pair.get('failed')}")
            pairs.append(pair)
            found = differences(pairs, "val")
            print(f"pair {len(pairs)}: difference {found[-1]:+.5f} bits per byte")
    floor = Noise.of(found).sd
    spread = statistics.stdev(pair["baseline"]["bpb"] for pair in pairs)
    row |= {
        "state": "done",
        "differences": found,
        "noise": floor,
        "seed_spread": spread,
        "reason": f"noise floor of a pair: {floor:.5f}",
    }
    setup.ledger.append(row)
    print(f"noise floor of a pair: {floor:.5f} bits per byte; spread over seeds: {spread:.5f}")
    print(
        "the noise of a change that alters training little is the floor, "
        "of one that alters it entirely up to √2 × the spread:"
    )
    alpha = Night.of(setup.ledger.trials()).alpha()
    for count in sorted({3, 4, options.max_pairs, 2 * options.max_pairs}):
        low = verdict.smallest_effect(floor, count, alpha)
        high = verdict.smallest_effect(max(floor, 2**0.5 * spread), count, alpha)
        gains = f"a gain of {low:.4f} to {high:.4f}"
        print(f"{count} pairs in each round keep {gains} four times in five")
