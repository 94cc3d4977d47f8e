"""A night in small: `loop` with a scripted agent and real trials, on a machine that may be busy.

    python -m tests.slow.night FOLDER --neighbours=1

The recipe trains in a second, with learning rates too low, so that there is something to find.
Prints what became of each attempt. Exit code 1: an attempt came to something else than it should.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from research.referee.ledger import Ledger
from tests.conftest import ROOT
from tests.slow.busy_neighbour import COME_AND_GO, busy_cores
from tests.trials import make_project, prepare_words, record_noise

SLOW_RATES = "muon_lr = 0.002\nembed_lr = 0.02\nhead_lr = 0.0006\n"
# What the agent does at its n-th call, and the verdicts that it may come to.
ACTS = [
    ("bad", "change('config/tiny.py', 'embed_lr = 0.02', 'embed_lr = 0.00002')", "reject"),
    ("cheats", "append('nanoloop/data.py', 'cheat = 1')", "invalid"),
    ("crashes", "append('model.py', 'raise SystemExit(5)')", "crash"),
    (
        "sees the future",
        "change('nanoloop/attention.py', 'is_causal=True', 'is_causal=False')",
        "invalid",
    ),
    ("agent fails", "sys.exit(3)", "none"),
    ("null", "change('config/tiny.py', 'head_lr = 0.0006', 'head_lr = 0.000601')", "reject"),
    ("good", "change('config/tiny.py', 'embed_lr = 0.02', 'embed_lr = 0.3')", "keep"),
]
AGENT = """
import pathlib, sys
calls = pathlib.Path(sys.argv[0]).with_name("calls")
number = len(calls.read_text()) if calls.exists() else 0
with open(calls, "a") as file:
    file.write("x")
def append(name, line):
    with open(name, "a") as file:
        file.write(line + "\\n")
def change(name, old, new):
    text = pathlib.Path(name).read_text()
    assert old in text
    pathlib.Path(name).write_text(text.replace(old, new))
exec(ACTS[number])
"""


def prepare(folder: Path) -> Path:
    """Return a copy of the project with the recipe config/tiny.py, its data and a noise floor."""
    data = prepare_words(folder)
    root = make_project(folder / "root", data)
    for name in ("corpus", "research", "CLAUDE.md"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, root / name)
    with open(root / "config" / "tiny.py", "a") as file:
        file.write(SLOW_RATES)
    record_noise(Ledger(folder / "book"), 0.01, data)
    acts = [act for _, act, _ in ACTS]
    (folder / "agent.py").write_text(f"ACTS = {acts!r}\n{AGENT}")
    return root


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--neighbours", type=int, default=0, help="processes that come and go")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    root = prepare(folder)
    command = [sys.executable, "-m", "research", "loop", "--config=config/tiny.py", "--max_pairs=9"]
    command += [f"--folder={folder / 'book'}", f"--agent={sys.executable} {folder / 'agent.py'}"]
    with busy_cores(arguments.neighbours, COME_AND_GO):
        subprocess.run([*command, f"--tries={len(ACTS)}"], cwd=root, check=True)
    rows = [row for row in Ledger(folder / "book").trials() if "number" in row]
    failed = 0
    for (name, _, expected), row in zip(ACTS, rows, strict=True):
        is_right = row["verdict"] == expected
        failed += not is_right
        repeats = sum(pair["repeats"] for pair in row.get("pairs", []))
        print(f"{name}: {row['verdict']} ({row['reason']}), {repeats} pairs were repeated")
    print(f"{failed} of {len(ACTS)} came to something else than they should")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
