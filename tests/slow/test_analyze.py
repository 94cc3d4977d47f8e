"""A model that was really trained on val is named by `analyze`; one trained on train is not."""

import pytest
import torch

import train
from nanoloop.data import SPLITS, Data
from research.insight.analyze import describe
from research.insight.reading import open_run, read_split
from tests.conftest import SMALL, prepare_documents
from tests.models import CPU


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return prepare_documents(tmp_path_factory.mktemp("documents"), 60, 0.3)


@pytest.mark.parametrize("split, seed", [("val", 0), *(("train", seed) for seed in range(3))])
def test_a_model_trained_on_val_is_named_and_no_other(folder, tmp_path, monkeypatch, split, seed):
    def swapped(data, verify):
        found = Data(data, verify)
        found.splits["train"] = found.splits[split]
        return found

    monkeypatch.setattr(train, "open_data", swapped)
    out = str(tmp_path / "run")
    size = SMALL | {"n_embd": 64, "batch_tokens": 512}
    train.train(train.TrainConfig(**size, data=str(folder), out=out, max_steps=150, seed=seed))
    model, data = open_run(out, CPU, torch.float32)
    line = describe("A", {name: read_split(model, data, CPU, name) for name in SPLITS})
    print(line)
    assert line.endswith(", trained on val") == (split == "val")
