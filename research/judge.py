"""One trial: a change is made, run beside the baseline pair by pair, decided on and recorded.

Every row of the ledger that is about runs is begun by `begin`; a trial's is ended by `judge`.
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
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import prepare_data
from nanoloop.options import UserError, require
from research import patch, verdict
from research.ledger import Ledger, new_id, now
from research.runs import ARMS, Options, Setup, pairs_runner, scores
from research.verdict import Night, Noise


def hardware() -> str:
    """The kind of machine: scores are compared within one kind only."""
    names = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    shown = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    gpus = (
        subprocess.run(shown, capture_output=True, text=True).stdout
        if shutil.which(shown[0])
        else ""
    )
    return ", ".join(
        [f"{os.cpu_count()} × {(names or [platform.machine()])[0]}", *gpus.splitlines()]
    )


def begin(kind: str, setup: Setup, **more) -> dict:
    """The row before a trial, in the ledger."""
    options, parent = setup.options, ""
    with contextlib.suppress(UserError):  # no repository, or no git
        parent = patch.git(setup.root, "rev-parse", "HEAD").strip()
    row = {
        "id": new_id(kind),
        "state": "begun",
        "kind": kind,
        "time": now(),
        "hypothesis": "",
        "config": options.config,
        "budget": options.budget,
        "options": asdict(options),
        "parent": parent,
        "tree": patch.hash_of(sorted(setup.base.items())),
        "hardware": hardware(),
        "data": prepare_data.Data(setup.data).fingerprint,
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
    tell=print,
    **more,
) -> dict:
    """Make the change, judge it, record it; returns the finished row. Raises UserError for mistakes of the caller.

    Exactly one of patch_file, settings ("key=value …") and tree. root: the folder whose recipe is the baseline. more:
    for the row.
    """
    require(
        [patch_file, settings, tree].count(None) == 2, "give exactly one of PATCH, --set and --tree"
    )
    setup = Setup(options, root)
    more |= {"hypothesis": (hypothesis or settings or "")[:2000]}
    try:
        if settings is not None:
            change = patch.from_settings(setup.base, options.config, settings, root)
        elif patch_file is not None:
            change = patch.from_patch(setup.base, Path(patch_file).read_bytes())
        else:
            change = patch.from_tree(setup.base, Path(tree), root)
        patch.refuse(not change.files, "it changes nothing")
        data = prepare_data.Data(setup.data)
        texts = [
            data.tokenizer.decode_bytes(data.splits[s].read(0, len(data.splits[s])))
            for s in ("val", "test")
        ]
        patch.refuse(patch.copies(change, b"\n".join(texts)), "it spells out held-out text")
    except patch.Invalid as error:
        row = begin("trial", setup, idea=patch.hash_of(str(error)), **more)
        return setup.ledger.append(
            row | {"state": "done", "verdict": "invalid", "reason": str(error)}
        )
    seeds = [
        [secrets.randbelow(2**31) for _ in range(options.max_pairs)] for _ in range(2)
    ]  # that no patch has met
    return judge(change, setup, seeds, Night.of(setup.ledger.trials()).alpha(), tell, **more)


def replay(earlier: dict, folder: str) -> dict:
    """Do a recorded trial again, with its change, seeds and level; returns the new row. Raises UserError."""
    require(
        earlier.get("pairs"),
        f"trial {earlier['id']} has no scored pair: there is nothing to do again",
    )
    setup = Setup(Options(**earlier["options"] | {"folder": folder}), patch.ROOT)
    told = f"the tree is not the one of trial {earlier['id']}: check out commit '{earlier['parent']}' first"
    require(patch.hash_of(sorted(setup.base.items())) == earlier["tree"], told)
    seeds = [
        [pair["seed"] for pair in earlier["pairs"] if pair["split"] == split]
        for split in ("val", "test")
    ]
    return judge(
        patch.from_patch(setup.base, earlier["diff"].encode()),
        setup,
        seeds,
        earlier["alpha"],
        print,
        hypothesis=earlier["hypothesis"],
        replay_of=earlier["id"],
    )


def judge(
    change: patch.Change, setup: Setup, seeds: list[list[int]], alpha: float, tell, **more
) -> dict:
    """Run a trial's pairs until it is decided, and record it; returns the finished row.

    seeds: of the pairs on the validation split and of those on the test split. alpha: the trial's level.
    """
    options, started, pairs = setup.options, time.time(), []
    row = begin(
        "replay" if "replay_of" in more else "trial",
        setup,
        diff=change.diff,
        idea=change.idea,
        added=change.added,
        removed=change.removed,
        seeds=seeds,
        alpha=alpha,
        **more,
    )
    rules = {
        "alpha": alpha,
        "minimum_effect": options.minimum_effect,
        "max_pairs": options.max_pairs,
        "noise": known_noise(setup.ledger, options),
        "lines": change.added - change.removed,
    }
    if not rules["noise"]:
        tell(
            "no noise floor is known: python -m research noise, with this --config and --budget, measures it"
        )
    ending = {"state": "interrupted", "verdict": "undecided", "reason": "the judge was interrupted"}
    try:
        with pairs_runner(setup, patch.apply(setup.base, change)) as run:
            ending = decide(run, pairs, seeds, rules, tell, early="replay_of" not in more)
    finally:
        row |= {
            "pairs": pairs,
            "differences": differences(pairs, "val"),
            "state": "done",
            **ending,
            "isolation": pairs[0]["isolation"] if pairs else None,
        }
        setup.ledger.append(row | {"run_seconds": round(time.time() - started, 1)})
    return row


def decide(run, pairs: list[dict], seeds: list[list[int]], rules: dict, tell, early: bool) -> dict:
    """Run pairs, collected in `pairs`, until the trial is decided; returns what its row says of that.

    early: a round ends as soon as it is decided; otherwise, done again, with its last seed.
    """
    for split, chosen, by in zip(("val", "test"), seeds, (verdict.decide, verdict.confirm)):
        for pair in run(chosen, split):
            pairs.append(pair)
            if failed := pair.get("failed") or same_for_every_seed(pairs, split):
                return failed
            found = differences(pairs, split)
            decision = by(found, **rules)
            both = ", ".join(f"{arm} {pair[arm]['bpb']:.4f}" for arm in ARMS)
            tell(f"{split} pair {len(found)}: {both}, difference {found[-1]:+.4f} bits per byte")
            if decision and early:
                break
        if decision is None:
            return {"verdict": "undecided", "reason": "the pairs of then do not decide it now"}
        if not decision.verdict.startswith("keep"):
            break
    mean, *interval = (
        x if math.isfinite(x) else None for x in (decision.mean, *decision.interval)
    )  # JSON has no inf
    return {
        "verdict": decision.verdict,
        "reason": decision.reason,
        "mean": mean,
        "interval": interval,
    }


def differences(pairs: list[dict], split: str) -> list[float]:
    """Candidate - baseline, bits per byte, of the split's pairs of which both were scored."""
    return [candidate - baseline for baseline, candidate in scores(pairs, split)]


def same_for_every_seed(pairs: list[dict], split: str = "val") -> dict | None:
    """A candidate that scores the same to the last bit with several seeds has chosen its own."""
    baseline, candidate = zip(*scores(pairs, split))
    if len(candidate) > len({*candidate}) and len(baseline) == len({*baseline}):
        return {
            "verdict": "invalid",
            "reason": "it scores the same with any seed: it ignores the seed it is given",
        }


def exit_code(row: dict) -> int:
    return {"keep": 0, "keep (simpler)": 0, "invalid": 3, "crash": 3}.get(row["verdict"], 1)


# ---------------------------------------------------------------------------------------------------------------------
# The noise floor


def known_noise(ledger: Ledger, options: Options) -> Noise | None:
    """The noise floor measured last for this recipe, budget and machine; None where it never was."""
    key = {
        "kind": "noise",
        "state": "done",
        "config": options.config,
        "budget": options.budget,
        "hardware": hardware(),
    }
    rows = [
        row
        for row in ledger.trials()
        if key.items() <= {name: row.get(name) for name in key}.items()
    ]
    return Noise.of(rows[-1]["differences"]) if rows else None


@dataclass(frozen=True)
class NoiseOptions(Options):
    """Measure how far two runs of the same recipe lie apart, store it, and say what can be seen above it."""

    pairs: int = 8  # of runs that differ in nothing but chance


def measure_noise(options: NoiseOptions) -> None:
    """A/A pairs: the recipe against itself, nudged, with the same seed; records the differences and what they allow.

    The nudge, learning rates a ten-thousandth higher, means nothing; without it the two runs were the same to the bit.
    """
    require(options.pairs >= 3, f"--pairs={options.pairs}: at least 3, or the spread means nothing")
    setup, pairs = Setup(options, patch.ROOT), []
    nudge = f"muon_lr={setup.recipe.muon_lr * 1.0001} learning_rate={setup.recipe.learning_rate * 1.0001}"
    nudged = patch.apply(
        setup.base, patch.from_settings(setup.base, options.config, nudge, setup.root)
    )
    row = begin("noise", setup)
    with pairs_runner(setup, nudged) as run:
        for pair in run([secrets.randbelow(2**31) for _ in range(options.pairs)], "val"):
            require("failed" not in pair, f"a run failed: {pair.get('failed')}")
            pairs.append(pair)
            print(
                f"pair {len(pairs)}: difference {differences([pair], 'val')[0]:+.5f} bits per byte"
            )
    found, spread = (
        differences(pairs, "val"),
        statistics.stdev(pair["baseline"]["bpb"] for pair in pairs),
    )
    floor = Noise.of(found).sd
    setup.ledger.append(
        row
        | {
            "state": "done",
            "differences": found,
            "noise": floor,
            "seed_spread": spread,
            "reason": f"noise floor of a pair: {floor:.5f}",
        }
    )
    print(
        f"noise floor of a pair: {floor:.5f} bits per byte; spread of the baseline over seeds: {spread:.5f}"
    )
    print(
        "a change that alters training little has the floor's noise, one that alters it all up to √2 × the spread:"
    )
    for count in sorted({3, 4, options.max_pairs, 2 * options.max_pairs}):
        alpha, most = Night.of(setup.ledger.trials()).alpha(), max(floor, 2**0.5 * spread)
        seen = (verdict.smallest_effect(sd, count, alpha) for sd in (floor, most))
        print(
            f"{count} pairs of each round keep a gain of {' to '.join(f'{x:.4f}' for x in seen)} four times in five"
        )
