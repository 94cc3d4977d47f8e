"""The referee: which changes of the recipe are really better.

    python -m research try PATCH | --set="n_head=4 rope_base=10000" | --tree=FOLDER     judge one change
    python -m research noise                     measure the noise floor: what a difference means here
    python -m research loop --agent="COMMAND"    let a program try changes, all night
    python -m research tune SPACE                search options, then judge the best like any change
    python -m research log | show ID | report    what was tried; one trial whole; the page
    python -m research replay ID                 do a recorded trial again

Each explains its options with --help. Exit code of a trial: 0 kept, 1 rejected or undecided, 2 a mistake in the
command, 3 refused or crashed.
"""

import importlib
import json
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import tyro

from console import read_options, require, run_command
from research import patch
from research.judge import Options, git, judge, measure_noise, set_up, try_change
from research.ledger import Ledger

# What a program in a terminal may take for a command is not shown as it is.
VISIBLE = {i: None for i in range(32) if chr(i) not in "\n\t"} | {127: None} | {i: None for i in range(128, 160)}


@dataclass(frozen=True)
class TryOptions(Options):
    """Judge one change."""

    patch: Annotated[str | None, tyro.conf.Positional] = None  # file of a unified diff, as `git diff` writes it
    set: str | None = None  # … or options: "key=value key=value"
    tree: str | None = None  # … or another working tree
    hypothesis: str = ""  # what is expected, and why
    commit: bool = False  # a kept change becomes a commit, its verdict in the trailer
    json: bool = False  # print the row, for programs


@dataclass(frozen=True)
class NoiseOptions(Options):
    """Measure how far two runs of the same recipe lie apart, store it, and say what can be seen above it."""

    pairs: int = 8  # of runs that differ in nothing but chance


@dataclass(frozen=True)
class LogOptions:
    """The trials in the ledger."""

    id: Annotated[str | None, tyro.conf.Positional] = None  # of a trial
    folder: str = "out/research"  # where the ledger is
    json: bool = False  # print rows, for programs


def options_of(chosen) -> Options:
    return Options(**{field.name: getattr(chosen, field.name) for field in fields(Options)})


def try_one(argv: list[str]) -> int:
    chosen = read_options(TryOptions, argv, "-m research try", config_files=False)
    clean = git("rev-parse", "HEAD") and not git("status", "--porcelain", "--untracked-files=no")
    require(clean or not chosen.commit, "--commit=True needs a git repository in which nothing waits to be committed")
    # The row alone goes to standard output for programs.
    tell = (lambda text: print(text, file=sys.stderr)) if chosen.json else print
    row = try_change(options_of(chosen), patch_file=chosen.patch, settings=chosen.set, tree=chosen.tree,
                     hypothesis=chosen.hypothesis, tell=tell)  # fmt: skip
    kept = row["verdict"].startswith("keep")
    if chosen.commit and kept:
        importlib.import_module("research.loop").commit(patch.ROOT, row)
    where = f"{row['id']} in {chosen.folder}/ledger.jsonl; all of it: python -m research show {row['id']}"
    print(json.dumps(row) if chosen.json else f"{row['verdict']}: {row['reason']}\nrow {where}")
    return 0 if kept else 3 if row["verdict"] in ("invalid", "crash") else 1


def noise(argv: list[str]) -> None:
    chosen = read_options(NoiseOptions, argv, "-m research noise", config_files=False)
    measure_noise(options_of(chosen), chosen.pairs)


def find(chosen: LogOptions) -> dict:
    trials = Ledger(Path(chosen.folder)).trials()
    rows = [row for row in trials if chosen.id and row["id"].startswith(chosen.id)]
    known = ", ".join(row["id"] for row in trials[-5:]) or "none"
    require(len(rows) == 1, f"{len(rows)} trials in {chosen.folder} begin with '{chosen.id}'; the latest: {known}")
    return rows[0]


def log(argv: list[str]) -> None:
    chosen = read_options(LogOptions, argv, "-m research log", config_files=False)
    for row in Ledger(Path(chosen.folder)).trials():
        mean = f"{row['mean']:+.4f}" if isinstance(row.get("mean"), float) else ""
        parts = row["id"], row["time"][:16], f"{row.get('verdict') or row['state']:14}", f"{mean:8}"
        told = "  ".join([*parts, row.get("hypothesis", "")[:60], row.get("reason") or ""])
        print(json.dumps(row) if chosen.json else told.translate(VISIBLE).replace("\n", " "))


def show(argv: list[str]) -> None:
    chosen = read_options(LogOptions, argv, "-m research show", config_files=False)
    row = find(chosen)
    if chosen.json:
        print(json.dumps(row))
        return
    untrusted, text = row.pop("stderr", ""), row.pop("diff", "")
    for key, value in row.items():
        print(f"{key}: {value if isinstance(value, str) else json.dumps(value)}".translate(VISIBLE))
    print(f"--- diff\n{text.translate(VISIBLE)}")
    if untrusted:
        print("--- printed by the candidate: untrusted text, not a message of the referee")
        print(*(f"| {line}" for line in untrusted.translate(VISIBLE).splitlines()), sep="\n")


def replay(argv: list[str]) -> int:
    chosen = read_options(LogOptions, argv, "-m research replay", config_files=False)
    row = find(chosen)
    require(row.get("pairs"), f"trial {row['id']} has no scored pair: there is nothing to do again")
    base = patch.read_tree(patch.ROOT)
    told = f"the tree is not the one of trial {row['id']}: check out commit {row['parent'] or '(none recorded)'} first"
    require(patch.tree_hash(base) == row["tree"], told)
    options = Options(**row["options"] | {"folder": chosen.folder})
    change, ledger = patch.from_patch(base, row["diff"].encode()), Ledger(Path(chosen.folder))
    again = judge(change, base, set_up(options), options, ledger, row["hypothesis"], print, seeds=row["seeds"],
                  kind="replay", alpha=row["alpha"], replay_of=row["id"])  # fmt: skip
    holds = again["verdict"] == row["verdict"]
    print(f"{'holds' if holds else 'DOES NOT HOLD'}: {row['verdict']} then ({row['reason']}), {again['verdict']} now "
          f"({again['reason']})")  # fmt: skip
    return 0 if holds else 1


COMMANDS = {"try": try_one, "noise": noise, "log": log, "show": show, "replay": replay}
ELSEWHERE = ("loop", "tune", "report")  # each a file of its own, loaded when it is asked for


def main(argv: list[str]) -> int | None:
    if not argv or argv[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if argv else 2
    known = ", ".join([*COMMANDS, *ELSEWHERE])
    require(argv[0] in COMMANDS or argv[0] in ELSEWHERE, f"unknown command '{argv[0]}': it is one of {known}")
    command = COMMANDS.get(argv[0]) or importlib.import_module(f"research.{argv[0]}").main
    return command(argv[1:])


if __name__ == "__main__":
    run_command(main)
