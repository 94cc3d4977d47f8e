"""Between the source and the shards: text in batches, and what a worker makes of a batch.

    batches        the source as lists of blocks, from any place on
    Understanding  a worker's task: blocks to documents, their split, what curation says, their tokens, facts for the report
    bpe_texts      the text that a tokenizer is trained on
"""

import math
import re
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np

from corpus.curation import Curator, View, look
from corpus.report import facts
from corpus.sources import Block, Document, Unit, documents, read

BATCH_BYTES = 1_000_000  # of the source, for a worker at a time
BPE_TRAINING_BYTES = 100_000_000  # a tokenizer is trained on this much text at most; more changes it very little
LONGEST_RUN = 8192  # characters without white space, or of nothing else, that are encoded together


def batches(units: list[Unit], config, place: list[int]) -> Iterator[tuple]:
    """Yields ([unit, blocks of it] behind the batch, bytes of that unit, [(unit, block), …]) from a place on, about
    BATCH_BYTES at a time. What was done of a unit is read again and thrown away: reading is the cheap part."""
    batch, size, (first, skip) = [], 0, place
    for index in range(first, len(units)):
        for done, block in enumerate(read(units[index], config), 1):
            if index == first and done <= skip:
                continue
            batch.append((units[index], block))
            size += len(block.payload) if isinstance(block.payload, bytes) else BATCH_BYTES // 8
            if size >= BATCH_BYTES or len(batch) == 1000:
                yield [index, done], block.used, batch
                batch, size = [], 0
    yield [len(units), 0], 0, batch


def split_of(digest: bytes, val_fraction: float, test_fraction: float) -> str:
    """The split of a document, from the SHA-256 of its text: equal texts never land in different splits."""
    place = int.from_bytes(digest[:8], "big") / 2**64
    return "val" if place < val_fraction else "test" if place < val_fraction + test_fraction else "train"


def parts_of(text: str) -> list[str]:
    """A text, cut where a run without white space, or of nothing else, is longer than LONGEST_RUN: merging the bytes
    of what the tokenizer's pattern does not cut can take time in the square of its length."""
    half = LONGEST_RUN // 2  # a longer run fills one of these stretches
    stretches = (text[i : i + half] for i in range(0, len(text) - half, half))
    if all((" " in stretch or "\n" in stretch) and not stretch.isspace() for stretch in stretches):
        return [text]
    runs = re.finditer(r"\S+|\s+", text)
    cuts = [cut for run in runs for cut in range(run.start() + LONGEST_RUN, run.end(), LONGEST_RUN)]
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)])]


class Understanding:
    """A worker's task: a batch to the place behind it and its rows."""

    def __init__(self, config: SimpleNamespace, tokenizer):
        self.config, self.tokenizer, self.curator = config, tokenizer, Curator(config)

    def __call__(self, batch: tuple) -> tuple[list[int], int, list[SimpleNamespace]]:
        place, used, blocks = batch
        found = [(unit, block, row) for unit, block in blocks for row in documents(unit, block, self.config)]
        views = look([document.text for _, _, document in found]) if found else []
        return place, used, [self.row(*what, view) for what, view in zip(found, views)]

    def row(self, unit: Unit, block: Block, document: Document, view: View) -> SimpleNamespace:
        """What is known of a document, or of a piece of one: content is its tokens (without a tokenizer its text, to
        train one on), verdict the rule of curation that drops it, signature that by which copies are found."""
        judged = document.text and unit.kind != "synthetic"  # rules and copies are for text that was found
        split = document.split or split_of(view.digest.tobytes(), self.config.val_fraction, self.config.test_fraction)
        verdict = self.curator.judge(view) if judged else None
        signature = self.curator.signature(view) if judged else view.digest[:0]
        content = parts_of(document.text) if document.text and not verdict else []
        if content and self.tokenizer:
            head = [] if block.continued else [np.array([self.tokenizer.end_of_text], dtype=np.uint32)]
            content = np.concatenate(head + [self.tokenizer.encode(part) for part in content])
            # bits per byte is only as true as this sum: every byte of the text is in exactly one token.
            same = self.tokenizer.token_bytes[content].sum() == len(view.raw)
            assert same, f"{document.where}: the tokens' bytes are not the text's bytes"
            content = content.astype(np.uint16 if self.tokenizer.vocab_size <= 65536 else np.uint32)
        told = facts(view, self.curator.language(view)) if self.tokenizer and document.text else None
        return SimpleNamespace(source=unit.source, where=document.where, note=document.note, continued=block.continued,
                               size=len(view.raw), split=split, verdict=verdict, signature=signature, facts=told,
                               content=content)  # fmt: skip


def bpe_texts(results: Iterator[tuple], config) -> Iterator[str]:
    """The training documents' text, up to BPE_TRAINING_BYTES: held-out text shapes nothing, not even the tokenizer."""
    count, size, split = 0, 0, None
    for row in (row for _, _, rows in results for row in rows if row.content):
        count, split = (count, split) if row.continued else (count + 1, row.split)
        if size >= min(BPE_TRAINING_BYTES, config.max_bytes or math.inf) or count > (config.max_documents or math.inf):
            return
        yield from row.content if split == "train" else []
        size += row.size
