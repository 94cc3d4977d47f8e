"""The loop's contracts: exact resume, one loss however a batch is split, honest evaluation, safe checkpoints."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace

import console
import pytest
import torch

import train
from model import GPT
from nanoloop.checkpoint import load_checkpoint, load_weights
from nanoloop.data import Data, TrainBatches
from nanoloop.options import UserError
from tests.conftest import ROOT
from train import evaluate

CPU = torch.device("cpu")


@pytest.fixture
def stop_after(monkeypatch):
    """stop_after(k) watches for a stop that comes in step k: Ctrl-C at a chosen moment."""
    schedule = train.set_schedule

    def make(steps: int):
        stop, calls = [], []

        def counted(*args):
            calls.append(1)
            if len(calls) == steps:
                stop.append(signal.SIGINT)
            return schedule(*args)

        monkeypatch.setattr(train, "set_schedule", counted)
        return lambda: stop

    return make


def final_weights(out) -> dict[str, torch.Tensor]:
    return load_checkpoint(out / "last.pt")["model"]


def assert_identical(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


# ---------------------------------------------------------------------------------------------------------------------
# What a run is


def test_a_run_learns_and_leaves_all_that_the_readme_says(config, tmp_path, capsys):
    summary = train.train(config(max_steps=40, eval_interval=20, log_interval=10, save_interval=20))
    out = tmp_path / "run"
    assert {
        "last.pt",
        "best.pt",
        "previous.pt",
        "log.jsonl",
        "config.json",
        "summary.json",
        "loss.png",
    } == set(os.listdir(out))
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [10, 20, 30, 40]
    assert rows[-1]["loss"] < rows[0]["loss"] < math.log(257)
    assert ["val_loss" in row for row in rows] == [False, True, False, True]
    assert json.loads((out / "summary.json").read_text()) == summary
    keys = "val_loss val_bpb train_seconds total_seconds tokens steps tokens_per_second mfu peak_memory_mb params".split()
    assert list(summary) == keys and summary["steps"] == 40 and summary["tokens"] == 40 * 256
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "256 tokens a step: 1 micro-steps × 8 sequences × 32" in printed
    assert "seconds_left" in printed and f"val_loss: {summary['val_loss']:.4f}" in printed


def test_the_loop_is_the_textbooks(config, data_dir, tmp_path):
    """Four steps against a training loop of ten lines with torch's AdamW."""
    options = config(
        optimizer="adamw", learning_rate=0.01, eps=1e-4, decay=1.0, final_lr=0.0, grad_clip=0.5
    )
    train.train(options)
    data = Data(data_dir)
    torch.manual_seed(options.seed)
    model = GPT(replace(options, vocab_size=257))
    matrices, vectors = (
        [p for p in model.parameters() if (p.ndim >= 2) == two] for two in (True, False)
    )
    optimizer = torch.optim.AdamW(
        [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}],
        lr=0.01,
        weight_decay=0.1,
        betas=(options.beta1, options.beta2),
        eps=options.eps,
    )
    batches = TrainBatches(data, 32, options.seed, 8)
    for step in range(4):
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (1 - step / 4)
        optimizer.zero_grad()
        model(*map(torch.from_numpy, batches(step))).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
    for name, weight in final_weights(tmp_path / "run").items():
        torch.testing.assert_close(weight, model.state_dict()[name], atol=1e-4, rtol=1e-3, msg=name)


def test_a_batch_gives_one_loss_however_it_is_split(config, tmp_path):
    losses = []
    for rows in (8, 4, 1):
        train.train(config(micro_batch_size=rows, log_interval=1, overwrite=True))
        losses.append(
            [
                json.loads(line)["loss"]
                for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()
            ]
        )
    for split in losses[1:]:
        assert split[0] == pytest.approx(
            losses[0][0], abs=1e-5
        )  # the first step differs by rounding alone,
        assert split == pytest.approx(losses[0], abs=2e-3)  # which training then magnifies


def test_two_runs_with_one_seed_are_identical_and_another_seed_is_not(config, tmp_path):
    runs = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train.train(config(out=str(tmp_path / name), seed=seed, dropout=0.2))
        runs[name] = final_weights(tmp_path / name)
    assert_identical(runs["a"], runs["b"])
    assert not torch.equal(runs["a"]["wte.weight"], runs["c"]["wte.weight"])


@pytest.mark.parametrize(
    "budget, steps",
    [(dict(max_tokens=256 * 3), 3), (dict(max_tokens=256 * 3 - 1), 3), (dict(max_steps=2), 2)],
)
def test_a_run_ends_with_its_budget(config, budget, steps):
    assert train.train(config(**(dict(max_steps=None) | budget)))["steps"] == steps


def test_a_run_ends_after_max_seconds_of_training(config, monkeypatch):
    """A clock that advances a second at every look; evaluation, which looks too, must not count."""
    ticks = iter(range(10**6))
    monkeypatch.setattr(train.time, "perf_counter", lambda: float(next(ticks)))
    monkeypatch.setattr(
        train, "evaluate", lambda *args: [next(ticks) for _ in range(1000)] and {"val_loss": 1.0}
    )
    summary = train.train(config(max_steps=None, max_seconds=30.0, eval_interval=1))
    assert 30 <= summary["train_seconds"] < 35 and summary["steps"] > 5
    assert summary["total_seconds"] > 1000 * summary["steps"]


def test_a_recipe_makes_its_own_data_if_it_is_missing_and_no_other(
    config, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("some words to learn from. " * 200)
    options = config(data="data/mine", prepare="--source=text.txt --name=mine --tokenizer=byte")
    with pytest.raises(
        UserError, match="data/other.*does not exist"
    ):  # not what the recipe would make
        train.train(replace(options, data="data/other"))
    assert not (tmp_path / "data").exists()
    assert train.train(options)["steps"] == 4
    assert "'data/mine' is not there, making it" in capsys.readouterr().out
    train.train(replace(options, overwrite=True))
    assert "making it" not in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------------------------
# Resume


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("stop_at", [1, 30])
def test_a_run_that_was_stopped_and_resumed_is_the_run_that_was_not(
    config, tmp_path, stop_after, optimizer, stop_at, capsys
):
    """50 steps see the data more than once (an epoch is 34 steps); dropout draws random numbers on the way; the
    stopped run evaluates at other steps. Still every weight ends bit for bit the same."""
    options = config(
        max_steps=50,
        batch_tokens=512,
        dropout=0.1,
        optimizer=optimizer,
        out=str(tmp_path / "whole"),
    )
    batches = TrainBatches(Data(options.data), 32, 0, 16)
    assert batches.epochs(30)["words"] < 1 < batches.epochs(50)["words"]
    whole = train.train(options)
    parts = replace(options, out=str(tmp_path / "parts"), eval_interval=7, save_interval=11)
    train.train(parts, stop_after(stop_at))
    assert load_checkpoint(tmp_path / "parts" / "last.pt")["step"] == stop_at
    assert "--resume=True" in capsys.readouterr().out
    resumed = train.train(replace(parts, resume=True, eval_interval=9))
    assert_identical(final_weights(tmp_path / "whole"), final_weights(tmp_path / "parts"))
    assert resumed["val_loss"] == whole["val_loss"]
    steps = [
        json.loads(line)["step"]
        for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()
    ]
    assert steps == sorted(set(steps)) and steps[-1] == 50  # nothing is logged twice


def test_a_run_killed_between_checkpoints_goes_on_from_the_last_one(config, tmp_path, monkeypatch):
    """A kill leaves log rows that are ahead of the checkpoint; the resumed run writes them anew."""
    options = config(max_steps=12, save_interval=5, log_interval=1)
    whole = train.train(replace(options, out=str(tmp_path / "whole")))
    calls, schedule = [], train.set_schedule

    def killed(*args):
        calls.append(1)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return schedule(*args)

    monkeypatch.setattr(train, "set_schedule", killed)
    with pytest.raises(KeyboardInterrupt):
        train.train(options)
    monkeypatch.setattr(train, "set_schedule", schedule)
    with open(tmp_path / "run" / "log.jsonl", "a") as file:
        file.write('{"step": 9, "tok')  # and the kill cut a row in two
    assert train.train(replace(options, resume=True))["val_loss"] == whole["val_loss"]
    steps = [
        json.loads(line)["step"]
        for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    ]
    assert steps == list(range(1, 13))


def test_resuming_a_finished_run_changes_nothing(config, tmp_path):
    first = train.train(config())
    before = final_weights(tmp_path / "run")
    again = train.train(config(resume=True))
    assert_identical(before, final_weights(tmp_path / "run"))
    assert again["val_loss"] == first["val_loss"] and again["steps"] == 4


def test_a_finished_run_can_be_given_a_larger_budget(config, tmp_path):
    train.train(config(max_steps=4))
    assert train.train(config(max_steps=6, resume=True))["steps"] == 6


@pytest.mark.parametrize(
    "changed",
    [
        dict(seed=7),
        dict(batch_tokens=512),
        dict(n_layer=3),
        dict(optimizer="adamw"),
        dict(block_size=16),
    ],
)
def test_what_shapes_a_run_cannot_change_on_the_way(config, changed, tmp_path):
    train.train(config(seed=3))
    before = (tmp_path / "run" / "last.pt").read_bytes()
    name, value = next(iter(changed.items()))
    with pytest.raises(UserError, match=f"{name}={value}"):
        train.train(config(**(dict(seed=3, resume=True) | changed)))
    assert (tmp_path / "run" / "last.pt").read_bytes() == before


def test_a_resumed_run_takes_the_rates_it_is_given_now(config, tmp_path):
    """The optimizers' memory comes from the checkpoint, their settings from the options."""
    train.train(config(max_steps=4))
    before = final_weights(tmp_path / "run")
    still = dict(muon_lr=0.0, embed_lr=0.0, head_lr=0.0, scalar_lr=0.0)
    train.train(config(max_steps=6, resume=True, **still))
    assert_identical(before, final_weights(tmp_path / "run"))


def test_a_damaged_checkpoint_is_passed_over_for_the_previous_one(config, tmp_path, capsys):
    options = config(max_steps=10, save_interval=4)
    train.train(options)
    want = final_weights(tmp_path / "run")
    content = (tmp_path / "run" / "last.pt").read_bytes()
    (tmp_path / "run" / "last.pt").write_bytes(content[: len(content) // 2])
    train.train(replace(options, resume=True))
    printed = capsys.readouterr().out
    assert (
        "passed over" in printed
        and "last.pt" in printed
        and (tmp_path / "run" / "last.damaged").exists()
    )
    assert_identical(want, final_weights(tmp_path / "run"))


def test_resuming_never_deletes_the_only_checkpoint_left(config, tmp_path):
    train.train(config())
    for name in ("last.pt", "previous.pt"):
        (tmp_path / "run" / name).unlink(missing_ok=True)
    assert (
        train.train(config(resume=True, max_steps=6))["steps"] == 6
    )  # from best.pt, which is a checkpoint like any
    for path in (tmp_path / "run").glob("*.pt"):
        path.write_bytes(b"damaged")
    with pytest.raises(UserError, match="no checkpoint.*can be read"):
        train.train(config(resume=True))


def test_a_run_that_died_before_its_first_checkpoint_can_be_started_again(
    config, tmp_path, monkeypatch
):
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(
            train, "set_schedule", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        train.train(config())
    assert train.train(config())["steps"] == 4


@pytest.mark.parametrize(
    "line", ["{garbage}", '{"a": 1}', '{"step": "x"}', "\xff\xfe", '{"step": 2, "loss": NaN}']
)
def test_a_damaged_log_does_not_stop_a_resume(config, tmp_path, line):
    train.train(config())
    with open(tmp_path / "run" / "log.jsonl", "a", encoding="latin-1") as file:
        file.write(line + "\n")
    assert train.train(config(resume=True, max_steps=6))["steps"] == 6


def test_gpt2s_weights_are_not_given_other_tokens(config, tmp_path, data_dir):
    """They come without a tokenizer; a vocabulary of another size cannot be GPT-2's."""
    begin = {"config": asdict(config(vocab_size=300)), "model": {}, "tokenizer": None}
    with pytest.raises(UserError, match="another tokenizer.*--tokenizer=gpt2"):
        train.adopt(config(), begin, Data(data_dir), resuming=False)


# ---------------------------------------------------------------------------------------------------------------------
# Evaluation


def test_evaluation_does_not_depend_on_the_batch_size_and_touches_no_random_number(
    config, data_dir
):
    data, options = Data(data_dir), config(dropout=0.3, vocab_size=257)
    torch.manual_seed(0)
    model = GPT(options)
    state = torch.get_rng_state()
    results = [evaluate(model, data, "val", 32, rows, CPU) for rows in (1, 7, 64)]
    assert (
        results[0]["val_loss"]
        == pytest.approx(results[1]["val_loss"], rel=1e-6)
        == pytest.approx(results[2]["val_loss"], rel=1e-6)
    )
    assert torch.equal(state, torch.get_rng_state()) and model.training


def test_bits_per_byte_are_those_of_the_text(config, data_dir):
    """A model that gives every token probability 1/257 needs log2(257) bits for every byte."""
    data = Data(data_dir)
    model = GPT(config(vocab_size=257))
    torch.nn.init.zeros_(model.lm_head.weight)
    result = evaluate(model, data, "val", 32, 4, CPU)
    assert result["val_loss"] == pytest.approx(math.log(257))
    assert result["val_bpb"] == pytest.approx(math.log2(257))


def test_bits_per_byte_leave_out_what_is_no_text(config, tmp_path):
    """Against a count by hand, with a tokenizer whose tokens have several bytes."""
    from prepare_data import PrepareConfig, prepare
    from tests.conftest import make_documents

    (tmp_path / "s").mkdir()
    for i, text in enumerate(make_documents(30)):
        (tmp_path / "s" / f"{i}.txt").write_text(text)
    folder = prepare(
        PrepareConfig(
            source=(str(tmp_path / "s"),), name="b", tokenizer="bpe:300", val_fraction=0.3
        ),
        tmp_path,
    )
    data = Data(folder)
    model = GPT(config(vocab_size=data.tokenizer.vocab_size))
    nats = bytes_ = 0.0
    for tokens, targets in data.eval_batches("val", 32, 4):
        loss = model.eval()(torch.from_numpy(tokens), torch.from_numpy(targets), reduction="none")
        for value, target in zip(loss.flatten().tolist(), targets.flatten().tolist()):
            if target >= 0 and target != data.tokenizer.end_of_text:
                nats, bytes_ = nats + value, bytes_ + len(data.tokenizer.tokens[target])
    assert bytes_ == data.meta["splits"]["val"]["bytes"]
    assert evaluate(model, data, "val", 32, 4, CPU)["val_bpb"] == pytest.approx(
        nats / bytes_ / math.log(2), rel=1e-5
    )


def test_training_works_without_validation_data(config, tmp_path):
    from prepare_data import PrepareConfig, prepare

    (tmp_path / "text.txt").write_text("so many words " * 500)
    options = PrepareConfig(
        source=(str(tmp_path / "text.txt"),),
        name="n",
        tokenizer="byte",
        val_fraction=0,
        test_fraction=0,
    )
    summary = train.train(config(data=str(prepare(options, tmp_path)), eval_interval=2))
    assert "val_loss" not in summary and summary["steps"] == 4


def test_eval_only_evaluates_and_writes_nothing(config, tmp_path, capsys):
    first = train.train(config())
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}
    for options in (
        config(eval_only=True, resume=True),
        config(eval_only=True, init_from=str(tmp_path / "run")),
    ):
        assert train.train(options)["val_loss"] == first["val_loss"]
    assert f"val_loss: {first['val_loss']:.4f}" in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()} == before
    elsewhere = config(eval_only=True, init_from=str(tmp_path / "run"), out=str(tmp_path / "other"))
    train.train(elsewhere)
    assert not (tmp_path / "other").exists()


def test_best_is_the_checkpoint_of_the_lowest_validation_loss(config, tmp_path, monkeypatch):
    losses = iter([3.0, 2.0, 2.5, 4.0])
    monkeypatch.setattr(train, "evaluate", lambda *args: {"val_loss": next(losses), "val_bpb": 1.0})
    train.train(config(max_steps=4, eval_interval=1))
    best = load_checkpoint(tmp_path / "run" / "best.pt")
    assert best["step"] == 2 and best["best"] == 2.0
    assert load_checkpoint(tmp_path / "run" / "last.pt")["step"] == 4


# ---------------------------------------------------------------------------------------------------------------------
# Weights from elsewhere


def test_fine_tuning_begins_with_the_checkpoints_weights_and_shape(config, tmp_path):
    train.train(config(n_layer=3, value_embeds=2))
    small = config(
        out=str(tmp_path / "fine"),
        init_from=str(tmp_path / "run"),
        max_steps=1,
        dropout=0.1,
        block_size=16,
        muon_lr=0.0,
        embed_lr=0.0,
        head_lr=0.0,
        scalar_lr=0.0,
        n_layer=12,
        value_embeds=3,
    )
    train.train(
        small
    )  # n_layer=12 and value_embeds=3 are the defaults: not asked for, so the checkpoint's are taken
    assert_identical(final_weights(tmp_path / "run"), final_weights(tmp_path / "fine"))
    saved = load_checkpoint(tmp_path / "fine" / "last.pt")["config"]
    assert (saved["n_layer"], saved["block_size"], saved["dropout"]) == (3, 16, 0.1)
    with pytest.raises(UserError, match="n_layer=5.*3"):
        train.train(replace(small, n_layer=5, overwrite=True))


def test_gpt2s_weights_can_be_fine_tuned(config, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    published = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=257, n_positions=32, n_embd=32, n_layer=2, n_head=2)
    )
    published.save_pretrained(tmp_path / "gpt2_folder")
    defaults = {
        name: getattr(train.TrainConfig, name)
        for name in ("n_layer", "n_head", "n_embd", "value_embeds")
    }
    options = config(
        init_from=str(tmp_path / "gpt2_folder"),
        optimizer="adamw",
        learning_rate=0.0,
        max_steps=1,
        **defaults,
    )
    train.train(replace(options, block_size=16, batch_tokens=64))
    ours = final_weights(tmp_path / "run")
    theirs = published.state_dict()
    assert torch.equal(ours["wte.weight"][:257], theirs["transformer.wte.weight"])
    assert torch.equal(ours["wpe.weight"], theirs["transformer.wpe.weight"][:16])
    assert torch.equal(ours["h.1.mlp.c_fc.weight"], theirs["transformer.h.1.mlp.c_fc.weight"].T)


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints


def test_a_checkpoint_is_plain_and_says_everything(config, tmp_path):
    options = config()
    train.train(options)
    checkpoint = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert checkpoint["step"] == 4 and checkpoint["tokens"] == 4 * 256 and checkpoint["seconds"] > 0
    assert checkpoint["data"] == Data(options.data).fingerprint
    assert checkpoint["config"] == asdict(replace(options, vocab_size=257))
    assert (
        load_weights(str(tmp_path / "run"))["tokenizer"] == Data(options.data).tokenizer.to_json()
    )
    assert not list((tmp_path / "run").glob("*.tmp"))


def test_a_malicious_checkpoint_is_never_executed(config, tmp_path):
    class Malice:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'executed'}",)

    torch.save({"format": 1, "model": Malice()}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match="evil.pt.*not used"):
        train.train(config(init_from=str(tmp_path / "evil.pt")))
    assert not (tmp_path / "executed").exists() and not (tmp_path / "run").exists()


@pytest.mark.parametrize("still_full", [False, True])
def test_a_full_disk_costs_no_checkpoint_and_no_training(
    config, tmp_path, monkeypatch, capsys, still_full
):
    """It is said, what was saved before stays whole, and the next save tries again; the last one has to succeed."""
    train.train(config())
    before, save, tries = (tmp_path / "run" / "last.pt").read_bytes(), torch.save, []

    def full(checkpoint, file):
        file.write(b"half")
        tries.append(checkpoint["step"])
        if still_full or checkpoint["step"] < 8:
            assert (tmp_path / "run" / "last.pt").read_bytes() == before
            raise OSError(28, "No space left on device")
        file.seek(0)
        save(checkpoint, file)

    monkeypatch.setattr(train.torch, "save", full)
    options = config(resume=True, max_steps=8, save_interval=2, overwrite=False)
    if still_full:
        with pytest.raises(UserError, match="the last state, of step 8, could not be written"):
            train.train(options)
        assert (tmp_path / "run" / "last.pt").read_bytes() == before
    else:
        train.train(options)
        assert load_checkpoint(tmp_path / "run" / "last.pt")["step"] == 8
    assert {6, 8} <= set(tries)
    assert "last.pt' was NOT written (No space left on device)" in capsys.readouterr().out
    assert not list((tmp_path / "run").glob("*.tmp"))


# ---------------------------------------------------------------------------------------------------------------------
# When things go wrong, and what the machine offers


def test_the_first_loss_that_is_not_finite_ends_the_run(config, tmp_path, monkeypatch):
    options = config(max_steps=20, save_interval=5, log_interval=4)
    forward, calls = GPT.forward, []

    def poisoned(self, *args, **kwargs):
        calls.append(1)
        return forward(self, *args, **kwargs) * (math.nan if len(calls) == 7 else 1)

    monkeypatch.setattr(GPT, "forward", poisoned)
    with pytest.raises(UserError, match="the loss is nan at step 6.*learning rate"):
        train.train(options)
    checkpoint = load_checkpoint(tmp_path / "run" / "last.pt")
    assert checkpoint["step"] == 5 and all(w.isfinite().all() for w in checkpoint["model"].values())


def test_weights_that_are_not_finite_are_never_saved(config, tmp_path, monkeypatch):
    """A gradient can overflow in a step whose loss was still good."""
    options = config(max_steps=20, save_interval=5, log_interval=5)
    step, calls = train.Muon.step, []

    def overflowing(self):
        step(self)
        calls.append(1)
        if len(calls) == 10:
            self.param_groups[0]["params"][0].data[0, 0] = math.inf

    monkeypatch.setattr(train.Muon, "step", overflowing)
    with pytest.raises(UserError, match="no longer finite after step 10"):
        train.train(options)
    assert load_checkpoint(tmp_path / "run" / "last.pt")["step"] == 5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_with_a_checkpoint_and_the_way_to_go_on(config, tmp_path, number):
    (tmp_path / "recipe.py").write_text(
        f"data = {config().data!r}\nblock_size = 32\nn_layer = 2\nn_head = 2\nn_embd = 32\n"
        "value_embeds = 1\nbatch_tokens = 256\nmax_steps = 100_000\nlog_interval = 5\ndevice = 'cpu'\n"
    )
    run = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), "recipe.py"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    log, deadline = tmp_path / "out" / "recipe" / "log.jsonl", time.time() + 60
    while not (log.is_file() and log.read_text()) and time.time() < deadline:
        time.sleep(0.1)
    run.send_signal(number)
    try:
        out, err = run.communicate(timeout=60)
    finally:
        run.kill()
    assert run.returncode == console.RESUMABLE == 75 and "Traceback" not in err
    assert "--resume=True" in out
    assert load_checkpoint(tmp_path / "out" / "recipe" / "last.pt")["step"] > 0


def test_compiling_happens_before_the_clock_starts_and_once_for_each_use(config, monkeypatch):
    """One graph for training, made by the warm-up, and one for evaluation; a batch must never ask for another."""
    graphs, compile = [], torch.compile

    def counted(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(
        torch, "compile", lambda model, **options: compile(model, backend=counted, **options)
    )
    train.train(config(compile=True, max_steps=3, eval_interval=1, dropout=0.1))
    assert len(graphs) == 2


def test_without_a_compiler_training_goes_on_without_compiling(config, monkeypatch, capsys):
    def no_compiler(model, **options):
        def fail(*args, **kwargs):
            raise RuntimeError("Failed to find C compiler")

        return fail

    monkeypatch.setattr(torch, "compile", no_compiler)
    assert train.train(config(compile=True))["steps"] == 4
    assert "torch.compile does not work here" in capsys.readouterr().out


def test_float16_is_scaled_so_that_gradients_do_not_vanish(config, tmp_path, stop_after):
    """A scaler is needed where bfloat16 is missing; on the CPU the same path can be tried."""
    train.train(config(dtype="float16", log_interval=1))
    assert load_checkpoint(tmp_path / "run" / "last.pt")["scaler"]["scale"] > 1
    whole = final_weights(tmp_path / "run")
    train.train(config(dtype="float16", out=str(tmp_path / "parts")), stop_after(2))
    train.train(config(dtype="float16", out=str(tmp_path / "parts"), resume=True))
    assert_identical(whole, final_weights(tmp_path / "parts"))


def test_wandb_offline_gets_the_rows(config, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    train.train(config(wandb=True))
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))


def test_the_end_of_a_run_writes_text_if_asked(config, capsys):
    train.train(config(sample_prompt="the model"))
    assert "---\nthe model" in capsys.readouterr().out


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_trains_compiled_in_bfloat16_and_resumes(config, tmp_path, stop_after):
    options = config(
        device="cuda",
        dtype="auto",
        max_steps=20,
        block_size=64,
        batch_tokens=1024,
        window_pattern="SL",
        window_size=32,
    )
    summary = train.train(replace(options, out=str(tmp_path / "whole")))
    train.train(options, stop_after(7))
    resumed = train.train(replace(options, resume=True))
    assert resumed["val_loss"] == pytest.approx(summary["val_loss"], abs=0.02)
    assert load_checkpoint(tmp_path / "run" / "last.pt")["config"]["dtype"] == "auto"
