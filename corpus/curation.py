"""What is left out of a corpus: what breaks a rule, copies, and evaluations.

Everything is off by default: rules for prose would drop most source code.

    View      one document, with what the rules need of it: its lines, its words and their hashes
    MEASURES  the numbers that rules limit; rules.toml holds the published limits
    Curator   in every worker: which rule drops a document, and a signature that recognises copies
    Seen      in the main process: whether the same document, or nearly the same, came before
"""

import contextlib
import hashlib
import importlib
import json
import re
import tomllib
import unicodedata
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import compress
from pathlib import Path
from typing import Literal
from zlib import crc32

import numpy as np
import regex
from rbloom import Bloom

from corpus.compressed import read_chunks
from corpus.formats import decode_text, format_of
from nanoloop.options import reading, require

SETS = tomllib.loads(Path(__file__).with_name("rules.toml").read_text(encoding="utf-8"))
LINES = SETS.pop("LINES")
KINDS = SETS.pop("KINDS")
ENGLISH = SETS.pop("ENGLISH")


@dataclass(frozen=True, kw_only=True)
class CurationConfig:
    """What is left out."""

    # drop copies; near: also texts that have about 0.7 of their words in a row in common
    duplicates: Literal["exact", "near"] | None = None
    duplicates_mb: int = 256  # memory for recognising copies; near: 256 MB for 8 million documents
    # rules: gopher, c4, fineweb for English, unicode for any language, or single ones, such as
    # gopher,max_digits=0.15
    quality: str | None = None
    languages: str | None = None  # keep only these, such as en,de; all: count them, drop none
    # evaluation set (text, JSON, Parquet): drop documents that share 13 words in a row with it
    decontaminate: str | None = None

    def __post_init__(self):
        Curator(self)  # before any text is read, it raises what is wrong with the options


# --------------------------------------------------------------------------------------------------
# A document as the rules see it

# One definition of a word serves all rules and copies. A text is folded, then cut by Unicode's
# segmentation (UAX #29). ICU's dictionaries find the words of scripts without spaces: Chinese,
# Japanese, Thai, Lao, Khmer, Burmese.


class Folding(dict):
    """What becomes of each character, by its code, for str.translate.

    A letter, a digit or a mark stays, an invisible character goes, all else becomes a space.
    """

    INVISIBLE = re.compile("VARIATION SELECTOR|JOINER|FILLER")

    def __missing__(self, code):
        character = chr(code)
        category = unicodedata.category(character)
        self[code] = character if category[0] in "LMN" else " "
        if category == "Cf" or self.INVISIBLE.search(unicodedata.name(character, "")):
            self[code] = None
        return self[code]


FOLDING = Folding()


def fold(text):
    """Return a text without case, punctuation and variants of a character.

    Copies differ in these: in curly quotes, no-break spaces, composed accents (NFKC), zero-width
    characters.
    """
    return unicodedata.normalize("NFKC", text).translate(FOLDING).casefold()


FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd: multiplying by it mixes hashes
BANDS = 14  # see Seen
ROWS = 8


def ngrams(hashes, n):
    """Hash n words in a row, (words - n + 1,) uint64; all words if there are fewer."""
    n = max(1, min(n, len(hashes)))
    count = len(hashes) - n + 1
    total = np.uint64(0)
    for i in range(n):
        total = total * FACTOR + hashes[i : count + i]
    return total


class View:
    """One document. What only some rules need is computed when it is first needed.

    raw: its text in UTF-8.
    """

    def __init__(self, text: str):
        self.text = text
        self.raw = text.encode("utf-8", "replace")

    @cached_property
    def words(self):
        """The words of the folded text, a list of str."""
        folded = fold(self.text)
        if folded.isascii():
            return folded.split()  # the same words, five times as fast
        from icu4py.breakers import WordBreaker

        parts = (part.strip(" ") for part in WordBreaker(folded, "und"))
        return list(filter(None, parts))

    @cached_property
    def n_words_and_signs(self):
        """How many words there are, and signs, such as # or --, alone between white space."""
        return len(self.words) + len(LONE_SIGNS.findall(self.text))

    @cached_property
    def is_thai_or_lao(self):
        return 2 * len(THAI_OR_LAO.findall(self.text)) > len(self.text)

    @cached_property
    def paragraphs(self):
        return [part.strip() for part in re.split(r"\n\s*\n", self.text)]

    @cached_property
    def lines(self):
        """The lines that are not empty, without white space around them, a list of str."""
        return list(filter(None, map(str.strip, self.text.splitlines())))

    @cached_property
    def hashes(self):
        """(words,) uint64: the hash of each word."""
        return FACTOR * np.array([crc32(word.encode()) for word in self.words], dtype=np.uint64)

    @cached_property
    def lengths(self):
        """(words,) int64: the characters of each word."""
        return np.fromiter(map(len, self.words), dtype=int)

    @cached_property
    def shingles(self):
        """(words - 4,) uint64: the hashes of five words in a row."""
        return ngrams(self.hashes, 5) if len(self.hashes) else self.digest

    @cached_property
    def digest(self):
        """(1,) uint64: a hash of the text."""
        return np.frombuffer(hashlib.sha256(self.raw).digest(), dtype="<u8", count=1)

    @cached_property
    def language(self):
        """The most likely language, such as "en" (langid.py: Lui and Baldwin 2012)."""
        import py3langid

        return py3langid.classify(self.text[:2000])[0]


def sketch(views):
    """Return the bands of each document, (documents, BANDS) uint64: see Seen."""
    from rensa import RMinHash

    shingles = [np.zeros(0, dtype=np.uint64)]
    shingles += [view.shingles for view in views]
    ends = np.cumsum([len(part) for part in shingles]).tolist()
    hashes = np.concatenate(shingles)
    minima = RMinHash.digest_matrix_from_flat_token_hashes(hashes, ends, BANDS * ROWS, 1).to_rows()
    minima = np.array(minima, dtype=np.uint64).reshape(-1, BANDS, ROWS)
    factors = np.cumprod(np.full(ROWS, FACTOR))
    mixed = (minima * factors).sum(axis=2, dtype=np.uint64)
    return mixed + np.arange(BANDS, dtype=np.uint64)


# --------------------------------------------------------------------------------------------------
# Quality. A rule is a measure with a limit, such as max_digits=0.15; it drops documents beyond it.


def share(part, total):
    return float(part / max(1, total))


def repeated(parts, size):
    """Return the share of parts that came before, each counted by size(part)."""
    total = sum(map(size, parts))
    return share(total - sum(map(size, set(parts))), total)


def ngram_share(view, n, kind):
    """Return the share of the words' characters inside certain n words in a row.

    kind: "top", the most frequent ones; "repeated", those that occurred before.
    """
    grams = ngrams(view.hashes, n)
    _, first, group, counts = np.unique(
        grams, return_index=True, return_inverse=True, return_counts=True
    )
    if kind == "top":
        top = np.append(counts, 1).argmax()
        is_start = (group == top) & (counts[group] > 1)
    else:
        is_start = np.arange(len(grams)) != first[group]
    is_inside = np.convolve(np.append(is_start, False), np.ones(n)) > 0
    covered = view.lengths[is_inside[: len(view.lengths)]]
    return share(covered.sum(), view.lengths.sum())


# Gopher's limits for n words in a row fall as n grows: 0.20, 0.18, 0.16 for the most frequent 2, 3,
# 4, and 0.15 to 0.10 for 5 to 10 that are repeated. The fall is added here, so that the first limit
# holds for all.
def top_ngrams(view):
    return max(ngram_share(view, n, "top") + 0.02 * (n - 2) for n in (2, 3, 4))


def repeated_ngrams(view):
    return max(ngram_share(view, n, "repeated") + 0.01 * (n - 5) for n in range(5, 11))


def lines_with(pattern):
    """Return a measure: the share of lines that a regular expression matches."""
    search = regex.compile(pattern, regex.IGNORECASE | regex.V1).search
    return lambda view: share(len(list(filter(search, view.lines))), len(view.lines))


def symbols(view):
    ellipses = view.text.count("...") + view.text.count("…")
    return share(max(view.text.count("#"), ellipses), view.n_words_and_signs)


# Gopher counts words by spaces, so a sign that stands alone is a word without a letter.
def alphabetic(view):
    count = sum(any(map(str.isalpha, word)) for word in view.words)
    return share(count, view.n_words_and_signs)


STOP_WORDS = {"the", "be", "to", "of", "and", "that", "have", "with"}
LONE_SIGNS = re.compile(r"(?<!\S)[^\w\s]+(?!\S)")
# Only ASCII's signs also stand inside numbers and addresses: a space follows the end.
SENTENCE_END = regex.compile(
    r"[.!?]\p{Sentence_Break=Close}*(?:\s|$)"
    r"|[[\p{Sentence_Break=STerm}\p{Sentence_Break=ATerm}]--[.!?]]",
    regex.V1,
)
# Thai and Lao end a sentence with a space, so these measures say nothing of them.
THAI_OR_LAO = regex.compile(r"[\p{Thai}\p{Lao}]")
NEED_SENTENCE_ENDS = ("sentences", "punctuated_lines")


MEASURES = {name: lines_with(pattern) for name, pattern in LINES.items()} | {
    # Gopher's
    "words": lambda view: len(view.words),
    "word_length": lambda view: share(view.lengths.sum(), len(view.words)),
    "symbols": symbols,
    "alphabetic": alphabetic,
    "stop_words": lambda view: len(STOP_WORDS & set(view.words)),
    "repeated_lines": lambda view: repeated(view.lines, bool),
    "repeated_line_chars": lambda view: repeated(view.lines, len),
    "repeated_paragraphs": lambda view: repeated(view.paragraphs, bool),
    "repeated_paragraph_chars": lambda view: repeated(view.paragraphs, len),
    "top_ngrams": top_ngrams,
    "repeated_ngrams": repeated_ngrams,
    # C4's
    "sentences": lambda view: len(SENTENCE_END.findall(view.text)),
    # NeMo Curator's limit is 0.15
    "digits": lambda view: share(len(re.findall(r"\d", view.text)), len(view.text)),
}


def read_rules(quality):
    """Return the limits by rule of "gopher,max_words=200000,max_bullets=off".

    The later of two limits counts. Raises UserError for an unknown rule.
    """
    rules = {}
    for part in quality.split(",") if quality else []:
        match = re.fullmatch(r"((?:min|max)_(\w+))=(off|\d*\.?\d+)", part)
        require(
            part in SETS or (match and match[2] in MEASURES),
            f"--quality must be {', '.join(SETS)}, or min_NAME= or max_NAME= with a number or off, "
            f"got {part!r}. A NAME is one of {', '.join(MEASURES)}",
        )
        if part in SETS:
            rules |= SETS[part]
        else:
            rules[match[1]] = float(match[3].replace("off", "nan"))  # no value is beyond nan
    return rules


# --------------------------------------------------------------------------------------------------
# The judge, in every worker


SHORTEST = 8  # words of an evaluation's text, as in GPT-3; equal shorter texts are chance


def long_ngrams(view):
    """Hash 13 words in a row, (n,) uint64; all words if there are SHORTEST to 12."""
    return ngrams(view.hashes, 13) if len(view.hashes) >= SHORTEST else view.hashes[:0]


@cache
def evaluation_ngrams(path):
    """Return the long_ngrams of all texts in a file or folder, sorted.

    Raises UserError. GPT-3 (Brown et al. 2020, arXiv:2005.14165, appendix C) cuts 200 characters
    around the overlap out of a document; here all of it goes. Every worker holds eight bytes a
    word.
    """
    path.stat()  # names a path that does not exist
    files = [path] if path.is_file() else sorted(path.rglob("[!.]*"))
    grams = [np.zeros(0, dtype=np.uint64)]
    for file in filter(Path.is_file, files):
        problem = f"--decontaminate={path}: {file} cannot be read"
        with reading(problem, "give text, JSON or Parquet, or leave it out"):
            texts = evaluation_texts(file)
        grams += [long_ngrams(View(text)) for text in texts]
    hint = "give the file with the evaluation's questions"
    message = f"--decontaminate={path} has no text of {SHORTEST} words or more: {hint}"
    require(any(map(len, grams)), message)
    return np.unique(np.concatenate(grams))


def evaluation_texts(file):
    """Return the texts in a file: the values of JSON and tables, or paragraphs."""
    kind, note = format_of(file, None)
    if kind in ("parquet", "arrow") and note is None:
        import pyarrow.dataset

        table = pyarrow.dataset.dataset(file, format=kind).to_table()
        table.validate(full=True)  # as in reading.table_cells
        return list(strings_in(table.to_pylist()))
    text, fault = decode_text(b"".join(read_chunks(file)))
    if note or fault == "binary":
        raise ValueError(f"it holds {note or 'binary data'}")
    lines = [line for line in text.split("\n") if line.strip()]
    for parts in ([text], lines):
        with contextlib.suppress(ValueError, RecursionError):
            return list(strings_in([json.loads(part, strict=False) for part in parts]))
    return text.split("\n\n")


def strings_in(value):
    """Yield each string among the values, not the keys, of nested JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from strings_in(part)


class Curator:
    """What the options say about a single document."""

    def __init__(self, config: CurationConfig):
        self.duplicates = config.duplicates
        self.rules = read_rules(config.quality)
        self.languages = None
        if config.languages:
            importlib.import_module("py3langid")
            self.languages = {*config.languages.split(",")}
        self.questions = None
        if config.decontaminate:
            self.questions = evaluation_ngrams(Path(config.decontaminate))

    def judge(self, view, is_file=False):
        """Return the rule that drops the document; None if it stays.

        is_file: it is a text file, or a piece of one, which may hold many documents: max_words
        does not hold.
        """
        for rule, limit in self.rules.items():
            bound, _, name = rule.partition("_")
            if is_file and rule == "max_words":
                continue
            if name in NEED_SENTENCE_ENDS and view.is_thai_or_lao:
                continue
            value = MEASURES[name](view)
            if value < limit if bound == "min" else value > limit:
                return f"{rule}={limit:g}"
        if self.languages and not {"all", view.language} & self.languages:
            return "language"
        if self.questions is not None and self.overlap(view).any():
            return "decontaminate"
        return None

    def overlap(self, view):
        """Say of each of the view's long_ngrams whether the evaluation has it, (n,) bool."""
        grams = long_ngrams(view)
        behind = np.searchsorted(self.questions, grams, "right")
        return behind > np.searchsorted(self.questions, grams)

    def without_questions(self, view):
        """Return (rest, passages): the text without lines that share words with the evaluation.

        The line before and the one behind go too, with the answer. The middle of a line of
        thousands of characters counts as its end. The rest is "" if it is no long text, or still
        shares words.
        """
        parts = re.findall(r"[^\n]{0,2000}[\s。]|[^\n]{1,2000}", view.text)
        line_of_word = np.repeat(np.arange(len(parts)), [len(View(part).words) for part in parts])
        is_out = np.zeros(len(parts) + 2, dtype=bool)
        for start in np.flatnonzero(self.overlap(view)):
            for line in line_of_word[start : start + 13]:
                is_out[line : line + 3] = True
        is_out = is_out[1:-1]
        rest = "".join(compress(parts, ~is_out))
        passages = "".join(compress(parts, is_out))
        is_long = len(passages) < len(rest) / 10
        return (rest if is_long and not self.overlap(View(rest)).any() else ""), passages

    def signatures(self, views):
        """Return what Seen needs of documents, (documents, columns) uint64.

        The first column is a hash of the text; with duplicates=near the bands follow.
        """
        digests = np.array([view.digest for view in views], dtype=np.uint64).reshape(-1, 1)
        if self.duplicates == "near":
            return np.hstack([digests, sketch(views)])
        return digests if self.duplicates else digests[:, :0]


# --------------------------------------------------------------------------------------------------
# Copies


class Seen:
    """Which documents came before: a Bloom filter, so memory is constant.

    The same documents in the same order give the same answers (LSHBloom: Khan et al. 2024,
    arXiv:2411.04257).

    Near copies are found by MinHash and locality-sensitive hashing. A document is the set of its
    shingles, five words in a row. BANDS * ROWS random orders of all shingles each pick the
    document's first one. If the shingles of two documents overlap by the Jaccard index J, a pick is
    the same with probability J. Near copies agree in all ROWS picks of some band, with probability
    1 - (1 - J**ROWS)**BANDS: 5 % at J = 0.5, 56 % at 0.7, 77 % at 0.75, 92 % at 0.8, 99.96 % at
    0.9. The threshold is about (1/14)**(1/8) = 0.72. These are FineWeb's numbers (arXiv:2406.17557,
    section 3.4).

    One filter holds the hash and the bands of every document, with an error of RATE up to the
    number of them that fits into duplicates_mb. So 256 MB are full after 8.5 million documents with
    duplicates=near (some 30 bytes a document), of which 0.45 % are lost at the end, and after 127
    million with duplicates=exact, 0.03 %. Beyond that the error grows, not the memory.
    """

    RATE = 3e-4  # the probability that something new is taken for known
    BITS = 16.9  # for each thing known: -log(RATE) / log(2)**2

    def __init__(self, config: CurationConfig):
        # Raises MemoryError where there is no room; rbloom would end the program.
        np.empty(config.duplicates_mb * 2**20, np.uint8)
        capacity = int(config.duplicates_mb * 2**23 / self.BITS)
        self.filter = Bloom(capacity, self.RATE, hash_func=int)

    def remember(self, signatures):
        """Remember the signatures of documents that were kept, of any shape, uint64."""
        self.filter.update(signatures.ravel().tolist())

    def verdict(self, signature):
        """Say what kind of copy a document is; remember one that is no copy."""
        known = [part in self.filter for part in signature.tolist()]
        if any(known):
            return "exact duplicate" if known[0] else "near duplicate"
        self.remember(signature)
        return None
