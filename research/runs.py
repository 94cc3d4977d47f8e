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
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace

import prepare_data
from console import link_or_copy, read_options, require, write_json
from corpus.sources import python_files
from corpus.worker import split_of
from research import patch, score, verdict
from research.ledger import Ledger
from research.sandbox import Sandbox

EVAL_TOKENS = 2**16  # of a split, its first, that are scored
UNJUDGED_SECONDS = 7 * 24 * 3600  # that a baseline may take, which is the user's own
PATIENCE = 3  # times that a change may overrun the seconds it was given before it is refused


@dataclass(frozen=True)
class Options:
    """How a trial is judged."""

    config: str = "config/quickstart.py"  # the recipe that is changed
    budget: str | None = None  # of each run, as 60s, 500steps or 2e6tokens; None: the recipe's own
    max_pairs: int = verdict.MAX_PAIRS  # pairs of runs in each of the two rounds, at most
    minimum_effect: float = verdict.MINIMUM_EFFECT  # bits per byte: a smaller gain is not worth a change
    slowdown: float = 2.0  # with a budget of steps or tokens: times the baseline's time that a run may take
    folder: str = "out/research"  # where the ledger and the working copies are
    workers: int = 1  # pairs at once on this machine; its cores are divided, GPUs are given one each
    ray: bool = False  # run the pairs on a Ray cluster instead (pip install ray); folder and data must be shared

    def plain(self) -> dict:
        """These fields alone, without those that a command has beside them."""
        return {field.name: getattr(self, field.name) for field in fields(Options)}


@dataclass(frozen=True)
class Setup:
    """What every run of a trial shares; plain values, so that it can be sent to another machine."""

    options: Options
    root: Path  # the folder whose recipe is the baseline …
    base: dict[str, bytes]  # … and that recipe, path to content
    recipe: object  # its options, a TrainConfig
    kind: str  # of the budget: "seconds" or "tokens"
    amount: float
    flags: tuple[str, ...]  # of every run
    data: Path  # the prepared folder
    ledger: Ledger  # in the folder that working copies go to


def set_up(options: Options, root: Path) -> Setup:
    """Read the recipe in `root` and the budget, and make the data if it is missing. Raises UserError."""
    import train

    require(patch.may_change(options.config), f"--config={options.config}: name a recipe, as config/quickstart.py")
    config = read_options(train.TrainConfig, [str(root / options.config)], "-m research")
    require(not config.init_from, f"{options.config} begins from weights (init_from), which the referee does not judge")
    limits = {"seconds": config.max_seconds, "tokens": config.max_tokens, "steps": config.max_steps}
    budget = options.budget or next(f"{limit}{kind}" for kind, limit in limits.items() if limit)
    parts = re.fullmatch(r"([\d.]+(?:e\d+)?) ?(s|seconds|steps|tokens)", budget)
    require(parts and float(parts[1]) > 0, f"--budget={budget}: write it as 60s, 500steps or 2e6tokens")
    amount, kind = float(parts[1]), "seconds" if parts[2] == "s" else parts[2]
    if kind == "steps":
        kind, amount = "tokens", amount * config.batch_tokens
    flags = {name: getattr(train.TrainConfig, name) for name in sorted(patch.PROTECTED)}
    flags |= {"data": "/box/data", "out": "/box/out", "save_interval": None,
              "device": config.device, "log_interval": config.log_interval}  # fmt: skip
    folder = patch.ROOT / config.data
    if not folder.exists() and config.prepare:
        print(f"'{folder}' is not there, making it: python prepare_data.py {config.prepare}", flush=True)
        made_by = read_options(prepare_data.PrepareConfig, config.prepare.split(), "prepare_data.py")
        prepare_data.prepare(made_by, folder.parent)
    splits = prepare_data.Data(folder).splits
    require(len(splits["val"]) and len(splits["test"]), f"'{folder}' lacks a val or a test split: prepare it with both")
    flags, ledger = tuple(f"--{key}={value}" for key, value in flags.items()), Ledger(Path(options.folder).resolve())
    options = Options(**options.plain() | {"folder": str(ledger.folder)})
    return Setup(options, root, patch.read_tree(root), config, kind, amount, flags, folder.resolve(), ledger)


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
    write_json(folder / "meta.json", {**kept, "shards": shards, "splits": {"train": data.meta["splits"]["train"]}})
    return folder


def library_covers(data: prepare_data.Data, folder: Path) -> list[tuple[str, str]]:
    """Where the text is the interpreter's own library: stand-ins for the files of it that were held out.

    A stand-in works like its file, but holds bytecode without comments and docstrings instead of the text.
    """
    plan = data.meta.get("prepared_from", {})
    if plan.get("source") != ["python"]:
        return []
    folder.mkdir()
    (folder / "empty").touch()
    (folder / "other").mkdir()
    covers, library = [], Path(sysconfig.get_paths()["stdlib"]).resolve()
    for number, file in enumerate(python_files(SimpleNamespace(**plan))):
        text = file.read_bytes().decode("utf-8", errors="replace")
        digest = hashlib.sha256(text.encode("utf-8")).digest()
        if text and split_of(digest, plan["val_fraction"], plan["test_fraction"]) != "train":
            code = marshal.dumps(compile(text, str(file), "exec", optimize=2, dont_inherit=True))
            (folder / f"{number}.py").write_text(f"import marshal\nexec(marshal.loads({code!r}))\n")
            cached = glob.glob(str(file.parent / "__pycache__" / f"{glob.escape(file.stem)}.*.pyc"))
            covers += [(str(file), str(folder / f"{number}.py")), *((path, str(folder / "empty")) for path in cached)]
    others = [path for place in ("/usr/lib", "/usr/lib64", "/usr/local/lib") for path in glob.glob(f"{place}/python3*")]
    return covers + [(path, str(folder / "other")) for path in others
                     if not library.is_relative_to(path) and not os.path.islink(path)]  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# Runs


class Slot:
    """A place to run pairs: cores, a sandbox on them, the two trees on disk, and the time that the baseline takes."""

    def __init__(self, setup: Setup, candidate: dict, cores: list[int] | None = None, gpu: str | None = None):
        self.setup, self.data = setup, prepare_data.Data(setup.data)
        self.folder = Path(tempfile.mkdtemp(dir=setup.ledger.folder))
        self.folder.chmod(0o755)
        patch.write_tree(setup.base, self.folder / "baseline")
        self.train_only = training_data(self.data, self.folder / "data")
        covers = library_covers(self.data, self.folder / "covers")
        self.box = Sandbox(setup.ledger.folder, cores or available_cores(), [self.data.folder], covers, gpu)
        self.seconds, self.eval_seconds, self.rounding = [], [], 0.0  # the baseline's
        self.place(candidate)

    def place(self, candidate: dict) -> None:
        """Put the candidate's tree where the pairs to come take it from."""
        shutil.rmtree(self.folder / "candidate", ignore_errors=True)
        patch.write_tree(candidate, self.folder / "candidate")
        self.charge, self.overruns = 0.0, 0

    def train(self, arm: str, seed: int) -> tuple[Path, float, list]:
        """One run of an arm: (checkpoint, seconds on the judge's clock, the losses it claims). Raises patch.Invalid."""
        setup, model, judged = self.setup, self.folder / f"{arm}.pt", arm == "candidate"
        usual, timed = statistics.median(self.seconds or [0.0]), setup.kind == "seconds"
        # The candidate's time is the baseline's; what it needs more to begin and to end, it has less to train.
        amount = max(setup.amount - self.charge * judged, setup.amount / 2) if timed else int(setup.amount)
        allowed = usual + 0.5 + 0.01 * setup.amount if timed else usual * setup.options.slowdown + 2
        limit = allowed + (3 + 0.25 * setup.amount) * timed if judged else UNJUDGED_SECONDS
        flags = [*setup.flags, f"--max_{setup.kind}={amount}", f"--seed={seed}"]
        log = self.folder / "log.jsonl"
        run = self.box.start(["/box/tree/train.py", setup.options.config, *flags],
                             {"/box/tree": self.folder / arm, "/box/data": self.train_only}, limit,
                             {"/box/out/last.pt": model, "/box/out/log.jsonl": log}).finish()  # fmt: skip
        told = f"training took {run.seconds:.1f} seconds or more where the baseline takes {usual:.1f}"
        if run.late:
            raise patch.Invalid(told + " (allow more with --slowdown)" * (not timed), run.text)
        if run.status:
            raise score.Crashed(f"training ended with exit status {run.status}", run.text)
        if not model.stat().st_size:
            raise score.Crashed("training left no checkpoint", run.text)
        if judged and timed and run.seconds > allowed:
            self.overruns, self.charge = self.overruns + 1, self.charge + run.seconds - allowed + 0.2
            if self.overruns > PATIENCE:
                raise patch.Invalid(told, run.text)
            return self.train(arm, seed)
        return model, run.seconds, read_curve(log)

    def run(self, arm: str, seed: int, split: str) -> dict:
        """Train and score one arm. Raises patch.Invalid."""
        model, seconds, curve = self.train(arm, seed)
        limit = 3 + 8 * statistics.median(self.eval_seconds or [0.0]) if arm == "candidate" else UNJUDGED_SECONDS
        bpb, spent, rounding = score.score(self.box, self.folder / arm, model, self.data, split, limit, EVAL_TOKENS,
                                           self.rounding)  # fmt: skip
        if arm == "baseline":
            self.seconds.append(seconds)
            self.eval_seconds.append(spent)
            self.rounding = max(self.rounding, rounding)
        return {"bpb": bpb, "seconds": round(seconds, 2), "curve": curve}

    def pair(self, seed: int, split: str, candidate_first: bool) -> dict:
        """Both arms with one seed. The row has "failed" where the candidate was refused or crashed. Raises UserError
        where the baseline itself fails."""
        order = ["candidate", "baseline"] if candidate_first and self.seconds else ["baseline", "candidate"]
        row = {"seed": seed, "split": split, "order": "-".join(order), "isolation": self.box.isolation}
        try:
            for arm in order:
                row[arm] = self.run(arm, seed, split)
        except patch.Invalid as error:
            require(arm == "candidate", f"the baseline itself cannot be judged: {error}\n{error.text}")
            kind = "crash" if isinstance(error, score.Crashed) else "invalid"
            row["failed"] = {"verdict": kind, "reason": str(error), "stderr": error.text}
        return row

    def close(self) -> None:
        self.box.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def read_curve(log: Path) -> list[list[float]]:
    """(tokens, loss) of the rows of a log.jsonl, of which nothing is believed: at most 500 pairs of numbers."""
    curve = []
    for line in log.read_bytes().splitlines()[:20_000]:
        with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError, OverflowError):
            row = json.loads(line)
            curve.append([int(row["tokens"]), round(float(row["loss"]), 5)])
    return curve[:: max(1, len(curve) // 500 + 1)]


# ---------------------------------------------------------------------------------------------------------------------
# Several slots


def available_cores() -> list[int]:
    return sorted(os.sched_getaffinity(0))


def share_cores(workers: int) -> list[tuple[list[int], str | None]]:
    """For each worker its CPU cores and its GPU. Raises UserError where there are fewer than workers."""
    cores, gpus = available_cores(), len(glob.glob("/dev/nvidia[0-9]*"))
    require(1 <= workers <= len(cores), f"--workers={workers}: this machine gives {len(cores)} cores")
    require(not gpus or workers <= gpus, f"--workers={workers}: this machine has {gpus} GPUs, one for each worker")
    each = len(cores) // workers
    return [(cores[i * each : (i + 1) * each], str(i) if gpus else None) for i in range(workers)]


def make_slots(setup: Setup, candidate: dict) -> list:
    """A slot for each of the workers, on this machine or on a Ray cluster: what has `pair` and `close`."""
    if not setup.options.ray:
        return [Slot(setup, candidate, *place) for place in share_cores(setup.options.workers)]
    import ray

    here = {"PYTHONPATH": os.pathsep.join([str(patch.ROOT), *filter(None, sys.path)])}
    actor = ray.remote(num_cpus=1, scheduling_strategy="SPREAD", runtime_env={"env_vars": here})(Slot)
    actors = [actor.remote(setup, candidate) for _ in range(setup.options.workers)]

    def waiting(method):
        return lambda *job: ray.get(method.remote(*job))

    return [SimpleNamespace(pair=waiting(actor.pair), close=waiting(actor.close)) for actor in actors]


def run_pairs(slots: list, seeds: list[int], split: str):
    """Yields the row of each seed's pair, in their order; as many are under way as there are slots."""
    pool, under_way = ThreadPoolExecutor(len(slots)), []
    for number, seed in enumerate(seeds):
        under_way.append(pool.submit(slots[number % len(slots)].pair, seed, split, number % 2 == 1))
        if len(under_way) == len(slots):
            yield under_way.pop(0).result()
    for job in under_way:
        yield job.result()
