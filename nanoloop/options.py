"""What every command shares: options, errors and the frame of a program."""

import contextlib
import difflib
import errno
import inspect
import io
import os
import re
import runpy
import signal
import sys
import time
from contextvars import ContextVar
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType
from typing import get_origin, get_type_hints

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


def note(message: str) -> None:
    """Print to standard error; under torchrun only the first rank does."""
    if os.environ.get("RANK", "0") == "0":
        print(message, file=sys.stderr)


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
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        return f"this needs a library that is not installed: pip install {error.name}"
    if is_out_of_memory(error):
        return (
            "out of memory. Set a smaller --micro_batch_size (a step keeps its tokens, in more "
            "micro-steps), a smaller --block_size or a smaller model"
        )
    if isinstance(error, OSError):
        action = "check that path and its permissions"
        if error.errno in DISK_FULL:
            action = "make room on the disk"
        path = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror or error}{path}: {action}, then run the same command again"
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
        hint = "type python, not torchrun; or `unset WORLD_SIZE`"
        require(many or is_single, f"this runs in one process, and WORLD_SIZE is set: {hint}")
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader is gone, such as `| head`
        discard_output()
        sys.exit(141)
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)


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


# Options of training by what they need to have an effect: "KEY=PATTERN", or "KEY" that is neither
# None, False nor 0. Other classes of options have a table of their kind, NEEDS.
NEEDS = {
    "optimizer=muon": "muon_lr embed_lr head_lr scalar_lr momentum momentum_warmup",
    "optimizer=adamw": "learning_rate",
    "position=rope": "rope_base",
    "window_pattern": "window_size",
    "document_mask": "document_token",
    "decay": "decay_shape final_lr",
}

# The flags of the command line, while its config file runs.
FLAGS: ContextVar[list[str]] = ContextVar("FLAGS")


def read_options(cls: type, argv: list[str], program: str, config_files: bool = True):
    """Return the instance of `cls` that `read_given` builds."""
    return read_given(cls, argv, program, config_files)[0]


def read_given(cls: type, argv: list[str], program: str, config_files: bool = True) -> tuple:
    """Build the dataclass `cls` from its defaults, then a config file, then flags.

    argv: flags `--key=value`, after an optional first argument that names a config file. The
    file's assignments are parsed as flags before the others: one parser, one type check, one
    error text. `--help`, and a wrong value with exit code 2, end the program. Returns the instance
    and the set of the options that file and flags give. Raises UserError for an option that is
    unknown or without effect, a repeated list, and a config file that cannot be run.
    """
    flags = list(argv)
    values = {}
    if config_files and flags and not flags[0].startswith("-"):
        path = flags.pop(0)
        values = read_config_file(Path(path), flags)
        program = f"{program.partition(' config')[0]} {path}"
    if "--help" in flags or "-h" in flags:
        print_help(cls, program, values)
        sys.exit(0)
    import tyro  # not for --help, which should come at once

    types = get_type_hints(cls)
    file_flags = [f"--{name}={value}" for name, value in values.items()]
    require_known(file_flags, types, program)
    switches = [f"--{name}" for name, kind in types.items() if kind in (bool, bool | None)]
    flags = [f"{flag}=True" if flag in switches else flag for flag in flags]
    names = require_known(flags, types, "the command line")
    for name in {name for name in names if names.count(name) > 1}:
        is_list = get_origin(types[name]) is tuple
        require(not is_list, f"--{name} is repeated: give all its values to one, --{name}=A B")
        note(f"note: --{name} is repeated: the last one counts")
    # The parser would print what the class refuses in a form of its own.
    unchecked = type(cls.__name__, (cls,), {"__post_init__": lambda self: None})
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            parsed = tyro.cli(
                unchecked,
                args=file_flags + flags,
                prog=f"python {program}",
                use_underscores=True,
                config=(tyro.conf.FlagConversionOff,),
            )
    except SystemExit:
        _, *lines = printed.getvalue().splitlines()  # in a frame, below a title
        clutter = r"(?ms)^[│|+╰]|[│|+╯]$|[─-]{3,}|Got errors:.*(?=Argument)"
        text = " ".join(re.sub(clutter, " ", "\n".join(lines)).split())
        raise UserError(text.replace("Unrecognized options", "no option --NAME=VALUE")) from None
    try:
        config = cls(**vars(parsed))
    except ValueError as error:
        raise UserError(str(error)) from None
    require_effect(config, values, names)
    return config, {*values, *names}


def read_config_file(path: Path, flags: list[str]) -> dict:
    """Run a config file in its own namespace and return its assignments.

    Names that begin with _, modules, functions and classes are scratch. flags: of the command
    line; a dial takes its own out.
    """
    files = {*path.parent.glob("*.py"), *Path("config").glob("*.py")}
    others = ", ".join(sorted(map(str, files))) or "none"
    require(path.is_file(), f"config file '{path}' does not exist. Python files: {others}")
    token = FLAGS.set(flags)
    try:
        values = runpy.run_path(str(path))
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"config file '{path}' stopped with {first_line(error)}") from None
    finally:
        FLAGS.reset(token)
    is_clear = "'None'" not in map(repr, values.values())
    require(is_clear, f"config file '{path}' has the text 'None': write None, or another text")
    return {
        key: value
        for key, value in values.items()
        if not (key.startswith("_") or callable(value) or isinstance(value, ModuleType))
    }


def require_known(flags: list[str], known: dict, source: str) -> list[str]:
    """Return the names of the options in the flags. Raises UserError for an unknown one."""
    names = []
    for flag in flags:
        if not flag.startswith("--"):
            continue
        name = flag[2:].partition("=")[0].replace("-", "_")
        names.append(name)
        # The beginnings of words (temp, batch_size), or the initials of all (wd, lr).
        patterns = f"*_{name.replace('_', '*_')}*", f"_{'*_'.join(name)}*"
        similar = [other for other in known if any(fnmatch(f"_{other}", p) for p in patterns)]
        similar = similar or difflib.get_close_matches(name, known, n=1, cutoff=0.7)
        found = f"did you mean --{' or --'.join(similar)}?"
        hint = found if similar else "--help shows all options"
        require(name in known, f"unknown option {flag} in {source}: {hint}")
    return names


def require_effect(config, assigned: dict, names: list[str]) -> None:
    """Refuse flags that have no effect beside the other options; of a file's options, say so."""
    needs = getattr(config, "NEEDS", NEEDS)
    for need, options in needs.items():
        key, _, pattern = need.partition("=")
        value = getattr(config, key, None)
        instead = needs.get(f"{key}={value}", f"another --{key}")
        if fnmatch(str(value), pattern) if pattern else value:
            continue
        for name in {*assigned, *names} & set(options.split()):
            message = f"{name} has no effect with {key}={value}: use {instead}"
            require(name not in names, f"--{message}")
            note(f"note: {message}")


def print_help(cls: type, program: str, values: dict) -> None:
    """Print the options of a class as its source has them: by section, with their comments.

    values: those of a config file. The options of a base class stand below the comment that ends
    with its name, else last. A positional argument is in capitals.
    """
    text = f"usage: python {program} --option=value …"
    for base in cls.__mro__[:-1]:
        head, title, tail = text.partition(f": {base.__name__}")
        body = re.split(r"class .+:\n|\n\s+(?:def |NEEDS)|\n$", inspect.getsource(base))[1]
        text = head + title + "\n\n" + body + tail
    # An option without a comment beside it has one above it, of one or two lines.
    above = r"(?m)^    # (.+)\n(?:    # (.+)\n)?(    \w+: [^#\n]+)$"
    for line in re.sub(above, r"\3  # \1 \2", text).splitlines():
        option = re.match(r"    (\w+): (.+?)(?: = .+?)?(?:  # (.+))?$", line)
        if option:
            name, kind, comment = option.groups()
            value = values.get(name, getattr(cls, name, "…"))
            flag = name.upper() if "Positional" in kind else f"--{name}={value}"
            flag = flag.replace("\n", "\\n")
            if len(flag) > 28:
                flag += "\n".ljust(29)
            print(f"{flag:28}", comment, *re.findall(r"Literal(\[.+\])", kind))
        else:
            print(line.strip(' "'))
