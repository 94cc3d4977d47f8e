"""Tokenizers: text to token ids and back, exact to the byte."""

import base64
import hashlib
import json
import tempfile
from functools import cached_property, partial

import numpy as np

END_OF_TEXT = "<|endoftext|>"
# Regular expressions that cut text into pieces; byte pairs are merged within a piece. They are
# GPT-4's and GPT-2's, as tiktoken writes them.
GPT4_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
GIGATOKEN_NAMES = {GPT4_PATTERN: "gpt4", GPT2_PATTERN: "gpt2"}
# gigatoken remembers every piece it has seen. After this many characters it starts anew.
ENCODER_CHARS = 50_000_000


class Tokenizer:
    """Text to token ids and back.

    name: "byte", "bpe:N" or the name of a tiktoken encoding.
    tokens: the bytes of each token, by id; None where an encoding leaves an id unused.
    special: name to id of the tokens that stand for no text; it contains END_OF_TEXT.
    pattern: the regular expression that cuts text into pieces; None: every byte is a token.
    """

    def __init__(self, name, tokens, special, pattern):
        self.name = name
        self.tokens = tokens
        self.special = special
        self.pattern = pattern
        self.vocab_size = len(tokens)
        self.end_of_text = range(self.vocab_size)[special[END_OF_TEXT]]  # checks that it exists
        self.dtype = np.dtype("<u2" if self.vocab_size <= 65536 else "<u4")  # of ids in shards
        self.fingerprint = hashlib.sha256(json.dumps(self.to_json()).encode()).hexdigest()[:16]
        # (vocab_size,) int64: the bytes of text of each token; special tokens have none.
        self.token_bytes = np.array([len(token or b"") for token in tokens])
        self.token_bytes[list(special.values())] = 0
        self.encoded_chars = 0

    @cached_property
    def ranks(self) -> dict[bytes, int]:
        """Token to id, without special tokens."""
        special_ids = self.special.values()
        return {
            token: rank
            for rank, token in enumerate(self.tokens)
            if token and rank not in special_ids
        }

    @cached_property
    def encoding(self):
        """The same tokenizer as a tiktoken.Encoding: slower, but it knows every pattern."""
        import tiktoken

        return tiktoken.Encoding(
            self.name,
            pat_str=self.pattern,
            mergeable_ranks=self.ranks,
            special_tokens=self.special,
        )

    @cached_property
    def encoder(self):
        """A function from text to token ids, uint32.

        gigatoken gives tiktoken's tokens ten times as fast. They differ on letters that only one
        of them has in its Unicode tables.
        """
        if self.pattern not in GIGATOKEN_NAMES:
            return partial(self.encoding.encode_to_numpy, disallowed_special=())
        import gigatoken

        lines = [base64.b64encode(token) + b" %d\n" % rank for token, rank in self.ranks.items()]
        with tempfile.NamedTemporaryFile() as file:
            file.writelines(lines)
            file.flush()
            pattern_name = GIGATOKEN_NAMES[self.pattern]
            return gigatoken.Tokenizer.from_tiktoken(file.name, pattern_name).encode

    def encode(self, text: str) -> np.ndarray:
        """Return the token ids of `text`, uint32. The names of special tokens are plain text."""
        if self.pattern is None or not text:
            return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.uint32)
        ids = self.encoder(text)
        self.encoded_chars += len(text)
        if self.encoded_chars > ENCODER_CHARS:
            del self.encoder
            self.encoded_chars = 0
        return ids

    def decode_bytes(self, ids) -> bytes:
        """Return the bytes of the ids; an id beyond the vocabulary becomes U+FFFD."""
        unknown = "\ufffd".encode()
        return b"".join((self.tokens[i] or b"") if i < self.vocab_size else unknown for i in ids)

    def decode(self, ids) -> str:
        """Return the text of the ids; bytes that are no valid UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode(errors="replace")

    def to_json(self) -> dict:
        """Return plain values; the tokens as base64."""
        tokens = [token and base64.b64encode(token).decode() for token in self.tokens]
        return {
            "name": self.name,
            "pattern": self.pattern,
            "special": self.special,
            "tokens": tokens,
        }

    @classmethod
    def from_json(cls, value: dict) -> "Tokenizer":
        tokens = [token and base64.b64decode(token) for token in value["tokens"]]
        return cls(value["name"], tokens, value["special"], value["pattern"])
