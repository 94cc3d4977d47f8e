"""A run's folder: config.json, log.jsonl, loss.png, summary.json."""

import contextlib
import gc
import json
import shlex
from dataclasses import dataclass
from pathlib import Path

from nanoloop.files import locked, remove, write_if_possible, write_json
from nanoloop.options import first_line, print_safely, reading, require
from nanoloop.ranks import rank

FEW_STEPS = 100  # a run of fewer hardly has a schedule
RUN_FILES = (
    "config.json",
    "log.jsonl",
    "loss.png",
    "summary.json",
    "last.pt",
    "previous.pt",
    "best.pt",
    "wandb.id",
)


def check_folder(out: Path, resume: bool, overwrite: bool) -> None:
    """Raise UserError if `out` holds a run, without resume or overwrite."""
    has_run = list(out.glob("*.pt")) or (out / "summary.json").exists()
    require(
        resume or overwrite or not has_run,
        f"'{out}' holds a run: type --resume=True to resume it, --overwrite=True to delete it, "
        "or --out=FOLDER",
    )


def default_out(argv: list[str]) -> str:
    """Return the folder of a run that names none: out/<name of its config file>."""
    has_config = bool(argv) and not argv[0].startswith("-")
    return f"out/{Path(argv[0]).stem}" if has_config else "out/default"


def locked_run(out: Path, eval_only: bool):
    """Lock the folder of a run, on rank 0, for as long as the context is active."""
    if rank() > 0 or eval_only:
        return contextlib.nullcontext()
    message = f"'{out}' is in use by another run: wait for its end, or type --out=FOLDER"
    return locked(out / ".lock", message)


@dataclass
class RunLog:
    """The log of a run, from `step` steps and `seconds` of training on.

    config: the run's options. n_params, flops_per_token: the model's. peak_flops: FLOPs per second
    of all devices at most; None leaves their used share, "mfu", None too. Nothing is written on
    ranks other than 0 and for evaluation alone.
    """

    out: Path
    config: dict
    step: int
    seconds: float
    n_params: int
    flops_per_token: float
    peak_flops: float | None

    def __post_init__(self):
        self.path = self.out / "log.jsonl"
        self.wandb = None
        self.enabled = rank() == 0 and not self.config["eval_only"]
        if not self.enabled:
            return
        self.out.mkdir(parents=True, exist_ok=True)
        for name in RUN_FILES:  # other files in the folder stay
            remove(self.out / f"{name}.tmp")
            if self.config["overwrite"]:
                remove(self.out / name)
        write_json(self.out / "config.json", self.config)
        # Rows after `step` are dropped: the run computes them again.
        self.rows = [row for row in read_rows(self.path) if row["step"] <= self.step]
        self.is_complete = self.write_rows()
        if self.config["wandb"]:
            self.wandb = start_wandb(self.out, self.config)

    def write_rows(self) -> bool:
        """Write all rows anew; return False if the disk does not take them."""
        text = "".join(json.dumps(row) + "\n" for row in self.rows)
        return write_if_possible(self.path, lambda file: file.write(text.encode()))

    def append_row(self, row: dict) -> None:
        self.rows.append(row)
        # After a failure, or if the user has deleted the file, all rows are written anew.
        if self.is_complete and self.path.is_file():
            with contextlib.suppress(OSError), open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
                return
        self.is_complete = self.write_rows()

    def speed(self, steps: int, seconds: float) -> dict:
        per_second = steps * self.config["batch_tokens"] / seconds if seconds else 0.0
        flops = per_second * self.flops_per_token
        mfu = flops / self.peak_flops if self.peak_flops else None
        return {"tokens_per_second": per_second, "mfu": mfu}

    def write(self, step: int, seconds: float, progress: float, figures: dict) -> None:
        """Print a row of figures for people and append it to log.jsonl for programs."""
        gc.collect(1)  # tune_process has turned the automatic collector off
        if not self.enabled:
            return
        row = {
            "step": step,
            "tokens": step * self.config["batch_tokens"],
            "seconds": seconds,
            **figures,
            **self.speed(step - self.step, seconds - self.seconds),
            "seconds_left": seconds / progress - seconds if progress < 1 else None,
        }
        self.step = step
        self.seconds = seconds
        self.append_row(row)
        self.show(step, row)
        is_early = len(self.rows) == 2 and progress < 1  # the first row's step is not typical
        if is_early and not self.config["max_steps"] and step / progress < FEW_STEPS:
            print_safely(
                f"warning: about {step / progress:.0f} steps fit into this run, too few for a "
                "schedule: set fewer --batch_tokens, a smaller model or a longer run"
            )

    def add(self, step: int, figures: dict) -> None:
        """Print the figures of an evaluation and add them to the row of the step."""
        if not (self.enabled and figures):
            return
        if not self.rows or self.rows[-1]["step"] != step:
            self.rows.append({"step": step, "tokens": step * self.config["batch_tokens"]})
        self.rows[-1] |= figures
        self.is_complete = self.write_rows()
        self.show(step, {"step": step, **figures})

    def show(self, step: int, figures: dict) -> None:
        print_safely(" | ".join(format_figures(figures, " ")))
        self.track(lambda run: run.log(figures, step=step))

    def track(self, send) -> None:
        """Call send(wandb's run); if that fails, training continues without it."""
        if self.wandb is None:
            return
        try:
            send(self.wandb)
        except Exception as error:  # wandb raises many types
            message = f"warning: Weights & Biases failed ({first_line(error)}): "
            print_safely(message + "continuing without it; log.jsonl has all figures")
            self.wandb = None

    def pause(self, step: int) -> None:
        if self.enabled:
            self.draw()
            print_safely(f"stopped and saved at step {step}: resume with --resume=True")

    def draw(self) -> None:
        """Draw loss.png: training and validation loss against tokens."""
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

    def finish(
        self, step: int, seconds: float, total_seconds: float, memory_mb: float, figures: dict
    ) -> dict:
        """Print the summary, write it to summary.json, draw the losses; return the summary."""
        if not self.enabled:
            lines = format_figures(figures, ": ") or ["no validation data"]
            print_safely(*lines, sep="\n")
            return figures
        summary = {
            **figures,
            "train_seconds": seconds,
            "total_seconds": total_seconds,
            "tokens": step * self.config["batch_tokens"],
            "steps": step,
            **self.speed(step, seconds),
            "peak_memory_mb": memory_mb,
            "params": self.n_params,
        }
        write_json(self.out / "summary.json", summary)
        print_safely("---", *format_figures(summary, ": "), f"run: {self.out}", sep="\n")
        print_safely(f'next: python sample.py {shlex.quote(str(self.out))} --prompt="TEXT"')
        self.draw()
        self.track(lambda run: run.summary.update(summary))
        self.track(lambda run: run.finish())
        return summary


def resumed_summary(out: Path, step: int, progress: float) -> dict | None:
    """Say where a run resumes; return its summary if it is finished, else None."""
    summary = {}
    with contextlib.suppress(OSError, ValueError):
        summary = json.loads((out / "summary.json").read_bytes())
    if progress < 1 or summary.get("steps") != step:
        print_safely(f"resuming at step {step:,}, {progress:.0%} of the run")
        return None
    print_safely(
        f"'{out}' is already finished, at step {step:,}: a larger --max_steps, --max_tokens or "
        "--max_seconds continues it, --overwrite=True begins anew"
    )
    return summary


def read_rows(path: Path) -> list[dict]:
    """Read the rows of a log.jsonl; a row that a kill has cut off is left out."""
    rows = []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int) and "tokens" in row:
            rows.append(row)
    return rows


def start_wandb(out: Path, config: dict):
    """Begin a run of Weights & Biases, or continue the one that this folder has there."""
    import wandb

    options = {"project": "nanoloop", "name": out.name, "dir": out, "config": config}
    id_file = out / "wandb.id"
    if id_file.exists():
        options |= {"id": id_file.read_text(), "resume": "allow", "allow_val_change": True}
    hint = "type `wandb login`, or set WANDB_MODE=offline"
    with reading("Weights & Biases did not start", hint):
        run = wandb.init(**options)
    id_file.write_text(run.id)
    return run


def format_figures(figures: dict, separator: str) -> list[str]:
    """Format the figures that are known, each with its key."""
    known = {key: value for key, value in figures.items() if value is not None}
    return [f"{key}{separator}{format_figure(value)}" for key, value in known.items()]


def format_figure(value) -> str:
    """Format a figure for people: digits if it is small, commas if it is large."""
    if isinstance(value, float):
        if abs(value) < 10:
            return f"{value:.3g}" if 0 < abs(value) < 0.01 else f"{value:.4f}"
        return f"{value:,.1f}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
