"""Break training runs on purpose and see that nothing is lost:

    python -m tests.drill                    # every drill, a few tries each, half a minute
    python -m tests.drill kill               # one of them: kill, disk_full, checkpoints, shards, sigterm, terminal, files,
                                             # second_run, clock, wandb, spikes, memory
    python -m tests.drill --long=True        # the full number of tries; the table in tests/README.md was made by it

Each drill runs `train.py` on a small model as a process of its own, does something bad to it, lets the same command go on,
and compares the final weights with those of a run that was left alone: bit for bit. It prints a row of a Markdown table:
the fault, what is promised, how often it was tried, what was seen. The exit code is 1 if a promise was broken.

So that a hundred kills take a minute, a run is a fork of this program, which has imported torch already; one kill in ten
hits a new interpreter. Bad moments come at random, and by *sabotage*: a function that, in the run's process alone, puts
something in the place of a function of the library, say a `torch.save` that writes half a checkpoint and dies. The
product itself has no hook for any of this.
"""

import builtins
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
import time
import types
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated

import checkpoint
import console
import torch
import torch._dynamo  # the optimizers import it, which takes longer than a run: here, once for all forks
import tyro

import train
from nanoloop.data import Data
from prepare_data import PrepareConfig, prepare
from tests.conftest import ROOT, make_documents

torch.set_num_threads(1)  # a fork does not inherit torch's threads: there are none
STEPS = 60
FLAGS = (
    "--block_size=32 --n_layer=2 --n_head=2 --n_embd=32 --value_embeds=1 --batch_tokens=128 --device=cpu --dtype=float32 "
    f"--dropout=0.1 --max_steps={STEPS} --save_interval=7 --eval_interval=10 --log_interval=2 --resume=True"
).split()


class Broken(Exception):
    """A promise was not kept."""


def promise(condition, told: str) -> None:
    if not condition:
        raise Broken(told)


# ---------------------------------------------------------------------------------------------------------------------
# A run


class Run:
    """A run of train.py under way. sabotage: called in its process before it begins. fresh: a new interpreter."""

    def __init__(
        self,
        data: Path,
        out: Path,
        *flags: str,
        sabotage: Callable = lambda: None,
        fresh=False,
        output=None,
    ):
        self.out, self.printed = out, Path(f"{out}.printed")
        argv = [*FLAGS, f"--data={data}", f"--out={out}", *flags]
        self.process = multiprocessing.get_context("fork").Process(
            target=self.body, args=(argv, sabotage, fresh, output)
        )
        self.process.start()

    def body(self, argv: list[str], sabotage: Callable, fresh: bool, output: int | None) -> None:
        output = (
            os.open(self.printed, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            if output is None
            else output
        )
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = (
            open(number, "w", closefd=False) for number in (1, 2)
        )  # the old ones know another file
        if fresh:
            os.execv(sys.executable, [sys.executable, str(ROOT / "train.py"), *argv])
        sys.argv = ["train.py", *argv]
        console.Log.draw = lambda self: None  # the picture takes as long as all the rest
        sabotage()
        console.run_command(train.main)

    def end(self, seconds: float = 120) -> int:
        """Its exit code, negative for the signal that killed it."""
        self.process.join(seconds)
        promise(self.process.exitcode is not None, f"a run did not end within {seconds} seconds")
        return self.process.exitcode

    def signal(self, number: int) -> None:
        if self.process.is_alive():
            os.kill(self.process.pid, number)

    def text(self) -> str:
        return self.printed.read_text(errors="replace") if self.printed.exists() else ""

    def wait_for(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            promise(
                time.monotonic() < deadline and self.process.is_alive(),
                f"waited in vain: {self.text()[-500:]}",
            )
            time.sleep(0.002)

    def rows(self) -> list[dict]:
        path = self.out / "log.jsonl"
        return (
            [row for row in map(console.whole_row, path.read_bytes().splitlines()) if row]
            if path.exists()
            else []
        )


class Place:
    """A folder with prepared data, and the weights that a run left alone ends with."""

    def __init__(self, folder: Path):
        self.folder, self.number = folder, 0
        (folder / "text").mkdir()
        for index, text in enumerate(make_documents(60)):
            (folder / "text" / f"{index:03}.txt").write_text(text)
        options = PrepareConfig(
            source=(str(folder / "text"),), name="words", tokenizer="byte", val_fraction=0.1
        )
        self.data = prepare(options, folder / "data")
        began = time.monotonic()
        run = self.start(self.new())
        promise(run.end() == 0, f"a run left alone failed: {run.text()[-500:]}")
        self.seconds, self.steps = time.monotonic() - began, [row["step"] for row in run.rows()]
        self.weights = checkpoint.load_checkpoint(run.out / "last.pt")["model"]

    def new(self) -> Path:
        self.number += 1
        return self.folder / f"run{self.number}"

    def start(self, out: Path, *flags: str, **options) -> Run:
        return Run(self.data, out, *flags, **options)

    def compare(self, out: Path, weights: dict | None = None) -> None:
        """The weights are those of the run left alone, every row was logged once, nothing temporary is left."""
        found, weights = (
            checkpoint.load_checkpoint(out / "last.pt")["model"],
            weights or self.weights,
        )
        promise(
            all(torch.equal(found[name], weight) for name, weight in weights.items()),
            f"other weights in {out}",
        )
        steps = [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()]
        whole = steps == sorted(set(steps)) and set(self.steps) <= set(
            steps
        )  # one that stopped has a row for that step too
        promise(whole, f"the log of {out} has steps {steps}, not {self.steps}")
        promise(
            not list(out.glob("*.tmp")) and not list(out.glob("*.damaged")),
            f"something is left in {out}",
        )


def slowly() -> None:
    """Sabotage: a pause in every step, so that there is a run to meddle with."""
    take_step = train.Run.take_step
    train.Run.take_step = lambda *args: time.sleep(0.02) or take_step(*args)


# ---------------------------------------------------------------------------------------------------------------------
# Moments to die at


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(owner, name: str, number: int) -> None:
    """Sabotage: the process dies as `owner.name` is called for the number-th time."""
    plain, calls = getattr(owner, name), []

    def dying(*args, **kwargs):
        calls.append(1)
        if len(calls) == number:
            die()
        return plain(*args, **kwargs)

    setattr(owner, name, dying)


def in_half_a_file(number: int, share: float) -> None:
    """Sabotage: the number-th checkpoint is written in part."""
    plain, calls = torch.save, []

    def half(checkpoint, file):
        calls.append(1)
        plain(checkpoint, file)
        if len(calls) == number:
            file.flush()
            os.ftruncate(file.fileno(), int(share * file.tell()))
            die()

    torch.save = half


def in_half_a_row(number: int) -> None:
    """Sabotage: the number-th row of the log is written in part."""
    plain, calls = console.Log.write, []

    def half(self, step, *args, **figures):
        calls.append(1)
        if len(calls) == number:
            with open(self.path, "a") as file:
                file.write('{"step": %d, "tok' % step)
            die()
        plain(self, step, *args, **figures)

    console.Log.write = half


def in_evaluation(number: int) -> None:
    """Sabotage: the process dies in the middle of the number-th pass over the validation data."""
    plain, calls = Data.eval_batches, []

    def dying(self, *args):
        calls.append(1)
        for index, batch in enumerate(plain(self, *args)):
            if index == 1 and len(calls) == number:
                die()
            yield batch

    Data.eval_batches = dying


MOMENTS = {
    "in the first step": lambda rng: at_call(train.GPT, "forward", 1),
    "in a step": lambda rng: at_call(train.Muon, "step", rng.randint(1, 30)),
    "writing a checkpoint": lambda rng: in_half_a_file(rng.randint(1, 6), rng.random()),
    "syncing a file": lambda rng: at_call(os, "fsync", rng.randint(1, 12)),
    "renaming a file": lambda rng: at_call(os, "replace", rng.randint(1, 16)),
    "evaluating": lambda rng: in_evaluation(rng.randint(1, 4)),
    "writing a row of the log": lambda rng: in_half_a_row(rng.randint(1, 15)),
}


def kill(place: Place, long: bool) -> tuple[int, str]:
    """kill -9 at a random moment | the same command goes on; final weights equal bit for bit, nothing half-written"""
    rng, tries, out, finished, hit, number = (
        random.Random(0),
        100 if long else 12,
        place.new(),
        0,
        {},
        -1,
    )
    names = [name for moment in MOMENTS for name in (moment, "at random")]
    while sum(hit.values()) < tries:
        number += 1
        name = names[number % len(names)]
        sabotage = (
            (lambda rng=rng, name=name: MOMENTS[name](rng)) if name in MOMENTS else lambda: None
        )
        rng.random()  # the fork has its own copy of the generator: move on
        before = newest_step(out)
        fresh = number % 10 == 9 and name == "at random"
        run = place.start(out, sabotage=sabotage, fresh=fresh)
        if name == "at random":
            time.sleep(rng.uniform(0, 4 if fresh else place.seconds))
            run.signal(signal.SIGKILL)
        code = run.end()
        promise(code in (0, -9), f"killed {name}, but it ended with {code}: {run.text()[-800:]}")
        hit[name] = hit.get(name, 0) + (code == -9)
        for path in out.glob("*.pt"):
            checkpoint.load_checkpoint(path)  # raises where it is not whole
        promise(newest_step(out) >= before, f"killed {name}: the newest checkpoint was lost")
        promise(len(list(out.glob("*.tmp"))) <= 4, f"temporary files pile up in {out}")
        if code == 0 or sum(hit.values()) == tries:
            promise(code == 0 or place.start(out).end() == 0, "the run could not be ended")
            place.compare(out)
            out, finished = place.new(), finished + 1
    told = ", ".join(f"{count} {name}" for name, count in hit.items())
    return sum(hit.values()), f"{finished} runs ended, all bit for bit equal ({told})"


def newest_step(out: Path) -> int:
    paths = [out / name for name in ("last.pt", "previous.pt") if (out / name).exists()]
    return max((checkpoint.load_checkpoint(path)["step"] for path in paths), default=0)


# ---------------------------------------------------------------------------------------------------------------------
# The disk


def full_disk(flag: Path) -> None:
    """Sabotage: as long as the file `flag` exists, nothing more than 1,000 bytes can be written to a file in `out`."""
    plain = builtins.open

    class Small:
        def __init__(self, file):
            self.file, self.left = file, 1000

        def write(self, part) -> int:
            self.left -= len(part)
            if self.left < 0 and flag.exists():
                raise OSError(28, "No space left on device")
            return self.file.write(part)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

    def opened(path, mode="r", **options):
        file = plain(path, mode, **options)
        return Small(file) if str(path).endswith((".tmp", "log.jsonl")) and mode != "r" else file

    console.open = opened


def disk_full(place: Place, long: bool) -> tuple[int, str]:
    """the disk is full while saving | it is said, the checkpoint before stays whole, training goes on and saves again"""
    tries, ways = (4 if long else 1), dict[str, None]()
    for number in range(tries):
        out = place.new()
        flag = Path(f"{out}.full")
        disk = tmpfs(out)
        ways["a small tmpfs" if disk else "a refused write"] = None

        def sabotage():
            slowly()
            disk or full_disk(flag)

        run = place.start(out, sabotage=sabotage)
        run.wait_for(lambda: (out / "previous.pt").exists())
        fill(out) if disk else flag.touch()
        run.wait_for(lambda: "was NOT written" in run.text())
        step = newest_step(out)
        promise(0 < step < STEPS, "no checkpoint was left whole")
        (out / "filler").unlink() if disk else flag.unlink()
        promise(run.end() == 0, f"it did not go on: {run.text()[-500:]}")
        place.compare(out)

        out = out if disk else place.new()  # now the disk stays full
        shutil.rmtree(out, ignore_errors=True)
        run = place.start(out, sabotage=sabotage)
        run.wait_for(lambda: (out / "previous.pt").exists())
        fill(out) if disk else flag.touch()
        promise(
            run.end() == 2 and f"step {STEPS}, could not be written" in run.text(),
            run.text()[-500:],
        )
        promise(newest_step(out) > 0, "no checkpoint was left whole")
        (out / "filler").unlink() if disk else flag.unlink()
        promise(place.start(out).end() == 0, "there was room, but it could not go on")
        place.compare(out)
        if disk:
            os.system(f"umount {out}")
    return (
        2 * tries,
        f"room again: saved again, equal; no room: exit code 2, then resumed to equal ({', '.join(ways)})",
    )


def tmpfs(out: Path) -> bool:
    """Whether a disk of 4 MB could be mounted at `out`: it takes root."""
    out.mkdir()
    return os.geteuid() == 0 and os.system(f"mount -t tmpfs -o size=4m none {out} 2>/dev/null") == 0


def fill(out: Path) -> None:
    """Leave room for a few hundred bytes less than a page."""
    with open(out / "filler", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass


def checkpoints(place: Place, long: bool) -> tuple[int, str]:
    """last.pt is cut, has a flipped bit, or is a pickle that runs code | passed over aloud for the previous one, never run"""
    rng, tries, kinds = random.Random(1), 1000 if long else 60, {}
    out = place.new()
    promise(place.start(out).end() == 0, "a run left alone failed")
    good, harmless = (out / "last.pt").read_bytes(), 0
    whole, trap = checkpoint.load_checkpoint(out / "last.pt"), place.folder / "executed"
    for number in range(tries):
        kind = ("cut", "flipped", "malicious")[number % 3]
        if kind == "cut":
            content = good[: rng.randrange(len(good))]
        elif kind == "flipped":
            place_of = (
                rng.randrange(len(good)) if number % 2 else -rng.randrange(1, 3000)
            )  # the directory is at the end
            content = bytearray(good)
            content[place_of] ^= 1 << rng.randrange(8)
        else:
            content = malicious(trap, good, rng)
        path = place.folder / "bad.pt"
        path.write_bytes(content)
        try:
            found = checkpoint.load_checkpoint(path)
            same = all(
                torch.equal(found["model"][name], weight) for name, weight in whole["model"].items()
            )
            promise(
                same and kind == "flipped", f"a checkpoint that was {kind} passed for a good one"
            )
            harmless += 1  # a bit that says nothing, a time in the archive's directory say
        except console.UserError:
            pass
        promise(not trap.exists(), "a checkpoint was executed")
        kinds[kind] = kinds.get(kind, 0) + 1
        if number < (9 if long else 3):  # and as a whole run
            (out / "last.pt").write_bytes(content)
            run = place.start(out)
            promise(run.end() == 0 and (out / "last.pt").exists(), run.text()[-500:])
            if (out / "last.damaged").exists():
                promise("passed over" in run.text(), "passed over, but not aloud")
                (out / "last.damaged").unlink()
            place.compare(out)
    told = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    return (
        tries,
        f"{told}: all refused but {harmless} flipped bits that carry nothing, whose tensors were equal; none executed",
    )


class Malice:
    """What torch.load would call, if it were asked to load more than weights."""

    def __init__(self, trap: Path):
        self.trap = trap

    def __reduce__(self):
        return os.system, (f"touch {self.trap}",)


def malicious(trap: Path, good: bytes, rng: random.Random) -> bytes:
    way = rng.randrange(3)
    if way == 0:  # a bare pickle
        return pickle.dumps(Malice(trap), 2)
    file = io.BytesIO()
    if way == 1:  # as torch writes it
        torch.save({"format": checkpoint.CHECKPOINT_FORMAT, "model": Malice(trap)}, file)
        return file.getvalue()
    with (
        zipfile.ZipFile(io.BytesIO(good)) as old,
        zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as new,
    ):
        for (
            name
        ) in old.namelist():  # a good one whose pickle alone was exchanged, checksums and all
            new.writestr(
                name, pickle.dumps(Malice(trap), 2) if name.endswith("data.pkl") else old.read(name)
            )
    return file.getvalue()


def shards(place: Place, long: bool) -> tuple[int, str]:
    """a data shard is cut, changed, longer or gone | refused with its name before training starts"""
    rng, tries = random.Random(2), 500 if long else 40
    copy = place.folder / "changed"
    for number in range(tries):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(place.data, copy)
        path = rng.choice(sorted(copy.glob("*.bin")))
        content = bytearray(path.read_bytes())
        kind = number % 4
        if kind == 0:
            content = content[: rng.randrange(len(content))]
        elif kind == 1:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        elif kind == 2:
            content += bytes(rng.randrange(1, 5))
        path.unlink() if kind == 3 else path.write_bytes(content)
        try:
            Data(copy)
            raise Broken(f"{path.name} was changed (way {kind}), and it was not seen")
        except console.UserError as error:
            promise(path.name in str(error), f"refused without its name: {error}")
        if number < (8 if long else 2):
            out = place.new()
            run = Run(copy, out)
            promise(
                run.end() == 2 and path.name in run.text() and not out.exists(), run.text()[-500:]
            )
    return tries, "all refused by name, exit code 2, nothing begun"


# ---------------------------------------------------------------------------------------------------------------------
# Signals, terminals, files, clocks


def sigterm(place: Place, long: bool) -> tuple[int, str]:
    """SIGTERM or Ctrl-C, as a machine that is taken away gives | saved, exit code 75; resumed to equal weights"""
    rng, tries, longest, late = random.Random(3), 20 if long else 2, 0.0, 0
    for number in range(tries):
        out = place.new()
        run = place.start(out, sabotage=slowly)
        run.wait_for(lambda: bool(run.rows()))
        time.sleep(rng.uniform(0, 1))
        began = time.monotonic()
        run.signal((signal.SIGTERM, signal.SIGINT)[number % 2])
        code = run.end()
        longest = max(longest, time.monotonic() - began)
        late += code == 0
        promise(code in (0, console.RESUMABLE), f"exit code {code}: {run.text()[-500:]}")
        promise(
            code == 0 or newest_step(out) == run.rows()[-1]["step"],
            "the step it stopped at was not saved",
        )
        promise(code == 0 or place.start(out).end() == 0, "it could not go on")
        place.compare(out)
    return (
        tries - late,
        f"all saved and resumed to equal; {longest:.1f} s from signal to end at most",
    )


def terminal(place: Place, long: bool) -> tuple[int, str]:
    """the terminal closes (SIGHUP, then every print fails), or `head` has read enough | training goes on to its end"""
    tries = 10 if long else 2
    for number in range(tries):
        out = place.new()
        if number % 2:
            reader, writer = os.pipe()
            run = place.start(out, sabotage=slowly, output=writer)
            os.close(writer)
            while os.read(reader, 4096).count(b"step ") < 1:
                pass
            os.close(reader)
        else:
            master, slave = os.openpty()

            def own_terminal():
                import fcntl
                import termios

                os.close(master)
                os.setsid()
                fcntl.ioctl(1, termios.TIOCSCTTY, 0)
                slowly()

            run = place.start(out, sabotage=own_terminal, output=slave)
            os.close(slave)
            run.wait_for(lambda: bool(run.rows()) or not os.read(master, 4096))
            os.close(master)  # the kernel sends SIGHUP to the session
        promise(run.end() == 0, f"it ended with {run.process.exitcode}")
        place.compare(out)
    return tries, "all ran to the end, equal"


def files(place: Place, long: bool) -> tuple[int, str]:
    """the log, or the whole folder, is deleted meanwhile | training goes on, the log is written anew with all its rows"""
    tries = 10 if long else 2
    for number in range(tries):
        out = place.new()
        run = place.start(out, sabotage=slowly)
        run.wait_for(lambda: len(run.rows()) > 4)
        shutil.rmtree(out, ignore_errors=True) if number % 2 else (out / "log.jsonl").unlink()
        promise(run.end() == 0, f"it ended with {run.process.exitcode}: {run.text()[-500:]}")
        place.compare(out)
    return tries, "all ran to the end, equal, no row missing"


def second_run(place: Place, long: bool) -> tuple[int, str]:
    """a second run on one folder | refused, the first is not disturbed; a run that was killed leaves no lock"""
    tries = 10 if long else 2
    for number in range(tries):
        out = place.new()
        run = place.start(out, sabotage=slowly)
        run.wait_for(lambda: (out / "last.pt").exists())
        other = place.start(out, *(["--resume=False", "--overwrite=True"] if number % 2 else []))
        promise(
            other.end() == 2 and "in use by another run" in run.text(),
            f"the second was not refused: {run.text()}",
        )
        run.signal(signal.SIGKILL)
        run.end()
        promise(place.start(out).end() == 0, f"the killed run's lock stayed: {run.text()[-500:]}")
        place.compare(out)
    return (
        tries,
        "all refused with exit code 2; after kill -9 the next run began at once, and ended equal",
    )


def clock(place: Place, long: bool) -> tuple[int, str]:
    """the clock jumps by years, back and forth | training goes on; no time, budget or rate is wrong"""
    tries = 4 if long else 1

    def jumping() -> None:
        rng = random.Random(os.getpid())
        time.time = lambda: rng.uniform(0, 4e9)
        time.time_ns = lambda: int(time.time() * 1e9)

    for _ in range(tries):
        run = place.start(place.new(), sabotage=jumping)
        promise(run.end() == 0, run.text()[-500:])
        place.compare(run.out)
        summary = json.loads((run.out / "summary.json").read_text())
        promise(0 < summary["train_seconds"] < summary["total_seconds"] < 120, f"{summary}")
    return tries, "all ended equal, with sane times"


def wandb(place: Place, long: bool) -> tuple[int, str]:
    """the server of Weights & Biases is gone: its calls fail | training goes on, it is said once"""
    tries = 4 if long else 1
    for number in range(tries):

        def failing() -> None:
            calls = []

            def log(row, step):
                calls.append(1)
                if len(calls) > number:
                    raise ConnectionError("no route to host")

            run = types.SimpleNamespace(log=log, summary={}, finish=lambda: None)
            sys.modules["wandb"] = types.SimpleNamespace(init=lambda **options: run)

        run = place.start(place.new(), "--wandb=True", sabotage=failing)
        promise(run.end() == 0 and run.text().count("going on without it") == 1, run.text()[-500:])
        place.compare(run.out)
    return tries, "all ended equal, one warning each"


# ---------------------------------------------------------------------------------------------------------------------
# Losses and memory


def poisoned(steps: set[int]) -> Callable:
    """Sabotage: the batches of these steps of the data are noise, as a damaged document would be."""

    def put() -> None:
        plain = train.TrainBatches.__call__

        def noisy(self, step, *args):
            tokens, targets = plain(self, step, *args)
            return tokens, (targets * 7 + 13) % 256 if step in steps else targets

        train.TrainBatches.__call__ = noisy

    return put


def spikes(place: Place, long: bool) -> tuple[int, str]:
    """noise in the data makes the loss spike | skip: no step is taken; rewind: back, and on behind it; stop: ends; counted"""
    tries, rng = (3 if long else 1), random.Random(4)
    for number in range(tries):
        bad = {rng.randrange(35, 45), rng.randrange(46, 58)}
        for action in ("skip", "rewind"):
            out, flags = place.new(), [f"--on_spike={action}", "--spike_deviations=4"]
            run = place.start(out, *flags, sabotage=poisoned(bad))
            promise(run.end() == 0, run.text()[-500:])
            last = checkpoint.load_checkpoint(out / "last.pt")
            promise(
                last["spikes"]["count"] >= len(bad) and run.rows()[-1]["spikes"] >= 2,
                f"not counted: {last['spikes']}",
            )
            promise(last["spikes"]["ahead"] > 0 or action == "skip", "the data were not moved")
            promise(run.rows()[-1]["loss"] < 1.2 * run.rows()[14]["loss"], "it did not recover")
            killed = place.new()
            for _ in range(
                3 if long else 1
            ):  # and killed on the way, it finds the same spikes again
                run = place.start(killed, *flags, sabotage=lambda: (poisoned(bad)(), slowly()))
                time.sleep(rng.uniform(0.5, 2))
                run.signal(signal.SIGKILL)
                run.end()
            promise(
                place.start(killed, *flags, sabotage=poisoned(bad)).end() == 0, "it could not go on"
            )
            place.compare(killed, last["model"])
        run = place.start(
            place.new(), "--on_spike=stop", "--spike_deviations=4", sabotage=poisoned(bad)
        )
        promise(run.end() == 2 and "on_spike=stop" in run.text(), run.text()[-500:])
        promise(newest_step(run.out) <= min(bad), "the spike was saved")
    return 3 * tries, "all counted; killed on the way, skip and rewind end with the same weights"


def memory(place: Place, long: bool) -> tuple[int, str]:
    """a long run | its memory is flat"""
    steps = 2000 if long else 300
    sizes = place.folder / "memory"

    def weigh() -> None:
        take_step = train.Run.take_step

        def weighed(self, *args):
            if self.step % 10 == 0:
                pages = int(Path("/proc/self/statm").read_text().split()[1])
                with open(sizes, "a") as file:
                    print(self.step, pages * resource.getpagesize() / 2**20, file=file)
            return take_step(self, *args)

        train.Run.take_step = weighed

    run = place.start(
        place.new(),
        f"--max_steps={steps}",
        "--eval_interval=50",
        "--save_interval=50",
        sabotage=weigh,
    )
    promise(run.end(600) == 0, run.text()[-500:])
    table = [tuple(map(float, line.split())) for line in sizes.read_text().splitlines()]
    first = [size for step, size in table if steps * 0.2 <= step < steps * 0.4]
    last = [size for step, size in table if step >= steps * 0.8]
    growth = fmean(last) - fmean(first)
    promise(growth < 0.02 * fmean(first), f"memory grew by {growth:.1f} MiB")
    return 1, (
        f"{steps} steps, {steps // 50} evaluations and saves: {fmean(first):.1f} MiB in the second fifth, "
        f"{fmean(last):.1f} in the last ({growth:+.2f})"
    )


# ---------------------------------------------------------------------------------------------------------------------

DRILLS = {
    drill.__name__: drill
    for drill in (
        kill,
        disk_full,
        checkpoints,
        shards,
        sigterm,
        terminal,
        files,
        second_run,
        clock,
        wandb,
        spikes,
        memory,
    )
}


@dataclass(frozen=True)
class DrillOptions:
    """Break training runs on purpose and see that nothing is lost."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()  # of drills; none: all
    long: bool = False  # the full number of tries


def main(argv: list[str]) -> int:
    options, broken = (
        console.read_options(DrillOptions, argv, "-m tests.drill", config_files=False),
        0,
    )
    unknown = set(options.names) - set(DRILLS)
    console.require(
        not unknown, f"unknown drill {', '.join(unknown)}: there are {', '.join(DRILLS)}"
    )
    folder = Path(tempfile.mkdtemp(prefix="drill"))
    try:
        place = Place(folder)
        print("\n| fault | promise | tries | result | seconds |\n|---|---|---|---|---|", flush=True)
        for name in options.names or DRILLS:
            began, (fault, promised) = time.monotonic(), DRILLS[name].__doc__.split(" | ")
            try:
                tries, result = DRILLS[name](place, options.long)
            except (Broken, console.UserError) as error:
                tries, result, broken = math.nan, f"BROKEN: {error}", 1
            row = f"`{name}`: {fault}", promised, tries, result, f"{time.monotonic() - began:.0f}"
            print(f"| {' | '.join(map(str, row))} |", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return broken


if __name__ == "__main__":
    console.run_command(main)
