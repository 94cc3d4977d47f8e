"""The report: planted faults are named, good text is not blamed, and nothing depends on when a run was interrupted."""

import base64
import json
import random
import runpy
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pytest

import prepare_data
from corpus import report
from corpus.curation import View
from corpus.report import (
    SAMPLE_BYTES,
    SPLITS,
    count_tokens,
    divergence,
    sample_number,
    sample_row,
    study,
    summarize,
    write_report,
)
from corpus.worker import Row
from tests.conftest import ROOT

LETTERS = "etaoinshrdlu"
WORDS = [
    "".join(random.Random(i).choices(LETTERS, k=random.Random(-i).randint(2, 9)))
    for i in range(2000)
]


def prose(seed: int, count: int) -> str:
    """Sentences of made-up words, frequent ones more often, as Zipf's law has it."""
    rng = random.Random(seed)
    words = [WORDS[int(len(WORDS) ** rng.random()) - 1] for _ in range(count)]
    return " ".join(word + ".\n" * (rng.random() < 0.08) for word in words) + ".\n"


def russian(seed: int) -> str:
    rng = random.Random(seed)
    return " ".join("".join(rng.choices("оеаинтсрвл", k=6)) for _ in range(200))


def good_corpus(count: int = 200) -> list[tuple]:
    """(source, where, split, text) of documents that have nothing wrong with them, but that they are few."""
    splits = ("train",) * 8 + ("val", "test")
    return [(f"shelf {i % 2}", f"{i}.txt", splits[i % 10], prose(i, 300)) for i in range(count)]


@pytest.fixture(scope="module")
def tokenizer():
    return prepare_data.make_tokenizer("bpe:1000", [text for _, _, _, text in good_corpus()])


class Corpus:
    """What a preparation of (source, where, split, text) would leave to the report; behind: bytes read before it all.

    A fifth value is the rule that drops the document.
    """

    def __init__(self, documents, tokenizer, folder, behind=0):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.tokenizer, self.counted = folder, tokenizer, prepare_data.beginning({})
        writer = prepare_data.Writer(
            prepare_data.PrepareConfig(source=("s",)), folder, tokenizer, self.counted
        )
        for source, where, split, text, *verdict in documents:
            view, content, sample = View(text), b"", ""
            if not verdict or not verdict[0]:
                content = (
                    np.append(tokenizer.end_of_text, tokenizer.encode(text))
                    .astype(tokenizer.dtype)
                    .tobytes()
                )
                sample = sample_row(view, behind, split, where)
            row = Row(
                source,
                where,
                text[:160],
                None,
                len(view.raw),
                split,
                *verdict or [None],
                b"",
                content,
                sample,
            )
            writer.add(row)
        writer.flush([1, 0, behind])
        shards = {split: sorted(folder.glob(f"{split}_*.bin")) for split in SPLITS}
        self.shards = {
            split: [prepare_data.open_shard(path, "") for path in paths]
            for split, paths in shards.items()
        }

    def figures(self, **meta) -> dict:
        return summarize(self.folder, self.counted, meta, self.tokenizer, self.shards)

    def warnings(self, **meta) -> list[str]:
        return write_report(self.folder, self.counted, meta, self.tokenizer, self.shards)


# ---------------------------------------------------------------------------------------------------------------------
# Planted faults


def test_good_text_is_blamed_for_nothing_but_being_little(tokenizer, tmp_path):
    warnings = Corpus(good_corpus(), tokenizer, tmp_path).warnings()
    assert [warning.split(":")[0] for warning in warnings] == ["little text"]


def one_document():
    return [("shelf 0", "big.txt", "train", prose(5000, 20_000))]


def boilerplate():
    end = "\nWe use cookies on this site: read our policy and accept.\n"
    return [("shelf 0", f"page{i}", "train", prose(1000 + i, 60) + end) for i in range(120)]


def near_copies_across():
    return [
        ("shelf 1", f"copy{i}", "val", prose(10 * i, 300).replace(WORDS[40], "changed"))
        for i in range(20)
    ]


def long_span():
    span = prose(7777, 16_000)
    assert len(span) > 80_000
    return [("shelf 0", f"log{i}.txt", "train", prose(100 + i, 50) + span) for i in range(2)]


def blob():
    return [
        (
            "shelf 0",
            "blob.txt",
            "train",
            base64.b64encode(random.Random(1).randbytes(20_000)).decode(),
        )
    ]


def binary():
    return [
        (
            "shelf 0",
            "image.dat",
            "train",
            random.Random(2).randbytes(3_000).decode("utf-8", "replace"),
        )
    ]


def other_language():
    return [("shelf 1", f"ru{i}.txt", "train", russian(i)) for i in range(20)]


def other_validation():
    return [("shelf 1", f"val{i}.txt", "val", russian(i)) for i in range(40)]


def other_source():
    return [("archive", f"a{i}.txt", "train", prose(i + 9000, 4000)) for i in range(100)]


PLANTED = {
    one_document: "one document dominates: 'big.txt'",
    other_source: "one source dominates: 'archive'",
    boilerplate: "boilerplate",
    near_copies_across: "near copies across the splits",
    long_span: "very long repeated spans",
    blob: "encoded data",
    binary: "binary data",
    other_language: "several languages or scripts",
    other_validation: "validation is unlike train",
}


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_a_planted_fault_is_named(plant, tokenizer, tmp_path):
    faulty = good_corpus() + plant()
    warnings = Corpus(faulty, tokenizer, tmp_path).warnings()
    assert any(warning.startswith(PLANTED[plant]) for warning in warnings), warnings


def test_all_planted_faults_together_are_named_with_reason_and_remedy(tmp_path):
    """But for the dominating source: with it in front, nothing else would be much of the corpus."""
    misfit = prepare_data.make_tokenizer("bpe:1000", [russian(i) for i in range(300)])
    plants = [plant for plant in PLANTED if plant is not other_source]
    documents = good_corpus() + [row for plant in plants for row in plant()]
    warnings = Corpus(documents, misfit, tmp_path).warnings(name="bad")
    value, page = (
        json.loads((tmp_path / "report.json").read_text()),
        (tmp_path / "report.html").read_text(),
    )
    for name in [PLANTED[plant] for plant in plants] + [
        "the tokenizer does not fit",
        "little text",
    ]:
        assert any(warning.startswith(name) for warning in warnings), name
        assert name.split(":")[0] in page
    assert all(len(found) > 20 and len(advice) > 40 for found, advice in value["warnings"])


def test_a_tokenizer_of_another_language_is_named(tokenizer, tmp_path):
    other = prepare_data.make_tokenizer("bpe:1000", [russian(i) for i in range(300)])
    warnings = Corpus(good_corpus(), other, tmp_path).warnings()
    assert any("the tokenizer does not fit" in warning for warning in warnings)
    assert any("of the vocabulary's 1,000 tokens occur" in warning for warning in warnings)


def test_bytes_are_no_misfit(tmp_path):
    byte = prepare_data.make_tokenizer("byte", [])
    warnings = Corpus(good_corpus(), byte, tmp_path).warnings()
    assert not any("tokenizer" in warning or "vocabulary" in warning for warning in warnings)


def test_an_empty_split_is_named_unless_none_was_wanted(tokenizer, tmp_path):
    documents = [(source, where, "train", text) for source, where, _, text in good_corpus(20)]
    warnings = Corpus(documents, tokenizer, tmp_path).warnings(test_fraction=0.0)
    assert any("no document is in val" in warning for warning in warnings)
    assert not any("no document is in test" in warning for warning in warnings)


def test_epochs_are_those_of_the_recipes(tokenizer, tmp_path):
    epochs = Corpus(good_corpus(20), tokenizer, tmp_path).figures()["epochs"]
    trained = sum(
        1 + len(tokenizer.encode(text)) for _, _, split, text in good_corpus(20) if split == "train"
    )
    for name in ("quickstart", "gpt2"):
        assert (
            epochs[name]
            == runpy.run_path(str(ROOT / "config" / f"{name}.py"))["max_tokens"] / trained
        )


def test_a_language_that_was_told_counts_more_than_the_script(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(
        View, "language", property(lambda view: "en" if len(view.text) % 4 else "nl")
    )
    corpus = Corpus(good_corpus(), tokenizer, tmp_path)
    assert any("is not en" in warning for warning in corpus.warnings(languages="all"))
    assert "nl" in json.loads((tmp_path / "report.json").read_text())["language"]


# ---------------------------------------------------------------------------------------------------------------------
# The figures


def test_documents_and_bytes_are_counted_by_rule_split_and_source(tokenizer, tmp_path):
    documents = [
        ("a", "1", "train", "one two"),
        ("b", "2", "val", "three"),
        ("a", "3", "train", "dropped!", "min_words=50"),
    ]
    f = Corpus(documents, tokenizer, tmp_path).figures()
    assert (f["kept"]["documents"], f["kept"]["bytes"], f["kept"]["words"]) == (2, 12, 3)
    assert f["dropped"]["min_words=50"]["bytes"] == 8 and f["examples"]["min_words=50"] == [
        [8, "3", "dropped!"]
    ]
    assert {name: row["documents"] for name, row in f["source"].items()} == {"a": 1, "b": 1}
    assert f["split"]["val"]["bytes"] == 5 and sum(f["lengths"]) == 2


def test_the_tokens_are_counted_exactly(tokenizer, tmp_path):
    documents = good_corpus(30)
    counts = Counter(token for *_, text in documents for token in tokenizer.encode(text).tolist())
    counts[tokenizer.end_of_text] = 30
    corpus = Corpus(documents, tokenizer, tmp_path)
    counted = count_tokens(corpus.shards, 1000, tokenizer.end_of_text).sum(axis=0).tolist()
    assert {i: n for i, n in enumerate(counted) if n} == counts
    f = corpus.figures()
    assert f["tokens"] == counts.total() and f["vocabulary_used"] == len(counts) / 1000
    assert [n for _, n in f["most_frequent"]] == sorted(counts.values(), reverse=True)[:20]
    assert [n for _, n in f["least_frequent"]] == sorted(counts.values())[:20]


def test_the_control_group_is_whole_documents_of_train_about_as_many_as_val(tmp_path):
    """Documents of train are 0 7, 0 7 7, 0 7 7 7, …; every fourth is counted apart, whatever the shards."""
    train = np.concatenate([[0] + [7] * i for i in range(1, 13)])
    for number, tokens in enumerate((train[:30], train[30:], np.full(30, 5))):
        tokens.astype("<u2").tofile(tmp_path / f"{number}.bin")
    first, second, val = (np.memmap(tmp_path / f"{number}.bin", "<u2", "r") for number in range(3))
    counts = count_tokens({"train": [first, second], "val": [val], "test": []}, 9, 0)
    assert counts[3].tolist() == [3, 0, 0, 0, 0, 0, 0, 4 + 8 + 12, 0]
    assert (counts[0] + counts[3]).tolist() == [12, 0, 0, 0, 0, 0, 0, 78, 0] and counts[1, 5] == 30


def test_characters_are_counted_by_their_kind():
    counts = study([["train", "w", "Ab1 .дом中文é\x01"]], False)["kinds"]
    kinds = {name: counts[name] for name in report.NAMES if counts[name] and name != "inside"}
    assert kinds == {
        "Latin": 3,
        "digits": 1,
        "space": 1,
        "signs": 1,
        "Cyrillic": 3,
        "Chinese": 2,
        "control": 1,
    }


def test_divergence_is_jensen_and_shannons():
    assert divergence(np.array([3, 5]), np.array([6, 10])) == pytest.approx(0)
    assert divergence(np.array([1, 0]), np.array([0, 7])) == pytest.approx(1)
    entropy = lambda p: -sum(x * np.log2(x) for x in p if x)  # noqa: E731
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.1, 0.8])
    assert divergence(p * 10, q * 70) == pytest.approx(
        entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2
    )


@pytest.mark.parametrize("held_out", [2, 10])
def test_a_small_validation_split_is_not_called_unlike_train(held_out, tokenizer, tmp_path):
    """Few tokens differ from many by chance alone: a control group of the same size shows by how much."""
    documents = [
        ("s", f"{i}", "val" if i % 100 < held_out else "train", prose(i, 150)) for i in range(300)
    ]
    corpus = Corpus(documents, tokenizer, tmp_path)
    both = corpus.figures()["divergence"]
    assert both["val"] > 0.01 and both["chance"] / 2 < both["val"] < 2 * both["chance"]
    assert not any("unlike" in warning for warning in corpus.warnings())


def test_near_copies_are_estimated_from_a_sample_of_any_size(tokenizer, tmp_path):
    """A fifth of the held-out documents stands in train with one word changed; nothing else is copied."""
    documents = [("s", f"{i}", "train", prose(i, 60)) for i in range(600)]
    documents += [
        ("s", f"v{i}", "val", prose(i if i % 5 == 0 else i + 10_000, 60).replace(".", "!"))
        for i in range(1, 601)
    ]
    everything = Corpus(documents, tokenizer, tmp_path / "all").figures()
    part = Corpus(documents, tokenizer, tmp_path / "part", behind=3 * SAMPLE_BYTES).figures()
    assert everything["near_copies_across"] == pytest.approx(0.2, abs=0.01)
    assert everything["sample"]["documents"] == 1200 and 300 < part["sample"]["documents"] < 500
    for name in ("near_copies", "near_copies_across"):
        assert part[name] == pytest.approx(everything[name], abs=0.08)
    assert (
        part["kept"]["documents"] == 1200 and part["kept"]["bytes"] == everything["kept"]["bytes"]
    )
    assert part["kept"]["words"] == pytest.approx(everything["kept"]["words"], rel=0.02)


def test_the_sample_is_the_same_however_late_its_documents_came():
    """Of what was taken early, as much is left as would have been taken at the end."""
    views = [View(prose(i, 60)) for i in range(2000)]
    first, late = (
        [sample_row(view, behind, "train", "w") for view in views]
        for behind in (SAMPLE_BYTES, 6 * SAMPLE_BYTES)
    )
    assert all(first)
    assert [row for row in first if json.loads(row)[0] * 6 < 1] == [row for row in late if row]
    assert 240 < len(list(filter(None, late))) < 420


def test_a_license_in_front_of_many_documents_does_not_draw_them_into_the_sample_together():
    text, license = prose(1, 2000), prose(0, 800)
    assert sample_number(View(text)) == sample_number(View("changed " + text))
    assert len({sample_number(View(license + prose(i, 2000))) for i in range(50)}) > 45


def repeats(*texts: str) -> list[list]:
    return study([["train", where, text] for where, text in zip("abc", texts)], False)[
        "examples"
    ].get("repeated", [])


def test_a_repeated_span_is_found_with_its_place_and_length():
    span = prose(1, 5000)
    first, second = prose(2, 700) + span + prose(3, 900), prose(4, 100) + span + prose(5, 50)
    [[length, where, _]] = repeats(first, second)
    assert len(span) - 3000 < length <= len(span) and where.startswith("b, from byte")
    assert len(prose(4, 100)) <= int(where.split()[-1].replace(",", "")) < len(prose(4, 100)) + 3000
    assert repeats(span + prose(6, 99) + span)[0][0] > len(span) - 3000


def test_short_repeats_at_equal_distances_are_no_long_span():
    parts = []
    for i in range(10):
        phrase = prose(i, 400)
        between = prose(100 + i, 900)[: 5000 - len(phrase)]
        parts += [phrase, between, phrase, prose(200 + i, 1500)[: 12_000 - 2 * len(phrase)]]
    assert repeats(" ".join(parts)) == []


# ---------------------------------------------------------------------------------------------------------------------
# Hostile text


class Page(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.tags, self.values = Counter(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.values += [value for _, value in attrs if value]


def test_text_cannot_become_part_of_the_page(tmp_path, monkeypatch):
    """Text, file names and source names come from anywhere; the page loads nothing and runs nothing."""
    hostile = "</pre><script>alert(1)</script><img src=http://x/y onerror=alert(2)> {{ 7 * 7 }} \x1b[31m | "
    byte = prepare_data.make_tokenizer("byte", [])
    hostile_rows = [
        (hostile, hostile, "train", (hostile + "\n") * 6, rule) for rule in (None, None, hostile)
    ]
    monkeypatch.setattr(View, "language", property(lambda view: hostile))
    rows = [("s", "w", "train", "plain text\n" * 6, rule) for rule in (None, None, "rule")]
    plain = Corpus(rows, byte, tmp_path / "p")
    warnings = Corpus(hostile_rows, byte, tmp_path).warnings(name=hostile, languages="all")
    page = (tmp_path / "report.html").read_text()
    found = Page(page)
    plain.warnings(name="plain")
    known = set(Page((tmp_path / "p" / "report.html").read_text()).tags) | {
        "p",
        "th",
        "code",
        "i",
        "span",
    }
    assert set(found.tags) <= known
    assert not {"script", "img", "link", "iframe"} & set(found.tags)
    assert (
        not any("http" in value or "alert" in value for value in found.values)
        and "url(" not in page
    )
    assert not any("\x1b" in warning or "\n" in warning for warning in warnings)


@pytest.mark.parametrize("documents", [[], [("s", "w", "train", "")], [("s", "w", "val", "?")]])
def test_a_report_of_almost_nothing_is_written(documents, tokenizer, tmp_path):
    assert Corpus(documents, tokenizer, tmp_path).warnings()
    json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
    assert Page((tmp_path / "report.html").read_text()).tags["h1"] == 1


def test_the_report_is_replaced_at_once_or_not_at_all(tokenizer, tmp_path, monkeypatch):
    corpus = Corpus(good_corpus(20), tokenizer, tmp_path)
    corpus.warnings(name="old")
    before = (tmp_path / "report.html").read_bytes()
    monkeypatch.setattr("console.os.replace", lambda *paths: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError):
        corpus.warnings(name="new")
    assert (tmp_path / "report.html").read_bytes() == before and not list(tmp_path.glob("*.tmp"))
