"""analyze: parts add up, differences have intervals, baselines are what they say, and a page."""

import copy
import io
import json
import keyword
import math
import random
import re
import shutil
import tokenize
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import prepare_data
from model import GPT
from nanoloop import checkpoint
from nanoloop.data import SPLITS, Data, Split, open_data
from nanoloop.options import UserError
from research.__main__ import main
from research.insight.analyze import (
    COPIED,
    analyze,
    compare,
    context_slope,
    describe,
    summary,
)
from research.insight.reading import (
    CLASSES,
    PRIOR,
    ROWS,
    byte_classes,
    half_interval,
    ngram_bits,
    open_run,
    read_split,
    repeats,
)
from tests.conftest import ROOT, make_documents
from tests.models import CPU
from tests.test_research_report import Page
from train import TrainConfig, evaluate

BLOCK = 32


class Table(nn.Module):
    """A model that knows the last token only. logits: (V, V), from the last to the next."""

    def __init__(self, logits: torch.Tensor):
        super().__init__()
        self.logits = logits
        self.config = SimpleNamespace(block_size=BLOCK)

    def forward(self, tokens, targets=None, reduction="mean"):
        logits = self.logits[tokens]
        if targets is None:
            return logits
        return cross_entropy(logits.mT, targets, ignore_index=-1, reduction=reduction)


def random_table(vocab_size: int, seed: int) -> torch.Tensor:
    return torch.randn(vocab_size, vocab_size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Prepare the same documents, words and numbers, with two tokenizers."""
    source = tmp_path_factory.mktemp("source")
    rng = random.Random(5)
    for index, text in enumerate(make_documents(60)):
        words = [f"{word} {rng.randint(0, 999)}" for word in text.split()]
        (source / f"{index:03}.txt").write_text("é, ".join(words))
    prepared = {}
    for tokenizer in ("byte", "bpe:300"):
        options = prepare_data.PrepareConfig(
            source=(str(source),),
            name=tokenizer.replace(":", ""),
            tokenizer=tokenizer,
            val_fraction=0.4,
            test_fraction=0.3,
        )
        prepared[tokenizer] = prepare_data.prepare(options, tmp_path_factory.mktemp("data"))
    return prepared


@pytest.fixture(scope="module")
def data(folders) -> Data:
    return Data(folders["byte"])


def of_kind(rows: list[dict], kind: str) -> list[dict]:
    return [row for row in rows if row["part"].startswith(kind)]


def test_each_kind_of_part_sums_to_what_evaluate_says(data):
    model = Table(random_table(257, 0))
    a = read_split(model, data, CPU)
    rows = analyze(a, compare(a, a))
    expected = evaluate(model, data, "val", BLOCK, 7, CPU)["val_bpb"]
    for kind in ("all", "class", "rare", "context", "position", "document"):
        parts = of_kind(rows, kind)
        assert sum(row["bits"] for row in parts) == pytest.approx(expected, abs=1e-6), kind
        assert sum(row["bytes"] for row in parts) == pytest.approx(1), kind
    assert len(of_kind(rows, "document")) == len(set(a.document)) > 10
    assert len(of_kind(rows, "position")) == 6  # from 0, 1, 3, 7, 15, 31


def test_as_much_of_a_split_is_read_as_val_has(data):
    """All of val, and of train up to the end of a forward pass."""
    model = Table(random_table(257, 0))
    short = copy.copy(data)
    short.splits = data.splits | {"val": Split([data.splits["val"].read(0, 500)])}
    a, b = (read_split(model, short, CPU, split) for split in ("val", "train"))
    assert len(data.splits["train"]) > 600 and ROWS * BLOCK == 128
    assert 490 < a.index[-1] < 499 and 505 < b.index[-1] < 512


def test_what_a_window_holds_before_a_token():
    tokens = torch.tensor([[1, 2, 3, 1, 2, 3, 1], [5, 5, 5, 6, 7, 5, 6]])
    targets = torch.tensor([[2, 3, 1, 2, 3, 1, 4], [5, 5, 6, 7, 5, 6, 7]])
    expected = [[0, 0, 1, 2, 3, 4, 0], [1, 2, 0, 0, 1, 2, 3]]
    assert repeats(tokens, targets).tolist() == expected


def test_a_run_does_not_differ_from_itself(folders):
    for folder in folders.values():
        data = Data(folder)
        a = read_split(Table(random_table(data.tokenizer.vocab_size, 0)), data, CPU)
        again = read_split(Table(random_table(data.tokenizer.vocab_size, 0)), data, CPU)
        rows = analyze(a, compare(a, again))
        assert not any(row["difference"] for row in rows)


def test_a_planted_change_is_the_first_part(data):
    """B thinks that digits are less probable."""
    logits = random_table(257, 0)
    changed = logits.clone()
    changed[:, 48:58] -= 1.0
    a = read_split(Table(logits), data, CPU)
    b = read_split(Table(changed), data, CPU)
    rows = analyze(a, compare(a, b))
    assert rows[1]["part"] == "class number"
    others = [row for row in of_kind(rows, "class") if row["part"] != "class number"]
    assert sum(abs(row["difference"]) for row in others) < abs(rows[1]["difference"]) / 2


def test_a_part_against_the_total_is_named(data):
    """B is better at digits and worse at letters."""
    logits = torch.zeros(257, 257)
    changed = logits.clone()
    changed[:, 48:58] += 1.0
    changed[:, 97:123] -= 1.0
    a = read_split(Table(logits), data, CPU)
    b = read_split(Table(changed), data, CPU)
    rows = analyze(a, compare(a, b))
    assert rows[0]["difference"] > rows[0]["half"]
    last = summary(rows)[-2]
    assert last.startswith("surely against the total: ") and "class number" in last
    assert "class name" not in last
    assert len(summary(rows)) <= 10


def test_tokenizers_may_differ(folders):
    """The difference of the whole text and of each document is that of the two val_bpb."""
    readings = []
    for folder in folders.values():
        data = Data(folder)
        readings.append(read_split(Table(random_table(data.tokenizer.vocab_size, 3)), data, CPU))
    a, b = readings
    change = compare(a, b)
    assert len(a.size) > 1.2 * len(b.size)
    for number in set(a.document):
        expected = b.bits[b.document == number].sum() - a.bits[a.document == number].sum()
        assert change[a.document == number].sum() == pytest.approx(expected, abs=0.01)
    back = compare(b, a)
    assert back.sum() == pytest.approx(-change.sum(), abs=0.1)
    assert len(back) == len(b.size)


def test_other_text_is_refused(data, data_dir):
    a = read_split(Table(random_table(257, 0)), data, CPU)
    b = read_split(Table(random_table(257, 0)), Data(data_dir), CPU)
    with pytest.raises(UserError, match="hold out other text"):
        compare(a, b)


def test_a_table_of_pairs_is_the_baseline_of_pairs(data):
    train = data.splits["train"].read(0, 10**9).tolist()
    singles = Counter(train)
    pairs = Counter(zip(train, train[1:]))
    table = torch.zeros(257, 257, dtype=torch.float64)
    before = Counter(train[:-1])
    for last in range(257):
        for token in range(257):
            single = (singles[token] + PRIOR / 257) / (len(train) + PRIOR)
            pair = (pairs[last, token] + PRIOR * single) / (before[last] + PRIOR)
            table[last, token] = math.log(pair)
    a = read_split(Table(table), data, CPU)
    total = analyze(a, compare(a, a))[0]
    assert total["2-gram"] == pytest.approx(total["bits"], abs=1e-6)
    assert total["2-gram"] < total["1-gram"] < 8
    assert 0 < total["xz"] < 8


def test_chances_of_ngrams_sum_to_one():
    """Of each next token, whatever the context; one that train has and one that it has not."""
    rng = np.random.default_rng(0)
    train = rng.integers(0, 5, 300)
    for context in ([0, 1, 2, 3], [6, 6, 6, 6]):
        sums = np.zeros(5)
        for token in range(7):
            text = np.array([*context, token])
            sums += [2.0 ** -bits[-1] for bits in ngram_bits(train, text, 7)]
        assert sums == pytest.approx(np.ones(5))


def test_the_interval_covers_the_truth_in_95_of_100_halves():
    """Documents of very different sizes; tokens of one document share its luck."""
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        sizes = rng.lognormal(8, 1, 60)
        sums = sizes * (0.02 + 0.05 * rng.standard_normal(60))
        half = rng.permutation(60)[:30]
        mean = sums[half].sum() / sizes[half].sum()
        covered += abs(mean - 0.02) < half_interval(sums[half], sizes[half])
    assert 184 <= covered <= 198  # 190 expected, the deviation is 3


def test_intervals_of_many_parts_are_wider():
    sums = np.array([1.0, 2.0, 4.0, 3.0])
    sizes = np.array([10.0, 11.0, 12.0, 13.0])
    assert half_interval(sums, sizes, 7) > 1.5 * half_interval(sums, sizes)


def test_a_single_text_is_cut_into_stretches(folders):
    data = Data(folders["byte"])
    stream = data.splits["val"].read(0, 10**9)
    data.splits["val"].shards = [stream[stream != 256]]
    data.splits["val"].ends = [0, len(data.splits["val"].shards[0])]
    a = read_split(Table(random_table(257, 0)), data, CPU)
    rows = analyze(a, compare(a, a))
    assert len(of_kind(rows, "document")) == 64
    assert 0 < rows[0]["half"] < 1


def test_the_slope_of_the_context_is_found_and_its_interval_covers_it():
    """Bits fall by 0.2 a byte with each doubling; documents differ in more than that."""
    rng = np.random.default_rng(2)
    document = np.repeat(np.arange(40), rng.integers(50, 400, 40))
    position = np.arange(len(document)) % 128
    size = rng.integers(1, 6, len(document))
    a = SimpleNamespace(document=document, position=position, size=size)
    covered = 0
    for _ in range(200):
        level = 3 + rng.standard_normal(40)[document]
        bits = (level - 0.2 * np.log2(position + 1)) * size
        slope, half = context_slope(a, bits)
        assert half < 0.2
        covered += abs(slope + 0.2) < half
    assert 180 <= covered <= 199
    flat, _ = context_slope(a, size)
    assert flat == pytest.approx(0, abs=1e-12)


def reading(**columns) -> SimpleNamespace:
    """Return what describe() needs of one text."""
    count = len(columns["right"])
    shape = {"document": np.arange(count) % 20, "bits": np.ones(count), "size": np.ones(count)}
    chances = {"chances": np.ones((count, 5)), "is_cut": False}
    return SimpleNamespace(**shape | chances | columns)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.4])
def test_a_model_that_is_too_sure_or_not_sure_enough_is_badly_calibrated(temperature):
    """The text is drawn with a temperature that the model does not know."""
    rng = torch.Generator().manual_seed(3)
    logits = 2 * torch.randn(20_000, 20, generator=rng)
    target = torch.multinomial((logits / temperature).softmax(-1), 1, generator=rng)[:, 0]
    chances, guesses = logits.softmax(-1).topk(5)
    right = (guesses[:, 0] == target).numpy()
    line = describe("A", {"val": reading(right=right, chances=chances.numpy())})
    found = re.search(r"(\S+)% sure and (\S+)% right, calibration error (\S+)%$", line)
    sure, share, error = (float(figure) / 100 for figure in found.groups())
    chance = chances[:, 0].numpy()
    assert sure == pytest.approx(chance.mean(), abs=1e-3)
    assert share == pytest.approx(right.mean(), abs=1e-3)
    if temperature == 1:
        assert error < 0.015 and abs(sure - share) < 0.01
    else:
        assert error > 0.05 and (sure > share) == (temperature > 1)
    # The mean distance, bin by bin.
    expected = 0
    bins = (chance * 15).astype(int)
    for number in range(16):
        inside = bins == number
        if inside.any():
            expected += abs(right[inside].mean() - chance[inside].mean()) * inside.mean()
    assert error == pytest.approx(expected, abs=1e-3)


def test_a_copy_is_32_right_guesses_in_a_row():
    right = np.zeros(1000, bool)
    right[100:140] = True  # of these the last 9 end such a row
    right[200:231] = True
    right[500:532] = True
    assert COPIED == 32 and "(1.0% copied)" in describe("A", {"val": reading(right=right)})


class Memory(nn.Module):
    """A model that has read a text: it is sure of what follows each 20 tokens of it."""

    def __init__(self, text: list[int]):
        super().__init__()
        self.next = {tuple(text[n - 20 : n]): text[n] for n in range(20, len(text))}
        self.config = SimpleNamespace(block_size=128)

    def forward(self, tokens):
        logits = torch.zeros(*tokens.shape, 257)
        for row, part in enumerate(tokens.tolist()):
            for last in range(20, len(part) + 1):
                known = self.next.get(tuple(part[last - 20 : last]))
                if known is not None:
                    logits[row, last - 1, known] = 6.0
        return logits


@pytest.mark.parametrize("learnt", SPLITS)
def test_a_model_that_has_read_val_is_named(data, learnt):
    model = Memory(data.splits[learnt].read(0, 10**9).tolist())
    splits = {name: read_split(model, data, CPU, name) for name in SPLITS}
    line = describe("A", splits)
    assert line.endswith(", trained on val") == (learnt == "val")
    shares = re.findall(r"(\w+) \d+\.\d+ ± \d+\.\d+ \((\d+\.\d)% copied\)", line)
    assert len(shares) == 3
    for name, share in shares:
        assert (float(share) > 50) == (name == learnt) and (float(share) < 5) != (name == learnt)


def test_without_enough_documents_nothing_is_named(data):
    model = Memory(data.splits["val"].read(0, 10**9).tolist())
    splits = {name: read_split(model, data, CPU, name) for name in SPLITS}
    splits["test"].is_cut = True
    line = describe("A", splits)
    assert "test" in line and "trained on val" not in line
    del splits["test"]
    assert "trained on val" not in describe("A", splits)


@pytest.mark.parametrize("name", ["model.py", "nanoloop/options.py", "tests/test_analyze.py"])
def test_classes_of_python_are_those_of_its_tokenize(name):
    text = (ROOT / name).read_bytes()
    lines = io.StringIO(text.decode("latin-1"))
    starts = np.cumsum([0] + [len(line) + 1 for line in text.split(b"\n")])
    expected = np.full(len(text), -1)
    for token in tokenize.generate_tokens(lines.readline):
        start, stop = (starts[row - 1] + column for row, column in (token.start, token.end))
        if token.type in (tokenize.STRING, tokenize.COMMENT):
            expected[start:stop] = 0
        elif keyword.iskeyword(token.string):
            expected[start:stop] = 1
    classes = byte_classes(text)
    assert np.array_equal(np.where(classes < 2, classes, -1), expected)


def test_broken_python_keeps_its_classes_and_prose_has_none_of_them():
    broken = b"import os\nif x:\n  y = 'open\nreturn '''never closed 5"
    found = [CLASSES[n] for n in byte_classes(broken)]
    assert found[0] == "keyword" and found[7] == "name" and found[6] == "whitespace"
    assert found[broken.index(b"return")] == "keyword"
    assert found[-1] == "string or comment"
    prose = "It's 5 o'clock, if not é."
    found = {CLASSES[n] for n in byte_classes(prose.encode())}
    assert found == {"name", "number", "not ASCII", "punctuation", "whitespace"}


def make_run(folder: Path, data: Data, seed: int) -> str:
    """Write a checkpoint of random weights."""
    config = TrainConfig(
        data=str(data.folder),
        vocab_size=257,
        n_layer=1,
        n_head=1,
        n_embd=8,
        block_size=BLOCK,
        value_embeds=0,
        batch_tokens=BLOCK,
        max_steps=1,
    )
    torch.manual_seed(seed)
    model = GPT(config)
    nn.init.normal_(model.lm_head.weight)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    state = checkpoint.pack(model, [], scaler, data, config, 1, 1.0, 1.0)
    folder.mkdir()
    checkpoint.save(folder / "last.pt", state)
    return str(folder)


def test_the_command_prints_a_summary_and_writes_a_page(folders, tmp_path, capsys):
    data = Data(folders["byte"])
    runs = [make_run(tmp_path / f"run{seed}", data, seed) for seed in (1, 2)]
    page = tmp_path / "page.html"
    main(["analyze", *runs, f"--page={page}", "--json=True"])
    found = json.loads(capsys.readouterr().out)
    lines = found["summary"]
    total = found["rows"][0]
    assert len(lines) <= 10 and lines[1].startswith("difference in bits per byte")
    assert lines[2] == f"all text: {total['difference']:+.4f} ± {total['half']:.4f}"
    text = page.read_text("utf-8")
    elements = Page(text)
    assert elements.open == []
    titles = [attributes["title"] for tag, attributes in elements.elements if tag == "span"]
    assert len(titles) > 1000
    for title in titles[:50]:
        first, second = title.split("\n")
        assert first.startswith("A ") and second.startswith("B ")
        for line in (first, second):
            assert len(re.findall(r"\d\.\d %", line)) == 5


def test_text_on_the_page_is_escaped(tmp_path, capsys):
    source = tmp_path / "source"
    source.mkdir()
    for index in range(40):
        (source / f"{index}.txt").write_text(f'{index}</span><script>"alert({index})"&' * 3)
    options = prepare_data.PrepareConfig(
        source=(str(source),), name="bad", tokenizer="byte", val_fraction=0.4
    )
    data = Data(prepare_data.prepare(options, tmp_path / "data"))
    page = tmp_path / "a new folder" / "page.html"
    main(["analyze", make_run(tmp_path / "run", data, 0), f"--page={page}"])
    printed = capsys.readouterr().out
    assert "bits in bits per byte" in printed and str(page) in printed
    elements = Page(page.read_text("utf-8"))
    assert elements.open == []
    spans = [attributes.keys() for tag, attributes in elements.elements if tag == "span"]
    assert spans and all(keys == {"title", "style"} for keys in spans)
    assert [tag for tag, _ in elements.elements].count("script") == 1  # of all pages


def test_a_folder_of_a_mixture_is_chosen_by_name(folders, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(folders["byte"], other)
    data = Data(other)
    data.folder = f"{folders['byte']},{other}"
    data.fingerprint = open_data(data.folder).fingerprint
    run = make_run(tmp_path / "run", data, 0)
    with pytest.raises(UserError, match="are byte, other: choose one by --source=NAME"):
        open_run(run, CPU, torch.float32)
    model, chosen = open_run(run, CPU, torch.float32, "other")
    assert chosen.folder == other and not model.training


@pytest.mark.parametrize(
    ("count", "message"), [(0, "type one run after the command"), (3, "or two: A B")]
)
def test_one_or_two_runs(count, message):
    with pytest.raises(UserError, match=message):
        main(["analyze", *["out/x"] * count])


def test_changed_data_are_refused(folders, tmp_path):
    data = Data(folders["byte"])
    run = make_run(tmp_path / "run", data, 0)
    state = torch.load(tmp_path / "run/last.pt")
    checkpoint.save(tmp_path / "run/last.pt", state | {"data": "0" * 16})
    with pytest.raises(UserError, match="is not the data of"):
        main(["analyze", run, f"--page={tmp_path / 'page.html'}"])
    assert not (tmp_path / "page.html").exists()
