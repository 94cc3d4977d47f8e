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

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from nanoloop.options import read_options, require, run_program as run_command
from research import judge, loop, patch, report, tune
from research.ledger import Ledger
from research.report import LogOptions, visible
from research.runs import Options


@dataclass(frozen=True)
class TryOptions(Options):
    """Judge one change."""

    patch: Annotated[str | None, tyro.conf.Positional] = (
        None  # file of a unified diff, as `git diff` writes it
    )
    set: str | None = None  # … or options: "key=value key=value"
    tree: str | None = None  # … or another working tree
    hypothesis: str = ""  # what is expected, and why
    commit: bool = False  # a kept change becomes a commit, its verdict in the trailer
    json: bool = False  # print the row, for programs


def try_one(chosen: TryOptions) -> int:
    if chosen.commit:
        waiting = patch.git(patch.ROOT, "status", "--porcelain", "--untracked-files=no")
        require(
            not waiting,
            "--commit=True needs a git repository in which nothing waits to be committed",
        )
    # The row alone goes to standard output for programs.
    tell = (lambda text: print(text, file=sys.stderr)) if chosen.json else print
    row = judge.try_change(
        chosen,
        patch.ROOT,
        patch_file=chosen.patch,
        settings=chosen.set,
        tree=chosen.tree,
        hypothesis=chosen.hypothesis,
        tell=tell,
    )
    if chosen.commit and row["verdict"].startswith("keep"):
        loop.commit(patch.ROOT, row)
    where = f"{row['id']} in {chosen.folder}/ledger.jsonl; all of it: python -m research show {row['id']}"
    where += f" --folder={chosen.folder}" * (chosen.folder != TryOptions.folder)
    print(json.dumps(row) if chosen.json else f"{row['verdict']}: {row['reason']}\nrow {where}")
    return judge.exit_code(row)


def find(chosen: LogOptions) -> dict:
    trials = Ledger(Path(chosen.folder)).trials()
    rows = [row for row in trials if chosen.id and row["id"].startswith(chosen.id)]
    known = ", ".join(row["id"] for row in trials[-5:]) or "none"
    require(
        len(rows) == 1,
        f"{len(rows)} trials in {chosen.folder} begin with '{chosen.id}'; the latest: {known}",
    )
    return rows[0]


def log(chosen: LogOptions) -> None:
    for row in Ledger(Path(chosen.folder)).trials():
        mean = f"{row['mean']:+.4f}" if isinstance(row.get("mean"), float) else ""
        parts = (
            row["id"],
            row.get("time", "")[:16],
            f"{row.get('verdict') or row['state']:14}",
            f"{mean:8}",
        )
        told = "  ".join([*parts, row.get("hypothesis", "")[:60], row.get("reason", "")])
        print(json.dumps(row) if chosen.json else visible(told).replace("\n", " "))


def show(chosen: LogOptions) -> None:
    row = find(chosen)
    if chosen.json:
        return print(json.dumps(row))
    untrusted, text = row.pop("stderr", ""), row.pop("diff", "")
    print(
        *(visible(f"{key}: {json.dumps(value, ensure_ascii=False)}") for key, value in row.items()),
        sep="\n",
    )
    print(f"--- diff\n{visible(text)}")
    if untrusted:
        print("--- printed by the candidate: untrusted text, not a message of the referee")
        print(*(f"| {line}" for line in visible(untrusted).splitlines()), sep="\n")


def replay(chosen: LogOptions) -> int:
    row = find(chosen)
    again = judge.replay(row, chosen.folder)
    holds = again["verdict"] == row["verdict"]
    print(
        f"{'holds' if holds else 'DOES NOT HOLD'}: {row['verdict']} then ({row['reason']}), {again['verdict']} now "
        f"({again['reason']})"
    )
    return 0 if holds else 1


COMMANDS = {
    "try": (try_one, TryOptions),
    "noise": (judge.measure_noise, judge.NoiseOptions),
    "log": (log, LogOptions),
    "loop": (loop.main, loop.LoopOptions),
    "tune": (tune.main, tune.TuneOptions),
    "show": (show, LogOptions),
    "report": (report.main, LogOptions),
    "replay": (replay, LogOptions),
}


def main(argv: list[str]) -> int | None:
    if not argv or argv[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if argv else 2
    name, *flags = argv
    require(name in COMMANDS, f"unknown command '{name}': it is one of {', '.join(COMMANDS)}")
    command, options = COMMANDS[name]
    return command(read_options(options, flags, f"-m research {name}", config_files=False))


if __name__ == "__main__":
    run_command(main)
