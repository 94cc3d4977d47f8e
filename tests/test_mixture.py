"""Mixtures, rows that begin where documents begin, and synthetic tasks: what training draws, and in which shares."""

import json

import numpy as np
import pytest
import torch

import prepare_data
import train
from nanoloop.checkpoint import load_checkpoint
from nanoloop.data import Rows, TrainBatches, open_data
from nanoloop.options import UserError
from prepare_data import PrepareConfig, prepare
from tests.conftest import make_documents


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """Three prepared folders with the byte tokenizer; the letters of each are its own."""
    made, root = {}, tmp_path_factory.mktemp("mixture")
    for seed, (name, count) in enumerate({"lower": 60, "upper": 25, "digits": 40}.items()):
        (root / name).mkdir()
        for index, text in enumerate(make_documents(count, seed)):
            digits = "".join(str(ord(c) % 10) for c in text)
            text = {"lower": text, "upper": text.upper(), "digits": digits}[name]
            (root / name / f"{index:03}.txt").write_text(text)
        options = PrepareConfig(
            source=(str(root / name),), tokenizer="byte", val_fraction=0.15, test_fraction=0.1
        )
        made[name] = str(prepare(options, root / "data"))
    return made


def kinds(tokens: np.ndarray) -> list[str]:
    """Which folder each row of tokens came from, by its letters."""
    lower, upper = ((tokens >= first) & (tokens <= last) for first, last in ((97, 122), (65, 90)))
    return [
        "lower" if a else "upper" if b else "digits" for a, b in zip(lower.any(1), upper.any(1))
    ]


def mixture(folders: dict, **shares: float):
    return open_data(",".join(f"{folders[name]}:{share}" for name, share in shares.items()))


# ---------------------------------------------------------------------------------------------------------------------
# Shares


@pytest.mark.parametrize("shares", [(0.65, 0.35), (0.5, 0.3, 0.2), (1, 1, 1), (0.98, 0.015, 0.005)])
def test_at_every_moment_each_source_has_had_its_share(folders, shares):
    data = mixture(folders, **dict(zip(folders, shares)))
    counts, batches = dict.fromkeys(data.sources, 0), TrainBatches(data, 16, seed=1, batch_size=1)
    for n in range(3000):
        name, k = batches.draw(n)
        assert k == counts[name], (
            "the sequences of a source are taken in turn, none twice, none left out"
        )
        counts[name] += 1
        for source, (share, _) in data.sources.items():
            assert abs(counts[source] - share * (n + 1)) < len(shares) / 2 + 0.01


def test_a_batch_holds_each_source_in_its_share(folders):
    batches = TrainBatches(mixture(folders, lower=0.65, upper=0.35), 32, seed=1, batch_size=20)
    drawn = [kinds(batches(step)[0]) for step in range(10)]
    assert all(row.count("upper") == 7 for row in drawn) and all(
        row.count("lower") == 13 for row in drawn
    )


def test_a_global_batch_of_a_mixture_is_the_same_however_it_is_split(folders):
    data = mixture(folders, lower=2, upper=1, digits=1)
    whole = TrainBatches(data, 16, seed=3, batch_size=12)
    for batch_size, grad_accum, world_size in ((3, 4, 1), (3, 1, 4), (2, 3, 2), (1, 6, 2)):
        split = TrainBatches(data, 16, 3, batch_size, grad_accum, world_size)
        for step in (0, 5):
            parts = [
                split(step, m, rank)[0] for m in range(grad_accum) for rank in range(world_size)
            ]
            assert np.array_equal(np.concatenate(parts), whole(step)[0])


def test_each_epoch_of_a_source_shows_all_of_its_windows_once(folders):
    data = mixture(folders, lower=3, upper=1)
    batches, windows = TrainBatches(data, 32, seed=1, batch_size=4), {}
    for step in range(400):
        for kind, row in zip(kinds(batches(step)[0]), batches(step)[0]):
            windows.setdefault(kind, []).append(row.tobytes())
    count = batches.sources["upper"].count
    first, second = windows["upper"][:count], windows["upper"][count : 2 * count]
    assert len(second) == count and sorted(first) == sorted(second) and first != second


def test_one_folder_is_a_mixture_of_one(folders):
    alone, same = open_data(folders["lower"]), open_data(folders["lower"] + ":1")
    for step in range(5):
        assert np.array_equal(
            TrainBatches(alone, 16, 1, 8)(step)[0], TrainBatches(same, 16, 1, 8)(step)[0]
        )


def test_other_shares_are_other_data(folders):
    """… so that a run is not resumed with them unnoticed."""
    prints = [mixture(folders, lower=a, upper=b).fingerprint for a, b in ((1, 1), (2, 2), (2, 1))]
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize(
    "spec",
    [
        "{lower}:0.5,{upper}",
        "{lower}:0,{upper}:1",
        "{lower}:-1,{upper}:1",
        "{lower}:nan,{upper}:1",
        "{lower}:x,{upper}:1",
        "{lower}:1,nowhere:1",
        "{lower}:1,{lower}:1",
    ],
)
def test_a_mixture_that_makes_no_sense_is_refused_in_words(folders, spec):
    with pytest.raises(UserError) as caught:
        open_data(spec.format(**folders))
    assert any(
        word in str(caught.value) for word in ("FOLDER:SHARE", "does not exist", "same name")
    )


def test_folders_with_other_tokenizers_are_refused(folders, tmp_path):
    (tmp_path / "a.txt").write_text(" ".join(make_documents(30)))
    other = prepare(
        PrepareConfig(source=(str(tmp_path / "a.txt"),), tokenizer="bpe:300"), tmp_path / "data"
    )
    with pytest.raises(UserError, match="another tokenizer"):
        open_data(f"{folders['lower']}:1,{other}:1")


# ---------------------------------------------------------------------------------------------------------------------
# A run on a mixture


def test_a_run_reports_each_source_and_their_mean(folders, config, tmp_path):
    spec = f"{folders['lower']}:0.75,{folders['upper']}:0.25"
    summary = train.train(config(data=spec, max_steps=6))
    mean = 0.75 * summary["val_bpb_lower"] + 0.25 * summary["val_bpb_upper"]
    assert summary["val_bpb"] == pytest.approx(mean) and summary["val_loss_lower"] > 0
    alone = train.train(
        config(data=folders["upper"], init_from=str(tmp_path / "run"), eval_only=True, out=None)
    )
    assert alone["val_bpb"] == pytest.approx(summary["val_bpb_upper"])
    assert "val_bpb_upper" not in alone


def test_a_run_on_a_mixture_resumes_exactly(folders, config, tmp_path):
    spec = f"{folders['lower']}:0.6,{folders['upper']}:0.4"
    train.train(config(data=spec, max_steps=8, out=str(tmp_path / "whole")))
    train.train(config(data=spec, max_steps=8, out=str(tmp_path / "parts")), lambda: ["stop"])
    train.train(config(data=spec, max_steps=8, out=str(tmp_path / "parts"), resume=True))
    whole, parts = (load_checkpoint(tmp_path / name / "last.pt") for name in ("whole", "parts"))
    assert whole["step"] == parts["step"] == 8
    assert all(torch.equal(whole["model"][name], parts["model"][name]) for name in whole["model"])


def test_a_source_that_is_repeated_too_often_is_named_once_with_the_number(folders, config, capsys):
    spec = f"{folders['lower']}:0.2,{folders['upper']}:0.8"
    summary = train.train(config(data=spec, max_steps=110, log_interval=10))
    warnings = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith("warning:")
    ]
    tokens = len(open_data(folders["upper"]).splits["train"])
    expected = 0.8 * summary["tokens"] / (tokens - tokens % 32)  # whole windows of 32
    assert expected > 4 and len(warnings) == 1
    assert f"upper is repeated {expected:.1f} times" in warnings[0]


# ---------------------------------------------------------------------------------------------------------------------
# Rows that begin where documents begin


@pytest.mark.parametrize("block_size", [31, 200, 2000])
def test_every_row_begins_a_document_and_no_token_is_used_twice(folders, block_size):
    data = open_data(folders["lower"])
    rows, end_of_text = Rows(data, block_size, seed=1), data.tokenizer.end_of_text
    used = np.zeros(len(rows.stream), dtype=int)
    for index in range(rows.count):
        row = rows.read(index)
        assert len(row) == block_size + 1 and row[0] == end_of_text
    for start, length in rows.pieces[: rows.first[-1]]:
        assert rows.stream.read(start, 1)[0] == end_of_text, (
            "a piece of a document is its beginning"
        )
        used[start : start + length] += 1
    assert used.max() == 1 and rows.cropped == pytest.approx(1 - used.mean())


def test_best_fit_crops_less_than_taking_documents_as_they_come(folders):
    """The oracle: fill each row in order, cut the document that does not fit, drop its rest."""
    data, block_size = open_data(folders["lower"]), 400
    stream = data.splits["train"].read(0, len(data.splits["train"]))
    lengths = np.diff(np.flatnonzero(stream == data.tokenizer.end_of_text), append=len(stream))
    kept, room = 0, block_size + 1
    for length in lengths:
        kept, room = kept + min(length, room), max(0, room - length) or block_size + 1
    assert Rows(data, block_size, seed=1).cropped < 0.75 * (1 - kept / len(stream))


def test_a_run_with_aligned_documents_says_what_it_crops_and_learns(folders, config, capsys):
    summary = train.train(
        config(data=folders["lower"], align_documents=True, document_mask=True, max_steps=30)
    )
    assert "of tokens cropped" in capsys.readouterr().out and summary["val_loss"] < 4


def test_a_run_with_aligned_documents_goes_on_with_them(folders, config, tmp_path):
    """… though the option is not typed again: a resumed run sees the same sequences."""
    options = dict(data=folders["lower"], max_steps=6)
    train.train(config(**options, align_documents=True, out=str(tmp_path / "whole")))
    train.train(config(**options, align_documents=True), lambda: ["stop"])
    train.train(config(**options, resume=True))
    whole, parts = (
        load_checkpoint(tmp_path / name / "last.pt")["model"] for name in ("whole", "run")
    )
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_the_plan_of_rows_is_a_function_of_data_and_seed(folders, monkeypatch):
    monkeypatch.setattr(Rows, "WAITING", 5)  # fewer than there are, so that their order matters
    data = open_data(folders["lower"])
    a, b, c = (Rows(data, 64, seed).pieces for seed in (1, 1, 2))
    assert np.array_equal(a, b) and not np.array_equal(a, c)


def test_a_mask_between_documents_changes_no_checkpoint_but_its_own(folders, config, tmp_path):
    """The end-of-text token comes from the tokenizer and is kept with the weights."""
    train.train(config(data=folders["lower"], document_mask=True))
    saved = load_checkpoint(tmp_path / "run" / "last.pt")["config"]
    assert (
        saved["document_mask"]
        and saved["document_token"] == prepare_data.Data(folders["lower"]).tokenizer.end_of_text
    )


# ---------------------------------------------------------------------------------------------------------------------
# Tasks


def test_tasks_are_graded_at_each_evaluation_and_from_a_checkpoint(
    folders, config, tmp_path, capsys
):
    options = dict(data=folders["lower"], block_size=64, eval_tasks="modular,copying")
    summary = train.train(config(**options, max_steps=4, eval_interval=2))
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert all({"acc_modular", "acc_copying"} <= row.keys() for row in rows if "val_loss" in row)
    assert 0 <= summary["acc_modular"] <= 1
    again = train.train(config(**options, init_from=str(tmp_path / "run"), eval_only=True))
    assert again["acc_copying"] == summary["acc_copying"]


@pytest.mark.parametrize(
    "tasks, told", [("copyng", "did you mean copying"), ("python", "block_size")]
)
def test_tasks_that_cannot_be_set_are_told_before_training(folders, config, tmp_path, tasks, told):
    with pytest.raises(UserError, match=told):
        train.train(config(data=folders["lower"], eval_tasks=tasks))
    assert not (tmp_path / "run").exists()
