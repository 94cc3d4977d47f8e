"""What every command shares: options, errors, files, logs. It imports nothing of the project.

It is a file of its own because a program run as `python prepare_data.py` is the module __main__: an error class defined
there would not be the one that other files import.
"""

import contextlib
import dataclasses
import difflib
import errno
import fcntl
import gc
import hashlib
import json
import math
import os
import runpy
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import traceback
import typing
import urllib.request
import zlib
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

if Path(sys.argv[0]).resolve().parent == Path(__file__).resolve().parent:  # a program of the project, not a test
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the imports, which take seconds, without a traceback

# ---------------------------------------------------------------------------------------------------------------------
# Errors


class UserError(ValueError):
    """A mistake the user can mend. The message says what was given, what was expected and what to type next."""


def require(condition, message: str) -> None:
    if not condition:
        raise UserError(message)


def made(data: str, prepare: str | None) -> str:
    """`data`; if that folder is not there, and the options `prepare` of prepare_data.py make it, it is made first.

    In a process of its own, for its workers are new interpreters that import the main program.
    """
    makes_it = [f"data/{word[7:]}" for word in (prepare or "").split() if word.startswith("--name=")]
    if data in makes_it and not Path(data).exists():
        print(f"'{data}' is not there, making it: python prepare_data.py {prepare}", flush=True)
        done = subprocess.run([sys.executable, Path(__file__).with_name("prepare_data.py"), *prepare.split()])
        require(done.returncode == 0, "the data could not be made: the reason stands above")
    return data


def first_line(error: Exception) -> str:
    """What an error says, short enough to stand inside another message."""
    return f"{type(error).__name__}: {str(error).strip() or '-'}".splitlines()[0][:160]


@contextlib.contextmanager
def explained(told: str, remedy: str):
    """Whatever goes wrong in this block, of whatever kind, is the user's to mend: told, why, remedy."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or "out of memory" in (explain(error) or ""):
            raise  # they explain themselves
        raise UserError(f"{told} ({first_line(error)}): {remedy}") from None


def run_command(main, many: bool = False) -> None:
    """Run `main(argv)` as a program and exit: 0 or main's own return value, 2 for a user's mistake, 130 for Ctrl-C.

    many: whether it may run in several processes, started by torchrun.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the programs end without a word while they import
    os.umask(os.umask(0o077) | 0o002)  # whatever the umask, nothing that is made here can be written by everybody
    for stream in (sys.stdout, sys.stderr):  # a terminal that cannot show a character shows a question mark
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace", line_buffering=True)  # … and a file shows each line when it is printed
    try:
        require(many or os.environ.get("WORLD_SIZE", "1") == "1", "this runs in one process: type python, not torchrun")
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        message, code = "interrupted", 130
    except BrokenPipeError:  # whoever read the output has gone, as `| head` does; Python must not flush into the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        message, code = explain(error), 2
        if message is None:
            raise
    print(message, file=sys.stderr)
    sys.exit(code)


def explain(error: Exception) -> str | None:
    """What the user should know and do about an error; None for one that is a defect of the program."""
    if isinstance(error, UserError):
        return f"error: {error}"
    if isinstance(error, ModuleNotFoundError):
        return f"error: this needs a library that is not installed: pip install {error.name}"
    # torch raises OutOfMemoryError for a GPU and a plain RuntimeError for the CPU; neither is imported here.
    names = type(error).__name__, str(error)
    if isinstance(error, MemoryError) or names[0] == "OutOfMemoryError" or "can't allocate memory" in names[1]:
        return ("error: out of memory. Set a smaller --micro_batch_size (sequences at once; a training step keeps its "
                "tokens, in more micro-steps), a smaller --block_size or a smaller model")  # fmt: skip
    # Closing a half-written checkpoint on a full disk makes torch raise an error of its own on top of the disk's.
    below = error.__context__
    if isinstance(below, OSError) and below.errno in (errno.ENOSPC, errno.EDQUOT):
        error = below
    if isinstance(error, OSError):
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "make room on the disk" if full else "check that path and its permissions"
        where = f" ({error.filename})" if error.filename else ""
        return f"error: {error.strerror or error}{where}: {remedy}, then run the same command again"
    return None


RESUMABLE = 75  # exit code: stopped by a signal, all saved. EX_TEMPFAIL of sysexits.h: try again


class LastingStream:
    """Standard output or error that may fail, as when the terminal is closed or `| head` has read enough: from then on
    what is printed goes nowhere, and the program goes on."""

    def __init__(self, stream):
        self.stream = stream

    def write(self, text: str) -> int:
        with self.forgiven():
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self.forgiven():
            self.stream.flush()

    @contextlib.contextmanager
    def forgiven(self):
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):  # a full disk may have room again
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())

    def __getattr__(self, name: str):
        return getattr(self.stream, name)


def catch_signals() -> list[int]:
    """A list that receives the signal's number at the first Ctrl-C or SIGTERM; the second one ends the program.

    A terminal that is closed ends nothing from here on: SIGHUP is ignored, and so is that printing fails.
    """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    sys.stdout, sys.stderr = LastingStream(sys.stdout), LastingStream(sys.stderr)
    caught: list[int] = []

    def handle(number, frame) -> None:
        if os.environ.get("RANK", "0") == "0":
            print("finishing this step and saving; a second time ends the program at once", file=sys.stderr, flush=True)
        caught.append(number)
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)
    return caught


# ---------------------------------------------------------------------------------------------------------------------
# Options


def read_options(options: type, argv: list[str], program: str, config_files: bool = True):
    """Make the dataclass `options` from defaults < config file < flags; a mistake in them ends the program, code 2.

    argv: flags, `--key=value`, after an optional first argument that names a config file: plain Python assignments,
    run in a namespace of their own and treated exactly as flags placed before the others, so that both share one
    parser, one type check and one error text. Names that begin with _, modules, functions and classes are scratch.

    A config file may have a dial of its own, an option from which it derives others: `_depth = dial("depth", 12)` is
    the number in --depth=N, 12 without it.
    """
    import tyro

    file_flags, flags, dials = [], list(argv), []

    def dial(name: str, default: int) -> int:
        mine = [flag for flag in flags if flag.startswith(f"--{name}=")]
        flags[:] = [flag for flag in flags if flag not in mine]
        dials.append(str(name))
        value = mine[-1].partition("=")[2] if mine else str(default)
        require(value.isdecimal() and int(value) > 0, f"--{name}={value}: write a whole number above 0, as {default}")
        return int(value)

    path = Path(flags.pop(0)) if config_files and flags and not flags[0].startswith("-") else None
    if path:
        known = ", ".join(sorted(map(str, path.parent.glob("*.py")))) or "none"
        require(path.is_file(), f"config file '{path}' does not exist. Python files in '{path.parent}': {known}")
        try:
            values = runpy.run_path(str(path), init_globals={"dial": dial})
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            raise UserError(f"config file '{path}' stopped with {first_line(error)}") from None
        settings = {key: value for key, value in values.items() if not key.startswith("_") and not callable(value)}
        file_flags = [f"--{key}={value}" for key, value in settings.items() if not isinstance(value, ModuleType)]
    names = [field.name for field in dataclasses.fields(options)] + ["help", *dials]
    for flag in file_flags + flags:
        key = flag.removeprefix("--").split("=")[0].replace("-", "_")
        if flag.startswith("--") and key not in names and not key.startswith("tyro"):
            near = difflib.get_close_matches(key, names, n=1)
            meant = f"did you mean --{near[0]}?" if near else "--help shows all options"
            raise UserError(f"unknown option {flag} in {path if flag in file_flags else 'the command line'}: {meant}")
    try:
        return tyro.cli(options, args=file_flags + flags, prog=f"python {program}", use_underscores=True,
                        config=(tyro.conf.FlagConversionOff,))  # fmt: skip
    except SystemExit as exit:
        if exit.code and path:
            print(f"(read from {path} first, then from the command line)", file=sys.stderr)
        raise


def typed(options: type, values: dict, names) -> dict:
    """These of the values, which come out of a file. Raises UserError where one is not of its option's type."""
    kinds = typing.get_type_hints(options)
    for name in names:
        told = f"{name}={values[name]!r:.80} is not of its type, {kinds[name]}"
        require(fits(values[name], kinds[name]), told)
    return {name: values[name] for name in names}


def fits(value, kind) -> bool:
    if not isinstance(kind, type):  # a union, a Literal, or one of its values
        return any(fits(value, part) for part in typing.get_args(kind)) if typing.get_args(kind) else value == kind
    whole = isinstance(value, int) and not isinstance(value, bool)  # which is a number of the other kind too
    return whole if kind is int else whole or isinstance(value, float) if kind is float else isinstance(value, kind)


# ---------------------------------------------------------------------------------------------------------------------
# Files


def replace_file(path: Path, write, keep_old: Path | None = None) -> None:
    """Let `write(file)` fill a temporary file, sync it, rename it: `path` is never half written, whatever happens.

    keep_old: a name under which the file that is replaced stays.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if keep_old and path.exists():
            remove(keep_old)
            os.replace(path, keep_old)
        elif path.is_dir():
            shutil.rmtree(path)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def if_possible(path: Path, write, *args) -> bool:
    """write(path, *args), of what will be written again later: where the disk is full or fails it says so, leaves what
    is there as it is, and returns False."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)  # somebody may have deleted it meanwhile
        write(path, *args)
    except Exception as error:  # torch raises an error of its own on top of the disk's
        reason = error if isinstance(error, OSError) else error.__context__
        if not isinstance(reason, OSError):
            raise
        told = f"warning: '{path}' was NOT written ({reason.strerror}); what was saved before is whole"
        print(f"{told}. Make room on the disk: the next save tries again", flush=True)
        return False
    return True


@contextlib.contextmanager
def locked(folder: Path, wanted: bool = True):
    """Keep `folder` for this process. Raises UserError where another has it. The system forgets the lock with the
    process, however that ends; folders that were made for the lock alone do not stay."""
    if not wanted:
        yield
        return
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            told = f"'{folder}' is in use by another run: wait for its end, or type another --out=FOLDER"
            raise UserError(told) from None
        except OSError:
            pass  # a file system without locks
        try:
            yield
        finally:
            if made and [path.name for path in folder.glob("*")] == [".lock"]:
                os.unlink(folder / ".lock")
                with contextlib.suppress(OSError):
                    for path in made:
                        path.rmdir()


def write_json(path: Path, value) -> None:
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    content = text.encode("utf-8", errors="backslashreplace")  # a file name that is no UTF-8, as JSON's own escape
    replace_file(path, lambda file: file.write(content))


class JsonLines:
    """A file of JSON rows, one a line, that only grows; a row is on the disk before `append` returns.

    take: called with every row that is there already and with every one appended. hide: a word that is blotted out of
    them, a key say. A last line that a kill has cut off is dropped. Raises UserError, and leaves the file as it is,
    where that holds anything else.
    """

    def __init__(self, path: Path, take, hide: str = "\n"):  # JSON has no line end inside
        self.take, self.hide, self.file = take, hide, open(path, "a+")
        self.file.seek(0)
        whole, end, _ = self.file.read().rpartition("\n")
        with explained(f"{path} holds something else than it should", "move it away to begin anew"):
            for line in whole.splitlines():
                take(json.loads(line))
        self.file.truncate(len(whole + end))  # json.dumps writes ASCII

    def append(self, row: dict) -> None:
        line = json.dumps(row).replace(self.hide, "[hidden]")
        print(line, file=self.file, flush=True)
        os.fsync(self.file.fileno())
        self.take(json.loads(line))


def sha256_of_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it, if it is there."""
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def replace_folder(partial: Path, final: Path, keep_old: Path | None = None) -> None:
    """Make the files in `partial` durable and let it take the place of `final`, which is there, old or new, at any
    moment but one between two renames. keep_old: a name under which what is replaced stays."""
    for path in partial.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    old = keep_old or final.with_name(final.name + ".old")
    if final.exists():
        remove(old)
        os.replace(final, old)
    os.replace(partial, final)
    if not keep_old:
        remove(old)


def link_or_copy(path: Path, to: Path) -> None:
    try:
        os.link(path, to)
    except OSError:  # another disk, or a file system without links
        shutil.copyfile(path, to)


def download(url: str, sha256: str, path: Path, remedy: str) -> Path:
    """The file behind `url`, fetched once to `path`. Raises UserError if it is not to be had, or is another file."""
    if not path.is_file() or sha256_of_file(path) != sha256:
        print(f"downloading {url}")
        try:
            with urllib.request.urlopen(url, timeout=30) as response:
                content = response.read()
        except OSError as error:  # URLError and time-outs are OSErrors
            raise UserError(f"{url} could not be downloaded ({error}). {remedy}") from None
        same = hashlib.sha256(content).hexdigest() == sha256
        require(same, f"{url} did not give the file that was expected: its SHA-256 is not {sha256}")
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda file: file.write(content))
    return path


def chunks(path: Path) -> Iterator[tuple[bytes, int]]:
    """Yields (bytes of a file, position in the file), unpacked if its first bytes are gzip's or Zstandard's. It is read
    a little at a time, for that may stand for a thousand times as much. Raises OSError, EOFError, zlib's and
    zstandard's errors, after all that was good."""
    with open(path, "rb") as file:
        magic, make, step = file.read(4), None, 2**20
        file.seek(0)
        if magic[:2] == b"\x1f\x8b":
            make, step = lambda: zlib.decompressobj(wbits=31), 4096
        elif magic == b"\x28\xb5\x2f\xfd":
            import zstandard

            make, step = zstandard.ZstdDecompressor().decompressobj, 512
        unpacking = make and make()
        while packed := file.read(step):
            while packed:
                if make and unpacking.eof:  # packed files joined one behind the other are one file
                    unpacking = make()
                if chunk := unpacking.decompress(packed) if make else packed:  # the decompressor may still be gathering
                    yield chunk, file.tell()
                packed = unpacking.unused_data if make else b""
        if make and not unpacking.eof:
            raise EOFError("the packed file ends too early")


# ---------------------------------------------------------------------------------------------------------------------
# Several processes


def ordered_map(make, arguments: tuple, items, workers: int) -> Iterator:
    """Yields make(*arguments)(item) for each item, in their order, a few items ahead.

    workers: processes, each of which makes a function of its own, for it to keep what is costly to send; 0: none.
    """
    if not workers:
        yield from map(make(*arguments), items)
        return
    from concurrent.futures import ThreadPoolExecutor
    from multiprocessing import get_context, resource_tracker

    context, waiting, crew, own = get_context("spawn"), deque(), [], threading.local()

    # Each thread of a pool has a worker, a new interpreter: a fork begins sooner, but inherits locks that threads of Rust
    # libraries hold. And a pipe to it: in a shared one a worker that is killed while it writes leaves half a message
    # behind, and who reads it waits for ever. Workers are born with Ctrl-C blocked and keep that: it is their parent's.
    def hire() -> None:
        resource_tracker.ensure_running()  # which spawn wants, and which unblocks Ctrl-C when it has begun
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        own.pipe, theirs = context.Pipe()
        process = context.Process(target=work, args=(theirs, make, arguments), daemon=True)
        process.start()
        crew.append((own.pipe, process))
        theirs.close()  # so that the pipe is cut when the process has gone

    def ask(item):
        try:
            own.pipe.send(item)
            result = own.pipe.recv()
        except (EOFError, OSError):
            told = "a worker process ended, as when memory runs out and the system ends the largest"
            raise UserError(f"{told}. Run the same command again, perhaps with --workers=1: it goes on") from None
        if isinstance(result, Exception):
            raise result
        return result

    pool = ThreadPoolExecutor(workers, initializer=hire)
    try:
        for item in items:
            waiting.append(pool.submit(ask, item))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        for pipe, process in crew:
            pipe.close()  # at which the worker ends
            process.join()


def work(pipe, make, arguments: tuple) -> None:
    """A worker's life. It ends with its parent, even if that is killed, for then nobody holds the pipe's other end."""
    function = None
    with contextlib.suppress(EOFError, OSError):
        while True:
            item = pipe.recv()
            try:
                function = function or make(*arguments)
                result = function(item)
            except Exception as error:
                error.add_note(traceback.format_exc())
                result = error
            pipe.send(result)


# ---------------------------------------------------------------------------------------------------------------------
# A run's folder: config.json, log.jsonl (a row of figures per line), loss.png, summary.json


RUN_FILES = ("config.json", "log.jsonl", "loss.png", "summary.json", "last.pt", "previous.pt", "best.pt")


def check_folder(out: Path, resume: bool, overwrite: bool) -> None:
    """Never destroy a run unasked: raises UserError where `out` holds one and neither way to treat it was chosen."""
    there = bool(list(out.glob("*.pt"))) or (out / "summary.json").exists()  # a run that died at once left no more
    told = f"'{out}' holds a run: type --resume=True to go on with it, --overwrite=True to delete it, or --out=FOLDER"
    require(not there or resume or overwrite, told)


class Log:
    """The log of a run in folder `out`, which begins, or goes on, after `step` steps and `seconds` of training.

    config: the run's options. n_params, flops_per_token: the model's. peak: floating-point operations per second that
    the devices can do at most; the share that is used (mfu, model FLOPs utilisation) is None where that is None.
    """

    def __init__(self, out: Path, step: int, seconds: float, config: dict, n_params: int, flops_per_token: float, peak):
        self.out, self.path, self.config, self.n_params, self.wandb = out, out / "log.jsonl", config, n_params, None
        self.flops_per_token, self.peak_flops = flops_per_token, peak
        out.mkdir(parents=True, exist_ok=True)
        for name in RUN_FILES:  # and nothing else that may be in the folder
            remove(out / f"{name}.tmp")  # of a run that was killed
            if config["overwrite"]:
                remove(out / name)
        write_json(out / "config.json", config)
        lines = self.path.read_bytes().splitlines() if self.path.is_file() else []
        self.rows = [row for row in map(whole_row, lines) if row]  # a line that a kill has cut off is no row
        self.rewind(step, seconds)
        if config["wandb"]:
            import wandb

            with explained("Weights & Biases did not start", "type `wandb login`, or set WANDB_MODE=offline"):
                self.wandb = wandb.init(project="nanoloop", name=out.name, dir=out, config=config)

    def rewind(self, step: int, seconds: float) -> None:
        """Drop what came after `step`: it will come again."""
        self.rows, self.written = [row for row in self.rows if row["step"] <= step], (step, seconds)
        self.whole = if_possible(self.path, replace_file, self.write_rows)

    def write_rows(self, file) -> None:
        file.write("".join(json.dumps(row) + "\n" for row in self.rows).encode("utf-8"))

    def speed(self, steps: int, seconds: float) -> dict:
        per_second = steps * self.config["batch_tokens"] / seconds if seconds else 0.0
        mfu = per_second * self.flops_per_token / self.peak_flops if self.peak_flops else None
        return {"tokens_per_second": per_second, "mfu": mfu}

    def write(self, step: int, seconds: float, progress: float, **figures) -> None:
        """Print a row of figures for people and append it for programs."""
        gc.collect(1)  # of the young; keep_memory took it out of the steps
        row = {"step": step, "tokens": step * self.config["batch_tokens"], "seconds": seconds} | figures
        row |= self.speed(step - self.written[0], seconds - self.written[1])
        row["seconds_left"] = max(0.0, seconds / progress - seconds)
        self.written = step, seconds
        print(" | ".join(f"{key} {show(value)}" for key, value in row.items() if value is not None), flush=True)
        self.rows.append(row)
        try:
            require(self.whole and self.path.is_file(), "")
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except (OSError, UserError):  # it was deleted, or a full disk took no row, or part of one: all rows anew
            self.whole = if_possible(self.path, replace_file, self.write_rows)
        self.track(lambda: self.wandb.log(row, step=step))

    def track(self, send) -> None:
        """Do something with Weights & Biases; if that fails, training goes on without it."""
        try:
            if self.wandb:
                send()
        except Exception as error:  # of many kinds, its own among them
            print(f"warning: Weights & Biases failed ({first_line(error)}): going on without it; log.jsonl has it all")
            self.wandb = None

    def pause(self, step: int) -> None:
        self.draw()
        print(f"stopped and saved at step {step}: the same command with --resume=True goes on")

    def draw(self) -> None:
        """loss.png: training and validation loss against tokens."""
        from matplotlib.figure import Figure

        axes = Figure(figsize=(8, 5), layout="constrained").subplots()
        for key, style in (("loss", "-"), ("val_loss", "o--")):
            points = [(row["tokens"], row[key]) for row in self.rows if key in row]
            if points:
                axes.plot(*zip(*points), style, label=f"{key}, last {points[-1][1]:.4f}")
        axes.set(xlabel="tokens", ylabel="loss (nats per token)", title=str(self.out))
        axes.grid(alpha=0.3)
        axes.legend()
        axes.figure.savefig(self.out / "loss.png", dpi=120)

    def finish(self, step: int, seconds: float, total_seconds: float, memory_mb: float | None, **figures) -> dict:
        """Print the summary as `key: value` lines, write it to summary.json, draw the losses; returns the summary."""
        tokens = step * self.config["batch_tokens"]
        summary = figures | {"train_seconds": seconds, "total_seconds": total_seconds, "tokens": tokens, "steps": step}
        summary |= self.speed(step, seconds) | {"peak_memory_mb": memory_mb, "params": self.n_params}
        write_json(self.out / "summary.json", summary)
        print("---", *(f"{key}: {show(value)}" for key, value in summary.items()), sep="\n")
        self.draw()
        self.track(lambda: self.wandb.summary.update(summary))
        self.track(lambda: self.wandb.finish())
        return summary


class Silence:
    """What the other ranks have in place of the log, and who only evaluates: it keeps nothing."""

    def __init__(self, *args):
        pass

    def __getattr__(self, name):
        return lambda *args, **figures: None

    def finish(self, *args, **figures) -> dict:
        print(*([f"{key}: {show(value)}" for key, value in figures.items()] or ["no validation data"]), sep="\n")
        return figures


class SpikeWatch:
    """Which losses are spikes: those more than `deviations` standard deviations above the mean of the latest 100.

    action: "skip", "stop", "rewind", or None, with which nobody looks. count: spikes so far. ahead: steps by which the
    data are ahead of the optimizer steps, after rewinding. last: the latest loss that was good, for messages.
    """

    LATEST, FEWEST, PATIENCE = 100, 20, 10  # losses to compare with; before so many none is a spike; spikes in a row
    KEPT = ("count", "ahead", "in_row", "back_at", "tries")
    REMEDY = "The last checkpoint is older, and good: lower the learning rates, or choose another --on_spike"

    def __init__(self, action: str | None, deviations: float):
        self.action, self.deviations, self.last, self.rewinds = action, deviations, None, False
        self.recent: deque[float] = deque(maxlen=self.LATEST)
        self.count, self.ahead, self.in_row, self.back_at, self.tries = 0, 0, 0, -1, 0

    def look(self, step: int, loss: float) -> bool:
        """Whether the loss of `step` is a spike. Raises UserError where that, or their number, is to end the run."""
        mean, deviation = math.inf, 0.0
        if len(self.recent) >= self.FEWEST:
            mean, deviation = statistics.fmean(self.recent), statistics.stdev(self.recent)
        spike = math.isfinite(loss) and loss > mean + self.deviations * deviation  # not finite: the run ends anyway
        self.rewinds, self.in_row = spike and self.action == "rewind", self.in_row + 1 if spike else 0
        self.count += spike
        if spike:
            told = f"spike {self.count}: the loss {loss:.4f} of step {step} is {(loss - mean) / (deviation or 1):,.1f} "
            told += f"deviations above the mean of the latest {len(self.recent)}, {mean:.4f}: on_spike={self.action}"
            ends = self.action == "stop" or self.in_row > self.PATIENCE
            require(not ends, f"{told}, {self.in_row} in a row. {self.REMEDY}")
            print(told, flush=True)
        else:
            self.recent.append(loss)
        return spike

    def mean(self, losses: list[float], step: int, rates) -> dict[str, float]:
        """The mean of the latest losses, up to `step`, and the count of spikes if they are looked for. Raises UserError
        at the first loss that is not finite. rates: the learning rates, for the message."""
        for at, value in enumerate(losses, start=step - len(losses)):
            told = f"the loss is {value} at step {at}, {self.last} before it, with learning rates {sorted(set(rates))}"
            told += "; the last checkpoint is older. Likely: a rate too high, dtype=float16"
            require(math.isfinite(value), told)
            self.last = value
        return {"loss": statistics.fmean(losses)} | ({"spikes": self.count} if self.action else {})

    def state(self) -> dict:
        """What the checkpoint keeps, so that a resumed run finds the same spikes."""
        return {name: getattr(self, name) for name in self.KEPT} | {"recent": list(self.recent)}

    def restore(self, state: dict) -> None:
        vars(self).update({name: int(state[name]) for name in self.KEPT})
        self.recent = deque(map(float, state["recent"]), self.LATEST)

    def rewound(self, step: int, checkpoint: dict) -> dict:
        """The checkpoint to go back to from after `step` steps, with the data that come after those (as PaLM did,
        arXiv:2204.02311, section 5.1); its spikes stay counted. Raises UserError where going back is of no use."""
        self.tries = self.tries + 1 if self.back_at == checkpoint["step"] else 1
        self.back_at, self.ahead = checkpoint["step"], step + self.ahead - checkpoint["step"]
        told = f"each of {self.PATIENCE} ways on from step {self.back_at} led to a spike. {self.REMEDY}"
        require(self.tries <= self.PATIENCE, told)
        return checkpoint | {"spikes": self.state() | {"recent": checkpoint["spikes"]["recent"]}}


def whole_row(line: bytes) -> dict | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) and "tokens" in row else None


def show(value) -> str:
    """A figure for people: digits after the point where it is small, thousands marked where it is large."""
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.4f}" if abs(value) < 10 else f"{value:,.1f}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
