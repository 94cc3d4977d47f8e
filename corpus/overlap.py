"""Measure how much of the held-out splits is in train word for word.

A model remembers text that it was trained on, so a held-out split that is in train measures memory.
The tokens alone count, whatever the documents are: a window of them overlaps if it is in train, at
any position. Lee et al. (2022, arXiv:2107.06499) take 50 tokens, about 200 bytes.

All windows of train are looked at, in constant memory; of a held-out split every n-th one, about
WINDOWS in all.
"""

import math
from itertools import chain

import numpy as np

from corpus.curation import FACTOR, share

WINDOW_BYTES = 200
WINDOWS = 20_000  # of a held-out split: the share is exact within about 1 %
BLOCK = 2**18  # tokens at a time
SHIFT = np.uint64(64 - 22)  # the first 22 bits of a hash find it in a table of 4 MB


def read_blocks(shards, size):
    """Yield the tokens of mapped shards, at most `size` at a time.

    Pages that are read through the map would count as memory of this process.
    """
    for shard in shards:
        for start in range(0, len(shard), size):
            offset = shard.offset + start * shard.itemsize
            yield np.fromfile(shard.filename, shard.dtype, size, offset=offset)


def hash_windows(shards, size, end_of_text):
    """Yield (hashes, is_counted) of the windows at all positions, in blocks.

    A window ends behind `size` tokens, a power of 2, or with its document. Counted are the complete
    ones, and the first of each document, which is all of a short one. A hash is a polynomial of
    the tokens, modulo 2**64 (Karp and Rabin 1987).
    """
    tokens = np.zeros(0, dtype=int)
    padding = np.full(size - 1, end_of_text)
    for block in chain(read_blocks(shards, BLOCK), [padding]):
        tokens = np.concatenate([tokens, block])
        is_first = tokens == end_of_text
        document = np.cumsum(is_first)
        hashes = tokens.astype(np.uint64) + 1
        factor = np.array([FACTOR])
        length = 1
        while length < size:  # a window is two of half its length
            second = hashes[length:]
            count = len(second)
            is_same = document[length : length + count] == document[:count]
            hashes = hashes[:count] * factor + second * is_same
            factor = factor * factor
            length *= 2
        count = len(hashes)
        is_complete = document[size - 1 :] == document[:count]
        yield hashes, is_complete | is_first[:count]
        tokens = tokens[count:]


def overlap(shards, end_of_text, bytes_per_token):
    """Return the share of the windows of val and of test that are in train.

    shards: mapped tokens by split. An empty split has None.
    """
    size = 2 ** round(math.log2(WINDOW_BYTES / np.clip(bytes_per_token, 1, WINDOW_BYTES)))
    held_out = {}
    for split in ("val", "test"):
        every = 1 + sum(map(len, shards[split])) // WINDOWS
        windows = hash_windows(shards[split], size, end_of_text)
        chosen = [hashes[is_counted][::every] for hashes, is_counted in windows]
        held_out[split] = np.concatenate(chosen)
    known = np.union1d(held_out["val"], held_out["test"])
    is_likely = np.zeros(2**22, dtype=bool)
    is_likely[known >> SHIFT] = True
    is_found = np.zeros(len(known), dtype=bool)
    for hashes, _ in hash_windows(shards["train"], size, end_of_text):
        is_found |= np.isin(known, hashes[is_likely[hashes >> SHIFT]])
    shares = {}
    for split, hashes in held_out.items():
        n_found = np.isin(hashes, known[is_found]).sum()
        shares[split] = share(n_found, len(hashes)) if len(hashes) else None
    return shares
