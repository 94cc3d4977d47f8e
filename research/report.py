"""The page of what was tried: python -m research report

Writes report.html, which needs nothing beside it, and progress.png into the ledger's folder. Whatever a candidate or
its author wrote is untrusted: it is escaped and marked, and the page's policy runs no script but the one that sorts.
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
from research.ledger import Ledger
from research.runs import ARMS, scores
from research.verdict import LEVEL, Night, Noise

COLOURS = {"keep": "#1a7f37", "undecided": "#bf8700", "reject": "#8c959f"}


@dataclass(frozen=True)
class LogOptions:
    """The trials in the ledger."""

    id: Annotated[str | None, tyro.conf.Positional] = None  # of a trial
    folder: str = "out/research"  # where the ledger is
    json: bool = False  # print rows, for programs


def visible(value):
    """Text without what reorders, hides or commands; anything else as it is."""
    return (
        "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in value)
        if type(value) is str
        else value
    )


def curves(row: dict) -> dict | None:
    """Training loss against tokens, a line for each seed of each arm: points of an image of 1000 by 300."""
    runs = [
        (arm, np.array(pair[arm]["curve"], float))
        for pair in row.get("pairs", [])
        for arm in ARMS
        if pair.get(arm, {}).get("curve")
    ]
    if not runs or not all(np.isfinite(run).all() and (abs(run) < 1e15).all() for _, run in runs):
        return None
    late = np.concatenate(
        [run[len(run) // 5 :, 1] for _, run in runs]
    )  # the first fall would hide the rest
    low, high, tokens = late.min() - 0.02, late.max() + 0.02, max(run[-1, 0] for _, run in runs)
    lines = [
        (
            arm,
            " ".join(
                f"{1000 * x / max(tokens, 1):.0f},{300 * (high - y) / (high - low):.0f}"
                for x, y in run
            ),
        )
        for arm, run in runs
    ]
    return {"low": low, "high": high, "tokens": int(tokens), "lines": lines}


def progress(trials: list[dict]) -> bytes:
    """What each measured trial reached, and the recipe's own score, trial by trial: a PNG."""
    from matplotlib.figure import Figure

    axes = Figure(figsize=(8, 3.6), layout="constrained").subplots()
    axes.set(
        xlabel="trial", ylabel="val_bpb (bits per byte)", xlim=(0.5, max(1, len(trials)) + 0.5)
    )
    means = [np.mean(scores(row["pairs"], "val"), axis=0) for row in trials]
    axes.plot(
        range(1, len(means) + 1),
        [baseline for baseline, _ in means],
        "k.-",
        lw=1,
        label="the recipe then",
    )
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    for verdict, colour in COLOURS.items():
        places = [place for place, row in enumerate(trials) if row["verdict"].startswith(verdict)]
        points = np.array([(place + 1, means[place][1]) for place in places]).reshape(-1, 2)
        axes.plot(*points.T, "o", color=colour, label=f"{verdict} ({len(points)})")
    if means:  # a few hopeless ones shall not flatten the rest
        low, high = np.quantile(means, [0, 0.9])
        axes.set_ylim(low - max(0.01, (high - low) / 10), high + max(0.02, high - low))
    axes.legend(fontsize=8)
    axes.figure.savefig(file := io.BytesIO(), dpi=100)
    return file.getvalue()


def main(chosen: LogOptions) -> None:
    import jinja2

    folder, here = Path(chosen.folder), Path(__file__).parent
    require(
        (folder / "ledger.jsonl").is_file(),
        f"--folder={folder} holds no ledger: judge a change first, with try",
    )
    rows = Ledger(folder).trials()
    trials = [row | {"curves": curves(row)} for row in rows if row["kind"] == "trial"]
    scored = [row for row in trials if row.get("differences") and row.get("verdict")]
    kinds = [(row["config"], row["budget"], row["hardware"]) for row in scored]
    picture = progress(
        [row for row, kind in zip(scored, kinds) if kind == kinds[-1]]
    )  # only these compare
    loader, script = jinja2.FileSystemLoader(here), (here / "page.js").read_text(encoding="utf-8")
    templates = jinja2.Environment(
        loader=loader, autoescape=True, finalize=visible, trim_blocks=True
    )
    text = templates.get_template("page.html").render(
        trials=trials[::-1],
        night=Night.of(rows),
        level=LEVEL,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        picture=base64.b64encode(picture).decode(),
        floor=[
            Noise.of(row["differences"])
            for row in rows
            if row["kind"] == "noise" and row.get("differences")
        ][-1:],
    )
    replace_file(folder / "progress.png", lambda file: file.write(picture))
    replace_file(folder / "report.html", lambda file: file.write(text.encode()))
    print(f"{folder / 'report.html'} and {folder / 'progress.png'}: {len(rows)} rows")
