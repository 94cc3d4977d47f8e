"""What an agent reads: the task, what is judged, guidance, and what earlier tries showed.

An agent describes its idea on a card, HYPOTHESIS.md: the fields claim, mechanism, predicted and
refuted_if, as research/task.md explains. All text of others is a string in a line of JSON, so that
it cannot pass for the loop's own words. A difference is candidate - recipe, in bits per byte of the
validation split: below 0 is better. No figure of the test split is in a brief.
"""

import ast
import difflib
import json
import re
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

from research.referee.patch import ROOT, Change, hash_of
from research.referee.verdict import Night, Noise, rounds, smallest_effect

MAX_BYTES = 11_500  # of a brief, without the task
MAX_NOTE = 1_500  # characters of a note, and of the guidance
NEWEST = 8  # kept changes, and near misses, that come first
BARREN = 5  # tries of one mechanism without a gain, after which another is asked for
MECHANISMS = (
    "optimizer",
    "schedule",
    "architecture",
    "data order",
    "initialisation",
    "system",
    "simplification",
)
FIELD = r"(?im)^\W*(claim|mechanism|predicted|refuted[ _]if)\b[*_` ]*(?:[:=]|$)"
FIGURES = "id number same_as verdict mechanism predicted tokens scale".split()


def one_line(text, length: int = 200) -> str:
    """Turn text from outside into one printable line."""
    printable = "".join(c if c.isprintable() else " " for c in str(text or ""))
    return " ".join(printable.split())[:length]


# --------------------------------------------------------------------------------------------------
# The card


def read_card(text: str) -> dict:
    """Read a hypothesis card into the fields of a row; text without fields is the claim.

    "predicted" is a number, in bits per byte, and is absent without a sign or a figure.
    """
    start, *parts = re.split(FIELD, text)
    names = [name.lower().replace(" ", "_") for name in parts[::2]]
    card = {name: one_line(value.strip(" *_`\n"), 1000) for name, value in zip(names, parts[1::2])}
    row = {"hypothesis": card.get("claim") or one_line(start, 1000)}
    if "mechanism" in card:
        word = card["mechanism"][:4].lower()
        known = [name for name in MECHANISMS if name[:4] == word]
        row["mechanism"] = [*known, "other"][0]
    number = re.search(r"[-+] ?\d*\.?\d+(e-?\d+)?", card.get("predicted", "").replace("−", "-"))
    if number:
        row["predicted"] = float(number[0].replace(" ", ""))
    if "refuted_if" in card:
        row["refuted_if"] = card["refuted_if"]
    return row


def shape_of(base: dict[str, bytes], change: Change) -> str:
    """Return a hash of what a change does, whatever it calls its new names; "" for nothing.

    Comments, docstrings and layout do not count, nor does the order of the lines. base: the tree
    that is changed.
    """
    code = " ".join(line for text in base.values() for line in bare_lines(text.decode()))
    words = set(re.findall(r"\w+", code))
    new_names: dict[str, str] = {}
    lines = []
    for path, text in sorted(change.files.items()):
        for node in ast.walk(ast.parse(text)):
            for name in bound_names(node):
                if name and name not in words:
                    new_names.setdefault(name, f"new_{len(new_names)}")

        def rename(word: re.Match) -> str:
            return new_names.get(word[0], word[0])

        old_lines = bare_lines(base.get(path, b"").decode())
        new_lines = [re.sub(r"\w+", rename, line) for line in bare_lines(text)]
        difference = difflib.unified_diff(old_lines, new_lines, n=0)
        lines += [line for line in list(difference)[2:] if line[0] in "+-"]
    return hash_of(sorted(lines)) if lines else ""


def bound_names(node: ast.AST) -> list[str]:
    """Return the names that a node gives to something."""
    if isinstance(node, ast.alias | ast.keyword):  # names that others gave
        return []
    is_stored = isinstance(getattr(node, "ctx", None), ast.Store)
    fields = ("id", "attr") if is_stored else ("name", "arg")
    return [getattr(node, field, "") for field in fields]


def bare_lines(source: str) -> list[str]:
    """Lay out source anew, without comments and docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if is_text and isinstance(node.value.value, str):
            node.value.value = ""
    return [line for line in ast.unparse(tree).splitlines() if line.strip(" '\"")]


# --------------------------------------------------------------------------------------------------
# What was tried


def is_kept(row: dict) -> bool:
    return row.get("verdict", "").startswith("keep")


def validation_mean(row: dict) -> float:
    """Return the mean difference of the first round: agents see no score on the test split."""
    return statistics.fmean(row.get("differences") or [0.0])


def near_misses(rows: list[dict]) -> list[dict]:
    """Return what was not kept but scored below the recipe, the best first."""
    near = [row for row in rows if row.get("verdict") in ("reject", "undecided")]
    return sorted((row for row in near if validation_mean(row) < 0), key=validation_mean)


def lesson(row: dict) -> str:
    """Write what an agent may know of a row as JSON, so that no text leaves its line."""
    facts = {name: row[name] for name in FIGURES if row.get(name) is not None}
    facts["pairs"] = len(row.get("differences") or [])
    if facts["pairs"]:
        facts["mean"] = round(validation_mean(row), 5)
    for name in ("reason", "hypothesis"):
        if row.get(name):
            facts[name] = one_line(row[name])
    return json.dumps(facts, ensure_ascii=False)


def summaries(tried: list[dict]) -> Iterator[dict]:
    """Yield what all tries together say: by mechanism, and of their predictions."""
    by_mechanism: dict[str, list[dict]] = {}
    for row in tried:
        if row.get("differences"):
            by_mechanism.setdefault(row.get("mechanism", "not named"), []).append(row)
    for name, rows in by_mechanism.items():
        best = round(min(map(validation_mean, rows)), 5)
        kept = sum(map(is_kept, rows))
        yield {"mechanism": name, "judged": len(rows), "kept": kept, "best_mean": best}

    predicted = [row for row in tried if row.get("predicted") and row.get("differences")]
    right = sum(validation_mean(row) * row["predicted"] > 0 for row in predicted)
    yield {"predictions": f"sign right {right} of {len(predicted)}"}

    last = [row for row in tried if row.get("mechanism")][-BARREN:]
    names = {row["mechanism"] for row in last}
    if len(last) == BARREN and len(names) == 1 and not any(map(is_kept, last)):
        yield {"ask": f"{BARREN} tries of {names.pop()} in a row gained nothing: take another"}


def judged_facts(rows: list[dict], options) -> dict:
    """Say what a change is compared with, how, and what can be seen above the noise."""
    facts = {"recipe": options.config, "budget": options.budget or "the recipe's"}
    alpha = Night.of(rows).alpha()
    pairs = [count for _, count in rounds(alpha, options.max_pairs)]
    facts |= {"pairs_at_most": pairs, "minimum_effect": -options.minimum_effect}
    facts["false_discovery_budget_left"] = round(Night.of(rows).left(), 5)
    floors = [row for row in rows if row["kind"] == "noise" and row.get("differences")]
    if floors:
        noise = Noise.of(floors[-1])
        facts["noise_deviation"] = round(noise.sd, 5)
        effect = smallest_effect(noise.sd, options.max_pairs, alpha)
        facts["kept_four_times_in_five"] = -round(max(effect, options.minimum_effect), 5)
        facts |= {name: floors[-1].get(name) for name in ("hardware", "data_folder")}
    scored = [row for row in rows if row["kind"] == "trial" and row.get("pairs")]
    for row in scored[-1:]:
        arm = "candidate" if is_kept(row) else "baseline"
        facts["val_bpb"] = row["pairs"][0].get(arm, {}).get("bpb")
    return facts


def read_note(path: Path) -> str:
    return path.read_text("utf-8", errors="replace")[:MAX_NOTE] if path.is_file() else ""


def write_brief(rows: list[dict], repo: Path, options, number: int) -> str:
    """Write the brief of an attempt: the task, then lines of JSON, below 12 kB in all.

    rows: of the ledger. repo: the loop's copy of the project.
    """
    folder = Path(options.folder).resolve()
    facts = judged_facts(rows, options) | {"python": sys.executable}
    lines = [{"judged": facts}]
    notes = sorted((ROOT / "ideas").glob("*.md"))
    texts = {"guidance": read_note(folder / "guidance.md")}
    if notes:
        texts["idea"] = read_note(notes[number % len(notes)])
    lines += [{name: text} for name, text in texts.items() if text]

    tried = [row for row in rows if row.get("verdict") and row["kind"] == "trial"]
    lines += summaries(tried)
    kept = [row for row in tried if is_kept(row)][-NEWEST:]
    ordered = [*reversed(kept), *near_misses(tried)[:NEWEST], *reversed(tried)]
    lessons = {row["id"]: lesson(row) for row in ordered}
    room = MAX_BYTES
    chosen = []
    for line in [*(json.dumps(line, ensure_ascii=False) for line in lines), *lessons.values()]:
        room -= len(line.encode("utf-8", "replace")) + 1
        if room < 0:
            break
        chosen.append(line)
    tasks = [(repo / name).read_text() for name in ("CLAUDE.md", "research/task.md")]
    return "\n".join([*tasks, *chosen, ""])
