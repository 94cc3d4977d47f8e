"""Text to token ids and back."""

import base64
import hashlib
import json
import tempfile
from functools import cached_property
from itertools import chain, islice
from pathlib import Path

import numpy as np

from nanoloop.options import reading as explained, require

END_OF_TEXT = "<|endoftext|>"


# How text is cut into pieces, within which byte pairs are merged: contractions, words, digits, punctuation, line ends,
# white space. These are GPT-4's way and GPT-2's, as tiktoken writes them, and what gigatoken calls them.
BPE_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)


GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"


FAST_PATTERNS = {BPE_PATTERN: "gpt4", GPT2_PATTERN: "gpt2"}


ENCODER_CHARS = (
    50_000_000  # gigatoken remembers every piece it has seen: after so much text it starts anew
)


class Tokenizer:
    """Text to token ids and back.

    name: "byte", "bpe:N" or the name of a tiktoken encoding.
    tokens: the bytes of each token, by id; None where an encoding leaves an id unused.
    special: name to id of the tokens that stand for no text, END_OF_TEXT among them.
    pattern: the regular expression that cuts text into pieces; None means every byte is a token.
    """

    def __init__(
        self, name: str, tokens: list[bytes | None], special: dict[str, int], pattern: str | None
    ):
        self.name, self.tokens, self.special, self.pattern = name, tokens, special, pattern
        self.vocab_size, self.encoded = len(tokens), 0
        self.dtype = np.dtype(
            "<u2" if self.vocab_size <= 65536 else "<u4"
        )  # of its tokens in shards
        self.end_of_text = range(self.vocab_size)[
            special[END_OF_TEXT]
        ]  # an IndexError where it is none of the tokens
        self.fingerprint = hashlib.sha256(json.dumps(self.to_json()).encode()).hexdigest()[:16]
        # (vocab_size,) int64: the bytes of text that each token stands for; special tokens stand for none.
        self.token_bytes = np.array(
            [0 if t is None or i in special.values() else len(t) for i, t in enumerate(tokens)]
        )

    @cached_property
    def ranks(self) -> dict[bytes, int]:
        return {
            t: i
            for i, t in enumerate(self.tokens)
            if t is not None and i not in self.special.values()
        }

    @cached_property  # built at the first use: decoding alone needs no tiktoken
    def encoding(self):
        """The same tokenizer in tiktoken: whatever the pattern, and slower."""
        import tiktoken

        how = {
            "pat_str": self.pattern,
            "mergeable_ranks": self.ranks,
            "special_tokens": self.special,
        }
        return tiktoken.Encoding(self.name, **how)

    @cached_property
    def encoder(self):
        """A function from a text to its token ids, uint32. gigatoken gives tiktoken's tokens ten times as fast; where
        they differ, a letter is newer than the Unicode tables of one of them."""
        if self.pattern not in FAST_PATTERNS:
            return lambda text: self.encoding.encode_to_numpy(text, disallowed_special=())
        import gigatoken

        with tempfile.NamedTemporaryFile() as file:
            file.write(
                b"".join(
                    base64.b64encode(token) + b" %d\n" % rank for token, rank in self.ranks.items()
                )
            )
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
        return b"".join(
            (self.tokens[i] or b"") if i < self.vocab_size else b"\xef\xbf\xbd" for i in ids
        )

    def decode(self, ids) -> str:
        """Text of the ids; bytes that are not valid UTF-8 (a cut character, say) become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def to_json(self) -> dict:
        tokens = [None if t is None else base64.b64encode(t).decode("ascii") for t in self.tokens]
        return {
            "name": self.name,
            "pattern": self.pattern,
            "special": self.special,
            "tokens": tokens,
        }

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
        with explained(
            f"--tokenizer={name}: {path} cannot be read",
            "name a prepared folder, or its tokenizer.json",
        ):
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
    require(
        valid,
        f"--tokenizer={name}: N must be a whole number from 257 (256 bytes and end-of-text) to 16 million",
    )
    texts = iter(texts)
    first, size, trainer = (
        list(islice(texts, 1)),
        int(name[4:]),
        rustbpe.Tokenizer(),
    )  # a source's mistakes are told first
    print(f"training the tokenizer {name} on the training documents")
    trainer.train_from_iterator(chain(first, texts), size - 1, pattern=BPE_PATTERN)
    tokens = [
        bytes(token) for token, _ in sorted(trainer.get_mergeable_ranks(), key=lambda pair: pair[1])
    ]
    if len(tokens) < size - 1:
        print(
            f"the text has no more pairs to merge: the vocabulary is {len(tokens) + 1}, not {size}"
        )
    return Tokenizer(name, tokens + [END_OF_TEXT.encode()], {END_OF_TEXT: len(tokens)}, BPE_PATTERN)
