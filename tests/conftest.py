"""Shared fixtures: a small data set, a small config, and a command run as the shell runs it."""

import gc
import os
import random
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import prepare_data  # noqa: E402
import train  # noqa: E402
from nanoloop.options import run_program  # noqa: E402

# Small models are no faster on two cores, and the processes that tests start share the cores.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")

SENTENCE = (
    "the a model learns to predict each next token from all that came before it and nothing else"
)
SMALL = {
    "block_size": 32,
    "n_layer": 2,
    "n_head": 2,
    "n_embd": 32,
    "value_embeds": 1,
    "batch_tokens": 256,
    "device": "cpu",
    "dtype": "float32",
}


def make_documents(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    words = SENTENCE.split()
    documents = []
    for _ in range(count):
        length = rng.randint(20, 60)
        documents.append(" ".join(rng.choice(words) for _ in range(length)) + ".\n")
    return documents


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> Path:
    """Prepare about 100 short documents as bytes, some 12,000 training tokens; val and test too."""
    folder = tmp_path_factory.mktemp("source")
    for index, text in enumerate(make_documents(100)):
        (folder / f"{index:03}.txt").write_text(text)
    options = prepare_data.PrepareConfig(
        source=(str(folder),), name="words", tokenizer="byte", val_fraction=0.1, test_fraction=0.1
    )
    return prepare_data.prepare(options, tmp_path_factory.mktemp("data"))


@pytest.fixture
def config(data_dir, tmp_path):
    """Return a factory of small runs: config(max_steps=3) takes less than a second on a CPU."""

    def make(**options) -> train.TrainConfig:
        defaults = SMALL | {"data": str(data_dir), "out": str(tmp_path / "run"), "max_steps": 4}
        return train.TrainConfig(**(defaults | options))

    return make


@pytest.fixture
def command(capsys, monkeypatch):
    """Return a function that runs a program in this process.

    command(main, "--key=value", …) returns its exit code and what it printed.
    """

    def run(main, *arguments: str) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", ["program", *map(str, arguments)])
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        handlers = {number: signal.getsignal(number) for number in numbers}
        with pytest.raises(SystemExit) as raised:
            run_program(main)
        # Training changes what belongs to pytest's process.
        gc.enable()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        printed = capsys.readouterr()
        return SimpleNamespace(code=raised.value.code or 0, out=printed.out, err=printed.err)

    return run
