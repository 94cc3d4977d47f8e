"""Shared fixtures: a small prepared data set, small runs, and commands run in this process."""

import gc
import os
import random
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from nanoloop.options import run_program

# Models of this size are no faster on two cores, which the processes of some tests share.
os.environ["OMP_NUM_THREADS"] = "1"

ROOT = Path(__file__).resolve().parent.parent

# The options of a small run, besides its data and its length.
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

WORDS = (
    "the a model learns to predict each next token from all that came before it and nothing else"
).split()


def make_documents(count: int, seed: int = 0) -> list[str]:
    """Return texts of 20 to 60 words."""
    rng = random.Random(seed)
    documents = []
    for _ in range(count):
        words = [rng.choice(WORDS) for _ in range(rng.randint(20, 60))]
        documents.append(" ".join(words) + ".\n")
    return documents


# The fixtures import what they need: the process that hands out the tests reads this file too, and
# nothing begins before it has.


@pytest.fixture(scope="session", autouse=True)
def draw():
    """Draw no loss.png, which takes longer than a small run; return the function that draws it."""
    from nanoloop.runlog import RunLog

    draw = RunLog.draw
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunLog, "draw", lambda log: None)
        yield draw


def prepare_documents(folder: Path, count: int, fraction: float) -> Path:
    """Prepare random documents as bytes; `fraction` is that of val, and that of test."""
    import prepare_data

    source = folder / "source"
    source.mkdir()
    for index, text in enumerate(make_documents(count)):
        (source / f"{index:03}.txt").write_text(text)
    options = prepare_data.PrepareConfig(
        source=(str(source),),
        name="words",
        tokenizer="byte",
        val_fraction=fraction,
        test_fraction=fraction,
    )
    return prepare_data.prepare(options, folder / "data")


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> Path:
    """Return 100 documents, prepared: about 17,000 training tokens, and the held-out splits."""
    return prepare_documents(tmp_path_factory.mktemp("documents"), 100, 0.1)


@pytest.fixture
def config(data_dir, tmp_path):
    """Make the options of small runs: config(max_steps=3) trains for less than a second."""
    from train import TrainConfig

    def make(**options) -> TrainConfig:
        run = {"data": str(data_dir), "out": str(tmp_path / "run"), "max_steps": 4}
        return TrainConfig(**(SMALL | run | options))

    return make


@pytest.fixture
def command(capsys, monkeypatch):
    """Run a command as a program: command(main, "--key=value") gives exit code and output.

    It runs in this process, so what a program changes in its process is put back.
    """

    def run(main, *arguments) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", ["program", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            run_program(main)
        printed = capsys.readouterr()
        return SimpleNamespace(code=exit.value.code or 0, out=printed.out, err=printed.err)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = {number: signal.getsignal(number) for number in numbers}
    umask = os.umask(0o022)
    os.umask(umask)
    yield run
    gc.unfreeze()
    gc.enable()
    os.umask(umask)
    for number, handler in handlers.items():
        signal.signal(number, handler)
