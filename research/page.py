"""The page of what was tried: python -m research report

Writes report.html, which needs no other file, into the ledger's folder. The text of candidates and
their authors is untrusted: it is escaped and marked, and the page's policy runs no script except
the one that sorts.
"""

import base64
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from nanoloop.files import replace_file
from nanoloop.options import require
from research.referee.ledger import Ledger
from research.referee.runs import ARMS, scores
from research.referee.verdict import LEVEL, Night, Noise

KIND = ("config", "budget", "data", "hardware")  # only scores with the same of these compare
COLOURS = {"keep": "#1a7f37", "undecided": "#bf8700", "reject": "#8c959f"}


@dataclass(frozen=True)
class LogOptions:
    """Show the trials in the ledger."""

    id: Annotated[str | None, tyro.conf.Positional] = None  # of a trial; its beginning is enough
    folder: str = "out/research"  # of the ledger
    json: bool = False  # print rows, for programs


def visible(value):
    """Replace what reorders, hides or commands in a text; return other values as they are."""
    if type(value) is not str:  # markup, which is a kind of str, comes from this project
        return value
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in value)


def curves(row: dict) -> dict | None:
    """Turn the training losses of a trial's runs into lines of an image of 1000 by 300."""
    runs = []
    for pair in row.get("pairs", []):
        for arm in ARMS:
            if pair.get(arm, {}).get("curve"):
                runs.append((arm, np.array(pair[arm]["curve"], float)))
    is_drawable = [(abs(run) < 1e15).all() for _, run in runs]  # false for NaN too
    if not runs or not all(is_drawable):
        return None
    # The first fall would flatten the rest.
    late = np.concatenate([run[len(run) // 5 :, 1] for _, run in runs])
    low = late.min() - 0.02
    high = late.max() + 0.02
    tokens = max(run[-1, 0] for _, run in runs)
    lines = []
    for arm, run in runs:
        x = 1000 * run[:, 0] / max(tokens, 1)
        y = 300 * (high - run[:, 1]) / (high - low)
        points = [f"{left:.0f},{top:.0f}" for left, top in zip(x, y)]
        lines.append((arm, " ".join(points)))
    return {"low": low, "high": high, "tokens": int(tokens), "lines": lines}


def progress_figure(trials: list[dict]):
    """Draw each trial's score beside the recipe's, on the validation split: a Figure.

    trials: scored ones of one kind, oldest first.
    """
    from matplotlib.dates import ConciseDateFormatter
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel="time", ylabel="val_bpb (bits per byte)")
    # (trials, 2) bits per byte of baseline and candidate
    means = np.array([np.mean(scores(row["pairs"], "val"), axis=0) for row in trials])
    times = np.array([row["time"][:19] for row in trials], "datetime64[s]")  # without the zone
    axes.plot(times, means[:, 0], "k.-", lw=1, label="the recipe of that time")
    for verdict, colour in COLOURS.items():
        chosen = np.array([row["verdict"].startswith(verdict) for row in trials], bool)
        label = f"{verdict} ({chosen.sum()})"
        axes.plot(times[chosen], means[chosen, 1], "o", color=colour, label=label)
    margin = (times[-1] - times[0]) // 20 + np.timedelta64(1, "m")
    axes.set_xlim(times[0] - margin, times[-1] + margin)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(axes.xaxis.get_major_locator()))
    # A few hopeless ones must not flatten the rest.
    low, high = np.quantile(means, [0, 0.9])
    axes.set_ylim(low - max(0.01, (high - low) / 10), high + max(0.02, high - low))
    axes.legend(fontsize=8)
    return figure


def to_base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def settings(rows: list[dict]) -> list[tuple[float, str, list[float]]]:
    """Return each setting that `tune` scored, the best first: mean, text and score by seed.

    rows: newest first. Scores are bits per byte.
    """
    found: dict[str, list[float]] = {}
    for row in rows[::-1]:
        if row["kind"] == "setting":
            found.setdefault(row["hypothesis"], []).append(row["bpb"])
    return sorted((np.mean(by_seed), text, by_seed) for text, by_seed in found.items())


def section(rows: list[dict]) -> dict:
    """Collect what the page shows of one kind of trial; rows: newest first."""
    trials = [row | {"curves": curves(row)} for row in rows if row["kind"] == "trial"]
    scored = [row for row in trials[::-1] if row.get("differences") and row.get("verdict")]
    floors = [Noise.of(row) for row in rows if row["kind"] == "noise" and row.get("differences")]
    picture = io.BytesIO()
    if scored:
        progress_figure(scored).savefig(picture, dpi=150)
    return {
        "kind": rows[0],
        "trials": trials,
        "settings": settings(rows),
        "floor": floors[0] if floors else None,
        "picture": to_base64(picture.getvalue()),
    }


def open_ledger(options: LogOptions) -> Ledger:
    """Return the ledger of the options. Raises UserError if nothing was recorded there."""
    folder = Path(options.folder)
    has_ledger = (folder / "ledger.jsonl").is_file()
    hint = "name the folder of one, or begin with: python -m research noise"
    require(has_ledger, f"--folder={folder} holds no ledger: {hint}")
    return Ledger(folder)


def main(options: LogOptions) -> None:
    import jinja2

    source = Path(__file__).parent
    ledger = open_ledger(options)
    rows = ledger.trials()
    kinds: dict[tuple, list[dict]] = {}
    for row in rows[::-1]:
        kinds.setdefault(tuple(row.get(name) for name in KIND), []).append(row)
    script = (source / "page.js").read_text(encoding="utf-8")
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(source), autoescape=True, finalize=visible, trim_blocks=True
    )
    text = templates.get_template("page.html").render(
        sections=[section(group) for group in kinds.values()],
        night=Night.of(rows),
        level=LEVEL,
        script=script,
        script_hash=to_base64(hashlib.sha256(script.encode()).digest()),
    )
    page = ledger.folder / "report.html"
    replace_file(page, lambda file: file.write(text.encode()))
    print(f"{page}: {len(rows)} rows")
