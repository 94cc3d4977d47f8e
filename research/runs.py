"""Runs and pairs: what a run may see of the data, one arm trained and scored, both arms with one seed.

A pair is a baseline run and a candidate run with one seed on the same cores, one after the other; which goes first
alternates. Only the judge's own flags, clock and figures count; what a run says of itself is kept as a claim.
"""

import contextlib
import glob
import hashlib
import json
import marshal
import os
import re
import shutil
import statistics
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace

import prepare_data
from corpus.sources import python_files
from corpus.worker import split_of
from nanoloop.files import link_or_copy, write_json
from nanoloop.options import prepare_missing as made, read_options, require
from research import patch, score, verdict
from research.ledger import Ledger
from research.sandbox import Sandbox

ARMS = ("baseline", "candidate")
EVAL_TOKENS = 2**16  # of a split, that are scored
UNJUDGED_SECONDS = 7 * 24 * 3600  # that a baseline may take, which is the user's own
PATIENCE = 4  # runs in which a change may overrun the seconds it was given before it is refused


@dataclass(frozen=True)
class Options:
    """How a trial is judged."""

    config: str = "config/quickstart.py"  # the recipe that is changed
    budget: str | None = None  # of each run, as 60s, 500steps or 2e6tokens; None: the recipe's own
    max_pairs: int = verdict.MAX_PAIRS  # pairs of runs in each of the two rounds, at most
    minimum_effect: float = (
        verdict.MINIMUM_EFFECT
    )  # bits per byte: a smaller gain is not worth a change
    slowdown: float = (
        2.0  # with a budget of steps or tokens: times the baseline's time that a run may take
    )
    folder: str = "out/research"  # where the ledger and the working copies are
    workers: int = (
        1  # pairs at once on this machine; its cores are divided, GPUs are given one each
    )
    ray: bool = False  # run the pairs on a Ray cluster instead (pip install ray); folder and data must be shared


class Setup:
    """What every run of a trial shares; plain values, so that it can be sent to another machine.

    root: the folder whose recipe is the baseline; base: that recipe, path to content; recipe: its options; flags: of
    every run; kind, amount: the budget, in "seconds" or "tokens". Makes the data if it is missing. Raises UserError.
    """

    def __init__(self, options: Options, root: Path):
        import train

        require(
            patch.may_change(options.config),
            f"--config={options.config}: name a recipe, as config/quickstart.py",
        )
        self.options = Options(
            **{field.name: getattr(options, field.name) for field in fields(Options)}
        )
        self.root, self.base = root, patch.read_tree(root)
        self.recipe = config = read_options(
            train.TrainConfig, [str(root / options.config)], "-m research"
        )
        require(
            not config.init_from,
            f"{options.config} begins from weights (init_from), which is not judged",
        )
        limits = {
            "seconds": config.max_seconds,
            "tokens": config.max_tokens,
            "steps": config.max_steps,
        }
        budget = options.budget or next(f"{limit}{kind}" for kind, limit in limits.items() if limit)
        parts = re.fullmatch(r"([\d.]+(?:e\d+)?) ?(s|seconds|steps|tokens)", budget)
        require(
            parts and float(parts[1]) > 0,
            f"--budget={budget}: write it as 60s, 500steps or 2e6tokens",
        )
        self.kind = {"s": "seconds", "steps": "tokens"}.get(parts[2], parts[2])
        self.amount = float(parts[1]) * (config.batch_tokens if parts[2] == "steps" else 1)
        flags = {name: getattr(train.TrainConfig, name) for name in sorted(patch.PROTECTED)}
        flags |= {
            "save_interval": None,
            "device": config.device,
            "log_interval": config.log_interval,
        }
        self.flags = [f"--{key}={value}" for key, value in flags.items()]
        with contextlib.chdir(patch.ROOT):
            self.data = Path(made(config.data, config.prepare)).resolve()
        splits = prepare_data.Data(self.data).splits
        require(
            len(splits["val"]) and len(splits["test"]),
            f"'{self.data}' lacks a val or test split: prepare both",
        )
        self.ledger = Ledger(Path(options.folder).resolve())


# ---------------------------------------------------------------------------------------------------------------------
# What a run may see of the data


def training_data(data: prepare_data.Data, folder: Path) -> Path:
    """A prepared folder with the training split alone: the same shards, the same order of batches."""
    folder.mkdir()
    shards = [row for row in data.meta["shards"] if row["split"] == "train"]
    for row in shards:
        link_or_copy(data.folder / row["file"], folder / row["file"])
    write_json(folder / "tokenizer.json", data.tokenizer.to_json())
    kept = {name: data.meta[name] for name in ("fingerprint", "tokenizer")}
    write_json(
        folder / "meta.json",
        {**kept, "shards": shards, "splits": {"train": data.meta["splits"]["train"]}},
    )
    return folder


def library_covers(data: prepare_data.Data, folder: Path) -> list[tuple[str, str]]:
    """Where the text is the interpreter's own library: stand-ins for the files of it that were held out.

    A stand-in works like its file, but holds bytecode without comments and docstrings instead of the text.
    """
    plan, covers = data.meta.get("prepared_from", {}), []
    if plan.get("source") != ["python"]:
        return covers
    (folder / "other").mkdir(parents=True)
    (folder / "empty").touch()
    for number, file in enumerate(python_files(SimpleNamespace(**plan))):
        text = file.read_bytes().decode("utf-8", errors="replace")
        digest = hashlib.sha256(text.encode("utf-8")).digest()
        if text and split_of(digest, plan["val_fraction"], plan["test_fraction"]) != "train":
            code = marshal.dumps(compile(text, str(file), "exec", optimize=2, dont_inherit=True))
            (folder / f"{number}.py").write_text(f"import marshal\nexec(marshal.loads({code!r}))\n")
            cached = glob.glob(str(file.parent / "__pycache__" / f"{glob.escape(file.stem)}.*.pyc"))
            covers += [
                (str(folder / f"{number}.py"), str(file)),
                *((str(folder / "empty"), path) for path in cached),
            ]
    others = (
        path
        for place in ("/usr/lib", "/usr/lib64", "/usr/local/lib")
        for path in Path(place).glob("python3*")
    )
    library = Path(sysconfig.get_paths()["stdlib"]).resolve()
    return covers + [
        (str(folder / "other"), str(path))
        for path in others
        if not library.is_relative_to(path) and not path.is_symlink()
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Runs


class Slot:
    """A place to run pairs: the number-th of `count` shares of this machine's cores, a sandbox on them, both trees on
    disk, and the time that the baseline takes."""

    def __init__(self, setup: Setup, candidate: dict, number: int = 0, count: int = 1):
        self.setup, self.data = setup, prepare_data.Data(setup.data)
        cores, gpu = share_cores(count)[number]
        self.box = Sandbox(setup.ledger.folder, cores, [self.data.folder], gpu)
        self.folder = self.box.folder
        self.box.covers = library_covers(self.data, self.folder / "covers")
        flags = {"data": training_data(self.data, self.folder / "data"), "out": self.folder / "out"}
        self.flags = [*setup.flags, *(f"--{key}={value}" for key, value in flags.items())]
        self.seconds, self.eval_seconds, self.rounding = [], [], 0.0  # the baseline's
        for arm, tree in zip(ARMS, (setup.base, candidate)):
            self.place(arm, tree)

    def place(self, arm: str, tree: dict) -> None:
        """Put the arm's tree where the runs to come take it from."""
        shutil.rmtree(self.folder / arm, ignore_errors=True)
        patch.write_tree(tree, self.folder / arm)
        self.charge = (
            0.0  # seconds that the candidate needs more than the baseline to begin and to end
        )

    def train(self, arm: str, seed: int) -> tuple[Path, float, list]:
        """One run of an arm: (checkpoint, seconds on the judge's clock, the losses it claims). Raises patch.Invalid."""
        setup, model, log = self.setup, self.folder / f"{arm}.pt", self.folder / "log.jsonl"
        usual, timed, judged = (
            statistics.median(self.seconds or [0.0]),
            setup.kind == "seconds",
            arm == "candidate",
        )
        allowed = usual + 0.5 + 0.01 * setup.amount if timed else usual * setup.options.slowdown + 2
        limit = allowed + (3 + 0.25 * setup.amount) * timed if judged else UNJUDGED_SECONDS
        for _ in range(PATIENCE):
            amount = (
                max(setup.amount - self.charge * judged, setup.amount / 2)
                if timed
                else int(setup.amount)
            )
            argv = [self.folder / arm / "train.py", setup.options.config, *self.flags]
            argv += [f"--max_{setup.kind}={amount}", f"--seed={seed}"]
            shown = [self.folder / arm, self.folder / "data"]
            run = self.box.run(argv, shown, limit, {"last.pt": model, "log.jsonl": log})
            if run.late:
                break
            if run.status or not model.stat().st_size:
                told = (
                    f"ended with exit status {run.status}" if run.status else "left no checkpoint"
                )
                raise score.Crashed(f"training {told}", run.text)
            if not (judged and timed) or run.seconds <= allowed:
                return model, run.seconds, read_curve(log)
            self.charge += run.seconds - allowed + 0.2
        told = (
            f"training took {run.seconds:.1f} seconds or more where the baseline takes {usual:.1f}"
        )
        raise patch.Invalid(told + " (allow more with --slowdown)" * (not timed), run.text)

    def run(self, arm: str, seed: int, split: str) -> dict:
        """Train and score one arm. Raises patch.Invalid."""
        model, seconds, curve = self.train(arm, seed)
        limit = (
            3 + 8 * statistics.median(self.eval_seconds or [0.0])
            if arm == "candidate"
            else UNJUDGED_SECONDS
        )
        bpb, spent, rounding = score.score(
            self.box, self.folder / arm, model, self.data, split, limit, EVAL_TOKENS, self.rounding
        )
        if arm == "baseline":
            self.seconds.append(seconds)
            self.eval_seconds.append(spent)
            self.rounding = max(self.rounding, rounding)
        return {
            "bpb": bpb,
            "seconds": round(seconds, 2),
            "tokens": curve[-1][0] if curve else None,
            "curve": curve,
        }

    def pair(self, seed: int, split: str, candidate_first: bool) -> dict:
        """Both arms with one seed. The row has "failed" where the candidate was refused or crashed. Raises UserError
        where the baseline itself fails."""
        row = {"seed": seed, "split": split, "isolation": self.box.isolation}
        try:
            for arm in ARMS[::-1] if candidate_first and self.seconds else ARMS:
                row[arm] = self.run(arm, seed, split)
        except patch.Invalid as error:
            require(
                arm == "candidate", f"the baseline itself cannot be judged: {error}\n{error.text}"
            )
            kind = "crash" if isinstance(error, score.Crashed) else "invalid"
            row["failed"] = {"verdict": kind, "reason": str(error), "stderr": error.text}
        return row

    def close(self) -> None:
        self.box.close()


def scores(pairs: list[dict], split: str) -> list[list[float]]:
    """[baseline, candidate], bits per byte, of each of the split's pairs of which both were scored."""
    return [
        [pair[arm]["bpb"] for arm in ARMS]
        for pair in pairs
        if pair["split"] == split and set(ARMS) <= set(pair)
    ]


def read_curve(log: Path) -> list[list[float]]:
    """(tokens, loss) of the rows of a log.jsonl, of which nothing is believed: at most 500 pairs of numbers."""
    with open(log, "rb") as file:
        lines, curve = file.read(4 << 20).splitlines(), []
    for line in lines:
        with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError, OverflowError):
            row = json.loads(line)
            curve.append([int(row["tokens"]), round(float(row["loss"]), 5)])
    return curve[:: max(1, len(curve) // 500 + 1)]


# ---------------------------------------------------------------------------------------------------------------------
# Several slots


def share_cores(workers: int) -> list[tuple[list[int], str | None]]:
    """For each worker its CPU cores and its GPU. Raises UserError where there are fewer than workers."""
    cores, gpus = sorted(os.sched_getaffinity(0)), len(glob.glob("/dev/nvidia[0-9]*"))
    require(
        1 <= workers <= (gpus or len(cores)),
        f"--workers={workers}: from 1 to {gpus or len(cores)} find room here",
    )
    each = len(cores) // workers
    return [(cores[i * each : (i + 1) * each], str(i) if gpus else None) for i in range(workers)]


@contextlib.contextmanager
def pairs_runner(setup: Setup, candidate: dict):
    """A function of (seeds, split) that yields the row of each seed's pair, in their order; as many are under way as
    there are workers, on this machine or on a Ray cluster."""
    count = setup.options.workers
    if setup.options.ray:
        import ray

        here = {"PYTHONPATH": os.pathsep.join([str(patch.ROOT), *filter(None, sys.path)])}
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

        ray.is_initialized() or ray.init(include_dashboard=False)
        machines = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
        each = -(-count // len(machines))  # workers on a machine
        on = lambda i: {
            "scheduling_strategy": On(machines[i // each], soft=False),
            "runtime_env": {"env_vars": here},
        }
        slots = [
            ray.remote(Slot).options(**on(i)).remote(setup, candidate, i % each, each)
            for i in range(count)
        ]
        begin, close = (
            lambda slot, *job: slot.pair.remote(*job).future(),
            lambda slot: ray.get(slot.close.remote()),
        )
    else:
        slots, pool = (
            [Slot(setup, candidate, i, count) for i in range(count)],
            ThreadPoolExecutor(count),
        )
        begin, close = lambda slot, *job: pool.submit(slot.pair, *job), Slot.close

    def run(seeds: list[int], split: str):
        under_way = []
        for number, seed in enumerate(seeds):
            under_way.append(begin(slots[number % count], seed, split, number % 2 == 1))
            if len(under_way) == count:
                yield under_way.pop(0).result()
        for job in under_way:
            yield job.result()

    try:
        yield run
    finally:
        for slot in slots:
            close(slot)
