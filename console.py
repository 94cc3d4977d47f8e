"""What every command of the project shares: options, errors, files, logs. It imports nothing of the project.

It is a file of its own because a program run as `python prepare_data.py` is the module __main__: an error class defined
there would not be the one that other files import.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import runpy
import shutil
import signal
import sys
from pathlib import Path
from types import ModuleType

# ---------------------------------------------------------------------------------------------------------------------
# Errors


class UserError(ValueError):
    """A mistake the user can mend. The message says what was given, what was expected and what to type next."""


def require(condition, message: str) -> None:
    if not condition:
        raise UserError(message)


def first_line(error: Exception) -> str:
    """What an error says, short enough to stand inside another message."""
    return f"{type(error).__name__}: {str(error).strip() or '-'}".splitlines()[0][:160]


@contextlib.contextmanager
def explained(told: str, remedy: str):
    """Whatever goes wrong in this block, of whatever kind, is the user's to mend: told, why, remedy."""
    try:
        yield
    except Exception as error:
        raise UserError(f"{told} ({first_line(error)}): {remedy}") from None


def run_command(main) -> None:
    """Run `main(argv)` as a program and exit: 0 or main's own return value, 2 for a user's mistake, 130 for Ctrl-C."""
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        message, code = "interrupted", 130
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
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error):
        return ("error: out of memory. Set a smaller --micro_batch_size (sequences at once; a training step keeps its "
                "tokens, in more micro-steps), a smaller --block_size or a smaller model")  # fmt: skip
    if isinstance(error, OSError):
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "make room on the disk" if full else "check that path and its permissions"
        where = f" {error.filename!r}" if error.filename else ""
        return f"error: {error.strerror or error}:{where} — {remedy}, then run the same command again"
    return None


def catch_signals() -> list[int]:
    """A list that receives the signal's number at the first Ctrl-C or SIGTERM; the second one ends the program."""
    caught: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: (caught.append(number), signal.signal(number, signal.SIG_DFL)))
    return caught


# ---------------------------------------------------------------------------------------------------------------------
# Options


def read_options(options: type, argv: list[str], program: str, config_files: bool = True):
    """Make the dataclass `options` from defaults < config file < flags; a mistake in them ends the program, code 2.

    argv: flags, `--key=value`, after an optional first argument that names a config file: plain Python assignments,
    run in a namespace of their own and treated exactly as flags placed before the others, so that both share one
    parser, one type check and one error text. Names that begin with _, modules, functions and classes are scratch.
    """
    import tyro

    file_flags, flags = [], list(argv)
    path = Path(flags.pop(0)) if config_files and flags and not flags[0].startswith("-") else None
    if path:
        known = ", ".join(sorted(map(str, path.parent.glob("*.py")))) or "none"
        require(path.is_file(), f"config file '{path}' does not exist. Python files in '{path.parent}': {known}")
        try:
            values = runpy.run_path(str(path))
        except (Exception, SystemExit) as error:
            raise UserError(f"config file '{path}' stopped with {first_line(error)}") from None
        settings = {key: value for key, value in values.items() if not key.startswith("_") and not callable(value)}
        file_flags = [f"--{key}={value}" for key, value in settings.items() if not isinstance(value, ModuleType)]
    try:
        return tyro.cli(options, args=file_flags + flags, prog=f"python {program}", use_underscores=True,
                        config=(tyro.conf.FlagConversionOff,))  # fmt: skip
    except SystemExit as exit:
        if exit.code and path:
            print(f"(read from {path} first, then from the command line)", file=sys.stderr)
        raise


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
        if keep_old and path.is_file():
            os.replace(path, keep_old)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value) -> None:
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    replace_file(path, lambda file: file.write(text.encode("utf-8")))


def sha256_of_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# A run's folder: config.json, log.jsonl (a row of figures per line), loss.png, summary.json


def claim_folder(out: Path, resume: bool, overwrite: bool) -> None:
    """Never destroy a run unasked: raises UserError where `out` holds one and neither way to treat it was chosen."""
    there = (out / "config.json").is_file() or bool(list(out.glob("*.pt")))
    told = f"'{out}' holds a run: type --resume=True to go on with it, --overwrite=True to delete it, or --out=FOLDER"
    require(not there or resume or overwrite, told)
    if there and overwrite:
        shutil.rmtree(out)


class Log:
    """The log of the run in folder `out`, which goes on after `step`: later rows, of a run cut off, are dropped."""

    def __init__(self, out: Path, step: int, config: dict):
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "config.json", config)
        self.out, self.path, self.wandb = out, out / "log.jsonl", None
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []
        whole = (json.loads(line) for line in lines if line.startswith("{") and line.endswith("}"))  # a kill cuts lines
        self.rows = [row for row in whole if row["step"] <= step]
        content = "".join(json.dumps(row) + "\n" for row in self.rows)
        replace_file(self.path, lambda file: file.write(content.encode("utf-8")))
        if config["wandb"]:
            import wandb

            self.wandb = wandb.init(project="nanoloop", name=out.name, dir=out, config=config)

    def write(self, row: dict) -> None:
        """Print the row for people and append it for programs."""
        print(" | ".join(f"{key} {show(value)}" for key, value in row.items() if value is not None), flush=True)
        self.rows.append(row)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self.wandb:
            self.wandb.log(row, step=row["step"])

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

    def finish(self, summary: dict) -> None:
        """Print the summary as `key: value` lines, write it to summary.json, draw the losses."""
        write_json(self.out / "summary.json", summary)
        print("---", *(f"{key}: {show(value)}" for key, value in summary.items()), sep="\n")
        self.draw()
        if self.wandb:
            self.wandb.summary.update(summary)
            self.wandb.finish()


def show(value) -> str:
    """A figure for people: digits after the point where it is small, thousands marked where it is large."""
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.4f}" if abs(value) < 100 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def peak_memory_mb() -> float | None:
    """The most main memory this process has held, in MiB; None where the system does not tell (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    unit = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts bytes, Linux kibibytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
