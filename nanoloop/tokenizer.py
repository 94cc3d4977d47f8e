"""Tokenizers: text to token ids and back, exact to the byte."""

import base64
import json
import tempfile
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from nanoloop.options import reading
from nanoloop.vocabulary import END_OF_TEXT, Vocabulary

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


class Tokenizer(Vocabulary):
    """A vocabulary that also encodes text."""

    encoded_chars = 0  # since the encoder was built

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
        try:
            ids = self.encoder(text)
        except ValueError:
            # The regular expressions of tiktoken give up on a million spaces in a row.
            middle = len(text) // 2
            return np.append(self.encode(text[:middle]), self.encode(text[middle:]))
        self.encoded_chars += len(text)
        if self.encoded_chars > ENCODER_CHARS:
            del self.encoder
            self.encoded_chars = 0
        return ids


def load_tokenizer(name: str) -> Tokenizer:
    """Return an existing tokenizer. Raises UserError.

    name: "byte", a tiktoken encoding, or the path of a prepared folder or of its tokenizer.json.
    tiktoken downloads the files of an encoding once.
    """
    if name == "byte":
        tokens = [bytes([value]) for value in range(256)]
        return Tokenizer(name, [*tokens, END_OF_TEXT.encode()], {END_OF_TEXT: 256}, None)
    problem = f"--tokenizer={name} cannot be read"
    hint = (
        "type byte, bpe:4096, a prepared folder, or an encoding of tiktoken such as gpt2. Without "
        "a network, set TIKTOKEN_CACHE_DIR to a folder that holds the files of the encoding"
    )
    path = Path(name)
    if path.is_dir():
        path = path / "tokenizer.json"
    if path.is_file():
        with reading(problem, hint):
            return Tokenizer.from_json(json.loads(path.read_bytes()))
    import tiktoken

    with reading(problem, hint):
        encoding = tiktoken.get_encoding(name)
    special = {
        token: encoding.encode_single_token(token) for token in sorted(encoding.special_tokens_set)
    }
    tokens = [None] * encoding.n_vocab
    for token in [*encoding.token_byte_values(), *map(str.encode, special)]:
        tokens[encoding.encode_single_token(token)] = token
    return Tokenizer(name, tokens, special, encoding._pat_str)
