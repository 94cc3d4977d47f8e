"""Real trials of patches that change nothing, and how many of them each of two rules keeps:

    python -m tests.real_changeless 100 FOLDER

Each patch shifts the seed by another number: the same recipe drawn again, so that every gain is luck. The recipe is so
small that a run takes about a second; its budget is in steps, so that a busy machine does not matter. Beside what the
referee keeps stands what "keep it if one run is lower" would have kept of the same trials. Started again with the same
folder it goes on.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import prepare_data
from research import judge, patch, runs
from research.ledger import Ledger
from tests.conftest import ROOT, make_documents

RECIPE = """
data = "{data}"
n_layer = 1
n_head = 2
n_embd = 32
block_size = 32
value_embeds = 1
batch_tokens = 512
max_steps = 40
dtype = "float32"
"""
SEEDED = b"torch.manual_seed(config.seed)"


def prepare(folder: Path) -> Path:
    """The recipe and its data, in `folder`; returns the folder with the recipe."""
    if not (folder / "words").exists():
        (folder / "text").mkdir(parents=True, exist_ok=True)
        for index, text in enumerate(make_documents(200)):
            (folder / "text" / f"{index:03}.txt").write_text(text)
        options = prepare_data.PrepareConfig(
            source=(str(folder / "text"),),
            name="words",
            tokenizer="byte",
            val_fraction=0.1,
            test_fraction=0.1,
        )
        prepare_data.prepare(options, folder)
    recipe = {"config/tiny.py": RECIPE.format(data=folder / "words").encode()}
    return patch.write_tree(patch.read_tree(ROOT) | recipe, folder / "root")


def main(count: int, folder: Path) -> None:
    root = patch.ROOT = prepare(folder.resolve())
    # The smallest gain counts here: what is tested is the test, not the minimum effect.
    rules = {"config": "config/tiny.py", "folder": str(folder / "book"), "minimum_effect": 0.0}
    options, book = runs.Options(**rules), Ledger(folder / "book")
    if not judge.known_noise(book, options):
        judge.measure_noise(judge.NoiseOptions(**rules))
    base = patch.read_tree(root)
    assert base["train.py"].count(SEEDED) == 1
    for number in range(sum(row["kind"] == "trial" for row in book.trials()) + 1, count + 1):
        seed = b"torch.manual_seed(config.seed + %d)" % (1000 * number)
        tree = patch.write_tree(
            base | {"train.py": base["train.py"].replace(SEEDED, seed)}, folder / "tree"
        )
        row = judge.try_change(
            options, root, tree=str(tree), hypothesis="the same again", tell=lambda text: None
        )
        print(f"{number}: {row['verdict']}: {row['reason']}", flush=True)
    trials = [row for row in book.trials() if row["kind"] == "trial" and row["differences"]]
    kept = sum(row["verdict"].startswith("keep") for row in trials)
    lower = sum(row["differences"][0] < 0 for row in trials)
    pairs = sum(len(row["pairs"]) for row in trials) / len(trials)
    print(
        f"{len(trials)} changeless patches, {pairs:.1f} pairs each: the referee kept {kept}, one run each {lower}"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
