"""From any text to a batch of tokens: the command, the tokenizers, the shard format and the reader.

    python prepare_data.py --source=python                        # the standard library's source, a byte-pair tokenizer
    python prepare_data.py --source=my/texts --name=mine --tokenizer=bpe:8192
    python prepare_data.py --source=shakespeare                   # nanoGPT's benchmark text (needs a network)

The result is a folder, data/<name>/, that says everything about itself:

    train_000000.bin …  val_000000.bin …  test_000000.bin …       token shards, in llm.c's format
    tokenizer.json      the exact bytes of every token, and how text is cut into tokens
    meta.json           where the text came from, counts, checksums, what was left out and why

Reading order: tokenizers, shards, the reader (what train.py uses), the preparation, the command.
"""

import base64
import contextlib
import hashlib
import json
import math
import os
import shutil
import sys
import tempfile
import time
from bisect import bisect_right, insort
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from itertools import chain, islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from console import (
    UserError, explained, link_or_copy, ordered_map, read_options, replace_folder, require, run_command, sha256_of_file,
    write_json,
)  # fmt: skip
from corpus.claude import ClaudeConfig
from corpus.curation import CurationConfig, Seen
from corpus.report import SPLITS, write_report
from corpus.sources import SHAKESPEARE_OPTIONS, find_units, has_magic, nanogpt_bytes, read, token_files
from corpus.worker import Row, Understanding, batches, bpe_texts

# ---------------------------------------------------------------------------------------------------------------------
# Tokenizers. A token is a byte string, so any text can be encoded and the bytes of a prediction can be counted exactly.

END_OF_TEXT = "<|endoftext|>"

# How text is cut into pieces, within which byte pairs are merged: contractions, words, digits, punctuation, line ends,
# white space. These are GPT-4's way and GPT-2's, as tiktoken writes them, and what gigatoken calls them.
BPE_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
FAST_PATTERNS = {BPE_PATTERN: "gpt4", GPT2_PATTERN: "gpt2"}
ENCODER_CHARS = 50_000_000  # gigatoken remembers every piece it has seen: after so much text it starts anew


class Tokenizer:
    """Text to token ids and back.

    name: "byte", "bpe:N" or the name of a tiktoken encoding.
    tokens: the bytes of each token, by id; None where an encoding leaves an id unused.
    special: name to id of the tokens that stand for no text, END_OF_TEXT among them.
    pattern: the regular expression that cuts text into pieces; None means every byte is a token.
    """

    def __init__(self, name: str, tokens: list[bytes | None], special: dict[str, int], pattern: str | None):
        self.name, self.tokens, self.special, self.pattern = name, tokens, special, pattern
        self.vocab_size, self.encoded = len(tokens), 0
        self.dtype = np.dtype("<u2" if self.vocab_size <= 65536 else "<u4")  # of its tokens in shards
        self.end_of_text = range(self.vocab_size)[special[END_OF_TEXT]]  # an IndexError where it is none of the tokens
        self.fingerprint = hashlib.sha256(json.dumps(self.to_json()).encode()).hexdigest()[:16]
        # (vocab_size,) int64: the bytes of text that each token stands for; special tokens stand for none.
        self.token_bytes = np.array([0 if t is None or i in special.values() else len(t) for i, t in enumerate(tokens)])

    @cached_property
    def ranks(self) -> dict[bytes, int]:
        return {t: i for i, t in enumerate(self.tokens) if t is not None and i not in self.special.values()}

    @cached_property  # built at the first use: decoding alone needs no tiktoken
    def encoding(self):
        """The same tokenizer in tiktoken: whatever the pattern, and slower."""
        import tiktoken

        how = {"pat_str": self.pattern, "mergeable_ranks": self.ranks, "special_tokens": self.special}
        return tiktoken.Encoding(self.name, **how)

    @cached_property
    def encoder(self):
        """A function from a text to its token ids, uint32. gigatoken gives tiktoken's tokens ten times as fast; where
        they differ, a letter is newer than the Unicode tables of one of them."""
        if self.pattern not in FAST_PATTERNS:
            return lambda text: self.encoding.encode_to_numpy(text, disallowed_special=())
        import gigatoken

        with tempfile.NamedTemporaryFile() as file:
            file.write(b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in self.ranks.items()))
            file.flush()
            return gigatoken.Tokenizer.from_tiktoken(file.name, FAST_PATTERNS[self.pattern]).encode

    def encode(self, text: str) -> np.ndarray:
        """Token ids of `text`, uint32. Text that spells a special token's name is ordinary text here."""
        if self.pattern is None or not text:  # no text needs no encoder
            return np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.uint32)
        self.encoded += len(text)
        if self.encoded > ENCODER_CHARS:
            self.__dict__.pop("encoder", None)
            self.encoded = len(text)
        return self.encoder(text)

    def decode_bytes(self, ids) -> bytes:
        """Bytes of the ids; an id beyond the vocabulary, which a padded model could draw, becomes U+FFFD."""
        return b"".join((self.tokens[i] or b"") if i < self.vocab_size else b"\xef\xbf\xbd" for i in ids)

    def decode(self, ids) -> str:
        """Text of the ids; bytes that are not valid UTF-8 (a cut character, say) become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def to_json(self) -> dict:
        tokens = [None if t is None else base64.b64encode(t).decode("ascii") for t in self.tokens]
        return {"name": self.name, "pattern": self.pattern, "special": self.special, "tokens": tokens}

    @classmethod
    def from_json(cls, value: dict) -> "Tokenizer":
        tokens = [None if t is None else base64.b64decode(t) for t in value["tokens"]]
        return cls(value["name"], tokens, value["special"], value["pattern"])


def make_tokenizer(name: str, texts) -> Tokenizer:
    """The tokenizer called `name`: "byte", "bpe:N" trained on the iterable `texts`, a tiktoken encoding, or the path of
    a prepared folder (or of its tokenizer.json) whose tokenizer is taken over."""
    if name == "byte":
        tokens = [bytes([i]) for i in range(256)]
        return Tokenizer(name, tokens + [END_OF_TEXT.encode()], {END_OF_TEXT: 256}, None)
    if name.startswith("bpe:"):
        return train_bpe(name, texts)
    path = Path(name) / "tokenizer.json" if Path(name).is_dir() else Path(name)
    if path.is_file():
        with explained(f"--tokenizer={name}: {path} cannot be read", "name a prepared folder, or its tokenizer.json"):
            return Tokenizer.from_json(json.loads(path.read_text(encoding="utf-8")))
    import tiktoken

    told = f"--tokenizer={name} is not byte, bpe:N, a prepared folder or an encoding that tiktoken has or can fetch"
    known = f"tiktoken knows {', '.join(tiktoken.list_encoding_names())}. With a network, run the same command again"
    remedy = "use --tokenizer=bpe:4096, or point TIKTOKEN_CACHE_DIR at a folder that already holds the file"
    with explained(told, f"{known}; without one, {remedy}"):
        encoding = tiktoken.get_encoding(name)
    special = {s: encoding.encode_single_token(s) for s in sorted(encoding.special_tokens_set)}
    tokens: list[bytes | None] = [None] * encoding.n_vocab
    for token in [*encoding.token_byte_values(), *map(str.encode, special)]:
        tokens[encoding.encode_single_token(token)] = token
    return Tokenizer(name, tokens, special, encoding._pat_str)


def train_bpe(name: str, texts) -> Tokenizer:
    """Byte-pair encoding (Sennrich et al. 2016, arXiv:1508.07909): merge the most frequent pair until N tokens."""
    import rustbpe

    valid = name[4:].isascii() and name[4:].isdigit() and 257 <= int(name[4:]) < 2**24
    require(valid, f"--tokenizer={name}: N must be a whole number from 257 (256 bytes and end-of-text) to 16 million")
    texts = iter(texts)
    first, size, trainer = list(islice(texts, 1)), int(name[4:]), rustbpe.Tokenizer()  # a source's mistakes are told first
    print(f"training the tokenizer {name} on the training documents")
    trainer.train_from_iterator(chain(first, texts), size - 1, pattern=BPE_PATTERN)
    tokens = [bytes(token) for token, _ in sorted(trainer.get_mergeable_ranks(), key=lambda pair: pair[1])]
    if len(tokens) < size - 1:
        print(f"the text has no more pairs to merge: the vocabulary is {len(tokens) + 1}, not {size}")
    return Tokenizer(name, tokens + [END_OF_TEXT.encode()], {END_OF_TEXT: len(tokens)}, BPE_PATTERN)


# ---------------------------------------------------------------------------------------------------------------------
# Shards, in llm.c's format: 256 little-endian int32 (magic, version, token count, zeros), then the tokens.

HEADER_INTS, HEADER_BYTES = 256, 1024
FORMATS = {2: (20240520, 1), 4: (20240801, 7)}  # bytes per token: (magic, version)


def append_tokens(folder: Path, split: str, position: int, tokens: np.ndarray, shard_tokens: int) -> None:
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
    require(itemsize and len(header) == HEADER_INTS, f"{path} is not a token shard in llm.c's format. {remedy}")
    expected = HEADER_BYTES + header[2] * itemsize
    require(size == expected, f"{path} is truncated or changed: it has {size:,} bytes, not {expected:,}. {remedy}")
    return np.memmap(path, dtype=f"<u{itemsize}", mode="r", offset=HEADER_BYTES)


# ---------------------------------------------------------------------------------------------------------------------
# The reader: what train.py draws its batches from.


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
        there = "holds no meta.json: it is not a finished data directory" if folder.is_dir() else "does not exist"
        require((folder / "meta.json").is_file(), f"data directory '{folder}' {there}. {remedy}")
        remedy += " --overwrite=True, with the options that made it (they are in its meta.json)"
        with explained(f"meta.json or tokenizer.json in '{folder}' cannot be read", remedy):
            self.meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
            self.tokenizer = Tokenizer.from_json(json.loads((folder / "tokenizer.json").read_text(encoding="utf-8")))
            shards = [(str(row["split"]), str(row["file"]), row["sha256"]) for row in self.meta["shards"]]
            tokenizer, self.fingerprint = self.meta["tokenizer"]["fingerprint"], self.meta["fingerprint"]
            self.entropy = int(self.fingerprint, 16)  # part of the seed of the data's order
        told = f"{folder}/tokenizer.json is not the tokenizer that meta.json names. {remedy}"
        require(tokenizer == self.tokenizer.fingerprint, told)
        with ThreadPoolExecutor() as pool:  # hashing releases the interpreter lock: all cores check at disk speed
            tokens = list(pool.map(lambda row: self._check(*row[1:], remedy), shards))
        self.splits = {split: Split([t for row, t in zip(shards, tokens) if row[0] == split]) for split in SPLITS}
        self.sources = {folder.name: (1.0, self)}  # what a Mixture has more of

    def _check(self, file: str, sha256: str, remedy: str) -> np.ndarray:
        path = self.folder / file
        tokens = open_shard(path, remedy)
        require(sha256_of_file(path) == sha256, f"{path} was changed: its checksum differs. {remedy}")
        largest, size = int(tokens.max(initial=0)), self.tokenizer.vocab_size
        require(largest < size, f"{path} holds token {largest}, the vocabulary has {size}. {remedy}")
        return tokens

    def eval_batches(self, split: str, block_size: int, batch_size: int, rank: int = 0, world_size: int = 1):
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
                tokens[row, : len(window) - 1], targets[row, : len(window) - 1] = window[:-1], window[1:]
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
        self.sources = {data.folder.name: (share / sum(shares), data) for share, data in zip(shares, parts)}
        require(len(self.sources) == len(parts), "two of the folders in --data have the same name: rename one")
        self.tokenizer = parts[0].tokenizer
        for data in parts:
            told = f"'{data.folder}' has another tokenizer than '{folders[0]}': prepare it anew with --tokenizer"
            require(data.tokenizer.fingerprint == self.tokenizer.fingerprint, f"{told}={folders[0]}")
        contents = "\n".join(f"{share:.9f} {data.fingerprint}" for share, data in self.sources.values())
        self.fingerprint = hashlib.sha256(contents.encode()).hexdigest()[:16]


def open_data(spec: str) -> Data | Mixture:
    """The data that --data names: one folder, or a mixture of several. Raises UserError."""
    return Data(spec) if Path(spec).exists() or ":" not in spec else Mixture(spec)


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
        found = [np.flatnonzero(shard == data.tokenizer.end_of_text) + first
                 for shard, first in zip(self.stream.shards, self.stream.ends)]  # fmt: skip
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
        self.first = np.searchsorted(ends, np.arange(self.count + 1) * self.size)  # piece of each row
        self.cropped = 1 - self.count * self.size / len(self.stream)

    def read(self, index: int) -> np.ndarray:
        pieces = self.pieces[self.first[index] : self.first[index + 1]]
        return np.concatenate([self.stream.read(start, length) for start, length in pieces.tolist()])


class TrainBatches:
    """Training batches as a pure function of (data, seed, step, micro_step, rank).

    The train split is cut into sequences of block_size + 1 tokens: Windows, or Rows with align_documents. An epoch is a
    seeded permutation of them; epochs follow each other without a seam. Optimizer step s takes the sequences
    s·G … (s+1)·G of that endless list, G = batch_size · grad_accum · world_size, so a step sees the same sequences
    however G is split, and stopping and going on needs nothing but the step. A mixture deals the list out to its
    sources.
    """

    def __init__(
        self, data: Data | Mixture, block_size: int, seed: int, batch_size: int, grad_accum: int = 1,
        world_size: int = 1, align_documents: bool = False,
    ):  # fmt: skip
        self.data, self.block_size, self.batch_size = data, block_size, batch_size
        self.grad_accum, self.world_size, self.warned = grad_accum, world_size, set()
        self.sources = {}
        for name, (_, source) in data.sources.items():
            told = f"the train split of '{source.folder}' is shorter than block_size + 1 = {block_size + 1} tokens"
            require(len(source.splits["train"]) > block_size, f"{told}: give it more text, or a smaller --block_size")
            self.sources[name] = Rows(source, block_size, seed) if align_documents else Windows(source, block_size)
            if align_documents:
                print(f"{name}: {self.sources[name].count:,} rows, {self.sources[name].cropped:.1%} of tokens cropped")
        # The latest permutations are kept: a batch may take the end of one epoch and the beginning of the next.
        entropy = {name: source.entropy for name, (_, source) in data.sources.items()}
        self.order = lru_cache(maxsize=2 * len(entropy))(
            lambda name, epoch: np.random.default_rng([seed, epoch, entropy[name]]).permutation(self.sources[name].count)
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

    def __call__(self, step: int, micro_step: int = 0, rank: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """(tokens, targets), each (batch_size, block_size) int64; targets are the tokens one further on."""
        part = (step * self.grad_accum + micro_step) * self.world_size + rank
        windows = np.empty((self.batch_size, self.block_size + 1), dtype=np.int64)
        for row in range(self.batch_size):
            name, k = self.draw(part * self.batch_size + row)
            epoch, place = divmod(k, self.sources[name].count)
            windows[row] = self.sources[name].read(int(self.order(name, epoch)[place]))
        return windows[:, :-1].copy(), windows[:, 1:].copy()  # whole arrays: compiled models care about strides

    def epochs(self, steps: float) -> dict[str, float]:
        """How often each source will have been seen after `steps` optimizer steps."""
        sequences = steps * self.batch_size * self.grad_accum * self.world_size
        return {name: share * sequences / self.sources[name].count for name, (share, _) in self.data.sources.items()}

    def warn_of_repeats(self, steps: float) -> None:
        """Say, once for each source, that `steps` optimizer steps repeat it so often that it teaches little more."""
        for name, epochs in self.epochs(steps).items():
            if epochs > 4 and name not in self.warned:
                print(f"warning: {name} is repeated {epochs:.1f} times in {steps:,.0f} steps. Beyond 4 epochs repeated "
                      "text teaches far less than new text (arXiv:2305.16264): give it more text or a smaller share")  # fmt: skip
                self.warned.add(name)


# ---------------------------------------------------------------------------------------------------------------------
# The preparation: the main process reads in order, workers turn what it read into tokens, it writes them in order.


@dataclass(frozen=True, kw_only=True)
class PrepareConfig(CurationConfig, ClaudeConfig):
    """Text to data/<name>/: token shards, a tokenizer, meta.json and a report."""

    source: tuple[str, ...]  # python, shakespeare, hf:NAME, synthetic:TASKS, claude:PROMPTS.jsonl, - (stdin), or paths
    name: str | None = None  # the folder below data/; None: made from the source
    tokenizer: str | None = None  # byte, bpe:N, tiktoken's gpt2 …, or a folder to take it from; None: bpe:4096
    text_key: str | None = None  # the field of JSON or the column of a table that holds the text; None: text
    hf_config: str | None = None  # of a Hugging Face data set, as sample-10BT
    hf_split: str = "train"  # of a Hugging Face data set
    max_documents: int | None = None  # stop after so many documents were kept
    max_bytes: int | None = None  # stop after so many bytes of text were kept
    val_fraction: float | None = None  # share of the text held out to steer by; None: 0.05
    test_fraction: float | None = None  # share held out to confirm with; None: 0.05
    shuffle_buffer: int | None = None  # write at least so many documents at a time in random order; None: as they come
    seed: int = 0  # of that order, and of synthetic text
    include_site_packages: bool = False  # with --source=python: the installed packages' sources too, hundreds of MB
    strict: bool = False  # stop at the first fault in the input, instead of counting it
    workers: int | None = None  # processes; None: as many as cores, none for a small source. The result is the same
    shard_tokens: int = 100_000_000  # tokens per shard file
    overwrite: bool = False  # replace data/<name> if it is there


SMALL_BYTES = 4_000_000  # a smaller source is not worth starting workers
COMMIT_SECONDS = 3.0  # between two notes of progress
HELD_BYTES = 128_000_000  # of tokens that wait to be written


def beginning(plan: dict) -> dict:
    """What is counted, and the place that was reached: see corpus.worker.batches."""
    counts = {split: {"documents": 0, "tokens": 0, "bytes": 0} for split in SPLITS}
    return {"plan": plan, "place": [0, 0, 0], "splits": counts, "sources": {}, "notes": {}, "dropped": {},
            "lengths": [0] * 32, "largest": [], "fault": None, "appended": {"signatures.bin": 0, "sample.jsonl": 0}}  # fmt: skip


class Writer:
    """The main process's half: takes the rows in order, finds copies, keeps count, writes tokens.

    progress: all that going on after a kill needs, and what the report counts; it is noted in progress.json when all
    before it is written. appended: what is to be added to the files in which signatures and the report's sample grow.
    """

    def __init__(self, config: PrepareConfig, folder: Path, tokenizer: Tokenizer, progress: dict):
        self.config, self.folder, self.progress, self.noted = config, folder, progress, time.monotonic()
        self.dtype, self.seen, self.items, self.held = tokenizer.dtype, Seen(config), [], 0
        self.appended = {name: bytearray() for name in progress["appended"]}
        for name, size in progress["appended"].items():
            (folder / name).touch()
            os.truncate(folder / name, size)  # what came after the note comes again
        with open(folder / "signatures.bin", "rb") as file:
            while len(kept := np.fromfile(file, np.uint64, 1_000_000)):
                self.seen.remember(kept)

    def full(self) -> bool:
        """Whether the limits of the options are reached."""
        count, size = (sum(split[key] for split in self.progress["splits"].values()) for key in ("documents", "bytes"))
        return count >= (self.config.max_documents or math.inf) or size >= (self.config.max_bytes or math.inf)

    def count(self, kind: str, name: str, row: Row) -> None:
        counts = self.progress[kind].setdefault(name, {"documents": 0, "bytes": 0})
        counts["documents"] += 1
        counts["bytes"] += row.size
        if kind in ("notes", "dropped"):
            counts["examples"] = (counts.get("examples", []) + [[row.size, row.where, row.head]])[:10]

    def add(self, row: Row) -> None:
        """The next document."""
        if self.full():
            return
        verdict = row.verdict or (row.signature and self.seen.verdict(np.frombuffer(row.signature, np.uint64)))
        if row.note and self.progress["fault"] != [row.note, row.where]:  # once for all pieces of a text
            told = f"{row.where}: {row.note}. Mend it or leave it out, or type --strict=False to count faults and go on"
            require(not self.config.strict or row.note == "empty", told)
            self.count("notes", row.note, row)
            self.progress["fault"] = [row.note, row.where]
        if verdict:
            self.count("dropped", verdict, row)
        elif row.size:
            self.count("splits", row.split, row)
            self.count("sources", row.source, row)
            self.progress["lengths"][row.size.bit_length()] += 1
            largest, size = self.progress["largest"], row.size
            for known in [known for known in largest if known[1] == row.where]:  # the row is a further piece of it
                largest.remove(known)
                size += known[0]
            self.progress["largest"] = sorted([*largest, [size, row.where, row.head]], key=lambda known: -known[0])[:5]
            self.appended["signatures.bin"] += row.signature
            self.appended["sample.jsonl"] += row.sample.encode()
            self.items.append((row.split, row.content))
            self.held += len(row.content)

    def flush(self, place: list[int]) -> None:
        """Write what is at hand, all up to `place`, in random order if wanted, and note the progress."""
        order, counts = range(len(self.items)), self.progress["splits"]
        if self.config.shuffle_buffer:
            order = np.random.default_rng([self.config.seed, *place]).permutation(len(self.items))
        for split in SPLITS:
            parts = [self.items[i][1] for i in order if self.items[i][0] == split]
            tokens = np.frombuffer(b"".join(parts), dtype=self.dtype)
            append_tokens(self.folder, split, counts[split]["tokens"], tokens, self.config.shard_tokens)
            counts[split]["tokens"] += len(tokens)
        for name, content in self.appended.items():
            with open(self.folder / name, "ab") as file:
                self.progress["appended"][name] += file.write(content)
            content.clear()
        self.items, self.held, self.progress["place"], self.noted = [], 0, place, time.monotonic()
        write_json(self.folder / "progress.json", self.progress)

    def due(self) -> bool:
        """Whether to write what is at hand. Where it is shuffled, the clock has no say in what is shuffled together."""
        waited = time.monotonic() - self.noted >= COMMIT_SECONDS
        enough = len(self.items) >= self.config.shuffle_buffer if self.config.shuffle_buffer else waited
        return enough or self.held > HELD_BYTES or self.full()


def resolve(config: PrepareConfig) -> tuple[str, dict]:
    """The folder's name, and the options that decide the tokens, defaults filled in and checked."""
    require(config.source and all(config.source), "--source is empty: give python, shakespeare, or paths to text")
    source, ready = config.source[0], token_files(config.source)
    made_by = "bpe:4096" if not ready else "byte" if ready[0].with_name("meta.pkl").exists() else "gpt2"
    options = {"name": None, "tokenizer": made_by, "val_fraction": 0.05, "test_fraction": 0.05}
    options |= SHAKESPEARE_OPTIONS if config.source == ("shakespeare",) else {}
    options |= {key: getattr(config, key) for key in options if getattr(config, key) is not None}
    shares = options["val_fraction"], options["test_fraction"]
    told = f"val_fraction and test_fraction are {shares}: each must be at least 0 and their sum below 1"
    require(min(shares) >= 0 and sum(shares) < 1, told)
    for key in ("shard_tokens", "max_documents", "max_bytes", "shuffle_buffer", "workers", "duplicates_mb"):
        value = getattr(config, key)
        require(value is None or 1 <= value < 2**40, f"{key}={value} must be at least 1 and below 2**40")
    alone = config.include_site_packages and "python" not in config.source
    require(not alone, "--include_site_packages=True goes with --source=python")
    stem = "stdin" if source == "-" else Path(source.partition(":")[2] or Path(source).resolve()).stem
    name = options.pop("name") or stem
    plain = name and not name.startswith(".") and not set(name) & set("/\\*?[:,")
    require(plain, f"{name!r} cannot name a folder: type a plain word, as --name=mine")
    return name, options


def prepare(config: PrepareConfig, data_root: Path = Path("data")) -> Path:
    """Make data/<name>/ and return its path. Raises UserError.

    All is written to data/<name>.partial and renamed at the end. progress.json in there notes the place in the source
    and what was counted so far; the same command after a kill goes on from there, to the same bytes.
    """
    from tqdm import tqdm

    name, options = resolve(config)
    final, partial = data_root / name, data_root / f"{name}.partial"
    require(config.overwrite or not final.exists(), f"'{final}' is there: type --overwrite=True, or another --name")
    units = find_units(config, data_root)
    ready = [Path(unit.path) for unit in units if unit.kind == "tokens"]
    require(len(ready) in (0, len(units)), "some sources are ready tokens, others text: prepare one after the other")
    sizes = np.cumsum([0] + [unit.size for unit in units])
    listing = "\n".join(f"{Path(unit.path).name} {unit.size}" for unit in units)
    plan = {key: value for key, value in asdict(config).items() if key not in ("workers", "strict", "overwrite")}
    plan |= {"format": 4, "python_version": sys.version.split()[0], "source": list(config.source), "files": len(units),
             "files_fingerprint": hashlib.sha256(listing.encode()).hexdigest()[:16], **options}  # fmt: skip
    try:
        progress = json.loads((partial / "progress.json").read_text(encoding="utf-8"))
        tokenizer = Tokenizer.from_json(json.loads((partial / "tokenizer.json").read_text(encoding="utf-8")))
        if progress["plan"] != plan:
            raise ValueError("another source or other options")
        print(f"going on with {partial}: {progress['place'][0]:,} of {len(units):,} files are done")
    except (OSError, ValueError, KeyError):
        shutil.rmtree(partial, ignore_errors=True)
        progress, tokenizer = beginning(plan), None

    job = SimpleNamespace(**asdict(config) | options, answers=data_root / f"{name}.claude.jsonl", cuts=())
    if len(units) == 1 and units[0].kind == "text":  # a single text is split by position
        total = min(sum(len(block.payload) for block in read(units[0], job)), config.max_bytes or math.inf)
        ends = options["val_fraction"] + options["test_fraction"], options["val_fraction"]
        job.cuts = [int(total * (1 - part)) for part in ends]
    if not tokenizer:
        texts = bpe_texts(map(Understanding(job, None), batches([] if ready else units, job, [0, 0, 0])), config)
        tokenizer = make_tokenizer(options["tokenizer"], texts)
        partial.mkdir(parents=True)
        write_json(partial / "tokenizer.json", tokenizer.to_json())
    if ready:
        import_tokens(ready, partial, tokenizer, progress)
        return finish(partial, final, tokenizer, progress)
    writer, place = Writer(config, partial, tokenizer, progress), progress["place"]
    workers = config.workers or (0 if 0 < sizes[-1] < SMALL_BYTES else os.cpu_count())
    results = ordered_map(Understanding, (job, tokenizer), batches(units, job, place), workers)
    with tqdm(total=int(sizes[-1]) or None, initial=int(sizes[place[0]]), unit="B", unit_scale=True,
              desc=f"encoding {final}") as bar, contextlib.closing(results):  # fmt: skip
        for place, used, rows in results:
            for row in rows:
                writer.add(row)
            if writer.due():
                writer.flush(place)
            bar.update(int(sizes[place[0]]) + used - bar.n)
            if writer.full():
                break
        writer.flush(place)
    for unit in units:
        if unit.source == "-":
            os.unlink(unit.path)
    return finish(partial, final, tokenizer, progress)


def import_tokens(ready: list[Path], folder: Path, tokenizer: Tokenizer, progress: dict) -> None:
    """Take over ready tokens: llm.c's shards by a link, nanoGPT's bare uint16 as shards of our own. A name with val or
    test in it decides the split."""
    bare = [path for path in ready if not has_magic(path)]
    require(bare in ([], ready), f"{bare[:1]} has no header, others have one: import them one after the other")
    told = f"no name of these {len(ready)} token files holds 'val': rename one, as data_val.bin, to steer by"
    require(any("val" in path.name for path in ready), told)
    for path in ready:
        split = next((split for split in ("val", "test") if split in path.name), "train")
        tokens = np.memmap(path, "<u2", "r") if bare else open_shard(path, "Fetch it again")
        if path.with_name("meta.pkl").exists():
            tokens = nanogpt_bytes(path, tokens, tokenizer)
        counts, shards = progress["splits"][split], len(list(folder.glob(f"{split}_*.bin")))
        for block in (tokens[i : i + 2**24] for i in range(0, len(tokens), 2**24)):
            told = f"{path} holds token {block.max()}, the tokenizer {tokenizer.name} has {tokenizer.vocab_size}"
            require(block.max() < tokenizer.vocab_size, f"{told}: name the one it was made with by --tokenizer")
            if bare:
                append_tokens(folder, split, counts["tokens"], block, progress["plan"]["shard_tokens"])
            counts["tokens"] += len(block)
            counts["bytes"] += int(tokenizer.token_bytes[block].sum())
            counts["documents"] += int((block == tokenizer.end_of_text).sum())
        if not bare:
            link_or_copy(path, folder / f"{split}_{shards:06d}.bin")


def finish(partial: Path, final: Path, tokenizer: Tokenizer, progress: dict) -> Path:
    """Write meta.json and the report, make all durable, and give the folder its final name."""
    splits, plan, kinds = progress["splits"], progress["plan"], ("notes", "dropped")
    rows = [row for kind in kinds for row in progress[kind].items()]
    notes = "; ".join(f"{row['documents']:,} {note} (as {row['examples'][0][1]})" for note, row in rows)
    if not splits["train"]["tokens"]:
        shutil.rmtree(partial)
        held_out = sum(splits[split]["documents"] for split in ("val", "test"))
        told = f"--source={' '.join(plan['source'])} holds no training text: of {plan['files']:,} files"
        remedy = "Give text in UTF-8, or lower --val_fraction and --test_fraction"
        raise UserError(f"{told} {held_out:,} are in val and test{'; ' + notes if notes else ''}. {remedy}")
    shards, opened = [], {split: [] for split in SPLITS}
    for split, path in ((split, path) for split in SPLITS for path in sorted(partial.glob(f"{split}_*.bin"))):
        opened[split].append(open_shard(path, "Run the same command again"))
        shards.append(dict(file=path.name, split=split, tokens=len(opened[split][-1]), sha256=sha256_of_file(path)))
    contents = [tokenizer.fingerprint] + [f"{row['file']} {row['sha256']}" for row in shards]
    write_json(partial / "meta.json", {
        "fingerprint": hashlib.sha256("\n".join(contents).encode()).hexdigest()[:16],
        "prepared_from": plan, "splits": splits, "shards": shards,
        **{kind: {name: {"documents": row["documents"], "examples": [where for _, where, _ in row["examples"]]}
                  for name, row in progress[kind].items()} for kind in kinds},
        "tokenizer": {"name": tokenizer.name, "vocab_size": tokenizer.vocab_size, "fingerprint": tokenizer.fingerprint},
    })  # fmt: skip
    report = partial, progress, plan | {"name": final.name}, tokenizer, opened
    warnings = write_report(*report) if (partial / "sample.jsonl").exists() else []  # of ready tokens there is no text
    for name in ("progress.json", *progress["appended"]):
        (partial / name).unlink(missing_ok=True)
    replace_folder(partial, final)
    for split, counts in splits.items():
        ratio = f", {counts['bytes'] / counts['tokens']:.2f} bytes per token" if counts["tokens"] else ""
        print(f"{split:5}  {counts['documents']:>8,} documents  {counts['tokens']:>13,} tokens{ratio}")
    for line in [f"notes: {notes}"] * bool(notes) + [f"warning: {warning}" for warning in warnings]:
        print(line)
    print(f"{final} is ready: vocabulary {tokenizer.vocab_size:,}, fingerprint of the data in its meta.json")
    return final


# ---------------------------------------------------------------------------------------------------------------------
# The command.


def main(argv: list[str]) -> None:
    """`python prepare_data.py …`; train.py calls this too, for a recipe whose data is not there yet."""
    prepare(read_options(PrepareConfig, argv, "prepare_data.py"))


if __name__ == "__main__":
    run_command(main)
