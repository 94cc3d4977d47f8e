"""What is left out of a corpus, and what is not: rules, copies, near copies, an evaluation."""

import json
import random
import sys
from collections import Counter

import numpy as np
import pytest

from corpus.curation import (
    BANDS,
    MEASURES,
    ROWS,
    SETS,
    CurationConfig,
    Curator,
    Seen,
    View,
    ngram_share,
    ngrams,
    sketch,
)
from nanoloop.options import UserError, explain, read_options

PROSE = """\
The committee met on Tuesday to discuss the new library that the town has wanted for years.
Several people spoke in favour of the plan, and nobody spoke against it, although one man asked
where the money would come from. The treasurer answered that a part of it had been saved already,
with the rest to be borrowed over the next ten years. After a short break they voted. The result
was clear, and work is to begin before the end of the summer.
"""


def judge(text: str, **options) -> str | None:
    return Curator(CurationConfig(**options)).judge(View(text))


# --------------------------------------------------------------------------------------------------
# Words


def test_a_word_has_its_place_and_its_length_in_bytes():
    view = View("Été, été! x_Y internationalization internationalisation")
    found = [view.raw[start:end].decode() for start, end in view.spans]
    assert found == ["Été", "été", "x", "Y", "internationalization", "internationalisation"]
    assert view.lengths.tolist() == [5, 5, 1, 1, 20, 20]


def test_words_have_one_hash_in_upper_and_lower_case():
    """Of ASCII: É is not é."""
    assert View("THE x1").hashes.tolist() == View("the, X1").hashes.tolist()
    assert len(set(View("Été été the").hashes.tolist())) == 3


def test_scripts_without_spaces_have_a_word_for_every_character():
    assert len(View("今天天气很好").hashes) == 6
    assert len(View("добрый день").hashes) == 2


STRANGE = {
    "nothing": "",
    "space": " ",
    "signs": "?!",
    "a letter": "a",
    "two words": "two words",
    "a surrogate": "\ud800 alone",
    "a long word": "x" * 10_000,
    "a wide gap": "x\n" + " " * 10**6 + "x",
}


@pytest.mark.parametrize("name", STRANGE)
def test_any_text_can_be_measured(name):
    view = View(STRANGE[name])
    assert sketch([view]).shape == (1, BANDS)
    assert len(view.shingles) >= 1
    for measure in MEASURES.values():
        assert np.isfinite(measure(view))


def test_many_documents_are_sketched_as_each_alone():
    texts = [PROSE, "", "one", "今天", PROSE[:50], "?", PROSE * 2]
    views = [View(text) for text in texts]
    alone = [sketch([view]) for view in views]
    assert np.array_equal(sketch(views), np.concatenate(alone))
    assert sketch([]).shape == (0, BANDS)


def test_ngrams_depend_on_the_order_of_their_words():
    first = ngrams(View("a b c d").hashes, 3)
    other = ngrams(View("a c b d").hashes, 3)
    assert len(first) == 2
    assert not set(first) & set(other)
    assert ngrams(View("x a b c").hashes, 3)[1] == first[0]


# --------------------------------------------------------------------------------------------------
# Quality


def test_by_default_nothing_is_dropped():
    assert judge("#### ... {} 0000 lorem ipsum javascript") is None


# A text and its measure, counted by hand.
BY_HAND = {
    "words": ("one two  three\n", 3),
    "word_length": ("a bbb", 2),
    "symbols": ("# a ... b … c", 2 / 6),
    "bullets": ("- a\n* b\nc\n\nd", 0.5),
    "ellipses": ("a...\nb…\nc\nd", 0.5),
    "alphabetic": ("a1 22 -- b", 0.5),
    "stop_words": ("The cat AND the hat", 2),
    "repeated_lines": ("a\nb\na\na", 0.5),
    "repeated_line_chars": ("aaa\nb\naaa", 3 / 7),
    "repeated_paragraphs": ("a\nb\n\nc\n \n\na\nb\n\nd", 0.25),
    "repeated_paragraph_chars": ("aaa\n\nb\n\naaa\n", 3 / 7),
    "lorem_ipsum_lines": ("Lorem ipsum dolor\nsit amet", 0.5),
    "brace_lines": ("if (x) {\n}\nelse {\n} end", 0.5),
    "top_ngrams": ("aa bb cc aa bb dd", 8 / 12),
    "repeated_ngrams": ("a b c d e a b c d e", 0.5),
    "sentences": ("One. Two! “Three?” 3.5", 3),
    "policy_lines": ("text\nThis site uses cookies.\nmore\nPlease enable JavaScript", 0.5),
    "punctuated_lines": ("Yes.\nno\nsaid “so.”\nno,", 0.5),
    "short_lines": ("short\n" + "x" * 30, 0.5),
    "digits": ("ab12", 0.5),
}


@pytest.mark.parametrize("name", MEASURES)
def test_a_measure_is_what_its_paper_says(name):
    text, value = BY_HAND[name]
    assert MEASURES[name](View(text)) == pytest.approx(value)


def share_inside(words: list[str], gram: tuple, n: int) -> float:
    """Count by a loop: the share of the letters inside the occurrences of n words in a row."""
    inside = set()
    for start in range(len(words) - n + 1):
        if tuple(words[start : start + n]) == gram:
            inside |= set(range(start, start + n))
    return sum(len(words[index]) for index in inside) / sum(map(len, words))


@pytest.mark.parametrize("n", [2, 3])
def test_the_share_of_the_most_frequent_ngram_is_what_a_loop_counts(n):
    rng = random.Random(0)
    words = [rng.choice("ab") * rng.randint(1, 3) for _ in range(60)]
    counts = Counter(tuple(words[start : start + n]) for start in range(len(words) - n + 1))
    most = [gram for gram, count in counts.items() if count == max(counts.values())]
    found = ngram_share(View(" ".join(words)), n, "top")
    assert any(found == pytest.approx(share_inside(words, gram, n)) for gram in most)


FIRST_WORDS = " ".join(PROSE.split()[:30])
LAST_LINE = PROSE.splitlines()[3]
# A text that each published rule drops.
BROKEN = {
    "min_words=50": "Too short to be of use to anyone, and that is the truth of it.",
    "max_words=100000": PROSE * 2000,
    "min_word_length=3": "a to be of it is as we go on. " * 10 + "we to be do go of at in on. " * 2,
    "max_word_length=10": PROSE + "incomprehensibilities " * 200,
    "max_symbols=0.1": PROSE + " # of that" * 30,
    "max_bullets=0.9": "- " + PROSE.replace("\n", "\n- "),
    "max_ellipses=0.3": PROSE.replace("\n", "...\n"),
    "min_alphabetic=0.8": PROSE + " 12345" * 40,
    "min_stop_words=2": " ".join(f"word{i}" for i in range(60)) + ".",
    "max_repeated_lines=0.3": PROSE + "So it is.\n" * 4,
    "max_repeated_line_chars=0.2": PROSE + "\n".join(PROSE.splitlines()[:2]),
    "max_repeated_paragraphs=0.3": PROSE + "\n\nSo it is." * 3,
    "max_repeated_paragraph_chars=0.2": f"{PROSE}\n{FIRST_WORDS}\n\n{FIRST_WORDS}",
    "max_lorem_ipsum_lines=0": PROSE + "Lorem ipsum.\n",
    "max_brace_lines=0": PROSE + "if {this} then that.\n",
    "max_top_ngrams=0.2": PROSE + " of that" * 40,
    "max_repeated_ngrams=0.15": PROSE + " ".join(PROSE.split()[:40]),
    "min_sentences=3": PROSE.replace(".", ","),
    "max_policy_lines=0.1": PROSE + "Read our privacy policy.\n",
    "min_punctuated_lines=0.12": PROSE.replace(".", ""),
    "max_repeated_line_chars=0.1": f"{PROSE}{LAST_LINE}\n{LAST_LINE[:4]}",
    "max_short_lines=0.67": "A short line.\n" + "\n".join(map(str, range(20))) + ".",
}
PUBLISHED = [(name, f"{rule}={limit:g}") for name in SETS for rule, limit in SETS[name].items()]


@pytest.mark.parametrize("name", SETS)
def test_good_prose_keeps_every_published_rule(name):
    assert judge(PROSE, quality=name) is None


@pytest.mark.parametrize("name, rule", PUBLISHED)
def test_each_published_rule_drops_what_breaks_it_and_can_be_switched_off(name, rule):
    text = BROKEN[rule]
    assert judge(text, quality=rule) == rule
    without = f"{name},{rule.split('=')[0]}=off"
    assert judge(text, quality=without) != rule


def test_a_later_rule_counts():
    assert judge("four words are here", quality="gopher,min_words=5") == "min_words=5"
    rules = Curator(CurationConfig(quality="min_words=5,min_words=2")).rules
    assert rules == {"min_words": 2.0}


UNKNOWN = ["gofer", "min_words", "min_words=", "min_wrds=3", "words=3", "min_words=3,"]


@pytest.mark.parametrize("quality", [*UNKNOWN, "min_words=-1"])
def test_an_unknown_rule_is_refused_with_those_that_exist(quality):
    with pytest.raises(UserError, match="gopher, c4, fineweb.*min_NAME.*got .*repeated_ngrams"):
        CurationConfig(quality=quality)


# --------------------------------------------------------------------------------------------------
# Languages, and an evaluation's questions


GERMAN = "Der Ausschuss traf sich am Dienstag, um über die neue Bücherei der Stadt zu sprechen."


def test_documents_in_other_languages_are_dropped():
    pytest.importorskip("py3langid")
    assert judge(PROSE, languages="en,fr") is None
    assert judge(GERMAN, languages="en,fr") == "language"
    assert judge(GERMAN, languages="all") is None
    assert View(GERMAN).language == "de"


def test_a_missing_library_is_named_before_any_text_is_read(monkeypatch):
    monkeypatch.setitem(sys.modules, "py3langid", None)
    with pytest.raises(ModuleNotFoundError) as missing:
        CurationConfig(languages="en")
    assert "pip install py3langid" in explain(missing.value)


def test_a_missing_evaluation_is_named_before_any_text_is_read():
    with pytest.raises(FileNotFoundError) as missing:
        CurationConfig(decontaminate="no/such/file.txt")
    assert "no/such/file.txt" in explain(missing.value)


QUESTION = (
    "Which of the seven towns along the river was first to build a bridge of stone across it?"
)


def test_thirteen_words_of_a_question_drop_a_document_and_twelve_do_not(tmp_path):
    (tmp_path / "exam.txt").write_text(QUESTION)
    options = {"decontaminate": str(tmp_path / "exam.txt")}
    words = QUESTION.upper().split()
    thirteen = " - ".join(words[2:15])
    twelve = " - ".join(words[2:14])
    assert judge(f"{PROSE} {thirteen} {PROSE}", **options) == "decontaminate"
    assert judge(f"{PROSE} {twelve} {PROSE}", **options) is None


def test_every_string_in_a_folder_of_json_is_a_question(tmp_path):
    rows = [
        {"id": 1, "nested": {"choices": ["no", QUESTION]}},
        {"text": "été " * 5 + PROSE.replace(".", '"\n')},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = {"decontaminate": str(tmp_path)}
    for text in ("x " + QUESTION, PROSE):
        assert judge(text, **options) == "decontaminate"
    for text in ("été " * 6, "", " ".join(f"w{i}" for i in range(50))):
        assert judge(text, **options) is None


# --------------------------------------------------------------------------------------------------
# Copies


def signatures(texts: list[str], config: CurationConfig) -> list[np.ndarray]:
    return list(Curator(config).signatures([View(text) for text in texts]))


def verdicts(texts: list[str], **options) -> list[str | None]:
    config = CurationConfig(duplicates_mb=1, **options)
    seen = Seen(config)
    return [seen.verdict(signature) for signature in signatures(texts, config)]


CHANGED = " ".join(PROSE.split()[:-1]) + " autumn.\n"
EXACT = "exact duplicate"
NEAR = "near duplicate"


def test_the_first_of_several_copies_stays():
    texts = [PROSE, "other text", PROSE, CHANGED, PROSE]
    assert verdicts(texts) == [None] * 5
    assert verdicts(texts, duplicates="exact") == [None, None, EXACT, None, EXACT]
    assert verdicts(texts, duplicates="near") == [None, None, EXACT, NEAR, EXACT]


def test_case_spaces_and_punctuation_do_not_hide_a_near_copy():
    loud = PROSE.upper().replace(". ", " !\n\n")
    assert verdicts([PROSE, loud], duplicates="near") == [None, NEAR]


def test_documents_without_words_are_no_copies_of_each_other():
    assert verdicts(["?", "!", "", "..."], duplicates="near") == [None] * 4


def test_the_last_byte_tells_documents_apart():
    assert verdicts(["x" * 2000, "x" * 1999 + "y"], duplicates="exact") == [None, None]


def pair_with_overlap(rng: random.Random, jaccard: float) -> tuple[View, View]:
    """Make two documents of 200 shingles that begin alike."""
    shared = round(400 * jaccard / (1 + jaccard))
    first, second = ([str(rng.getrandbits(60)) for _ in range(204)] for _ in range(2))
    second[: shared + 4] = first[: shared + 4]
    return View(" ".join(first)), View(" ".join(second))


@pytest.mark.parametrize("jaccard", [0.5, 0.72, 0.9])
def test_near_copies_are_found_as_often_as_the_formula_says(jaccard):
    rng = random.Random(0)
    pairs = [pair_with_overlap(rng, jaccard) for _ in range(400)]
    first, second = ({*view.shingles.tolist()} for view in pairs[0])
    assert len(first & second) / len(first | second) == pytest.approx(jaccard, abs=0.01)
    bands = [sketch(list(views)) for views in zip(*pairs)]
    found = sum(np.isin(a, b).any() for a, b in zip(*bands))
    assert found / 400 == pytest.approx(1 - (1 - jaccard**ROWS) ** BANDS, abs=0.08)


def test_no_band_is_taken_for_another():
    """All bands share one filter, and all minima of a text of one shingle are alike."""
    assert len(set(sketch([View("?")])[0].tolist())) == BANDS


def test_memory_is_bounded_and_errors_are_as_frequent_as_the_docstring_says():
    columns = 1 + BANDS
    seen = Seen(CurationConfig(duplicates="near", duplicates_mb=1))
    rng = np.random.default_rng(0)
    n_bytes = seen.filter.size_in_bits / 8
    assert n_bytes == pytest.approx(2**20, rel=0.01)
    n_fits = int(2**23 / Seen.BITS / columns)
    kept = rng.integers(0, 2**64, (n_fits, columns), dtype=np.uint64)
    seen.remember(kept)
    new = rng.integers(0, 2**64, (2000, columns), dtype=np.uint64)
    lost = sum(any(part in seen.filter for part in row.tolist()) for row in new) / len(new)
    assert 0.5 < lost / (columns * Seen.RATE) < 2
    assert all(seen.verdict(row) for row in kept[::100])


def test_beyond_its_memory_it_makes_more_errors_and_takes_no_more_memory():
    columns = 1 + BANDS
    seen = Seen(CurationConfig(duplicates="near", duplicates_mb=1))
    before = seen.filter.size_in_bits
    n_fits = int(2**23 / Seen.BITS / columns)
    seen.remember(np.arange(3 * n_fits * columns, dtype=np.uint64))
    assert seen.filter.size_in_bits == before
    new = np.arange(2**40, 2**40 + 100 * columns, dtype=np.uint64).reshape(100, columns)
    assert sum(seen.verdict(row) is not None for row in new) > 50


def test_more_memory_than_there_is_is_a_memory_error():
    with pytest.raises(MemoryError):
        Seen(CurationConfig(duplicates="near", duplicates_mb=2**40))


def test_remembering_what_was_kept_gives_the_same_memory():
    """So a resumed preparation drops the same copies."""
    config = CurationConfig(duplicates="near", duplicates_mb=1)
    rng = random.Random(0)
    texts = [" ".join(f"w{rng.randrange(10**5)}" for _ in range(30)) for _ in range(50)]
    first = Seen(config)
    kept = [row for row in signatures(texts * 2, config) if first.verdict(row) is None]
    assert len(kept) == 50
    resumed = Seen(config)
    resumed.remember(np.array(kept[::-1]))
    assert resumed.filter == first.filter


@pytest.mark.parametrize("duplicates", [None, "exact", "near"])
def test_remembering_works_with_every_option(duplicates):
    config = CurationConfig(duplicates=duplicates, duplicates_mb=1)
    rows = signatures([PROSE, CHANGED], config)
    seen = Seen(config)
    seen.remember(np.array(rows))
    assert seen.verdict(rows[0]) == (EXACT if duplicates else None)


def test_the_options_are_read_from_the_command_line():
    flags = ["--duplicates=near", "--duplicates_mb=8", "--quality=gopher,max_digits=0.15"]
    config = read_options(CurationConfig, flags, "prepare_data.py")
    assert (config.duplicates, config.duplicates_mb) == ("near", 8)
    assert Curator(config).rules["max_digits"] == 0.15
