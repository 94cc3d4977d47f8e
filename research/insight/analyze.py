"""Where a run's bits go, and where two runs differ: python -m research analyze A [B]

Prints the parts of val_bpb and a summary, and writes a page with coloured text. A difference is
B - A in bits per byte of held-out text, below 0 where B is better. The last lines compare the
splits: a model that was trained on val is named, and so is what it knows to the letter.
"""

import json
import lzma
from dataclasses import dataclass

import numpy as np
from tyro.conf import Positional

from nanoloop.data import SPLITS
from nanoloop.device import pick_device
from nanoloop.options import require
from research.insight.reading import (
    CLASSES,
    byte_classes,
    half_interval,
    ngram_bits,
    open_run,
    read_split,
)
from research.page import write_page

COPIED = 32  # tokens
CONTEXT = np.array(["nothing", "the token", "the pair", "3 tokens", "4 tokens"])  # by a.repeat


@dataclass(frozen=True)
class AnalyzeOptions:
    """Say where a run's bits go, or where two runs differ."""

    runs: Positional[tuple[str, ...]] = ()  # folders: A, or A and B
    source: str | None = None  # name of a folder, for runs of a mixture
    page: str = "out/analyze.html"  # file of the coloured text, for a browser
    json: bool = False  # print a JSON object, for programs


def divide(a, counts):
    """Return the part that each token is in, for each kind of part.

    a: of read_split. counts: (V,), how often each token is in train.
    """
    documents = np.split(a.target, np.flatnonzero(np.diff(a.document)) + 1)
    texts = map(a.data.tokenizer.decode_bytes, documents)
    classes = np.concatenate([byte_classes(text) for text in texts])
    count = counts[a.target]
    limits = np.quantile(count, np.arange(0.1, 1, 0.1))
    return {
        "all": np.full(len(count), "text"),
        "class": np.array(CLASSES)[np.minimum.reduceat(classes, a.start)],
        "rare to frequent": np.searchsorted(limits, count),
        "context has": CONTEXT[a.repeat],
        "position from": 2 ** np.log2(a.position + 1).astype(int) - 1,
        "document": a.document,
    }


def compare(a, b):
    """Return B - A in bits for each token of A; its bytes share the bits of B's tokens evenly.

    Raises UserError if the texts differ.
    """
    require(a.text == b.text, "A and B hold out other text: prepare their data from one source")
    by_byte = np.repeat(b.bits / b.size, b.size)
    return (np.add.reduceat(by_byte, a.start) - a.bits).round(6)


def analyze(a, change):
    """Return the parts of a text with their bits and their difference, as rows.

    a: of read_split. change: of `compare`, 0 where there is no other model. Each row is a part,
    with the sum of each figure in bits per byte of all text, and "half", half the interval of the
    difference, or of the bits where no token differs. The first row is all text; then come those
    with the largest "excess" of that figure over the part's share of the bytes.
    """
    splits = a.data.splits
    train = splits["train"].read(0, 5_000_000)  # more would change the n-grams little
    val = splits["val"].read(0, len(splits["val"]))
    counts = np.bincount(train, minlength=a.data.tokenizer.vocab_size)
    values = {"bytes": a.size, "bits": a.bits, "difference": change}
    for n, bits in enumerate(ngram_bits(train, val, len(counts)), 1):
        values[f"{n}-gram"] = bits[1:][a.index]
    key = "difference" if change.any() else "bits"
    sizes = np.bincount(a.document, a.size)
    mean = values[key].sum() / len(a.text)
    rows = []
    for kind, labels in divide(a, counts).items():
        parts = np.unique(labels)
        for part in parts:
            tokens = np.flatnonzero(labels == part)
            row = {name: x[tokens].sum(dtype=float) / len(a.text) for name, x in values.items()}
            sums = np.bincount(a.document[tokens], values[key][tokens], len(sizes))
            row["half"] = half_interval(sums, sizes, len(parts))
            row["excess"] = row[key] - row["bytes"] * mean
            rows.append(row | {"part": f"{kind} {part}"})
    total, *others = rows
    total["xz"] = 8 * len(lzma.compress(a.text)) / len(a.text)
    total["slope"], total["slope_half"] = context_slope(a, values[key])
    return [total, *sorted(others, key=lambda row: -abs(row["excess"]))]


def context_slope(a, values):
    """Return what twice the context changes in bits per byte, and half its interval.

    values: (N,) bits. The line is that of least squares over the logarithm of the context's length,
    where each byte counts the same.
    """
    x = np.log2(a.position + 1)
    x -= x @ a.size / a.size.sum()
    rest = values - values.sum() / a.size.sum() * a.size
    parts = np.bincount(a.document, x * rest)
    squares = np.bincount(a.document, x * x * a.size)
    return parts.sum() / squares.sum(), half_interval(parts, squares)


def summary(rows: list[dict]) -> list[str]:
    """Say in at most ten lines what `analyze` found."""
    total = rows[0]
    key = "difference" if total["difference"] else "bits"
    opposite = [
        row["part"] for row in rows if row[key] * total[key] < 0 and abs(row[key]) > row["half"]
    ]
    return [
        f"A: {total['bits']:.4f} bits per byte; n-grams of 1, 2, 5 tokens: {total['1-gram']:.4f}, "
        f"{total['2-gram']:.4f}, {total['5-gram']:.4f}; xz {total['xz']:.4f}",
        f"{key} in bits per byte of all text; first the parts that stand out most:",
        *(f"{row['part']}: {row[key]:+.4f} ± {row['half']:.4f}" for row in rows[:4]),
        f"surely against the total: {', '.join(opposite[:9]) or 'no part'}",
        f"twice the context: {total['slope']:+.4f} ± {total['slope_half']:.4f} bits per byte",
    ]


def describe(name: str, splits: dict) -> str:
    """Say how well a run knows each split, and whether it was trained on val.

    splits: name to what `read_split` returns. Documents of val and test are drawn alike: a model
    that has read neither finds them equally hard, so the ranks of their bits per byte are mixed.
    Copied is the share of tokens that end COPIED right guesses in a row, so greedy decoding writes
    these to the letter. Sure is the mean chance of the first guess; the calibration error is its
    mean distance from success, in 15 bins (Guo et al. 2017).
    """
    from scipy.stats import mannwhitneyu

    parts = []
    costs = {}  # bits per byte of each document
    for split, a in splits.items():
        bits = np.bincount(a.document, a.bits)
        sizes = np.bincount(a.document, a.size)
        half = half_interval(bits, sizes)
        copied = (np.convolve(a.right, np.ones(COPIED)) == COPIED).sum() / len(a.right)
        parts.append(f"{split} {bits.sum() / sizes.sum():.4f} ± {half:.4f} ({copied:.1%} copied)")
        if not a.is_cut:
            costs[split] = bits[sizes > 0] / sizes[sizes > 0]
    a = splits["val"]
    chance = a.chances[:, 0]
    gaps = np.bincount((15 * chance).astype(int), a.right - chance)
    parts.append(f"{chance.mean():.1%} sure and {a.right.mean():.1%} right")
    parts.append(f"calibration error {abs(gaps).sum() / len(chance):.1%}")
    if {"val", "test"} <= costs.keys():
        test = mannwhitneyu(costs["val"], costs["test"], alternative="less")
        if test.pvalue < 0.001:
            parts.append("trained on val")
    return f"{name}: {', '.join(parts)}"


def main(options: AnalyzeOptions) -> None:
    require(len(options.runs) in (1, 2), "type one run after the command, or two: A B")
    device, dtype = pick_device("auto", "auto")
    runs = []
    for run in options.runs:
        model, data = open_run(run, device, dtype, options.source)
        splits = [name for name in SPLITS if len(data.splits[name]) > 1]
        runs.append({split: read_split(model, data, device, split) for split in splits})
    a = runs[0]["val"]
    b = runs[-1]["val"]
    change = compare(a, b)
    rows = analyze(a, change)
    lines = [*summary(rows), *map(describe, "AB", runs)]
    write_page(
        options.page, "insight/analyze.html", rows=rows, lines=lines, a=a, b=b, change=change
    )
    if options.json:
        print(json.dumps({"summary": lines, "rows": rows}))
    else:
        print(*lines, f"coloured text: {options.page}", sep="\n")
