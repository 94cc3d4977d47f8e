"""One trial: a change is made, run beside the baseline pair by pair, decided on and recorded.

Every row of the ledger that is about runs is begun by `begin`; a trial's is ended by `judge`.
"""

import contextlib
import hashlib
import math
import os
import platform
import re
import secrets
import shutil
import statistics
import subprocess
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import prepare_data
from console import UserError, require
from research import patch, verdict
from research.ledger import Ledger, new_id
from research.runs import Options, Setup, make_slots, run_pairs, set_up
from research.verdict import Night, Noise

ARMS = ("baseline", "candidate")


def hardware() -> str:
    """The kind of machine: scores are compared within one kind only."""
    names = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    shown = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    gpus = subprocess.run(shown, capture_output=True, text=True).stdout if shutil.which(shown[0]) else ""
    return ", ".join([f"{os.cpu_count()} × {(names or [platform.machine()])[0]}", *gpus.splitlines()])


def begin(kind: str, setup: Setup, change: patch.Change | None = None, **more) -> dict:
    """The row before a trial, in the ledger."""
    options, parent = setup.options, ""
    with contextlib.suppress(UserError):  # no repository, or no git
        parent = patch.git(setup.root, "rev-parse", "HEAD").strip()
    row = {"id": new_id(kind), "state": "begun", "kind": kind, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
           "hypothesis": "", "config": options.config, "budget": options.budget, "options": options.plain(),
           "parent": parent, "tree": patch.tree_hash(setup.base), "hardware": hardware(),
           "versions": {"python": platform.python_version(), "torch": version("torch")}}  # fmt: skip
    if change:
        row |= {"diff": change.diff, "diff_hash": hashlib.sha256(change.diff.encode()).hexdigest()[:16]}
        row |= {"added": change.added, "removed": change.removed}
    return setup.ledger.append(row | more)


def try_change(options: Options, root: Path, *, patch_file: str | None = None, settings: str | None = None,
               tree: str | None = None, hypothesis: str = "", tell=print) -> dict:  # fmt: skip
    """Make the change, judge it, record it; returns the finished row. Raises UserError for mistakes of the caller.

    Exactly one of patch_file, settings ("key=value …") and tree. root: the folder whose recipe is the baseline.
    """
    require([patch_file, settings, tree].count(None) == 2, "give exactly one of PATCH, --set and --tree")
    setup, hypothesis = set_up(options, root), hypothesis[:2000]
    try:
        if settings is not None:
            change = patch.from_settings(setup.base, options.config, settings, root)
        elif patch_file is not None:
            change = patch.from_patch(setup.base, Path(patch_file).read_bytes())
        else:
            change = patch.from_tree(setup.base, Path(tree), root)
        patch.refuse(not change.files, "it changes nothing")
        data = prepare_data.Data(setup.data)
        texts = [data.tokenizer.decode_bytes(data.splits[s].read(0, len(data.splits[s]))) for s in ("val", "test")]
        patch.refuse(patch.copies(change, b"\n".join(texts)), "it spells out held-out text")
    except patch.Invalid as error:
        row = begin("trial", setup, hypothesis=hypothesis)
        return setup.ledger.append(row | {"state": "done", "verdict": "invalid", "reason": str(error)})
    return judge(change, setup, hypothesis, tell)


def replay(earlier: dict, folder: str) -> dict:
    """Do a recorded trial again, with its change, seeds and level; returns the new row. Raises UserError."""
    require(earlier.get("pairs"), f"trial {earlier['id']} has no scored pair: there is nothing to do again")
    setup = set_up(Options(**earlier["options"] | {"folder": folder}), patch.ROOT)
    told = f"the tree is not the one of trial {earlier['id']}: check out commit '{earlier['parent']}' first"
    require(patch.tree_hash(setup.base) == earlier["tree"], told)
    again = {"seeds": earlier["seeds"], "alpha": earlier["alpha"], "replay_of": earlier["id"]}
    return judge(patch.from_patch(setup.base, earlier["diff"].encode()), setup, earlier["hypothesis"], print, again)


def judge(change: patch.Change, setup: Setup, hypothesis: str, tell, again: dict | None = None) -> dict:
    """Run a trial's pairs until it is decided, and record it; returns the finished row.

    again: what a trial that is done again takes from its first time; otherwise seeds are fresh, which no patch could
    have met.
    """
    options, ledger, started = setup.options, setup.ledger, time.time()
    more = again or {"seeds": [[secrets.randbelow(2**31) for _ in range(options.max_pairs)] for _ in range(2)],
                     "alpha": Night.of(ledger.trials()).alpha()}  # fmt: skip
    row = begin("replay" if again else "trial", setup, change, hypothesis=hypothesis, **more)
    rules = {"alpha": row["alpha"], "minimum_effect": options.minimum_effect, "max_pairs": options.max_pairs,
             "noise": known_noise(ledger, options), "lines": change.added - change.removed}  # fmt: skip
    rounds, ending = {"val": [], "test": []}, {"verdict": "undecided", "reason": "the judge was interrupted"}
    slots = make_slots(setup, patch.apply(setup.base, change))
    try:
        ending = decide(slots, rounds, row["seeds"], rules, tell, early=not again)
    finally:
        for slot in slots:
            slot.close()
        row |= figures(rounds) | {"data": prepare_data.Data(setup.data).fingerprint, "state": "done", **ending}
        row["seconds"] = round(time.time() - started, 1)
        ledger.append(row)
    return row


def decide(slots: list, rounds: dict[str, list], seeds: list[list[int]], rules: dict, tell, early: bool) -> dict:
    """Run pairs into `rounds` until the trial is decided; returns what its row says of that.

    early: a round ends as soon as it is decided; otherwise with its last seed.
    """
    for (split, pairs), chosen, by in zip(rounds.items(), seeds, (verdict.decide, verdict.confirm)):
        for pair in run_pairs(slots, chosen, split):
            pairs.append(pair)
            failed = pair.get("failed") or same_for_every_seed(pairs)
            if failed:
                return failed
            found = differences(pairs)
            decision = by(found, **rules)
            scores = ", ".join(f"{arm} {pair[arm]['bpb']:.4f}" for arm in ARMS)
            tell(f"{split} pair {len(found)}: {scores}, difference {found[-1]:+.4f} bits per byte")
            if decision and early:
                break
        if decision is None:  # in a replay whose scores are others
            return {"verdict": "undecided", "reason": "the pairs of then do not decide it now"}
        if not decision.verdict.startswith("keep"):
            break
    mean, *interval = (x if math.isfinite(x) else None for x in (decision.mean, *decision.interval))  # JSON has no inf
    return {"verdict": decision.verdict, "reason": decision.reason, "mean": mean, "interval": interval}


def differences(pairs: list[dict]) -> list[float]:
    """Candidate - baseline, bits per byte, of the pairs of which both were scored."""
    return [pair["candidate"]["bpb"] - pair["baseline"]["bpb"] for pair in pairs if set(ARMS) <= set(pair)]


def figures(rounds: dict[str, list]) -> dict:
    """What a row tells of its pairs."""
    every = rounds["val"] + rounds["test"]
    curves, seconds = ({arm: [pair[arm][key] for pair in every if arm in pair] for arm in ARMS}
                       for key in ("curve", "seconds"))  # fmt: skip
    pairs, confirmation = ([pair | {arm: pair[arm]["bpb"] for arm in ARMS if arm in pair} for pair in rounds[split]]
                           for split in ("val", "test"))  # fmt: skip
    return {"pairs": pairs, "confirmation": confirmation, "curves": curves, "run_seconds": seconds,
            "differences": differences(rounds["val"]), "seeds": [[pair["seed"] for pair in r] for r in rounds.values()],
            "tokens": max((curve[-1][0] for curve in curves["candidate"] if curve), default=None),
            "isolation": every[0]["isolation"] if every else None}  # fmt: skip


def same_for_every_seed(pairs: list[dict]) -> dict | None:
    """A candidate that scores the same to the last bit with several seeds has chosen its own."""
    bits = {arm: {pair[arm]["bpb"] for pair in pairs} for arm in ARMS}
    if len(pairs) > 1 and len(bits["candidate"]) < len(pairs) == len(bits["baseline"]):
        return {"verdict": "invalid", "reason": "it scores the same with any seed: it ignores the seed it is given"}
    return None


def exit_code(row: dict) -> int:
    return {"keep": 0, "keep (simpler)": 0, "invalid": 3, "crash": 3}.get(row["verdict"], 1)


# ---------------------------------------------------------------------------------------------------------------------
# The noise floor


def known_noise(ledger: Ledger, options: Options) -> Noise | None:
    """The noise floor measured last for this recipe, budget and machine; None where it never was."""
    key = (options.config, options.budget, hardware())
    rows = [row for row in ledger.trials() if row["kind"] == "noise" and row["state"] == "done"
            and (row["config"], row["budget"], row["hardware"]) == key]  # fmt: skip
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
    setup, started, scored = set_up(options, patch.ROOT), time.time(), []
    nudge = f"muon_lr={setup.recipe.muon_lr * 1.0001} learning_rate={setup.recipe.learning_rate * 1.0001}"
    nudged = patch.apply(setup.base, patch.from_settings(setup.base, options.config, nudge, setup.root))
    row, slots = begin("noise", setup), make_slots(setup, nudged)
    try:
        for pair in run_pairs(slots, [secrets.randbelow(2**31) for _ in range(options.pairs)], "val"):
            require("failed" not in pair, f"a run failed: {pair.get('failed')}")
            scored.append(pair)
            print(f"pair {len(scored)}: difference {differences([pair])[0]:+.5f} bits per byte")
    finally:
        for slot in slots:
            slot.close()
    floor, spread = Noise.of(differences(scored)).sd, statistics.stdev(pair["baseline"]["bpb"] for pair in scored)
    row |= {"state": "done", "differences": differences(scored), "noise": floor, "seed_spread": spread,
            "seconds": round(time.time() - started, 1), "isolation": scored[0]["isolation"]}  # fmt: skip
    setup.ledger.append(row)
    print(f"noise floor of a pair: {floor:.5f} bits per byte; spread of the baseline over seeds: {spread:.5f}")
    print("a change that alters training little has the floor's noise, one that alters it all up to √2 × the spread:")
    alpha = Night.of(setup.ledger.trials()).alpha()
    for count in sorted({3, 4, options.max_pairs, 2 * options.max_pairs}):
        least, most = (verdict.smallest_effect(sd, count, alpha) for sd in (floor, max(floor, 2**0.5 * spread)))
        print(f"{count} pairs of each round keep a gain of {least:.4f} to {most:.4f} four times in five")
