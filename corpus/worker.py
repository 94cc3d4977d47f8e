"""Between the source and the shards: text in batches, and what a worker makes of a batch.

batches        the source as lists of blocks, from any place on
Understanding  a worker's task: blocks to documents, their split, what curation says, their tokens
bpe_texts      the text that a tokenizer is trained on
"""

import math
from collections import namedtuple
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np

from corpus.curation import Curator, View
from corpus.report import sample_row
from corpus.sources import Document, Unit, documents, read

BATCH_BYTES = 1_000_000  # of the source, for a worker at a time
BPE_TRAINING_BYTES = (
    100_000_000  # a tokenizer is trained on this much text at most; more changes it very little
)


# What is known of a document. head: how its text begins; note: what was wrong with it; size: bytes of its text; verdict:
# the rule of curation that drops it; signature: that by which copies are found; content: its tokens behind end-of-text,
# as bytes (without a tokenizer its text, to train one on); sample: its line in sample.jsonl, if it is in the sample.
Row = namedtuple("Row", "source where head note size split verdict signature content sample")


def batches(units: list[Unit], config, place: list[int]) -> Iterator[tuple]:
    """Yields (place behind the batch, bytes of the unit so far, bytes read before the batch, [(unit, block), …]), about
    BATCH_BYTES at a time, from a place on: [unit, blocks of it, bytes read in all]. What was done of a unit is read
    again and thrown away: reading is the cheap part."""
    batch, (first, skip, before) = [], place
    behind = before
    for index in range(first, len(units)):
        for done, block in enumerate(read(units[index], config), 1):
            if index > first or done > skip:
                batch.append((units[index], block))
                behind += (
                    len(block.payload) if isinstance(block.payload, bytes) else BATCH_BYTES // 8
                )
            if behind - before >= BATCH_BYTES or len(batch) == 1000:
                yield [index, done, behind], block.used, before, batch
                batch, before = [], behind
    yield [len(units), 0, behind], 0, before, batch


def split_of(digest: bytes, val_fraction: float, test_fraction: float) -> str:
    """The split of a document, from the SHA-256 of its text: equal texts never land in different splits."""
    place = int.from_bytes(digest[:8], "big") / 2**64
    return (
        "val"
        if place < val_fraction
        else "test"
        if place < val_fraction + test_fraction
        else "train"
    )


class Understanding:
    """A worker's task: a batch to (place behind it, bytes of the unit so far, its rows)."""

    def __init__(self, config: SimpleNamespace, tokenizer):
        self.config, self.tokenizer, self.curator = config, tokenizer, Curator(config)

    def __call__(self, batch: tuple) -> tuple[list[int], int, list[Row]]:
        place, used, before, blocks = batch
        found = [
            (unit, row) for unit, block in blocks for row in documents(unit, block, self.config)
        ]
        views = [View(document.text) for _, document in found]
        signed = zip(found, views, self.curator.signatures(views))
        return (
            place,
            used,
            [self.row(*what, view, signature, before) for what, view, signature in signed],
        )

    def row(
        self, unit: Unit, document: Document, view: View, signature: np.ndarray, before: int
    ) -> Row:
        judged = (
            document.text and unit.kind != "synthetic"
        )  # rules and copies are for text that was found
        split = document.split or split_of(
            view.digest.tobytes(), self.config.val_fraction, self.config.test_fraction
        )
        verdict, content, sample = self.curator.judge(view) if judged else None, document.text, ""
        if content and self.tokenizer and not verdict:
            content, sample = self.tokens(view), sample_row(view, before, split, document.where)
        return Row(
            unit.source,
            document.where,
            document.text[:160],
            document.note,
            len(view.raw),
            split,
            verdict,
            signature.tobytes() if judged else b"",
            content,
            sample,
        )

    def tokens(self, view: View) -> bytes:
        ids = self.tokenizer.encode(view.text)
        # bits per byte is only as true as this sum: every byte of the text is in exactly one token.
        same = self.tokenizer.token_bytes[ids].sum() == len(view.raw)
        assert same, f"the tokens' bytes are not the text's bytes: {view.text[:160]!r}"
        content = np.empty(len(ids) + 1, dtype=self.tokenizer.dtype)
        content[0], content[1:] = self.tokenizer.end_of_text, ids
        return content.tobytes()


def bpe_texts(results: Iterator[tuple], config) -> Iterator[str]:
    """The training documents' text, up to BPE_TRAINING_BYTES: held-out text shapes nothing, not even the tokenizer."""
    count, size = 0, 0
    for row in (row for _, _, rows in results for row in rows if row.size and not row.verdict):
        count, size = count + 1, size + row.size
        if row.split == "train":
            yield row.content
        if (
            size >= min(BPE_TRAINING_BYTES, config.max_bytes or math.inf)
            or count == config.max_documents
        ):
            return
