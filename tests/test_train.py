"""The contracts of a run: the textbook's loop, exact resume, honest evaluation, checkpoints."""

import errno
import json
import math
import os
import shutil
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch

import train
from model import GPT
from nanoloop import checkpoint
from nanoloop.data import Data, TrainBatches, open_data
from nanoloop.options import StopFlag, UserError
from nanoloop.runlog import RunLog
from tests.conftest import SMALL, make_documents
from tests.runs import KillAfter, StopAfter, assert_identical, final_weights, log_rows
from train import evaluate

CPU = torch.device("cpu")
NO_RATES = {"muon_lr": 0.0, "embed_lr": 0.0, "head_lr": 0.0, "scalar_lr": 0.0}


@pytest.fixture(scope="module")
def finished_folder(data_dir, tmp_path_factory):
    """A finished run of four steps with another seed than the default; do not change it."""
    out = tmp_path_factory.mktemp("finished") / "run"
    train.train(train.TrainConfig(**SMALL, data=str(data_dir), out=str(out), seed=3, max_steps=4))
    return out


@pytest.fixture
def finished(config, finished_folder, tmp_path):
    """The options of a finished run, which stands in tmp_path / "run"."""
    shutil.copytree(finished_folder, tmp_path / "run")
    return config(seed=3)


# --------------------------------------------------------------------------------------------------
# What a run is


def test_a_run_learns_and_leaves_all_that_the_readme_says(
    config, tmp_path, capsys, draw, monkeypatch
):
    monkeypatch.setattr(RunLog, "draw", draw)
    summary = train.train(config(max_steps=40, eval_interval=20, log_interval=10, save_interval=20))
    out = tmp_path / "run"
    files = "last.pt best.pt previous.pt log.jsonl config.json summary.json loss.png"
    assert set(os.listdir(out)) == set(files.split())

    rows = log_rows(out)
    assert [row["step"] for row in rows] == [10, 20, 30, 40]
    assert rows[-1]["loss"] < rows[0]["loss"] < math.log(257)
    assert ["val_loss" in row for row in rows] == [False, True, False, True]

    keys = (
        "val_loss val_bpb train_seconds total_seconds tokens steps tokens_per_second mfu "
        "peak_memory_mb params"
    )
    assert list(summary) == keys.split()
    assert summary["steps"] == 40 and summary["tokens"] == 40 * 256
    assert json.loads((out / "summary.json").read_text()) == summary
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")

    printed = capsys.readouterr().out
    assert "256 tokens a step: 8 sequences × 32 tokens" in printed
    assert "seconds_left" in printed
    assert f"val_loss: {summary['val_loss']:.4f}" in printed


def test_the_loop_is_the_textbooks(config, data_dir, tmp_path):
    """Four steps against a training loop of ten lines with torch's AdamW."""
    options = config(
        optimizer="adamw", learning_rate=0.01, eps=1e-4, decay=1.0, final_lr=0.0, grad_clip=0.5
    )
    train.train(options)

    batches = TrainBatches(open_data(str(data_dir)), 32, options.seed, batch_size=8)
    torch.manual_seed(options.seed)
    model = GPT(replace(options, vocab_size=257))
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        betas=(options.beta1, options.beta2),
        eps=options.eps,
    )
    for step in range(4):
        tokens, targets = map(torch.from_numpy, batches(step))
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (1 - step / 4)
        loss = model(tokens, targets)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()

    expected = model.state_dict()
    for name, weight in final_weights(tmp_path / "run").items():
        torch.testing.assert_close(weight, expected[name], atol=1e-4, rtol=1e-3, msg=name)


def test_a_batch_gives_one_loss_however_it_is_split(config, tmp_path):
    losses = []
    for rows in (8, 4, 1):
        train.train(config(micro_batch_size=rows, log_interval=1, overwrite=True))
        losses.append([row["loss"] for row in log_rows(tmp_path / "run")])
    for split in losses[1:]:
        # The first loss differs by rounding alone, which training then magnifies.
        assert split[0] == pytest.approx(losses[0][0], abs=1e-5)
        assert split == pytest.approx(losses[0], abs=2e-3)


def test_two_runs_with_one_seed_are_identical_and_another_seed_is_not(config, tmp_path):
    runs = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train.train(config(out=str(tmp_path / name), seed=seed, dropout=0.2))
        runs[name] = final_weights(tmp_path / name)
    assert_identical(runs["a"], runs["b"])
    assert not torch.equal(runs["a"]["wte.weight"], runs["c"]["wte.weight"])


@pytest.mark.parametrize(
    "budget, steps",
    [({"max_tokens": 256 * 3}, 3), ({"max_tokens": 256 * 3 - 1}, 3), ({"max_steps": 2}, 2)],
    ids=str,
)
def test_a_run_ends_with_its_budget(config, budget, steps):
    options = {"max_steps": None} | budget
    assert train.train(config(**options))["steps"] == steps


def test_a_run_ends_after_max_seconds_of_training(config, monkeypatch):
    """With a clock that advances a second at every look, and a thousand in an evaluation."""
    seconds = iter(range(10**6))

    def slow_evaluate(*args) -> dict[str, float]:
        for _ in range(1000):
            next(seconds)
        return {"val_loss": 1.0}

    monkeypatch.setattr("time.perf_counter", lambda: float(next(seconds)))
    monkeypatch.setattr(train, "evaluate", slow_evaluate)
    summary = train.train(config(max_steps=None, max_seconds=30.0, eval_interval=1))
    assert 30 <= summary["train_seconds"] < 35
    assert summary["steps"] > 5
    assert summary["total_seconds"] > 1000 * summary["steps"]


def test_the_first_step_is_logged_at_once_and_later_ones_by_time(config, tmp_path, monkeypatch):
    """With a clock that advances a second at every look; two looks are a step."""
    seconds = iter(range(10**6))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(seconds)))
    train.train(config(max_steps=20, log_interval=None))
    steps = [row["step"] for row in log_rows(tmp_path / "run")]
    assert steps[0] == 1 and steps[-1] == 20
    assert {later - step for step, later in zip(steps, steps[1:-1])} <= {4, 5}


def test_a_recipe_prepares_its_own_data_if_it_is_missing_and_no_other(
    config, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("some words to learn from. " * 200)
    options = config(data="data/mine", prepare="--source=text.txt --name=mine --tokenizer=byte")
    with pytest.raises(UserError, match="data/other.*does not exist"):
        train.train(replace(options, data="data/other"))
    assert not (tmp_path / "data").exists()

    assert train.train(options)["steps"] == 4
    assert "'data/mine' does not exist, preparing it" in capsys.readouterr().out
    train.train(replace(options, overwrite=True))
    assert "preparing it" not in capsys.readouterr().out


# --------------------------------------------------------------------------------------------------
# Resume


@pytest.mark.parametrize("optimizer, stop_at", [("muon", 1), ("adamw", 5)], ids=str)
def test_a_run_that_is_stopped_and_resumed_equals_one_that_is_not(
    config, tmp_path, optimizer, stop_at, capsys
):
    """Bit for bit. The run sees its data more than once, dropout draws random numbers, and the
    stopped run evaluates and saves at other steps."""
    options = config(max_steps=12, batch_tokens=2048, dropout=0.1, optimizer=optimizer, n_layer=1)
    batches = TrainBatches(open_data(options.data), 32, 0, batch_size=64)
    assert 5 < batches.sources["words"].count / batches.batch_size < 12  # steps of an epoch
    uninterrupted = train.train(replace(options, out=str(tmp_path / "uninterrupted")))

    stopped = train.train(replace(options, eval_interval=3, save_interval=5), StopAfter(stop_at))
    assert stopped["steps"] == checkpoint.load(tmp_path / "run/last.pt")["step"] == stop_at
    assert "--resume=True" in capsys.readouterr().out

    resumed = train.train(replace(options, resume=True, eval_interval=4))
    assert_identical(final_weights(tmp_path / "uninterrupted"), final_weights(tmp_path / "run"))
    assert resumed["val_loss"] == uninterrupted["val_loss"]
    steps = [row["step"] for row in log_rows(tmp_path / "run")]
    assert steps == sorted(set(steps)) and steps[-1] == 12  # nothing is logged twice


def test_a_killed_run_resumes_from_its_last_checkpoint(config, tmp_path):
    """The log is ahead of the checkpoint then; the resumed run writes those rows again."""
    options = config(max_steps=12, save_interval=5, log_interval=1)
    uninterrupted = train.train(replace(options, out=str(tmp_path / "uninterrupted")))
    with pytest.raises(KeyboardInterrupt):
        train.train(options, KillAfter(8))
    assert checkpoint.load(tmp_path / "run/last.pt")["step"] == 5
    with open(tmp_path / "run/log.jsonl", "a") as file:
        file.write('{"step": 9, "tok')  # the kill cuts a row in two

    assert train.train(replace(options, resume=True))["val_loss"] == uninterrupted["val_loss"]
    assert [row["step"] for row in log_rows(tmp_path / "run")] == list(range(1, 13))


def test_a_run_killed_before_its_first_checkpoint_starts_again(config):
    with pytest.raises(KeyboardInterrupt):
        train.train(config(), KillAfter(0))
    assert train.train(config())["steps"] == 4


def test_resuming_a_finished_run_says_so_and_writes_nothing(finished, tmp_path, capsys):
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}
    summary = train.train(replace(finished, resume=True))
    assert summary == json.loads((tmp_path / "run/summary.json").read_text())
    printed = capsys.readouterr().out
    assert "already finished, at step 4: a larger --max_steps" in printed
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()} == before

    train.train(replace(finished, resume=True, max_steps=8))
    assert "resuming at step 4, 50% of the run" in capsys.readouterr().out


class Interrupt:
    """An evaluation that a failure or a signal interrupts after its first batch."""

    def __init__(self, monkeypatch, action):
        self.read = Data.eval_batches
        self.action = action
        monkeypatch.setattr(Data, "eval_batches", lambda *options: self.batches(*options))

    def batches(self, *options):
        for index, batch in enumerate(self.read(*options)):
            if index == 1:
                self.action()
            yield batch


def test_a_run_that_fails_in_its_evaluation_keeps_all_its_steps(config, tmp_path, monkeypatch):
    """Memory is shortest there. The resumed run evaluates again, and its log lacks nothing."""
    options = config(max_steps=6, eval_interval=3, log_interval=1, decay=0.0, momentum_warmup=0.0)
    uninterrupted = train.train(replace(options, out=str(tmp_path / "uninterrupted")))

    def fail():
        raise MemoryError

    with monkeypatch.context() as context, pytest.raises(MemoryError):
        Interrupt(context, fail)
        train.train(replace(options, max_steps=3))
    assert checkpoint.load(tmp_path / "run/last.pt")["step"] == 3
    resumed = train.train(replace(options, resume=True))
    assert resumed["val_loss"] == uninterrupted["val_loss"]
    for row, expected in zip(log_rows(tmp_path / "run"), log_rows(tmp_path / "uninterrupted")):
        assert row["loss"] == expected["loss"]
        assert row.get("val_loss") == expected.get("val_loss")


@pytest.mark.parametrize("max_steps", [6, 3], ids=["in the middle", "at the end"])
def test_a_signal_ends_an_evaluation_too(config, tmp_path, monkeypatch, max_steps):
    """A launcher kills a run that takes long to stop."""
    options = config(max_steps=max_steps, eval_interval=3)
    uninterrupted = train.train(replace(options, out=str(tmp_path / "uninterrupted")))
    stop = StopFlag()
    monkeypatch.setattr(stop, "listen", lambda: None)
    with monkeypatch.context() as context:
        Interrupt(context, lambda: setattr(stop, "signal", 15))
        assert train.train(options, stop) == {"steps": 3, "stopped_by": 15}
    assert "val_loss" not in log_rows(tmp_path / "run")[-1]

    assert train.train(replace(options, resume=True))["val_loss"] == uninterrupted["val_loss"]
    rows = log_rows(tmp_path / "run")
    assert all("val_loss" in row for row in rows if row["step"] % 3 == 0)


def test_a_finished_run_can_have_a_larger_budget_and_other_rates(config, tmp_path):
    """The optimizers' states come from the checkpoint, the rates from the options."""
    train.train(config(max_steps=4))
    before = final_weights(tmp_path / "run")
    assert train.train(config(max_steps=6, resume=True, **NO_RATES))["steps"] == 6
    assert_identical(before, final_weights(tmp_path / "run"))


@pytest.mark.parametrize(
    "name, value",
    [
        ("seed", 7),
        ("batch_tokens", 512),
        ("n_layer", 3),
        ("optimizer", "adamw"),
        ("block_size", 16),
    ],
)
def test_what_shapes_a_run_cannot_change_when_it_resumes(finished, name, value, tmp_path):
    before = (tmp_path / "run/last.pt").read_bytes()
    expected = checkpoint.load(tmp_path / "run/last.pt")["config"][name]
    message = f"the checkpoint needs {name}={expected}, got {value}"
    with pytest.raises(UserError, match=message):
        train.train(replace(finished, resume=True, **{name: value}))
    assert (tmp_path / "run/last.pt").read_bytes() == before


def test_a_damaged_checkpoint_is_skipped_for_the_previous_one(config, tmp_path, capsys):
    options = config(max_steps=10, save_interval=4)
    train.train(options)
    expected = final_weights(tmp_path / "run")
    content = (tmp_path / "run/last.pt").read_bytes()
    (tmp_path / "run/last.pt").write_bytes(content[: len(content) // 2])
    train.train(replace(options, resume=True))
    printed = capsys.readouterr().err
    assert "warning: checkpoint skipped" in printed and "last.pt" in printed
    assert (tmp_path / "run/last.damaged").exists()
    assert_identical(expected, final_weights(tmp_path / "run"))


def test_the_best_checkpoint_can_be_resumed_too(finished, tmp_path):
    """It may be the only one left."""
    for name in ("last.pt", "previous.pt"):
        (tmp_path / "run" / name).unlink(missing_ok=True)
    assert train.train(replace(finished, resume=True, max_steps=6))["steps"] == 6


def test_a_resumed_run_replaces_its_best_checkpoint_only_by_a_better_one(finished, tmp_path):
    """last.pt was written before the evaluation that made the best one; a loss of 0 is the best."""
    path = tmp_path / "run/best.pt"
    torch.save(checkpoint.load(path) | {"best": 0.0}, path)
    train.train(replace(finished, resume=True, max_steps=8))
    assert checkpoint.load(path)["step"] == 4
    assert checkpoint.load(tmp_path / "run/last.pt")["step"] == 8


def test_a_run_whose_checkpoints_are_all_damaged_is_not_begun_again_silently(finished, tmp_path):
    for path in (tmp_path / "run").glob("*.pt"):
        path.write_bytes(b"damaged")
    with pytest.raises(UserError, match="no checkpoint.*can be read: type --overwrite=True"):
        train.train(replace(finished, resume=True))


@pytest.mark.parametrize(
    "line", ["{garbage}", '{"a": 1}', '{"step": "x"}', "\xff\xfe", '{"step": 2, "loss": NaN}']
)
def test_a_damaged_log_does_not_prevent_resuming(finished, tmp_path, line):
    with open(tmp_path / "run/log.jsonl", "a", encoding="latin-1") as file:
        file.write(line + "\n")
    assert train.train(replace(finished, resume=True, max_steps=5))["steps"] == 5


# --------------------------------------------------------------------------------------------------
# Evaluation


def test_evaluation_does_not_depend_on_the_batch_size_and_draws_no_random_number(config, data_dir):
    data = open_data(str(data_dir))
    torch.manual_seed(0)
    model = GPT(config(dropout=0.3, vocab_size=257))
    state = torch.get_rng_state()
    losses = [evaluate(model, data, "val", 32, rows, CPU)["val_loss"] for rows in (1, 7, 64)]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)
    assert torch.equal(state, torch.get_rng_state())
    assert model.training


def test_bits_per_byte_are_those_of_the_text(config, data_dir):
    """A model that gives every token probability 1/257 needs log2(257) bits for every byte."""
    model = GPT(config(vocab_size=257))
    torch.nn.init.zeros_(model.lm_head.weight)
    figures = evaluate(model, open_data(str(data_dir)), "val", 32, 4, CPU)
    assert figures["val_loss"] == pytest.approx(math.log(257))
    assert figures["val_bpb"] == pytest.approx(math.log2(257))


def prepare(tmp_path, texts: list[str], **options):
    """Prepare texts, one document each; return the folder."""
    from prepare_data import PrepareConfig
    from prepare_data import prepare as run

    source = tmp_path / "source"
    source.mkdir()
    for index, text in enumerate(texts):
        (source / f"{index}.txt").write_text(text)
    return run(PrepareConfig(source=(str(source),), name="prepared", **options), tmp_path)


def test_bits_per_byte_leave_out_what_is_no_text(config, tmp_path):
    """Against a count by hand, with a tokenizer whose tokens have several bytes."""
    folder = prepare(tmp_path, make_documents(30), tokenizer="bpe:300", val_fraction=0.3)
    data = open_data(str(folder))
    tokenizer = data.tokenizer
    model = GPT(config(vocab_size=tokenizer.vocab_size)).eval()
    nats = 0.0
    text_bytes = 0
    for batch in data.eval_batches("val", 32, 4):
        tokens, targets = map(torch.from_numpy, batch)
        losses = model(tokens, targets, reduction="none")
        for loss, target in zip(losses.flatten().tolist(), targets.flatten().tolist()):
            if target not in (-1, tokenizer.end_of_text):
                nats += loss
                text_bytes += len(tokenizer.tokens[target])
    assert text_bytes == data.meta["splits"]["val"]["bytes"]
    expected = nats / text_bytes / math.log(2)
    assert evaluate(model, data, "val", 32, 4, CPU)["val_bpb"] == pytest.approx(expected, rel=1e-5)


def test_training_works_without_validation_data(config, tmp_path):
    texts = ["so many words " * 500]
    folder = prepare(tmp_path, texts, tokenizer="byte", val_fraction=0, test_fraction=0)
    summary = train.train(config(data=str(folder), eval_interval=2))
    assert "val_loss" not in summary and summary["steps"] == 4


def test_eval_only_evaluates_and_writes_nothing(finished, tmp_path, capsys):
    run = tmp_path / "run"
    expected = json.loads((run / "summary.json").read_text())["val_loss"]
    before = {path.name: path.stat().st_mtime_ns for path in run.iterdir()}
    only = replace(finished, eval_only=True)
    assert train.train(replace(only, resume=True))["val_loss"] == expected
    assert train.train(replace(only, init_from=str(run)))["val_loss"] == expected
    assert f"val_loss: {expected:.4f}" in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in run.iterdir()} == before

    train.train(replace(only, init_from=str(run), out=str(tmp_path / "other")))
    assert not (tmp_path / "other").exists()


def test_best_is_the_checkpoint_of_the_lowest_validation_loss(config, tmp_path):
    """Here of a good state, before the rates destroy the model."""
    train.train(config(max_steps=20, eval_interval=20))
    destructive = {"head_lr": 30.0, "embed_lr": 30.0, "decay": 0.0}
    train.train(config(max_steps=22, eval_interval=1, resume=True, **destructive))
    losses = {
        row["step"]: row["val_loss"] for row in log_rows(tmp_path / "run") if "val_loss" in row
    }
    assert list(losses) == [20, 21, 22] and losses[20] < min(losses[21], losses[22])
    best = checkpoint.load(tmp_path / "run/best.pt")
    assert best["step"] == 20 and best["best"] == losses[20]
    assert checkpoint.load(tmp_path / "run/last.pt")["step"] == 22


# --------------------------------------------------------------------------------------------------
# Fine-tuning


def test_fine_tuning_begins_with_the_checkpoints_weights_and_shape(config, finished, tmp_path):
    """Options with their default values are free: the checkpoint's are taken."""
    defaults = {name: getattr(train.TrainConfig, name) for name in ("n_layer", "value_embeds")}
    fine = {"out": str(tmp_path / "fine"), "init_from": str(tmp_path / "run"), "max_steps": 1}
    options = config(**fine, **defaults, **NO_RATES, dropout=0.1, block_size=16)
    train.train(options)
    assert_identical(final_weights(tmp_path / "run"), final_weights(tmp_path / "fine"))
    saved = checkpoint.load(tmp_path / "fine/last.pt")["config"]
    assert (saved["n_layer"], saved["block_size"], saved["dropout"]) == (2, 16, 0.1)
    with pytest.raises(UserError, match="the checkpoint needs n_layer=2, got 5"):
        train.train(replace(options, n_layer=5, overwrite=True))


# --------------------------------------------------------------------------------------------------
# Checkpoints


def test_a_checkpoint_is_plain_and_says_everything(finished, tmp_path):
    saved = torch.load(tmp_path / "run/last.pt", weights_only=True)
    data = open_data(finished.data)
    assert saved["step"] == 4 and saved["tokens"] == 4 * 256 and saved["seconds"] > 0
    assert saved["data"] == data.fingerprint
    expected = asdict(replace(finished, vocab_size=257)) | {"out": saved["config"]["out"]}
    assert saved["config"] == expected
    weights = checkpoint.load_weights(str(tmp_path / "run"))
    assert weights["tokenizer"] == data.tokenizer.to_json()
    assert not list((tmp_path / "run").glob("*.tmp"))


def test_a_malicious_checkpoint_is_never_executed(config, tmp_path):
    class Malice:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'executed'}",)

    torch.save({"format": checkpoint.FORMAT, "model": Malice()}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match="evil.pt.*not used"):
        train.train(config(init_from=str(tmp_path / "evil.pt")))
    assert not (tmp_path / "executed").exists()
    assert not (tmp_path / "run").exists()


@pytest.fixture
def disk(monkeypatch, tmp_path):
    """A disk that is full until a checkpoint of the step `disk.room_from` is saved."""
    save = torch.save
    disk = SimpleNamespace(room_from=math.inf, tries=[])

    def save_if_there_is_room(state, file) -> None:
        disk.tries.append(state["step"])
        if state["step"] < disk.room_from:
            file.write(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(state, file)

    monkeypatch.setattr(torch, "save", save_if_there_is_room)
    return disk


def test_a_full_disk_costs_no_training_if_there_is_room_later(finished, disk, tmp_path, capsys):
    disk.room_from = 8
    train.train(replace(finished, resume=True, max_steps=8, save_interval=2))
    assert checkpoint.load(tmp_path / "run/last.pt")["step"] == 8
    assert {6, 8} <= set(disk.tries)
    assert "last.pt' was NOT written (No space left on device)" in capsys.readouterr().out


def test_a_full_disk_costs_no_checkpoint(finished, disk, tmp_path):
    """The checkpoint of before stays intact; a run whose last one is missing has not succeeded."""
    before = (tmp_path / "run/last.pt").read_bytes()
    with pytest.raises(UserError, match="the last state, of step 8, was not written"):
        train.train(replace(finished, resume=True, max_steps=8, save_interval=2))
    assert (tmp_path / "run/last.pt").read_bytes() == before
    assert {6, 8} <= set(disk.tries)
    assert not list((tmp_path / "run").glob("*.tmp"))


# --------------------------------------------------------------------------------------------------
# When numbers overflow


def test_the_first_loss_that_is_not_finite_ends_the_run(config, tmp_path):
    """A rate that overflows the head in step 5; the loss of step 6 shows it."""
    options = config(logit_softcap=None, decay=0.0)
    train.train(options)
    overflow = replace(options, resume=True, max_steps=20, head_lr=3e38)
    message = "the loss of step 6 is (nan|inf); the last checkpoint .*lower learning rates"
    with pytest.raises(UserError, match=message):
        train.train(overflow)
    saved = checkpoint.load(tmp_path / "run/last.pt")
    assert saved["step"] == 4
    assert all(weight.isfinite().all() for weight in saved["model"].values())


def test_weights_that_are_not_finite_are_never_saved(finished, tmp_path):
    """A weight can overflow in a step whose loss was finite."""
    options = replace(finished, resume=True, max_steps=20, save_interval=5, muon_lr=1e300)
    with pytest.raises(UserError, match="the weights are not finite after step 5"):
        train.train(options)
    assert checkpoint.load(tmp_path / "run/last.pt")["step"] == 4


def test_float16_is_scaled_so_that_gradients_do_not_vanish(config, tmp_path):
    """Where bfloat16 is missing; the same path works on a CPU. It resumes exactly, too."""
    train.train(config(dtype="float16"))
    assert checkpoint.load(tmp_path / "run/last.pt")["scaler"]["scale"] > 1
    parts = config(dtype="float16", out=str(tmp_path / "parts"))
    train.train(parts, StopAfter(2))
    train.train(replace(parts, resume=True))
    assert_identical(final_weights(tmp_path / "run"), final_weights(tmp_path / "parts"))


# --------------------------------------------------------------------------------------------------
# What the machine offers


@pytest.mark.parametrize("grad_clip", [None, 1.0])
@pytest.mark.parametrize("name", ["h.0.attn.c_proj.weight", "wte.weight"])
def test_a_bad_gradient_in_float16_makes_every_optimizer_skip_the_step(
    config, data_dir, name, grad_clip
):
    """Muon has the first parameter, AdamW the second. The next step is taken by all."""
    options = config(grad_clip=grad_clip, vocab_size=257)
    model = GPT(options, torch.float16)
    optimizers = train.make_optimizers(model, options)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    batches = TrainBatches(open_data(str(data_dir)), 32, 0, batch_size=4)

    def changed_by_a_step() -> set[str]:
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        train.train_step(model, optimizers, scaler, batches, 0, options, CPU)
        return {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}

    hook = model.get_parameter(name).register_hook(lambda grad: grad * math.inf)
    assert changed_by_a_step() == set()
    hook.remove()
    assert {"h.0.attn.c_proj.weight", "wte.weight"} <= changed_by_a_step()


def test_without_a_compiler_training_continues_without_compiling(config, monkeypatch, capsys):
    def fail(*args, **kwargs):
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(torch, "compile", lambda model, **options: fail)
    assert train.train(config(compile=True))["steps"] == 4
    assert "torch.compile does not work here" in capsys.readouterr().out


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_trains_compiled_in_bfloat16_and_resumes(config, tmp_path):
    options = config(
        device="cuda",
        dtype="auto",
        max_steps=20,
        block_size=64,
        batch_tokens=1024,
        window_pattern="SL",
        window_size=32,
    )
    summary = train.train(replace(options, out=str(tmp_path / "uninterrupted")))
    train.train(options, StopAfter(7))
    resumed = train.train(replace(options, resume=True))
    assert resumed["val_loss"] == pytest.approx(summary["val_loss"], abs=0.02)
    assert checkpoint.load(tmp_path / "run/last.pt")["config"]["dtype"] == "auto"
