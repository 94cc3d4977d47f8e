"""Real trials of patches that change nothing, and how many of them each of two rules keeps:

    python -m tests.slow.real_changeless 100 FOLDER

Each patch draws other random numbers: the same recipe again, so that every gain is luck. The recipe
is so small that a run takes about a second. Its budget is in steps, so a busy machine does not
matter. Beside what the referee keeps stands what "keep it if one run is lower" would have kept of
the same trials. Started again with the same folder, it resumes.
"""

import secrets
import sys
from contextlib import closing
from pathlib import Path

from research.referee import judge, patch, runs
from research.referee.ledger import Ledger
from tests.slow.adversarial.edits import apply_edits
from tests.trials import make_project, prepare_words

NOISE_PAIRS = 8


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


def measure_noise(options: runs.Options, root: Path) -> None:
    """Record a noise floor: pairs of the recipe with itself, its weights a little different."""
    setup = runs.Setup(options, root)
    settings = f"muon_lr={setup.recipe.muon_lr * 1.0001}"
    change = patch.from_settings(setup.base, options.config, settings, root)
    row = judge.begin("noise", setup)
    seeds = [secrets.randbelow(2**31) for _ in range(NOISE_PAIRS)]
    with closing(runs.PairRunner(setup, patch.apply(setup.base, change))) as runner:
        pairs = list(runner.run(seeds, "val"))
    found = judge.differences(pairs, "val")
    setup.ledger.append(row | {"state": "done", "differences": found})


def main(count: int, folder: Path) -> None:
    folder = folder.resolve()
    root = prepare(folder)
    # The smallest gain counts here: what is tested is the test, not the minimum effect.
    options = runs.Options(config="config/tiny.py", folder=str(folder / "book"), minimum_effect=0.0)
    book = Ledger(folder / "book")
    if not any(row["kind"] == "noise" for row in book.trials()):
        measure_noise(options, root)
    base = patch.read_tree(root)
    done = sum(row["kind"] == "trial" for row in book.trials())
    for number in range(done + 1, count + 1):
        tree = patch.write_tree(shift_seed(base, 1000 * number), folder / "tree")
        row = judge.try_change(
            options, root, tree=str(tree), hypothesis="the same again", echo=lambda line: None
        )
        print(f"{number}: {row['verdict']}: {row['reason']}", flush=True)
    trials = [row for row in book.trials() if row["kind"] == "trial" and row["differences"]]
    kept = sum(row["verdict"].startswith("keep") for row in trials)
    lower = sum(row["differences"][0] < 0 for row in trials)
    pairs = sum(len(row["pairs"]) for row in trials) / len(trials)
    print(f"{len(trials)} changeless patches, {pairs:.1f} pairs each")
    print(f"kept by the referee: {kept}; by one run each: {lower}")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
