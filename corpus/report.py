"""What a prepared corpus is like: report.json and report.html, and warnings where it will make a model worse.

Documents, bytes and tokens are counted, every one. What takes a closer look (near copies, repeated spans, boilerplate,
encoded data, languages, kinds of characters) is seen in a sample of the documents: all of the first SAMPLE_BYTES, then
fewer and fewer, so that about as much is left of a corpus of any size. A hash of the text decides which.

    sample_row    in the workers: a document as a line of sample.jsonl, if it may be in the sample, by its number
    study         what is to be seen in the sample
    write_report  the figures, the warnings (what was found, why it matters, what to do), and the two files
"""

import json
import re
import runpy
import zlib
from collections import Counter
from itertools import groupby
from pathlib import Path

import numpy as np

from corpus.curation import KINDS, View, share, sketch
from nanoloop.files import replace_file, write_json

NAMES = list(dict.fromkeys(KINDS.values()))  # of kinds of characters
KIND_OF_BYTE = bytes(
    NAMES.index(KINDS[max(key for key in KINDS if int(key, 16) <= byte)]) for byte in range(256)
)
SCRIPTS = (
    "Latin",
    "Greek",
    "Cyrillic",
    "Hebrew",
    "Arabic",
    "Indian",
    "Chinese",
    "Korean",
    "others",
)
SPLITS = ("train", "val", "test")
SAMPLE_BYTES = 8_000_000
SPAN_BYTES = 10_000  # repeated text that is shorter is not counted


# ---------------------------------------------------------------------------------------------------------------------
# The sample


def sample_number(view: View) -> float:
    """A number from 0 to 1, from the smallest hash of a line or sentence in the middle of the text. Most near copies
    share it: both are in the sample or neither. A license in front, which many share, has no say."""
    middle = view.raw[max(0, len(view.raw) // 2 - 1000) :][:2000]
    parts = [
        part for part in re.split(rb"[.!?\n]", middle)[1:-1] if len(part) > 40
    ]  # shorter ones stand everywhere
    return (
        min(map(zlib.crc32, parts or [view.raw])) % 2**16 / 2**16
    )  # the end of the smallest: any with equal chance


def sample_row(view: View, behind: int, split: str, where: str) -> str:
    """The document's line in sample.jsonl; nothing if its number is too large for one with `behind` bytes before it."""
    number = sample_number(view)
    return (
        json.dumps([number, split, where, view.text]) + "\n"
        if number * behind < SAMPLE_BYTES
        else ""
    )


def repeated_spans(views: list[View]) -> list[tuple[int, int, int]]:
    """(length, document, position) of long spans that came before, in bytes. One in 64 shingles is an anchor; where all
    anchors of a stretch stood somewhere before, the stretch is a copy."""
    seen: set[int] = set()
    spans = []
    for number, view in enumerate(views):
        anchors = np.flatnonzero(view.shingles & np.uint64(63) == 0)[: len(view.hashes)]
        known = [
            shingle in seen or seen.add(shingle) for shingle in view.shingles[anchors].tolist()
        ]
        for came_before, stretch in groupby(
            zip(known, view.places[anchors].tolist()), key=lambda pair: pair[0]
        ):
            places = [place for _, place in stretch]
            if came_before and places[-1] - places[0] >= SPAN_BYTES:
                spans.append((places[-1] - places[0], number, places[0]))
    return spans


def near_copies(bands: np.ndarray, held_out: np.ndarray) -> tuple[float, float]:
    """(share of documents with a near copy, share of held-out ones with one in train); bands: (documents, BANDS)."""
    _, place, often = np.unique(bands, return_inverse=True, return_counts=True)
    copied = (often[place.reshape(bands.shape)] > 1).any(axis=1)
    leaked = np.isin(bands[held_out], bands[~held_out]).any(axis=1)
    return share(copied.sum(), len(copied)), share(leaked.sum(), len(leaked))


def edges(text: str) -> set[str]:
    """The first and last lines, where they are long enough to say something."""
    found = text[:400].split("\n")[:6] + text[-400:].split("\n")[-6:]
    return {line.strip()[:80] for line in found if len(line.strip()) >= 30}


def study(documents: list[list], languages: bool) -> dict:
    """What is to be seen in documents (split, where, text)."""
    splits, wheres, texts = zip(*documents) if documents else ((), (), ())
    views = list(map(View, texts))
    sizes = np.array([len(view.raw) for view in views], dtype=int)
    kinds = [
        np.bincount(np.frombuffer(v.raw.translate(KIND_OF_BYTE), np.uint8), None, len(NAMES))
        for v in views
    ]
    kinds = np.array(kinds, dtype=int).reshape(-1, len(NAMES))
    # No word has 50 letters: base64, hexadecimal. U+FFFD is what decoders put in place of bytes that are no text.
    encoded = np.array([view.lengths[view.lengths >= 50].sum() for view in views], dtype=int)
    broken = kinds[:, NAMES.index("control")] + 3 * np.array(
        [text.count("\ufffd") for text in texts], dtype=int
    )
    faults = {  # (bytes, document, position)
        "encoded": [(int(encoded[i]), i, 0) for i in np.flatnonzero(encoded > 1000)],
        "binary": [(int(sizes[i]), i, 0) for i in np.flatnonzero(broken > 0.01 * sizes)],
        "repeated": repeated_spans(views),
    }
    found = {fault: sorted(rows, reverse=True)[:5] for fault, rows in faults.items() if rows}
    examples = {
        fault: [
            [size, wheres[i] + f", from byte {place:,}" * bool(place), texts[i][:160]]
            for size, i, place in rows
        ]
        for fault, rows in found.items()
    }
    spoken = np.array([view.language for view in views] if languages else [])
    tongues = {
        str(name): {
            "documents": int((spoken == name).sum()),
            "bytes": int(sizes[spoken == name].sum()),
        }
        for name in np.unique(spoken)
    }
    near, across = near_copies(
        sketch(views), np.array([split != "train" for split in splits], dtype=bool)
    )
    lines = Counter(line for text in texts for line in edges(text))
    sums = {
        "documents": len(views),
        "bytes": int(sizes.sum()),
        "words": sum(len(view.hashes) for view in views),
    }
    return {
        "sample": sums
        | {fault: sum(size for size, _, _ in rows) for fault, rows in faults.items()},
        "kinds": dict(zip(NAMES, kinds.sum(axis=0).tolist())),
        "language": tongues,
        "examples": examples,
        "near_copies": near,
        "near_copies_across": across,
        "lines": sorted(lines.items(), key=lambda line: (-line[1], line))[:10],
    }


# ---------------------------------------------------------------------------------------------------------------------
# The figures and the warnings


def divergence(first: np.ndarray, second: np.ndarray) -> float:
    """Jensen-Shannon divergence of two count vectors, in bits: 0 alike, 1 nothing in common (Lin 1991)."""
    p, q = first / max(1, first.sum()), second / max(1, second.sum())
    middle = (p + q) / 2
    return float(sum((x[x > 0] * np.log2(x[x > 0] / middle[x > 0])).sum() for x in (p, q)) / 2)


def count_tokens(
    shards: dict[str, list[np.ndarray]], vocab_size: int, end_of_text: int
) -> np.ndarray:
    """Occurrences of each token in train, val, test and a control group, (4, vocab_size) int64. The control group is
    every n-th document of train, about as much as val but at most a quarter, and not counted in train: it tells how
    unlike train chance makes so few."""
    counts, documents = np.zeros((4, vocab_size), dtype=np.int64), 0
    length = {split: sum(map(len, parts)) for split, parts in shards.items()}
    every = max(4, 1 + length["train"] // max(1, length["val"]))
    for row, split in enumerate(SPLITS):
        for part, i in ((part, i) for part in shards[split] for i in range(0, len(part), 2**22)):
            # Read, for what is looked at through the map would count as this process's memory.
            block = np.fromfile(
                part.filename, part.dtype, 2**22, offset=part.offset + i * part.itemsize
            )
            counts[row] += np.bincount(block, minlength=vocab_size)
            if split == "train":
                starts = np.flatnonzero(block == end_of_text)
                chosen = slice((-1 - documents) % every, None, every)
                spans = zip(starts[chosen], np.append(starts[1:], len(block))[chosen])
                control = [block[start:end] for start, end in spans]
                counts[3] += np.bincount(
                    np.concatenate([block[:0], *control]), minlength=vocab_size
                )
                documents += len(starts)
    counts[0] -= counts[3]
    return counts


def summarize(
    folder: Path, counted: dict, meta: dict, tokenizer, shards: dict[str, list[np.ndarray]]
) -> dict:
    """All figures of the report as plain values."""
    kept = {
        key: sum(row[key] for row in counted["splits"].values()) for key in ("documents", "bytes")
    }
    with open(folder / "sample.jsonl", encoding="utf-8") as file:
        rows = [row for row in map(json.loads, file) if row[0] * counted["place"][2] < SAMPLE_BYTES]
    figures = study([row[1:] for row in rows], bool(meta.get("languages")))
    of_all = kept["bytes"] / max(
        1, figures["sample"]["bytes"]
    )  # what is counted in the sample stands for so much
    kept |= {
        key: round(of_all * figures["sample"][key])
        for key in ("words", "encoded", "binary", "repeated")
    }
    tokens = count_tokens(shards, tokenizer.vocab_size, tokenizer.end_of_text)
    used, train = tokens.sum(axis=0), tokens[0]
    order = np.argsort(-used, kind="stable")[: np.count_nonzero(used)]
    shown = [
        (
            tokenizer.decode_bytes([i]).decode("utf-8", "backslashreplace").replace("\n", "\\n"),
            int(used[i]),
        )
        for i in (*order[:20], *order[:-21:-1])
    ]
    tongues = {name: row["bytes"] for name, row in figures["language"].items()}
    tongues = tongues or {name: figures["kinds"][name] for name in SCRIPTS}
    configs, trained = Path(__file__).parents[1] / "config", max(1, int(tokens[[0, 3]].sum()))
    budgets = {
        name: runpy.run_path(str(configs / f"{name}.py"))["max_tokens"]
        for name in ("quickstart", "gpt2")
    }
    dropped = {rule: row["examples"] for rule, row in counted["dropped"].items()}
    figures["examples"] |= {"largest": counted["largest"]} | dropped
    return figures | {
        "meta": meta,
        "kept": kept,
        "dropped": counted["dropped"],
        "source": counted["sources"],
        "split": {split: row for split, row in counted["splits"].items() if row["documents"]},
        "lengths": counted["lengths"],
        "repeated_bytes": kept["repeated"],
        "main_language": max(tongues, key=tongues.get),
        "foreign": 1 - share(max(tongues.values()), sum(tongues.values())),
        "tokens": int(used.sum()),
        "bytes_per_token": share(kept["bytes"], used.sum()),
        "tokens_per_word": share(used.sum(), kept["words"]),
        "vocabulary": tokenizer.vocab_size,
        "vocabulary_used": share(len(order), tokenizer.vocab_size),
        "most_frequent": shown[: len(shown) // 2],
        "least_frequent": shown[len(shown) // 2 :],
        "by_rank": np.log2(used[order[2 ** np.arange(len(order).bit_length()) - 1]])
        .round(2)
        .tolist(),
        "epochs": {name: budget / trained for name, budget in budgets.items()},
        "divergence": {"val": divergence(tokens[1], train), "chance": divergence(tokens[3], train)},
    }


def write_report(
    folder: Path, counted: dict, meta: dict, tokenizer, shards: dict[str, list[np.ndarray]]
) -> list[str]:
    """Write report.json and report.html into `folder`, where sample.jsonl is; returns the warnings, a line each.

    counted: see prepare_data.Writer. shards: the tokens by split. meta: what else is known; "name" is shown, and no
    split is missed whose "val_fraction" or "test_fraction" is 0.
    """
    import jinja2

    # Words and conditions stand in the templates. What they show may come from anywhere: in HTML all of it is escaped.
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    templates = jinja2.Environment(
        loader=loader, autoescape=jinja2.select_autoescape(), trim_blocks=True
    )
    templates.globals |= {"pct": "{:.1%}".format, "number": "{:,}".format, "quoted": repr}
    figures = summarize(folder, counted, meta, tokenizer, shards)
    words = templates.get_template("warnings.txt").render(figures)
    warnings = [line.rsplit(" | ", 1) for line in words.splitlines()]
    write_json(folder / "report.json", {"warnings": warnings} | figures)
    page = templates.get_template("report.html").render(
        figures, warnings=warnings, folder=folder.name
    )
    replace_file(folder / "report.html", lambda file: file.write(page.encode("utf-8", "replace")))
    return [". ".join(warning) for warning in warnings]
