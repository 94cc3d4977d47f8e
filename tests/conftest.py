"""Shared fixtures: a small prepared data set, a small config, and a way to run a command as the shell would."""

import gc
import os
import random
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import console  # noqa: E402

import model  # noqa: E402
import prepare_data  # noqa: E402
import train  # noqa: E402

# Models of this size are no faster on two cores, and what the tests start shares the cores with them.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")

GPT2_RECIPE = runpy.run_path(str(ROOT / "config" / "gpt2_classic.py"))
# What makes a model GPT-2, apart from its size.
SIZES = {"n_layer", "n_head", "n_embd", "block_size"}
GPT2_SWITCHES = {
    name: GPT2_RECIPE[name]
    for name in set(model.GPTConfig.__dataclass_fields__) - SIZES
    if name in GPT2_RECIPE
}

WORDS = "the a model learns to predict each next token from all that came before it and nothing else".split()


def make_documents(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [
        " ".join(rng.choice(WORDS) for _ in range(rng.randint(20, 60))) + ".\n"
        for _ in range(count)
    ]


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> Path:
    """About 100 short documents as bytes: some 12,000 training tokens, and both held-out splits."""
    folder = tmp_path_factory.mktemp("source")
    for index, text in enumerate(make_documents(100)):
        (folder / f"{index:03}.txt").write_text(text)
    options = prepare_data.PrepareConfig(
        source=(str(folder),), name="words", tokenizer="byte", val_fraction=0.1, test_fraction=0.1
    )
    return prepare_data.prepare(options, tmp_path_factory.mktemp("data"))


@pytest.fixture
def config(data_dir, tmp_path):
    """A factory of small runs: config(max_steps=3) takes less than a second on a CPU."""

    def make(**options) -> train.TrainConfig:
        small = dict(
            data=str(data_dir), out=str(tmp_path / "run"), block_size=32, n_layer=2, n_head=2
        )
        small |= dict(
            n_embd=32, value_embeds=1, batch_tokens=256, max_steps=4, device="cpu", dtype="float32"
        )
        return train.TrainConfig(**(small | options))

    return make


@pytest.fixture
def command(capsys, monkeypatch):
    """command(main, "--key=value", …) runs main as a program, in this process: its exit code and what it printed."""

    def run(main, *args: str) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", ["program", *map(str, args)])
        monkeypatch.setattr(train, "catch_signals", list)  # pytest keeps its own Ctrl-C
        with pytest.raises(SystemExit) as caught:
            console.run_command(main)
        gc.enable()  # train.main disables it
        printed = capsys.readouterr()
        return SimpleNamespace(code=caught.value.code or 0, out=printed.out, err=printed.err)

    return run
