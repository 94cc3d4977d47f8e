"""What is left out of a corpus, and what is not: rules, copies, near copies, an evaluation."""

import gzip
import io
import json
import random
import sys
import unicodedata
from collections import Counter

import numpy as np
import pyarrow.parquet
import pytest
import zstandard

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
from corpus.writer import describe_drops
from nanoloop.options import UserError, explain, read_options
from prepare_data import PrepareConfig, prepare

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


# A text and its words.
WORDS = {
    "English": ("The U.S. didn't — x_Y, 3.14!", "the u s didn t x y 3 14"),
    "German": ("Straße: ÜBER-Größe", "strasse über grösse"),
    "Russian": ("Добрый день, мир", "добрый день мир"),
    "Arabic": ("مَرْحَبًا، كيف الحال؟", "مَرْحَبًا كيف الحال"),
    "Hindi": ("यह हिन्दी में है।", "यह हिन्दी में है"),
    "Korean": ("한국어는, 띄어쓰기가 있다.", "한국어는 띄어쓰기가 있다"),
    "Chinese": ("今天天气很好，我们去公园。", "今天 天气 很好 我们 去 公园"),
    "Japanese": (
        "東京都に住んでいます。コンピューター",
        "東京 都 に 住 んで い ます コンピューター",
    ),
    "Thai": ("ภาษาไทยไม่มีช่องว่าง", "ภาษา ไทย ไม่มี ช่อง ว่าง"),
    "Khmer": ("ខ្ញុំទៅផ្សារ", "ខ្ញុំ ទៅ ផ្សារ"),
    "signs alone": ("?! ... 🙂 \u0301", "\u0301"),
}


@pytest.mark.parametrize("language", WORDS)
def test_a_word_is_what_unicodes_segmentation_finds_in_the_folded_text(language):
    text, words = WORDS[language]
    view = View(text)
    assert view.words == words.split()
    assert view.lengths.tolist() == [len(word) for word in words.split()]


@pytest.mark.parametrize("gap", [" ", "'", "-", "_", ".", ",", "0", "e"])
def test_text_in_ascii_has_the_words_of_the_segmentation(gap):
    """Cutting it at its spaces is a shortcut: a Greek letter leads past it."""
    text = f"{gap}a{gap}B{gap}1{gap}{gap}x{gap}"
    assert View(f"{text} α").words == [*View(text).words, "α"]


# The same text as another program writes it.
DISGUISES = {
    "upper case": str.upper,
    "curly quotes": lambda text: text.replace("'", "\u2019").replace('"', "\u201c"),
    "dashes": lambda text: text.replace("-", "\u2014"),
    "decomposed": lambda text: unicodedata.normalize("NFD", text),
    "no-break spaces": lambda text: text.replace(" ", "\u202f"),
    "zero width": lambda text: "\ufeff" + "\u200b".join(text),
    "soft hyphens": lambda text: text.replace("e", "e\u00ad"),
    "selectors": lambda text: text.replace("e", "e\ufe0f"),
    "wide": lambda text: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text),
    "ligatures": lambda text: text.replace("fi", "\ufb01"),
    "Markdown": lambda text: text.replace(" the ", " **the** "),
}
ORIGINAL = (
    "\"It's the café's first well-lit evening,\" she said; the fine old naïve river-boat didn't "
    "stop before it had found the quay's end. Привет, мир - 한국어 और हिन्दी में Größe."
)


@pytest.mark.parametrize("disguise", DISGUISES)
def test_copies_in_disguise_are_found(disguise, tmp_path):
    copy = DISGUISES[disguise](ORIGINAL)
    assert copy != ORIGINAL
    assert verdicts([ORIGINAL, copy], duplicates="near") == [None, NEAR]
    assert verdicts([ORIGINAL, copy], duplicates="exact") == [None, None]
    (tmp_path / "exam.txt").write_text(ORIGINAL)
    assert judge(f"Before. {copy}", decontaminate=str(tmp_path)) == "decontaminate"


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
    "symbols": ("# a ... b … c", 2 / 6),  # a sign that stands alone counts as a word
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


# Sentence ends, lines that end in one, and digits of other scripts.
ELSEWHERE = [
    ("sentences", "今日は晴れ。寒い？「はい！」", 3),
    ("sentences", "यह है। वह है॥ كيف؟ نعم۔ ខ្ញុំ។", 5),
    ("sentences", "see www.x.org/?a=b for 3.5", 0),
    ("punctuated_lines", "晴れ。\nयह है।\nكيف؟\nno", 0.75),
    ("digits", "१२ab٣٤cd", 0.5),
]


@pytest.mark.parametrize("name, text, value", ELSEWHERE)
def test_measures_know_the_signs_of_other_scripts(name, text, value):
    assert MEASURES[name](View(text)) == pytest.approx(value)


THAI = "ภาษาไทยไม่มีเครื่องหมายจบประโยค ผู้เขียนเว้นวรรคแทน\n" * 3


def test_a_rule_about_sentence_ends_drops_no_text_of_a_script_without_them():
    rules = "min_sentences=3,min_punctuated_lines=0.5"
    assert judge(THAI, quality=rules) is None
    assert judge(f"{THAI} {THAI} (CPU, GPU)", quality=rules) is None
    assert judge(f"{PROSE[:9]} and a word, ไทย", quality=rules) == "min_sentences=3"


JAPANESE = """\
町が長いあいだ望んできた新しい図書館について話し合うため、委員会は火曜日に開かれた。
何人もの人が計画に賛成する意見を述べ、反対する人はいなかったが、費用をどこから出すのかとたずねた男性がいた。
会計係は、一部はすでに積み立ててあり、残りは十年かけて借り入れると答えた。短い休憩のあとで投票が行われた。
"""


def test_a_set_for_english_drops_japanese_and_the_set_for_any_language_keeps_it():
    assert judge(JAPANESE, quality="gopher") == "min_word_length=3"
    assert judge(JAPANESE, quality="unicode") is None
    assert judge("図書館 " * 100, quality="unicode") == "max_top_ngrams=0.2"


def test_a_text_file_may_have_any_length_and_a_row_may_not():
    """A text over 4 MB comes in pieces, which have more words than Gopher allows a document."""
    view = View("word " * 20)
    curator = Curator(CurationConfig(quality="max_words=10"))
    assert curator.judge(view) == "max_words=10"
    assert curator.judge(view, is_file=True) is None


def drop(n_documents: int, n_bytes: int) -> dict:
    return {"documents": n_documents, "bytes": n_bytes, "examples": [[9, "a.txt", "head"]]}


def test_what_was_dropped_is_summed_and_english_limits_are_named():
    rules = {"near duplicate": drop(55, 100), "min_words=50": drop(20, 720)}
    kept = {"documents": 135, "bytes": 180}
    assert describe_drops(rules, kept) == (
        "dropped 75 of 210 documents, 82% of the text: 55 near duplicate (such as a.txt), "
        "20 min_words=50 (such as a.txt)"
    )
    line = describe_drops(rules | {"min_stop_words=2": drop(20, 1)}, kept)
    assert "min_stop_words=2 is made for English" in line and "--quality=unicode" in line
    assert "unicode" not in describe_drops({"min_stop_words=2": drop(5, 1)}, kept)


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


@pytest.mark.parametrize("ending", [".\n", ". ", "。"])
def test_a_passage_of_a_long_text_takes_its_lines_and_not_the_text(tmp_path, ending):
    (tmp_path / "exam.txt").write_text(QUESTION)
    curator = Curator(CurationConfig(decontaminate=str(tmp_path)))
    parts = [f"Sentence {number} of a long book{ending}" for number in range(3000)]
    question = QUESTION.upper().replace(" ", "\n", 2)
    view = View("".join(parts[:1500]) + question + "\n" + "".join(parts[1500:]))
    assert curator.judge(view) == "decontaminate"
    rest, passages = curator.without_questions(view)
    assert curator.judge(View(rest)) is None
    assert question in passages and parts[1499] in passages and parts[1500] in passages
    assert len(rest) + len(passages) == len(view.text)
    assert len(passages) < 6500


def test_what_a_passage_takes_out_of_a_text_is_counted_and_a_short_text_goes(tmp_path):
    (tmp_path / "exam.txt").write_text(QUESTION)
    (tmp_path / "s").mkdir()
    book = "".join(f"Line {number} of the book.\n" for number in range(900))
    (tmp_path / "s" / "book.txt").write_text(f"{book}{QUESTION}\n{book}")
    (tmp_path / "s" / "page.txt").write_text(f"{PROSE}{QUESTION}")
    (tmp_path / "s" / "prose.txt").write_text(PROSE)
    options = {"val_fraction": 0, "test_fraction": 0, "decontaminate": str(tmp_path / "exam.txt")}
    folder = prepare(PrepareConfig(source=(str(tmp_path / "s"),), **options), tmp_path / "data")
    meta = json.loads((folder / "meta.json").read_bytes())
    [(_, where, _)] = meta["notes"]["left out: lines with words of the evaluation"]["examples"]
    assert where.startswith(f"{tmp_path}/s/book.txt, 131 characters: 'Line 899 of the book.")
    [(_, where, _)] = meta["dropped"]["decontaminate"]["examples"]
    assert where == f"{tmp_path}/s/page.txt"
    assert meta["splits"]["train"]["bytes"] == 2 * len(book) - 42 + len(PROSE)


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


WRITERS = {
    "a.txt": str.encode,
    "a.jsonl.gz": lambda text: gzip.compress(json.dumps({"q": text}).encode()),
    "a.txt.zst": lambda text: zstandard.compress(text.encode()),
    "utf16.txt": lambda text: text.encode("utf-16"),
    "mark.json": lambda text: json.dumps([{"a": {"b": [1, text]}}], indent=1).encode("utf-8-sig"),
    "a.csv": lambda text: f'id,question\n1,"{text}"\n'.encode(),
    "a.parquet": lambda text: write_parquet(text),
    "broken.jsonl": lambda text: json.dumps({"q": text}).encode() + b'\n{"q": "cut',
}


def write_parquet(text: str) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"id": [1], "choices": [["no", text]]}), file)
    return file.getvalue()


@pytest.mark.parametrize("name", WRITERS)
def test_an_evaluation_is_read_whatever_its_format(name, tmp_path):
    (tmp_path / name).write_bytes(WRITERS[name](QUESTION))
    options = {"decontaminate": str(tmp_path / name)}
    assert judge(f"{PROSE} {QUESTION}", **options) == "decontaminate"
    assert judge(PROSE, **options) is None


def test_a_document_that_equals_a_key_or_a_short_answer_stays(tmp_path):
    key = "a key of no less than eight words in all"
    row = {"question": QUESTION, key: "yes", "answer": "seven words are too few for this"}
    (tmp_path / "a.json").write_text(json.dumps(row))
    options = {"decontaminate": str(tmp_path)}
    for text in ("question", "answer", "Yes.", key, row["answer"], "other words " * 30):
        assert judge(text, **options) is None
    (tmp_path / "a.json").write_text(json.dumps([key]))
    assert judge(key + "!", decontaminate=str(tmp_path / "a.json")) == "decontaminate"


def test_thirteen_words_are_no_thirteen_characters(tmp_path):
    first, _, _ = JAPANESE.splitlines()
    (tmp_path / "a.txt").write_text(JAPANESE)
    options = {"decontaminate": str(tmp_path)}
    assert len(View(first[:17]).words) < 13
    assert judge("駅で" + first[:17] + "本を買った。" * 9, **options) is None
    assert judge("駅で。" + first[:40] + "本を買った。" * 9, **options) == "decontaminate"


NO_EVALUATION = {
    "a.txt": (b"", "no text of 8 words or more"),
    "a.json": (b'{"a": ["few words"]}', "no text of 8 words or more"),
    "a.bin": (bytes(range(256)) * 20, "binary data"),
    "a.zip": (b"PK\x03\x04", "unzip"),
    "a.gz": (gzip.compress(b"words " * 99)[:-9], "cannot be read"),
}


@pytest.mark.parametrize("name", NO_EVALUATION)
@pytest.mark.parametrize("is_folder", [False, True])
def test_an_evaluation_without_text_is_a_clear_error(name, is_folder, tmp_path):
    content, message = NO_EVALUATION[name]
    (tmp_path / name).write_bytes(content)
    path = tmp_path if is_folder else tmp_path / name
    with pytest.raises(UserError, match=message):
        CurationConfig(decontaminate=str(path))


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
