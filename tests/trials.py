"""What tests of the referee share: a recipe that trains in a second, and its data."""

from pathlib import Path

import prepare_data
from nanoloop.data import Data
from research.referee import judge, patch
from research.referee.ledger import Ledger
from tests.conftest import ROOT, make_documents

RECIPE = """
data = "{data}"
n_layer = {n_layer}
n_head = 2
n_embd = 32
block_size = 32
value_embeds = 1
batch_tokens = 512
max_steps = {max_steps}
dtype = "float32"
"""


def prepare_words(folder: Path) -> Path:
    """Prepare 200 documents as bytes; return the data folder."""
    source = folder / "text"
    source.mkdir(parents=True)
    for index, text in enumerate(make_documents(200)):
        (source / f"{index:03}.txt").write_text(text)
    options = prepare_data.PrepareConfig(
        source=(str(source),), name="words", tokenizer="byte", val_fraction=0.1, test_fraction=0.1
    )
    return prepare_data.prepare(options, folder)


def make_project(folder: Path, data: Path, n_layer: int = 1, max_steps: int = 20) -> Path:
    """Copy what a run can see of the project, and add config/tiny.py; return the copy."""
    recipe = RECIPE.format(data=data, n_layer=n_layer, max_steps=max_steps)
    return patch.write_tree(patch.read_tree(ROOT) | {"config/tiny.py": recipe.encode()}, folder)


def record_noise(book: Ledger, sd: float, data: Path, budget: str = "20steps") -> None:
    """Record a noise floor of config/tiny.py on this machine."""
    row = {"id": "n1", "kind": "noise", "state": "done", "differences": [sd, -sd] * 4}
    row |= {"config": "config/tiny.py", "budget": budget, "hardware": judge.hardware()}
    book.append(row | {"data": Data(data).fingerprint})
