"""The page of what was tried: python -m research report

Writes report.html, which needs no other file, and progress.png into the ledger's folder. The text
of candidates and their authors is untrusted: it is escaped and marked, and the page's policy runs
no script except the one that sorts.
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
            curve = pair.get(arm, {}).get("curve")
            if curve:
                runs.append((arm, np.array(curve, float)))
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
    """Draw each trial's score beside the recipe's, on the validation split: a Figure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel="trial", ylabel="val_bpb (bits per byte)")
    axes.set_xlim(0.5, max(1, len(trials)) + 0.5)
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    means = [np.mean(scores(row["pairs"], "val"), axis=0) for row in trials]
    means = np.reshape(means, (-1, 2))  # (trials, 2) bits per byte of baseline and candidate
    numbers = np.arange(1, len(trials) + 1)
    axes.plot(numbers, means[:, 0], "k.-", lw=1, label="the recipe of that time")
    for verdict, colour in COLOURS.items():
        chosen = np.array([row["verdict"].startswith(verdict) for row in trials], bool)
        label = f"{verdict} ({chosen.sum()})"
        axes.plot(numbers[chosen], means[chosen, 1], "o", color=colour, label=label)
    if trials:  # a few hopeless ones must not flatten the rest
        low, high = np.quantile(means, [0, 0.9])
        axes.set_ylim(low - max(0.01, (high - low) / 10), high + max(0.02, high - low))
    axes.legend(fontsize=8)
    return figure


def to_base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def main(options: LogOptions) -> None:
    import jinja2

    folder = Path(options.folder)
    source = Path(__file__).parent
    has_ledger = (folder / "ledger.jsonl").is_file()
    require(has_ledger, f"--folder={folder} holds no ledger: judge a change first, with try")
    rows = Ledger(folder).trials()
    trials = [row | {"curves": curves(row)} for row in rows if row["kind"] == "trial"]
    scored = [row for row in trials if row.get("differences") and row.get("verdict")]
    # Scores compare within one recipe, budget and machine.
    kinds = [(row["config"], row["budget"], row["hardware"]) for row in scored]
    comparable = [row for row, kind in zip(scored, kinds) if kind == kinds[-1]]
    picture = io.BytesIO()
    progress_figure(comparable).savefig(picture, dpi=100)
    noise = [row for row in rows if row["kind"] == "noise" and row.get("differences")]
    script = (source / "page.js").read_text(encoding="utf-8")
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(source), autoescape=True, finalize=visible, trim_blocks=True
    )
    text = templates.get_template("page.html").render(
        trials=trials[::-1],
        night=Night.of(rows),
        level=LEVEL,
        script=script,
        script_hash=to_base64(hashlib.sha256(script.encode()).digest()),
        picture=to_base64(picture.getvalue()),
        floor=Noise.of(noise[-1]) if noise else None,
    )
    replace_file(folder / "progress.png", lambda file: file.write(picture.getvalue()))
    replace_file(folder / "report.html", lambda file: file.write(text.encode()))
    print(f"{folder / 'report.html'} and {folder / 'progress.png'}: {len(rows)} rows")
