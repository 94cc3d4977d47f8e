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
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from research.page import KIND
from research.referee.patch import ROOT, Change, Tree, hash_of, read_tree
from research.referee.runs import scores
from research.referee.verdict import Night, Noise, rounds, smallest_effect

INSIGHTS = ("diagnose", "analyze")  # commands whose findings on a run of the recipe are shown
TRAIN_DATA = "train_data"  # folder of the training split, for tries of the agents
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
FAILURES = ("crash", "invalid", "none")  # verdicts of what has no score
FIGURES = "id number operator parents same_as verdict mechanism predicted tokens scale".split()


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
        stems = {name[:4]: name for name in MECHANISMS}
        row["mechanism"] = stems.get(card["mechanism"][:4].lower(), "other")
    number = re.search(r"[-+] ?\d*\.?\d+(e-?\d+)?", card.get("predicted", "").replace("−", "-"))
    if number:
        row["predicted"] = float(number[0].replace(" ", ""))
    if "refuted_if" in card:
        row["refuted_if"] = card["refuted_if"]
    return row


def shape_of(base: Tree, change: Change) -> str:
    """Return a hash of what a change does, whatever it calls its new names; "" for nothing.

    Comments, docstrings and layout do not count, nor does the order of the lines. base: the tree
    that is changed.
    """
    code = "\n".join(bare(text.decode()) for text in base.values())
    words = set(re.findall(r"\w+", code))
    new_names = {}
    lines = []
    for path, text in sorted(change.files.items()):
        for node in ast.walk(ast.parse(text)):
            for name in bound_names(node):
                if name and name not in words:
                    new_names.setdefault(name, f"new_{len(new_names)}")
        old = bare(base.get(path, b"").decode())
        new = re.sub(r"\w+", lambda word: new_names.get(word[0], word[0]), bare(text))
        difference = difflib.unified_diff(old.splitlines(), new.splitlines(), n=0)
        lines += [line for line in difference if line[0] in "+-"]
    return hash_of(sorted(lines)) if lines else ""


def bound_names(node: ast.AST) -> list[str]:
    """Return the names that a node gives to something."""
    if isinstance(node, ast.alias | ast.keyword):  # names that others gave
        return []
    is_stored = isinstance(getattr(node, "ctx", None), ast.Store)
    fields = ("id", "attr") if is_stored else ("name", "arg")
    return [getattr(node, field, "") for field in fields]


def bare(source: str) -> str:
    """Lay out source anew, without comments and docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value = ast.Constant("")
    lines = ast.unparse(tree).splitlines()
    return "\n".join(line for line in lines if line.strip(" '\""))


# --------------------------------------------------------------------------------------------------
# What was tried


def kind_of(row: dict) -> dict:
    return {name: row.get(name) for name in KIND}


def comparable(rows: list[dict], floor: dict) -> list[dict]:
    """List the ended trials of the recipe, budget, machine and data of a noise floor."""
    return [
        row
        for row in rows
        if row["kind"] == "trial" and row.get("verdict") and kind_of(row) == kind_of(floor)
    ]


def is_kept(row: dict) -> bool:
    return row.get("verdict", "").startswith("keep")


def validation_mean(row: dict) -> float:
    """Return the mean difference of the first round: agents see no score on the test split."""
    return statistics.fmean(row.get("differences") or [0.0])


def near_misses(rows: list[dict]) -> list[dict]:
    """List the trials that were judged and not kept, the best first."""
    missed = [row for row in rows if row["verdict"] in ("reject", "undecided")]
    return sorted(missed, key=validation_mean)


def lesson(row: dict) -> dict:
    """Return what an agent may know of a row; each text is one line."""
    facts = {name: row[name] for name in FIGURES if row.get(name) is not None}
    facts["pairs"] = len(row.get("differences") or [])
    if facts["pairs"]:
        facts["mean"] = round(validation_mean(row), 5)
    for name in ("reason", "hypothesis"):
        facts[name] = one_line(row.get(name))
    return facts


def summaries(tried: list[dict]) -> Iterator[dict]:
    """Yield what all tries together say: by mechanism, of their failures and predictions."""
    scored = [row for row in tried if row.get("differences")]
    for name in (*MECHANISMS, "other", None):
        rows = [row for row in scored if row.get("mechanism") == name]
        if rows:
            kept = sum(map(is_kept, rows))
            best = round(min(map(validation_mean, rows)), 5)
            yield {"mechanism": name, "judged": len(rows), "kept": kept, "best_mean": best}

    reasons = [one_line(row["reason"]) for row in tried if row["verdict"] in FAILURES]
    classes = Counter(" ".join(reason.split()[:3]) for reason in reasons)
    yield {"failures": dict(classes.most_common(NEWEST))}

    predicted = [row for row in scored if row.get("predicted")]
    right = sum(validation_mean(row) * row["predicted"] > 0 for row in predicted)
    yield {"predictions": f"sign right {right} of {len(predicted)}"}

    last = [row for row in tried if row.get("mechanism")][-BARREN:]
    names = {row["mechanism"] for row in last}
    if len(last) == BARREN and len(names) == 1 and not any(map(is_kept, last)):
        yield {"ask": f"{BARREN} tries of {names.pop()} in a row gained nothing: take another"}


def judged_facts(rows: list[dict], repo: Path, options, floor: dict) -> dict:
    """Say what a change is compared with, how, and what can be seen above the noise."""
    night = Night.of(rows)
    alpha = night.alpha()
    noise = Noise.of(floor)
    effect = smallest_effect(noise.sd, options.max_pairs, alpha)
    facts = kind_of(floor) | {
        "pairs_at_most": [count for _, count in rounds(alpha, options.max_pairs)],
        "minimum_effect": -options.minimum_effect,
        "false_discovery_budget_left": round(night.left(), 5),
        "noise_deviation": round(noise.sd, 5),
        "kept_four_times_in_five": -round(max(effect, options.minimum_effect), 5),
    }
    tree = hash_of(sorted(read_tree(repo).items()))
    for row in comparable(rows, floor):
        baseline = [pair[0] for pair in scores(row.get("pairs", []), "val")]
        if baseline and row.get("tree") == tree:  # the newest comes last
            facts["val_bpb"] = round(statistics.fmean(baseline), 5)
    return facts


def write_brief(rows: list[dict], repo: Path, options, number: int, floor: dict) -> str:
    """Write the brief of an attempt: the task, then lines of JSON, below 12 kB in all.

    rows: of the ledger. repo: the loop's copy of the project. floor: the row of the noise floor.
    """
    folder = Path(options.folder).resolve()
    facts = judged_facts(rows, repo, options, floor)
    facts |= {"python": sys.executable, "train_data": str(folder / TRAIN_DATA)}
    lines = [{"judged": facts}]
    texts = [(name, folder / f"{name}.md") for name in ("guidance", *INSIGHTS)]
    notes = sorted((ROOT / "ideas").glob("*.md"))
    if notes:
        texts.append(("idea", notes[number % len(notes)]))
    for name, path in texts:
        if path.is_file():
            lines.append({name: path.read_text("utf-8", errors="replace")[:MAX_NOTE]})

    tried = comparable(rows, floor)
    lines += summaries(tried)
    kept = list(filter(is_kept, tried))
    ordered = [*kept[::-1][:NEWEST], *near_misses(tried)[:NEWEST], *reversed(tried)]
    lines += {row["id"]: lesson(row) for row in ordered}.values()
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    fitting = text.encode("utf-8", "replace")[:MAX_BYTES]
    complete = fitting[: fitting.rindex(b"\n") + 1].decode()
    tasks = [(repo / name).read_text() for name in ("CLAUDE.md", "research/task.md")]
    return "\n".join([*tasks, complete])
