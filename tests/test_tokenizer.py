"""Tokenizers: every byte of any text comes back, and fast encoding gives tiktoken's tokens."""

import json
import random
import unicodedata

import numpy as np
import pytest
import tiktoken

from corpus.bpe import train_bpe
from nanoloop import tokenizer as tokenizer_module
from nanoloop.options import UserError
from nanoloop.tokenizer import GPT2_PATTERN, GPT4_PATTERN, Tokenizer, load_tokenizer
from tests.conftest import ROOT, make_documents

TEXTS = [
    "",
    "plain",
    "naïve café",
    "日本語のテキスト",
    "🙂👩‍👩‍👧‍👦",
    "a\r\n\tb\x0b\x7f",
    "<|endoftext|>",
    "\u202e right to left",
    "\U0010ffff",
]
# Where cutting is delicate: white space, apostrophes, digits, scripts, signs.
DELICATE = [
    " \t\n\r\x0b\x0c\x85\xa0\u1680\u2003\u2028\u3000\ufeff",
    "'sdmtllveréSLLRED’ſK",
    "0123456789²⅓Ⅷ٣४〇",
    "<|endoftext|>",
    '_-=+*/\\"#@$%^&~`.,;:!?()[]{}',
    "e\u0301 naïve ÄÖ ß ǅ",
    "한국어日本語ไทยعربىעברית",
    "👩‍👩‍👧🏳️‍🌈😀",
    "\x00\x01\x7f\ud7ff",
    "def f(self):\n    return  1\n\n\n",
]


@pytest.fixture(scope="module")
def byte() -> Tokenizer:
    return load_tokenizer("byte")


@pytest.fixture(scope="module")
def pairs() -> Tokenizer:
    return train_bpe("bpe:300", make_documents(50))


@pytest.fixture(params=["byte", "pairs"])
def tokenizer(request) -> Tokenizer:
    return request.getfixturevalue(request.param)


# --------------------------------------------------------------------------------------------------
# Every byte comes back


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_survives_encoding(tokenizer, text):
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert tokenizer.token_bytes[tokens].sum() == len(text.encode())
    assert tokenizer.end_of_text not in tokens  # text that spells it is only text


def test_random_unicode_survives_encoding(tokenizer):
    rng = np.random.default_rng(0)
    for _ in range(50):
        points = rng.integers(0, 0x110000, size=40)
        # Surrogates are no characters.
        text = "".join(chr(point) for point in points if not 0xD800 <= point < 0xE000)
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_tokenizer_survives_its_file(tokenizer):
    again = Tokenizer.from_json(json.loads(json.dumps(tokenizer.to_json())))
    text = "".join(TEXTS)
    assert again.encode(text).tolist() == tokenizer.encode(text).tolist()
    assert again.fingerprint == tokenizer.fingerprint
    assert again.tokens == tokenizer.tokens


def test_an_id_beyond_the_vocabulary_is_a_replacement_character(byte):
    """A padded model can draw one."""
    assert byte.decode([72, 257, 10**6]) == "H\ufffd\ufffd"


def test_bytes_are_nanogpts_characters_on_ascii(byte):
    assert byte.encode("Hi\n").tolist() == [72, 105, 10]
    assert (byte.vocab_size, byte.end_of_text) == (257, 256)


def test_a_run_that_a_regular_expression_gives_up_on_is_encoded(byte):
    """tiktoken's stack is full before a million spaces; o200k_base has these last two parts."""
    pattern = r"\p{L}+|\s*[\r\n]+|\s+(?!\S)|\s+"
    tokenizer = Tokenizer("spaces", byte.tokens, byte.special, pattern)
    text = "a" + " " * 1_000_000 + "b"
    with pytest.raises(ValueError, match="backtracking"):
        tokenizer.encoder(text)
    assert bytes(tokenizer.encode(text).tolist()) == text.encode()


# --------------------------------------------------------------------------------------------------
# Training


def test_a_trained_tokenizer_has_the_size_asked_for_and_merges(pairs):
    assert (pairs.vocab_size, pairs.end_of_text) == (300, 299)
    text = make_documents(1, seed=5)[0]
    assert len(pairs.encode(text)) < len(text) / 1.9


def test_training_twice_gives_the_same_tokenizer(pairs):
    assert train_bpe("bpe:300", make_documents(50)).fingerprint == pairs.fingerprint


def test_text_with_few_pairs_gives_a_smaller_vocabulary(capsys):
    tokenizer = train_bpe("bpe:300", ["abab"])
    assert tokenizer.vocab_size < 300
    assert f"{tokenizer.vocab_size} tokens instead of 300" in capsys.readouterr().out


@pytest.mark.parametrize("size", ["256", "-1", "x", "", "3e3", "²", str(2**24)])
def test_an_impossible_size_is_refused(size):
    with pytest.raises(UserError, match="N from 257 .* to 16 million, got bpe:"):
        train_bpe(f"bpe:{size}", ["text"])


# --------------------------------------------------------------------------------------------------
# Fast encoding


def delicate_texts(count: int, seed: int = 0):
    rng = random.Random(seed)
    characters = map(chr, range(0x110000))
    # Newer characters are in only some of the libraries' Unicode tables.
    unknown = ("Cn", "Cs")  # not assigned, surrogate
    known = [
        character for character in characters if unicodedata.category(character) not in unknown
    ]
    pools = [known, *map(list, DELICATE), list("".join(DELICATE)), DELICATE]
    for _ in range(count):
        text = "".join(rng.choices(rng.choice(pools), k=rng.randint(0, 80)))
        yield text * rng.choice([1, 1, 1, 1, 50])


@pytest.mark.parametrize("pattern", [GPT4_PATTERN, GPT2_PATTERN], ids=["gpt4", "gpt2"])
def test_the_fast_encoder_gives_tiktokens_tokens(pattern):
    texts = [*delicate_texts(300, seed=1), (ROOT / "train.py").read_text()]
    trained = train_bpe("bpe:1000", texts)
    tokenizer = Tokenizer("either", trained.tokens, trained.special, pattern)
    for text in [*delicate_texts(500), *(path.read_text() for path in ROOT.glob("*.py"))]:
        expected = tokenizer.encoding.encode_to_numpy(text, disallowed_special=())
        assert np.array_equal(tokenizer.encode(text), expected), ascii(text)


@pytest.mark.parametrize("character", ["a", " ", "1", "日"])
def test_a_long_run_without_a_break_is_encoded(character):
    """Merging in the square of its length would take hours."""
    tokenizer = train_bpe("bpe:300", ["aaaa bbbb"])
    text = character * 200_000
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_encoder_forgets_after_much_text(monkeypatch):
    tokenizer = train_bpe("bpe:300", make_documents(5))
    text = make_documents(1)[0]
    expected = tokenizer.encode(text)
    before = tokenizer.encoder
    monkeypatch.setattr(tokenizer_module, "ENCODER_CHARS", len(text))
    for _ in range(3):
        assert np.array_equal(tokenizer.encode(text), expected)
    assert tokenizer.encoder != before


# --------------------------------------------------------------------------------------------------
# Existing tokenizers


def test_a_tiktoken_encoding_keeps_its_ids_and_bytes(monkeypatch):
    """GPT-2's file has to be downloaded; a stand-in has a gap in its ids."""
    ranks = {bytes([value]): value for value in range(256)} | {b"ab": 256}
    encoding = tiktoken.Encoding(
        "gpt2", pat_str=r"\S+|\s+", mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 260}
    )
    monkeypatch.setitem(tiktoken.registry.ENCODINGS, "gpt2", encoding)
    tokenizer = load_tokenizer("gpt2")
    assert (tokenizer.vocab_size, tokenizer.end_of_text) == (261, 260)
    assert tokenizer.tokens[258] is None
    for text in TEXTS + ["abab cab"]:
        assert tokenizer.encode(text).tolist() == encoding.encode_ordinary(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_an_encoding_that_cannot_be_downloaded_names_the_ways_without_a_network(monkeypatch):
    def download(name):
        raise ConnectionError("no route")

    monkeypatch.setattr(tiktoken, "get_encoding", download)
    with pytest.raises(UserError, match="ConnectionError: no route.*bpe:4096.*TIKTOKEN_CACHE_DIR"):
        load_tokenizer("gpt2")


def test_a_prepared_folder_gives_its_tokenizer(data_dir, tmp_path):
    """Fine-tuning needs the tokens that the weights know."""
    expected = load_tokenizer("byte").fingerprint
    assert load_tokenizer(str(data_dir)).fingerprint == expected
    assert load_tokenizer(str(data_dir / "tokenizer.json")).fingerprint == expected
    (tmp_path / "text.txt").write_text("words")
    with pytest.raises(UserError, match="--tokenizer=.*text.txt cannot be read .*prepared folder"):
        load_tokenizer(str(tmp_path / "text.txt"))
