"""What is left out of a corpus, and what is not: rules, copies, near copies, an evaluation's questions."""

import json
import random
import sys
from collections import Counter

import numpy as np
import pytest

from corpus import curation
from corpus.curation import (
    BANDS,
    MEASURES,
    ROWS,
    SETS,
    CurationConfig,
    Curator,
    Seen,
    View,
    ngrams,
    sketch,
)
from nanoloop.options import UserError, explain, read_options

PROSE = """The committee met on Tuesday to discuss the new library that the town has wanted for years. Several people
spoke in favour of the plan, and nobody spoke against it, although one man asked where the money would come from. The
treasurer answered that a part of it had been saved already, with the rest to be borrowed over the next ten years.
After a short break they voted. The result was clear, and work is to begin before the end of the summer.
"""


def judge(text: str, **options) -> str | None:
    return Curator(CurationConfig(**options)).judge(View(text))


def words(count: int, seed: int, vocabulary: int = 100_000) -> list[str]:
    rng = random.Random(seed)
    return [f"w{rng.randrange(vocabulary)}" for _ in range(count)]


# ---------------------------------------------------------------------------------------------------------------------
# The hashes of words


def test_a_word_is_found_in_either_case_with_its_place_and_its_length_in_bytes():
    view = View("Été, été! x_Y internationalization internationalisation")
    places = [
        view.raw.index(word.encode())
        for word in ("Été", "été", "x_Y", "Y", "internationaliz", "internationalis")
    ]
    assert view.places.tolist() == places and view.lengths.tolist() == [5, 5, 1, 1, 20, 20]
    first, second, *others = view.hashes.tolist()
    assert len({first, second, *others}) == 6  # É is not folded: only ASCII is
    assert View("THE x1").hashes.tolist() == View("the, X1").hashes.tolist()


def test_scripts_without_spaces_have_a_word_for_every_character():
    assert len(View("今天天气很好").hashes) == 6 and len(View("добрый день").hashes) == 2


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "?!",
        "a",
        "two words",
        "\ud800 lone surrogate",
        "x" * 10_000,
        "x\n" + " " * 10**6 + "x",
    ],
)
def test_any_text_can_be_looked_at(text):
    view = View(text)
    assert sketch([view]).shape == (1, BANDS) and len(view.shingles) >= 1
    assert all(isinstance(float(measure(view)), float) for measure in MEASURES.values())


def test_many_documents_are_sketched_as_each_alone():
    views = list(map(View, [PROSE, "", "one", "今天", PROSE[:50], "?", PROSE * 2]))
    assert np.array_equal(sketch(views), np.concatenate([sketch([view]) for view in views]))
    assert sketch([]).shape == (0, BANDS)


def test_ngrams_know_the_order_of_their_words():
    one, other = (ngrams(View(text).hashes, 3) for text in ("a b c d", "a c b d"))
    assert len(one) == 2 and not set(one) & set(other)
    assert ngrams(View("x a b c").hashes, 3)[1] == one[0]


# ---------------------------------------------------------------------------------------------------------------------
# Quality


def test_by_default_nothing_is_dropped():
    assert judge("#### ... {} 0000 lorem ipsum javascript") is None


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


@pytest.mark.parametrize("n", [2, 3])
def test_the_share_of_the_most_frequent_ngram_is_what_a_loop_counts(n):
    text = [
        random.Random(seed).choice("ab") * random.Random(seed).randint(1, 3) for seed in range(60)
    ]
    grams = Counter(tuple(text[i : i + n]) for i in range(len(text) - n + 1))
    shares = []
    for gram, count in grams.items():
        if count == max(grams.values()):
            inside = {
                i + k
                for i in range(len(text) - n + 1)
                if tuple(text[i : i + n]) == gram
                for k in range(n)
            }
            shares.append(sum(len(text[i]) for i in inside) / sum(map(len, text)))
    found = curation.repeated(View(" ".join(text)), n, top=True)
    assert any(found == pytest.approx(share) for share in shares)


BROKEN = {
    "min_words=50": "Too short to be of use to anyone, and that is the truth of it.",
    "max_words=100000": PROSE * 2000,
    "min_word_length=3": "a to be of it is as we go on. " * 10
    + "we to a be do go of at in on. " * 2,
    "max_word_length=10": PROSE + "incomprehensibilities " * 200,
    "max_symbols=0.1": PROSE + " # of that" * 30,
    "max_bullets=0.9": "- " + PROSE.replace("\n", "\n- "),
    "max_ellipses=0.3": PROSE.replace("\n", "...\n"),
    "min_alphabetic=0.8": PROSE + " 12345" * 40,
    "min_stop_words=2": " ".join(f"word{i}" for i in range(60)) + ".",
    "max_repeated_lines=0.3": PROSE + "So it is.\n" * 4,
    "max_repeated_line_chars=0.2": PROSE + "\n".join(PROSE.splitlines()[:2]),
    "max_repeated_paragraphs=0.3": PROSE + "\n\nSo it is." * 3,
    "max_repeated_paragraph_chars=0.2": PROSE
    + "\n"
    + "\n\n".join([" ".join(PROSE.split()[:30])] * 2),
    "max_lorem_ipsum_lines=0": PROSE + "Lorem ipsum.\n",
    "max_brace_lines=0": PROSE + "if {this} then that.\n",
    "max_top_ngrams=0.2": PROSE + " of that" * 40,
    "max_repeated_ngrams=0.15": PROSE + " ".join(PROSE.split()[:40]),
    "min_sentences=3": PROSE.replace(".", ","),
    "max_policy_lines=0.1": PROSE + "Read our privacy policy.\n",
    "min_punctuated_lines=0.12": PROSE.replace(".", ""),
    "max_repeated_line_chars=0.1": PROSE + PROSE.splitlines()[3] + "\n" + PROSE.splitlines()[3][:4],
    "max_short_lines=0.67": "A short line.\nAnd\nmany more of them.\n" * 1
    + "\n".join(map(str, range(20)))
    + ".",
}


@pytest.mark.parametrize("name", SETS)
def test_good_prose_keeps_every_published_rule(name):
    assert judge(PROSE, quality=name) is None


@pytest.mark.parametrize(
    "name, rule",
    [(name, f"{rule}={limit:g}") for name in SETS for rule, limit in SETS[name].items()],
)
def test_each_published_rule_drops_what_breaks_it(name, rule):
    """And rules of one set alone can be switched off, which shows that no other had dropped the text."""
    text = BROKEN[rule]
    assert judge(text, quality=rule) == rule
    assert judge(text, quality=f"{name},{rule.split('=')[0]}=off") != rule


def test_a_later_rule_counts():
    assert judge("four words are here", quality="gopher,min_words=5") == "min_words=5"
    assert list(Curator(CurationConfig(quality="min_words=5,min_words=2")).rules.items()) == [
        ("min_words", 2.0)
    ]


@pytest.mark.parametrize(
    "quality",
    ["gofer", "min_words", "min_words=", "min_wrds=3", "words=3", "min_words=3,", "min_words=-1"],
)
def test_a_rule_that_does_not_exist_is_told_with_those_that_do(quality):
    with pytest.raises(UserError, match="gopher, c4, fineweb.*min_NAME.*repeated_ngrams"):
        CurationConfig(quality=quality)


# ---------------------------------------------------------------------------------------------------------------------
# Languages, and the evaluation's questions


def test_documents_in_other_languages_are_dropped():
    pytest.importorskip("py3langid")
    german = "Der Ausschuss traf sich am Dienstag, um über die neue Bücherei zu sprechen, die sich die Stadt wünscht."
    assert (
        judge(PROSE, languages="en,fr") is None and judge(german, languages="en,fr") == "language"
    )
    every = Curator(CurationConfig(languages="all"))
    assert every.judge(View(german)) is None and View(german).language == "de"


def test_a_missing_library_is_told_before_any_text_is_read(monkeypatch):
    monkeypatch.setitem(sys.modules, "py3langid", None)
    with pytest.raises(ModuleNotFoundError) as missing:
        CurationConfig(languages="en")
    assert "pip install py3langid" in explain(missing.value)


QUESTION = (
    "Which of the seven towns along the river was first to build a bridge of stone across it?"
)


def test_thirteen_words_of_a_question_drop_a_document_and_twelve_do_not(tmp_path):
    (tmp_path / "eval.txt").write_text(QUESTION)
    loud = QUESTION.upper().replace(" ", ", ").split(", ")
    check = dict(decontaminate=str(tmp_path / "eval.txt"))
    assert judge(PROSE + " - ".join(loud[2:15]) + " " + PROSE, **check) == "decontaminate"
    assert judge(PROSE + " - ".join(loud[2:14]) + " " + PROSE, **check) is None


def test_every_text_in_a_folder_of_json_is_a_question(tmp_path):
    rows = [
        {"id": 1, "nested": {"choices": ["no", QUESTION]}},
        {"text": "été " * 5 + PROSE.replace(".", '"\n')},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    check = dict(decontaminate=str(tmp_path))
    assert (
        judge("x " + QUESTION, **check) == "decontaminate"
        and judge(PROSE, **check) == "decontaminate"
    )
    assert judge("été " * 6, **check) is None and judge("", **check) is None
    assert judge(" ".join(words(50, 1)), **check) is None


def test_a_missing_evaluation_is_told_at_once():
    with pytest.raises(FileNotFoundError) as missing:
        CurationConfig(decontaminate="no/such/file.txt")
    assert "no/such/file.txt" in explain(missing.value)


# ---------------------------------------------------------------------------------------------------------------------
# Copies


def signatures(texts: list[str], config: CurationConfig) -> list[np.ndarray]:
    return list(Curator(config).signatures(list(map(View, texts))))


def verdicts(texts: list[str], **options) -> list[str | None]:
    config = CurationConfig(duplicates_mb=16, **options)
    seen = Seen(config)
    return [seen.verdict(signature) for signature in signatures(texts, config)]


CHANGED = " ".join(PROSE.split()[:-1]) + " autumn.\n"


def test_the_first_of_several_copies_stays():
    texts = [PROSE, "other text", PROSE, CHANGED, PROSE]
    assert verdicts(texts) == [None] * 5
    assert verdicts(texts, duplicates="exact") == [
        None,
        None,
        "exact duplicate",
        None,
        "exact duplicate",
    ]
    near = [None, None, "exact duplicate", "near duplicate", "exact duplicate"]
    assert verdicts(texts, duplicates="near") == near


def test_case_spaces_and_punctuation_do_not_hide_a_near_copy():
    assert verdicts([PROSE, PROSE.upper().replace(". ", " !\n\n")], duplicates="near") == [
        None,
        "near duplicate",
    ]


def test_documents_without_words_are_no_copies_of_each_other():
    assert verdicts(["?", "!", "", "..."], duplicates="near") == [None] * 4


def test_documents_are_told_apart_by_their_last_byte():
    assert verdicts(["x" * 2000, "x" * 1999 + "y"], duplicates="exact") == [None, None]


@pytest.mark.parametrize("jaccard", [0.5, 0.72, 0.9])
def test_near_copies_are_found_as_often_as_the_formula_says(jaccard):
    """Pairs of documents that begin alike: of their 200 shingles each, `shared` are the same."""
    rng, size, pairs = random.Random(0), 200, 400
    shared = round(2 * size * jaccard / (1 + jaccard))
    texts = []
    for _ in range(pairs):
        first, second = ([str(rng.random()) for _ in range(size + 4)] for _ in range(2))
        texts += [
            " ".join(first).replace(".", ""),
            " ".join(first[: shared + 4] + second[shared + 4 :]).replace(".", ""),
        ]
    views = list(map(View, texts))
    both = [
        (set(a.shingles.tolist()), set(b.shingles.tolist()))
        for a, b in zip(views[::2], views[1::2])
    ]
    assert all(len(a & b) / len(a | b) == pytest.approx(jaccard, abs=0.01) for a, b in both)
    found = sum(np.isin(a, b).any() for a, b in zip(sketch(views[::2]), sketch(views[1::2])))
    assert found / pairs == pytest.approx(1 - (1 - jaccard**ROWS) ** BANDS, abs=0.08)


def test_memory_is_bounded_and_errors_come_as_often_as_the_docstring_says():
    config, columns = CurationConfig(duplicates="near", duplicates_mb=1), 1 + BANDS
    seen, rng = Seen(config), np.random.default_rng(0)
    assert 0.99 * 2**20 < seen.filter.size_in_bits / 8 < 1.01 * 2**20
    fits = int(2**23 / Seen.BITS / columns)
    kept = rng.integers(0, 2**64, (fits, columns), dtype=np.uint64)
    seen.remember(kept)
    new = rng.integers(0, 2**64, (2000, columns), dtype=np.uint64)
    lost = sum(any(part in seen.filter for part in row.tolist()) for row in new) / len(new)
    assert 0.5 < lost / (columns * Seen.RATE) < 2
    assert all(seen.verdict(row) for row in kept[::100])
    seen.remember(
        rng.integers(0, 2**64, (9 * fits, columns), dtype=np.uint64)
    )  # too many: more errors, no more memory
    assert seen.filter.size_in_bits / 8 < 1.01 * 2**20 and all(map(seen.verdict, new))


def test_more_memory_than_there_is_is_told():
    with pytest.raises(MemoryError):
        Seen(CurationConfig(duplicates="near", duplicates_mb=2**40))


def test_remembering_what_was_kept_gives_the_same_memory():
    config = CurationConfig(duplicates="near", duplicates_mb=1)
    rows = signatures([" ".join(words(30, seed)) for seed in range(50)] * 2, config)
    lived, again = Seen(config), Seen(config)
    kept = [row for row in rows if lived.verdict(row) is None]
    assert len(kept) == 50
    again.remember(np.array(kept[::-1]))
    assert lived.filter == again.filter


@pytest.mark.parametrize("duplicates", [None, "exact", "near"])
def test_remembering_works_with_every_option(duplicates):
    config = CurationConfig(duplicates=duplicates, duplicates_mb=1)
    rows = signatures([PROSE, CHANGED], config)
    seen = Seen(config)
    seen.remember(np.array(rows))
    assert seen.verdict(rows[0]) == (duplicates and "exact duplicate")


def test_no_band_is_taken_for_another():
    """All bands lie in one filter: two documents whose minima agree in different bands have nothing in common."""
    same = sketch([View("?")])[0]
    assert len(set(same.tolist())) == BANDS


def test_the_options_are_read_from_the_command_line():
    flags = ["--duplicates=near", "--duplicates_mb=8", "--quality=gopher,max_digits=0.15"]
    config = read_options(CurationConfig, flags, "prepare_data.py")
    assert (config.duplicates, config.duplicates_mb) == ("near", 8)
    assert Curator(config).rules["max_digits"] == 0.15
