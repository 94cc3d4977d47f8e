"""What training reads: shards, batches."""

import hashlib
import json
import math
from bisect import bisect_right, insort
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np

from nanoloop.files import sha256_of_file
from nanoloop.options import reading as explained, require
from nanoloop.tokenizer import Tokenizer

SPLITS = ("train", "val", "test")


HEADER_INTS, HEADER_BYTES = 256, 1024


FORMATS = {2: (20240520, 1), 4: (20240801, 7)}  # bytes per token: (magic, version)


def append_tokens(
    folder: Path, split: str, position: int, tokens: np.ndarray, shard_tokens: int
) -> None:
    """Write `tokens`, uint16 or uint32, at `position` of the split's stream, in shards of `shard_tokens` tokens.

    Where a token goes follows from its position alone, so writing the same stretch again after a kill is harmless.
    """
    while len(tokens):
        index, offset = divmod(position, shard_tokens)
        part, tokens = tokens[: shard_tokens - offset], tokens[shard_tokens - offset :]
        header = np.zeros(HEADER_INTS, dtype="<i4")
        header[:3] = (*FORMATS[tokens.itemsize], offset + len(part))
        with open(folder / f"{split}_{index:06d}.bin", "r+b" if offset else "wb") as file:
            file.seek(HEADER_BYTES + offset * tokens.itemsize)
            file.write(part.tobytes())
            file.seek(0)
            file.write(header.tobytes())
        position += len(part)


def open_shard(path: Path, remedy: str) -> np.ndarray:
    """The tokens of one shard, memory-mapped, uint16 or uint32. Raises UserError where it is not a whole shard."""
    require(path.is_file(), f"{path} is missing. {remedy}")
    size = path.stat().st_size
    header = np.fromfile(path, dtype="<i4", count=HEADER_INTS).tolist()
    itemsize = {known: itemsize for itemsize, known in FORMATS.items()}.get(tuple(header[:2]))
    require(
        itemsize and len(header) == HEADER_INTS,
        f"{path} is not a token shard in llm.c's format. {remedy}",
    )
    expected = HEADER_BYTES + header[2] * itemsize
    require(
        size == expected,
        f"{path} is truncated or changed: it has {size:,} bytes, not {expected:,}. {remedy}",
    )
    return np.memmap(path, dtype=f"<u{itemsize}", mode="r", offset=HEADER_BYTES)


class Split:
    """One split's shards as a single stream of tokens."""

    def __init__(self, shards: list[np.ndarray]):
        self.shards = shards
        self.ends = np.cumsum([0] + [len(shard) for shard in shards])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def read(self, start: int, count: int) -> np.ndarray:
        """`count` tokens from position `start`, int64; a stretch may cross from one shard into the next."""
        index = int(np.searchsorted(self.ends, start, side="right")) - 1
        parts = []
        while count > 0:
            offset = start - int(self.ends[index])
            parts.append(self.shards[index][offset : offset + count])
            start, count, index = start + len(parts[-1]), count - len(parts[-1]), index + 1
        return np.concatenate(parts).astype(np.int64)


class Data:
    """A prepared folder, opened and checked: every shard is whole, unchanged, and holds no token beyond the vocabulary.

    meta: meta.json as a dictionary. tokenizer: a Tokenizer. splits: "train", "val", "test" to Split.
    fingerprint: 16 hexadecimal digits that change whenever a token or the tokenizer does.
    Raises UserError, naming the file and the remedy.
    """

    def __init__(self, folder: str | Path):
        self.folder = folder = Path(folder)
        remedy = f"Prepare it: python prepare_data.py --source=PATH --name={folder.name}"
        there = (
            "holds no meta.json: it is not a finished data directory"
            if folder.is_dir()
            else "does not exist"
        )
        require((folder / "meta.json").is_file(), f"data directory '{folder}' {there}. {remedy}")
        remedy += " --overwrite=True, with the options that made it (they are in its meta.json)"
        with explained(f"meta.json or tokenizer.json in '{folder}' cannot be read", remedy):
            self.meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
            self.tokenizer = Tokenizer.from_json(
                json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
            )
            shards = [
                (str(row["split"]), str(row["file"]), row["sha256"]) for row in self.meta["shards"]
            ]
            tokenizer, self.fingerprint = (
                self.meta["tokenizer"]["fingerprint"],
                self.meta["fingerprint"],
            )
            self.entropy = int(self.fingerprint, 16)  # part of the seed of the data's order
        told = f"{folder}/tokenizer.json is not the tokenizer that meta.json names. {remedy}"
        require(tokenizer == self.tokenizer.fingerprint, told)
        with (
            ThreadPoolExecutor() as pool
        ):  # hashing releases the interpreter lock: all cores check at disk speed
            tokens = list(pool.map(lambda row: self._check(*row[1:], remedy), shards))
        self.splits = {
            split: Split([t for row, t in zip(shards, tokens) if row[0] == split])
            for split in SPLITS
        }
        self.sources = {folder.name: (1.0, self)}  # what a Mixture has more of

    def _check(self, file: str, sha256: str, remedy: str) -> np.ndarray:
        path = self.folder / file
        tokens = open_shard(path, remedy)
        require(
            sha256_of_file(path) == sha256, f"{path} was changed: its checksum differs. {remedy}"
        )
        largest, size = int(tokens.max(initial=0)), self.tokenizer.vocab_size
        require(
            largest < size, f"{path} holds token {largest}, the vocabulary has {size}. {remedy}"
        )
        return tokens

    def eval_batches(
        self, split: str, block_size: int, batch_size: int, rank: int = 0, world_size: int = 1
    ):
        """The split once, in order: yields (tokens, targets), each (batch_size, block_size) int64.

        Each token but the first is a target exactly once; what fills up the last window and the last batch has target
        -1. The windows depend on block_size alone, so the total loss does not depend on the batch size. Each rank gets
        every world_size-th batch, and all of them as many: the last may be empty.
        """
        stream, width = self.splits[split], batch_size * world_size
        starts = range(0, len(stream) - 1, block_size)
        for first in range(rank * batch_size, math.ceil(len(starts) / width) * width, width):
            tokens = np.zeros((batch_size, block_size), dtype=np.int64)
            targets = np.full((batch_size, block_size), -1, dtype=np.int64)
            for row, start in enumerate(starts[first : first + batch_size]):
                window = stream.read(start, min(block_size + 1, len(stream) - start))
                tokens[row, : len(window) - 1], targets[row, : len(window) - 1] = (
                    window[:-1],
                    window[1:],
                )
            yield tokens, targets


class Mixture:
    """Several prepared folders with one tokenizer, drawn from in fixed shares: FOLDER:SHARE,FOLDER:SHARE,…

    sources: name of the folder to (its share, its Data); shares sum to 1. tokenizer, fingerprint: as in Data.
    Raises UserError.
    """

    def __init__(self, spec: str):
        told = f"--data={spec}: a mixture is FOLDER:SHARE,FOLDER:SHARE with shares above 0, as data/a:0.65,data/b:0.35"
        folders, shares = zip(*(part.rpartition(":")[::2] for part in spec.split(",")))
        with explained(told, "or name one folder"):
            shares = [float(share) for share in shares]
        require(all(0 < share < math.inf for share in shares), told)
        self.folder, parts = spec, [Data(folder) for folder in folders]
        self.sources = {
            data.folder.name: (share / sum(shares), data) for share, data in zip(shares, parts)
        }
        require(
            len(self.sources) == len(parts),
            "two of the folders in --data have the same name: rename one",
        )
        self.tokenizer = parts[0].tokenizer
        for data in parts:
            told = f"'{data.folder}' has another tokenizer than '{folders[0]}': prepare it anew with --tokenizer"
            require(
                data.tokenizer.fingerprint == self.tokenizer.fingerprint, f"{told}={folders[0]}"
            )
        contents = "\n".join(
            f"{share:.9f} {data.fingerprint}" for share, data in self.sources.values()
        )
        self.fingerprint = hashlib.sha256(contents.encode()).hexdigest()[:16]


def open_data(spec: str) -> Data | Mixture:
    """The data that --data names: one folder, or a mixture of several. Raises UserError."""
    return Data(spec) if Path(spec).exists() or ":" not in spec else Mixture(spec)


def mean_by_share(data: Data | Mixture, results: dict[str, dict[str, float]]) -> dict[str, float]:
    """Average the figures of a mixture's folders by share, and add each folder's own.

    results: figures by folder; a folder without data is missing.
    """
    shares = {name: data.sources[name][0] for name in results}
    means = {}
    for key in next(iter(results.values()), {}):
        weighted = sum(shares[name] * figures[key] for name, figures in results.items())
        means[key] = weighted / sum(shares.values())
    if len(data.sources) > 1:
        for name, figures in results.items():
            means |= {f"{key}_{name}": value for key, value in figures.items()}
    return means


class Windows:
    """A stream cut into sequences of block_size + 1 tokens, each beginning with the last target of the one before."""

    def __init__(self, data: Data, block_size: int):
        self.stream, self.block_size = data.splits["train"], block_size
        self.count = (len(self.stream) - 1) // block_size

    def read(self, index: int) -> np.ndarray:
        return self.stream.read(index * self.block_size, self.block_size + 1)


class Rows:
    """A stream cut into rows of block_size + 1 tokens that all begin where a document begins.

    Best-fit packing: a row takes the longest of the waiting documents that still fits; where none fits, the shortest
    of them is cut to fill it, and its rest is left out. (Ding et al. 2024, arXiv:2404.10830, with the cut of nanochat.)
    cropped: the share of the tokens that are left out. The rows are packed once; epochs differ in their order.
    """

    WAITING = 1000  # documents to choose from: more lose fewer tokens and take longer to search

    def __init__(self, data: Data, block_size: int, seed: int):
        self.stream, self.size = data.splits["train"], block_size + 1
        found = [
            np.flatnonzero(shard == data.tokenizer.end_of_text) + first
            for shard, first in zip(self.stream.shards, self.stream.ends)
        ]
        starts = np.unique(np.concatenate([[0], *found]))
        lengths = np.diff(starts, append=len(self.stream))
        order = iter(np.random.default_rng([seed, data.entropy]).permutation(len(starts)).tolist())
        waiting = sorted((int(lengths[i]), int(starts[i])) for i in islice(order, self.WAITING))
        pieces, room = [], self.size  # (start, length) of each piece, in the order of the rows
        while waiting:
            fits = bisect_right(waiting, (room, math.inf))
            length, start = waiting.pop(fits - 1 if fits else 0)
            pieces.append((start, min(length, room)))
            room = room - pieces[-1][1] or self.size
            for i in islice(order, 1):
                insort(waiting, (int(lengths[i]), int(starts[i])))
        self.pieces = np.array(pieces)
        ends = np.append(0, self.pieces[:, 1].cumsum())
        self.count = int(ends[-1]) // self.size  # a last row that was not filled is left out
        self.first = np.searchsorted(
            ends, np.arange(self.count + 1) * self.size
        )  # piece of each row
        self.cropped = 1 - self.count * self.size / len(self.stream)

    def read(self, index: int) -> np.ndarray:
        pieces = self.pieces[self.first[index] : self.first[index + 1]]
        return np.concatenate(
            [self.stream.read(start, length) for start, length in pieces.tolist()]
        )


class TrainBatches:
    """Training batches as a pure function of (data, seed, step, micro_step, rank).

    The train split is cut into sequences of block_size + 1 tokens: Windows, or Rows with align_documents. An epoch is a
    seeded permutation of them; epochs follow each other without a seam. Optimizer step s takes the sequences
    s·G … (s+1)·G of that endless list, G = batch_size · grad_accum · world_size, so a step sees the same sequences
    however G is split, and stopping and going on needs nothing but the step. A mixture deals the list out to its
    sources.
    """

    def __init__(
        self,
        data: Data | Mixture,
        block_size: int,
        seed: int,
        batch_size: int,
        grad_accum: int = 1,
        world_size: int = 1,
        align_documents: bool = False,
    ):
        self.data, self.block_size, self.batch_size = data, block_size, batch_size
        self.grad_accum, self.world_size, self.warned = grad_accum, world_size, set()
        self.sources = {}
        for name, (_, source) in data.sources.items():
            told = f"the train split of '{source.folder}' is shorter than block_size + 1 = {block_size + 1} tokens"
            require(
                len(source.splits["train"]) > block_size,
                f"{told}: give it more text, or a smaller --block_size",
            )
            self.sources[name] = (
                Rows(source, block_size, seed) if align_documents else Windows(source, block_size)
            )
            if align_documents:
                print(
                    f"{name}: {self.sources[name].count:,} rows, {self.sources[name].cropped:.1%} of tokens cropped"
                )
        # The latest permutations are kept: a batch may take the end of one epoch and the beginning of the next.
        entropy = {name: source.entropy for name, (_, source) in data.sources.items()}
        self.order = lru_cache(maxsize=2 * len(entropy))(
            lambda name, epoch: np.random.default_rng([seed, epoch, entropy[name]]).permutation(
                self.sources[name].count
            )
        )

    def draw(self, n: int) -> tuple[str, int]:
        """(source, k): the run's n-th sequence is the source's k-th. A pure function of n.

        Whatever n is, each source has had its share of the sequences before it to within one or two: the first takes
        its rounded share of all, the second its rounded share of what the first has left, and so on.
        """
        left = 1.0
        for name, (share, _) in self.data.sources.items():
            before, after = (math.floor(share / left * count + 0.5) for count in (n, n + 1))
            if after > before:
                break
            n, left = n - before, left - share
        return name, before

    def __call__(
        self, step: int, micro_step: int = 0, rank: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """(tokens, targets), each (batch_size, block_size) int64; targets are the tokens one further on."""
        part = (step * self.grad_accum + micro_step) * self.world_size + rank
        windows = np.empty((self.batch_size, self.block_size + 1), dtype=np.int64)
        for row in range(self.batch_size):
            name, k = self.draw(part * self.batch_size + row)
            epoch, place = divmod(k, self.sources[name].count)
            windows[row] = self.sources[name].read(int(self.order(name, epoch)[place]))
        return windows[:, :-1].copy(), windows[
            :, 1:
        ].copy()  # whole arrays: compiled models care about strides

    def epochs(self, steps: float) -> dict[str, float]:
        """How often each source will have been seen after `steps` optimizer steps."""
        sequences = steps * self.batch_size * self.grad_accum * self.world_size
        return {
            name: share * sequences / self.sources[name].count
            for name, (share, _) in self.data.sources.items()
        }

    def warn_of_repeats(self, steps: float) -> None:
        """Say, once for each source, that `steps` optimizer steps repeat it so often that it teaches little more."""
        for name, epochs in self.epochs(steps).items():
            if epochs > 4 and name not in self.warned:
                print(
                    f"warning: {name} is repeated {epochs:.1f} times in {steps:,.0f} steps. Beyond 4 epochs repeated "
                    "text teaches far less than new text (arXiv:2305.16264): give it more text or a smaller share"
                )
                self.warned.add(name)
