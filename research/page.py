"""The page of what was tried: python -m research report

Writes report.html, which needs no other file, into the ledger's folder. The text of candidates and
their authors is untrusted: it is escaped and marked, and the page's policy runs no script except
the one that sorts.
"""

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tyro.conf import Positional

from corpus.report import templates
from nanoloop.files import replace_file
from nanoloop.options import require
from research.referee.ledger import Ledger
from research.referee.runs import scores
from research.referee.verdict import LEVEL, Night, Noise

KIND = ("config", "budget", "data", "hardware")  # only scores with the same of these compare


@dataclass(frozen=True)
class LogOptions:
    """Show the trials in the ledger."""

    id: Positional[str | None] = None  # of a trial; its beginning is enough
    folder: str = "out/research"  # of the ledger
    json: bool = False  # print rows, for programs


def visible(value):
    """Replace what reorders, hides or commands in a text; return other values as they are."""
    if type(value) is not str:  # markup, which is a kind of str, comes from this project
        return value
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in value)


def progress(trials: list[dict]) -> list[tuple[str, list]]:
    """Return the scores on the validation split by time: the recipe's, then each verdict's."""
    series = {}
    for row in trials:
        means = np.mean(scores(row["pairs"], "val"), axis=0)
        for name, bpb in zip(("recipe of that time", row["verdict"]), means):
            series.setdefault(name, []).append((row["time"], bpb))
    return list(series.items())


def settings(rows: list[dict]) -> list[tuple[float, str, list[float]]]:
    """Return each setting that `tune` scored, the best first: mean, text and score by seed.

    rows: newest first. Scores are bits per byte.
    """
    found = {}
    for row in rows[::-1]:
        if row["kind"] == "setting":
            found.setdefault(row["hypothesis"], []).append(row["bpb"])
    return sorted((np.mean(by_seed), text, by_seed) for text, by_seed in found.items())


def section(rows: list[dict]) -> dict:
    """Collect what the page shows of one kind of trial; rows: newest first."""
    trials = [row for row in rows if row["kind"] == "trial"]
    scored = [row for row in trials[::-1] if row.get("differences") and row.get("verdict")]
    floors = (Noise.of(row) for row in rows if row["kind"] == "noise" and row.get("differences"))
    return {
        "kind": rows[0],
        "trials": trials,
        "settings": settings(rows),
        "floor": next(floors, None),
        "progress": progress(scored),
    }


def open_ledger(options: LogOptions) -> Ledger:
    """Return the ledger of the options. Raises UserError if nothing was recorded there."""
    folder = Path(options.folder)
    has_ledger = (folder / "ledger.jsonl").is_file()
    hint = "name the folder of one, or begin with: python -m research noise"
    require(has_ledger, f"--folder={folder} holds no ledger: {hint}")
    return Ledger(folder)


def write_page(file: str | Path, name: str, **values) -> None:
    """Fill in a template of this folder; text is escaped, and only page.js may run."""
    path = Path(file)
    source = Path(__file__).parent
    script = (source / "page.js").read_text(encoding="utf-8")
    digest = hashlib.sha256(script.encode()).digest()
    values |= {"script": script, "script_hash": base64.b64encode(digest).decode()}
    content = templates(source, visible).get_template(name).render(values).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda file: file.write(content))


def main(options: LogOptions) -> None:
    ledger = open_ledger(options)
    rows = ledger.trials()
    kinds = {}
    for row in rows[::-1]:
        kinds.setdefault(tuple(row.get(name) for name in KIND), []).append(row)
    sections = [section(group) for group in kinds.values()]
    page = ledger.folder / "report.html"
    write_page(page, "page.html", sections=sections, night=Night.of(rows), level=LEVEL)
    print(f"{page}: {len(rows)} rows")
