"""Real trials of patches that change nothing, and how many of them each of two rules keeps:

    python -m tests.slow.real_changeless 100 FOLDER
    python -m tests.slow.real_changeless 25 FOLDER --budget=3s --neighbours=1

Each patch draws other random numbers: the same recipe again, so that every gain is luck. The recipe
is so small that a run takes about a second. With a budget in steps a busy machine does not matter;
with one in seconds it does, and neighbours that work for some seconds and rest for some make it
worse. Beside what the referee keeps stands what "keep it if one run is lower" would have kept of
the same trials. Started again with the same folder, it resumes.
"""

import argparse
from collections import Counter
from pathlib import Path

import numpy as np
from scipy.stats import t

from research.referee import judge, patch
from research.referee.ledger import Ledger
from tests.slow.adversarial.edits import apply_edits
from tests.slow.busy_neighbour import COME_AND_GO, busy_cores
from tests.trials import make_project, prepare_words


def prepare(folder: Path) -> Path:
    """Return the folder with the recipe; prepare it and its data first if it is missing."""
    data = folder / "words"
    if not data.exists():
        prepare_words(folder)
    return make_project(folder / "root", data, max_steps=40)


def shift_seed(base: dict[str, bytes], shift: int) -> dict[str, bytes]:
    """Make the recipe draw other random numbers: weights from one seed, batches from the other."""
    code = f"""
    import torch

    manual_seed = torch.manual_seed
    torch.manual_seed = lambda seed: manual_seed(seed + {shift})
    """
    texts = {"train.py": base["train.py"].decode()}
    edited = apply_edits(texts, [("begin", "train.py:train", code)])
    return base | {"train.py": edited["train.py"].encode()}


def run_trials(count: int, options: judge.NoiseOptions, root: Path, book: Ledger) -> None:
    """Judge changeless patches until the ledger holds `count`."""
    if not any(row["kind"] == "noise" for row in book.trials()):
        judge.measure_noise(options, root)
    base = patch.read_tree(root)
    done = sum(row["kind"] == "trial" for row in book.trials())
    for number in range(done + 1, count + 1):
        tree = patch.write_tree(shift_seed(base, 1000 * number), book.folder.parent / "tree")
        row = judge.try_change(
            options, root, tree=str(tree), hypothesis="the same again", echo=lambda line: None
        )
        print(f"{number}: {row['verdict']}: {row['reason']}", flush=True)


def report(trials: list[dict]) -> None:
    """Print what became of the trials, and the mean difference of all their pairs."""
    print(f"{len(trials)} changeless patches: {dict(Counter(row['verdict'] for row in trials))}")
    pairs = [pair for row in trials for pair in row["pairs"]]
    repeats = sum(pair["repeats"] for pair in pairs)
    print(f"{len(pairs)} pairs, {repeats} more were disturbed and repeated")
    found = [d for split in ("val", "test") for d in judge.differences(pairs, split)]
    half = t.isf(0.025, len(found) - 1) * np.std(found, ddof=1) / len(found) ** 0.5
    print(f"mean difference {np.mean(found):+.5f}, 95 % interval ± {half:.5f}")
    lower = sum(row["differences"][0] < 0 for row in trials if row["differences"])
    print(f"one run each would have kept {lower}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("count", type=int, help="number of trials")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--budget", help="of each run, such as 3s; none: 40 steps")
    parser.add_argument("--neighbours", type=int, default=0, help="processes that come and go")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    root = prepare(folder)
    # The smallest gain counts here: what is tested is the test, not the minimum effect.
    options = judge.NoiseOptions(
        config="config/tiny.py",
        folder=str(folder / "book"),
        budget=arguments.budget,
        minimum_effect=0.0,
    )
    book = Ledger(folder / "book")
    with busy_cores(arguments.neighbours, COME_AND_GO):
        run_trials(arguments.count, options, root, book)
    report([row for row in book.trials() if row["kind"] == "trial" and row.get("pairs")])


if __name__ == "__main__":
    main()
