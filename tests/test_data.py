"""What training reads: shards in llm.c's format, pure batches, and damage that is refused."""

import hashlib
import json
import os
import shutil

import numpy as np
import pytest

from corpus.bpe import train_bpe
from corpus.writer import append_tokens
from nanoloop.data import Data, Split, TrainBatches, open_data, open_shard
from nanoloop.files import sha256_of_file
from nanoloop.options import UserError

BLOCK_SIZE = 32


@pytest.fixture(scope="module")
def data(data_dir) -> Data:
    return Data(data_dir)


# --------------------------------------------------------------------------------------------------
# Shards


def test_a_shard_is_llm_cs(tmp_path):
    """256 little-endian int32 (magic number, version, count, zeros), then the tokens."""
    append_tokens(tmp_path, "train", 0, np.array([5, 6, 65_535], dtype="<u2"), 100)
    raw = (tmp_path / "train_000000.bin").read_bytes()
    assert np.frombuffer(raw[:1024], "<i4").tolist() == [20240520, 1, 3] + [0] * 253
    assert np.frombuffer(raw[1024:], "<u2").tolist() == [5, 6, 65_535]
    assert open_shard(tmp_path / "train_000000.bin", "").tolist() == [5, 6, 65_535]


def test_a_large_vocabulary_takes_four_bytes_per_token(tmp_path):
    append_tokens(tmp_path, "train", 0, np.array([1, 70_000], dtype="<u4"), 100)
    raw = (tmp_path / "train_000000.bin").read_bytes()
    assert np.frombuffer(raw[:12], "<i4").tolist() == [20240801, 7, 2]
    assert np.frombuffer(raw[1024:], "<u4").tolist() == [1, 70_000]
    assert open_shard(tmp_path / "train_000000.bin", "").tolist() == [1, 70_000]


def test_writing_the_same_tokens_again_changes_nothing(tmp_path):
    """As after a kill: what was written is ahead of what was noted."""
    tokens = np.arange(250, dtype="<u2")
    for start, end in [(0, 90), (90, 170), (90, 250), (200, 250)]:
        append_tokens(tmp_path, "val", start, tokens[start:end], shard_tokens=100)
    shards = [open_shard(path, "") for path in sorted(tmp_path.iterdir())]
    assert [len(shard) for shard in shards] == [100, 100, 50]
    assert np.concatenate(shards).tolist() == tokens.tolist()


@pytest.mark.parametrize("sizes", [[300], [97, 97, 97, 9], [1, 0, 298, 1]], ids=str)
def test_a_stream_reads_the_same_across_shards(sizes):
    tokens = np.arange(300, dtype="<u2")
    shards = np.split(tokens, np.cumsum(sizes)[:-1])
    stream = Split(shards)
    assert len(stream) == 300
    for start, count in [(0, 1), (96, 2), (97, 97), (90, 200), (299, 1), (0, 300)]:
        assert stream.read(start, count).tolist() == tokens[start : start + count].tolist()
    assert stream.read(290, 50).tolist() == tokens[290:].tolist()


# --------------------------------------------------------------------------------------------------
# Batches


def rows_of_step(data, step, batch_size, grad_accum, world_size) -> set[bytes]:
    batches = TrainBatches(data, BLOCK_SIZE, 0, batch_size, grad_accum, world_size)
    rows = set()
    for micro_step in range(grad_accum):
        for rank in range(world_size):
            tokens, _ = batches(step, micro_step, rank)
            rows |= {row.tobytes() for row in tokens}
    return rows


def test_targets_are_the_tokens_one_position_later(data):
    tokens, targets = TrainBatches(data, BLOCK_SIZE, 0, 4)(0)
    assert tokens.shape == targets.shape == (4, BLOCK_SIZE)
    assert tokens.dtype == targets.dtype == np.int64
    assert np.array_equal(tokens[:, 1:], targets[:, :-1])


@pytest.mark.parametrize("step", [0, 1, 23, 24, 1000])
def test_a_global_batch_is_the_same_set_however_it_is_split(data, step):
    expected = rows_of_step(data, step, 16, 1, 1)
    for split in [(8, 2, 1), (4, 4, 1), (8, 1, 2), (2, 2, 4), (1, 16, 1)]:
        assert rows_of_step(data, step, *split) == expected


def test_a_batch_is_a_pure_function_of_the_step(data):
    batches = TrainBatches(data, BLOCK_SIZE, 0, 8)
    fresh = TrainBatches(data, BLOCK_SIZE, 0, 8)
    late, _ = batches(700)
    early, _ = batches(0)
    assert np.array_equal(early, fresh(0)[0])
    assert np.array_equal(late, fresh(700)[0])
    other_seed = TrainBatches(data, BLOCK_SIZE, 1, 8)
    assert not np.array_equal(early, other_seed(0)[0])


def test_an_epoch_shows_every_window_once_and_the_next_one_in_another_order(data):
    batches = TrainBatches(data, BLOCK_SIZE, 0, batch_size=1)
    count = batches.sources[data.folder.name].count
    shown = [batches(step)[0].tobytes() for step in range(2 * count)]
    stream = data.splits["train"]
    windows = [stream.read(i * BLOCK_SIZE, BLOCK_SIZE).tobytes() for i in range(count)]
    first, second = shown[:count], shown[count:]
    assert sorted(first) == sorted(second) == sorted(windows)
    assert first != second


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_evaluation_scores_every_token_once_whatever_the_batch_size(data, batch_size):
    stream = data.splits["val"]
    scored = []
    for tokens, targets in data.eval_batches("val", BLOCK_SIZE, batch_size):
        # One shape: compiled models do not compile again.
        assert tokens.shape == targets.shape == (batch_size, BLOCK_SIZE)
        scored += targets[targets >= 0].tolist()
        # Where a position is scored, its input is the target before it.
        is_scored = targets[:, 1:] >= 0
        assert np.array_equal(tokens[:, 1:][is_scored], targets[:, :-1][is_scored])
    assert scored == stream.read(1, len(stream) - 1).tolist()


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_all_ranks_evaluate_as_many_batches_and_together_all_of_them(data, world_size):
    parts = []
    for rank in range(world_size):
        parts.append(list(data.eval_batches("val", BLOCK_SIZE, 4, rank, world_size)))
    assert len({len(part) for part in parts}) == 1
    in_turn = [batch for round in zip(*parts) for batch in round]
    for (_, targets), (_, expected) in zip(in_turn, data.eval_batches("val", BLOCK_SIZE, 4)):
        assert np.array_equal(targets, expected)


def test_a_train_split_shorter_than_a_window_is_refused(data):
    with pytest.raises(UserError, match="more than block_size = 1000000 tokens.*--block_size"):
        TrainBatches(data, 10**6, 0, 1)


# --------------------------------------------------------------------------------------------------
# Damage


def cut(path):
    path.write_bytes(path.read_bytes()[:-10])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def write_other_tokenizer(path):
    path.write_text(json.dumps(train_bpe("bpe:300", ["x"]).to_json()))


# Part of the message: file, damage.
DAMAGE = {
    "train_000000.bin is truncated or changed": ("train_000000.bin", cut),
    "val_000000.bin was changed: its checksum": ("val_000000.bin", flip_a_bit),
    "test_000000.bin is missing": ("test_000000.bin", lambda path: path.unlink()),
    "train_000000.bin is not a token shard": (
        "train_000000.bin",
        lambda path: path.write_bytes(b"something else" * 1000),
    ),
    "val_000000.bin is not a token shard": ("val_000000.bin", lambda path: path.write_bytes(b"")),
    "meta.json or tokenizer.json in .* cannot be read": (
        "meta.json",
        lambda path: path.write_text("{"),
    ),
    "meta.json or tokenizer.json in '.*copy' cannot be read": (
        "tokenizer.json",
        lambda path: path.write_text("[]"),
    ),
    "is not the tokenizer in meta.json": ("tokenizer.json", write_other_tokenizer),
    "meta.json does not exist": ("meta.json", lambda path: path.unlink()),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_damaged_data_is_refused_with_the_file_and_the_command(data_dir, tmp_path, message):
    folder = shutil.copytree(data_dir, tmp_path / "copy")
    file, damage = DAMAGE[message]
    damage(folder / file)
    with pytest.raises(UserError, match=f"{message}.*prepare_data.py .*--name=copy"):
        Data(folder)


def test_a_token_beyond_the_vocabulary_is_refused(data_dir, tmp_path):
    """Nothing but the token is wrong: the checksum fits."""
    folder = shutil.copytree(data_dir, tmp_path / "copy")
    path = folder / "val_000000.bin"
    content = path.read_bytes()[:-2] + (300).to_bytes(2, "little")
    path.write_bytes(content)
    meta = json.loads((folder / "meta.json").read_text())
    for row in meta["shards"]:
        if row["file"] == path.name:
            row["sha256"] = hashlib.sha256(content).hexdigest()
    (folder / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(UserError, match="val_000000.bin holds token 300, the vocabulary has 257"):
        Data(folder)


def test_only_shards_that_changed_since_their_check_are_read_again(data_dir, tmp_path, monkeypatch):
    folder = shutil.copytree(data_dir, tmp_path / "copy")
    checked = []

    def checksum(path) -> str:
        checked.append(path.stem[:-7])
        return sha256_of_file(path)

    monkeypatch.setattr("nanoloop.data.sha256_of_file", checksum)

    def checked_on_opening(**options) -> list[str]:
        checked.clear()
        Data(folder, **options)
        return sorted(checked)

    everything = ["test", "train", "val"]
    assert checked_on_opening() == everything
    assert checked_on_opening() == []
    assert checked_on_opening(verify=True) == everything
    os.utime(folder / "val_000000.bin", ns=(1, 1))
    assert checked_on_opening() == ["val"]
    for damaged in ("", "[]", "7", '{"val_000000.bin": 1}'):
        (folder / ".checked.json").write_text(damaged)
        assert checked_on_opening() == everything

    flip_a_bit(folder / "val_000000.bin")
    os.utime(folder / "val_000000.bin", ns=(1, 1))  # as an error of the disk would
    with pytest.raises(UserError, match="val_000000.bin was changed"):
        Data(folder, verify=True)


def test_a_missing_folder_is_named_with_the_command_that_makes_it(tmp_path):
    with pytest.raises(UserError, match="meta.json does not exist.*--source=PATH --name=nothing"):
        open_data(str(tmp_path / "nothing"))
