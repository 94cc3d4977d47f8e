"""What a prepared corpus is like: report.json and report.html, and warnings where it will make a model worse.

    facts         in the workers: a few numbers about one document
    Tally         in the main process: what they add up to, in memory that does not grow with the corpus
    write_report  the figures, the warnings (what was found, why it matters, what to do), and the two files
"""

import base64
import json
import runpy
import zlib
from pathlib import Path

import numpy as np

from console import replace_file, write_json
from corpus.curation import BANDS, KINDS, View, share

NAMES = list(dict.fromkeys(KINDS.values()))  # of kinds of characters
KIND_OF_BYTE = bytes(NAMES.index(KINDS[max(key for key in KINDS if int(key, 16) <= byte)]) for byte in range(256))
SCRIPTS = ("Latin", "Greek", "Cyrillic", "Hebrew", "Arabic", "Indian", "Chinese", "Korean", "others")
SPLITS = ("train", "val", "test")
MAX_ANCHORS, MAX_SAMPLE, MAX_LINES = 16_384, 2_048, 2_000  # what a Tally holds at most
SPAN_BYTES = 10_000  # repeated text that is shorter is not counted


def facts(view: View, language: str | None = None) -> dict:
    """Some numbers about one document.

    counts: what can be added up. edges: its first and last lines. anchors: the hashes, as text, of one in 256 of its
    shingles, and where they stand. sample: the smallest shingle, by whose last bits documents are sampled:
    near copies share it, so that both are in the sample or neither. bands: two near copies have one in common.
    """
    kinds = np.bincount(np.frombuffer(view.raw.translate(KIND_OF_BYTE), np.uint8), minlength=len(NAMES)).tolist()
    counts = dict(zip(NAMES, kinds)) | {"documents": 1, "bytes": len(view.raw), "words": len(view.hashes)}
    # No word has 50 letters: base64, hexadecimal. U+FFFD is what decoders put in place of bytes that are no text.
    encoded, broken = int(view.lengths[view.lengths >= 50].sum()), counts["control"] + 3 * view.text.count("\ufffd")
    counts |= {"encoded": encoded * (encoded > 1000), "binary": len(view.raw) * (broken > 0.01 * len(view.raw))}
    edges = view.text[:400].split("\n")[:6] + view.text[-400:].split("\n")[-6:]
    anchors = np.flatnonzero(view.shingles & np.uint64(255) == 0)[: len(view.hashes)].tolist()
    return {
        "counts": counts, "language": language, "head": view.text[:160], "bands": view.bands.tolist(),
        "edges": list(dict.fromkeys(line.strip()[:80] for line in edges if len(line.strip()) >= 30)),
        "anchors": [(str(view.shingles[i] >> np.uint64(8)), int(view.places[i])) for i in anchors],
        "sample": int(view.shingles.min()),
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# The tally


def thin(sample: dict[str, int], most: int, level: int) -> int:
    """Halve a sample until it has at most `most` keys, by the number each begins with. Returns the new level."""
    while len(sample) > most:
        level += 1
        for key in [key for key in sample if int(key.split()[0]) % 2**level]:
            del sample[key]
    return level


class Tally:
    """What the facts of all documents add up to. Documents are added in their order; all else follows from that.

    Near copies and repeated spans would need memory in proportion to the corpus. Each is a sample by a hash that thins
    itself out: when it is full one half goes, and from then on half as much comes in (Wegman's adaptive sampling,
    Flajolet 1990). Frequent lines are counted as Misra and Gries (1982) do.
    """

    def __init__(self, vocab_size: int):
        self.rows: dict[str, dict] = {}  # "kept", "dropped RULE", "split val", "source …", "language en": summed counts
        self.examples: dict[str, list] = {}  # rule or fault to [bytes, where, text] of the largest documents
        self.lines: dict[str, int] = {}  # a document's first or last line to how often it was seen, or less
        self.anchors: dict[str, int] = {}  # hash of a shingle to its latest place in the corpus, in bytes
        self.sample: dict[str, int] = {}  # "sample split bands…" to how many such documents
        self.levels, self.repeated, self.lengths = [0, 0], 0, [0] * 48  # lengths: documents by the bits of their bytes
        self.tokens = np.zeros((4, vocab_size), dtype=np.int64)  # occurrences in train, val, test, control

    def to_json(self) -> str:
        state = json.dumps(vars(self) | {"tokens": self.tokens.tolist()})
        return base64.b64encode(zlib.compress(state.encode(), 1)).decode()

    @classmethod
    def from_json(cls, value: str) -> "Tally":
        tally, state = cls(0), json.loads(zlib.decompress(base64.b64decode(value)))
        vars(tally).update(state, tokens=np.array(state["tokens"], dtype=np.int64))
        return tally

    def note(self, fault: str, size: int, where: str, head: str) -> None:
        rows = sorted([*self.examples.get(fault, []), [size, where, head]], key=lambda row: -row[0])
        self.examples[fault] = rows[:5]

    def add(self, facts: dict, source: str, where: str, split: str, verdict: str | None, tokens=None) -> None:
        """Count a document. verdict: None for one that is kept, whose token ids are `tokens`, an array of integers."""
        counts, size = facts["counts"], facts["counts"]["bytes"]
        names = ["kept", f"split {split}", f"source {source}", f"language {facts['language']}"]
        for name in [f"dropped {verdict}"] if verdict else names:
            row = self.rows.get(name, {})
            self.rows[name] = {key: count + row.get(key, 0) for key, count in counts.items()}
        for fault in [verdict] if verdict else ["largest"] + [name for name in ("encoded", "binary") if counts[name]]:
            self.note(fault, counts.get(fault, size), where, facts["head"])
        if verdict:
            return
        self.lengths[size.bit_length()] += 1
        self.find_spans(facts, where)
        for line in facts["edges"]:
            self.lines[line] = self.lines.get(line, 0) + 1
        if len(self.lines) > MAX_LINES:
            self.lines = {line: count - 1 for line, count in self.lines.items() if count > 1}
        row = SPLITS.index(split)
        if facts["sample"] % 2 ** self.levels[0] == 0:
            key = " ".join(map(str, [facts["sample"], row, *facts["bands"]]))
            self.sample[key] = self.sample.get(key, 0) + 1
            self.levels[0] = thin(self.sample, MAX_SAMPLE, self.levels[0])
        # The control group: some training documents, not more than val, to know how unlike train chance makes them.
        if row == 0 and facts["sample"] % 8 == 7 and self.tokens[3].sum() < self.tokens[1].sum():
            row = 3
        np.add.at(self.tokens[row], np.asarray(tokens, dtype=np.int64), 1)

    def find_spans(self, facts: dict, where: str) -> None:
        """Long spans that occurred before: anchors that are as far from each other as they were the last time."""
        start, latest, spans = self.rows["kept"]["bytes"] - facts["counts"]["bytes"], {}, []
        anchors = [row for row in facts["anchors"] if int(row[0]) % 2 ** self.levels[1] == 0]
        for index, (anchor, place) in enumerate(anchors):
            if anchor in self.anchors:
                distance = start + place - self.anchors[anchor]
                span = latest.get(distance, [0, 0, -9])  # first place, last place, number of the last anchor
                if index > span[2] + 3:  # what a text has in common with several others may be missing in between
                    spans.append(span := [place, place, index])
                latest[distance] = span
                span[1:] = place, index
            self.anchors[anchor] = start + place
        for first, last, _ in spans:
            if last - first >= SPAN_BYTES:
                self.repeated += last - first
                self.note("repeated", last - first, f"{where}, from byte {first:,}", facts["head"])
        self.levels[1] = thin(self.anchors, MAX_ANCHORS, self.levels[1])


# ---------------------------------------------------------------------------------------------------------------------
# The figures and the warnings


def near_copies(sample: dict[str, int]) -> tuple[float, float]:
    """(share of documents with a near copy, share of held-out documents with one in train), from a Tally's sample."""
    rows = np.array([key.split() for key in sample]).astype(np.uint64).reshape(-1, 2 + BANDS)
    counts = np.array(list(sample.values()), dtype=np.int64)
    held_out, bands = rows[:, 1] > 0, rows[:, 2:]
    _, place, often = np.unique(bands, return_inverse=True, return_counts=True)
    copied = (often[place.reshape(bands.shape)] > 1).any(axis=1) | (counts > 1)
    leaked = held_out & np.isin(bands, bands[~held_out]).any(axis=1)
    return share(float(counts[copied].sum()), counts.sum()), share(float(counts[leaked].sum()), counts[held_out].sum())


def divergence(first: np.ndarray, second: np.ndarray) -> float:
    """Jensen-Shannon divergence of two count vectors, in bits: 0 alike, 1 nothing in common (Lin 1991)."""
    p, q = first / max(1, first.sum()), second / max(1, second.sum())
    middle = (p + q) / 2
    return float(sum((x[x > 0] * np.log2(x[x > 0] / middle[x > 0])).sum() for x in (p, q)) / 2)


def summarize(tally: Tally, meta: dict, tokenizer) -> dict:
    """All figures of the report as plain values."""
    rows = {kind: {name[len(kind) + 1 :]: row for name, row in tally.rows.items() if name.startswith(kind)}
            for kind in ("kept", "dropped", "split", "source", "language")}  # fmt: skip
    kept = rows.pop("kept").get("") or dict.fromkeys([*NAMES, "documents", "bytes", "words", "encoded", "binary"], 0)
    used, train = tally.tokens.sum(axis=0), tally.tokens[0]
    order = np.argsort(-used, kind="stable")[: np.count_nonzero(used)]
    shown = [(tokenizer.decode_bytes([i]).decode("utf-8", "backslashreplace").replace("\n", "\\n"), int(used[i]))
             for i in (*order[:20], *order[:-21:-1])]  # fmt: skip
    tongues = {name: row["bytes"] for name, row in rows["language"].items()} if "None" not in rows["language"] else {}
    tongues = tongues or {name: kept[name] for name in SCRIPTS}
    near, across = near_copies(tally.sample)
    configs, trained = Path(__file__).parents[1] / "config", max(1, int(tally.tokens[[0, 3]].sum()))
    budgets = {name: runpy.run_path(str(configs / f"{name}.py"))["max_tokens"] for name in ("quickstart", "gpt2")}
    return rows | {
        "meta": meta, "kept": kept, "examples": tally.examples, "lengths": tally.lengths,
        "main_language": max(tongues, key=tongues.get),
        "near_copies": near, "near_copies_across": across, "repeated_bytes": tally.repeated,
        "foreign": 1 - share(max(tongues.values()), sum(tongues.values())), "tokens": int(used.sum()),
        "bytes_per_token": share(kept["bytes"], used.sum()), "tokens_per_word": share(used.sum(), kept["words"]),
        "vocabulary": tokenizer.vocab_size, "vocabulary_used": share(len(order), tokenizer.vocab_size),
        "most_frequent": shown[: len(shown) // 2], "least_frequent": shown[len(shown) // 2 :],
        "by_rank": np.log2(used[order[2 ** np.arange(len(order).bit_length()) - 1]]).round(2).tolist(),
        "epochs": {name: budget / trained for name, budget in budgets.items()}, "kinds": {n: kept[n] for n in NAMES},
        "divergence": {"val": divergence(tally.tokens[1], train), "chance": divergence(tally.tokens[3], train)},
        "lines": sorted(tally.lines.items(), key=lambda line: -line[1])[:10],
    }  # fmt: skip


def write_report(folder: Path, tally: Tally, meta: dict, tokenizer) -> list[str]:
    """Write report.json and report.html into `folder`; returns the warnings, a line each.

    meta: what else is known; "name" is shown, and no split is missed whose "val_fraction" or "test_fraction" is 0.
    """
    import jinja2

    # Words and conditions stand in the templates. What they show may come from anywhere: in HTML all of it is escaped.
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    templates = jinja2.Environment(loader=loader, autoescape=jinja2.select_autoescape(), trim_blocks=True)
    templates.globals |= {"pct": "{:.1%}".format, "number": "{:,}".format, "quoted": repr}
    figures = summarize(tally, meta, tokenizer)
    words = templates.get_template("warnings.txt").render(figures)
    warnings = [line.rsplit(" | ", 1) for line in words.splitlines()]
    write_json(folder / "report.json", {"warnings": warnings} | figures)
    page = templates.get_template("report.html").render(figures, warnings=warnings, folder=folder.name)
    replace_file(folder / "report.html", lambda file: file.write(page.encode("utf-8", "replace")))
    return [". ".join(warning) for warning in warnings]
