"""One trial: a change is applied, trained beside the baseline, probed, scored, decided on and recorded.

A pair is a baseline run and a candidate run with one seed on the same cores, one after the other; which goes first
alternates. Only the judge's own flags, clock and figures count; what a run says of itself is kept as a claim.
"""

import contextlib
import glob
import hashlib
import json
import marshal
import math
import os
import platform
import re
import secrets
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import prepare_data
from console import UserError, read_options, require, write_json
from corpus.sources import python_files
from corpus.worker import split_of
from research import patch, score, verdict
from research.ledger import Ledger, new_id
from research.sandbox import Sandbox

UNJUDGED_SECONDS = 7 * 24 * 3600  # that a baseline may take, which is the user's own
PATIENCE = 3  # times that a pair of a change may overrun the seconds it was given before it is refused


@dataclass(frozen=True)
class Options:
    """How a trial is judged."""

    config: str = "config/quickstart.py"  # the recipe that is changed
    budget: str | None = None  # of each run, as 60s, 500steps or 2e6tokens; None: the recipe's own
    max_pairs: int = verdict.MAX_PAIRS  # pairs of runs in each of the two rounds, at most
    level: float = verdict.LEVEL  # share of false ones among all that is kept
    minimum_effect: float = verdict.MINIMUM_EFFECT  # bits per byte: a smaller gain is not worth a change
    slowdown: float = 2.0  # with a budget of steps or tokens: times the baseline's time that a run may take
    eval_tokens: int = 2**16  # of a split, its first, that are scored
    folder: str = "out/research"  # where the ledger and the working copies are
    workers: int = 1  # pairs at once on this machine; its cores are divided, GPUs are given one each
    ray: bool = False  # run the pairs on a Ray cluster instead (pip install ray); folder and data must be shared


@dataclass(frozen=True)
class Setup:
    """What every run of a trial shares; plain values, so that it can be sent to another machine."""

    config: str
    kind: str  # "seconds" or "tokens"
    amount: float
    flags: tuple[str, ...]
    data: str
    folder: str
    slowdown: float
    eval_tokens: int


def set_up(options: Options, root: Path = patch.ROOT) -> Setup:
    """Read the recipe in `root` and the budget, and make the data if it is missing. Raises UserError."""
    import train

    told = f"--config={options.config}: name a recipe of the project, as config/quickstart.py"
    require(patch.may_change(options.config), told)
    config = read_options(train.TrainConfig, [str(root / options.config)], "-m research")
    require(not config.init_from, f"{options.config} begins from weights (init_from), which the referee does not judge")
    limits = {"seconds": config.max_seconds, "tokens": config.max_tokens, "steps": config.max_steps}
    kind, amount = next((kind, limit) for kind, limit in limits.items() if limit)
    if options.budget:
        parts = re.fullmatch(r"([\d.]+(?:e\d+)?) ?(s|seconds|steps|tokens)", options.budget)
        require(parts and float(parts[1]) > 0, f"--budget={options.budget}: write it as 60s, 500steps or 2e6tokens")
        amount, kind = float(parts[1]), "seconds" if parts[2] == "s" else parts[2]
    if kind == "steps":
        kind, amount = "tokens", amount * config.batch_tokens
    flags = {name: getattr(train.TrainConfig, name) for name in sorted(patch.PROTECTED)}
    flags |= {"data": "/box/data", "out": "/box/out", "save_interval": None}
    flags |= {"device": config.device, "log_interval": config.log_interval}
    folder = patch.ROOT / config.data
    if not folder.exists() and config.prepare:
        print(f"'{folder}' is not there, making it: python prepare_data.py {config.prepare}", flush=True)
        made_by = read_options(prepare_data.PrepareConfig, config.prepare.split(), "prepare_data.py")
        prepare_data.prepare(made_by, folder.parent)
    splits = prepare_data.Data(folder).splits
    told = f"'{folder}' lacks a val or a test split, and a verdict needs both: give them shares of the text"
    require(len(splits["val"]) and len(splits["test"]), told)
    flags, out = tuple(f"--{key}={value}" for key, value in flags.items()), Path(options.folder).resolve()
    out.mkdir(parents=True, exist_ok=True)
    paths = str(folder.resolve()), str(out)
    return Setup(options.config, kind, amount, flags, *paths, options.slowdown, options.eval_tokens)


# ---------------------------------------------------------------------------------------------------------------------
# What a run may see of the data


def training_data(data: prepare_data.Data, folder: Path) -> Path:
    """A prepared folder with the training split alone: the same shards, the same order of batches."""
    folder.mkdir()
    shards = [row for row in data.meta["shards"] if row["split"] == "train"]
    for row in shards:
        try:
            os.link(data.folder / row["file"], folder / row["file"])
        except OSError:
            shutil.copyfile(data.folder / row["file"], folder / row["file"])
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
    covers, library = [], Path(sysconfig.get_paths()["stdlib"]).resolve()
    for number, file in enumerate(python_files(SimpleNamespace(**plan))):
        text = file.read_bytes().decode("utf-8", errors="replace")
        digest = hashlib.sha256(text.encode("utf-8")).digest()
        if text and split_of(digest, plan["val_fraction"], plan["test_fraction"]) != "train":
            code = marshal.dumps(compile(text, str(file), "exec", optimize=2, dont_inherit=True))
            (folder / f"{number}.py").write_text(f"import marshal\nexec(marshal.loads({code!r}))\n")
            cached = glob.glob(str(file.parent / "__pycache__" / f"{glob.escape(file.stem)}.*.pyc"))
            covers += [(str(file), str(folder / f"{number}.py")), *((path, str(folder / "empty")) for path in cached)]
    (folder / "other").mkdir()
    others = [path for place in ("/usr/lib", "/usr/lib64", "/usr/local/lib") for path in glob.glob(f"{place}/python3*")]
    return covers + [(path, str(folder / "other")) for path in others if not library.is_relative_to(path)
                     and not os.path.islink(path)]  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# Runs and pairs


class Slot:
    """A place to run pairs: cores, a sandbox on them, the two trees on disk, and the time that the baseline takes."""

    def __init__(self, setup: Setup, base: dict, cores: list[int] | None = None, gpu: str | None = None):
        self.setup, self.data = setup, prepare_data.Data(setup.data)
        self.folder = Path(tempfile.mkdtemp(dir=setup.folder))
        self.folder.chmod(0o755)
        self.trees = {"baseline": patch.write_tree(base, self.folder / "baseline")}
        self.train_only = training_data(self.data, self.folder / "data")
        covers = library_covers(self.data, self.folder / "covers")
        self.box = Sandbox(Path(setup.folder), cores or available_cores(), [self.data.folder], covers, gpu)
        self.seconds, self.eval_seconds, self.charge, self.overruns, self.rounding = [], [], 0.0, 0, 0.0

    def place(self, candidate: dict) -> None:
        """Put the candidate's tree where the pairs to come take it from."""
        self.trees["candidate"], self.charge, self.overruns = self.folder / "candidate", 0.0, 0
        shutil.rmtree(self.trees["candidate"], ignore_errors=True)
        patch.write_tree(candidate, self.trees["candidate"])

    def train(self, arm: str, seed: int) -> tuple[Path, float, list]:
        """One run of an arm: (checkpoint, seconds on the judge's clock, the losses it claims). Raises score.Refused."""
        setup, model, judged = self.setup, self.folder / f"{arm}.pt", arm == "candidate"
        usual, timed = statistics.median(self.seconds or [0.0]), setup.kind == "seconds"
        # The candidate's time is the baseline's; what it needs more to begin and to end, it has less to train.
        amount = max(setup.amount - self.charge * judged, setup.amount / 2) if timed else int(setup.amount)
        allowed = usual + 0.5 + 0.01 * setup.amount if timed else usual * setup.slowdown + 2
        limit = allowed + (3 + 0.25 * setup.amount) * timed if judged else UNJUDGED_SECONDS
        flags = [*setup.flags, f"--max_{setup.kind}={amount}", f"--seed={seed}"]
        log = self.folder / "log.jsonl"
        result = self.box.start(["/box/tree/train.py", setup.config, *flags],
                                {"/box/tree": self.trees[arm], "/box/data": self.train_only}, limit,
                                {"/box/out/last.pt": model, "/box/out/log.jsonl": log}).finish()  # fmt: skip
        error, told = None, f"training took {result.seconds:.1f} seconds or more where the baseline takes {usual:.1f}"
        if result.late:
            error = score.Refused(told + " (allow more with --slowdown)" * (not timed))
        elif result.status:
            error = score.Crashed(f"training ended with exit status {result.status}")
        elif not model.stat().st_size:
            error = score.Crashed("training left no checkpoint")
        elif judged and timed and result.seconds > allowed:
            self.overruns, self.charge = self.overruns + 1, self.charge + result.seconds - allowed + 0.2
            if self.overruns <= PATIENCE:
                return self.train(arm, seed)
            error = score.Refused(told)
        if error:
            error.text = result.text
            raise error
        return model, result.seconds, read_curve(log)

    def run(self, arm: str, seed: int, split: str) -> dict:
        """Train and score one arm. Raises score.Refused for a candidate, UserError where the baseline itself fails."""
        try:
            model, seconds, curve = self.train(arm, seed)
            usual = statistics.median(self.eval_seconds or [0.0])
            limit = 3 + 8 * usual if arm == "candidate" else UNJUDGED_SECONDS
            bpb, spent, rounding = score.score(self.box, self.trees[arm], model, self.data, split, limit,
                                               self.setup.eval_tokens, self.rounding)  # fmt: skip
        except score.Refused as error:
            if arm == "baseline":
                raise UserError(f"the baseline itself cannot be judged: {error}\n{error.text}") from None
            raise
        if arm == "baseline":
            self.seconds.append(seconds)
            self.eval_seconds.append(spent)
            self.rounding = max(self.rounding, rounding)
        return {"bpb": bpb, "seconds": seconds, "curve": curve}

    def pair(self, seed: int, split: str, candidate_first: bool) -> dict:
        """Both arms with one seed. The row has "failed" where the candidate was refused or crashed."""
        order = ["candidate", "baseline"] if candidate_first and self.seconds else ["baseline", "candidate"]
        row = {"seed": seed, "split": split, "order": "-".join(order), "isolation": self.box.isolation}
        try:
            row |= {arm: self.run(arm, seed, split) for arm in order}
        except score.Refused as error:
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


def available_cores() -> list[int]:
    return sorted(os.sched_getaffinity(0))


def share_cores(workers: int) -> list[tuple[list[int], str | None]]:
    """For each worker its CPU cores and its GPU. Raises UserError where there are fewer than workers."""
    cores, gpus = available_cores(), len(glob.glob("/dev/nvidia[0-9]*"))
    require(1 <= workers <= len(cores), f"--workers={workers}: this machine gives {len(cores)} cores")
    require(not gpus or workers <= gpus, f"--workers={workers}: this machine has {gpus} GPUs, one for each worker")
    each = len(cores) // workers
    return [(cores[i * each : (i + 1) * each], str(i) if gpus else None) for i in range(workers)]


class Slots:
    """Several slots at once. A pair stays in one slot; results come in the order of the seeds."""

    def __init__(self, setup: Setup, base: dict, candidate: dict, options: Options):
        if options.ray:
            import ray

            here = {"PYTHONPATH": os.pathsep.join([str(patch.ROOT), *filter(None, sys.path)])}
            actor = ray.remote(num_cpus=1, scheduling_strategy="SPREAD", runtime_env={"env_vars": here})(Slot)
            self.slots, self.get = [actor.remote(setup, base) for _ in range(options.workers)], ray.get
            ray.get([slot.place.remote(candidate) for slot in self.slots])
            self.call = lambda slot, *job: slot.pair.remote(*job)
            self.end = lambda: [ray.get(slot.close.remote()) for slot in self.slots]
            return
        self.slots = [Slot(setup, base, *place) for place in share_cores(options.workers)]
        for slot in self.slots:
            slot.place(candidate)
        pool = ThreadPoolExecutor(options.workers)
        self.get, self.call = lambda job: job.result(), lambda slot, *job: pool.submit(slot.pair, *job)
        self.end = lambda: [slot.close() for slot in self.slots]

    def pairs(self, seeds, split: str):
        """Yields the row of each seed's pair; as many are under way as there are slots."""
        waiting = []
        for number, seed in enumerate(seeds):
            waiting.append(self.call(self.slots[number % len(self.slots)], seed, split, number % 2 == 1))
            if len(waiting) == len(self.slots):
                yield self.get(waiting.pop(0))
        for job in waiting:
            yield self.get(job)


# ---------------------------------------------------------------------------------------------------------------------
# The trial


def hardware() -> str:
    """The kind of machine: scores are compared within one kind only."""
    names = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    shown = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    gpus = subprocess.run(shown, capture_output=True, text=True).stdout if shutil.which(shown[0]) else ""
    return ", ".join([f"{os.cpu_count()} × {(names or [platform.machine()])[0]}", *gpus.splitlines()])


def git(*arguments: str, root: Path = patch.ROOT) -> str:
    """What git prints; "" where it fails or is not installed."""
    if not shutil.which("git"):
        return ""
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
    return "" if done.returncode else done.stdout.strip()


def begin(ledger: Ledger, kind: str, options: Options, base: dict, change: patch.Change | None, hypothesis: str,
          root: Path = patch.ROOT, **more) -> dict:  # fmt: skip
    """The row before a trial, in the ledger."""
    parts = {"diff": change.diff, "diff_hash": change.hash} if change else {}
    parts |= {"added": change.added, "removed": change.removed} if change else {}
    row = {"id": new_id(kind), "state": "begun", "kind": kind, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
           "hypothesis": hypothesis[:2000], "config": options.config, "budget": options.budget,
           "options": asdict(options), "parent": git("rev-parse", "HEAD", root=root), "tree": patch.tree_hash(base),
           "hardware": hardware(), "versions": {"python": platform.python_version(), "torch": version("torch")},
           **parts, **more}  # fmt: skip
    return ledger.append(row)


def try_change(options: Options, *, patch_file: str | None = None, settings: str | None = None, tree: str | None = None,
               base: str | Path = patch.ROOT, hypothesis: str = "", tell=print, **more) -> dict:  # fmt: skip
    """Make the change, judge it, record it; returns the finished row. Raises UserError for mistakes of the caller.

    Exactly one of patch_file, settings ("key=value …") and tree. base: the folder whose recipe is the baseline.
    """
    root, base = Path(base), patch.read_tree(Path(base))
    require([patch_file, settings, tree].count(None) == 2, "give exactly one of PATCH, --set and --tree")
    setup, ledger = set_up(options, root), Ledger(Path(options.folder))
    try:
        if settings is not None:
            change = patch.from_settings(base, options.config, settings, root)
        elif patch_file is not None:
            require(Path(patch_file).is_file(), f"patch '{patch_file}' does not exist")
            change = patch.from_patch(base, Path(patch_file).read_bytes())
        else:
            change = patch.from_tree(base, Path(tree), root)
        patch.refuse(not change.files, "it changes nothing")
        data = prepare_data.Data(setup.data)
        texts = [data.tokenizer.decode_bytes(data.splits[s].read(0, len(data.splits[s]))) for s in ("val", "test")]
        patch.refuse(patch.copies(change, b"\n".join(texts)), "it spells out held-out text")
    except patch.Invalid as error:
        row = begin(ledger, "trial", options, base, None, hypothesis, root, **more)
        return ledger.append(row | {"state": "done", "verdict": "invalid", "reason": str(error)})
    return judge(change, base, setup, options, ledger, hypothesis, tell, root=root, **more)


def judge(change, base: dict, setup: Setup, options: Options, ledger: Ledger, hypothesis: str, tell, seeds=None,
          kind: str = "trial", **more) -> dict:  # fmt: skip
    """Run a trial's pairs until it is decided, and record it; returns the finished row.

    seeds: of the two rounds' pairs, for a trial that is done again; None: fresh ones, which no patch could have met.
    """
    more = {"alpha": verdict.Night.of(ledger.trials(), options.level).alpha()} | more
    row = begin(ledger, kind, options, base, change, hypothesis, seeds=[[], []], **more)
    rules = {"alpha": row["alpha"], "minimum_effect": options.minimum_effect, "max_pairs": options.max_pairs,
             "noise": known_noise(ledger, options), "lines": change.added - change.removed}  # fmt: skip
    rounds, failed, started, decision = {"val": [], "test": []}, None, time.time(), None
    ending = {"verdict": "undecided", "reason": "the judge was interrupted"}
    slots = Slots(setup, base, patch.apply(base, change), options)
    try:
        for number, (split, decide) in enumerate((("val", verdict.decide), ("test", verdict.confirm))):
            chosen = seeds[number] if seeds else [secrets.randbelow(2**31) for _ in range(options.max_pairs)]
            for pair in slots.pairs(chosen, split):
                rounds[split].append(pair)
                failed = pair.get("failed") or same_for_every_seed(rounds[split])
                if failed:
                    break
                differences = [p["candidate"]["bpb"] - p["baseline"]["bpb"] for p in rounds[split]]
                decision = decide(differences, **rules)
                figures = f"baseline {pair['baseline']['bpb']:.4f}, candidate {pair['candidate']['bpb']:.4f}"
                tell(f"{split} pair {len(differences)}: {figures}, difference {differences[-1]:+.4f} bits per byte")
                if decision and not (seeds and len(differences) < len(chosen)):
                    break
            if failed or not decision.verdict.startswith("keep"):
                break
        ending = failed or {"verdict": decision.verdict, "reason": decision.reason, "mean": finite(decision.mean),
                            "interval": [finite(bound) for bound in decision.interval]}  # fmt: skip
    finally:
        slots.end()
        every, arms = rounds["val"] + rounds["test"], ("baseline", "candidate")
        both = [pair for pair in rounds["val"] if set(arms) <= set(pair)]
        curves = {arm: [pair[arm]["curve"] for pair in every if arm in pair] for arm in arms}
        row |= {"seeds": [[pair["seed"] for pair in rounds[split]] for split in rounds], "curves": curves,
                "differences": [pair["candidate"]["bpb"] - pair["baseline"]["bpb"] for pair in both],
                "run_seconds": {arm: [round(pair[arm]["seconds"], 2) for pair in every if arm in pair] for arm in arms},
                "data": prepare_data.Data(setup.data).fingerprint, "seconds": round(time.time() - started, 1),
                "tokens": max((curve[-1][0] for curve in curves["candidate"] if curve), default=None),
                "isolation": every[0]["isolation"] if every else None, "state": "done", **ending}  # fmt: skip
        for name, split in (("pairs", "val"), ("confirmation", "test")):
            row[name] = [pair | {arm: pair[arm]["bpb"] for arm in arms if arm in pair} for pair in rounds[split]]
        ledger.append(row)
    return row


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None  # JSON has no other numbers


def same_for_every_seed(pairs: list[dict]) -> dict | None:
    """A candidate that scores the same to the last bit with several seeds has chosen its own."""
    bits = {arm: {pair[arm]["bpb"] for pair in pairs} for arm in ("baseline", "candidate")}
    if len(pairs) > 1 and len(bits["candidate"]) < len(pairs) == len(bits["baseline"]):
        return {"verdict": "invalid", "reason": "it scores the same with any seed: it ignores the seed it is given"}
    return None


def known_noise(ledger: Ledger, options: Options) -> verdict.Noise | None:
    """The noise floor measured last for this recipe, budget and machine; None where it never was."""
    key = (options.config, options.budget, hardware())
    rows = [row for row in ledger.trials() if row["kind"] == "noise" and row["state"] == "done"
            and (row["config"], row["budget"], row["hardware"]) == key]  # fmt: skip
    return verdict.Noise.of(rows[-1]["differences"]) if rows else None


def score_settings(options: Options, settings: dict, seed: int, place: tuple = ()) -> dict:
    """One run of the recipe with some options changed, scored on val: bpb, curve, seconds. Raises score.Refused.

    place: its cores and GPU, of share_cores.
    """
    base, setup = patch.read_tree(patch.ROOT), set_up(options)
    change = patch.from_settings(base, options.config, " ".join(f"{k}={v}" for k, v in settings.items()))
    slot = Slot(setup, base, *place)
    try:
        slot.place(patch.apply(base, change))
        slot.seconds, slot.eval_seconds = [UNJUDGED_SECONDS], [UNJUDGED_SECONDS]  # there is no baseline beside it
        return slot.run("candidate", seed, "val")
    finally:
        slot.close()


def measure_noise(options: Options, pairs: int, tell=print) -> dict:
    """A/A pairs: the recipe against itself, nudged, with the same seed; records the differences and what they allow.

    The nudge, learning rates a ten-thousandth higher, means nothing; without it the two runs were the same to the bit.
    """
    require(pairs >= 3, f"--pairs={pairs}: at least 3, or the spread means nothing")
    import train

    base, setup, ledger = patch.read_tree(patch.ROOT), set_up(options), Ledger(Path(options.folder))
    config, started = read_options(train.TrainConfig, [str(patch.ROOT / options.config)], "-m research"), time.time()
    nudge = f"muon_lr={config.muon_lr * 1.0001} learning_rate={config.learning_rate * 1.0001}"
    row, slot, scored = begin(ledger, "noise", options, base, None, ""), Slot(setup, base), []
    try:
        slot.place(patch.apply(base, patch.from_settings(base, options.config, nudge)))
        for number in range(pairs):
            pair = slot.pair(secrets.randbelow(2**31), "val", number % 2 == 1)
            require("failed" not in pair, f"a run failed: {pair.get('failed')}")
            scored.append((pair["baseline"]["bpb"], pair["candidate"]["bpb"]))
            tell("pair {}: {:.4f} and {:.4f}, difference {:+.5f} bits per byte".format(
                 number + 1, *scored[-1], scored[-1][1] - scored[-1][0]))  # fmt: skip
    finally:
        slot.close()
    differences, spread = [second - first for first, second in scored], statistics.stdev(first for first, _ in scored)
    floor = verdict.Noise.of(differences).sd
    row |= {"state": "done", "differences": differences, "noise": floor, "seed_spread": spread,
            "seconds": round(time.time() - started, 1), "isolation": slot.box.isolation}  # fmt: skip
    ledger.append(row)
    tell(f"noise floor of a pair: {floor:.5f} bits per byte; spread of the baseline over seeds: {spread:.5f}")
    tell("a change that alters training little has the floor's noise, one that alters it all up to √2 × the spread:")
    alpha = verdict.Night.of(ledger.trials(), options.level).alpha()
    for count in sorted({3, 4, options.max_pairs, 2 * options.max_pairs}):
        least, most = (verdict.smallest_effect(sd, count, alpha) for sd in (floor, max(floor, 2**0.5 * spread)))
        tell(f"{count} pairs of each round keep a gain of {least:.4f} to {most:.4f} four times in five")
    return row
