"""What a corpus is like: report.json, report.html, and warnings.

All documents, bytes and tokens are counted. What takes a closer look (near copies, boilerplate,
encoded data, languages, kinds of characters) is seen in a sample: all documents of the first
SAMPLE_BYTES, then fewer and fewer, so that the sample of any corpus is about as large. A hash of
the text decides which.

    sample_line   in the workers: the line of a document in sample.jsonl
    study         what the sample shows
    overlap.py    how much of val and test is in train
    write_report  the figures, the warnings (what was found, why it matters, what to do), the files
"""

import json
import re
import zlib
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np

from corpus.curation import KINDS, View, share, sketch
from corpus.destination import count
from corpus.overlap import overlap, read_blocks
from nanoloop.data import SPLITS
from nanoloop.files import replace_file, write_json

NAMES = list(dict.fromkeys(KINDS.values()))  # of kinds of characters
# The index in NAMES for each first byte of a character.
KIND_OF_BYTE = bytearray(256)
for key, kind in KINDS.items():  # where a range of bytes begins, in ascending order
    first = int(key, 16)
    KIND_OF_BYTE[first:] = [NAMES.index(kind)] * (256 - first)
SCRIPTS = "Latin Greek Cyrillic Hebrew Arabic Indian Chinese Korean others".split()
SAMPLE_BYTES = 8_000_000
# What recipes in config/ read: max_tokens; and the quickstart in its minute on two CPU cores.
RECIPE_TOKENS = {"quickstart_on_cpu": 1_000_000, "quickstart": 10_000_000, "gpt2": 2_500_000_000}


# --------------------------------------------------------------------------------------------------
# The sample


def sample_number(view):
    """Return a number from 0 to 1: the smallest hash of a middle line or sentence.

    Most near copies share it, so the sample holds all of them or none. A license in front, which
    many documents share, does not count.
    """
    start = max(0, len(view.raw) // 2 - 1000)
    _, *parts = re.split(rb"[.!?\n]", view.raw[start : start + 2000])
    # The first and the last are cut off. Short lines and sentences are in many texts.
    parts = [part for part in parts[:-1] if len(part) > 40]
    smallest = min(map(zlib.crc32, parts or [view.raw]))
    return smallest % 2**16 / 2**16  # the last bits of the smallest hash are uniform


def sample_line(view, bytes_before, row):
    """Return the line of a document and its row in sample.jsonl; "" if its number is too large.

    The limit falls with the bytes of the corpus before the document.
    """
    number = sample_number(view)
    if number * bytes_before >= SAMPLE_BYTES:
        return ""
    return json.dumps([number, row.split, row.source, row.where, view.text]) + "\n"


def near_copies(bands, is_held_out):
    """Return the shares of near copies: of all documents, of held-out ones in train.

    bands: (documents, BANDS) uint64. is_held_out: (documents,) bool.
    """
    _, group, counts = np.unique(bands, return_inverse=True, return_counts=True)
    is_copied = (counts[group.reshape(bands.shape)] > 1).any(axis=1)
    is_leaked = np.isin(bands[is_held_out], bands[~is_held_out]).any(axis=1)
    copied = share(is_copied.sum(), len(is_copied))
    return copied, share(is_leaked.sum(), len(is_leaked))


def edges(text):
    """Return the first and last lines that are long enough to say something, each once."""
    lines = text[:400].split("\n")[:6] + text[-400:].split("\n")[-6:]
    return list(dict.fromkeys(line[:80] for line in map(str.strip, lines) if len(line) >= 30))


def study(documents, languages):
    """Return what documents (split, source, where, text) show.

    languages: whether to count them.
    """
    views = [View(text) for *_, text in documents]
    kinds = np.zeros(len(NAMES), dtype=int)
    faults = {"encoded": [], "binary": []}  # [bytes, where, head] of documents
    lines = Counter()
    for view, (_, _, where, text) in zip(views, documents):
        codes = np.frombuffer(view.raw.translate(KIND_OF_BYTE), dtype=np.uint8)
        counts = np.bincount(codes, minlength=len(NAMES))
        kinds += counts
        lines.update(edges(text))
        # No word has 50 letters: this is base64 or hexadecimal.
        encoded = int(view.lengths[view.lengths >= 50].sum())
        if encoded > 1000:
            faults["encoded"].append([encoded, where, text[:160]])
        # Decoders write U+FFFD, of three bytes, in place of bytes that are no text.
        broken = counts[NAMES.index("control")] + 3 * text.count("\ufffd")
        if broken > 0.01 * len(view.raw):
            faults["binary"].append([len(view.raw), where, text[:160]])
    examples = {fault: sorted(rows, reverse=True)[:5] for fault, rows in faults.items()}
    held_out = np.array([split != "train" for split, *_ in documents], dtype=bool)
    copies, copies_across = near_copies(sketch(views), held_out)
    sums = {
        "documents": len(views),
        "bytes": sum(len(view.raw) for view in views),
        "words": sum(len(view.hashes) for view in views),
    }
    for fault, rows in faults.items():
        sums[fault] = sum(size for size, _, _ in rows)
    by_language = {}
    for view in views if languages else []:
        count(by_language, view.language, len(view.raw))
    return {
        "sample": sums,
        "kinds": dict(zip(NAMES, kinds.tolist())),
        "language": by_language,
        "examples": examples,
        "near_copies": copies,
        "near_copies_across": copies_across,
        "lines": [line for line in lines.most_common(10) if line[1] > 1],
    }


# --------------------------------------------------------------------------------------------------
# The tokens


def divergence(first, second):
    """Return the Jensen-Shannon divergence of two vectors of counts (Lin 1991).

    In bits: 0 if they are alike, 1 if they have nothing in common.
    """
    from scipy.special import rel_entr

    p = first / max(1, first.sum())
    q = second / max(1, second.sum())
    return float(rel_entr([p, q], (p + q) / 2).sum() / np.log(4))


def count_tokens(shards, vocab_size, end_of_text):
    """Count each token in train, val, test and a control group, (4, vocab_size) int64.

    The control group is every n-th document of train, about as much as val but at most a quarter.
    It is not counted in train. It shows how far so few documents differ from train by chance.
    """
    counts = np.zeros((4, vocab_size), dtype=np.int64)
    n_train = sum(map(len, shards["train"]))
    n_val = sum(map(len, shards["val"]))
    every = max(4, 1 + n_train // max(1, n_val))
    n_documents = 0
    for row, split in enumerate(SPLITS):
        for block in read_blocks(shards[split], 2**22):
            counts[row] += np.bincount(block, minlength=vocab_size)
            if split == "train":
                numbers = n_documents + np.cumsum(block == end_of_text)  # of documents, from 1
                control = block[(numbers % every == 0) & (numbers > 0)]
                counts[3] += np.bincount(control, minlength=vocab_size)
                n_documents = numbers[-1]
    counts[0] -= counts[3]
    return counts


def study_tokens(shards, tokenizer, kept):
    """Return what the tokens show. kept: bytes and words of the text."""
    tokens = count_tokens(shards, tokenizer.vocab_size, tokenizer.end_of_text)
    train, val, _, control = tokens
    used = tokens.sum(axis=0)
    order = np.argsort(-used, kind="stable")[: np.count_nonzero(used)]
    n_tokens = int(used.sum())
    n_train = max(1, int(train.sum() + control.sum()))
    bytes_per_token = share(kept["bytes"], n_tokens)

    most_frequent = []
    for token in order[:20]:
        text = tokenizer.decode_bytes([token]).decode("utf-8", "backslashreplace")
        most_frequent.append((text.replace("\n", "\\n"), int(used[token])))
    return {
        "tokens": n_tokens,
        "train_tokens": n_train,
        "bytes_per_token": bytes_per_token,
        "tokens_per_word": share(n_tokens, kept["words"]),
        "vocabulary": tokenizer.vocab_size,
        "vocabulary_used": share(len(order), tokenizer.vocab_size),
        "most_frequent": most_frequent,
        "epochs": {name: count / n_train for name, count in RECIPE_TOKENS.items()},
        "overlap_with_train": overlap(shards, tokenizer.end_of_text, bytes_per_token),
        "divergence": {"val": divergence(val, train), "chance": divergence(control, train)},
    }


# --------------------------------------------------------------------------------------------------
# The figures and the warnings


def summarize(folder, progress, tokenizer, shards):
    """Return all figures of the report as plain values: those of the progress, and what follows."""
    plan = progress.plan
    with open(folder / "sample.jsonl", encoding="utf-8") as file:
        rows = list(map(json.loads, file))
    # A few large documents, or copies of one, may all have large numbers.
    smallest = min((number for number, *_ in rows), default=0)
    sample = [
        document
        for number, *document in rows
        if number == smallest or number * progress.cursor.n_bytes < SAMPLE_BYTES
    ]
    figures = vars(progress) | study(sample, plan["languages"])
    # What is counted in the sample stands for so much in the corpus.
    kept = progress.kept()
    factor = kept["bytes"] / max(1, figures["sample"]["bytes"])
    for key in ("words", "encoded", "binary"):
        kept[key] = round(factor * figures["sample"][key])
    texts = {"claude": [], "others": []}
    for _, source, _, text in sample:
        texts["claude" if source.startswith("claude:") else "others"].append(text)
    size = min(sum(map(len, part)) for part in texts.values())
    figures["compression"] = {}
    for name, part in texts.items():  # as much of each
        raw = "".join(part)[:size].encode("utf-8", "replace")
        figures["compression"][name] = len(raw) / len(zlib.compress(raw))
    languages = {name: row["bytes"] for name, row in figures["language"].items()}
    if not languages:
        languages = {name: figures["kinds"][name] for name in SCRIPTS}
    main_language = max(languages, key=languages.get)
    name = plan["tokenizer"]
    figures |= study_tokens(shards, tokenizer, kept)
    return figures | {
        "kept": kept,
        "main_language": main_language,
        "foreign": 1 - share(languages[main_language], sum(languages.values())),
        # The user chose one of tiktoken's: not trained on this text, nor needed for a mixture.
        "tokenizer_is_published": not (name.startswith("bpe:") or Path(name).exists()),
    }


@cache
def templates(folder, finalize=None):
    """Return the templates of a folder. To compile one takes longer than to fill it in.

    Templates hold all words and conditions. What they show may come from anywhere: the HTML escapes
    all of it. finalize: what each shown value passes through.
    """
    import jinja2

    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=jinja2.select_autoescape(),
        finalize=finalize,
        trim_blocks=True,
    )
    found.globals |= {"pct": "{:.1%}".format, "number": "{:,}".format, "quoted": repr}
    return found


def write_report(folder: Path, progress, tokenizer, shards):
    """Write report.json and report.html into a folder.

    The folder has a sample.jsonl. progress: see destination.Progress. shards: the tokens by split.
    """
    figures = summarize(folder, progress, tokenizer, shards)
    ours = templates(Path(__file__).parent)
    lines = ours.get_template("warnings.txt").render(figures).splitlines()
    warnings = [line.rsplit(" | ", 1) for line in lines]
    figures = {"warnings": warnings} | figures
    write_json(folder / "report.json", figures)
    page = ours.get_template("report.html").render(figures).encode("utf-8", "replace")
    replace_file(folder / "report.html", lambda file: file.write(page))
