"""Where text comes from: every format gives the same documents, every fault is named, nothing is held whole."""

import gzip
import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

import corpus.sources
import prepare_data
from corpus import worker
from corpus.sources import find_units
from nanoloop.data import Data
from nanoloop.options import UserError
from prepare_data import PrepareConfig, prepare
from tests.conftest import ROOT, make_documents

zstandard = pytest.importorskip("zstandard")
TEXTS = make_documents(40) + ["naïve café\n", "日本語\n\n", "a<|endoftext|>b"]


def prepared(tmp_path, source, name="d", **more) -> Data:
    sources = (str(source),) if not isinstance(source, tuple) else source
    more = dict(tokenizer="byte", val_fraction=0.2, test_fraction=0.2) | more
    return Data(prepare(PrepareConfig(source=sources, name=name, **more), tmp_path / "data"))


def texts_of(data: Data) -> list[str]:
    bodies = [
        data.tokenizer.decode(stream.read(0, len(stream)))
        for stream in data.splits.values()
        if len(stream)
    ]
    return [text for body in bodies for text in body.split("<|endoftext|>")[1:]]


def notes_of(data: Data) -> dict[str, int]:
    return {note: row["documents"] for note, row in data.meta["notes"].items()}


def json_lines(texts, key="text") -> bytes:
    return b"".join(
        json.dumps({"id": i, key: text}).encode() + b"\n" for i, text in enumerate(texts)
    )


# ---------------------------------------------------------------------------------------------------------------------
# Formats


def write_parquet(path):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(
        pyarrow.table({"n": list(range(len(TEXTS))), "text": TEXTS}), path, row_group_size=7
    )


def write_saved(path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(str(path))


FORMATS = {
    "a.jsonl": lambda path: path.write_bytes(json_lines(TEXTS)),
    "a.jsonl.gz": lambda path: path.write_bytes(gzip.compress(json_lines(TEXTS))),
    "two.jsonl.gz": lambda path: path.write_bytes(
        b"".join(gzip.compress(json_lines(t)) for t in (TEXTS[:9], TEXTS[9:]))
    ),
    "a.jsonl.zst": lambda path: path.write_bytes(zstandard.compress(json_lines(TEXTS))),
    "a.parquet": write_parquet,
    "saved": write_saved,
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Data:
    folder = tmp_path_factory.mktemp("plain")
    (folder / "a.json").write_bytes(json_lines(TEXTS))
    return prepared(folder, folder / "a.json", tokenizer="bpe:300", text_key="text")


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_tokens(tmp_path, plain, name):
    FORMATS[name](tmp_path / name)
    assert prepared(tmp_path, tmp_path / name, tokenizer="bpe:300").fingerprint == plain.fingerprint


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress], ids=["gz", "zst"])
def test_a_large_compressed_file_is_read_whole(tmp_path, pack):
    """Larger than a step of reading, and than what a decompressor gathers before it gives anything."""
    texts = ["".join(make_documents(20, seed=i)) + str(i) for i in range(500)]
    (tmp_path / "a.jsonl").write_bytes(pack(json_lines(texts)))
    data = prepared(tmp_path, tmp_path / "a.jsonl", val_fraction=0, test_fraction=0)
    assert texts_of(data) == texts and notes_of(data) == {}


def test_compressed_text_is_text(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "a.txt.gz").write_bytes(gzip.compress(b"first text"))
    (tmp_path / "s" / "b.txt").write_bytes(
        zstandard.compress(b"second text")
    )  # its first bytes tell, not its name
    assert sorted(
        texts_of(prepared(tmp_path, tmp_path / "s", test_fraction=0, val_fraction=0))
    ) == [
        "first text",
        "second text",
    ]


def test_another_field_can_hold_the_text_and_a_wrong_one_is_named(tmp_path):
    import pyarrow
    from pyarrow import parquet

    (tmp_path / "a.jsonl").write_bytes(json_lines(["x", "y"], key="body"))
    assert set(
        texts_of(prepared(tmp_path, tmp_path / "a.jsonl", text_key="body", val_fraction=0))
    ) == {"x", "y"}
    parquet.write_table(pyarrow.table({"body": ["x"], "n": [1]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="no column 'text'.*--text_key.*body, n"):
        prepared(tmp_path, tmp_path / "a.parquet", name="p")


def test_a_folder_with_tables_is_read_without_their_descriptions(tmp_path):
    (tmp_path / "s").mkdir()
    write_parquet(tmp_path / "s" / "a.parquet")
    (tmp_path / "s" / "README.md").write_text("about these tables")
    assert "about these tables" not in texts_of(prepared(tmp_path, tmp_path / "s"))


def test_folders_globs_and_files_give_files_in_a_fixed_order(tmp_path):
    (tmp_path / "s" / "deep").mkdir(parents=True)
    for name in ("c.txt", "a.txt", "b.txt", ".hidden", "deep/d.txt"):
        (tmp_path / "s" / name).write_text("x")

    def names(*sources):
        units = find_units(
            SimpleNamespace(source=tuple(map(str, sources)), text_key=None), tmp_path
        )
        return [(os.path.basename(unit.path), os.path.basename(unit.source)) for unit in units]

    assert names(tmp_path / "s") == [
        ("a.txt", "s"),
        ("b.txt", "s"),
        ("c.txt", "s"),
        ("d.txt", "deep"),
    ]
    assert [name for name, _ in names(tmp_path / "s" / "*b.txt", tmp_path / "s" / "a.txt")] == [
        "b.txt",
        "a.txt",
    ]
    assert [name for name, _ in names(tmp_path / "s" / "b.txt", tmp_path / "s")] == [
        "b.txt",
        "a.txt",
        "c.txt",
        "d.txt",
    ]


@pytest.mark.parametrize("lines", [False, True])
def test_standard_input_is_a_text_or_with_text_key_json_lines(tmp_path, monkeypatch, lines):
    content = json_lines(TEXTS) if lines else "".join(TEXTS).encode()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "d.0123.stdin").touch()  # what a run that was killed has left
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    data = prepared(tmp_path, "-", text_key="text" if lines else None)
    assert len(texts_of(data)) == (
        len(TEXTS) + 1 if lines else 4
    )  # one text spells the separator; else three parts
    assert sum(split["bytes"] for split in data.meta["splits"].values()) == len(
        "".join(TEXTS).encode()
    )
    assert not list((tmp_path / "data").glob("*.stdin"))


def test_synthetic_text_keeps_its_own_splits(tmp_path):
    data = prepared(tmp_path, "synthetic:addition", max_documents=200, val_fraction=0.5)
    assert sum(split["documents"] for split in data.meta["splits"].values()) == 200
    lines = {
        split: set(
            "".join(data.tokenizer.decode(s.read(0, len(s))).split("<|endoftext|>")).splitlines()
        )
        for split, s in data.splits.items()
    }
    assert lines["val"] and not lines["val"] & lines["train"] and not lines["test"] & lines["train"]


def test_a_hub_without_a_network_names_the_ways_without_one(tmp_path, monkeypatch, command):
    datasets = pytest.importorskip("datasets")

    def offline(*args, **kwargs):
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    monkeypatch.chdir(tmp_path)
    result = command(prepare_data.main, "--source=hf:roneneldan/TinyStories")
    assert result.code == 2 and "Traceback" not in result.err
    for word in (
        "hf:roneneldan/TinyStories",
        "ConnectionError",
        "--local-dir=FOLDER",
        "--source=FOLDER",
        "--source=python",
    ):
        assert word in result.err
    assert not list((tmp_path).glob("data/*"))


def test_a_hub_data_set_is_streamed_and_runs_no_code_of_its_own(tmp_path, monkeypatch, plain):
    datasets = pytest.importorskip("datasets")
    (tmp_path / "a.jsonl").write_bytes(json_lines(TEXTS))
    load, asked = datasets.load_dataset, {}

    def local(name, config, **options):
        asked.update(options, name=name, config=config)
        return load("json", data_files=str(tmp_path / "a.jsonl"), **options)

    monkeypatch.setattr(datasets, "load_dataset", local)
    data = prepared(
        tmp_path, "hf:some/name", hf_config="small", hf_split="train", tokenizer="bpe:300"
    )
    assert data.fingerprint == plain.fingerprint
    assert asked == {"name": "some/name", "config": "small", "split": "train", "streaming": True}


# ---------------------------------------------------------------------------------------------------------------------
# Ready tokens


def shard(path, tokens):
    header = np.zeros(256, dtype="<i4")
    header[:3] = 20240520, 1, len(tokens)
    path.write_bytes(header.tobytes() + np.array(tokens, dtype="<u2").tobytes())


def test_llm_cs_shards_are_linked_as_they_are(tmp_path, data_dir):
    (tmp_path / "s").mkdir()
    for name, tokens in {
        "x_train_000001": [256, 65],
        "x_train_000002": [66, 256, 67],
        "x_val_000000": [256, 68],
    }.items():
        shard(tmp_path / "s" / f"{name}.bin", tokens)
    data = prepared(tmp_path, tmp_path / "s", tokenizer=str(data_dir))
    assert data.splits["train"].read(0, 5).tolist() == [256, 65, 66, 256, 67]
    assert data.splits["val"].read(0, 2).tolist() == [256, 68]
    assert data.meta["splits"]["train"] == {"documents": 2, "tokens": 5, "bytes": 3}
    assert os.path.samefile(tmp_path / "s" / "x_val_000000.bin", data.folder / "val_000000.bin")


def test_shards_whose_names_tell_no_validation_split_are_refused(tmp_path, data_dir):
    shard(tmp_path / "b.bin", range(60, 100))
    shard(tmp_path / "a.bin", range(60))
    with pytest.raises(UserError, match="2 token files holds 'val': rename one"):
        prepared(tmp_path, tmp_path / "*.bin", tokenizer=str(data_dir))


def test_ready_tokens_and_text_are_not_taken_together(tmp_path, data_dir):
    shard(tmp_path / "a_val.bin", [256, 30])
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(UserError, match="one after the other"):
        prepared(
            tmp_path,
            (str(tmp_path / "a_val.bin"), str(tmp_path / "a.txt")),
            tokenizer=str(data_dir),
        )


def test_shards_of_another_tokenizer_are_refused(tmp_path, data_dir):
    shard(tmp_path / "a_val.bin", [256, 300])
    for tokenizer in (str(data_dir), "bpe:300"):  # there is no text to train one on
        with pytest.raises(UserError, match="token 300.*has 257.*--tokenizer"):
            prepared(tmp_path, tmp_path / "a_val.bin", tokenizer=tokenizer)
    shard(tmp_path / "c_val.bin", [256, 30])
    (tmp_path / "c_val.bin").write_bytes((tmp_path / "c_val.bin").read_bytes()[:-2])
    with pytest.raises(UserError, match="c_val.bin is truncated"):
        prepared(tmp_path, tmp_path / "c_val.bin", tokenizer=str(data_dir))


def nanogpt_folder(folder, text: str):
    """As data/shakespeare_char/prepare.py makes it: characters by number, the last tenth for validation."""
    folder.mkdir()
    (folder / "input.txt").write_text(text)
    characters = sorted(set(text))
    ids = np.array(
        [characters.index(c) for c in text]
        if len(text) < 10**5
        else np.searchsorted(characters, list(text)),
        dtype=np.uint16,
    )
    cut = int(len(text) * 0.9)
    ids[:cut].tofile(folder / "train.bin")
    ids[cut:].tofile(folder / "val.bin")
    (folder / "meta.pkl").write_bytes(
        b"cos\nsystem\n(S'touch pickled'\ntR."
    )  # one that would run a command
    return folder


def test_nanogpts_characters_and_the_text_give_the_same_tokens(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    known = ROOT.parent / "shared" / "data" / "tinyshakespeare.txt"
    text = known.read_text() if known.is_file() else "".join(make_documents(50))
    folder = nanogpt_folder(tmp_path / "nano", text)
    imported = prepared(tmp_path, folder, name="imported", tokenizer=None)
    direct = prepared(
        tmp_path, folder / "input.txt", name="direct", val_fraction=0.1, test_fraction=0
    )
    assert imported.fingerprint == direct.fingerprint and imported.tokenizer.name == "byte"
    assert not (tmp_path / "pickled").exists()
    (folder / "input.txt").unlink()
    with pytest.raises(UserError, match="meta.pkl.*input.txt"):
        prepared(tmp_path, folder, name="again", tokenizer=None)


def test_nanogpts_gpt2_tokens_are_taken_over(tmp_path, data_dir):
    (tmp_path / "owt").mkdir()
    np.array([65, 66, 256], dtype=np.uint16).tofile(tmp_path / "owt" / "train.bin")
    np.array([67, 256], dtype=np.uint16).tofile(tmp_path / "owt" / "val.bin")
    data = prepared(
        tmp_path, tmp_path / "owt", tokenizer=str(data_dir)
    )  # the default would be gpt2
    assert data.splits["train"].read(0, 3).tolist() == [65, 66, 256]
    assert data.splits["val"].read(0, 2).tolist() == [67, 256]


# ---------------------------------------------------------------------------------------------------------------------
# Faults


def test_broken_json_lines_are_counted_with_their_line(tmp_path):
    lines = [
        b'{"text": "good"}',
        b"",
        b"{broken",
        b'{"text": 3}',
        b'["text"]',
        b'{"text": ""}',
        b'{"text": "\xff"}',
        b'{"text": "\\ud83d\\ude00 \\ud83d"}',
        b'{"other": "x"}',
        b"[" * 100_000,
        b'{"text": "last"}',
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\r\n".join(lines))
    data = prepared(tmp_path, tmp_path / "a.jsonl", val_fraction=0, test_fraction=0)
    assert texts_of(data) == ["good", "�", "😀 ���", "last"]
    assert notes_of(data) == {
        "broken JSON": 2,
        "no text": 3,
        "empty": 1,
        "invalid UTF-8 replaced": 2,
    }
    assert data.meta["notes"]["broken JSON"]["examples"] == [
        f"{tmp_path}/a.jsonl:3",
        f"{tmp_path}/a.jsonl:10",
    ]


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress], ids=["gz", "zst"])
@pytest.mark.parametrize("fault", ["truncated", "damaged"])
def test_a_corrupt_compressed_file_gives_what_came_before_the_fault(tmp_path, pack, fault):
    rng = np.random.default_rng(0)
    texts = [rng.bytes(500).hex() for _ in range(400)]
    packed = bytearray(b"".join(pack(json_lines(texts[i : i + 100])) for i in range(0, 400, 100)))
    middle = len(packed) * 5 // 8
    packed = (
        packed[:middle]
        + bytes(100) * (fault == "damaged")
        + packed[middle + 100 :] * (fault == "damaged")
    )
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "a.jsonl").write_bytes(packed)
    (tmp_path / "s" / "b.txt").write_text("the next file")
    data = prepared(tmp_path, tmp_path / "s", val_fraction=0, test_fraction=0)
    found = texts_of(data)
    assert found[:200] == texts[:200] and found[-1] == "the next file" and len(found) < 300
    assert notes_of(data)["corrupt file"] == 1


def test_a_file_that_cannot_be_read_is_counted_and_the_next_one_read(tmp_path):
    import pyarrow

    (tmp_path / "s").mkdir()
    for i in range(8):
        (tmp_path / "s" / f"{i}.txt").write_text(f"text {i}")
    (tmp_path / "s" / "3.txt").unlink()
    (tmp_path / "s" / "3.txt").symlink_to("nowhere")
    data = prepared(tmp_path, tmp_path / "s", val_fraction=0, test_fraction=0)
    assert len(texts_of(data)) == 7 and notes_of(data) == {"unreadable": 1}
    assert data.meta["notes"]["unreadable"]["examples"] == [f"{tmp_path}/s/3.txt"]
    assert pyarrow
    write_parquet(tmp_path / "t.parquet")
    (tmp_path / "t.parquet").write_bytes((tmp_path / "t.parquet").read_bytes()[:-20])
    (tmp_path / "u.parquet").write_bytes(b"")
    write_parquet(tmp_path / "v.parquet")
    data = prepared(tmp_path, tmp_path / "*.parquet", name="tables")
    assert sum(notes_of(data).values()) == 2 and len(texts_of(data)) == len(TEXTS) + 1


FAULTS = {
    "a.jsonl": (b'{"text": "x"}\n{"text"', "a.jsonl:2: broken JSON"),
    "a.txt": (b"caf\xe9 " * 9, "a.txt: invalid UTF-8"),
    "a.txt.gz": (gzip.compress(b"text " * 99)[:-9], "a.txt.gz: corrupt"),
    "a.png": (b"\x89PNG\0", "a.png: binary"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_strict_stops_at_the_first_fault_and_names_it(tmp_path, name):
    content, told = FAULTS[name]
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / name).write_bytes(content)
    (tmp_path / "s" / "empty.txt").touch()  # nothing is no fault
    (tmp_path / "s" / "fine.txt").write_text("fine")
    with pytest.raises(UserError, match=told):
        prepared(tmp_path, tmp_path / "s", strict=True, val_fraction=0, test_fraction=0)
    assert "fine" in texts_of(prepared(tmp_path, tmp_path / "s", val_fraction=0, test_fraction=0))


# ---------------------------------------------------------------------------------------------------------------------
# Size


@pytest.mark.parametrize("ending", ["\n", " ", "。", ""])
def test_a_long_text_becomes_several_documents_and_loses_nothing(tmp_path, monkeypatch, ending):
    """Cut behind a line where there are lines; elsewhere no character is cut in two."""
    monkeypatch.setattr(corpus.sources, "PIECE", 997)
    (tmp_path / "s").mkdir()
    text = "".join(f"Word{i} naïve 日本 {i * 7919}{ending}" for i in range(300))
    (tmp_path / "s" / "a.txt").write_text(text)
    (tmp_path / "s" / "b.txt").write_text("another")
    data = prepared(tmp_path, tmp_path / "s", val_fraction=0, test_fraction=0)
    *parts, last = texts_of(data)
    assert "".join(parts) == text and last == "another" and notes_of(data) == {}
    assert len(parts) > 8 and all(len(part.encode()) <= 1000 for part in parts)
    assert ending != "\n" or all(part.endswith("\n") for part in parts)


def test_a_single_text_is_cut_between_characters(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus.sources, "PIECE", 100)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(("日本語🙂" * 99).encode()))
    data = prepared(tmp_path, tmp_path / "a.txt.gz", val_fraction=0.1, test_fraction=0.1)
    assert notes_of(data) == {} and sorted("".join(texts_of(data))) == sorted("日本語🙂" * 99)
    total = 99 * 13
    assert abs(data.meta["splits"]["val"]["bytes"] - total / 10) < 4


@pytest.mark.parametrize("end", [b"\n", b""])
def test_a_line_too_long_to_hold_is_left_out_and_named(tmp_path, monkeypatch, end):
    monkeypatch.setattr(corpus.sources, "LONGEST", 1_500_000)
    texts = ["first", "x" * 5_000_000, "a" * 1_400_000, "y" * 2_600_000, "last", "z" * 4_000_000]
    (tmp_path / "a.jsonl").write_bytes(json_lines(texts).removesuffix(b"\n") + end)
    data = prepared(tmp_path, tmp_path / "a.jsonl", val_fraction=0, test_fraction=0)
    assert texts_of(data) == ["first", "a" * 1_400_000, "last"]
    (row,) = data.meta["notes"].values()
    assert row == {"documents": 3, "examples": [f"{tmp_path}/a.jsonl:{line}" for line in (2, 4, 6)]}


def test_limits_end_the_reading(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(json_lines(TEXTS))
    few = prepared(tmp_path, tmp_path / "a.jsonl", max_documents=7, val_fraction=0, test_fraction=0)
    assert texts_of(few) == TEXTS[:7]
    small = prepared(
        tmp_path, tmp_path / "a.jsonl", name="b", max_bytes=1000, val_fraction=0, test_fraction=0
    )
    sizes = np.cumsum([len(text) for text in TEXTS])
    assert small.meta["splits"]["train"]["documents"] == 1 + int(np.searchsorted(sizes, 1000))


def test_a_shuffle_moves_documents_within_its_buffer_and_repeats_with_its_seed(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(worker, "BATCH_BYTES", 1)  # it is filled by whole batches
    (tmp_path / "s").mkdir()
    for i in range(100):
        (tmp_path / "s" / f"{i:03}.txt").write_text(str(i))
    none = dict(val_fraction=0, test_fraction=0, shuffle_buffer=25)
    datas = [
        prepared(tmp_path, tmp_path / "s", name=f"{i}", seed=seed, **none)
        for i, seed in enumerate((0, 0, 1))
    ]
    found = [int(text) for text in texts_of(datas[0])]
    windows = [found[i : i + 25] for i in range(0, 100, 25)]
    assert [sorted(window) for window in windows] == [
        list(range(i, i + 25)) for i in range(0, 100, 25)
    ]
    assert all(window != sorted(window) for window in windows)
    assert datas[0].fingerprint == datas[1].fingerprint != datas[2].fingerprint


# ---------------------------------------------------------------------------------------------------------------------
# Processes


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """10 MB of JSON lines, and what one process makes of it."""
    folder = tmp_path_factory.mktemp("large")
    texts = [" ".join(make_documents(20, seed=i)) for i in range(2000)]
    (folder / "a.jsonl").write_bytes(json_lines(texts))
    tokenizer = prepared(
        folder, folder / "a.jsonl", name="tokenizer", tokenizer="bpe:300", max_documents=50
    ).folder
    options = dict(
        source=(str(folder / "a.jsonl"),), name="d", tokenizer=str(tokenizer), duplicates="near"
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(prepare_data, "SMALL_BYTES", 10**9)
        whole = prepare(PrepareConfig(**options), folder / "one")
    return options, whole


def same_folder(first, second) -> None:
    assert sorted(os.listdir(first)) == sorted(os.listdir(second))
    for name in os.listdir(first):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_the_result_does_not_depend_on_the_number_of_workers(tmp_path, large):
    options, whole = large
    same_folder(prepare(PrepareConfig(**options, workers=3), tmp_path), whole)


def test_a_worker_that_dies_is_told_and_the_work_goes_on_afterwards(tmp_path, large, monkeypatch):
    options, whole = large
    flush = prepare_data.Writer.flush
    monkeypatch.setattr(prepare_data, "COMMIT_SECONDS", 0)

    def kill_a_worker(writer, place):
        flush(writer, place)
        for child in multiprocessing.active_children():
            child.kill()

    with monkeypatch.context() as patched:
        patched.setattr(prepare_data.Writer, "flush", kill_a_worker)
        with pytest.raises(UserError, match="worker process ended.*same command again"):
            prepare(PrepareConfig(**options, workers=2), tmp_path)
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()), "Ctrl-C is heard again"
    same_folder(prepare(PrepareConfig(**options, workers=2), tmp_path), whole)


def test_killed_at_random_moments_it_ends_with_the_same_bytes_and_leaves_no_process(
    tmp_path, large
):
    options, whole = large
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import prepare_data as p; p.COMMIT_SECONDS = 0.05; "
        f"p.prepare(p.PrepareConfig(**{options!r}, workers=2), p.Path({str(tmp_path)!r}))"
    )
    rng, kills = np.random.default_rng(0), 0
    for _ in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        with_time = 0.3 + 0.6 * rng.random()
        try:
            process.wait(timeout=with_time)
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
    if not (tmp_path / "d").exists():
        assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
    same_folder(tmp_path / "d", whole)
    assert kills


def test_a_full_disk_keeps_what_is_done(tmp_path, large, monkeypatch, command):
    options, whole = large
    append, calls = prepare_data.append_tokens, []

    def full(*args):
        calls.append(args)
        if len(calls) > 5:
            raise OSError(28, "No space left on device")
        append(*args)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(prepare_data, "COMMIT_SECONDS", 0)
    flags = [
        f"--source={options['source'][0]}",
        "--name=d",
        f"--tokenizer={options['tokenizer']}",
        "--duplicates=near",
    ]
    with monkeypatch.context() as patched:
        patched.setattr(prepare_data, "append_tokens", full)
        result = command(prepare_data.main, *flags)
    assert (
        result.code == 2 and "make room on the disk" in result.err and "Traceback" not in result.err
    )
    result = command(prepare_data.main, *flags)
    assert result.code == 0 and "going on with" in result.out
    same_folder(tmp_path / "data" / "d", whole)


def test_ctrl_c_ends_with_a_word_and_no_process_left(tmp_path, large):
    options, _ = large
    flags = [
        f"--source={options['source'][0]}",
        f"--tokenizer={options['tokenizer']}",
        "--workers=2",
        "--name=d",
    ]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "prepare_data.py"), *flags],
        cwd=tmp_path,
        text=True,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not (tmp_path / "data" / "d.partial" / "tokenizer.json").exists():
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "interrupted" in err and "Traceback" not in err
    with pytest.raises(ProcessLookupError):  # within five seconds
        for _ in range(50):
            os.killpg(process.pid, 0)
            time.sleep(0.1)
