"""What is left out of a corpus: copies, near copies, documents that break a rule, documents an evaluation asks about.

Everything is off by default: rules made for prose would drop most source code. Each option is one field below.

    View      one document, with what the rules ask about it: its lines, its words, the hashes of its words
    MEASURES  numbers that a rule compares with a threshold, each with the paper it comes from
    Curator   in every worker: which rule drops a document, and the signature by which copies are recognised
    Seen      in the main process: whether a document, or nearly the same one, came before
"""

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from console import require


@dataclass(frozen=True, kw_only=True)
class CurationConfig:
    """What is left out. Raises UserError for rules that do not exist and files that are not there."""

    duplicates: Literal["exact", "near"] | None = None  # drop copies; near: also texts with about 0.7 of it in common
    duplicates_mb: int = 256  # memory for recognising them: enough for 5 million documents with near
    quality: str | None = None  # sets of rules (gopher, c4, fineweb, code) or single ones, as gopher,max_digits=0.15
    languages: str | None = None  # keep documents in these alone, as en,de; all: count the languages, drop none
    decontaminate: str | None = None  # evaluation set, text or JSON: drop documents with 13 words in a row from it

    def __post_init__(self):
        require(self.duplicates_mb >= 1, f"duplicates_mb={self.duplicates_mb} must be at least 1")
        told = f"--decontaminate={self.decontaminate}: no such file or folder. Give the evaluation set's text or JSON"
        require(self.decontaminate is None or Path(self.decontaminate).exists(), told)
        known = re.fullmatch("all|[a-z]{2}(,[a-z]{2})*", self.languages or "all")
        require(known, f"--languages={self.languages}: give codes of two letters, as en or en,de, or all")
        read_rules(self.quality)
        if self.languages:
            _ = View("").language  # a missing library is told now, not after an hour


# ---------------------------------------------------------------------------------------------------------------------
# A document as the rules see it

VIEW_CHARS = 2**24  # of a longer document only the beginning is looked at, so that memory stays bounded
# Letters in lower case, digits, and all bytes of non-ASCII characters; anything else parts words and becomes 0.
FOLD = bytes(i if i >= 128 else ord(chr(i).lower()) if chr(i).isalnum() else 0 for i in range(256))


def mixed(x: np.ndarray) -> np.ndarray:
    """uint64 to uint64, one to one, every bit depending on all: the finaliser of splitmix64 (Steele et al. 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class View:
    """One document; what several rules need is computed once, when it is first asked for."""

    def __init__(self, text: str):
        self.raw = text.encode("utf-8", "replace")  # all of it: copies are told apart by their last byte too
        self.text = text[:VIEW_CHARS]

    words = cached_property(lambda self: self.text.split())  # what stands between white space
    lines = cached_property(lambda self: [line.strip() for line in self.text.splitlines() if line.strip()])
    digest = cached_property(lambda self: np.frombuffer(hashlib.sha256(self.raw).digest()[:8], dtype="<u8"))
    shingles = cached_property(lambda self: self.ngrams(5) if len(self.tokens[0]) else self.digest)

    @cached_property
    def tokens(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(hash, position in bytes, length in bytes) of every run of letters and digits, upper case as lower case.

        Characters of three bytes or more in UTF-8 begin a run: Chinese or Thai has no spaces, there a character counts
        as a word. A hash is made of a run's first eight bytes, its last eight and its length, which numpy reads from
        every position at once: no loop over characters, about 5 ms per megabyte.
        """
        folded = np.frombuffer(bytes(8) + self.raw[:VIEW_CHARS].translate(FOLD) + bytes(8), dtype=np.uint8)
        cuts = np.flatnonzero(((folded[1:] > 0) != (folded[:-1] > 0)) | (folded[1:] >= 0xE0)) + 1
        inside = folded[cuts[:-1]] > 0
        starts, ends = cuts[:-1][inside], cuts[1:][inside]
        windows = np.ndarray(len(folded) - 7, "<u8", folded, strides=(1,))  # the eight bytes from every position on
        spare = (64 - 8 * np.minimum(ends - starts, 8)).astype(np.uint64)  # bits of them that are not the run's
        hashes = mixed(windows[starts] << spare) + mixed((windows[ends - 8] >> spare) + (ends - starts).astype("<u8"))
        return hashes, starts - 8, ends - starts

    def ngrams(self, n: int) -> np.ndarray:
        """Hashes of all n words in a row, (words - n + 1,) uint64; of all words at once where there are fewer."""
        n = min(n, len(self.tokens[0]))
        total = np.zeros(len(self.tokens[0]) - n + 1, dtype=np.uint64)
        for i in range(n):
            total = total * np.uint64(0x9E3779B97F4A7C15) + self.tokens[0][i : i + len(total)]
        return mixed(total)

    @cached_property
    def bands(self) -> np.ndarray:
        """(BANDS,) uint64: two documents that have one of them in common are taken for near copies."""
        from rensa import RMinHash

        rows = RMinHash.digest_matrix_from_flat_token_hashes(self.shingles, [0, len(self.shingles)], BANDS * ROWS, 1)
        minima = np.array(rows.to_rows(), dtype=np.uint64).reshape(BANDS, ROWS)
        weights = mixed(np.arange(1, ROWS + 1, dtype=np.uint64)) | np.uint64(1)
        return mixed((minima * weights).sum(axis=1, dtype=np.uint64))

    @cached_property
    def language(self) -> str:
        """The most likely language of the beginning, as "en" (langid.py: Lui and Baldwin 2012)."""
        import py3langid

        return py3langid.classify(self.text[:2000])[0]


# ---------------------------------------------------------------------------------------------------------------------
# Quality. A rule is a measure with a limit, as max_digits=0.15; it drops the document that lies beyond.


def share(part, whole) -> float:
    return part / max(1, whole)


def lines_that(test):
    """The measure "share of the lines that pass this test"."""
    return lambda view: share(sum(map(bool, map(test, view.lines))), len(view.lines))


def repeated(view: View, n: int, top: bool) -> float:
    """Share of the words' bytes inside the most frequent n words in a row, or inside n words that occurred before."""
    lengths = view.tokens[2]
    _, first, place, counts = np.unique(view.ngrams(n), return_index=True, return_inverse=True, return_counts=True)
    inside = (place == counts.argmax()) & (counts.max() > 1) if top else np.arange(len(place)) != first[place]
    covered = np.convolve(inside, np.ones(n))[: len(lengths)] > 0
    return share(float(lengths[covered].sum()), lengths.sum())


POLICY = re.compile("javascript|terms of use|privacy policy|cookie policy|uses? (of )?cookies", re.IGNORECASE).search
STOP_WORDS = {"the", "be", "to", "of", "and", "that", "have", "with"}
MEASURES = {
    # Gopher: Rae et al. 2021, arXiv:2112.11446, appendix A.1.1. Words are what stands between white space.
    "words": lambda v: len(v.words),
    "word_length": lambda v: share(sum(map(len, v.words)), len(v.words)),
    "symbols": lambda v: share(max(v.text.count("#"), v.text.count("...") + v.text.count("…")), len(v.words)),
    "bullets": lines_that(lambda line: line[0] in "•‣▪*-"),
    "ellipses": lines_that(lambda line: line.endswith(("...", "…"))),
    "alphabetic": lambda v: share(sum(any(map(str.isalpha, word)) for word in v.words), len(v.words)),
    "stop_words": lambda v: len(STOP_WORDS & set(v.text.lower().split())),
    # … and its table A1. The limits of n-grams fall as n grows, 0.20, 0.18, 0.16 for the most frequent 2-, 3-, 4-gram
    # and 0.15 … 0.10 for repeated 5- to 10-grams: what they fall by is added here, so that the first limit is for all.
    "repeated_lines": lambda v: share(len(v.lines) - len(set(v.lines)), len(v.lines)),
    "repeated_line_chars": lambda v: 1 - share(sum(map(len, set(v.lines))), sum(map(len, v.lines))) if v.lines else 0.0,
    "top_ngrams": lambda v: max(repeated(v, n, top=True) + 0.02 * (n - 2) for n in (2, 3, 4)),
    "repeated_ngrams": lambda v: max(repeated(v, n, top=False) + 0.01 * (n - 5) for n in range(5, 11)),
    # C4: Raffel et al. 2020, arXiv:1910.10683, section 2.2. It deletes lines that speak of JavaScript or policies;
    # a document is left whole here, or dropped where such lines are too many (a limit of this project's own).
    "sentences": lambda v: len(re.findall(r"[.!?][\"'”’)]*(?:\s|$)", v.text)),
    "placeholders": lambda v: v.text.lower().count("lorem ipsum") + v.text.count("{"),
    "policy_lines": lines_that(POLICY),
    # FineWeb: Penedo et al. 2024, arXiv:2406.17557, section 3.6.
    "punctuated_lines": lines_that(lambda line: line.endswith((".", "!", "?", '"', "”", "…"))),
    "short_lines": lines_that(lambda line: len(line) < 30),
    # Code: Chen et al. 2021 (Codex), arXiv:2107.03374, section 3.1; the share of letters and digits as in StarCoder,
    # Li et al. 2023, arXiv:2305.06161. Digits: no published set here has them; NeMo Curator's limit is 0.15.
    "mean_line": lambda v: share(sum(map(len, v.lines)), len(v.lines)),
    "longest_line": lambda v: max(map(len, v.lines), default=0),
    "alphanumeric": lambda v: share(sum(map(str.isalnum, v.text)), len(v.text)),
    "digits": lambda v: share(sum(map(v.text.count, "0123456789")), len(v.text)),
}
SETS = {
    "gopher": "min_words=50,max_words=100000,min_word_length=3,max_word_length=10,max_symbols=0.1,max_bullets=0.9,"
    "max_ellipses=0.3,min_alphabetic=0.8,min_stop_words=2,max_repeated_lines=0.3,max_repeated_line_chars=0.2,"
    "max_top_ngrams=0.2,max_repeated_ngrams=0.15",
    "c4": "min_sentences=3,max_placeholders=0,max_policy_lines=0.1",
    "fineweb": "min_punctuated_lines=0.12,max_repeated_line_chars=0.1,max_short_lines=0.67",
    "code": "max_mean_line=100,max_longest_line=1000,min_alphanumeric=0.25",
}


def read_rules(quality: str | None) -> dict[str, float]:
    """Rule to limit from "gopher,max_words=200000,max_bullets=off": what stands later counts. Raises UserError."""
    rules: dict[str, float] = {}
    for entry in ",".join(SETS.get(part, part) for part in quality.split(",")).split(",") if quality else ():
        rule, _, limit = entry.partition("=")
        known = rule[:4] in ("min_", "max_") and rule[4:] in MEASURES and re.fullmatch(r"[0-9]*\.?[0-9]+|off", limit)
        told = f"--quality: {entry!r} is no rule. Give {', '.join(SETS)}, or min_NAME=… or max_NAME=… (or =off) of"
        require(known, f"{told}: {', '.join(MEASURES)}; as --quality=gopher,max_digits=0.15")
        rules.pop(rule, None)
        rules |= {rule: float(limit)} if limit != "off" else {}
    return rules


# ---------------------------------------------------------------------------------------------------------------------
# The judge, in every worker


def evaluation_ngrams(path: Path) -> np.ndarray:
    """Hashes of all 13 words in a row in a file or folder, sorted; from .json and .jsonl every string that is in them.

    GPT-3's appendix C (Brown et al. 2020, arXiv:2005.14165) cuts 200 characters around the overlap out of a document;
    here all of it goes. Eight bytes a word are held in every worker.
    """
    texts: list[str] = []
    for file in sorted(file for file in path.rglob("*") if file.is_file()) or [path]:
        content = file.read_bytes()
        require(b"\0" not in content, f"--decontaminate: {file} is not text. Give plain text, .json or .jsonl")
        text = content.decode("utf-8", errors="replace")
        strings = re.findall(r'"(?:[^"\\]|\\.)*"', text) if ".json" in file.suffix else []
        texts += [json.loads(string, strict=False) for string in strings] or [text]
    return np.unique(np.concatenate([View(text).ngrams(13) for text in texts]))


class Curator:
    """What the options ask of a single document."""

    def __init__(self, config: CurationConfig):
        self.config, self.rules = config, read_rules(config.quality)
        self.questions = evaluation_ngrams(Path(config.decontaminate)) if config.decontaminate else None

    def judge(self, view: View) -> str | None:
        """The rule that drops the document, None for one that stays."""
        for rule, limit in self.rules.items():
            value = MEASURES[rule[4:]](view)
            if value < limit if rule.startswith("min") else value > limit:
                return f"{rule}={limit:g}"
        if self.config.languages not in (None, "all") and view.language not in self.config.languages.split(","):
            return "language"
        if self.questions is not None:
            ngrams = view.ngrams(13)
            place = np.searchsorted(self.questions, ngrams).clip(max=len(self.questions) - 1)
            return "decontaminate" if (self.questions[place] == ngrams).any() else None

    def language(self, view: View) -> str | None:
        return view.language if self.config.languages else None

    def signature(self, view: View) -> np.ndarray | None:
        """By which Seen knows a document: (1,) uint64, its hash, and behind it with duplicates=near its BANDS."""
        if not self.config.duplicates:
            return None
        return np.concatenate([view.digest, view.bands]) if self.config.duplicates == "near" else view.digest


# ---------------------------------------------------------------------------------------------------------------------
# Copies

# Near copies are found by MinHash and locality-sensitive hashing. A document is its set of shingles, five words in a
# row. Of BANDS × ROWS random orders of all shingles, each keeps the document's first: where the shingles of two
# documents overlap by the Jaccard index J, they agree in each with chance J. They are near copies if all ROWS of some
# band agree: with chance 1 - (1 - J^ROWS)^BANDS, which is 5 % at J = 0.5, 56 % at 0.7, 77 % at 0.75, 92 % at 0.8 and
# 99.96 % at 0.9; a threshold of about (1/14)^(1/8) = 0.72. FineWeb's numbers (arXiv:2406.17557, section 3.4).
BANDS, ROWS = 14, 8
PROBES = 7


class Seen:
    """Which documents came before, in memory that does not grow with them: one Bloom filter for the hash and one for
    each band (LSHBloom: Khan et al. 2024, arXiv:2411.04257). Used in the order of the documents it is deterministic.

    A filter is M bits, of which every document sets PROBES = k. It never forgets, but n documents later it takes a new
    one for known with chance (1 - e^(-kn/M))^k, and the 15 filters of duplicates=near with up to 15 times that. With
    256 MB (M = 143 million) 0.03 % of new documents are lost after 5 million, 2 % after 10 million, so memory has to
    grow in proportion: 50 bytes a document. With duplicates=exact one filter has it all: 100 million at 0.04 %.
    """

    def __init__(self, config: CurationConfig):
        columns = {None: 0, "exact": 1, "near": 1 + BANDS}[config.duplicates]
        self.bits = config.duplicates_mb * 2**23 // max(1, columns)
        self.filters = np.zeros((columns, self.bits // 8 + 1), dtype=np.uint8)

    def places(self, signatures: np.ndarray) -> tuple:
        """Indices (filter, byte) and the bit in that byte, for signatures (…, columns): each (…, columns, PROBES)."""
        step = mixed(signatures) | np.uint64(1)  # double hashing: Kirsch and Mitzenmacher 2006
        place = (signatures[..., None] + np.arange(PROBES, dtype=np.uint64) * step[..., None]) % np.uint64(self.bits)
        return (np.arange(len(self.filters))[:, None], place >> 3), np.uint8(1) << (place & 7).astype(np.uint8)

    def replay(self, signatures: np.ndarray) -> None:
        """Remember the documents with these signatures, (n, columns) uint64, in any order."""
        index, bit = self.places(signatures)
        np.bitwise_or.at(self.filters, index, bit)

    def verdict(self, signature: np.ndarray | None) -> str | None:
        """Whether a document is a copy of one that came before; one that is not is remembered."""
        if signature is None:
            return None
        index, bit = self.places(signature)
        known = (self.filters[index] & bit > 0).all(axis=1)
        if known.any():
            return "exact duplicate" if known[0] else "near duplicate"
        np.bitwise_or.at(self.filters, index, bit)

    def false_positives(self) -> float:
        """The chance that the next document is dropped although nothing like it came before."""
        filled = [np.bitwise_count(row).sum(dtype=np.int64) / self.bits for row in self.filters]
        return float(1 - np.prod([1 - share**PROBES for share in filled]))
