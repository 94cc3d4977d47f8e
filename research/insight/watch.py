"""Follow a run in the terminal: python -m research watch RUN

Reads log.jsonl alone. Ends when the run ends, or ten minutes after its last line. --track=trackio
sends the figures to a tracker, from outside: one that fails ends no training.
"""

import json
import math
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Literal

from tyro.conf import Positional

from nanoloop.options import print_safely
from nanoloop.runlog import format_figures, read_rows

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 60  # of the curve, in characters
SHOWN = "step loss val_loss val_bpb tokens_per_second seconds_left".split()


@dataclass(frozen=True)
class WatchOptions:
    """Follow a run: curve, speed, time left, findings."""

    run: Positional[str]  # folder of the run
    once: bool = False  # print one view and end, for programs
    # the tracker that gets all figures; tensorboard: in runs/<name of the run>
    track: Literal["trackio", "wandb", "tensorboard"] | None = None


class TensorBoard:
    """A writer of TensorBoard's files, with the calls of the other trackers."""

    def __init__(self, project: str, name: str, config: dict):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(f"runs/{name}")
        self.writer.add_text("config", json.dumps(config))
        self.finish = self.writer.close

    def log(self, figures: dict, step: int) -> None:
        for name, value in figures.items():
            if value is not None:
                self.writer.add_scalar(name, value, step)


def curve(values: list[float]) -> str:
    """Draw the last value of each of at most WIDTH parts; the highest bar is the largest."""
    shown = values[:: -(len(values) // WIDTH + 1)][::-1]
    low = min(shown)
    step = (max(shown) - low) / 7 or 1
    return "".join(BARS[int((value - low) / step)] for value in shown)


def view(rows: list[dict], is_silent: bool):
    """Yield lines on a run, by the rows of its log; is_silent: no new one for a minute."""
    if not rows:
        yield "no line yet: the run has not started, or takes its first step"
        return
    last = rows[-1]
    yield " | ".join(format_figures({key: last.get(key) for key in SHOWN}, " "))
    losses = [row["loss"] for row in rows if math.isfinite(row.get("loss", math.nan))]
    if not math.isfinite(last.get("loss", 0.0)):
        yield "loss not finite: lower the learning rates"
    if losses:
        yield f"{curve(losses)} loss {losses[0]:.3f} to {losses[-1]:.3f}"
        if min(losses[-5:]) > 1.05 * min(losses):
            yield f"loss rising: it was {min(losses):.3f}"
    speeds = [row["tokens_per_second"] for row in rows[1:] if "tokens_per_second" in row]
    if speeds and speeds[-1] < 0.5 * median(speeds):
        yield f"tokens/s falling: {speeds[-1]:,.0f}, usually {median(speeds):,.0f}"
    ends = [row["step"] for row in rows if row.get("seconds_left", 0) is None]
    if ends and ends[-1] == last["step"]:
        yield f"finished after {last['step']} steps"
        return
    if ends:
        yield f"resumed after step {ends[-1]}"
    if is_silent:
        yield "no new line for a minute: it evaluates, or was stopped or killed"


def is_finished(folder: Path, rows: list[dict]) -> bool:
    """Say whether the summary in a run's folder is that of its last row."""
    summary = folder / "summary.json"
    steps = json.loads(summary.read_bytes())["steps"] if summary.is_file() else None
    return bool(rows) and steps == rows[-1]["step"]


def main(options: WatchOptions) -> None:
    folder = Path(options.run)
    path = folder / "log.jsonl"
    tracker = None
    if options.track:
        config = json.loads((folder / "config.json").read_bytes())
        start = TensorBoard
        if options.track != "tensorboard":
            start = import_module(options.track).init
        tracker = start(project="nanoloop", name=folder.name, config=config)
    started = time.time()
    shown = None
    sent = -1  # the last step that the tracker has
    is_over = options.once
    while True:
        rows = read_rows(path)
        silent = time.time() - (path.stat().st_mtime if rows else started)
        lines = list(view(rows, silent > 60))
        if lines != shown:
            print_safely(*lines, sep="\n")
        shown = lines
        # The last row may still get the figures of an evaluation.
        for row in rows if is_over else rows[:-1]:
            if tracker and row["step"] > sent:
                figures = dict(row)
                sent = figures.pop("step")
                tracker.log(figures, step=sent)
        if is_over:
            break
        is_over = silent > 600 or is_finished(folder, rows)
        time.sleep(0 if is_over else 1)
    if tracker:
        tracker.finish()
