"""Diagnosing a run: it changes nothing, repeats the run exactly, and names what is broken."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

import model
import train
from nanoloop import checkpoint
from nanoloop.attention import attend
from research.__main__ import main
from research.insight.diagnose import Case, unusual
from research.insight.signals import Replay
from tests.conftest import SMALL


@pytest.fixture(scope="module")
def run(data_dir, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    train.train(train.TrainConfig(**SMALL, data=str(data_dir), out=str(out), max_steps=6))
    return out


def content(folder: Path) -> dict:
    return {path.name: hashlib.sha256(path.read_bytes()).digest() for path in folder.iterdir()}


def test_a_healthy_run_is_diagnosed_and_its_files_stay(run, command, tmp_path):
    before = content(run)
    printed = command(main, "diagnose", run, "--json=True")
    assert printed.code == 0 and content(run) == before
    report = json.loads(printed.out)
    assert set(report["forks"]) == {"as it is", "lower rates", "higher rates"}
    assert all("rates" in finding for finding in report["findings"])  # of six steps
    file = tmp_path / "healthy.json"
    file.write_text(printed.out)
    page = command(main, "diagnose", run, f"--healthy={file}", "--forks=False")
    assert page.code == 0 and "update_ratio h.0.attn.c_q.weight" in page.out


def test_a_replay_repeats_the_run_bit_for_bit(run):
    case = Case(str(run))
    replay = Replay(case.config, case.data)
    while replay.step < case.steps:
        replay.take_step(replay.step / case.steps)
    weights = checkpoint.load(run / "last.pt")["model"]
    for name, weight in replay.model.state_dict().items():
        assert torch.equal(weight, weights[name]), name


def altered(step, change):
    """Return train_step with other batches: change(tokens, targets)."""

    def take(network, optimizers, scaler, batches, *rest):
        def read(*numbers):
            return change(*batches(*numbers))

        read.grad_accum = batches.grad_accum
        return step(network, optimizers, scaler, read, *rest)

    return take


FIRST = torch.zeros(8, 32, dtype=torch.int64).numpy()


@pytest.mark.parametrize(
    "change, finding",
    [
        (lambda tokens, targets: (tokens, tokens), "targets wrong: they are 0 tokens ahead"),
        (lambda tokens, targets: (tokens[:, :-1], targets[:, 1:]), "targets wrong: they are 2"),
        (lambda tokens, targets: (FIRST, FIRST), "batch repeated"),
    ],
)
def test_wrong_batches_are_named(run, monkeypatch, change, finding):
    monkeypatch.setattr(train, "train_step", altered(train.train_step, change))
    assert finding in " ".join(Case(str(run)).broken_rules())


def test_a_leaking_mask_is_named(run, monkeypatch):
    def leaks(q, k, v, *rest):
        return attend(q, k, v, *rest) + 10 * v.mean(2, keepdim=True)

    monkeypatch.setattr(model, "attend", leaks)
    assert "future seen" in " ".join(Case(str(run)).broken_rules())


def test_dropout_in_evaluation_is_named(run, monkeypatch):
    monkeypatch.setattr(train.GPT, "eval", lambda self: self)
    [finding] = Case(str(run)).broken_rules()
    assert finding.startswith("dropout in evaluation")


def test_a_frozen_layer_is_named(run, monkeypatch):
    def frozen(network, config):
        for p in network.h[1].parameters():
            p.register_hook(torch.zeros_like)
        return build(network, config)

    build = train.make_optimizers
    monkeypatch.setattr(train, "make_optimizers", frozen)
    findings = Case(str(run)).broken_rules()
    assert any(f.startswith("frozen") and "h.1.mlp.c_fc.weight" in f for f in findings)


def test_a_signal_outside_its_band_is_named():
    healthy = [{"start_update wte": x} for x in (1.0, 1.1, 0.9)]
    assert unusual({"start_update wte": 1.4}, healthy) == []
    [finding] = unusual({"start_update wte": 30.0}, healthy)
    assert "start_update wte = 30, not" in finding and "learning rates" in finding


def test_what_cannot_be_diagnosed_is_refused_with_the_next_step(run, command, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    refused = command(main, "diagnose", tmp_path)
    assert refused.code == 2 and "holds no run with a checkpoint: type" in refused.err
    state = checkpoint.load(run / "last.pt")
    for key, value, message in (
        ("data", "0" * 16, "give the run's data"),
        ("config", state["config"] | {"init_from": "gpt2"}, "diagnose a run from step 0"),
    ):
        torch.save(state | {key: value}, tmp_path / "last.pt")
        refused = command(main, "diagnose", tmp_path)
        assert refused.code == 2 and message in refused.err
    refused = command(main, "diagnose", run, "--healthy=nothing.json")
    assert refused.code == 2 and "name files of" in refused.err
