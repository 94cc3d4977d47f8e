"""The tokens that data are made of, exact to the byte. Training needs no more of a tokenizer."""

import base64
import hashlib
import json

import numpy as np

END_OF_TEXT = "<|endoftext|>"


class Vocabulary:
    """The tokens of a tokenizer: their ids, their bytes, and ids back to text.

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
    def from_json(cls, value: dict) -> "Vocabulary":
        tokens = [token and base64.b64decode(token) for token in value["tokens"]]
        return cls(value["name"], tokens, value["special"], value["pattern"])
