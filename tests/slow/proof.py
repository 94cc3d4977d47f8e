"""The proof with real training, by agents whose share is known:

    python -m tests.slow.proof FOLDER
    python -m tests.slow.proof FOLDER --n_embd=32 --workers=2

The lesson's recipe is broken, with fewer channels if you like; small runs are quicker two at a
time, with a core each. An oracle knows what is off and undoes one part an attempt; a null agent
adds a function that nothing uses. Exit code 1: the oracle closes less than 90 % of the gap, the
null agent something, or random options more than the oracle.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from research.prove import ProveOptions
from research.referee.ledger import Ledger
from research.referee.patch import ROOT
from tests.slow.test_prove import LESSON, edits_of, make_agent, the_result

PROGRAM = """
import sys
from dataclasses import replace
from nanoloop.options import run_program
from research import __main__ as research, prove
null = sys.argv.pop(1)
def try_null(options, repo):
    prove.try_agent(replace(options, agent=null), repo)
prove.ARMS["null"] = try_null
run_program(research.main)
"""


def copy_project(folder: Path, n_embd: int) -> Path:
    """Copy the project, where nobody else works; the lesson's recipe gets n_embd channels."""
    root = folder / "root"
    for name in ("corpus", "research", "nanoloop", "config"):
        shutil.copytree(ROOT / name, root / name)
    for path in [*ROOT.glob("*.py"), ROOT / "CLAUDE.md"]:
        shutil.copy(path, root)
    recipe = root / LESSON
    recipe.write_text(recipe.read_text().replace("n_embd = 128", f"n_embd = {n_embd}"))
    return root


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--n_embd", type=int, default=128)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    folder = options.folder.resolve()
    root = copy_project(folder, options.n_embd)
    edits = edits_of(ProveOptions())
    out = folder / "out"
    common = [f"--folder={out}", f"--workers={options.workers}"]
    noise = [sys.executable, "-m", "research", "noise", f"--config={LESSON}", "--budget=60steps"]
    subprocess.run([*noise, "--pairs=6", *common], cwd=root, check=True)
    oracle = make_agent(folder, "oracle", edits)
    null = make_agent(folder, "null", [])
    flags = [f"--agent={oracle}", f"--tries={len(edits)}", "--seeds=6", *common]
    subprocess.run([sys.executable, "-c", PROGRAM, null, "prove", *flags], cwd=root, check=True)

    proof, result = the_result(out)
    shares = result["shares"]
    kept = [row for row in Ledger(proof / "null").trials() if row.get("verdict") == "keep"]
    is_right = shares["agent"][0] > 0.9 > shares["random"][0] and not kept
    print(f"{len(kept)} changes of the null agent were kept; as it should be: {is_right}")
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
