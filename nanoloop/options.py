"""What every command shares: options, errors and the frame of a program."""

import contextlib
import difflib
import errno
import os
import runpy
import signal
import sys
import time
from contextvars import ContextVar
from dataclasses import fields
from pathlib import Path
from types import ModuleType

EXIT_RESUMABLE = 75  # exit code of a run that a signal stopped: EX_TEMPFAIL in sysexits.h
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)

# -----------------------------------------------------------------------------
# Errors


class UserError(ValueError):
    """A mistake that the user can correct.

    The message says what was given, what was expected and what to type next.
    """


def require(condition, message: str) -> None:
    if not condition:
        raise UserError(message)


def is_utf8(text: str) -> bool:
    """Say whether a text can be encoded; an argument of a command may hold other bytes."""
    return text == text.encode(errors="ignore").decode()


def first_line(error: Exception) -> str:
    """Return the type and the first line of an error, at most 160 characters."""
    return f"{type(error).__name__}: {str(error).strip() or '-'}".splitlines()[0][:160]


@contextlib.contextmanager
def reading(problem: str, hint: str):
    """Turn any error while a file is read into a UserError: problem (reason): hint.

    A damaged file can raise anything. Do not put computation in the block: a defect in it would
    lose its traceback.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or is_out_of_memory(error):
            raise
        raise UserError(f"{problem} ({first_line(error)}): {hint}") from None


def is_out_of_memory(error: Exception) -> bool:
    # torch raises OutOfMemoryError for a GPU and a RuntimeError for a CPU. This file does not
    # import torch.
    is_torch_error = type(error).__name__ == "OutOfMemoryError"
    return is_torch_error or isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def explain(error: Exception) -> str | None:
    """Say what an error means and what to do; return None for a defect of the program."""
    if isinstance(error, UserError):
        return f"error: {error}"
    if isinstance(error, ModuleNotFoundError):
        return f"error: this needs a library that is not installed: pip install {error.name}"
    if is_out_of_memory(error):
        return (
            "error: out of memory. Set a smaller --micro_batch_size (a step keeps its tokens, in "
            "more micro-steps), a smaller --block_size or a smaller model"
        )
    # When a full disk interrupts a checkpoint, torch raises its own error on top.
    context = error.__context__
    if isinstance(context, OSError) and context.errno in DISK_FULL:
        error = context
    if isinstance(error, OSError):
        action = "check that path and its permissions"
        if error.errno in DISK_FULL:
            action = "make room on the disk"
        path = f" ({error.filename})" if error.filename else ""
        reason = error.strerror or error
        return f"error: {reason}{path}: {action}, then run the same command again"
    return None


# -----------------------------------------------------------------------------
# The program


def run_program(main, many: bool = False) -> None:
    """Run `main(argv)` and exit: 0 or its result, 2 for a user's mistake, 130 for Ctrl-C.

    many: whether torchrun may start several processes of this program.
    """
    os.umask(os.umask(0o077) | 0o002)  # nobody else may write what this program writes
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # Replace characters that the terminal cannot show; flush each line, in files too.
            stream.reconfigure(errors="replace", line_buffering=True)
    try:
        is_single = os.environ.get("WORLD_SIZE", "1") == "1"
        require(many or is_single, "this runs in one process: type python, not torchrun")
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        message = "interrupted"
        code = 130
    except BrokenPipeError:  # the reader is gone, such as `| head`
        discard_output()
        sys.exit(141)
    except Exception as error:
        message = explain(error)
        code = 2
        if message is None:
            raise
    with contextlib.suppress(OSError):  # the terminal is closed
        print(message, file=sys.stderr)
    sys.exit(code)


def discard_output() -> None:
    """Send standard output nowhere from here on, what is still buffered too."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_safely(*values, sep: str = " ") -> None:
    """Print while a run trains: a closed terminal, a closed pipe or a full disk is no error."""
    try:
        print(*values, sep=sep, flush=True)
    except OSError as error:
        if error.errno not in DISK_FULL:  # a full disk may have room later
            discard_output()


class StopFlag:
    """Notes the first SIGINT or SIGTERM, so that a run can save before it stops.

    signal: its number, None until it comes. A later one ends the program at once. One within 5
    seconds is the same request: a launcher passes on what has reached its processes too.
    """

    signal: int | None = None
    received: float = 0.0

    def listen(self) -> None:
        """Install the handlers, and ignore SIGHUP: a closed terminal does not stop a run."""
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.handle)

    def handle(self, number: int, frame) -> None:
        now = time.monotonic()
        if self.signal is None:
            self.signal = number
            self.received = now
            with contextlib.suppress(RuntimeError):  # the signal interrupts another print
                print_safely("finishing this step and saving; a signal after 5 s stops at once")
        elif now - self.received > 5:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)


# -----------------------------------------------------------------------------
# Options


# The flags of the command line, while its config file runs.
FLAGS: ContextVar[list[str]] = ContextVar("FLAGS")


def dial(name: str, default: int) -> int:
    """Return N of --name=N, an option that only the calling config file has.

    The file derives other options from it: `_depth = dial("depth", 12)`. Raises UserError unless
    N is a whole number above 0.
    """
    flags = FLAGS.get([])
    prefix = f"--{name}="
    value = str(default)
    for flag in [flag for flag in flags if flag.startswith(prefix)]:
        flags.remove(flag)  # it is no option of the program
        value = flag.removeprefix(prefix)
    is_valid = value.isdecimal() and int(value) > 0
    require(is_valid, f"--{name} must be a whole number above 0 such as {default}, got {value}")
    return int(value)


def read_options(cls: type, argv: list[str], program: str, config_files: bool = True):
    """Build the dataclass `cls` from its defaults, then a config file, then flags.

    argv: flags `--key=value`, after an optional first argument that names a config file. The
    file's assignments are parsed as flags before the others: one parser, one type check, one
    error text. A wrong value ends the program with exit code 2. Raises UserError for an unknown
    key or a config file that cannot be run.
    """
    import tyro

    flags = list(argv)
    file_flags = []
    path = None
    if config_files and flags and not flags[0].startswith("-"):
        path = Path(flags.pop(0))
        file_flags = read_config_file(path, flags)
    require_known(file_flags, cls, str(path))
    require_known(flags, cls, "the command line")
    try:
        return tyro.cli(
            cls,
            args=file_flags + flags,
            prog=f"python {program}",
            use_underscores=True,
            config=(tyro.conf.FlagConversionOff,),
        )
    except SystemExit as exit:
        if exit.code and path:
            print(f"(from {path} first, then from the command line)", file=sys.stderr)
        raise


def read_config_file(path: Path, flags: list[str]) -> list[str]:
    """Run a config file in its own namespace and return its assignments as flags.

    Names that begin with _, modules, functions and classes are scratch. flags: of the command
    line; a dial takes its own out.
    """
    others = ", ".join(sorted(map(str, path.parent.glob("*.py")))) or "none"
    require(
        path.is_file(),
        f"config file '{path}' does not exist. Python files in '{path.parent}': {others}",
    )
    token = FLAGS.set(flags)
    try:
        values = runpy.run_path(str(path))
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"config file '{path}' stopped with {first_line(error)}") from None
    finally:
        FLAGS.reset(token)
    return [
        f"--{key}={value}"
        for key, value in values.items()
        if not (key.startswith("_") or callable(value) or isinstance(value, ModuleType))
    ]


def require_known(flags: list[str], cls: type, source: str) -> None:
    names = [field.name for field in fields(cls)] + ["help"]
    for flag in flags:
        key = flag.removeprefix("--").split("=")[0].replace("-", "_")
        if not flag.startswith("--") or key in names or key.startswith("tyro"):
            continue
        nearest = difflib.get_close_matches(key, names, n=1)
        hint = f"did you mean --{nearest[0]}?" if nearest else "--help shows all options"
        raise UserError(f"unknown option {flag} in {source}: {hint}")
