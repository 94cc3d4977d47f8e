"""What a prepared corpus is like: report.json and report.html, and warnings where it will make a model worse.

    facts         in the workers: a few numbers about one document
    Tally         in the main process: what they add up to, in memory that does not grow with the corpus
    write_report  the figures, the warnings (what was found, why it matters, what to do), and the two files
"""

import base64
import io
import json
import runpy
import zlib
from collections import Counter
from html import escape
from pathlib import Path
from string import Template

import numpy as np

from console import replace_file, show, write_json
from corpus.curation import View, mixed, share

# Kinds of characters, by the first byte of their UTF-8: each begins at a byte and ends where the next one begins.
KINDS = {0x00: "control", 0x09: "white space", 0x0E: "control", 0x20: "white space", 0x21: "signs", 0x30: "digits",
         0x3A: "signs", 0x41: "capitals", 0x5B: "signs", 0x61: "small letters", 0x7B: "signs", 0x7F: "control",
         0x80: "", 0xC2: "other signs", 0xC3: "accented Latin", 0xCA: "other signs", 0xCD: "Greek", 0xD0: "Cyrillic",
         0xD5: "Armenian, Hebrew", 0xD8: "Arabic", 0xDC: "other scripts", 0xE0: "Indian scripts, Thai",
         0xE1: "other scripts", 0xE2: "other signs", 0xE3: "Chinese, Japanese", 0xEA: "Korean", 0xEE: "other signs",
         0xF0: "emoji, rare signs"}  # fmt: skip
NAMES = list(dict.fromkeys(KINDS.values()))
KIND_OF_BYTE = bytes(NAMES.index(KINDS[max(start for start in KINDS if start <= byte)]) for byte in range(256))
SCRIPTS = ("Greek", "Cyrillic", "Armenian, Hebrew", "Arabic", "Indian scripts, Thai", "Chinese, Japanese", "Korean")
SPLITS = ("train", "val", "test")
MAX_ANCHORS, MAX_SAMPLE, MAX_LINES = 16_384, 2_048, 2_000  # what a Tally holds at most
SPAN_BYTES = 10_000  # repeated text that is shorter is not counted


def facts(view: View, language: str | None = None) -> dict:
    """Some numbers about one document.

    counts: what can be added up. faults: fault to bytes. edges: its first and last lines. anchors: the hashes, as text,
    of one in 256 of its shingles, and where they stand. sample: a number by which documents are sampled, made from
    the smallest shingle, which near copies share: they come into a sample both or neither. bands: for near copies.
    """
    hashes, places, lengths = view.tokens
    kinds = np.bincount(np.frombuffer(view.raw.translate(KIND_OF_BYTE), np.uint8), minlength=len(NAMES)).tolist()
    counts = {name: count for name, count in zip(NAMES, kinds) if count and name}
    # No word has 50 letters: base64, hexadecimal. U+FFFD is what decoders put in place of bytes that are no text.
    encoded, broken = int(lengths[lengths >= 50].sum()), counts.get("control", 0) + 3 * view.text.count("\ufffd")
    faults = {"encoded": encoded * (encoded > 1000), "binary": len(view.raw) * (broken > 0.01 * len(view.raw))}
    edges = [line.strip()[:80] for line in view.text[:400].split("\n")[:6] + view.text[-400:].split("\n")[-6:]]
    anchors = np.flatnonzero(view.shingles & np.uint64(255) == 0)[: len(hashes)]
    return {
        "counts": counts | {"documents": 1, "bytes": len(view.raw), "words": len(hashes), **faults},
        "faults": {fault: size for fault, size in faults.items() if size},
        "edges": list(dict.fromkeys(line for line in edges if len(line) >= 30)),
        "anchors": [(str(view.shingles[i] >> np.uint64(8)), int(places[i])) for i in anchors],
        "sample": int(mixed(view.shingles.min(keepdims=True))[0]),
        "bands": view.bands.tolist(),
        "language": language,
        "head": view.text[:160],
    }


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
        self.rows: dict[str, dict] = {}  # "kept", "dropped RULE", "split val", "source …", "language en": sums of counts
        self.examples: dict[str, list] = {}  # rule or fault to [bytes, where, text] of the largest documents
        self.lines: dict[str, int] = {}  # a document's first or last line to how often it was seen, or less
        self.anchors: dict[str, int] = {}  # hash of a shingle to its latest place in the corpus, in bytes
        self.sample: dict[str, int] = {}  # "sample split bands…" to how many such documents
        self.lengths = [0] * 48  # documents by the bits of their length in bytes
        self.sums = {"repeated": 0, "anchor_level": 0, "sample_level": 0, "control": 0, "train": 0, "val": 0, "test": 0}
        self.tokens = np.zeros((4, vocab_size), dtype=np.int64)  # occurrences in train, val, test, control

    def to_json(self) -> str:
        state = json.dumps(vars(self) | {"tokens": self.tokens.tolist()})
        return base64.b64encode(zlib.compress(state.encode(), 1)).decode()

    @classmethod
    def from_json(cls, value: str) -> "Tally":
        tally = cls(0)
        vars(tally).update(json.loads(zlib.decompress(base64.b64decode(value))))
        tally.tokens = np.array(tally.tokens, dtype=np.int64)
        return tally

    def note(self, fault: str, size: int, where: str, head: str) -> None:
        rows = self.examples.setdefault(fault, [])
        rows.append([size, where, head])
        rows.sort(key=lambda row: -row[0])
        del rows[5:]

    def add(self, facts: dict, source: str, where: str, split: str, verdict: str | None, tokens=None) -> None:
        """Count a document. verdict: None for one that is kept, whose token ids are `tokens`, an array of integers."""
        names = ["kept", f"split {split}", f"source {source}", f"language {facts['language']}"]
        for row in (self.rows.setdefault(name, {}) for name in ([f"dropped {verdict}"] if verdict else names)):
            for key, count in facts["counts"].items():
                row[key] = row.get(key, 0) + count
        size = facts["counts"]["bytes"]
        for fault, amount in ({verdict: size} if verdict else {"largest": size, **facts["faults"]}).items():
            self.note(fault, amount, where, facts["head"])
        if verdict:
            return
        self.lengths[size.bit_length()] += 1
        self.find_spans(facts, where)
        for line in facts["edges"]:
            self.lines[line] = self.lines.get(line, 0) + 1
        if len(self.lines) > MAX_LINES:
            self.lines = {line: count - 1 for line, count in self.lines.items() if count > 1}
        if facts["sample"] % 2 ** self.sums["sample_level"] == 0:
            key = " ".join(map(str, [facts["sample"], SPLITS.index(split), *facts["bands"]]))
            self.sample[key] = self.sample.get(key, 0) + 1
            self.sums["sample_level"] = thin(self.sample, MAX_SAMPLE, self.sums["sample_level"])
        # The control group: training documents, as many tokens as in val, to know how unlike train chance makes them.
        group = "control" if split == "train" and self.sums["control"] < self.sums["val"] else split
        self.sums[group] += len(tokens)
        np.add.at(self.tokens[(*SPLITS, "control").index(group)], np.asarray(tokens, dtype=np.int64), 1)

    def find_spans(self, facts: dict, where: str) -> None:
        """Long spans that occurred before: anchors that are as far from each other as they were the last time."""
        start, spans = self.rows["kept"]["bytes"] - facts["counts"]["bytes"], {}
        for anchor, place in facts["anchors"]:
            if int(anchor) % 2 ** self.sums["anchor_level"] == 0:
                if anchor in self.anchors:
                    spans.setdefault(start + place - self.anchors[anchor], [place, place])[1] = place
                self.anchors[anchor] = start + place
        for first, last in spans.values():
            if last - first >= SPAN_BYTES:
                self.sums["repeated"] += last - first
                self.note("repeated", last - first, f"{where}, from byte {first:,}", facts["head"])
        self.sums["anchor_level"] = thin(self.anchors, MAX_ANCHORS, self.sums["anchor_level"])


# ---------------------------------------------------------------------------------------------------------------------
# The figures and the warnings


def near_copies(sample: dict[str, int]) -> tuple[float, float]:
    """(share of documents with a near copy, share of held-out documents with one in train), from a Tally's sample."""
    if not sample:
        return 0.0, 0.0
    rows, counts = np.array([key.split() for key in sample]).astype(np.uint64), np.array(list(sample.values()))
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
    kept, used = Counter(tally.rows.get("kept")), tally.tokens.sum(axis=0)
    order = np.argsort(-used, kind="stable")[: np.count_nonzero(used)]
    shown = [[(repr(tokenizer.decode([i]))[1:-1], int(used[i])) for i in ids] for ids in (order[:20], order[:-21:-1])]
    near, across = near_copies(tally.sample)
    trained, texts = tally.sums["train"] + tally.sums["control"], int(used.sum())
    configs = Path(__file__).parent.parent / "config"
    budgets = {name: runpy.run_path(str(configs / f"{name}.py"))["max_tokens"] for name in ("quickstart", "gpt2")}
    groups = {kind: {name[len(kind) + 1 :]: row for name, row in tally.rows.items() if name.startswith(kind + " ")}
              for kind in ("dropped", "split", "source", "language")}  # fmt: skip
    return groups | {
        "meta": meta, "kept": kept, "lengths": tally.lengths, "examples": tally.examples, "tokens": texts,
        "near_copies": near, "near_copies_across_splits": across, "repeated_bytes": tally.sums["repeated"],
        "bytes_per_token": share(kept["bytes"], texts), "tokens_per_word": share(texts, kept["words"]),
        "vocabulary": tokenizer.vocab_size, "vocabulary_used": share(len(order), tokenizer.vocab_size),
        "most_frequent": shown[0], "least_frequent": shown[1],
        "epochs": {name: budget / max(1, trained) for name, budget in budgets.items()},
        "divergence_of_val": divergence(tally.tokens[1], tally.tokens[0]),
        "divergence_by_chance": divergence(tally.tokens[3], tally.tokens[0]),
        "lines": sorted(tally.lines.items(), key=lambda row: -row[1])[:10],
    }  # fmt: skip


def find_faults(f: dict) -> list[tuple[str, str]]:
    """(what was found, why it matters and what to do) for each problem that the figures show."""
    kept, size, examples = f["kept"], f["kept"]["bytes"], f["examples"]
    worst = {fault: f"{rows[0][1]} ({rows[0][0]:,} bytes)" for fault, rows in examples.items()}
    source = max(f["source"], key=lambda name: f["source"][name]["bytes"], default=None)
    line, line_count = f["lines"][0] if f["lines"] else ("", 0)
    dropped = sum(row["documents"] for row in f["dropped"].values())
    scripts = {name: kept[name] for name in SCRIPTS} | {"Latin": kept["capitals"] + kept["small letters"]}
    languages = {name: row["bytes"] for name, row in f["language"].items() if name != "None"} or scripts
    main = max(languages, key=languages.get)
    foreign = 1 - share(languages[main], sum(languages.values()))
    big = f["vocabulary"] >= 1000  # a tokenizer that is meant to know words
    missing = [name for name in ("val", "test") if f["meta"].get(f"{name}_fraction", 1) and name not in f["split"]]
    rows = [
        (kept["documents"] > 3 and examples["largest"][0][0] > 0.1 * size,
         f"one document dominates: {worst.get('largest')} is more than a tenth of the text",
         "The model will learn it by heart. Cut it into its parts, leave it out, or add other text."),
        (len(f["source"]) > 1 and f["source"][source]["bytes"] > 0.8 * size,
         f"one source dominates: {source} is more than four fifths of the text",
         "The others will hardly be learnt. Prepare them apart, and mix them in training with shares you choose."),
        (f["near_copies"] > 0.05, f"near copies: {f['near_copies']:.0%} of the documents nearly repeat another",
         "Repeated text is memorized and costs the time of new text (Lee et al. 2022). Type --duplicates=near."),
        (f["near_copies_across_splits"] > 0.01,
         f"near copies across the splits: {f['near_copies_across_splits']:.0%} of held-out documents are nearly in train",
         "Validation rewards memory then. Type --duplicates=near: the first copy stays, in one split."),
        (f["repeated_bytes"] > 0,
         f"very long repeated spans: {f['repeated_bytes']:,} bytes or more came before, most at {worst.get('repeated')}",
         "Long spans that repeat are learnt word for word. Find out why they do (a log, a license, a table) and cut them."),
        (kept["encoded"] > 0.01 * size or kept["encoded"] > 20_000,
         f"encoded data: {kept['encoded']:,} bytes of base64, hexadecimal or the like, most in {worst.get('encoded')}",
         "Nothing can be learnt from it, and it takes many tokens. Leave such files out, or type --quality=max_word_length=20."),
        (kept["binary"], f"looks like binary data: {kept['binary']:,} bytes of documents, as {worst.get('binary')}",
         "Control characters or broken UTF-8 are no text. Leave these files out, or convert them to UTF-8."),
        (line_count > max(3, 0.1 * kept["documents"]),
         f"boilerplate: {line_count:,} of {kept['documents']:,} documents begin or end with lines as {line!r}",
         "The model learns to write it everywhere. Remove headers and footers before preparing, or try --quality=c4."),
        (foreign > 0.03, f"several languages or scripts: {foreign:.0%} of the letters or bytes are not {main}",
         "A small share is learnt badly and takes vocabulary. If it is not meant, type --languages=en (or yours)."),
        (dropped > kept["documents"], f"more was dropped than kept: {dropped:,} documents of {dropped + kept['documents']:,}",
         "Rules for prose drop code, tables and other languages. Look at the samples and lower or switch off a limit."),
        (big and f["bytes_per_token"] < 2.5, f"the tokenizer does not fit: {f['bytes_per_token']:.2f} bytes a token",
         "3 to 5 are usual: the model sees less text for the same arithmetic. Train one on this text: --tokenizer=bpe:4096."),
        (big and f["vocabulary_used"] < 0.7, f"only {f['vocabulary_used']:.0%} of the vocabulary occurs in the text",
         "The other rows of the tables are never trained. Take a smaller vocabulary: --tokenizer=bpe:4096."),
        (f["epochs"]["quickstart"] > 4,
         f"little text: config/quickstart.py would read it {f['epochs']['quickstart']:,.0f} times, config/gpt2.py {f['epochs']['gpt2']:,.0f}",
         "After 4 times new text is worth much more (Muennighoff et al. 2023). Add text, or lower max_tokens."),
        ("val" in f["split"] and f["divergence_of_val"] > 1.5 * f["divergence_by_chance"] + 0.05,
         f"validation is unlike train: {f['divergence_of_val']:.2f} bits of Jensen-Shannon divergence, {f['divergence_by_chance']:.2f} by chance",
         "Its loss will say little about training. Shuffle, or give more documents: a hash of the text makes the splits."),
        (missing, f"no document is in {' and '.join(missing)}", "Raise --val_fraction or --test_fraction, or add documents."),
        (f["meta"].get("false_positives", 0) > 0.01,
         f"{f['meta'].get('false_positives', 0):.1%} of new documents are taken for copies by mistake",
         "The memory for recognising copies is full. Raise --duplicates_mb."),
    ]  # fmt: skip
    return [(found, advice) for present, found, advice in rows if present]


# ---------------------------------------------------------------------------------------------------------------------
# The files


def picture(lengths: list[int], counts: np.ndarray) -> str:
    """The lengths of documents and the frequencies of tokens, as SVG."""
    from matplotlib.figure import Figure

    left, right = (figure := Figure(figsize=(9, 3), layout="constrained")).subplots(1, 2)
    shown = [i for i, count in enumerate(lengths) if count] or [0]
    left.bar(range(shown[0], shown[-1] + 1), lengths[shown[0] : shown[-1] + 1], width=0.9)
    left.set(xlabel="length of a document in bytes, from 2^(x - 1) on", ylabel="documents")
    right.loglog(np.arange(1, len(counts) + 1), np.sort(counts)[::-1])
    right.set(xlabel="tokens by rank", ylabel="occurrences")
    figure.savefig(file := io.StringIO(), format="svg")
    return file.getvalue()[file.getvalue().index("<svg") :]


def table(title: str, header: str, rows, note: str = "") -> str:
    """HTML of a table; the text in it comes from anywhere and is escaped."""
    cells = [[f"<td>{escape(value if isinstance(value, str) else show(value))}</td>" for value in row] for row in rows]
    head = "".join(f"<th>{escape(name)}</th>" for name in header.split("|"))
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in cells)
    return f"<section><h2>{title}</h2><p>{note}</p><div><table><tr>{head}</tr>{body}</table></div></section>" * bool(cells)


def write_report(folder: Path, tally: Tally, meta: dict, tokenizer) -> list[str]:
    """Write report.json and report.html into `folder`; returns the warnings, a line each.

    meta: what else is known, shown as it is; "val_fraction", "test_fraction" and "false_positives" are understood.
    """
    f = summarize(tally, meta, tokenizer)
    faults = find_faults(f)
    write_json(folder / "report.json", {"warnings": faults} | f)

    def shares(rows: dict) -> list:
        total = max(1, sum(row["bytes"] for row in rows.values()))
        ranked = sorted(rows.items(), key=lambda item: -item[1]["bytes"])[:30]
        return [(name, row["documents"], row["bytes"], f"{row['bytes'] / total:.1%}") for name, row in ranked]

    kinds = {name: {"documents": "", "bytes": f["kept"][name]} for name in NAMES if f["kept"][name]}
    samples = [(fault, where, size, head) for fault, rows in f["examples"].items() for size, where, head in rows[:3]]
    figures = ("tokens", "bytes_per_token", "tokens_per_word", "vocabulary", "vocabulary_used", "near_copies",
               "near_copies_across_splits", "repeated_bytes", "divergence_of_val", "divergence_by_chance")  # fmt: skip
    parts = [
        table("Kept and dropped", "rule|documents|bytes|share", shares({"kept": f["kept"]} | f["dropped"])),
        table("Figures", "what|value", [(name.replace("_", " "), f[name]) for name in figures]),
        table("Splits", "split|documents|bytes|share", shares(f["split"])),
        table("Sources", "source|documents|bytes|share", shares(f["source"])),
        table("Languages", "language|documents|bytes|share", shares(f["language"])) * ("None" not in f["language"]),
        table("Characters", "kind|documents|characters|share", shares(kinds)),
        table("Epochs", "recipe|times the text is read", f["epochs"].items()),
        table("Most frequent tokens", "token|occurrences", f["most_frequent"]),
        table("Least frequent tokens that occur", "token|occurrences", f["least_frequent"]),
        table("Lines at the beginning or end of documents", "line|documents", f["lines"]),
        table("Samples", "what|where|bytes|beginning", samples),
    ]
    warnings = "".join(f"<li><b>{escape(found)}</b><br>{escape(advice)}</li>" for found, advice in faults)
    template = Template((Path(__file__).parent / "report.html").read_text(encoding="utf-8"))
    page = template.substitute(title=escape(str(meta.get("name", folder.name))), warnings=warnings or "<li>none</li>",
                               picture=picture(f["lengths"], tally.tokens.sum(axis=0)), tables="".join(parts))  # fmt: skip
    replace_file(folder / "report.html", lambda file: file.write(page.encode("utf-8")))
    return [f"{found}. {advice}" for found, advice in faults]
