"""Mixtures and aligned documents: what training draws, in which shares, and where rows begin."""

import numpy as np
import pytest

import train
from nanoloop import checkpoint
from nanoloop.data import Data, Rows, TrainBatches, open_data
from nanoloop.options import UserError
from prepare_data import PrepareConfig, prepare
from tests.conftest import make_documents
from tests.runs import StopAfter, assert_identical, final_weights


def digits(text: str) -> str:
    return "".join(str(ord(character) % 10) for character in text)


# Documents, and what they consist of.
SOURCES = {"lower": (60, str.lower), "upper": (25, str.upper), "digits": (40, digits)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """Prepare three folders of bytes that share no character but the space and the full stop."""
    root = tmp_path_factory.mktemp("mixture")
    folders = {}
    for seed, (name, (count, convert)) in enumerate(SOURCES.items()):
        (root / name).mkdir()
        for index, text in enumerate(make_documents(count, seed)):
            (root / name / f"{index:03}.txt").write_text(convert(text))
        source = (str(root / name),)
        options = PrepareConfig(
            source=source, tokenizer="byte", val_fraction=0.15, test_fraction=0.1
        )
        folders[name] = str(prepare(options, root / "data"))
    return folders


def open_mixture(folders: dict, **shares: float):
    return open_data(",".join(f"{folders[name]}:{share}" for name, share in shares.items()))


def kinds(tokens: np.ndarray) -> list[str]:
    """Return which folder each row of tokens comes from, by its characters."""
    is_lower = ((tokens >= ord("a")) & (tokens <= ord("z"))).any(axis=1)
    is_upper = ((tokens >= ord("A")) & (tokens <= ord("Z"))).any(axis=1)
    return np.select([is_lower, is_upper], ["lower", "upper"], "digits").tolist()


# --------------------------------------------------------------------------------------------------
# Shares


def test_folders_without_shares_have_equal_ones(folders):
    shares = dict.fromkeys(folders, 1)
    data = open_data(",".join(folders.values()))
    assert data.fingerprint == open_mixture(folders, **shares).fingerprint
    assert {share for share, _ in data.sources.values()} == {1 / 3}


@pytest.mark.parametrize("shares", [(0.65, 0.35), (0.5, 0.3, 0.2), (1, 1, 1), (0.98, 0.015, 0.005)])
def test_at_every_moment_each_source_has_had_its_share(folders, shares):
    data = open_mixture(folders, **dict(zip(folders, shares)))
    batches = TrainBatches(data, 16, seed=1, batch_size=1)
    counts = dict.fromkeys(data.sources, 0)
    for n in range(3000):
        name, k = batches.draw(n)
        assert k == counts[name]  # a source's sequences in turn: none twice, none left out
        counts[name] += 1
        for source, (share, _) in data.sources.items():
            assert abs(counts[source] - share * (n + 1)) < len(shares) / 2 + 0.01


def test_a_batch_holds_each_source_in_its_share(folders):
    data = open_mixture(folders, lower=0.65, upper=0.35)
    batches = TrainBatches(data, 32, seed=1, batch_size=20)
    for step in range(10):
        drawn = kinds(batches(step)[0])
        assert (drawn.count("lower"), drawn.count("upper")) == (13, 7)


def test_a_global_batch_of_a_mixture_is_the_same_however_it_is_split(folders):
    data = open_mixture(folders, lower=2, upper=1, digits=1)
    single = TrainBatches(data, 16, seed=3, batch_size=12)
    for batch_size, grad_accum, world_size in ((3, 4, 1), (3, 1, 4), (2, 3, 2), (1, 6, 2)):
        split = TrainBatches(data, 16, 3, batch_size, grad_accum, world_size)
        for step in (0, 5):
            parts = []
            for micro_step in range(grad_accum):
                parts += [split(step, micro_step, rank)[0] for rank in range(world_size)]
            assert np.array_equal(np.concatenate(parts), single(step)[0])


def test_each_epoch_of_a_source_shows_all_of_its_windows_once(folders):
    data = open_mixture(folders, lower=3, upper=1)
    batches = TrainBatches(data, 32, seed=1, batch_size=4)
    windows = []
    for step in range(400):
        tokens, _ = batches(step)
        windows += [row.tobytes() for row, kind in zip(tokens, kinds(tokens)) if kind == "upper"]
    count = batches.sources["upper"].count
    first = windows[:count]
    second = windows[count : 2 * count]
    assert len(second) == count
    assert sorted(first) == sorted(second)
    assert first != second


def test_one_folder_is_a_mixture_of_one(folders):
    alone = TrainBatches(open_data(folders["lower"]), 16, 1, 8)
    same = TrainBatches(open_data(folders["lower"] + ":1"), 16, 1, 8)
    for step in range(5):
        assert np.array_equal(alone(step)[0], same(step)[0])


def test_other_shares_are_other_data(folders):
    """So a run cannot resume with them unnoticed."""
    shares = [(1, 1), (2, 2), (2, 1)]
    a, b, c = (open_mixture(folders, lower=x, upper=y).fingerprint for x, y in shares)
    assert a == b != c


BAD = {
    "{lower}:0.5,{upper}": "FOLDER:SHARE",
    "{lower}:0,{upper}:1": "FOLDER:SHARE",
    "{lower}:-1,{upper}:1": "FOLDER:SHARE",
    "{lower}:nan,{upper}:1": "FOLDER:SHARE",
    "{lower}:inf,{upper}:1": "FOLDER:SHARE",
    "{lower}:x,{upper}:1": "FOLDER:SHARE",
    "{lower}:1,nowhere:1": "nowhere/meta.json does not exist",
    "{lower}:1,{lower}:1": "same name",
}


@pytest.mark.parametrize("spec", BAD)
def test_a_mixture_that_makes_no_sense_is_refused(folders, spec):
    with pytest.raises(UserError, match=BAD[spec]):
        open_data(spec.format(**folders))


def test_folders_with_different_tokenizers_are_refused(folders, tmp_path):
    (tmp_path / "a.txt").write_text(" ".join(make_documents(30)))
    options = PrepareConfig(source=(str(tmp_path / "a.txt"),), tokenizer="bpe:300")
    other = prepare(options, tmp_path)
    with pytest.raises(UserError, match="must have one tokenizer: .* --tokenizer=.*lower"):
        open_data(f"{folders['lower']}:1,{other}:1")


# --------------------------------------------------------------------------------------------------
# Runs on a mixture


def test_a_run_reports_each_source_and_their_mean(folders, config, tmp_path):
    spec = f"{folders['lower']}:0.75,{folders['upper']}:0.25"
    summary = train.train(config(data=spec, max_steps=6))
    mean = 0.75 * summary["val_bpb_lower"] + 0.25 * summary["val_bpb_upper"]
    assert summary["val_bpb"] == pytest.approx(mean)
    assert summary["val_loss_lower"] > 0
    run = str(tmp_path / "run")
    alone = train.train(config(data=folders["upper"], init_from=run, eval_only=True, out=None))
    assert alone["val_bpb"] == pytest.approx(summary["val_bpb_upper"])
    assert "val_bpb_upper" not in alone


def test_a_run_on_a_mixture_resumes_exactly(folders, config, tmp_path):
    options = {"data": f"{folders['lower']}:0.6,{folders['upper']}:0.4", "max_steps": 8}
    uninterrupted = str(tmp_path / "uninterrupted")
    train.train(config(**options, out=uninterrupted))
    train.train(config(**options), StopAfter(3))
    train.train(config(**options, resume=True))
    assert_identical(final_weights(tmp_path / "uninterrupted"), final_weights(tmp_path / "run"))


def test_a_source_that_is_repeated_too_often_is_named_once_with_the_number(folders, config, capsys):
    spec = f"{folders['lower']}:0.2,{folders['upper']}:0.8"
    summary = train.train(config(data=spec, max_steps=28, batch_tokens=1024, log_interval=3))
    lines = capsys.readouterr().out.splitlines()
    (warning,) = [line for line in lines if line.startswith("warning:")]
    tokens = len(Data(folders["upper"]).splits["train"])
    epochs = 0.8 * summary["tokens"] / (tokens - tokens % 32)  # complete windows of 32
    assert epochs > 4
    assert f"upper is repeated {epochs:.1f} times" in warning


# --------------------------------------------------------------------------------------------------
# Rows that begin where documents begin


@pytest.mark.parametrize("block_size", [31, 200, 2000])
def test_every_row_begins_a_document_and_no_token_is_used_twice(folders, block_size):
    data = Data(folders["lower"])
    end_of_text = data.tokenizer.end_of_text
    rows = Rows(data, block_size, seed=1)
    for index in range(rows.count):
        row = rows.read(index)
        assert len(row) == block_size + 1
        assert row[0] == end_of_text
    used = np.zeros(len(rows.stream), dtype=int)
    for start, length in rows.pieces[: rows.first[-1]]:
        assert rows.stream.read(start, 1)[0] == end_of_text  # a piece begins a document
        used[start : start + length] += 1
    assert used.max() == 1
    assert rows.cropped == pytest.approx(1 - used.mean())


def test_best_fit_crops_less_than_taking_documents_as_they_come(folders):
    """The oracle fills each row in order, cuts the document that does not fit, drops its rest."""
    data = Data(folders["lower"])
    size = 401
    stream = data.splits["train"].read(0, len(data.splits["train"]))
    starts = np.flatnonzero(stream == data.tokenizer.end_of_text)
    kept = 0
    room = size
    for length in np.diff(starts, append=len(stream)):
        kept += min(length, room)
        room = max(0, room - length) or size
    assert Rows(data, size - 1, seed=1).cropped < 0.75 * (1 - kept / len(stream))


def test_the_plan_of_rows_is_a_function_of_data_and_seed(folders, monkeypatch):
    monkeypatch.setattr(Rows, "WAITING", 5)  # fewer than all, so that their order matters
    data = Data(folders["lower"])
    pieces = Rows(data, 64, seed=1).pieces
    assert np.array_equal(pieces, Rows(data, 64, seed=1).pieces)
    assert not np.array_equal(pieces, Rows(data, 64, seed=2).pieces)


def test_a_run_with_aligned_documents_says_what_it_crops_and_learns(folders, config, capsys):
    options = {"align_documents": True, "document_mask": True}
    summary = train.train(config(data=folders["lower"], **options, max_steps=30))
    assert "of tokens cropped" in capsys.readouterr().out
    assert summary["val_loss"] < 4


def test_a_run_with_aligned_documents_resumes_with_them(folders, config, tmp_path):
    """The option is not typed again: a resumed run sees the same sequences."""
    options = {"data": folders["lower"], "max_steps": 6}
    uninterrupted = str(tmp_path / "uninterrupted")
    train.train(config(**options, align_documents=True, out=uninterrupted))
    train.train(config(**options, align_documents=True), StopAfter(2))
    train.train(config(**options, resume=True))
    assert_identical(final_weights(tmp_path / "uninterrupted"), final_weights(tmp_path / "run"))


def test_the_document_mask_keeps_its_token_with_the_weights(folders, config, tmp_path):
    train.train(config(data=folders["lower"], document_mask=True))
    saved = checkpoint.load(tmp_path / "run" / "last.pt")["config"]
    assert saved["document_mask"]
    assert saved["document_token"] == Data(folders["lower"]).tokenizer.end_of_text
