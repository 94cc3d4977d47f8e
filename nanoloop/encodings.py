"""Existing tokenizers by name: bytes, tiktoken's encodings, a prepared folder's."""

import json
from pathlib import Path

from nanoloop.options import reading
from nanoloop.tokenizer import END_OF_TEXT, Tokenizer


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
