"""The page of what was tried: python -m research report

Writes report.html, which needs nothing beside it, and progress.png into the ledger's folder. Whatever a candidate or
its author wrote is untrusted: it is escaped and marked, and the page's policy runs no script but the one that sorts.
"""

import base64
import hashlib
import html
import io
import math
from dataclasses import dataclass
from pathlib import Path
from string import Template

import numpy as np

from console import read_options, replace_file, require
from research.ledger import Ledger
from research.verdict import LEVEL, Night, Noise

COLUMNS = ("trial", "verdict", "difference", "interval", "pairs", "lines")  # the last three do not fit on a phone
TEXTS = {"hypothesis": "its author's hypothesis", "diff": "the change", "stderr": "printed by the candidate"}
COLOURS = {"keep": "#1a7f37", "undecided": "#bf8700", "reject": "#8c959f"}


@dataclass(frozen=True)
class ReportOptions:
    """Write the page of what was tried."""

    folder: str = "out/research"  # where the ledger is
    level: float = LEVEL  # of the night, as in the trials


def safe(text) -> str:
    """Text from outside for the page: escaped, and nothing in it that reorders or hides what is shown."""
    return html.escape("".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in str(text)))


def untrusted(text, written_by: str) -> str:
    return f'<pre class="untrusted" data-from="untrusted text, {written_by}:">{safe(text)}</pre>' if text else ""


def number(value, form: str = "+.4f") -> str:
    return format(value, form) if isinstance(value, int | float) and math.isfinite(value) else ""


def chart(height: float, **labels):
    from matplotlib.figure import Figure

    axes = Figure(figsize=(8, height), layout="constrained").subplots()
    axes.set(**labels)
    return axes


def png(axes) -> bytes:
    axes.legend(fontsize=8)
    axes.figure.savefig(file := io.BytesIO(), dpi=100)
    return file.getvalue()


def image(content: bytes, told: str) -> str:
    return f'<img alt="{told}" src="data:image/png;base64,{base64.b64encode(content).decode()}">'


def curves(row: dict) -> str:
    """Training loss against tokens: the mean over the seeds of each arm, and their spread as a band."""
    axes, late = chart(2.6, xlabel="tokens", ylabel="training loss"), []
    for arm, colour in (("baseline", "#6e7781"), ("candidate", "#0969da")):
        runs = (row.get("curves") or {}).get(arm) or []
        if length := min(map(len, runs), default=0):
            points = np.array([run[:length] for run in runs], float).clip(-1e9, 1e9)  # (seeds, points, 2)
            tokens, loss = points[0, :, 0], points[:, :, 1]
            axes.fill_between(tokens, loss.min(0), loss.max(0), color=colour, alpha=0.2, lw=0)
            axes.plot(tokens, loss.mean(0), color=colour, label=f"{arm}, {len(runs)} seeds")
            late += [*loss[:, length // 5 :].flat]
    if not late or not np.isfinite(late).all():
        return ""
    axes.set_ylim(min(late) - 0.02, max(late) + 0.02)  # the first fall would hide the rest
    return image(png(axes), "loss curves")


def trial(row: dict) -> str:
    """One tbody: a line of figures, and below it what was changed and why, folded."""
    added, removed = row.get("added") or 0, row.get("removed") or 0
    verdict, (low, high) = row.get("verdict") or row["state"], map(number, row.get("interval") or ("", ""))
    parts = (("validation", row.get("pairs") or []), ("test", row.get("confirmation") or []))
    facts = [f"{split}, seed {pair['seed']}: {number(pair['baseline'], '.4f')} → {number(pair['candidate'], '.4f')}"
             for split, pairs in parts for pair in pairs if "candidate" in pair and "baseline" in pair]  # fmt: skip
    shown = {"trial": row["id"], "verdict": verdict, "difference": number(row.get("mean")), "pairs": len(facts),
             "interval": low and f"{low} to {high}", "lines": f"+{added} −{removed}"}  # fmt: skip
    ranks = shown | {"interval": low, "lines": added - removed}
    line = [f'<td data-value="{safe(ranks[name])}">{safe(shown[name])}</td>' for name in COLUMNS]
    told = [untrusted(row.get(name), source) for name, source in TEXTS.items()]
    told += [curves(row), f"<pre>{chr(10).join(facts)}</pre>" if facts else ""]
    fold = f"<details><summary>{safe(row.get('reason') or 'not finished')}</summary>{''.join(told)}</details>"
    details = f'<tr><td colspan="{len(COLUMNS)}">{fold}</td></tr>'
    return f'<tbody class="{safe(verdict.split()[0])}"><tr>{"".join(line)}</tr>{details}</tbody>'


def progress(trials: list[dict]) -> bytes:
    """What each measured trial reached, and the recipe's own score, trial by trial."""
    axes = chart(3.6, xlabel="trial", ylabel="val_bpb (bits per byte)")
    arms = "baseline", "candidate"
    means = [[np.mean([pair[arm] for pair in row["pairs"] if arm in pair]) for arm in arms] for row in trials]
    axes.plot([baseline for baseline, _ in means], color="black", lw=1, label="the recipe of the time")
    for verdict, colour in COLOURS.items():
        points = [(place, means[place][1]) for place, row in enumerate(trials) if row["verdict"].startswith(verdict)]
        axes.plot([x for x, _ in points], [y for _, y in points], "o", color=colour, label=f"{verdict} ({len(points)})")
    if means:  # a few hopeless ones shall not flatten the rest
        low, high = np.quantile(means, [0, 0.9])
        axes.set_ylim(low - 0.01, high + max(0.02, high - low))
    return png(axes)


def page(rows: list[dict], level: float, picture: bytes) -> str:
    trials, night = [row for row in rows if row["kind"] == "trial"], Night.of(rows, level)
    floors = [Noise.of(row["differences"]) for row in rows if row["kind"] == "noise" and row.get("differences")][-1:]
    script, template = (Path(__file__).with_name(name).read_text(encoding="utf-8") for name in ("page.js", "page.html"))
    return Template(template).substitute(
        script=script, script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        heads="".join(f"<th><button>{name}</button></th>" for name in COLUMNS), picture=image(picture, "progress"),
        trials="\n".join(map(trial, reversed(trials))), tried=len(trials), measured=night.trials, level=f"{level:g}",
        kept=sum((row.get("verdict") or "").startswith("keep") for row in trials), alpha=f"{night.alpha():.2g}",
        floor=f"{floors[0].sd:.4f}" if floors else "unknown", floor_pairs=floors[0].df if floors else 0,
        left=f"{night.left():.4f}", given=f"{sum(share for share, _ in night.shares()):.4f}")  # fmt: skip


def main(argv: list[str]) -> None:
    options = read_options(ReportOptions, argv, "-m research report", config_files=False)
    folder = Path(options.folder)
    require((folder / "ledger.jsonl").is_file(), f"--folder={folder} holds no ledger: judge a change first, with try")
    rows = Ledger(folder).trials()
    scored = [row for row in rows if row["kind"] == "trial" and row.get("differences") and row.get("verdict")]
    kinds = [(row["config"], row["budget"], row["hardware"]) for row in scored]
    picture = progress([row for row, kind in zip(scored, kinds) if kind == kinds[-1]])  # only these compare
    replace_file(folder / "progress.png", lambda file: file.write(picture))
    replace_file(folder / "report.html", lambda file: file.write(page(rows, options.level, picture).encode()))
    print(f"{folder / 'report.html'} and {folder / 'progress.png'}: {len(rows)} rows")
