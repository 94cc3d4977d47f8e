"""What is left out of a corpus: documents that break a rule, that an evaluation asks about, and copies.

Everything is off by default: rules made for prose would drop most source code. Each option is one field below.

    View      one document, with what the rules ask about it: its lines, its words, the hashes of its words
    MEASURES  numbers that a rule compares with a limit; the limits that were published are in rules.toml
    Curator   in every worker: which rule drops a document, and the signature by which copies are recognised
    Seen      in the main process: whether a document, or nearly the same one, came before
"""

import hashlib
import importlib
import json
import re
import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal
from zlib import crc32

import numpy as np
from rbloom import Bloom

from nanoloop.options import require

SETS = tomllib.loads(Path(__file__).with_name("rules.toml").read_text(encoding="utf-8"))
LINES, KINDS = SETS.pop("LINES"), SETS.pop("KINDS")


@dataclass(frozen=True, kw_only=True)
class CurationConfig:
    """What is left out. Raises UserError for a rule that does not exist, an OSError for a file that does not."""

    duplicates: Literal["exact", "near"] | None = (
        None  # drop copies; near: also texts with about 0.7 of it in common
    )
    duplicates_mb: int = (
        256  # memory for recognising them: enough for 8 million documents with near
    )
    quality: str | None = (
        None  # sets of rules (gopher, c4, fineweb) or single ones, as gopher,max_digits=0.15
    )
    languages: str | None = (
        None  # keep documents in these alone, as en,de; all: count the languages, drop none
    )
    decontaminate: str | None = (
        None  # evaluation set, text or JSON: drop documents with 13 words in a row from it
    )

    def __post_init__(self):
        Curator(self)  # whatever does not fit is told now


# ---------------------------------------------------------------------------------------------------------------------
# A document as the rules see it

# A word is a run of letters and digits. Characters of three bytes or more are words of their own, for Chinese or Thai has
# no spaces; those of two bytes (Greek, é) stand in runs.
WORD = re.compile(rb"[0-9A-Za-z\xc2-\xdf][0-9A-Za-z\x80-\xdf]*|[\xe0-\xff][\x80-\xbf]*")
ODD = np.uint64(0x9E3779B97F4A7C15)  # a factor to mix with
BANDS, ROWS = 14, 8  # see Seen
COLUMNS = {None: 0, "exact": 1, "near": 1 + BANDS}  # of a signature


def ngrams(hashes: np.ndarray, n: int) -> np.ndarray:
    """Hashes of all n words in a row, (words - n + 1,) uint64; of all words at once where there are fewer."""
    n, total = max(1, min(n, len(hashes))), np.uint64(0)
    for i in range(n):
        total = total * ODD + hashes[i : len(hashes) - n + 1 + i]
    return total


class View:
    """One document. What only some rules need is computed when it is first asked for.

    raw: its text in UTF-8. hashes, lengths, places: of every word that WORD finds, in either case, its hash (uint64),
    its length in bytes and where it begins. shingles: hashes of five of them in a row.
    """

    def __init__(self, text: str):
        self.text, self.raw = text, text.encode("utf-8", "replace")

    words = cached_property(lambda self: self.text.split())  # what stands between white space
    paragraphs = cached_property(
        lambda self: [part.strip() for part in re.split(r"\n\s*\n", self.text)]
    )
    lines = cached_property(
        lambda self: [line.strip() for line in self.text.splitlines() if line.strip()]
    )
    hashes = cached_property(
        lambda self: ODD * np.array([crc32(w) for w in WORD.findall(self.raw.lower())], np.uint64)
    )
    lengths = cached_property(
        lambda self: np.array([len(word) for word in WORD.findall(self.raw)], dtype=int)
    )
    places = cached_property(
        lambda self: np.array([word.start() for word in WORD.finditer(self.raw)], dtype=int)
    )
    shingles = cached_property(
        lambda self: ngrams(self.hashes, 5) if len(self.hashes) else self.digest
    )
    digest = cached_property(
        lambda self: np.frombuffer(hashlib.sha256(self.raw).digest()[:8], dtype="<u8")
    )
    # The most likely language of the beginning, as "en" (langid.py: Lui and Baldwin 2012).
    language = cached_property(
        lambda self: importlib.import_module("py3langid").classify(self.text[:2000])[0]
    )


def sketch(views: list[View]) -> np.ndarray:
    """The bands of each document, (documents, BANDS) uint64: see Seen. Many at once, for one call costs as much."""
    from rensa import RMinHash

    flat = np.concatenate([np.zeros(0, dtype=np.uint64), *(view.shingles for view in views)])
    ends = np.cumsum([0] + [len(view.shingles) for view in views]).tolist()
    minima = RMinHash.digest_matrix_from_flat_token_hashes(flat, ends, BANDS * ROWS, 1).to_rows()
    minima = np.array(minima, dtype=np.uint64).reshape(-1, BANDS, ROWS)
    return (minima * np.cumprod(np.full(ROWS, ODD))).sum(axis=2, dtype=np.uint64) + np.arange(
        BANDS, dtype=np.uint64
    )


# ---------------------------------------------------------------------------------------------------------------------
# Quality. A rule is a measure with a limit, as max_digits=0.15; it drops the document that lies beyond.


def share(part, whole) -> float:
    return float(part / max(1, whole))


def again(parts: list[str], size) -> float:
    """Share of the parts that came before, each counted by its size(): bool for their number, len for characters."""
    return share(sum(map(size, parts)) - sum(map(size, set(parts))), sum(map(size, parts)))


def repeated(view: View, n: int, top: bool) -> float:
    """Share of the words' bytes inside the most frequent n words in a row, or inside n words that occurred before."""
    lengths, grams = view.lengths, ngrams(view.hashes, n)
    _, first, place, counts = np.unique(
        grams, return_index=True, return_inverse=True, return_counts=True
    )
    most = np.append(counts, 1).argmax()  # where none occurs twice, one that is not there
    inside = (place == most) & (counts[place] > 1) if top else np.arange(len(place)) != first[place]
    return share(
        lengths[np.convolve(np.append(inside, False), np.ones(n))[: len(lengths)] > 0].sum(),
        lengths.sum(),
    )


STOP_WORDS = {"the", "be", "to", "of", "and", "that", "have", "with"}
MEASURES = {
    name: lambda v, find=re.compile(pattern, re.IGNORECASE).search: share(
        sum(map(bool, map(find, v.lines))), len(v.lines)
    )
    for name, pattern in LINES.items()
} | {
    # Gopher's; words are what stands between white space.
    "words": lambda v: len(v.words),
    "word_length": lambda v: share(sum(map(len, v.words)), len(v.words)),
    "symbols": lambda v: share(
        max(v.text.count("#"), v.text.count("...") + v.text.count("…")), len(v.words)
    ),
    "alphabetic": lambda v: share(
        sum(any(map(str.isalpha, word)) for word in v.words), len(v.words)
    ),
    "stop_words": lambda v: len(STOP_WORDS & set(v.text.lower().split())),
    "repeated_lines": lambda v: again(v.lines, bool),
    "repeated_line_chars": lambda v: again(v.lines, len),
    "repeated_paragraphs": lambda v: again(v.paragraphs, bool),
    "repeated_paragraph_chars": lambda v: again(v.paragraphs, len),
    # Its limits for n-grams fall as n grows: 0.20, 0.18, 0.16 for the most frequent 2-, 3-, 4-gram, 0.15 to 0.10 for
    # repeated 5- to 10-grams. What they fall by is added here, so that the first limit is the limit for all.
    "top_ngrams": lambda v: max(repeated(v, n, top=True) + 0.02 * (n - 2) for n in (2, 3, 4)),
    "repeated_ngrams": lambda v: max(
        repeated(v, n, top=False) + 0.01 * (n - 5) for n in range(5, 11)
    ),
    "sentences": lambda v: len(re.findall(r"[.!?][\"'”’)]*(?:\s|$)", v.text)),  # C4's
    "digits": lambda v: share(
        sum(map(v.text.count, "0123456789")), len(v.text)
    ),  # NeMo Curator's limit is 0.15
}


def read_rules(quality: str | None) -> dict[str, float]:
    """Rule to limit from "gopher,max_words=200000,max_bullets=off": the later one counts. Raises UserError."""
    rules: dict[str, float] = {}
    for part in quality.split(",") if quality else ():
        match = re.fullmatch(r"((?:min|max)_(\w+))=(off|\d*\.?\d+)", part)
        told = f"--quality: {part!r} is none of {', '.join(SETS)}, nor min_NAME= or max_NAME= and a number or off, of"
        require(part in SETS or (match and match[2] in MEASURES), f"{told} {', '.join(MEASURES)}")
        rules |= SETS[part] if part in SETS else {match[1]: float(match[3].replace("off", "nan"))}
    return rules  # nothing is below or above nan


# ---------------------------------------------------------------------------------------------------------------------
# The judge, in every worker


def evaluation_ngrams(path: Path) -> np.ndarray:
    """Hashes of all 13 words in a row in a file or folder, sorted; from .json and .jsonl every string that is in them.

    Plain text is read by paragraphs. GPT-3 (Brown et al. 2020, arXiv:2005.14165, appendix C) cuts 200 characters around
    the overlap out of a document; here all of it goes. Eight bytes a word are held in every worker.
    """
    grams = []
    for file in sorted(file for file in path.rglob("*") if file.is_file()) or [path]:
        text = file.read_text(encoding="utf-8", errors="replace")
        strings = re.findall(r'"(?:[^"\\]|\\.)*"', text) if ".json" in file.suffix else []
        items = [json.loads(string, strict=False) for string in strings] or text.split("\n\n")
        grams += [ngrams(View(item).hashes, 13) for item in items]
    return np.unique(np.concatenate(grams))


class Curator:
    """What the options ask of a single document."""

    def __init__(self, config: CurationConfig):
        self.config, self.rules = config, read_rules(config.quality)
        self.questions = (
            evaluation_ngrams(Path(config.decontaminate)) if config.decontaminate else None
        )
        if config.languages:
            View("").language  # loads the library, or says that it is missing

    def judge(self, view: View) -> str | None:
        """The rule that drops the document; None for one that stays."""
        for rule, limit in self.rules.items():
            value = MEASURES[rule[4:]](view)
            if value < limit if rule.startswith("min") else value > limit:
                return f"{rule}={limit:g}"
        if self.config.languages and not {"all", view.language} & set(
            self.config.languages.split(",")
        ):
            return "language"
        if self.questions is not None and len(asked := ngrams(view.hashes, 13)):
            nearest = np.searchsorted(self.questions, asked).clip(max=len(self.questions) - 1)
            return "decontaminate" if (self.questions[nearest] == asked).any() else None

    def signatures(self, views: list[View]) -> np.ndarray:
        """By which Seen knows documents, (documents, columns) uint64: a hash, with duplicates=near the bands too."""
        digests = np.array([view.digest for view in views], dtype=np.uint64).reshape(-1, 1)
        found = np.hstack([digests, sketch(views)]) if self.config.duplicates == "near" else digests
        return found[:, : COLUMNS[self.config.duplicates]]


# ---------------------------------------------------------------------------------------------------------------------
# Copies


class Seen:
    """Which documents came before, in a Bloom filter, whose memory does not grow (LSHBloom: Khan et al. 2024,
    arXiv:2411.04257). Asked in the order of the documents it is deterministic.

    Near copies are found by MinHash and locality-sensitive hashing. A document is its set of shingles, five words in a
    row. Of BANDS × ROWS random orders of all shingles, each keeps the document's first: where the shingles of two
    documents overlap by the Jaccard index J, they agree in each with chance J. They are near copies if all ROWS of some
    band agree: with chance 1 - (1 - J^ROWS)^BANDS, which is 5 % at J = 0.5, 56 % at 0.7, 77 % at 0.75, 92 % at 0.8 and
    99.96 % at 0.9; a threshold of about (1/14)^(1/8) = 0.72. FineWeb's numbers (arXiv:2406.17557, section 3.4).

    One filter holds the hash and the bands of every document, with an error of RATE up to the number of them that fits
    into duplicates_mb. So 256 MB are full after 8.5 million documents with duplicates=near (some 30 bytes a document),
    of which 0.45 % were then lost at the end, and after 127 million with duplicates=exact, 0.03 %. Beyond that the
    error grows, not the memory.
    """

    RATE, BITS = (
        3e-4,
        16.9,
    )  # chance to take something new for known; bits for each thing known, -log(RATE) / log(2)²

    def __init__(self, config: CurationConfig):
        np.empty(
            config.duplicates_mb * 2**20, np.uint8
        )  # a MemoryError without room: rbloom would end the program
        self.filter = Bloom(int(config.duplicates_mb * 2**23 / self.BITS), self.RATE, hash_func=int)

    def remember(self, signatures: np.ndarray) -> None:
        """Documents that were kept have these signatures, of any shape, uint64."""
        self.filter.update(signatures.ravel().tolist())

    def verdict(self, signature: np.ndarray) -> str | None:
        """Whether a document is a copy of one that came before; one that is not is remembered."""
        known = [part in self.filter for part in signature.tolist()]
        if any(known):
            return "exact duplicate" if known[0] else "near duplicate"
        self.remember(signature)
