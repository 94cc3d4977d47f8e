"""What training reads: shards of tokens, prepared folders, mixtures and batches."""

import contextlib
import hashlib
import json
import math
from bisect import bisect_left, bisect_right, insort
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, islice
from pathlib import Path

import numpy as np

from nanoloop.files import sha256_of_file, write_json
from nanoloop.options import print_safely, reading, require
from nanoloop.vocabulary import Vocabulary

SPLITS = ("train", "val", "test")

# --------------------------------------------------------------------------------------------------
# Shards, in llm.c's format: 256 little-endian int32 (magic number, version, count), then the tokens

HEADER_INTS = 256
HEADER_BYTES = 4 * HEADER_INTS
FORMATS = {(20240520, 1): "<u2", (20240801, 7): "<u4"}  # magic number and version to dtype


def open_shard(path: Path, hint: str) -> np.ndarray:
    """Return the tokens of a shard, memory-mapped, uint16 or uint32.

    Raises UserError, with the hint, for a shard that is missing, damaged or truncated.
    """
    require(path.is_file(), f"{path} is missing. {hint}")
    header = np.fromfile(path, "<i4", HEADER_INTS).tolist()
    dtype = FORMATS.get(tuple(header[:2]))
    is_shard = dtype and len(header) == HEADER_INTS
    require(is_shard, f"{path} is not a token shard in llm.c's format. {hint}")
    size = path.stat().st_size
    expected = HEADER_BYTES + header[2] * np.dtype(dtype).itemsize
    message = f"{path} is truncated or changed: it needs {expected:,} bytes, got {size:,}. {hint}"
    require(size == expected, message)
    return np.memmap(path, dtype, "r", HEADER_BYTES)


class Split:
    """The shards of one split as a single stream of tokens."""

    def __init__(self, shards):
        self.shards = shards
        self.ends = [0, *accumulate(map(len, shards))]

    def __len__(self):
        return self.ends[-1]

    def read(self, start, count):
        """Return `count` tokens from position `start`, int64; fewer where the stream ends."""
        stop = start + count
        first = bisect_right(self.ends, start) - 1
        last = bisect_left(self.ends, stop)
        parts = [
            shard[max(start - begin, 0) : stop - begin]
            for shard, begin in zip(self.shards[first:last], self.ends[first:last])
        ]
        return np.concatenate(parts).astype(np.int64)


# --------------------------------------------------------------------------------------------------
# Prepared folders and mixtures of them


class Data:
    """A prepared folder, checked: each shard is complete, unchanged and within the vocabulary.

    A shard with the size, time of change and inode of an earlier check is read again only for
    verify=True. meta: the content of meta.json. tokenizer: a Vocabulary. splits: "train", "val"
    and "test" to Split.
    fingerprint: 16 hexadecimal digits that change whenever a token or the tokenizer changes.
    sources: as in Mixture. Raises UserError that names the file and the command to type.
    """

    def __init__(self, folder: str | Path, verify: bool = False):
        self.folder = Path(folder)
        self.sources = {self.folder.name: (1.0, self)}
        hint = f"Prepare it: python prepare_data.py --source=PATH --name={self.folder.name}"
        meta_path = self.folder / "meta.json"
        is_complete = meta_path.is_file()
        require(is_complete, f"{meta_path} does not exist: '{folder}' is not complete. {hint}")
        hint += " --overwrite=True, with the options in its meta.json"
        with reading(f"meta.json or tokenizer.json in '{folder}' cannot be read", hint):
            self.meta = json.loads(meta_path.read_bytes())
            values = json.loads((self.folder / "tokenizer.json").read_bytes())
            self.tokenizer = Vocabulary.from_json(values)
            self.fingerprint = self.meta["fingerprint"]
            self.entropy = int(self.fingerprint, 16)  # a part of the seed of the order
            is_same = self.tokenizer.fingerprint == self.meta["tokenizer"]["fingerprint"]
            rows = []
            for row in self.meta["shards"]:
                rows.append((str(row["split"]), str(row["file"]), row["sha256"]))
        require(is_same, f"{folder}/tokenizer.json is not the tokenizer in meta.json. {hint}")
        shards = {split: [] for split in SPLITS}
        for split, file, _ in rows:
            shards.setdefault(split, []).append(open_shard(self.folder / file, hint))
        self.splits = {split: Split(shards[split]) for split in SPLITS}
        self.check({file: sha256 for _, file, sha256 in rows}, hint, verify)

    def check(self, checksums: dict, hint: str, verify: bool) -> None:
        """Check the shards that changed since they were checked; remember those that are good."""
        size = self.tokenizer.vocab_size
        states = {}
        for file, sha256 in checksums.items():
            stat = (self.folder / file).stat()
            states[file] = [sha256, size, stat.st_size, stat.st_mtime_ns, stat.st_ino]
        memory = self.folder / ".checked.json"
        checked = {}
        if not verify:
            with contextlib.suppress(OSError, ValueError, TypeError):
                checked = dict(json.loads(memory.read_bytes()))
        pending = [file for file in states if checked.get(file) != states[file]]
        # Hashing releases the interpreter lock: all cores check shards at the speed of the disk.
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda file: self.check_shard(file, checksums[file], hint), pending))
        if pending:
            with contextlib.suppress(OSError):  # a folder may be read-only
                write_json(memory, states)

    def check_shard(self, file: str, sha256: str, hint: str) -> None:
        path = self.folder / file
        is_same = sha256_of_file(path) == sha256
        require(is_same, f"{path} was changed: its checksum differs. {hint}")
        largest = int(open_shard(path, hint).max(initial=0))
        size = self.tokenizer.vocab_size
        require(largest < size, f"{path} holds token {largest}, the vocabulary has {size}. {hint}")

    def eval_batches(self, split, block_size, batch_size, rank=0, world_size=1):
        """Yield (tokens, targets) of a split once, in order.

        Each is (batch_size, block_size) int64.
        Each token but the first is a target exactly once; a target of -1 is padding. The windows
        depend on block_size alone, so the total loss does not depend on the batch size. Each rank
        gets every world_size-th batch; all get as many, the last ones may be padding only.
        """
        stream = self.splits[split]
        starts = range(0, len(stream) - 1, block_size)
        n_rounds = math.ceil(len(starts) / (batch_size * world_size))
        for batch in range(rank, n_rounds * world_size, world_size):
            windows = np.full((batch_size, block_size + 1), -1)
            first = batch * batch_size
            for row, start in enumerate(starts[first : first + batch_size]):
                window = stream.read(start, block_size + 1)
                windows[row, : len(window)] = window
            targets = windows[:, 1:].copy()
            yield np.where(targets < 0, 0, windows[:, :-1]), targets


class Mixture:
    """Several prepared folders with one tokenizer: FOLDER:SHARE,FOLDER:SHARE,… or FOLDER,FOLDER,…

    Without shares, each folder has the same. sources: name of the folder to (share, Data); the
    shares sum to 1. tokenizer, fingerprint: as in Data. Raises UserError.
    """

    def __init__(self, spec: str, verify: bool = False):
        self.folder = spec
        weighted = spec if ":" in spec else spec.replace(",", ":1,") + ":1"
        parts = [part.rpartition(":") for part in weighted.split(",")]
        try:
            shares = [float(share) for _, _, share in parts]
        except ValueError:
            shares = [0.0]
        is_valid = all(0 < share < math.inf for share in shares)
        expected = "a folder, FOLDER,FOLDER, or FOLDER:SHARE,FOLDER:SHARE with shares above 0"
        require(is_valid, f"--data must be {expected}, such as data/a:0.65,data/b:0.35, got {spec}")
        datas = [Data(folder, verify) for folder, _, _ in parts]
        self.tokenizer = datas[0].tokenizer
        message = (
            f"the folders in --data={spec} must have one tokenizer: prepare them again with "
            f"--tokenizer={datas[0].folder}"
        )
        require(len({data.tokenizer.fingerprint for data in datas}) == 1, message)
        self.sources = {
            data.folder.name: (share / sum(shares), data) for share, data in zip(shares, datas)
        }
        message = f"two folders in --data={spec} have the same name: rename one"
        require(len(self.sources) == len(datas), message)
        lines = [f"{share:.9f} {data.fingerprint}" for share, data in self.sources.values()]
        self.fingerprint = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def open_data(spec: str, verify: bool = False) -> Data | Mixture:
    """Open the data that --data names: a folder, or a mixture of several. Raises UserError."""
    if Path(spec).exists() or not set(spec) & set(":,"):
        return Data(spec, verify)
    return Mixture(spec, verify)


def mean_by_share(data, results):
    """Average the figures of a mixture's folders by share, and add each folder's own.

    data: Data or Mixture. results: folder to a dict of figures; a folder without data is missing.
    """
    shares = [data.sources[name][0] for name in results]
    means = {}
    for key in next(iter(results.values()), {}):
        values = [figures[key] for figures in results.values()]
        means[key] = float(np.average(values, weights=shares))
    if len(data.sources) > 1:
        for name, figures in results.items():
            means |= {f"{key}_{name}": value for key, value in figures.items()}
    return means


# --------------------------------------------------------------------------------------------------
# Training batches


class Windows:
    """The train split as windows of block_size + 1 tokens.

    Each window begins with the last target of the window before. count: how many there are.
    """

    def __init__(self, data, block_size):
        self.stream = data.splits["train"]
        self.block_size = block_size
        self.count = (len(self.stream) - 1) // block_size

    def read(self, index):
        return self.stream.read(index * self.block_size, self.block_size + 1)


class Rows:
    """The train split as rows of block_size + 1 tokens that each begin a document.

    Best-fit packing (Ding et al. 2024, arXiv:2404.10830): a row takes the longest waiting document
    that fits. Where none fits, the shortest one fills the row and its rest is left out, as in
    nanochat. cropped: the share of tokens left out. All epochs have the same rows.
    """

    WAITING = 1000  # documents to choose from: more of them crop less and take longer to search

    def __init__(self, data, block_size, seed):
        self.stream = data.splits["train"]
        size = block_size + 1
        starts = [[0]]
        for shard, first in zip(self.stream.shards, self.stream.ends):
            starts.append(np.flatnonzero(shard == data.tokenizer.end_of_text) + first)
        starts = np.unique(np.concatenate(starts))
        lengths = np.diff(starts, append=len(self.stream))
        order = np.random.default_rng([seed, data.entropy]).permutation(len(starts))
        documents = iter(np.stack([lengths, starts], axis=1)[order].tolist())
        waiting = sorted(islice(documents, self.WAITING))
        pieces = []  # (start, length), in the order of the rows
        self.first = [0]  # the first piece of each row, and the end of the last full row
        room = size
        while waiting:
            n_fits = bisect_right(waiting, [room, math.inf])
            length, start = waiting.pop(max(n_fits - 1, 0))
            length = min(length, room)
            pieces.append((start, length))
            room -= length
            if room == 0:
                self.first.append(len(pieces))
                room = size
            for document in islice(documents, 1):
                insort(waiting, document)
        self.pieces = np.array(pieces)
        self.count = len(self.first) - 1
        self.cropped = 1 - self.count * size / len(self.stream)
        print(f"{data.folder.name}: {self.count:,} rows, {self.cropped:.1%} of tokens cropped")

    def read(self, index):
        pieces = self.pieces[self.first[index] : self.first[index + 1]]
        return np.concatenate([self.stream.read(*piece) for piece in pieces.tolist()])


@dataclass(eq=False)
class TrainBatches:
    """Training batches: a pure function of (data, seed, step, micro_step, rank).

    Each source is cut into sequences of block_size + 1 tokens: Windows, or Rows with
    align_documents. An epoch is a seeded permutation of them, and epochs follow one another. Step
    s takes the sequences s * G to (s + 1) * G - 1 of that endless list, with G = batch_size *
    grad_accum * world_size. So a step sees the same sequences however G is split, and a run resumes
    from the number of the step. In a mixture, each sequence of the list comes from one source.
    """

    data: Data | Mixture
    block_size: int
    seed: int
    batch_size: int
    grad_accum: int = 1
    world_size: int = 1
    align_documents: bool = False

    def __post_init__(self):
        self.sources = {}
        self.warned = set()
        for name, (_, source) in self.data.sources.items():
            size = len(source.splits["train"])
            message = (
                f"the train split of '{source.folder}' needs more than block_size = "
                f"{self.block_size} tokens, got {size}: add text, or set a smaller --block_size"
            )
            require(size > self.block_size, message)
            if self.align_documents:
                self.sources[name] = Rows(source, self.block_size, self.seed)
            else:
                self.sources[name] = Windows(source, self.block_size)
        # A batch may need the end of one epoch and the start of the next.
        self.order = lru_cache(maxsize=2 * len(self.sources))(self.permutation)

    def permutation(self, name, epoch):
        """Return the order of a source's sequences in an epoch."""
        _, source = self.data.sources[name]
        rng = np.random.default_rng([self.seed, epoch, source.entropy])
        return rng.permutation(self.sources[name].count)

    def draw(self, n):
        """Return (source, k): sequence n of the run is sequence k of the source.

        The first source gets its rounded share of all sequences, the second its rounded share of
        the others, and so on. So each source has its share of the first n, within one or two.
        """
        others = 1.0
        for name, (share, _) in self.data.sources.items():  # noqa: B007
            before = math.floor(share / others * n + 0.5)
            after = math.floor(share / others * (n + 1) + 0.5)
            if after > before:
                break
            n -= before
            others -= share
        return name, before

    def __call__(self, step, micro_step=0, rank=0):
        """Return (tokens, targets), each (batch_size, block_size) int64.

        The targets are the tokens one position later.
        """
        batch = (step * self.grad_accum + micro_step) * self.world_size + rank
        sequences = np.empty((self.batch_size, self.block_size + 1), int)
        for row in range(self.batch_size):
            name, k = self.draw(batch * self.batch_size + row)
            source = self.sources[name]
            epoch, index = divmod(k, source.count)
            sequences[row] = source.read(int(self.order(name, epoch)[index]))
        # Copies are contiguous; a compiled model compiles again for other strides.
        return sequences[:, :-1].copy(), sequences[:, 1:].copy()

    def warn_of_repeats(self, steps):
        """Warn once about each source that `steps` optimizer steps read more than 4 times."""
        sequences = steps * self.batch_size * self.grad_accum * self.world_size
        for name, (share, _) in self.data.sources.items():
            epochs = share * sequences / self.sources[name].count
            if epochs > 4 and name not in self.warned:
                self.warned.add(name)
                print_safely(
                    f"warning: {name} is repeated {epochs:.1f} times in {steps:,.0f} steps. Beyond "
                    "4 epochs repeated text teaches far less than new text (arXiv:2305.16264): add "
                    "text, or give it a smaller share"
                )
