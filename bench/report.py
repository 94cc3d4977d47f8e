"""Show figures: tables for the terminal, a row for docs/figures.md, where they were measured."""

import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

import torch

from nanoloop.runlog import format_figure

ROW_FIGURES = (  # of a row in docs/figures.md, besides all that is per second
    "memory_mb",
    "mfu_of_matmul",
    "this",
    "other",
    "val_loss",
    "seconds_to_target",
    "reached",
)


def provenance(sides: dict[str, Path]) -> dict[str, str]:
    """Return the machine, each checkout's commit (+ if files differ), and versions."""
    card = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    where = {
        "date": time.strftime("%Y-%m-%d"),
        "hardware": f"{os.cpu_count()} cores of {processor()}{card}",
    }
    for side, path in sides.items():
        where[f"{side} {path.name}"] = commit(path)
    where["torch"] = str(torch.__version__)
    where["Python"] = sys.version.split()[0]
    return where


def processor() -> str:
    """Return the name of the processor."""
    path = Path("/proc/cpuinfo")
    text = path.read_text() if path.is_file() else ""
    names = re.findall("model name\\s*: (.+)", text)
    return names[0] if names else platform.machine()


def commit(path: Path) -> str:
    """Return the commit of a checkout, with + if files differ from it; "unknown" without git."""
    command = ["git", "-C", str(path), "describe", "--always", "--dirty=+", "--exclude=*"]
    result = subprocess.run(command, capture_output=True, text=True)
    return result.stdout.strip() or "unknown"


def cell(value) -> str:
    """Format a figure; "-" stands for an unknown one."""
    if value is None:
        return "-"
    if isinstance(value, int | float) and (0 < value < 0.01 or value >= 1e9):
        return f"{value:.3g}"
    return format_figure(value)


def table(title: str, rows: dict[str, dict]) -> str:
    """Align {row: {column: figure}} in columns of 14 characters."""
    columns = list(next(iter(rows.values())))
    lines = [line(title, columns)]
    lines += [line(name, [cell(row[key]) for key in columns]) for name, row in rows.items()]
    return "\n".join(lines)


def line(name: str, cells: list[str]) -> str:
    return f"{name:<30}" + "".join(f"{text:>14}" for text in cells)


def figures_row(result: dict) -> str:
    """Return a row of docs/figures.md: what, figures, machine with versions, command."""
    figures = []
    for rows in result["tables"].values():
        for key, row in rows.items():
            if key in ROW_FIGURES or "per_second" in key:
                values = ", ".join(f"{name} {cell(value)}" for name, value in row.items())
                figures.append(f"{key} {values}")
    cells = [
        f"{', '.join(result['runs'])}; {result['repeats']} repeats",
        "; ".join(figures),
        ", ".join(f"{name} {version}" for name, version in result["where"].items()),
        f"`{result['command']}`",
    ]
    return f"| {' | '.join(cells)} |"
