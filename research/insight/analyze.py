"""Where a run's bits go, and where two runs differ: python -m research analyze A [B]

Prints the parts of val_bpb and a summary, and writes a page with coloured text. A difference is
B - A in bits per byte of held-out text, below 0 where B is better.
"""

import json
import lzma
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from nanoloop.checkpoint import load_weights
from nanoloop.data import Data
from nanoloop.device import pick_device
from nanoloop.options import require
from research.insight.reading import CLASSES, byte_classes, ngram_bits, read_val
from research.page import write_page
from sample import load_model


@dataclass(frozen=True)
class AnalyzeOptions:
    """Say where a run's bits go, or where two runs differ."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional] = ()  # folders: A, or A and B
    page: str = "out/analyze.html"  # file of the coloured text, for a browser
    json: bool = False  # print a JSON object, for programs


def half_interval(parts, sizes, count=1):
    """Return half the width of the 95 % interval of sum(parts) / sum(sizes).

    parts, sizes: (D,), of documents: they are independent, the tokens of one are not. The deviation
    is the jackknife's, the distribution Student's with as many degrees of freedom as documents of
    equal size would have (Kish 1965). count: of intervals that shall hold together (Bonferroni).
    """
    from scipy.stats import t

    total = sizes.sum()
    shift = (parts - parts.sum() / total * sizes) / (total - sizes)  # without the document
    freedom = total**2 / (sizes**2).sum() - 1
    return np.sqrt((shift**2).sum()) * t.isf(0.025 / count, freedom)


def divide(a, counts):
    """Return the part that each token is in, for each kind of part.

    a: of read_val. counts: (V,), how often each token is in train.
    """
    decode = a.data.tokenizer.decode_bytes
    texts = [decode(a.target[a.document == number]) for number in np.unique(a.document)]
    classes = np.concatenate([byte_classes(text) for text in texts])
    count = counts[a.target]
    limits = np.quantile(count, np.arange(0.1, 1, 0.1))
    return {
        "all": np.full(len(count), "text"),
        "class": np.array(CLASSES)[np.minimum.reduceat(classes, a.start)],
        "rare to frequent": np.searchsorted(limits, count),
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

    a: of read_val. change: of `compare`, 0 where there is no other model. Each row is a part, with
    the sum of each figure in bits per byte of all text, and "half", half the interval of the
    difference, or of the bits where no token differs. The first row is all text; then come those
    with the largest "excess" of that figure over the part's share of the bytes.
    """
    splits = a.data.splits
    train = splits["train"].read(0, 5_000_000)  # more would change the n-grams little
    counts = np.bincount(train, minlength=a.data.tokenizer.vocab_size)
    values = {"bytes": a.size, "bits": a.bits, "difference": change}
    val = splits["val"].read(0, len(splits["val"]))
    for n, bits in enumerate(ngram_bits(train, val, len(counts)), 1):
        values[f"{n}-gram"] = bits[1:][a.index]
    key = "difference" if change.any() else "bits"
    rows = []
    sizes = np.bincount(a.document, a.size)
    for by, labels in divide(a, counts).items():
        parts = np.unique(labels)
        for part in parts:
            inside = 1.0 * (labels == part)
            row = {name: value @ inside / len(a.text) for name, value in values.items()}
            sums = np.bincount(a.document, values[key] * inside)
            row["half"] = half_interval(sums, sizes, len(parts))
            row["excess"] = row[key] - row["bytes"] * (rows or [row])[0][key]
            rows.append(row | {"part": f"{by} {part}"})
    rows[0]["xz"] = 8 * len(lzma.compress(a.text)) / len(a.text)
    return rows[:1] + sorted(rows[1:], key=lambda row: -abs(row["excess"]))


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
        *(f"{row['part']}: {row[key]:+.4f} ± {row['half']:.4f}" for row in rows[:6]),
        f"surely against the total: {', '.join(opposite[:9]) or 'no part'}",
    ]


def main(options: AnalyzeOptions) -> None:
    require(len(options.runs) in (1, 2), "type one run after the command, or two: A B")
    device, dtype = pick_device("auto", "auto")
    readings = []
    for run in options.runs:
        state = load_weights(run)
        data = Data(state["config"]["data"])
        require(
            state["data"] == data.fingerprint and len(data.splits["val"]),
            f"'{data.folder}' is not the data of '{run}', or has no val split: prepare it again",
        )
        model, _ = load_model(run, device, dtype)
        readings.append(read_val(model, data, device))
    a = readings[0]
    b = readings[-1]
    change = compare(a, b)
    rows = analyze(a, change)
    lines = summary(rows)
    values = {"rows": rows, "lines": lines, "a": a, "b": b, "change": change}
    write_page(Path(options.page), "insight/analyze.html", **values)
    if options.json:
        print(json.dumps({"summary": lines, "rows": rows}))
        return
    print(*lines, f"coloured text: {options.page}", sep="\n")
