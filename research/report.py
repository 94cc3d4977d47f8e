"""The page of what was tried: python -m research report

Writes report.html, which needs nothing beside it, and progress.png into the ledger's folder. Whatever a candidate or
its author wrote is untrusted: it is escaped and marked, and the page's policy runs no script but the one that sorts.
"""

import base64
import hashlib
import html
import io
import math
from pathlib import Path
from string import Template

import numpy as np

from console import replace_file, require
from research.ledger import Ledger, LogOptions
from research.verdict import LEVEL, Night, Noise

TEXTS = {"hypothesis": "its author's hypothesis", "diff": "the change", "stderr": "printed by the candidate"}
ARMS = {"baseline": "#6e7781", "candidate": "#0969da"}
COLOURS = {"keep": "#1a7f37", "undecided": "#bf8700", "reject": "#8c959f"}


def safe(text) -> str:
    """Text from outside for the page: escaped, and nothing in it that reorders or hides what is shown."""
    return html.escape("".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in str(text)))


def number(value, form: str = "+.4f") -> str:
    return format(value, form) if isinstance(value, int | float) and math.isfinite(value) else ""


def chart(height: float, **labels):
    from matplotlib.figure import Figure

    return Figure(figsize=(8, height), layout="constrained").subplots(subplot_kw=labels)


def png(axes) -> bytes:
    axes.legend(fontsize=8)
    axes.figure.savefig(file := io.BytesIO(), dpi=100)
    return file.getvalue()


def curves(row: dict) -> str:
    """Training loss against tokens, a line for each seed of each arm."""
    arms = row.get("curves") or {}
    late = [loss for runs in arms.values() for run in runs for _, loss in run[len(run) // 5 :]]
    if not late or not np.isfinite(late).all() or max(map(abs, late)) > 1e9:
        return ""
    shown = min(late) - 0.02, max(late) + 0.02  # the first fall would hide the rest
    axes = chart(2.6, xlabel="tokens", ylabel="training loss", ylim=shown)
    for arm, runs in arms.items():
        for number, run in enumerate(runs):
            label = {} if number else {"label": f"{arm}, {len(runs)} seeds"}
            axes.plot(*np.array(run, float).T, color=ARMS[arm], alpha=0.6, lw=1, **label)
    return f'<img alt="loss curves" src="data:image/png;base64,{base64.b64encode(png(axes)).decode()}">'


def trial(row: dict) -> str:
    """One tbody: a line of figures, and below it what was changed and why, folded."""
    added, removed = row.get("added") or 0, row.get("removed") or 0
    verdict, (low, high) = row.get("verdict") or row["state"], map(number, row.get("interval") or ("", ""))
    parts = (("validation", row.get("pairs") or []), ("test", row.get("confirmation") or []))
    facts = [f"{split}, seed {pair['seed']}: {number(pair['baseline'], '.4f')} → {number(pair['candidate'], '.4f')}"
             for split, pairs in parts for pair in pairs if "candidate" in pair and "baseline" in pair]  # fmt: skip
    cells = [(row["id"],), (verdict,), (number(row.get("mean")),), (low and f"{low} to {high}", low), (len(facts),),
             (f"+{added} −{removed}", added - removed)]  # as shown, as sorted where that differs  # fmt: skip
    line = [f'<td data-value="{safe(cell[-1])}">{safe(cell[0])}</td>' for cell in cells]
    told = [f'<pre class="untrusted" data-from="untrusted text, {source}:">{safe(row[name])}</pre>'
            for name, source in TEXTS.items() if row.get(name)]  # fmt: skip
    told += [curves(row), f"<pre>{chr(10).join(facts)}</pre>" if facts else ""]
    fold = f"<details><summary>{safe(row.get('reason') or 'not finished')}</summary>{''.join(told)}</details>"
    details = f'<tr><td colspan="{len(cells)}">{fold}</td></tr>'
    return f'<tbody class="{safe(verdict.split()[0])}"><tr>{"".join(line)}</tr>{details}</tbody>'


def progress(trials: list[dict]) -> bytes:
    """What each measured trial reached, and the recipe's own score, trial by trial."""
    axes = chart(3.6, xlabel="trial", ylabel="val_bpb (bits per byte)")
    means = [[np.mean([pair[arm] for pair in row["pairs"] if arm in pair]) for arm in ARMS] for row in trials]
    axes.plot([baseline for baseline, _ in means], color="black", lw=1, label="the recipe of the time")
    for verdict, colour in COLOURS.items():
        points = [(place, means[place][1]) for place, row in enumerate(trials) if row["verdict"].startswith(verdict)]
        axes.plot([x for x, _ in points], [y for _, y in points], "o", color=colour, label=f"{verdict} ({len(points)})")
    if means:  # a few hopeless ones shall not flatten the rest
        low, high = np.quantile(means, [0, 0.9])
        axes.set_ylim(low - 0.01, high + max(0.02, high - low))
    return png(axes)


def page(rows: list[dict], picture: bytes) -> str:
    trials, night = [row for row in rows if row["kind"] == "trial"], Night.of(rows)
    floors = [Noise.of(row["differences"]) for row in rows if row["kind"] == "noise" and row.get("differences")][-1:]
    script, template = (Path(__file__).with_name(name).read_text(encoding="utf-8") for name in ("page.js", "page.html"))
    return Template(template).substitute(
        script=script, script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        picture=base64.b64encode(picture).decode(), trials="\n".join(map(trial, reversed(trials))), tried=len(trials),
        measured=night.trials, kept=sum((row.get("verdict") or "").startswith("keep") for row in trials),
        floor=f"{floors[0].sd:.4f}" if floors else "unknown", floor_pairs=floors[0].df if floors else 0,
        left=f"{night.left():.4f}", given=f"{sum(share for share, _ in night.shares()):.4f}",
        level=f"{LEVEL:g}", alpha=f"{night.alpha():.2g}")  # fmt: skip


def main(chosen: LogOptions) -> None:
    folder = Path(chosen.folder)
    require((folder / "ledger.jsonl").is_file(), f"--folder={folder} holds no ledger: judge a change first, with try")
    rows = Ledger(folder).trials()
    scored = [row for row in rows if row["kind"] == "trial" and row.get("differences") and row.get("verdict")]
    kinds = [(row["config"], row["budget"], row["hardware"]) for row in scored]
    picture = progress([row for row, kind in zip(scored, kinds) if kind == kinds[-1]])  # only these compare
    replace_file(folder / "progress.png", lambda file: file.write(picture))
    replace_file(folder / "report.html", lambda file: file.write(page(rows, picture).encode()))
    print(f"{folder / 'report.html'} and {folder / 'progress.png'}: {len(rows)} rows")
