"""Break training runs on purpose, and check that nothing is lost.

    python -m tests.slow.drill                    # every drill, a few tries each
    python -m tests.slow.drill kill disk_full     # some of them
    python -m tests.slow.drill --long=True        # the full number of tries, for docs/faults.md

Each drill starts runs as processes, does to them what its first line says (fault | promise), and
compares what they leave with a run that nothing disturbed: the same weights bit for bit, each row
logged once, nothing half written. A run is a fork of this process. Before it begins, and in the
fork alone, a function of a library may be replaced, such as by a `torch.save` that writes half a
checkpoint and dies. The product has no hook for any of this.
"""

import builtins
import fcntl
import io
import json
import math
import multiprocessing
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import tempfile
import termios
import time
import types
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated

import torch
import torch._dynamo  # noqa: F401 (the optimizers import it: once here, for all forks)
import tyro

import train
from nanoloop import checkpoint, files, runlog
from nanoloop.data import Data
from nanoloop.options import EXIT_RESUMABLE, UserError, read_options, require, run_program
from prepare_data import PrepareConfig, prepare
from tests.conftest import ROOT, SMALL, make_documents

torch.set_num_threads(1)  # a fork does not inherit torch's threads
STEPS = 60
OPTIONS = SMALL | {
    "batch_tokens": 128,
    "dropout": 0.1,
    "max_steps": STEPS,
    "save_interval": 7,
    "eval_interval": 10,
    "log_interval": 2,
    "resume": True,
}


class BrokenPromise(Exception):
    pass


def promise(condition, message: str) -> None:
    if not condition:
        raise BrokenPromise(message)


# ------------------------------------------------------------------------------------------------
# Runs


def no_sabotage() -> None:
    pass


class Run:
    """A run of train.py in a process of its own.

    sabotage: called in that process before training begins. is_fresh: start a new interpreter
    instead of a fork. output: a file descriptor for what it prints; None: a file beside `out`.
    """

    def __init__(
        self,
        data: Path,
        out: Path,
        *flags: str,
        sabotage: Callable[[], None] = no_sabotage,
        is_fresh: bool = False,
        output: int | None = None,
    ):
        self.out = out
        self.printed = Path(f"{out}.printed")
        options = OPTIONS | {"data": data, "out": out}
        argv = [f"--{key}={value}" for key, value in options.items()] + list(flags)
        self.process = multiprocessing.get_context("fork").Process(
            target=self.be_run, args=(argv, sabotage, is_fresh, output)
        )
        self.process.start()

    def be_run(self, argv: list[str], sabotage, is_fresh: bool, output: int | None) -> None:
        if output is None:
            output = os.open(self.printed, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        # The old sys.stdout knows another file.
        sys.stdout = open(1, "w", closefd=False)
        sys.stderr = open(2, "w", closefd=False)
        if is_fresh:
            os.execv(sys.executable, [sys.executable, str(ROOT / "train.py"), *argv])
        sys.argv = ["train.py", *argv]
        runlog.RunLog.draw = lambda self: None  # the picture takes as long as the rest
        sabotage()
        run_program(train.main)

    def end(self, seconds: float = 120) -> int:
        """Wait for the exit code, negative for the signal that killed the run."""
        self.process.join(seconds)
        code = self.process.exitcode
        promise(code is not None, f"a run did not end within {seconds} seconds")
        return code

    def signal(self, number: int) -> None:
        if self.process.is_alive():
            os.kill(self.process.pid, number)

    def text(self) -> str:
        return self.printed.read_text(errors="replace") if self.printed.exists() else ""

    def tail(self) -> str:
        return self.text()[-800:]

    def wait_for(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            is_waiting = time.monotonic() < deadline and self.process.is_alive()
            promise(is_waiting, f"waited in vain: {self.tail()}")
            time.sleep(0.002)

    def rows(self) -> list[dict]:
        return runlog.read_rows(self.out / "log.jsonl")


class Reference:
    """A folder with prepared data, and the weights that an undisturbed run ends with."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.count = 0
        (folder / "text").mkdir()
        for index, text in enumerate(make_documents(60)):
            (folder / "text" / f"{index:03}.txt").write_text(text)
        source = (str(folder / "text"),)
        options = PrepareConfig(source=source, name="words", tokenizer="byte", val_fraction=0.1)
        self.data = prepare(options, folder / "data")
        started = time.monotonic()
        run = self.start(self.new_folder())
        promise(run.end() == 0, f"the undisturbed run failed: {run.tail()}")
        self.seconds = time.monotonic() - started
        self.steps = [row["step"] for row in run.rows()]
        self.weights = checkpoint.load(run.out / "last.pt")["model"]

    def new_folder(self) -> Path:
        self.count += 1
        return self.folder / f"run{self.count}"

    def start(self, out: Path, *flags: str, **options) -> Run:
        return Run(self.data, out, *flags, **options)

    def resume(self, out: Path) -> None:
        run = self.start(out)
        promise(run.end() == 0, f"the run could not be resumed: {run.tail()}")

    def compare(self, out: Path) -> None:
        """Check weights, log and files of a run that has ended."""
        found = checkpoint.load(out / "last.pt")["model"]
        for name, weight in self.weights.items():
            promise(torch.equal(found[name], weight), f"{name} differs in {out}")
        steps = [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()]
        # A run that was stopped has a row for that step too.
        is_complete = steps == sorted(set(steps)) and set(self.steps) <= set(steps)
        promise(is_complete, f"the log of {out} has the steps {steps}, not {self.steps}")
        left = [*out.glob("*.tmp"), *out.glob("*.damaged")]
        promise(not left, f"files are left: {left}")


def newest_step(out: Path) -> int:
    """Return the step of the newest checkpoint, 0 without one."""
    paths = [out / name for name in ("last.pt", "previous.pt")]
    return max((checkpoint.load(path)["step"] for path in paths if path.exists()), default=0)


def slow_down() -> None:
    """Sabotage: pause in every step, so that there is time to disturb the run."""
    step = train.Muon.step

    def slow_step(self) -> None:
        time.sleep(0.02)
        step(self)

    train.Muon.step = slow_step


# ------------------------------------------------------------------------------------------------
# Kills


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_call(owner, name: str, number: int) -> None:
    """Sabotage: die when `owner.name` is called for the number-th time."""
    function = getattr(owner, name)
    calls = []

    def dying(*arguments, **options):
        calls.append(1)
        if len(calls) == number:
            die()
        return function(*arguments, **options)

    setattr(owner, name, dying)


def die_in_checkpoint(number: int, fraction: float) -> None:
    """Sabotage: write a part of the number-th checkpoint and die."""
    save = torch.save
    calls = []

    def half(value, file) -> None:
        calls.append(1)
        save(value, file)
        if len(calls) == number:
            file.flush()
            os.ftruncate(file.fileno(), int(fraction * file.tell()))
            die()

    torch.save = half


def die_in_row(number: int) -> None:
    """Sabotage: write a part of the number-th row of the log and die."""
    write = runlog.RunLog.write
    calls = []

    def half(self, step: int, *arguments) -> None:
        calls.append(1)
        if len(calls) == number:
            with open(self.path, "a") as file:
                file.write(f'{{"step": {step}, "tok')
            die()
        write(self, step, *arguments)

    runlog.RunLog.write = half


def die_in_evaluation(number: int) -> None:
    """Sabotage: die in the middle of the number-th pass over the validation data."""
    eval_batches = Data.eval_batches
    calls = []

    def dying(self, *arguments):
        calls.append(1)
        for index, batch in enumerate(eval_batches(self, *arguments)):
            if index == 1 and len(calls) == number:
                die()
            yield batch

    Data.eval_batches = dying


MOMENTS = {
    "in the first step": lambda rng: die_at_call(train.GPT, "forward", 1),
    "in a step": lambda rng: die_at_call(train.Muon, "step", rng.randint(1, 30)),
    "writing a checkpoint": lambda rng: die_in_checkpoint(rng.randint(1, 6), rng.random()),
    "syncing a file": lambda rng: die_at_call(os, "fsync", rng.randint(1, 12)),
    "renaming a file": lambda rng: die_at_call(os, "replace", rng.randint(1, 16)),
    "evaluating": lambda rng: die_in_evaluation(rng.randint(1, 4)),
    "writing a row of the log": lambda rng: die_in_row(rng.randint(1, 15)),
}


def start_and_kill(reference: Reference, out: Path, number: int, moment: str | None) -> int:
    """Start or resume a run and kill it; return its exit code, 0 if it ended before."""
    rng = random.Random(number)
    if moment:
        run = reference.start(out, sabotage=lambda: MOMENTS[moment](rng))
    else:
        is_fresh = number % 10 == 9
        run = reference.start(out, is_fresh=is_fresh)
        time.sleep(rng.uniform(0, 4 if is_fresh else reference.seconds))
        run.signal(signal.SIGKILL)
    code = run.end()
    promise(code in (0, -signal.SIGKILL), f"ended with {code}: {run.tail()}")
    return code


def kill(reference: Reference, is_long: bool) -> tuple[int, str]:
    """kill -9 at a random moment | the same command continues; equal, nothing half written"""
    tries = 100 if is_long else 12
    moments = [moment for name in MOMENTS for moment in (name, None)]
    hits: dict[str, int] = {}
    out = reference.new_folder()
    ended = 0
    number = 0
    while sum(hits.values()) < tries:
        moment = moments[number % len(moments)]
        before = newest_step(out)
        code = start_and_kill(reference, out, number, moment)
        number += 1
        name = moment or "at random"
        hits[name] = hits.get(name, 0) + (code != 0)
        for path in out.glob("*.pt"):
            checkpoint.load(path)  # raises if it is not complete
        promise(newest_step(out) >= before, f"killed {name}: the newest checkpoint was lost")
        promise(len(list(out.glob("*.tmp"))) <= 4, f"temporary files pile up in {out}")
        if code == 0 or sum(hits.values()) == tries:
            if code != 0:
                reference.resume(out)
            reference.compare(out)
            ended += 1
            out = reference.new_folder()
    summary = ", ".join(f"{count} {name}" for name, count in hits.items())
    return sum(hits.values()), f"{ended} runs ended, all equal bit for bit ({summary})"


# ------------------------------------------------------------------------------------------------
# Disks and files


class FullFile:
    """A file that takes 1,000 bytes and refuses more while the file `flag` exists."""

    def __init__(self, file, flag: Path):
        self.file = file
        self.flag = flag
        self.left = 1000

    def write(self, content) -> int:
        self.left -= len(content)
        if self.left < 0 and self.flag.exists():
            raise OSError(28, "No space left on device")
        return self.file.write(content)

    def flush(self) -> None:
        self.file.flush()

    def fileno(self) -> int:
        return self.file.fileno()

    def tell(self) -> int:
        return self.file.tell()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()


def fill_disk_while(flag: Path) -> None:
    """Sabotage: let checkpoints and log rows meet a full disk while the file `flag` exists."""

    def open_full(path, mode="r", **options):
        file = builtins.open(path, mode, **options)
        is_full = str(path).endswith((".tmp", "log.jsonl")) and mode != "r"
        return FullFile(file, flag) if is_full else file

    files.open = open_full
    runlog.open = open_full


@dataclass
class Disk:
    """A disk that can be filled: a small tmpfs where root may mount one, else refused writes."""

    out: Path

    def __post_init__(self):
        self.out.mkdir()
        mount = f"mount -t tmpfs -o size=4m none {self.out} 2>/dev/null"
        self.is_mounted = os.geteuid() == 0 and os.system(mount) == 0
        self.flag = Path(f"{self.out}.full")

    def sabotage(self) -> None:
        slow_down()
        if not self.is_mounted:
            fill_disk_while(self.flag)

    def fill(self) -> None:
        """Leave room for less than a page of 4096 bytes."""
        if not self.is_mounted:
            self.flag.touch()
            return
        with open(self.out / "filler", "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass

    def make_room(self) -> None:
        path = self.out / "filler" if self.is_mounted else self.flag
        path.unlink()

    def close(self) -> None:
        if self.is_mounted:
            os.system(f"umount {self.out}")


def run_until_full(reference: Reference, disk: Disk) -> Run:
    """Start a run, and fill its disk once it has two checkpoints."""
    run = reference.start(disk.out, sabotage=disk.sabotage)
    run.wait_for(lambda: (disk.out / "previous.pt").exists())
    disk.fill()
    return run


def disk_full(reference: Reference, is_long: bool) -> tuple[int, str]:
    """the disk is full while saving | warns, keeps the checkpoint before, continues, saves again"""
    tries = 4 if is_long else 1
    kinds = set()
    for _ in range(tries):
        disk = Disk(reference.new_folder())
        run = run_until_full(reference, disk)
        run.wait_for(lambda run=run: "was NOT written" in run.text())
        promise(0 < newest_step(disk.out) < STEPS, "no checkpoint was left complete")
        disk.make_room()
        promise(run.end() == 0, f"it did not continue: {run.tail()}")
        reference.compare(disk.out)
        disk.close()

        disk = Disk(reference.new_folder())  # this one stays full until the end
        run = run_until_full(reference, disk)
        is_reported = run.end() == 2 and f"step {STEPS}, was not written" in run.text()
        promise(is_reported, run.tail())
        promise(newest_step(disk.out) > 0, "no checkpoint was left complete")
        disk.make_room()
        reference.resume(disk.out)
        reference.compare(disk.out)
        disk.close()
        kinds.add("a small tmpfs" if disk.is_mounted else "a refused write")
    result = "room again: saved again, equal; no room: exit code 2, then resumed to equal weights"
    return 2 * tries, f"{result} ({', '.join(kinds)})"


class Malice:
    """What torch.load would call if it loaded more than weights."""

    def __init__(self, trap: Path):
        self.trap = trap

    def __reduce__(self):
        return os.system, (f"touch {self.trap}",)


def malicious(trap: Path, good: bytes, rng: random.Random) -> bytes:
    """Make a checkpoint that runs code when it is unpickled."""
    code = pickle.dumps(Malice(trap), 2)
    kind = rng.choice(["pickle", "torch", "exchanged"])
    if kind == "pickle":
        return code
    file = io.BytesIO()
    if kind == "torch":
        torch.save({"format": checkpoint.FORMAT, "model": Malice(trap)}, file)
        return file.getvalue()
    # A good checkpoint whose pickle alone is exchanged, with a right checksum.
    with zipfile.ZipFile(io.BytesIO(good)) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            new.writestr(name, code if name.endswith("data.pkl") else old.read(name))
    return file.getvalue()


def damage(kind: str, good: bytes, trap: Path, rng: random.Random) -> bytes:
    if kind == "cut":
        return good[: rng.randrange(len(good))]
    if kind == "malicious":
        return malicious(trap, good, rng)
    content = bytearray(good)
    # Half of the bits are in the archive's directory, at the end.
    index = rng.choice([rng.randrange(len(good)), -rng.randrange(1, 3000)])
    content[index] ^= 1 << rng.randrange(8)
    return bytes(content)


def checkpoints(reference: Reference, is_long: bool) -> tuple[int, str]:
    """last.pt is cut, flipped, or a pickle that runs code | skipped, never executed"""
    rng = random.Random(1)
    tries = 1000 if is_long else 60
    out = reference.new_folder()
    reference.resume(out)
    good = (out / "last.pt").read_bytes()
    weights = checkpoint.load(out / "last.pt")["model"]
    trap = reference.folder / "executed"
    path = reference.folder / "bad.pt"
    counts: dict[str, int] = {}
    harmless = 0
    for number in range(tries):
        kind = ("cut", "flipped", "malicious")[number % 3]
        content = damage(kind, good, trap, rng)
        path.write_bytes(content)
        try:
            found = checkpoint.load(path)["model"]
            is_same = all(torch.equal(found[name], weight) for name, weight in weights.items())
            promise(is_same and kind == "flipped", f"a {kind} checkpoint passed for a good one")
            harmless += 1  # a bit that carries nothing, such as a time in the directory
        except UserError:
            pass
        promise(not trap.exists(), "a checkpoint was executed")
        counts[kind] = counts.get(kind, 0) + 1
        if number < (9 if is_long else 3):  # and in a run
            (out / "last.pt").write_bytes(content)
            run = reference.start(out)
            promise(run.end() == 0 and (out / "last.pt").exists(), run.tail())
            if (out / "last.damaged").exists():
                promise("skipped" in run.text(), "skipped without a warning")
                (out / "last.damaged").unlink()
            reference.compare(out)
    summary = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    return tries, (
        f"{summary}: all refused except {harmless} flipped bits that carry nothing, whose tensors "
        "were equal; none executed"
    )


def shards(reference: Reference, is_long: bool) -> tuple[int, str]:
    """a data shard is cut, changed, longer or missing | refused with its name before training"""
    rng = random.Random(2)
    tries = 500 if is_long else 40
    copy = reference.folder / "changed"
    for number in range(tries):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(reference.data, copy)
        path = rng.choice(sorted(copy.glob("*.bin")))
        content = bytearray(path.read_bytes())
        kind = ("cut", "changed", "longer", "missing")[number % 4]
        if kind == "cut":
            content = content[: rng.randrange(len(content))]
        elif kind == "changed":
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        elif kind == "longer":
            content += bytes(rng.randrange(1, 5))
        path.write_bytes(content)
        if kind == "missing":
            path.unlink()
        try:
            Data(copy)
        except UserError as error:
            promise(path.name in str(error), f"refused without its name: {error}")
        else:
            raise BrokenPromise(f"{path.name} was {kind}, and it was not seen")
        if number < (8 if is_long else 2):
            out = reference.new_folder()
            run = Run(copy, out)
            is_refused = run.end() == 2 and path.name in run.text() and not out.exists()
            promise(is_refused, run.tail())
    return tries, "all refused by name, exit code 2, nothing started"


def deleted_files(reference: Reference, is_long: bool) -> tuple[int, str]:
    """the log or the folder is deleted | training continues; all rows are written again"""
    tries = 10 if is_long else 2
    for number in range(tries):
        out = reference.new_folder()
        run = reference.start(out, sabotage=slow_down)
        run.wait_for(lambda run=run: len(run.rows()) > 4)
        if number % 2:
            shutil.rmtree(out, ignore_errors=True)
        else:
            (out / "log.jsonl").unlink()
        promise(run.end() == 0, f"it ended with {run.process.exitcode}: {run.tail()}")
        reference.compare(out)
    return tries, "all ran to the end, equal, no row missing"


def second_run(reference: Reference, is_long: bool) -> tuple[int, str]:
    """a second run in one folder | refused; a killed run leaves no lock"""
    tries = 10 if is_long else 2
    for number in range(tries):
        out = reference.new_folder()
        run = reference.start(out, sabotage=slow_down)
        run.wait_for(lambda out=out: (out / "last.pt").exists())
        flags = ["--resume=False", "--overwrite=True"] if number % 2 else []
        other = reference.start(out, *flags)
        is_refused = other.end() == 2 and "in use by another run" in run.text()
        promise(is_refused, f"the second was not refused: {run.tail()}")
        run.signal(signal.SIGKILL)
        run.end()
        reference.resume(out)
        reference.compare(out)
    return tries, "all refused with exit code 2; after kill -9 the next run began and ended equal"


# ------------------------------------------------------------------------------------------------
# Signals, terminals, clocks, memory


def sigterm(reference: Reference, is_long: bool) -> tuple[int, str]:
    """SIGTERM or Ctrl-C, once or passed on | saved, exit code 75; resumed to equal weights"""
    rng = random.Random(3)
    tries = 20 if is_long else 4
    longest = 0.0
    stopped = 0
    for number in range(tries):
        out = reference.new_folder()
        run = reference.start(out, sabotage=slow_down)
        run.wait_for(lambda run=run: bool(run.rows()))
        time.sleep(rng.uniform(0, 1))
        started = time.monotonic()
        run.signal((signal.SIGTERM, signal.SIGINT)[number % 2])
        if number // 2 % 2:  # a launcher passes it on
            time.sleep(rng.uniform(0, 0.05))
            run.signal(signal.SIGTERM)
        code = run.end()
        longest = max(longest, time.monotonic() - started)
        promise(code in (0, EXIT_RESUMABLE), f"exit code {code}: {run.tail()}")
        if code == EXIT_RESUMABLE:
            stopped += 1
            is_saved = newest_step(out) == run.rows()[-1]["step"]
            promise(is_saved, "the step it stopped at was not saved")
            reference.resume(out)
        reference.compare(out)
    return stopped, (
        f"all saved and resumed to equal weights; at most {longest:.1f} s from signal to end"
    )


def close_pipe(reference: Reference, out: Path) -> Run:
    """Start a run whose output goes to a pipe, and close that after the first row."""
    reader, writer = os.pipe()
    run = reference.start(out, sabotage=slow_down, output=writer)
    os.close(writer)
    while b"step " not in os.read(reader, 4096):
        pass
    os.close(reader)
    return run


def close_terminal(reference: Reference, out: Path) -> Run:
    """Start a run in a terminal, and close that after the first row."""
    master, slave = os.openpty()

    def use_terminal() -> None:
        os.close(master)
        os.setsid()
        fcntl.ioctl(1, termios.TIOCSCTTY, 0)
        slow_down()

    run = reference.start(out, sabotage=use_terminal, output=slave)
    os.close(slave)
    run.wait_for(lambda: bool(run.rows()) or not os.read(master, 4096))
    os.close(master)  # the kernel sends SIGHUP to the session
    return run


def terminal(reference: Reference, is_long: bool) -> tuple[int, str]:
    """the terminal closes, or `head` has read enough | training continues to its end"""
    tries = 10 if is_long else 2
    for number in range(tries):
        out = reference.new_folder()
        run = (close_pipe if number % 2 else close_terminal)(reference, out)
        promise(run.end() == 0, f"it ended with {run.process.exitcode}")
        reference.compare(out)
    return tries, "all ran to the end, equal"


def jumping_clock() -> None:
    """Sabotage: let the clock of the day jump by years."""
    rng = random.Random(os.getpid())
    time.time = lambda: rng.uniform(0, 4e9)
    time.time_ns = lambda: int(time.time() * 1e9)


def clock(reference: Reference, is_long: bool) -> tuple[int, str]:
    """the clock jumps by years, back and forth | training continues; no time or rate is wrong"""
    tries = 4 if is_long else 1
    for _ in range(tries):
        run = reference.start(reference.new_folder(), sabotage=jumping_clock)
        promise(run.end() == 0, run.tail())
        reference.compare(run.out)
        summary = json.loads((run.out / "summary.json").read_text())
        promise(0 < summary["train_seconds"] < summary["total_seconds"] < 120, f"{summary}")
    return tries, "all ended equal, with correct times"


def failing_wandb(good_calls: int) -> Callable[[], None]:
    """Make a sabotage: a Weights & Biases whose server is gone after some calls."""
    calls = []

    def log(row, step) -> None:
        calls.append(1)
        if len(calls) > good_calls:
            raise ConnectionError("no route to host")

    def sabotage() -> None:
        run = types.SimpleNamespace(id="id", log=log, summary={}, finish=lambda: None)
        sys.modules["wandb"] = types.SimpleNamespace(init=lambda **options: run)

    return sabotage


def wandb(reference: Reference, is_long: bool) -> tuple[int, str]:
    """the calls of Weights & Biases fail | training continues; warns once"""
    tries = 4 if is_long else 1
    for number in range(tries):
        out = reference.new_folder()
        run = reference.start(out, "--wandb=True", sabotage=failing_wandb(number))
        is_warned = run.end() == 0 and run.text().count("continuing without it") == 1
        promise(is_warned, run.tail())
        reference.compare(out)
    return tries, "all ended equal, one warning each"


def memory(reference: Reference, is_long: bool) -> tuple[int, str]:
    """a long run | its memory does not grow"""
    steps = 2000 if is_long else 300
    sizes = reference.folder / "memory"

    def weigh() -> None:
        step = train.Muon.step
        calls = []

        def weighed(self) -> None:
            if len(calls) % 10 == 0:
                pages = int(Path("/proc/self/statm").read_text().split()[1])
                with open(sizes, "a") as file:
                    print(len(calls), pages * resource.getpagesize() / 2**20, file=file)
            calls.append(1)
            step(self)

        train.Muon.step = weighed

    flags = [f"--max_steps={steps}", "--eval_interval=50", "--save_interval=50"]
    run = reference.start(reference.new_folder(), *flags, sabotage=weigh)
    promise(run.end(600) == 0, run.tail())
    table = [tuple(map(float, line.split())) for line in sizes.read_text().splitlines()]
    first = fmean(size for step, size in table if steps * 0.2 <= step < steps * 0.4)
    last = fmean(size for step, size in table if step >= steps * 0.8)
    promise(last - first < 0.02 * first, f"memory grew by {last - first:.1f} MiB")
    return 1, (
        f"{steps} steps, {steps // 50} evaluations and saves: {first:.1f} MiB in the second "
        f"fifth, {last:.1f} in the last ({last - first:+.2f})"
    )


# ------------------------------------------------------------------------------------------------
# The command

DRILLS = {
    "kill": kill,
    "disk_full": disk_full,
    "checkpoints": checkpoints,
    "shards": shards,
    "sigterm": sigterm,
    "terminal": terminal,
    "files": deleted_files,
    "second_run": second_run,
    "clock": clock,
    "wandb": wandb,
    "memory": memory,
}


@dataclass(frozen=True)
class DrillOptions:
    """Break training runs on purpose and check that nothing is lost."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()  # of drills; none: all
    long: bool = False  # the full number of tries


def main(argv: list[str]) -> int:
    options = read_options(DrillOptions, argv, "-m tests.slow.drill", config_files=False)
    unknown = set(options.names) - set(DRILLS)
    require(not unknown, f"unknown drill {', '.join(unknown)}: expected {', '.join(DRILLS)}")
    folder = Path(tempfile.mkdtemp(prefix="drill"))
    is_broken = False
    try:
        reference = Reference(folder)
        print("\n| fault | promise | tries | result | seconds |\n|---|---|---|---|---|", flush=True)
        for name in options.names or DRILLS:
            fault, promised = DRILLS[name].__doc__.split(" | ")
            started = time.monotonic()
            try:
                tries, result = DRILLS[name](reference, options.long)
            except (BrokenPromise, UserError) as error:
                tries = math.nan
                result = f"BROKEN: {error}"
                is_broken = True
            seconds = f"{time.monotonic() - started:.0f}"
            print(
                f"| `{name}`: {fault} | {promised} | {tries} | {result} | {seconds} |", flush=True
            )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return int(is_broken)


if __name__ == "__main__":
    run_program(main)
