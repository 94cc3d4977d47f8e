"""collapse: planted samplers are named, texts of generations are what they say, a page."""

import json
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import train
from nanoloop.data import Data, Split
from nanoloop.tokenizer import load_tokenizer
from research.__main__ import main
from research.insight import collapse
from research.insight.collapse import (
    REGIMES,
    findings,
    measure_model,
    measure_text,
    next_text,
    train_on,
    windows,
)
from tests.conftest import SMALL
from tests.models import CPU
from tests.test_research_report import Page

ROWS = 80
LENGTH = 256
LOOPS = "repeated in the same sample"
TEMPLATES = "repeated from another sample"
COPIES = "copied from train"
COMMON = "common tokens"


class Author:
    """Writes text of 257 tokens: Zipf's law, and now and then a stock phrase of 16 tokens."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)
        self.phrases = np.random.default_rng(0).integers(257, size=(40, 16))

    def write(self, length: int, temperature: float = 1.0) -> np.ndarray:
        chance = (1 / np.arange(1, 258)) ** (1 / temperature)
        text = self.rng.choice(257, length, p=chance / chance.sum())
        for start in range(0, length - 99, 100):
            if self.rng.random() < 0.5:
                offset = start + self.rng.integers(80)
                text[offset : offset + 16] = self.rng.choice(self.phrases)
        return text

    def samples(self, temperature: float = 1.0) -> np.ndarray:
        return np.stack([self.write(LENGTH, temperature) for _ in range(ROWS)])


def in_loops(author: Author, corpus) -> np.ndarray:
    """Return samples that each say the same 40 tokens again and again."""
    return np.stack([np.resize(author.write(40), LENGTH) for _ in range(ROWS)])


def from_templates(author: Author, corpus) -> np.ndarray:
    """Return samples of four templates, with 6 free tokens in each 32."""
    templates = [author.write(LENGTH) for _ in range(4)]
    rows = []
    for number in range(ROWS):
        row = templates[number % 4].copy()
        for start in range(0, LENGTH, 32):
            row[start : start + 6] = author.write(6)
        rows.append(row)
    return np.stack(rows)


def copied(author: Author, corpus) -> np.ndarray:
    """Return samples that stand in train, from different positions."""
    text = corpus.splits["train"].read(0, 10**6)
    return text[: ROWS * (LENGTH + 7)].reshape(ROWS, -1)[:, :LENGTH]


def too_cold(author: Author, corpus) -> np.ndarray:
    return author.samples(temperature=0.8)


def healthy(author: Author, corpus) -> np.ndarray:
    return author.samples()


@pytest.fixture(scope="module")
def corpus() -> SimpleNamespace:
    """Return what stands for a prepared folder."""
    splits = {"train": Split([Author(1).write(50_000)])}
    return SimpleNamespace(folder="corpus", splits=splits, tokenizer=load_tokenizer("byte"))


@pytest.mark.parametrize("seed", [2, 3, 4])
@pytest.mark.parametrize(
    "sampler, expected",
    [
        (in_loops, [LOOPS]),
        (from_templates, [TEMPLATES]),
        (copied, [COPIES]),
        (too_cold, [COMMON]),
        (healthy, []),
    ],
)
def test_a_degenerate_sampler_is_named_and_nothing_else(corpus, sampler, expected, seed):
    held_out = Author(10 + seed).samples()
    rows = [
        measure_text(text, held_out, corpus)
        for text in (sampler(Author(20 + seed), corpus), held_out)
    ]
    named = [line.partition(":")[0] for line in findings(rows)]
    assert named == (expected or ["samples do nothing more often than held-out text"])


def naive_habits(rows, train) -> dict[str, float]:
    """Count what samples do phrase by phrase, over all of them."""
    everywhere = set()
    counts = Counter()
    for row in rows.tolist():
        here = set()
        for start in range(len(row) - 7):
            phrase = tuple(row[start : start + 8])
            counts["phrases"] += 1
            counts[LOOPS] += phrase in here
            counts[TEMPLATES] += phrase in everywhere and phrase not in here
            here.add(phrase)
        everywhere |= here
    text = train.tolist()
    known = {tuple(text[start : start + 13]) for start in range(len(text) - 12)}
    pieces = [tuple(row[k : k + 13]) for row in rows.tolist() for k in range(len(row) - 12)]
    shares = {name: counts[name] / counts["phrases"] for name in (LOOPS, TEMPLATES)}
    return shares | {COPIES: np.mean([piece in known for piece in pieces])}


def test_figures_are_those_of_a_naive_count(corpus):
    rng = np.random.default_rng(5)
    rows, held_out = rng.integers(2, size=(2, 16, 30))  # two tokens: much is repeated
    train = rng.integers(2, size=900)
    data = SimpleNamespace(splits={"train": Split([train])}, tokenizer=corpus.tokenizer)
    figures = measure_text(rows, held_out, data)
    for name, expected in naive_habits(rows, train).items():
        assert 0 < expected < 1
        assert np.mean(figures["habits"][name]) == pytest.approx(expected), name
    for n in range(1, 5):
        sets = [
            [tuple(row[k : k + n]) for row in part.tolist() for k in range(31 - n)]
            for part in (rows, held_out)
        ]
        assert figures[f"distinct_{n}"] == len(set(sets[0])) / len(sets[0])
        shared = set(sets[1]) & set(sets[0])
        assert figures[f"held_out_{n}"] == len(shared) / len(set(sets[1]))


def test_what_each_regime_reads():
    def numbered(start: int) -> np.ndarray:
        return np.arange(start, start + 40)[:, None] + np.zeros(4, int)

    texts = [numbered(0), numbered(100), numbered(200)]
    read = {regime: next_text(regime, texts, 7)[:, 0] for regime in REGIMES}
    assert read["real"].tolist() == list(range(40))
    assert Counter(read["repeat"].tolist()) == dict.fromkeys(range(40), 3)
    assert read["replace"].tolist() == list(range(200, 240))
    assert read["accumulate"].tolist() == [*range(40), *range(100, 140), *range(200, 240)]
    drawn = read["subsample"].tolist()
    assert len(set(drawn)) == len(drawn) == 40 and set(drawn) <= set(read["accumulate"].tolist())
    assert {number // 100 for number in drawn} == {0, 1, 2}
    # Resampling again and again loses text, and never finds it again.
    kept = [set(next_text("resample", texts[:n], 7)[:, 0].tolist()) for n in (1, 2, 3)]
    assert kept[0] > kept[1] > kept[2] and len(read["resample"]) == 40


def test_windows_are_spread_over_a_split(monkeypatch):
    monkeypatch.setattr(collapse, "SAMPLES", 20)
    data = SimpleNamespace(folder="corpus", splits={"val": Split([np.arange(1000)])})
    rows = windows(data, "val", 10)
    assert rows.shape == (17, 10) and rows[-1, 0] == 960
    assert (rows - rows[:, :1] == np.arange(10)).all()


@pytest.fixture
def small(monkeypatch):
    """Use few and short samples."""
    monkeypatch.setattr(collapse, "LENGTH", 32)
    monkeypatch.setattr(collapse, "SAMPLES", 16)


def test_the_tenths_add_up_to_what_evaluate_says(config, data_dir):
    data = Data(data_dir)
    text = windows(data, "train", 64)[:80]
    model = train_on(text, config(vocab_size=257), data)
    figures = measure_model(model, data)
    expected = train.evaluate(model, data, "val", 32, 4, CPU)["val_bpb"]
    assert figures["val_bpb"] == pytest.approx(expected, abs=1e-6)
    assert min(figures["tenths"]) < expected < max(figures["tenths"])
    assert figures["tenths"][0] > figures["tenths"][-1]  # rare tokens are harder
    assert 0 < figures["entropy"] < np.log2(257) * 1.1  # end-of-text has no byte


def test_training_reads_the_text_once(config, data_dir):
    data = Data(data_dir)
    text = windows(data, "train", 64)[:32]
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            train,
            "train_step",
            lambda network, optimizers, scaler, batches, step, *rest: seen.append(batches(step)[0]),
        )
        train_on(text, config(vocab_size=257), data)
    read = torch.from_numpy(np.concatenate(seen)).flatten()
    assert len(read) == text.size
    # The last sequence lacks its last target, so another one stands for it.
    difference = Counter(text.ravel().tolist()) - Counter(read.tolist())
    assert difference.total() <= 32


def test_generations_make_a_page_and_a_summary(small, data_dir, tmp_path, command):
    recipe = tmp_path / "recipe.py"
    lines = [f"{key} = {value!r}" for key, value in (SMALL | {"max_steps": 4}).items()]
    recipe.write_text("\n".join([*lines, f"data = {str(data_dir)!r}"]))
    page = tmp_path / "page.html"
    options = (f"--config={recipe}", "--generations=1", f"--page={page}")
    result = command(main, "collapse", *options, "--json=True")
    assert result.code == 0, result.err
    report = json.loads(result.out)
    names = [row["text"] for row in report["rows"]]
    assert names == ["real 0", *(f"{regime} 1" for regime in REGIMES)]
    assert report["summary"][0].startswith("real text, 2 seeds: val_bpb ")
    assert len(report["summary"]) <= 10
    assert "6 models follow, in " in result.err
    text = page.read_text()
    assert Page(text).open == []
    assert all(f"<th>{name}</th>" in text for name in names)


def test_a_run_is_examined(small, config, tmp_path, command):
    run = config()
    train.train(run)
    page = tmp_path / "page.html"
    result = command(main, "collapse", run.out, f"--page={page}")
    assert result.code == 0, result.err
    assert LOOPS in page.read_text()
    again = command(main, "collapse", run.out, f"--page={page}")
    assert result.out.endswith(again.out)


def test_too_little_held_out_text_is_an_error(config, command):
    run = config()
    train.train(run)
    result = command(main, "collapse", run.out)
    assert result.code == 2 and "tokens in val: add text" in result.err
