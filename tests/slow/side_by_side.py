"""Compare two checkouts of this project bit for bit, on a CPU.

    python tests/slow/side_by_side.py --against=HEAD~1          # this checkout and a commit
    python tests/slow/side_by_side.py --against=../older        # … and a folder
    python tests/slow/side_by_side.py --against=HEAD --only=train/,data/parquet
    python tests/slow/side_by_side.py --list

Use it for every change that should leave all numbers as they are. Each checkout runs its own
commands in a folder of its own, with equal options and relative paths. Compared are losses,
gradients, weights and optimizer states, generated tokens, prepared shards and JSON files; only the
clock's figures and words for people are not. Each side also reads the other's checkpoints and data.

It prints a line a case: equal, DIFFERS or skipped. `left` is this checkout, `right` the other. The
exit code is 1 where any differs. All cases take about six minutes on two cores. sides/cases.py and
sides/variants.py hold the cases, sides/inside.py what runs within a checkout.
"""

import argparse
import contextlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from sides.cases import CASES
from sides.checkout import Failed, Side, Skipped
from sides.compare import first_difference
from sides.texts import write_texts

ROOT = Path(__file__).resolve().parents[2]
NO_SOURCE = (".*", "__pycache__", "data", "out")  # in the folder of a checkout

# --------------------------------------------------------------------------------------------------
# The checkouts


@contextlib.contextmanager
def open_checkout(name: str, folder: Path) -> Iterator[None]:
    """Put a copy of the folder `name`, or a worktree of the commit, into `folder` for a while.

    A copy stays as it is, also where somebody edits the folder meanwhile.
    """
    if Path(name).is_dir():
        shutil.copytree(name, folder, ignore=shutil.ignore_patterns(*NO_SOURCE))
        yield
        return
    git = ["git", "-C", str(ROOT), "worktree"]
    command = [*git, "add", "--detach", str(folder), name]
    added = subprocess.run(command, capture_output=True, text=True)
    if added.returncode:
        sys.exit(f"'{name}' is neither a folder nor a commit: {added.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True)


@contextlib.contextmanager
def open_sides(left_name: str, right_name: str, folder: Path) -> Iterator[tuple[Side, Side]]:
    """Yield a side for each checkout, each with its copy of the texts."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(open_checkout(left_name, folder / "left_checkout"))
        stack.enter_context(open_checkout(right_name, folder / "right_checkout"))
        left = stack.enter_context(Side("left", folder / "left_checkout", folder / "left"))
        right = stack.enter_context(Side("right", folder / "right_checkout", folder / "right"))
        left.other = right
        right.other = left
        write_texts(left.folder / "texts")
        shutil.copytree(left.folder / "texts", right.folder / "texts")
        yield left, right


# --------------------------------------------------------------------------------------------------
# The comparison


@dataclass
class Outcome:
    """What one side's case came to: its result, or why there is none."""

    result: dict | None = None
    failure: str | None = None
    skipped: str | None = None


def attempt(side: Side, name: str) -> Outcome:
    try:
        return Outcome(result=CASES[name].action(side))
    except Skipped as reason:
        return Outcome(skipped=str(reason))
    except Failed as reason:
        return Outcome(failure=f"{side.name}: {reason}")


def compare(name: str, sides: tuple[Side, Side], pool: ThreadPoolExecutor) -> str:
    """Run a case on both sides at once; print what came of it and return its first word."""
    left, right = pool.map(attempt, sides, (name, name))
    failures = [outcome.failure for outcome in (left, right) if outcome.failure]
    if failures:
        difference = "; ".join(failures)
    elif left.skipped and right.skipped:
        print(f"skipped  {name}: {left.skipped}", flush=True)
        return "skipped"
    else:
        difference = first_difference(left.result, right.result)
    if difference:
        print(f"DIFFERS  {name}: {difference}", flush=True)
        return "DIFFERS"
    print(f"equal    {name}", flush=True)
    return "equal"


def matches(name: str, pattern: str) -> bool:
    return fnmatch(name, pattern) or (pattern.endswith("/") and name.startswith(pattern))


def select(patterns: str | None) -> list[str]:
    """Return the cases that patterns name, in order, with all that they need."""
    if not patterns:
        return list(CASES)
    wanted = set()
    for pattern in patterns.split(","):
        found = {name for name in CASES if matches(name, pattern)}
        if not found:
            sys.exit(f"--only={pattern} names no case: --list shows them")
        wanted |= found
    while missing := {need for name in wanted for need in CASES[name].needs} - wanted:
        wanted |= missing
    return [name for name in CASES if name in wanted]


def compare_all(sides: tuple[Side, Side], names: list[str]) -> int:
    """Compare all the cases; return how many differ."""
    with ThreadPoolExecutor(2) as pool:
        words = [compare(name, sides, pool) for name in names]
    print(f"{words.count('equal')} passed, {words.count('DIFFERS')} failed")
    return words.count("DIFFERS")


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", help="the other checkout: a commit or a folder")
    parser.add_argument("--this", default=str(ROOT), help="a commit or folder instead of this one")
    parser.add_argument("--only", help="cases by name, group (train/) or glob, commas between them")
    parser.add_argument("--list", action="store_true", help="print the names of all cases")
    parser.add_argument("--keep", help="a folder, not there yet, for all files, which stay")
    arguments = parser.parse_args()
    if not (arguments.against or arguments.list):
        parser.error("give --against=COMMIT or --against=FOLDER")
    return arguments


def main() -> None:
    arguments = read_arguments()
    names = select(arguments.only)
    if arguments.list:
        print(*names, sep="\n")
        return
    with tempfile.TemporaryDirectory(prefix="side_by_side_") as temporary:
        folder = Path(arguments.keep or temporary).resolve()
        with open_sides(arguments.this, arguments.against, folder) as sides:
            failed = compare_all(sides, names)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
