"""What a prepared corpus is like: report.json and report.html, and warnings where it will make a model worse.

Documents, bytes and tokens are counted, every one. What takes a closer look (near copies, repeated spans, boilerplate,
encoded data, languages, kinds of characters) is seen in a sample of the documents: all of the first SAMPLE_BYTES, then
fewer and fewer, so that about as much is left of a corpus of any size. A hash of the text decides which.

    sample_row    in the workers: a document as a line of sample.jsonl, if it may be in the sample
    study         what is to be seen in the sample
    write_report  the figures, the warnings (what was found, why it matters, what to do), and the two files
"""

import json
import runpy
from collections import Counter
from pathlib import Path

import numpy as np

from console import replace_file, write_json
from corpus.curation import BANDS, KINDS, View, look, share, sketch

NAMES = list(dict.fromkeys(KINDS.values()))  # of kinds of characters
KIND_OF_BYTE = bytes(NAMES.index(KINDS[max(key for key in KINDS if int(key, 16) <= byte)]) for byte in range(256))
SCRIPTS = ("Latin", "Greek", "Cyrillic", "Hebrew", "Arabic", "Indian", "Chinese", "Korean", "others")
SPLITS = ("train", "val", "test")
SAMPLE_BYTES = 16_000_000
SPAN_BYTES = 10_000  # repeated text that is shorter is not counted


# ---------------------------------------------------------------------------------------------------------------------
# The sample


def sample_row(view: View, where: str, split: str, behind: int) -> str:
    """The document's line in sample.jsonl; nothing if it is too far behind: `behind` bytes of text were read before it.

    The number that decides comes from its smallest shingle. Near copies share it: both are in the sample or neither.
    """
    number = int(view.shingles.min()) % 2**20 / 2**20
    return json.dumps([number, split, where, view.text]) + "\n" if number * behind < SAMPLE_BYTES else ""


def repeated_spans(views: list[View]) -> list[tuple[int, int, int]]:
    """(length, document, position) of long spans that came before, in bytes. One in 64 shingles is an anchor; where all
    anchors of a stretch stood somewhere before, the stretch is a copy."""
    anchors = [np.flatnonzero(view.shingles & np.uint64(63) == 0)[: len(view.hashes)] for view in views]
    owner = np.repeat(np.arange(len(views)), [len(places) for places in anchors])
    nothing = np.zeros(0, dtype=np.uint64)
    hashes = np.concatenate([nothing, *(view.shingles[found] for view, found in zip(views, anchors))])
    places = np.concatenate([nothing, *(view.places[found] for view, found in zip(views, anchors))]).astype(int)
    new = np.isin(np.arange(len(hashes)), np.unique(hashes, return_index=True)[1])
    ends = np.flatnonzero(np.append(new[1:] | (np.diff(owner) > 0), True)[: len(new)])  # last anchor of each stretch
    starts = np.append(0, ends + 1)[: len(ends)]
    starts = np.minimum(starts + new[starts], ends)
    lengths = places[ends] - places[starts]
    long = np.flatnonzero(lengths >= SPAN_BYTES)
    return list(zip(lengths[long].tolist(), owner[starts[long]].tolist(), places[starts[long]].tolist()))


def near_copies(bands: np.ndarray, held_out: np.ndarray) -> tuple[float, float]:
    """(share of documents with a near copy, share of held-out ones with one in train); bands: (documents, BANDS)."""
    _, place, often = np.unique(bands, return_inverse=True, return_counts=True)
    copied = (often[place.reshape(bands.shape)] > 1).any(axis=1)
    leaked = np.isin(bands[held_out], bands[~held_out]).any(axis=1)
    return share(copied.sum(), len(copied)), share(leaked.sum(), len(leaked))


def study(documents: list[list], languages: bool) -> dict:
    """What is to be seen in documents (split, where, text)."""
    texts = [text for _, _, text in documents]
    views = [view for i in range(0, len(texts), 100) for view in look(texts[i : i + 100])]
    held_out = np.array([split != "train" for split, _, _ in documents], dtype=bool)
    near, across = near_copies(np.array(sketch(views), dtype=np.uint64).reshape(-1, BANDS), held_out)
    kinds, tongues, lines, words, size = Counter(), {}, Counter(), 0, 0
    faults = {"encoded": [], "binary": [], "repeated": repeated_spans(views)}  # (bytes, document, position)
    for index, view in enumerate(views):
        counts = np.bincount(np.frombuffer(view.raw.translate(KIND_OF_BYTE), np.uint8), minlength=len(NAMES)).tolist()
        kinds.update(dict(zip(NAMES, counts)))
        words, size = words + len(view.hashes), size + len(view.raw)
        # No word has 50 letters: base64, hexadecimal. U+FFFD is what decoders put in place of bytes that are no text.
        encoded = int(view.lengths[view.lengths >= 50].sum())
        broken = counts[NAMES.index("control")] + 3 * view.text.count("\ufffd")
        faults["encoded"] += [(encoded, index, 0)] if encoded > 1000 else []
        faults["binary"] += [(len(view.raw), index, 0)] if broken > 0.01 * len(view.raw) else []
        edges = view.text[:400].split("\n")[:6] + view.text[-400:].split("\n")[-6:]
        lines.update({line.strip()[:80] for line in edges if len(line.strip()) >= 30})
        if languages:
            row = tongues.setdefault(view.language, {"documents": 0, "bytes": 0})
            row.update(documents=row["documents"] + 1, bytes=row["bytes"] + len(view.raw))
    examples: dict[str, list] = {}
    for fault, rows in faults.items():
        for count, i, place in sorted(rows, key=lambda row: -row[0])[:5]:
            where = documents[i][1] + f", from byte {place:,}" * bool(place)
            examples.setdefault(fault, []).append([count, where, texts[i][:160]])
    return {
        "sample": {"documents": len(views), "bytes": size, "words": words}
        | {fault: sum(count for count, _, _ in rows) for fault, rows in faults.items()},
        "kinds": kinds, "language": tongues, "near_copies": near, "near_copies_across": across, "examples": examples,
        "lines": sorted(lines.items(), key=lambda line: (-line[1], line))[:10],
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# The figures and the warnings


def divergence(first: np.ndarray, second: np.ndarray) -> float:
    """Jensen-Shannon divergence of two count vectors, in bits: 0 alike, 1 nothing in common (Lin 1991)."""
    p, q = first / max(1, first.sum()), second / max(1, second.sum())
    middle = (p + q) / 2
    return float(sum((x[x > 0] * np.log2(x[x > 0] / middle[x > 0])).sum() for x in (p, q)) / 2)


def count_tokens(shards: dict[str, list[np.ndarray]], vocab_size: int, end_of_text: int) -> np.ndarray:
    """Occurrences of each token in train, val, test and a control group, (4, vocab_size) int64. The control group is
    every n-th document of train, about as much as val but at most a quarter, and not counted in train: it tells how
    unlike train chance makes so few."""
    counts, documents = np.zeros((4, vocab_size), dtype=np.int64), 0
    length = {split: sum(map(len, parts)) for split, parts in shards.items()}
    every = max(4, 1 + length["train"] // max(1, length["val"]))
    for row, split in enumerate(SPLITS):
        for block in (part[i : i + 2**22] for part in shards[split] for i in range(0, len(part), 2**22)):
            counts[row] += np.bincount(block, minlength=vocab_size)
            if split == "train":
                starts = np.flatnonzero(block == end_of_text)
                chosen = slice((-1 - documents) % every, None, every)
                spans = zip(starts[chosen], np.append(starts[1:], len(block))[chosen])
                control = [block[start:end] for start, end in spans]
                counts[3] += np.bincount(np.concatenate([block[:0], *control]), minlength=vocab_size)
                documents += len(starts)
    counts[0] -= counts[3]
    return counts


def summarize(folder: Path, counted: dict, meta: dict, tokenizer, shards: dict[str, list[np.ndarray]]) -> dict:
    """All figures of the report as plain values."""
    kept = {key: sum(row[key] for row in counted["splits"].values()) for key in ("documents", "bytes")}
    with open(folder / "sample.jsonl", encoding="utf-8") as file:
        rows = [row for row in map(json.loads, file) if row[0] * counted["place"][2] < SAMPLE_BYTES]
    figures = study([row[1:] for row in rows], bool(meta.get("languages")))
    of_all = kept["bytes"] / max(1, figures["sample"]["bytes"])  # what is counted in the sample stands for so much
    kept |= {key: round(of_all * figures["sample"][key]) for key in ("words", "encoded", "binary", "repeated")}
    tokens = count_tokens(shards, tokenizer.vocab_size, tokenizer.end_of_text)
    used, train = tokens.sum(axis=0), tokens[0]
    order = np.argsort(-used, kind="stable")[: np.count_nonzero(used)]
    shown = [(tokenizer.decode_bytes([i]).decode("utf-8", "backslashreplace").replace("\n", "\\n"), int(used[i]))
             for i in (*order[:20], *order[:-21:-1])]  # fmt: skip
    tongues = {name: row["bytes"] for name, row in figures["language"].items()}
    tongues = tongues or {name: figures["kinds"][name] for name in SCRIPTS}
    configs, trained = Path(__file__).parents[1] / "config", max(1, int(tokens[[0, 3]].sum()))
    budgets = {name: runpy.run_path(str(configs / f"{name}.py"))["max_tokens"] for name in ("quickstart", "gpt2")}
    dropped = {rule: row["examples"] for rule, row in counted["dropped"].items()}
    figures["examples"] |= {"largest": counted["largest"]} | dropped
    return figures | {
        "meta": meta, "kept": kept, "dropped": counted["dropped"], "source": counted["sources"],
        "split": {split: row for split, row in counted["splits"].items() if row["documents"]},
        "lengths": counted["lengths"], "repeated_bytes": kept["repeated"],
        "main_language": max(tongues, key=tongues.get),
        "foreign": 1 - share(max(tongues.values()), sum(tongues.values())),
        "tokens": int(used.sum()), "bytes_per_token": share(kept["bytes"], used.sum()),
        "tokens_per_word": share(used.sum(), kept["words"]),
        "vocabulary": tokenizer.vocab_size, "vocabulary_used": share(len(order), tokenizer.vocab_size),
        "most_frequent": shown[: len(shown) // 2], "least_frequent": shown[len(shown) // 2 :],
        "by_rank": np.log2(used[order[2 ** np.arange(len(order).bit_length()) - 1]]).round(2).tolist(),
        "epochs": {name: budget / trained for name, budget in budgets.items()},
        "divergence": {"val": divergence(tokens[1], train), "chance": divergence(tokens[3], train)},
    }  # fmt: skip


def write_report(folder: Path, counted: dict, meta: dict, tokenizer, shards: dict[str, list[np.ndarray]]) -> list[str]:
    """Write report.json and report.html into `folder`, where sample.jsonl is; returns the warnings, a line each.

    counted: see prepare_data.Writer. shards: the tokens by split. meta: what else is known; "name" is shown, and no
    split is missed whose "val_fraction" or "test_fraction" is 0.
    """
    import jinja2

    # Words and conditions stand in the templates. What they show may come from anywhere: in HTML all of it is escaped.
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    templates = jinja2.Environment(loader=loader, autoescape=jinja2.select_autoescape(), trim_blocks=True)
    templates.globals |= {"pct": "{:.1%}".format, "number": "{:,}".format, "quoted": repr}
    figures = summarize(folder, counted, meta, tokenizer, shards)
    words = templates.get_template("warnings.txt").render(figures)
    warnings = [line.rsplit(" | ", 1) for line in words.splitlines()]
    write_json(folder / "report.json", {"warnings": warnings} | figures)
    page = templates.get_template("report.html").render(figures, warnings=warnings, folder=folder.name)
    replace_file(folder / "report.html", lambda file: file.write(page.encode("utf-8", "replace")))
    return [". ".join(warning) for warning in warnings]
