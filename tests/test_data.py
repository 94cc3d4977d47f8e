"""Preparation and reading: every byte is accounted for, nothing is seen twice, nothing half-made is left."""

import hashlib
import json
import os
import random
import subprocess
import sys
import unicodedata
from types import SimpleNamespace

import numpy as np
import pytest

import corpus.sources
import prepare_data
from corpus import worker
from nanoloop.data import Data, TrainBatches
from nanoloop.options import UserError
from nanoloop.tokenizer import Tokenizer, make_tokenizer
from prepare_data import PrepareConfig, prepare
from tests.conftest import ROOT, make_documents

UNICODE = [
    "",
    "plain",
    "naïve café",
    "日本語のテキスト",
    "🙂👩‍👩‍👧‍👦",
    "a\r\n\tb\x0b\x7f",
    "<|endoftext|>",
    "‮ right to left",
    "\U0010ffff",
]


def write_texts(folder, texts) -> str:
    folder.mkdir(exist_ok=True)
    for index, text in enumerate(texts):
        (folder / f"{index:03}.txt").write_bytes(text.encode("utf-8"))
    return str(folder)


def options(source, **more) -> PrepareConfig:
    return PrepareConfig(
        source=(source,),
        **(dict(name="d", tokenizer="byte", val_fraction=0.2, test_fraction=0.2) | more),
    )


# ---------------------------------------------------------------------------------------------------------------------
# Tokenizers


@pytest.fixture(scope="module")
def tokenizers() -> list[Tokenizer]:
    return [make_tokenizer("byte", []), make_tokenizer("bpe:300", make_documents(50))]


@pytest.mark.parametrize("text", UNICODE)
def test_any_text_survives_encoding(tokenizers, text):
    for tokenizer in tokenizers:
        tokens = tokenizer.encode(text)
        assert tokenizer.decode(tokens) == text
        assert tokenizer.token_bytes[tokens].sum() == len(text.encode("utf-8"))
        assert tokenizer.end_of_text not in tokens  # text that spells it is only text


def test_random_unicode_survives_encoding(tokenizers):
    rng = np.random.default_rng(0)
    for _ in range(50):
        points = rng.integers(0, 0x110000, size=40)
        text = "".join(
            chr(p) for p in points if not 0xD800 <= p < 0xE000
        )  # surrogates are not characters
        for tokenizer in tokenizers:
            assert tokenizer.decode(tokenizer.encode(text)) == text


LISTED = [
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


def hard_texts(count: int, seed: int = 0):
    """Random text where cutting is delicate: white space, apostrophes, digits, scripts, and any character there is."""
    rng, characters = random.Random(seed), map(chr, range(0x110000))
    known = [
        character for character in characters if unicodedata.category(character) not in ("Cn", "Cs")
    ]
    for _ in range(count):
        pool = rng.choice([known, *map(list, LISTED), list("".join(LISTED)), LISTED])
        text = "".join(rng.choices(pool, k=rng.randint(0, 80)))
        yield text * rng.choice([1, 1, 1, 1, 50])


@pytest.mark.parametrize("name", ["gpt4", "gpt2"])
def test_the_fast_encoder_gives_tiktokens_tokens(name):
    """On every character that this Python's Unicode tables know: on newer ones tiktoken's own versions differ."""
    pattern = {name: pattern for pattern, name in prepare_data.FAST_PATTERNS.items()}[name]
    trained = make_tokenizer(
        "bpe:1500", [*hard_texts(600, seed=1), (ROOT / "train.py").read_text()]
    )
    tokenizer = Tokenizer("either", trained.tokens, trained.special, pattern)
    for text in [*hard_texts(3000), *(path.read_text() for path in ROOT.glob("*.py"))]:
        wanted = tokenizer.encoding.encode_to_numpy(text, disallowed_special=())
        assert np.array_equal(tokenizer.encode(text), wanted), ascii(text)


def test_long_runs_without_a_break_are_encoded_in_time():
    """Merging in the square of a run's length would take hours."""
    tokenizer = make_tokenizer("bpe:300", ["aaaa bbbb"])
    for text in ("a" * 500_000, " " * 500_000, "1" * 500_000, "日" * 200_000):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_what_the_encoder_remembers_is_forgotten_now_and_then(monkeypatch, tokenizers):
    text = make_documents(1)[0]
    before, wanted = tokenizers[1].encoder, tokenizers[1].encode(text)
    monkeypatch.setattr(prepare_data, "ENCODER_CHARS", len(text))
    assert np.array_equal(tokenizers[1].encode(text), wanted) and tokenizers[1].encoder != before


def test_bytes_are_nanogpts_characters_on_ascii(tokenizers):
    assert tokenizers[0].encode("Hi\n").tolist() == [72, 105, 10]
    assert tokenizers[0].vocab_size == 257 and tokenizers[0].end_of_text == 256


def test_a_trained_tokenizer_has_the_size_asked_for_and_merges(tokenizers):
    assert tokenizers[1].vocab_size == 300 and tokenizers[1].end_of_text == 299
    text = make_documents(1, seed=5)[0]
    assert len(tokenizers[1].encode(text)) < len(text) / 1.9


def test_training_a_tokenizer_twice_gives_the_same_one(tokenizers):
    assert make_tokenizer("bpe:300", make_documents(50)).fingerprint == tokenizers[1].fingerprint


def test_a_tokenizer_survives_its_file(tokenizers):
    for tokenizer in tokenizers:
        again = Tokenizer.from_json(json.loads(json.dumps(tokenizer.to_json())))
        text = "".join(UNICODE)
        assert again.encode(text).tolist() == tokenizer.encode(text).tolist()
        assert again.fingerprint == tokenizer.fingerprint and again.tokens == tokenizer.tokens


def test_a_tiktoken_encoding_is_taken_over_whole(monkeypatch, tokenizers):
    """GPT-2's file has to be downloaded; a stand-in with a gap in its ids shows that ids and bytes are kept."""
    import tiktoken

    ranks = {bytes([i]): i for i in range(256)} | {b"ab": 256}
    stand_in = tiktoken.Encoding(
        "gpt2", pat_str=r"\S+|\s+", mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 260}
    )
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: stand_in)
    tokenizer = make_tokenizer("gpt2", [])
    assert (
        tokenizer.vocab_size == 261
        and tokenizer.end_of_text == 260
        and tokenizer.tokens[258] is None
    )
    for text in UNICODE + ["abab cab"]:
        assert tokenizer.encode(text).tolist() == stand_in.encode_ordinary(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_tiktoken_encoding_that_cannot_be_downloaded_says_what_to_do(monkeypatch):
    import tiktoken

    def offline(name):
        raise ConnectionError("no route")

    monkeypatch.setattr(tiktoken, "get_encoding", offline)
    with pytest.raises(UserError, match="bpe:4096.*TIKTOKEN_CACHE_DIR"):
        make_tokenizer("gpt2", [])


# ---------------------------------------------------------------------------------------------------------------------
# Preparation


def read_shard_by_hand(path) -> np.ndarray:
    """llm.c's format, read as its documentation says."""
    header = np.frombuffer(path.read_bytes()[:1024], dtype="<i4")
    assert header.tolist() == [20240520, 1, header[2]] + [0] * 253
    tokens = np.frombuffer(path.read_bytes()[1024:], dtype="<u2")
    assert len(tokens) == header[2]
    return tokens


def test_shards_are_llm_cs_and_documents_begin_with_end_of_text(tmp_path):
    source = write_texts(tmp_path / "s", ["first", "second", "third"])
    folder = prepare(options(source, val_fraction=0, test_fraction=0), tmp_path)
    tokens = read_shard_by_hand(folder / "train_000000.bin").tolist()
    expected = [t for text in ("first", "second", "third") for t in [256, *text.encode()]]
    assert tokens == expected


def test_a_large_vocabulary_takes_four_bytes_per_token(tmp_path):
    prepare_data.append_tokens(tmp_path, "train", 0, np.array([1, 70_000], dtype=np.uint32), 100)
    raw = (tmp_path / "train_000000.bin").read_bytes()
    assert np.frombuffer(raw[:12], "<i4").tolist() == [20240801, 7, 2]
    assert np.frombuffer(raw[1024:], "<u4").tolist() == [1, 70_000]
    assert prepare_data.open_shard(tmp_path / "train_000000.bin", "").tolist() == [1, 70_000]


def test_the_stream_is_the_same_however_it_is_cut_into_shards(tmp_path):
    source = write_texts(tmp_path / "s", make_documents(30))
    whole, cut = (
        Data(prepare(options(source, name=n, shard_tokens=size), tmp_path))
        for n, size in (("a", 10**6), ("b", 97))
    )
    assert len(cut.splits["train"].shards) > 10
    count = len(whole.splits["train"])
    assert np.array_equal(whole.splits["train"].read(0, count), cut.splits["train"].read(0, count))
    for start, length in [(0, 1), (96, 2), (97, 97), (90, 300), (count - 1, 1)]:
        assert np.array_equal(
            whole.splits["train"].read(start, length), cut.splits["train"].read(start, length)
        )


def test_splits_are_disjoint_whole_documents_and_their_bytes_add_up(tmp_path):
    texts = make_documents(60) + make_documents(10)  # ten texts come twice
    data = Data(prepare(options(write_texts(tmp_path / "s", texts)), tmp_path))
    seen = {}
    for split, stream in data.splits.items():
        tokens = stream.read(0, len(stream))
        bodies = data.tokenizer.decode_bytes(tokens).decode().split("<|endoftext|>")[1:]
        assert data.meta["splits"][split] == {
            "documents": len(bodies),
            "tokens": len(tokens),
            "bytes": sum(len(b.encode()) for b in bodies),
        }
        assert data.tokenizer.token_bytes[tokens].sum() == data.meta["splits"][split]["bytes"]
        seen[split] = set(bodies)
    assert sorted(b for bodies in seen.values() for b in bodies) == sorted(
        set(texts)
    )  # no text is in two splits


def test_the_split_of_a_document_does_not_depend_on_the_others(tmp_path):
    texts = make_documents(40)
    folders = [
        prepare(options(write_texts(tmp_path / n, part), name=n), tmp_path / "data")
        for n, part in (("all", texts), ("half", texts[::-2]))
    ]
    all_val, half_val = (
        set(
            d.tokenizer.decode(d.splits["val"].read(0, len(d.splits["val"]))).split("<|endoftext|>")
        )
        for d in map(Data, folders)
    )
    assert half_val == {text for text in all_val if text in texts[::-2] or not text}


def test_one_single_document_is_split_by_position(tmp_path):
    (tmp_path / "one.txt").write_text("".join(chr(97 + i % 26) for i in range(1000)))
    data = Data(
        prepare(options(str(tmp_path / "one.txt"), val_fraction=0.1, test_fraction=0.2), tmp_path)
    )
    text = (tmp_path / "one.txt").read_text()
    for split, part in {"train": text[:700], "test": text[700:900], "val": text[900:]}.items():
        stream = data.splits[split]
        assert stream.read(0, len(stream)).tolist() == [256, *part.encode()]


def test_tiny_shakespeare_is_split_as_nanogpt_does(tmp_path):
    """nanoGPT trains on text[: int(0.9 · n)]."""
    text = ROOT.parent / "shared" / "data" / "tinyshakespeare.txt"
    if not text.is_file():
        pytest.skip("the text is not here")
    config = PrepareConfig(
        source=(str(text),), name="s", tokenizer="byte", val_fraction=0.1, test_fraction=0.0
    )
    data = Data(prepare(config, tmp_path))
    assert len(data.splits["train"]) == 1 + 1_003_854 and len(data.splits["val"]) == 1 + 111_540
    assert len(data.splits["test"]) == 0


def test_preparing_twice_gives_the_same_bytes_and_fingerprint(tmp_path):
    source = write_texts(tmp_path / "s", make_documents(30))
    folders = [
        prepare(options(source, tokenizer="bpe:300"), tmp_path / place) for place in ("x", "y")
    ]
    for name in sorted(os.listdir(folders[0])):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name
    changed = write_texts(tmp_path / "s2", make_documents(29) + ["another text"])
    assert (
        Data(prepare(options(changed, tokenizer="bpe:300"), tmp_path)).fingerprint
        != Data(folders[0]).fingerprint
    )


@pytest.mark.parametrize(
    "more", [{}, {"workers": 2}, {"shuffle_buffer": 7}, {"duplicates": "near"}], ids=str
)
@pytest.mark.parametrize("writes_before_the_kill", [0, 1, 5])
def test_a_killed_preparation_goes_on_to_the_same_bytes(
    tmp_path, monkeypatch, capsys, writes_before_the_kill, more
):
    source = write_texts(tmp_path / "s", make_documents(60) + make_documents(5))
    (tmp_path / "s" / "long.txt").write_text(" ".join(make_documents(30, seed=1)))
    monkeypatch.setattr(worker, "BATCH_BYTES", 1000)
    for name, value in (("SMALL_BYTES", 10**9), ("COMMIT_SECONDS", 0)):
        monkeypatch.setattr(prepare_data, name, value)
    monkeypatch.setattr(corpus.sources, "PIECE", 1500)
    config = options(source, tokenizer="bpe:300", shard_tokens=200, **more)
    whole = prepare(config, tmp_path / "whole")

    write, calls = prepare_data.write_json, []

    def killed(path, value):
        calls.append(path.name)
        if calls.count("progress.json") > writes_before_the_kill:
            raise KeyboardInterrupt  # the shards are ahead of the noted progress
        write(path, value)

    with monkeypatch.context() as patched:
        patched.setattr(prepare_data, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(config, tmp_path / "data")
    assert not (tmp_path / "data" / "d").exists()  # nothing that looks complete
    resumed = prepare(config, tmp_path / "data")
    assert ("going on" in capsys.readouterr().out) == (writes_before_the_kill > 0)
    assert sorted(os.listdir(resumed)) == sorted(os.listdir(whole))
    for name in os.listdir(whole):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes(), name
    assert not (tmp_path / "data" / "d.partial").exists()


def test_a_preparation_with_other_options_does_not_go_on_with_the_old_one(tmp_path, monkeypatch):
    source = write_texts(tmp_path / "s", make_documents(30))
    with monkeypatch.context() as patched:
        patched.setattr(
            prepare_data, "finish", lambda *args: None
        )  # leaves the partial folder, whole
        prepare(options(source), tmp_path)
    data = Data(prepare(options(source, tokenizer="bpe:300"), tmp_path))
    assert data.tokenizer.vocab_size == 300 and int(data.splits["train"].read(0, 50).max()) < 300


def test_what_is_left_out_is_counted_and_named(tmp_path, capsys):
    source = write_texts(tmp_path / "s", make_documents(20))
    (tmp_path / "s" / "empty.txt").write_bytes(b"")
    (tmp_path / "s" / "picture.png").write_bytes(b"\x89PNG\0\0")
    (tmp_path / "s" / "latin.txt").write_bytes("café ".encode("latin-1") * 10)
    data = Data(prepare(options(source), tmp_path))
    notes = data.meta["notes"]
    assert {note: row["documents"] for note, row in notes.items()} == {
        "empty": 1,
        "binary": 1,
        "invalid UTF-8 replaced": 1,
    }
    assert notes["binary"]["examples"][0].endswith("picture.png")
    assert "picture.png" in capsys.readouterr().out
    assert sum(split["documents"] for split in data.meta["splits"].values()) == 21


def test_the_python_source_is_the_standard_library_without_tests():
    files = corpus.sources.python_files(SimpleNamespace(include_site_packages=False))
    names = {"/".join(path.parts[-2:]) for path in files}
    assert any(name.endswith("/argparse.py") for name in names) and "json/decoder.py" in names
    assert not any(
        {"test", "tests", "site-packages", "_vendor"} & set(path.parts) for path in files
    )
    more = corpus.sources.python_files(SimpleNamespace(include_site_packages=True))
    assert any(path.parts[-2:] == ("numpy", "__init__.py") for path in more)


def test_shakespeare_offline_names_the_command_that_works(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        corpus.sources, "SHAKESPEARE_URL", "http://127.0.0.1:9/input.txt"
    )  # nothing listens there
    result = command(prepare_data.main, "--source=shakespeare")
    assert result.code == 2 and "Traceback" not in result.err
    same = "--source=PATH/input.txt --name=shakespeare_char --tokenizer=byte --val_fraction=0.1 --test_fraction=0"
    assert same in result.err
    assert not (tmp_path / "data").exists()


def test_shakespeare_downloads_once_and_is_checked(tmp_path, monkeypatch):
    text = tmp_path / "input.txt"
    text.write_text("ROMEO: " * 100)
    monkeypatch.setattr(corpus.sources, "SHAKESPEARE_URL", text.as_uri())
    with pytest.raises(UserError, match="SHA-256"):
        prepare(PrepareConfig(source=("shakespeare",)), tmp_path / "data")
    monkeypatch.setattr(
        corpus.sources, "SHAKESPEARE_SHA256", hashlib.sha256(text.read_bytes()).hexdigest()
    )
    folder = prepare(PrepareConfig(source=("shakespeare",)), tmp_path / "data")
    data = Data(folder)
    assert folder.name == "shakespeare_char" and data.tokenizer.name == "byte"
    assert (
        len(data.splits["train"]) == 631
        and len(data.splits["val"]) == 71
        and len(data.splits["test"]) == 0
    )
    text.unlink()
    again = PrepareConfig(source=("shakespeare",), overwrite=True)
    assert (
        Data(prepare(again, tmp_path / "data")).fingerprint == data.fingerprint
    )  # from the copy it kept


# ---------------------------------------------------------------------------------------------------------------------
# Batches


@pytest.fixture(scope="module")
def data(data_dir) -> Data:
    return Data(data_dir)


def rows_of_step(data, step, batch_size, grad_accum, world_size, seed=0) -> set[bytes]:
    batches = TrainBatches(data, 32, seed, batch_size, grad_accum, world_size)
    parts = [batches(step, m, r)[0] for m in range(grad_accum) for r in range(world_size)]
    return {row.tobytes() for part in parts for row in part}


def test_targets_are_the_tokens_one_further_on(data):
    tokens, targets = TrainBatches(data, 32, 0, 4)(0)
    assert tokens.shape == targets.shape == (4, 32) and tokens.dtype == np.int64
    assert np.array_equal(tokens[:, 1:], targets[:, :-1])


@pytest.mark.parametrize("step", [0, 1, 23, 24, 1000])
def test_a_global_batch_is_the_same_set_however_it_is_split(data, step):
    whole = rows_of_step(data, step, 16, 1, 1)
    for split in [(8, 2, 1), (4, 4, 1), (8, 1, 2), (2, 2, 4), (1, 16, 1)]:
        assert rows_of_step(data, step, *split) == whole


def test_a_batch_is_a_pure_function_of_the_step(data):
    batches, fresh = TrainBatches(data, 32, 0, 8), TrainBatches(data, 32, 0, 8)
    later = batches(700)[0]  # asked for out of order
    assert np.array_equal(later, fresh(700)[0]) and np.array_equal(batches(0)[0], fresh(0)[0])
    assert not np.array_equal(
        TrainBatches(data, 32, 1, 8)(0)[0], fresh(0)[0]
    )  # another seed, another order


def test_an_epoch_shows_every_window_once_and_the_next_in_another_order(data):
    batches = TrainBatches(data, 32, 0, 1)
    count = batches.sources[data.folder.name].count
    epochs = [[batches(e * count + i)[0].tobytes() for i in range(count)] for e in (0, 1)]
    expected = [data.splits["train"].read(i * 32, 32).tobytes() for i in range(count)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(expected)
    assert epochs[0] != epochs[1]


def test_evaluation_asks_for_every_token_once_whatever_the_batch_size(data):
    stream = data.splits["val"]
    for batch_size in (1, 5, 64):
        found = []
        for tokens, targets in data.eval_batches("val", 32, batch_size):
            assert (
                tokens.shape == targets.shape == (batch_size, 32)
            )  # one shape: compiled models do not compile again
            found += targets[targets >= 0].tolist()
            inside = (
                targets[:, 1:] >= 0
            )  # where a position's target is scored, its input is the target before it
            assert np.array_equal(tokens[:, 1:][inside], targets[:, :-1][inside])
        assert found == stream.read(1, len(stream) - 1).tolist()


# ---------------------------------------------------------------------------------------------------------------------
# Damage


def damaged_copy(data_dir, tmp_path):
    import shutil

    return shutil.copytree(data_dir, tmp_path / "copy")


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "truncated": lambda f: (f / "train_000000.bin").write_bytes(
        (f / "train_000000.bin").read_bytes()[:-10]
    ),
    "checksum": lambda f: flip_a_byte(f / "val_000000.bin"),
    "is missing": lambda f: (f / "test_000000.bin").unlink(),
    "not a token shard": lambda f: (f / "train_000000.bin").write_bytes(b"something else" * 1000),
    "not a token shard.": lambda f: (f / "train_000000.bin").write_bytes(b""),
    "cannot be read": lambda f: (f / "meta.json").write_text("{"),
    "tokenizer.json": lambda f: (f / "tokenizer.json").write_text("[]"),
    "not the tokenizer": lambda f: (f / "tokenizer.json").write_text(
        json.dumps(make_tokenizer("bpe:300", ["x"]).to_json())
    ),
    "no meta.json": lambda f: (f / "meta.json").unlink(),
}


@pytest.mark.parametrize("told", DAMAGE)
def test_damaged_data_is_refused_with_the_files_name(data_dir, tmp_path, told):
    folder = damaged_copy(data_dir, tmp_path)
    DAMAGE[told](folder)
    with pytest.raises(UserError, match=told) as error:
        Data(folder)
    assert "copy" in str(error.value) and "prepare_data.py" in str(error.value)


def test_a_token_beyond_the_vocabulary_is_refused(data_dir, tmp_path):
    """Checksums made anew, so that nothing but the token itself is wrong."""
    folder = damaged_copy(data_dir, tmp_path)
    path = folder / "val_000000.bin"
    content = bytearray(path.read_bytes())
    content[-2:] = (300).to_bytes(2, "little")
    path.write_bytes(content)
    meta = json.loads((folder / "meta.json").read_text())
    for row in meta["shards"]:
        if row["file"] == path.name:
            row["sha256"] = hashlib.sha256(content).hexdigest()
    (folder / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(UserError, match="val_000000.bin holds token 300"):
        Data(folder)


def test_a_data_set_shorter_than_a_window_is_refused(data):
    with pytest.raises(UserError, match="block_size"):
        TrainBatches(data, 10**6, 0, 1)


def test_the_command_works_as_a_program(tmp_path):
    (tmp_path / "text.txt").write_text("hello world. " * 200)
    run = [
        sys.executable,
        str(ROOT / "prepare_data.py"),
        "--source=text.txt",
        "--tokenizer=bpe:300",
    ]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "data/text is ready" in done.stdout, done.stderr
    again = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True)
    assert (
        again.returncode == 2
        and "--overwrite=True" in again.stderr
        and "Traceback" not in again.stderr
    )


def test_a_tokenizer_can_be_shared_between_data_sets(tmp_path, data_dir):
    """Fine-tuning needs the tokens that the weights know."""
    (tmp_path / "text.txt").write_text("other words entirely")
    for name, source in (("folder", data_dir), ("file", data_dir / "tokenizer.json")):
        shared = Data(
            prepare(
                PrepareConfig(
                    source=(str(tmp_path / "text.txt"),), name=name, tokenizer=str(source)
                ),
                tmp_path,
            )
        )
        assert shared.tokenizer.fingerprint == Data(data_dir).tokenizer.fingerprint
    with pytest.raises(UserError, match="text.txt cannot be read"):
        make_tokenizer(str(tmp_path / "text.txt"), [])
