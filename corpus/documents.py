"""What a worker does: blocks to documents, and documents to rows of tokens."""

import json
from dataclasses import dataclass

import numpy as np

from corpus import synthetic
from corpus.curation import Curator, View
from corpus.formats import HTML, decode, decode_text, field_names, find_field, is_html
from corpus.report import sample_line

PASSAGES = "left out: lines with words of the evaluation"


@dataclass(slots=True)
class Document:
    """A text, where it stands, and what is wrong with it.

    where: for people, its file with the line or row. split: where its source or its position
    decides it.
    """

    text: str
    note: str | None
    where: str
    split: str | None = None


@dataclass(slots=True)
class Row:
    """What the main process needs of a document.

    source, where, note: as in Unit and Document. head: the beginning of the text. size: bytes of
    text. drop_rule: the rule of curation that drops it. signature: recognises copies. content: its
    tokens after end-of-text as bytes; without a tokenizer its text in UTF-8. sample: its line in
    sample.jsonl, if it is in the sample.
    """

    source: str
    where: str
    note: str | None
    head: str = ""
    size: int = 0
    split: str = "train"
    drop_rule: str | None = None
    signature: bytes = b""
    content: bytes = b""
    sample: str = ""


class BatchReader:
    """A worker's task: a Batch to its rows. config: a PrepareConfig."""

    def __init__(self, config, tokenizer):
        self.config = config
        self.tokenizer = tokenizer
        self.curator = Curator(config)

    def __call__(self, batch):
        """Return the cursor behind the batch, and its rows."""
        found = []
        for unit, block in batch.blocks:
            found += [(unit, document) for document in read_documents(unit, block, self.config)]
        views = [View(document.text) for _, document in found]
        signatures = self.curator.signatures(views)
        rows = []
        for (unit, document), view, signature in zip(found, views, signatures):
            row = Row(unit.source, document.where, document.note)
            row.split = document.split or unit.split or self.split(unit, view)
            # Rules and copies concern text that was found, not text that was generated.
            if view.raw and unit.kind != "synthetic":
                row.drop_rule = self.curator.judge(view, is_file=unit.kind == "text")
                row.signature = signature.tobytes()
            if row.drop_rule == "decontaminate":
                rest, passages = self.curator.without_questions(view)
                if rest:
                    where = f"{row.where}, {len(passages)} characters: {passages[:100]!r}"
                    rows.append(Row(row.source, where, PASSAGES))
                    row.drop_rule = None
                    view = View(rest)
            row.head = view.text[:160]
            row.size = len(view.raw)
            if row.size and row.drop_rule is None:
                row.content = encode_document(view, self.tokenizer) if self.tokenizer else view.raw
                row.sample = sample_line(view, batch.bytes_before, row)
            rows.append(row)
        return batch.cursor, rows

    def split(self, unit, view):
        """Return the split that the text decides: none that its data set has."""
        val_fraction = 0 if "val" in unit.official else self.config.val_fraction
        test_fraction = 0 if "test" in unit.official else self.config.test_fraction
        return split_of(view.digest.tobytes(), val_fraction, test_fraction)


def encode_document(view: View, tokenizer) -> bytes:
    """Return end-of-text and the tokens of a text, as bytes."""
    ids = tokenizer.encode(view.text)
    # Bits per byte is exact because each byte of the text is in exactly one token.
    n_bytes = tokenizer.token_bytes[ids].sum()
    assert n_bytes == len(view.raw), f"tokens lose bytes of the text {view.text[:160]!r}"
    return np.append(tokenizer.end_of_text, ids).astype(tokenizer.dtype).tobytes()


def split_of(digest: bytes, val_fraction: float, test_fraction: float) -> str:
    """Return the split of a text by its SHA-256: equal texts share a split."""
    position = int.from_bytes(digest[:8], "big") / 2**64
    if position < val_fraction:
        return "val"
    return "test" if position < val_fraction + test_fraction else "train"


def read_documents(unit, block, config):
    """Yield all documents of a block, with a note for each fault."""
    if block.note:
        line = f":{block.number}" if block.number else ""
        yield Document("", block.note, unit.path + line)
        return
    match unit.kind:
        case "claude":
            yield from block.payload
        case "synthetic":
            for index, split, text in synthetic.documents(unit.path, config.seed, block.payload):
                yield Document(text, None, f"{unit.source} {index}", split)
        case "jsonl" | "json":
            separator = ":" if unit.kind == "jsonl" else " value "
            for number, line in enumerate(block.payload.split(b"\n"), block.number):
                if line.strip():
                    text, note, fields = parse_line(line, config.text_key or "text")
                    where = f"{unit.path}{separator}{number}"
                    if fields:
                        where += f", which has {', '.join(fields)[:160]}"
                    yield Document(text, note, where)
        case "text":
            text, note = decode_text(block.payload)
            if is_html(unit.path, text):
                note = note or HTML
            yield Document(text, note, unit.path, block.split)
        case _:
            for number, (value, cell_note) in enumerate(block.payload, block.number):
                text, note = decode(value)
                yield Document(text, cell_note or note, f"{unit.path} row {number}")


def parse_line(line, key):
    """Return (text, note, fields) of a line of JSON.

    fields: the names that are there, if the text is not.
    """
    content, line_note = decode(line)
    try:
        row = json.loads(content)
    except (ValueError, RecursionError):
        return "", "broken JSON", []
    fields = []
    if isinstance(row, dict):
        try:
            row = find_field(row, key)
        except (LookupError, TypeError):
            return "", f"no field {key!r}: give --text_key", field_names(row)
        fields = [f"{key}.{name}" for name in row] if isinstance(row, dict) else []
    text, note = decode(row)
    return text, note or line_note, fields
