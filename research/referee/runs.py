"""Runs and pairs: one arm trained and scored, and two arms with one seed.

A pair is a baseline run and a candidate run with one seed on the same cores, one after the other;
which comes first is drawn. Only the judge's flags, clock and figures count; what a run says of
itself is kept as a claim.
"""

import glob
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir, suppress
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import repeat
from pathlib import Path

from nanoloop.data import Data
from nanoloop.options import read_options, require
from nanoloop.programs import prepare_missing
from research.referee import patch, verdict
from research.referee.ledger import Ledger
from research.referee.sandbox import Crashed, Disturbed, Ended, Limit, Sandbox
from research.referee.score import Score, score, usual
from research.referee.views import library_covers, training_data

ARMS = ("baseline", "candidate")
NO_LIMIT = Limit(7 * 24 * 3600)  # of the baseline, which is the user's code
MIN_SECONDS = 60  # the clock stops no run of steps or tokens before
MAX_SLOWDOWN = 20  # … nor before so many times the baseline's time; a busy machine may need them
ATTEMPTS = 4  # of a change that overruns the seconds it is given, before it is refused
REPEATS = 2  # of a pair that was disturbed
MAX_APART = 0.1  # by which the smaller of two runs' shares of the processor may be below the other
CURVE_BYTES = 4 << 20  # of a run's log that are read
CURVE_POINTS = 500  # that are kept


@dataclass(frozen=True)
class Options:
    """How a trial is judged."""

    config: str = "config/quickstart.py"  # the recipe that is changed
    budget: str | None = None  # of each run, as 60s, 500steps or 2e6tokens; None: the recipe's
    max_pairs: int = verdict.MAX_PAIRS  # pairs of runs in the second round, at most
    minimum_effect: float = verdict.MINIMUM_EFFECT  # bits per byte; a smaller gain is not kept
    slowdown: float = 2.0  # budget of steps or tokens: times the baseline's processor time
    folder: str = "out/research"  # of the ledger and the working copies
    workers: int = 1  # pairs at once on this machine; they share its cores, or have a GPU each

    def __post_init__(self):
        require(
            self.max_pairs >= 3,
            f"max_pairs must be at least 3 to show anything, got {self.max_pairs}",
        )
        require(
            self.minimum_effect >= 0,
            f"minimum_effect must be at least 0, got {self.minimum_effect}",
        )
        require(
            self.slowdown >= 1,
            f"slowdown must be at least 1, or the recipe itself is refused, got {self.slowdown}",
        )
        share_machine(self.workers)


class Setup:
    """What all runs of a trial share.

    root: the folder whose recipe is the baseline. base: that recipe, path to content. recipe: its
    options. flags: of all runs. budget: its text, the recipe's own where none is given. kind,
    amount: the budget, in "seconds" or "tokens". Raises UserError.
    """

    def __init__(self, options: Options, root: Path):
        from train import TrainConfig

        message = f"--config={options.config}: name a recipe, such as config/quickstart.py"
        require(patch.is_config(options.config), message)
        self.options = Options(
            **{field.name: getattr(options, field.name) for field in fields(Options)}
        )
        self.root = root
        self.base = patch.read_tree(root)
        config = patch.ROOT / options.config
        if not config.is_file():
            config = root / options.config
        # The user's, not one that a change kept by `loop` has written: it is run here.
        recipe = read_options(TrainConfig, [str(config)], "-m research")
        message = f"{options.config} starts from weights (init_from), which cannot be judged"
        require(not recipe.init_from, message)
        self.recipe = recipe
        self.seed_step = 0  # from the baseline's seed to the candidate's
        self.budget, self.kind, self.amount = read_budget(options.budget, recipe)
        defaults = {name: getattr(TrainConfig, name) for name in patch.PROTECTED}
        self.flags = defaults | {
            "save_interval": None,
            "device": recipe.device,
            "log_interval": recipe.log_interval,
        }
        self.ledger = Ledger(Path(options.folder).resolve())

    @cached_property
    def data(self) -> Data:
        """Return the data. The first use prepares it if it is missing. Raises UserError."""
        with chdir(patch.ROOT):
            folder = Path(prepare_missing(self.recipe.data, self.recipe.prepare)).resolve()
        data = Data(folder)
        is_complete = len(data.splits["val"]) and len(data.splits["test"])
        advice = "prepare its text again with --val_fraction=0.02 --test_fraction=0.02"
        require(is_complete, f"'{folder}' lacks a val or test split: {advice}")
        return data


def read_budget(budget: str | None, recipe) -> tuple[str, str, float]:
    """Return text, "seconds" or "tokens", and amount of --budget, or of the recipe.

    Equal budgets have equal texts, such as 60s, 500steps or 2000000tokens. Raises UserError.
    """
    if budget is None:
        limits = {"s": recipe.max_seconds, "tokens": recipe.max_tokens, "steps": recipe.max_steps}
        budget = next(f"{limit}{unit}" for unit, limit in limits.items() if limit)
    parts = re.fullmatch(r"(\d+\.?\d*(?:e\d+)?) ?(s|seconds|steps|tokens)", budget)
    is_valid = parts and float(parts[1]) > 0
    require(is_valid, f"--budget={budget}: write it as 60s, 500steps or 2e6tokens")
    amount = float(parts[1])
    unit = parts[2].replace("seconds", "s")
    text = f"{amount:.12g}{unit}"
    if unit == "s":
        return text, "seconds", amount
    return text, "tokens", int(amount * (recipe.batch_tokens if unit == "steps" else 1))


# --------------------------------------------------------------------------------------------------
# One slot


class Slot:
    """One of `count` equal shares of this machine: a sandbox on its cores, and the trees on disk.

    trained, scored: what the baseline's runs have used so far.
    charge: seconds that the candidate needs more than the baseline to begin and to end.
    """

    def __init__(self, setup: Setup, candidate: dict, number: int = 0, count: int = 1):
        self.setup = setup
        self.data = setup.data
        cores, variables = share_machine(count)[number]
        self.n_cores = len(cores)
        if setup.kind == "tokens":
            # Idle threads sleep, so that processor time measures work however busy the machine is.
            variables["OMP_WAIT_POLICY"] = "passive"
        self.box = Sandbox(setup.ledger.folder, cores, [self.data.folder], variables)
        self.folder = self.box.folder
        self.box.covers = library_covers(self.data, self.folder / "covers")
        training_data(self.data, self.folder / "data")
        self.trained: list[Ended] = []
        self.scored: list[Score] = []
        self.install("baseline", setup.base)
        self.install("candidate", candidate)

    def install(self, arm: str, tree: dict) -> None:
        """Write the tree from which the next runs of the arm start."""
        shutil.rmtree(self.folder / arm, ignore_errors=True)
        patch.write_tree(tree, self.folder / arm)
        self.charge = 0.0

    def train(self, arm: str, seed: int) -> Ended:
        """Do one run of an arm; it leaves ARM.pt and ARM.jsonl. Raises patch.Invalid."""
        amount = self.setup.amount
        if arm == "baseline":
            run = self.train_once(arm, seed, amount, NO_LIMIT)
            self.trained.append(run)
            return run
        if self.setup.kind == "seconds":
            return self.train_seconds(seed)
        limit = limit_for(self.trained, self.setup.options.slowdown, slack=5)
        run = self.train_once(arm, seed, amount, limit)
        if run.late:
            message = f"training took more than {limit.exceeded(run)} (see --slowdown)"
            raise run.problem(patch.Invalid, message)
        return run

    def train_seconds(self, seed: int) -> Ended:
        """Do one run of the candidate with a budget of seconds, which it may not exceed."""
        amount = self.setup.amount
        allowed = usual(self.trained, "seconds") + 0.5 + 0.01 * amount
        seconds = allowed + 3 + 0.25 * amount
        limit = Limit(seconds, seconds * self.n_cores)
        for _ in range(ATTEMPTS):
            given = max(amount - self.charge, amount / 2)
            run = self.train_once("candidate", seed, given, limit)
            excess = run.seconds - allowed
            if excess <= 0:
                return run
            message = f"training took {run.seconds:.1f} seconds, and may take {allowed:.1f}"
            if excess <= run.waited_seconds + run.stalled_seconds:
                waited = f"for {run.waited_seconds:.1f} of them others had its cores"
                short = f"for {run.stalled_seconds:.1f} memory was short"
                raise Disturbed(f"{message}; {waited}, {short}", run.text)
            if run.late:
                break
            self.charge += excess + 0.2
        raise run.problem(patch.Invalid, message)

    def train_once(self, arm: str, seed: int, amount: float, limit: Limit) -> Ended:
        """Do one run of an arm. Raises Crashed if it ends badly without being late."""
        if arm == "candidate":
            seed += self.setup.seed_step
        flags = self.setup.flags | {
            "data": self.folder / "data",
            "out": self.folder / "out",
            "seed": seed,
            f"max_{self.setup.kind}": amount,
        }
        argv = [self.folder / arm / "train.py", self.setup.options.config]
        argv += [f"--{key}={value}" for key, value in flags.items()]
        shown = [self.folder / arm, self.folder / "data"]
        model = self.folder / f"{arm}.pt"
        files = {"last.pt": model, "log.jsonl": self.folder / f"{arm}.jsonl"}
        run = self.box.run(argv, shown, limit, files)
        if run.late:
            return run
        if run.status:
            raise run.problem(Crashed, f"training ended with exit status {run.status}")
        if not model.stat().st_size:
            raise run.problem(Crashed, "training left no checkpoint")
        return run

    def score_arm(self, arm: str, seed: int, split: str, run: Ended) -> dict:
        """Score what a run of an arm left; return the arm's part of a row. Raises patch.Invalid."""
        limit = NO_LIMIT
        baseline = []
        if arm == "candidate":
            limit = limit_for(self.scored, factor=8, slack=3)
            baseline = self.scored
        tree = self.folder / arm
        model = self.folder / f"{arm}.pt"
        scored = score(self.box, tree, model, self.data, split, seed, limit, baseline)
        if arm == "baseline":
            self.scored.append(scored)
        return {
            "bpb": scored.bpb,
            "first": scored.first,
            "seconds": round(run.seconds, 2),
            "share": round(share(run), 3),
            "curve": read_curve(self.folder / f"{arm}.jsonl"),
        }

    def run_baseline(self, seed: int, split: str) -> dict:
        """Train and score the baseline; return its part of a row. Raises patch.Invalid."""
        return self.score_arm("baseline", seed, split, self.train("baseline", seed))

    def pair(self, seed: int, split: str) -> dict:
        """Run both arms with one seed, again if they are disturbed; return the row of the pair.

        It has "failed" if the candidate was refused or crashed, or if all attempts were disturbed.
        Raises UserError where the baseline fails.
        """
        started = time.perf_counter()
        row = {"seed": seed, "split": split}
        # Drawn, not in turn: a neighbour that comes and goes regularly would always meet one arm.
        candidate_first = seed % 2 == 1
        # The first pair begins with the baseline, which sets the candidate's limits.
        arms = ARMS[::-1] if candidate_first and self.trained else ARMS
        try:
            undisturbed(lambda: self.run_both(row, arms))
        except patch.Invalid as error:
            row["failed"] = {"verdict": error.verdict, "reason": str(error), "stderr": error.text}
        return row | {"seconds": round(time.perf_counter() - started, 2)}

    def run_both(self, row: dict, arms) -> None:
        """Add the runs of a pair to its row. Raises UserError and patch.Invalid."""
        row["repeats"] = row.get("repeats", -1) + 1
        seed = row["seed"]
        trained = {}
        try:
            for arm in arms:
                trained[arm] = self.train(arm, seed)
            # The baseline comes first: its losses show where the candidate gains.
            for arm in ARMS:
                row[arm] = self.score_arm(arm, seed, row["split"], trained[arm])
        except patch.Invalid as error:
            # No candidate can mend the baseline.
            message = f"the baseline itself cannot be judged: {error}\n{error.text}"
            require(arm == "candidate" or isinstance(error, Disturbed), message)
            raise
        self.compare_shares(*[row[arm]["share"] for arm in ARMS])

    def run_alone(self, seed: int) -> float:
        """Score a run of the baseline on the validation split.

        Its share of the processor must be that of the run before. Raises patch.Invalid.
        """
        found = self.run_baseline(seed, "val")
        self.compare_shares(*[share(run) for run in self.trained[-2:]])
        return found["bpb"]

    def compare_shares(self, *shares: float) -> None:
        """Raise Disturbed where a second was worth more to one run than to another."""
        is_apart = min(shares) < (1 - MAX_APART) * max(shares)
        if is_apart and self.setup.kind == "seconds":
            got = " and ".join(f"{share:.0%}" for share in shares)
            raise Disturbed(f"two runs got {got} of the processor, which others used too")

    def close(self) -> None:
        self.box.close()


def undisturbed(attempt):
    """Return attempt(), which is repeated at most twice where it raises Disturbed."""
    for _ in range(REPEATS):
        with suppress(Disturbed):
            return attempt()
    return attempt()


def limit_for(baseline: list, factor: float, slack: float) -> Limit:
    """Bound a candidate by what the baseline's runs have used.

    Processor time, since it depends little on what else the machine does; the clock is only the
    outer limit of a run that waits.
    """
    processor_seconds = factor * usual(baseline, "processor_seconds") + slack
    seconds = max(MIN_SECONDS, MAX_SLOWDOWN * usual(baseline, "seconds"))
    return Limit(seconds, processor_seconds)


def share(run: Ended) -> float:
    """Return the share of the processor that a run got of what it could have used."""
    lost = run.waited_seconds + run.stalled_seconds
    return run.processor_seconds / (run.processor_seconds + lost)


def scores(pairs: list[dict], split: str, figure: str = "bpb") -> list[list[float]]:
    """Return a figure of [baseline, candidate] of the split's pairs that count."""
    scored = [pair for pair in pairs if pair["split"] == split and "failed" not in pair]
    return [[pair[arm][figure] for arm in ARMS] for pair in scored]


def read_curve(log: Path) -> list[list[float]]:
    """Read (tokens, loss) from a log.jsonl that may hold anything: at most 500 pairs of numbers."""
    with open(log, "rb") as file:
        lines = file.read(CURVE_BYTES).splitlines()
    curve = []
    for line in lines:
        with suppress(ValueError, TypeError, KeyError, RecursionError, OverflowError):
            row = json.loads(line)
            curve.append([int(row["tokens"]), round(float(row["loss"]), 5)])
    return curve[:: len(curve) // CURVE_POINTS + 1]


# --------------------------------------------------------------------------------------------------
# Several slots


def share_machine(workers: int) -> list[tuple[list[int], dict[str, str]]]:
    """Return each worker's CPU cores, and variables that name its GPU.

    Raises UserError for too many workers.
    """
    cores = sorted(os.sched_getaffinity(0))
    gpus = len(glob.glob("/dev/nvidia[0-9]*"))
    most = gpus or len(cores)
    require(1 <= workers <= most, f"--workers={workers}: this machine has room for 1 to {most}")
    each = len(cores) // workers
    shares = []
    for number in range(workers):
        variables = {"CUDA_VISIBLE_DEVICES": str(number)} if gpus else {}
        shares.append((cores[number * each : (number + 1) * each], variables))
    return shares


class PairRunner:
    """Runs pairs, as many at once as there are workers, each in a slot of its own."""

    def __init__(self, setup: Setup, candidate: dict):
        count = setup.options.workers
        self.slots = [Slot(setup, candidate, number, count) for number in range(count)]
        self.threads = ThreadPoolExecutor(count)

    def run(self, seeds: list[int], split: str) -> Iterator[dict]:
        """Yield the row of each seed's pair, in their order."""
        for start in range(0, len(seeds), len(self.slots)):
            yield from self.threads.map(Slot.pair, self.slots, seeds[start:], repeat(split))

    def close(self) -> None:
        for slot in self.slots:
            slot.close()
        self.threads.shutdown()
