"""The report: planted faults are named, good text is not blamed, hostile text stays text."""

import base64
import json
import os
import random
import runpy
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pytest

from corpus import overlap, report
from corpus.bpe import train_bpe
from corpus.curation import View
from corpus.documents import Row
from corpus.reading import Cursor
from corpus.report import (
    SAMPLE_BYTES,
    count_tokens,
    divergence,
    sample_line,
    sample_number,
    study,
    summarize,
    write_report,
)
from corpus.writer import Progress, Writer
from nanoloop.data import SPLITS, open_shard
from nanoloop.tokenizer import load_tokenizer
from prepare_data import PrepareConfig, prepare
from tests.conftest import ROOT


def made_up_word(seed: int) -> str:
    rng = random.Random(seed)
    return "".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 9)))


WORDS = [made_up_word(seed) for seed in range(2000)]


def prose(seed: int, count: int) -> str:
    """Write sentences of made-up words, frequent ones more often, as Zipf's law says."""
    rng = random.Random(seed)
    parts = []
    for _ in range(count):
        word = WORDS[int(len(WORDS) ** rng.random()) - 1]
        parts.append(word + ".\n" * (rng.random() < 0.08))
    return " ".join(parts) + ".\n"


def russian(seed: int) -> str:
    rng = random.Random(seed)
    return " ".join("".join(rng.choices("оеаинтсрвл", k=6)) for _ in range(200))


def good_corpus(count: int = 200) -> list[tuple]:
    """Make (source, where, split, text) of documents whose only fault is that they are few."""
    splits = ("train",) * 8 + ("val", "test")
    return [(f"shelf {i % 2}", f"{i}.txt", splits[i % 10], prose(i, 300)) for i in range(count)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe("bpe:1000", [text for _, _, _, text in good_corpus()])


@pytest.fixture(scope="module")
def russian_tokenizer():
    return train_bpe("bpe:1000", [russian(seed) for seed in range(100)])


class Corpus:
    """What a preparation of (source, where, split, text[, rule that drops it]) leaves to report.

    bytes_before: of the corpus before these documents.
    """

    def __init__(self, documents, tokenizer, folder, bytes_before=0):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.tokenizer = tokenizer
        self.progress = Progress({})
        config = PrepareConfig(source=("s",), duplicates_mb=1)
        writer = Writer(config, folder, tokenizer, self.progress)
        for source, where, split, text, *rule in documents:
            view = View(text)
            row = Row(source, where, None, text[:160], len(view.raw), split, *rule)
            if row.drop_rule is None:
                tokens = np.append(tokenizer.end_of_text, tokenizer.encode(text))
                row.content = tokens.astype(tokenizer.dtype).tobytes()
                row.sample = sample_line(view, bytes_before, row)
            writer.add(row)
        writer.commit(Cursor(1, 0, bytes_before))
        self.shards = {}
        for split in SPLITS:
            paths = sorted(folder.glob(f"{split}_*.bin"))
            self.shards[split] = [open_shard(path, "") for path in paths]

    def figures(self, **plan) -> dict:
        self.progress.plan = {"tokenizer": "byte", "languages": None} | plan
        return summarize(self.folder, self.progress, self.tokenizer, self.shards)

    def warnings(self, **plan) -> list[str]:
        self.progress.plan = {"tokenizer": "byte", "languages": None} | plan
        write_report(self.folder, self.progress, self.tokenizer, self.shards)
        warnings = json.loads((self.folder / "report.json").read_text())["warnings"]
        return [". ".join(warning) for warning in warnings]


# --------------------------------------------------------------------------------------------------
# Planted faults


def test_good_text_is_only_blamed_for_being_little(tokenizer, tmp_path):
    warnings = Corpus(good_corpus(), tokenizer, tmp_path).warnings()
    assert [warning.split(":")[0] for warning in warnings] == ["little text"]


def one_document():
    return [("shelf 0", "big.txt", "train", prose(5000, 20_000))]


def boilerplate():
    end = "\nWe use cookies on this site: read our policy and accept.\n"
    return [("shelf 0", f"page{i}", "train", prose(1000 + i, 60) + end) for i in range(120)]


def near_copies_across():
    """Twenty documents of train are in val with one word changed."""
    texts = [prose(10 * i, 300).replace(WORDS[40], "changed") for i in range(20)]
    return [("shelf 1", f"copy{i}", "val", text) for i, text in enumerate(texts)]


def encoded():
    text = base64.b64encode(random.Random(1).randbytes(20_000)).decode()
    return [("shelf 0", "blob.txt", "train", text)]


def binary():
    text = random.Random(2).randbytes(3_000).decode("utf-8", "replace")
    return [("shelf 0", "image.dat", "train", text)]


def other_language():
    return [("shelf 1", f"ru{i}.txt", "train", russian(i)) for i in range(20)]


def other_validation():
    return [("shelf 1", f"val{i}.txt", "val", russian(i)) for i in range(80)]


def other_source():
    return [("archive", f"a{i}.txt", "train", prose(i + 9000, 4000)) for i in range(100)]


def known_validation():
    """Validation is part of a long document of train, below other headings."""
    long = prose(4321, 8000)
    parts = [f"{prose(i, 40)} {long[6000 * i :][:6000]}" for i in range(8)]
    rows = [("shelf 0", "long.txt", "train", long)]
    return rows + [("shelf 1", f"part{i}", "val", part) for i, part in enumerate(parts)]


def repeating_text():
    """A single text that repeats itself is split by position."""
    page = prose(77, 2000)
    parts = {"train": 18 * page, "test": page, "val": page}
    return [("s", "log.txt", split, text) for split, text in parts.items()]


PLANTED = {
    one_document: "one document dominates: 'big.txt'",
    other_source: "one source dominates: 'archive'",
    boilerplate: "boilerplate",
    near_copies_across: "near copies across the splits",
    encoded: "encoded data",
    binary: "broken text",
    other_language: "several languages or scripts",
    other_validation: "validation is unlike train",
    known_validation: "held-out text is in train",
}


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_a_planted_fault_is_named(plant, tokenizer, tmp_path):
    warnings = Corpus(good_corpus() + plant(), tokenizer, tmp_path).warnings()
    assert any(warning.startswith(PLANTED[plant]) for warning in warnings), warnings


def test_all_planted_faults_together_are_named_with_a_reason_and_what_to_do(
    russian_tokenizer, tmp_path
):
    """Except for the dominating source, beside which the others would be small."""
    plants = [plant for plant in PLANTED if plant is not other_source]
    documents = good_corpus()
    for plant in plants:
        documents += plant()
    warnings = Corpus(documents, russian_tokenizer, tmp_path).warnings(name="bad", tokenizer="gpt2")
    page = (tmp_path / "report.html").read_text()
    expected = [PLANTED[plant] for plant in plants] + ["the tokenizer does not fit"]
    for name in expected:
        assert any(warning.startswith(name) for warning in warnings), name
        assert name.split(":")[0] in page
    for found, advice in json.loads((tmp_path / "report.json").read_text())["warnings"]:
        assert len(found) > 20
        assert len(advice) > 40


def test_few_templates_are_named_beside_other_text(tokenizer, tmp_path):
    def answers(words: int) -> list[tuple]:
        """Return documents of one template, each with so many words of its own."""
        template = prose(70_000, 100)
        texts = [f"{template}{prose(80_000 + i, words)}" for i in range(100)]
        return [
            ("claude:./a/p.jsonl", f"a/p.jsonl:{i}", "train", text) for i, text in enumerate(texts)
        ]

    sources = ["claude:./a/p.jsonl", "shelf"]
    for words, is_named in ((10, True), (2000, False)):
        corpus = Corpus(good_corpus() + answers(words), tokenizer, tmp_path / str(words))
        warnings = corpus.warnings(source=sources)
        assert any(text.startswith("few templates") for text in warnings) == is_named
    alone = Corpus(answers(10), tokenizer, tmp_path / "alone").warnings(source=sources)
    assert not any(text.startswith("few templates") for text in alone)


def test_a_text_that_repeats_itself_is_named_with_advice_for_a_single_text(tokenizer, tmp_path):
    warnings = Corpus(repeating_text(), tokenizer, tmp_path).warnings()
    assert warnings[0].startswith("held-out text is in train: 100.0% of val and 100.0% of test")
    assert not any("--duplicates" in warning for warning in warnings)


def test_a_language_that_was_asked_for_is_no_fault(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(View, "language", property(lambda view: "en" if view.text < "о" else "ru"))
    corpus = Corpus(good_corpus(40) + other_language(), tokenizer, tmp_path)
    for languages, is_named in ((None, True), ("all", True), ("en,ru", False)):
        warnings = corpus.warnings(languages=languages)
        assert any("several languages" in warning for warning in warnings) == is_named


@pytest.mark.parametrize("rule, is_named", [("min_words=50", True), ("near duplicate", False)])
def test_what_rules_drop_is_a_sum_and_copies_are_no_fault(rule, is_named, tokenizer, tmp_path):
    documents = good_corpus(20)
    n_bytes = sum(len(text) for *_, text in documents)
    documents += [("shelf 0", f"{i}", "train", "x" * n_bytes, rule) for i in range(3)]
    warnings = Corpus(documents, tokenizer, tmp_path).warnings()
    named = [warning for warning in warnings if warning.startswith("more was dropped than kept")]
    assert len(named) == is_named
    assert all("3 of 23 documents, 75.0% of the text" in warning for warning in named)
    page = (tmp_path / "report.html").read_text()
    assert "<b>3</b>of 23 documents dropped, 75.0% of the text" in page


@pytest.mark.parametrize("name", ["gpt2", "bpe:1000", "FOLDER", "byte"])
def test_only_a_tokenizer_that_may_be_exchanged_is_blamed(name, russian_tokenizer, tmp_path):
    """It was not trained on this text, and no other folder that is mixed with it needs it."""
    tokenizer = load_tokenizer("byte") if name == "byte" else russian_tokenizer
    name = name.replace("FOLDER", str(tmp_path))
    warnings = Corpus(good_corpus(50), tokenizer, tmp_path).warnings(tokenizer=name)
    misfits = [warning for warning in warnings if "tokenizer" in warning]
    expected = ["the tokenizer does not fit", "only "] if name == "gpt2" else []
    assert len(misfits) == len(expected)
    assert all(map(str.startswith, misfits, expected))


def test_an_empty_split_is_named_unless_none_was_wanted(tokenizer, tmp_path):
    documents = [(source, where, "train", text) for source, where, _, text in good_corpus(20)]
    warnings = Corpus(documents, tokenizer, tmp_path).warnings(test_fraction=0.0)
    assert any("no document is in val" in warning for warning in warnings)
    assert not any("no document is in test" in warning for warning in warnings)


def test_epochs_are_those_of_the_recipes(tokenizer, tmp_path):
    corpus = Corpus(good_corpus(20), tokenizer, tmp_path)
    epochs = corpus.figures()["epochs"]
    texts = [text for _, _, split, text in good_corpus(20) if split == "train"]
    n_train = sum(1 + len(tokenizer.encode(text)) for text in texts)
    for name in ("quickstart", "gpt2"):
        recipe = runpy.run_path(str(ROOT / "config" / f"{name}.py"))
        assert epochs[name] == recipe["max_tokens"] / n_train
    [warning] = [warning for warning in corpus.warnings() if warning.startswith("little text")]
    assert f"them {1_000_000 // n_train} times on two CPU cores" in warning
    assert f"--max_tokens={4 * n_train}." in warning


def test_a_known_language_counts_more_than_the_script(tokenizer, tmp_path, monkeypatch):
    def language(view):
        return "en" if len(view.text) % 4 else "nl"

    monkeypatch.setattr(View, "language", property(language))
    corpus = Corpus(good_corpus(), tokenizer, tmp_path)
    assert any("is not en" in warning for warning in corpus.warnings(languages="all"))
    assert "nl" in corpus.figures(languages="all")["language"]


# --------------------------------------------------------------------------------------------------
# The figures


def test_documents_and_bytes_are_counted_by_rule_split_and_source(tokenizer, tmp_path):
    documents = [
        ("a", "1", "train", "one two"),
        ("b", "2", "val", "three"),
        ("a", "3", "train", "dropped!", "min_words=50"),
    ]
    figures = Corpus(documents, tokenizer, tmp_path).figures()
    kept = figures["kept"]
    assert (kept["documents"], kept["bytes"], kept["words"]) == (2, 12, 3)
    assert figures["dropped"]["min_words=50"]["bytes"] == 8
    assert figures["dropped"]["min_words=50"]["examples"] == [[8, "3", "dropped!"]]
    assert {name: row["documents"] for name, row in figures["sources"].items()} == {"a": 1, "b": 1}
    assert figures["splits"]["val"]["bytes"] == 5
    assert sum(figures["lengths"]) == 2


def test_the_tokens_are_counted_exactly(tokenizer, tmp_path):
    documents = good_corpus(30)
    counts = Counter({tokenizer.end_of_text: 30})
    for *_, text in documents:
        counts.update(tokenizer.encode(text).tolist())
    corpus = Corpus(documents, tokenizer, tmp_path)
    found = count_tokens(corpus.shards, 1000, tokenizer.end_of_text).sum(axis=0)
    assert {i: n for i, n in enumerate(found.tolist()) if n} == counts
    figures = corpus.figures()
    assert figures["tokens"] == counts.total()
    assert figures["vocabulary_used"] == len(counts) / 1000
    ordered = sorted(counts.values())
    assert [count for _, count in figures["most_frequent"]] == ordered[:-21:-1]


def test_the_control_group_is_every_fourth_document_of_train_whatever_the_shards(tmp_path):
    """The documents of train are 0 7, 0 7 7, 0 7 7 7, … to twelve 7; val is as much as a part."""
    train = np.concatenate([[0] + [7] * length for length in range(1, 13)])
    shards = []
    for number, tokens in enumerate((train[:30], train[30:], np.full(30, 5))):
        path = tmp_path / f"{number}.bin"
        tokens.astype("<u2").tofile(path)
        shards.append(np.memmap(path, "<u2", "r"))
    counts = count_tokens({"train": shards[:2], "val": shards[2:], "test": []}, 9, 0)
    in_train, in_val, _, control = counts
    assert control.tolist() == [3, 0, 0, 0, 0, 0, 0, 4 + 8 + 12, 0]
    assert (in_train + control).tolist() == [12, 0, 0, 0, 0, 0, 0, 78, 0]
    assert in_val[5] == 30


def test_characters_are_counted_by_their_kind():
    counts = study([["train", "s", "w", "Ab1 .дом中文é\x01"]], languages=False)["kinds"]
    assert {name: count for name, count in counts.items() if count} == {
        "Latin": 3,
        "digits": 1,
        "space": 1,
        "signs": 1,
        "Cyrillic": 3,
        "Chinese": 2,
        "control": 1,
        "inside": 3 + 2 * 2 + 1,
    }


def entropy(p: np.ndarray) -> float:
    return -sum(x * np.log2(x) for x in p if x)


def test_divergence_is_jensen_and_shannons():
    assert divergence(np.array([3, 5]), np.array([6, 10])) == pytest.approx(0)
    assert divergence(np.array([1, 0]), np.array([0, 7])) == pytest.approx(1)
    p = np.array([0.5, 0.3, 0.2])
    q = np.array([0.1, 0.1, 0.8])
    expected = entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2
    assert divergence(p * 10, q * 70) == pytest.approx(expected)


@pytest.mark.parametrize("held_out", [2, 10])
def test_a_small_validation_split_is_not_called_unlike_train(held_out, tokenizer, tmp_path):
    """Few tokens differ from many by chance: a control group of the same size shows how much."""
    documents = []
    for i in range(300):
        split = "val" if i % 100 < held_out else "train"
        documents.append(("s", f"{i}", split, prose(i, 150)))
    corpus = Corpus(documents, tokenizer, tmp_path)
    bits = corpus.figures()["divergence"]
    assert bits["val"] > 0.01
    assert bits["chance"] / 2 < bits["val"] < 2 * bits["chance"]
    assert not any("unlike" in warning for warning in corpus.warnings())


def test_near_copies_are_estimated_from_a_sample_of_any_size(tokenizer, tmp_path):
    """A fifth of the held-out documents is in train with its full stops changed."""
    documents = [("s", f"{i}", "train", prose(i, 60)) for i in range(600)]
    for i in range(1, 601):
        text = prose(i if i % 5 == 0 else i + 10_000, 60)
        documents.append(("s", f"v{i}", "val", text.replace(".", "!")))
    everything = Corpus(documents, tokenizer, tmp_path / "all").figures()
    part = Corpus(documents, tokenizer, tmp_path / "part", 3 * SAMPLE_BYTES).figures()
    assert everything["near_copies_across"] == pytest.approx(0.2, abs=0.01)
    assert everything["sample"]["documents"] == 1200
    assert 300 < part["sample"]["documents"] < 500
    for name in ("near_copies", "near_copies_across"):
        assert part[name] == pytest.approx(everything[name], abs=0.08)
    assert part["kept"]["bytes"] == everything["kept"]["bytes"]
    assert part["kept"]["words"] == pytest.approx(everything["kept"]["words"], rel=0.02)


# --------------------------------------------------------------------------------------------------
# The overlap of the held-out splits with train


def map_shards(folder, **splits) -> dict:
    """Write lists of shards, of tokens each, and map them."""
    shards = {}
    for split, parts in splits.items():
        shards[split] = []
        for number, tokens in enumerate(parts):
            path = folder / f"{split}_{number}.bin"
            np.array(tokens, dtype="<u2").tofile(path)
            shards[split].append(np.memmap(path, "<u2", "r"))
    return shards


def windows_of(tokens, size: int, counted: bool) -> list[tuple]:
    """Return the windows by slicing, each with its position; 0 is end-of-text."""
    found = []
    for start in range(len(tokens)):
        window = list(tokens[start : start + size])
        if 0 in window[1:]:
            window = window[: window.index(0, 1)]
        if not counted or len(window) == size or window[0] == 0:
            found.append(tuple(window))
    return found


@pytest.mark.parametrize("block", [40, 2**18])
def test_the_overlap_is_the_share_of_windows_that_train_holds(block, tmp_path, monkeypatch):
    """In documents of 1 to 60 tokens, in several shards and blocks, against slices of lists."""
    monkeypatch.setattr(overlap, "BLOCK", block)
    rng = random.Random(1)
    known = [[0] + rng.choices(range(1, 9), k=rng.randrange(60)) for _ in range(60)]
    train = sum(known, [])
    new = [[0] + rng.choices(range(1, 9), k=rng.randrange(60)) for _ in range(20)]
    inside = [[0] + text[3:40] for text in known[20:40]]
    val = sum(known[:20] + new + inside, [])
    shards = map_shards(tmp_path, train=[train[:300], train[300:]], val=[val], test=[])
    shares = overlap.overlap(shards, 0, bytes_per_token=25)
    in_train = set(windows_of(train, 8, counted=False))
    windows = windows_of(val, 8, counted=True)
    expected = sum(window in in_train for window in windows) / len(windows)
    assert 0.4 < expected < 0.9
    assert shares == {"val": pytest.approx(expected), "test": None}


def test_a_large_split_is_looked_at_in_a_sample(tmp_path, monkeypatch):
    monkeypatch.setattr(overlap, "WINDOWS", 1000)
    rng = random.Random(2)
    train = [0, *rng.choices(range(1, 500), k=30_000)]
    val = train[:3001] + [0, *rng.choices(range(1, 500), k=7000)]
    shards = map_shards(tmp_path, train=[train], val=[val], test=[val[:3001]])
    shares = overlap.overlap(shards, 0, bytes_per_token=6)
    assert shares == {"val": pytest.approx(0.3, abs=0.02), "test": 1.0}


def test_a_token_may_be_longer_than_a_window(tmp_path):
    shards = map_shards(tmp_path, train=[[0, 5, 6]], val=[[0, 6]], test=[[0, 7]])
    shares = overlap.overlap(shards, 0, bytes_per_token=1000)
    assert shares == {"val": 1.0, "test": 0.5}  # end-of-text is a window too


def test_ready_tokens_have_a_report_too(tmp_path):
    """Short documents that are in two splits, as another program wrote them."""
    (tmp_path / "ready").mkdir()
    rows = [[256, *b"name %d" % i] for i in range(400)]
    for split, part in (("train", rows[:300]), ("val", rows[200:])):
        path = tmp_path / "ready" / f"{split}.bin"
        np.array(sum(part, []), dtype="<u2").tofile(path)
    config = PrepareConfig(source=(str(tmp_path / "ready"),), name="own", tokenizer="byte")
    folder = prepare(config, tmp_path)
    figures = json.loads((folder / "report.json").read_text())
    assert figures["overlap_with_train"] == {"val": 0.5, "test": None}
    assert figures["kept"]["documents"] == 500
    assert [found.split(":")[0] for found, _ in figures["warnings"]] == [
        "held-out text is in train",
        "little text",
    ]
    page = (folder / "report.html").read_text()
    assert "<b>50.0%</b>of val is in train word for word" in page
    assert "near copy" not in page  # nobody looked for one


# --------------------------------------------------------------------------------------------------
# The sample


def test_copies_of_one_document_are_in_the_sample_whatever_their_number(tokenizer, tmp_path):
    text = prose(0, 100)
    documents = [("s", f"{i}", "train", text) for i in range(10)]
    corpus = Corpus(documents, tokenizer, tmp_path)
    corpus.progress.cursor = Cursor(1, 0, int(2 * SAMPLE_BYTES / sample_number(View(text))))
    assert corpus.figures()["near_copies"] == 1
    assert any("no document is in val" in warning for warning in corpus.warnings(val_fraction=0.1))


def test_the_sample_of_a_large_corpus_is_a_part_of_the_sample_of_a_small_one():
    """What was taken early is thinned out as what comes late is."""
    views = [View(prose(i, 60)) for i in range(2000)]
    row = Row("s", "w", None)
    early = [sample_line(view, SAMPLE_BYTES, row) for view in views]
    late = [sample_line(view, 6 * SAMPLE_BYTES, row) for view in views]
    assert all(early)
    assert [row for row in early if json.loads(row)[0] * 6 < 1] == [row for row in late if row]
    assert 240 < sum(map(bool, late)) < 420


def test_a_license_in_front_of_many_documents_does_not_draw_them_together_into_the_sample():
    text = prose(1, 2000)
    license = prose(0, 800)
    assert sample_number(View(text)) == sample_number(View("changed " + text))
    numbers = {sample_number(View(license + prose(i, 2000))) for i in range(50)}
    assert len(numbers) > 45


# --------------------------------------------------------------------------------------------------
# The page


class Page(HTMLParser):
    """The tags and the values of attributes in a page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags = Counter()
        self.values = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.values += [value for _, value in attrs if value]


def test_text_cannot_become_part_of_the_page(tmp_path, monkeypatch):
    """Text and the names of files and sources come from anywhere."""
    hostile = (
        "</pre><script>alert(1)</script><img src=http://x/y onerror=alert(2)> {{ 7 * 7 }} "
        "\x1b[31m | "
    )
    rows = [(hostile, hostile, "train", (hostile + "\n") * 6)] * 2
    rows.append((hostile, hostile, "train", hostile, hostile))
    monkeypatch.setattr(View, "language", property(lambda view: hostile))
    corpus = Corpus(rows, load_tokenizer("byte"), tmp_path)
    warnings = corpus.warnings(name=hostile, languages="all")
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    template = Page((ROOT / "corpus" / "report.html").read_text())
    assert page.tags.keys() <= template.tags.keys()  # which loads nothing and runs nothing:
    assert not {"script", "img", "link", "iframe"} & template.tags.keys()
    assert not any("http" in value or "alert" in value for value in page.values)
    assert "url(" not in text
    assert not any("\x1b" in warning or "\n" in warning for warning in warnings)


NEARLY_NOTHING = {
    "no document": [],
    "an empty one": [("s", "w", "train", "")],
    "a sign": [("s", "w", "val", "?")],
}


@pytest.mark.parametrize("name", NEARLY_NOTHING)
def test_a_report_of_nearly_nothing_is_written(name, tokenizer, tmp_path):
    assert Corpus(NEARLY_NOTHING[name], tokenizer, tmp_path).warnings()
    json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
    assert Page((tmp_path / "report.html").read_text()).tags["h1"] == 1


def test_a_report_is_replaced_completely_or_not_at_all(tokenizer, tmp_path, monkeypatch):
    corpus = Corpus(good_corpus(20), tokenizer, tmp_path)
    corpus.warnings(name="old")
    before = (tmp_path / "report.html").read_bytes()

    def fail(*paths):
        raise OSError("full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="full"):
        corpus.warnings(name="new")
    assert (tmp_path / "report.html").read_bytes() == before
    assert not list(tmp_path.glob("*.tmp"))


def test_the_kinds_of_characters_cover_every_byte():
    assert len(report.KIND_OF_BYTE) == 256
    assert max(report.KIND_OF_BYTE) == len(report.NAMES) - 1
