"""Follow a run in the terminal: python -m research watch RUN

Reads log.jsonl alone. Ends when the run ends, or ten minutes after its last line.
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated

import tyro

from nanoloop.options import print_safely
from nanoloop.runlog import format_figures, read_rows

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 60  # of the curve, in characters
SHOWN = "step loss val_loss val_bpb tokens_per_second seconds_left".split()


@dataclass(frozen=True)
class WatchOptions:
    """Follow a run: curve, speed, time left, findings."""

    run: Annotated[str, tyro.conf.Positional] = ""  # folder of the run
    once: bool = False  # print one view and end, for programs


def curve(values: list[float]) -> str:
    """Draw the last value of each of at most WIDTH parts; the highest bar is the largest."""
    shown = values[:: -(len(values) // WIDTH + 1)][::-1]
    low = min(shown)
    step = (max(shown) - low) / 7 or 1
    return "".join(BARS[int((value - low) / step)] for value in shown)


def view(rows: list[dict], silent: float) -> list[str]:
    """Describe a run by the rows of its log, and the seconds since the last one."""
    if not rows:
        return ["no line yet: the run has not started, or takes its first step"]
    last = rows[-1]
    lines = [" | ".join(format_figures({key: last.get(key) for key in SHOWN}, " "))]
    losses = [row["loss"] for row in rows if math.isfinite(row.get("loss", math.nan))]
    if not math.isfinite(last.get("loss", 0.0)):
        lines.append("loss not finite: lower the learning rates")
    if losses:
        lines.append(f"{curve(losses)} loss {losses[0]:.3f} to {losses[-1]:.3f}")
        if min(losses[-5:]) > 1.05 * min(losses):
            lines.append(f"loss rising: it was {min(losses):.3f}")
    speeds = [row["tokens_per_second"] for row in rows[1:] if "tokens_per_second" in row]
    if speeds and speeds[-1] < 0.5 * median(speeds):
        lines.append(f"tokens/s falling: {speeds[-1]:,.0f}, usually {median(speeds):,.0f}")
    ends = [row["step"] for row in rows if row.get("seconds_left", 0) is None]
    if ends and ends[-1] == last["step"]:
        return [*lines, f"finished after {last['step']} steps"]
    if ends:
        lines.append(f"resumed after step {ends[-1]}")
    if silent > 60:
        lines.append(f"no new line for {silent:.0f} s: it evaluates, or was stopped or killed")
    return lines


def main(options: WatchOptions) -> None:
    path = Path(options.run) / "log.jsonl"
    started = time.time()
    shown = []
    while True:
        rows = read_rows(path)
        written = path.stat().st_mtime if rows else started
        silent = time.time() - written
        lines = view(rows, silent)
        if (rows, silent > 60) != shown:
            print_safely(*lines, sep="\n")
        shown = (rows, silent > 60)
        if options.once or lines[-1].startswith("finished") or silent > 600:
            return
        time.sleep(1)
