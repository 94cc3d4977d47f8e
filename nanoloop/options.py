"""What every command shares: options, errors, signals."""

import contextlib
import dataclasses
import difflib
import errno
import os
import runpy
import signal
import subprocess
import sys
import typing
from pathlib import Path
from types import ModuleType


class UserError(ValueError):
    """A mistake the user can mend. The message says what was given, what was expected and what to type next."""


def require(condition, message: str) -> None:
    if not condition:
        raise UserError(message)


def made(data: str, prepare: str | None) -> str:
    """`data`; if that folder is not there, and the options `prepare` of prepare_data.py make it, it is made first.

    In a process of its own, for its workers are new interpreters that import the main program.
    """
    makes_it = [
        f"data/{word[7:]}" for word in (prepare or "").split() if word.startswith("--name=")
    ]
    if data in makes_it and not Path(data).exists():
        print(f"'{data}' is not there, making it: python prepare_data.py {prepare}", flush=True)
        done = subprocess.run(
            [sys.executable, Path(__file__).parent.parent / "prepare_data.py", *prepare.split()]
        )
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
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # the programs end without a word while they import
    os.umask(
        os.umask(0o077) | 0o002
    )  # whatever the umask, nothing that is made here can be written by everybody
    for stream in (
        sys.stdout,
        sys.stderr,
    ):  # a terminal that cannot show a character shows a question mark
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(
                errors="replace", line_buffering=True
            )  # … and a file shows each line when it is printed
    try:
        require(
            many or os.environ.get("WORLD_SIZE", "1") == "1",
            "this runs in one process: type python, not torchrun",
        )
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        message, code = "interrupted", 130
    except (
        BrokenPipeError
    ):  # whoever read the output has gone, as `| head` does; Python must not flush into the pipe
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
    if (
        isinstance(error, MemoryError)
        or names[0] == "OutOfMemoryError"
        or "can't allocate memory" in names[1]
    ):
        return (
            "error: out of memory. Set a smaller --micro_batch_size (sequences at once; a training step keeps its "
            "tokens, in more micro-steps), a smaller --block_size or a smaller model"
        )
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
            print(
                "finishing this step and saving; a second time ends the program at once",
                file=sys.stderr,
                flush=True,
            )
        caught.append(number)
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)
    return caught


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
        require(
            value.isdecimal() and int(value) > 0,
            f"--{name}={value}: write a whole number above 0, as {default}",
        )
        return int(value)

    path = Path(flags.pop(0)) if config_files and flags and not flags[0].startswith("-") else None
    if path:
        known = ", ".join(sorted(map(str, path.parent.glob("*.py")))) or "none"
        require(
            path.is_file(),
            f"config file '{path}' does not exist. Python files in '{path.parent}': {known}",
        )
        try:
            values = runpy.run_path(str(path), init_globals={"dial": dial})
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            raise UserError(f"config file '{path}' stopped with {first_line(error)}") from None
        settings = {
            key: value
            for key, value in values.items()
            if not key.startswith("_") and not callable(value)
        }
        file_flags = [
            f"--{key}={value}"
            for key, value in settings.items()
            if not isinstance(value, ModuleType)
        ]
    names = [field.name for field in dataclasses.fields(options)] + ["help", *dials]
    for flag in file_flags + flags:
        key = flag.removeprefix("--").split("=")[0].replace("-", "_")
        if flag.startswith("--") and key not in names and not key.startswith("tyro"):
            near = difflib.get_close_matches(key, names, n=1)
            meant = f"did you mean --{near[0]}?" if near else "--help shows all options"
            raise UserError(
                f"unknown option {flag} in {path if flag in file_flags else 'the command line'}: {meant}"
            )
    try:
        return tyro.cli(
            options,
            args=file_flags + flags,
            prog=f"python {program}",
            use_underscores=True,
            config=(tyro.conf.FlagConversionOff,),
        )
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
        return (
            any(fits(value, part) for part in typing.get_args(kind))
            if typing.get_args(kind)
            else value == kind
        )
    whole = isinstance(value, int) and not isinstance(
        value, bool
    )  # which is a number of the other kind too
    return (
        whole
        if kind is int
        else whole or isinstance(value, float)
        if kind is float
        else isinstance(value, kind)
    )
