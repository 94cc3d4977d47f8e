"""Sentences that stand in the training text again and again are found by `exam --text`."""

import json
import random
from pathlib import Path
from string import ascii_lowercase

import pytest

import prepare_data
import train
from research.__main__ import main
from tests.conftest import SMALL, make_documents

REPEATS = (0, 4, 16)
LENGTH = 40  # letters of a sentence


def random_sentences(rng: random.Random) -> str:
    lines = ["".join(rng.choices(ascii_lowercase + " ", k=LENGTH)) for _ in range(8)]
    return "\n".join(lines) + "\n"


@pytest.fixture
def canaries(tmp_path) -> dict[int, Path]:
    """Train on documents that sentences were planted in; return their files, by repeats."""
    rng = random.Random(5)
    planted = {count: random_sentences(rng) for count in REPEATS}
    lines = [line for count, text in planted.items() for line in text.splitlines() * count]
    documents = make_documents(400)
    for line, number in zip(lines, rng.sample(range(400), len(lines))):
        documents[number] += f"{line}\n"
    source = tmp_path / "source"
    source.mkdir()
    for number, text in enumerate(documents):
        (source / f"{number}.txt").write_text(text)
    options = prepare_data.PrepareConfig(source=(str(source),), name="words", tokenizer="byte")
    data = prepare_data.prepare(options, tmp_path / "data")
    size = SMALL | {"n_embd": 64, "batch_tokens": 1024}
    out = str(tmp_path / "run")
    train.train(train.TrainConfig(**size, data=str(data), out=out, max_steps=100))
    files = {}
    for count, text in planted.items():
        files[count] = tmp_path / f"{count}.txt"
        files[count].write_text(text)
    return files


def test_a_canary_with_16_repeats_stands_out(canaries, command, tmp_path):
    bounds = {}  # of bits per byte, by repeats
    for count, file in canaries.items():
        flags = ["--tasks=sorting", "--count=2", f"--text={file}", "--json=True"]
        page = f"--page={tmp_path / 'exam.html'}"
        printed = command(main, "exam", tmp_path / "run", page, *flags)
        (row,) = json.loads(printed.out)[str(file)]
        bounds[count] = (row["bits"] - row["half"], row["bits"] + row["half"])
    assert bounds[16][1] < bounds[4][0], bounds
    assert bounds[4][1] < bounds[0][0], bounds
