"""The referee: which changes of the recipe are really better.

    python -m research try PATCH | --set="n_head=4 rope_base=10000" | --tree=FOLDER
                                                 judge one change
    python -m research noise                     measure the noise floor: what a difference means
    python -m research loop --agent="COMMAND"    let a program try changes, all night
    python -m research tune SPACE                search options, then judge the best like any change
    python -m research prove --agent="COMMAND"   how much of a known gap an agent closes again
    python -m research log | show ID | report    what was tried; one trial in full; the page
    python -m research replay ID                 repeat a recorded trial
    python -m research exam RUN RUN …            tasks by difficulty, right and wrong Python, a text
    python -m research analyze A [B]             where the bits go, and where two runs differ
    python -m research collapse [RUN]            generations on their own text; a run's samples
    python -m research compare RUN RUN …         what differs: settings, curves, figures, speed
    python -m research diagnose RUN              why it went as it went: rules, signals, forks
    python -m research watch RUN                 a run while it trains: curve, speed, time left
    python -m research export RUN FOLDER         the model for Hugging Face's transformers

Each explains its options with --help. Exit code of a trial: 0 kept, 1 rejected or undecided, 2 a
mistake in the command, 3 refused or crashed, 4 disturbed by other programs: try it again.
"""

import nanoloop.environment  # noqa: F401, says how to install what is missing

import json
import sys
from dataclasses import dataclass
from functools import partial
from typing import get_type_hints

from tyro.conf import Positional

from nanoloop.options import read_options, require, run_program
from research import exam, loop, page, prove, tune
from research.insight import analyze, collapse, compare, diagnose, export, watch
from research.page import LogOptions, open_ledger, visible
from research.referee import judge
from research.referee.patch import ROOT, git
from research.referee.runs import Options


@dataclass(frozen=True)
class TryOptions(Options):
    """Judge one change."""

    patch: Positional[str | None] = None  # file of a unified diff
    set: str | None = None  # … or options: "key=value key=value"
    tree: str | None = None  # … or another working tree
    hypothesis: str = ""  # what is expected, and why
    commit: bool = False  # commit a kept change, with its verdict as trailers
    json: bool = False  # print the row, for programs


def try_one(options: TryOptions) -> int:
    if options.commit:
        changes = git(ROOT, "status", "--porcelain", "--untracked-files=no")
        require(not changes, "--commit=True needs a git repository without uncommitted changes")
    row = judge.try_change(
        options,
        ROOT,
        patch_file=options.patch,
        settings=options.set,
        tree=options.tree,
        hypothesis=options.hypothesis,
        # With --json standard output holds the row alone.
        echo=partial(print, file=sys.stderr if options.json else sys.stdout),
    )
    if options.commit and row["verdict"].startswith("keep"):
        loop.commit(ROOT, row)
    if options.json:
        print(json.dumps(row))
    else:
        print(f"{row['verdict']}: {row['reason']}")
        print(
            f"row {row['id']} in {options.folder}/ledger.jsonl; to see all of it:\n"
            f"    python -m research show {row['id']} --folder={options.folder}"
        )
    return judge.exit_code(row)


def find(options: LogOptions) -> dict:
    """Return the trial whose id begins with options.id. Raises UserError."""
    trials = open_ledger(options).trials()
    latest = ", ".join(row["id"] for row in trials[-5:])
    hint = f"type one id after the command, or its beginning; the latest: {latest}"
    require(options.id, f"no trial is named: {hint}")
    rows = [row for row in trials if row["id"].startswith(options.id)]
    message = f"{len(rows)} trials in {options.folder} begin with '{options.id}'"
    require(len(rows) == 1, f"{message}: {hint}")
    return rows[0]


def log(options: LogOptions) -> None:
    for row in open_ledger(options).trials():
        if options.json:
            print(json.dumps(row))
            continue
        mean = f"{row['mean']:+.4f}" if isinstance(row.get("mean"), float) else ""
        columns = [
            row["id"],
            row.get("time", "")[:16],
            f"{row.get('verdict') or row['state']:14}",
            f"{mean:8}",
            row.get("hypothesis", "")[:60],
            row.get("reason", ""),
        ]
        print(visible("  ".join(columns)).replace("\n", " "))


def show(options: LogOptions) -> None:
    row = find(options)
    if options.json:
        print(json.dumps(row))
        return
    printed = row.pop("stderr", "")
    diff = row.pop("diff", "")
    for key, value in row.items():
        print(visible(f"{key}: {json.dumps(value, ensure_ascii=False)}"))
    print(f"--- diff\n{visible(diff)}")
    if printed:
        print("--- printed by the candidate: untrusted text, not a message of the referee")
        for line in visible(printed).splitlines():
            print(f"| {line}")


def replay(options: LogOptions) -> int:
    row = find(options)
    again = judge.replay(row, options.folder)
    holds = again["verdict"] == row["verdict"]
    print(f"first:  {row['verdict']} ({row['reason']})")
    print(f"second: {again['verdict']} ({again['reason']})")
    if again["verdict"] == "disturbed":
        return judge.exit_code(again)
    print("the verdict holds" if holds else "the verdict DOES NOT HOLD")
    return 0 if holds else 1


# Each takes the options that its annotation names.
COMMANDS = {
    "try": try_one,
    "noise": judge.measure_noise,
    "log": log,
    "loop": loop.main,
    "tune": tune.main,
    "prove": prove.main,
    "show": show,
    "report": page.main,
    "replay": replay,
    "analyze": analyze.main,
    "exam": exam.main,
    "collapse": collapse.main,
    "compare": compare.main,
    "diagnose": diagnose.main,
    "watch": watch.main,
    "export": export.main,
}


def main(argv: list[str]) -> int | None:
    if not argv or argv[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if argv else 2
    name, *flags = argv
    require(name in COMMANDS, f"unknown command '{name}': it is one of {', '.join(COMMANDS)}")
    command = COMMANDS[name]
    options = get_type_hints(command)["options"]
    return command(read_options(options, flags, f"-m research {name}", config_files=False))


if __name__ == "__main__":
    run_program(main)
