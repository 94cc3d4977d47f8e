"""Diagnosing a run: it changes nothing, repeats the run exactly, and names what is broken."""

import copy
import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.distributions import Categorical

import model
import train
from nanoloop import checkpoint
from nanoloop.attention import attend
from nanoloop.data import TrainBatches
from nanoloop.options import read_options
from research.__main__ import main
from research.insight import diagnose
from research.insight.diagnose import Case, summary, unusual
from research.insight.signals import (
    PASSES,
    Replay,
    activations,
    attention_figures,
    noise_scale,
)
from tests import models
from tests.conftest import SMALL


@pytest.fixture(scope="module")
def run(data_dir, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    train.train(train.TrainConfig(**SMALL, data=str(data_dir), out=str(out), max_steps=6))
    return out


@pytest.fixture(scope="module")
def case(run) -> Case:
    return Case(str(run))


def content(folder: Path) -> dict:
    return {path.name: hashlib.sha256(path.read_bytes()).digest() for path in folder.iterdir()}


def test_a_healthy_run_is_diagnosed_and_its_files_stay(run, command, tmp_path):
    before = content(run)
    printed = command(main, "diagnose", run, "--json=True")
    assert printed.code == 0 and content(run) == before
    report = json.loads(printed.out)
    forks = {"as it is", "lower rates", "higher rates", "half the batch", "twice the batch"}
    assert set(report["forks"]) == forks
    # Six steps are too few to judge rates, and early gradients have little noise.
    known = ("better", "batch may be too large")
    assert all(any(word in finding for word in known) for finding in report["findings"])
    assert len(summary(report)) <= 10
    file = tmp_path / "healthy.json"
    file.write_text(printed.out)
    healthy = f"--healthy={file},{run}"  # a report and a run
    page = command(main, "diagnose", run, healthy, "--forks=False")
    assert page.code == 0 and "update_ratio h.0.attn.c_q.weight" in page.out
    assert " findings, " in page.out and "2 healthy runs" in page.out
    assert "start_update" not in page.out.partition(" findings, ")[0]


def test_a_replay_repeats_the_run_bit_for_bit(run, case):
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
        (lambda tokens, targets: (tokens // 2, targets // 2), "text changed"),
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


def test_training_on_val_is_named(case):
    assert case.broken_rules() == []
    data = copy.copy(case.data)
    data.splits = data.splits | {"train": data.splits["val"]}
    data.sources = {"words": (1.0, data)}
    changed = copy.copy(case)
    changed.first = copy.copy(case.first)
    changed.first.batches = TrainBatches(data, 32, 1337, 8)
    assert "trained on val: it holds 8 of the first 8 sequences" in changed.broken_rules()


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
    assert "start_update wte = 30, not" in finding and "suspect the rates" in finding
    [finding] = unusual({"attention_logit h.0": 101.0, "entropy h.0": 0.8}, [])
    assert finding.startswith("attention_logit h.0 = 101, not 0 to 100")
    assert unusual({"dead h.0": float("nan")}, [])


@pytest.mark.parametrize("name", ["modern", "documents", "grouped_query", "swiglu_tied"])
def test_activations_are_those_of_a_naive_pass(name):
    """Attention from its definition; the rest from the tensors that hooks return."""
    network = models.random_model(models.VARIANTS[name])
    tokens = models.random_tokens(3, 16)
    figures = activations(network, tokens)
    found = []
    network.h[0].register_forward_hook(lambda *args: found.append(args[-1]))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with torch.no_grad():
        logits = network(tokens)
    assert all(torch.equal(before[key], x) for key, x in network.state_dict().items())
    x = found[0].flatten()
    assert figures["rms h.0"] == pytest.approx(x.norm().item() / len(x) ** 0.5)
    assert figures["kurtosis h.0"] == pytest.approx(((x**4).mean() / (x**2).mean() ** 2).item())
    assert figures["log_z head"] == pytest.approx(
        logits.exp().sum(-1).log().mean().item(), rel=1e-4
    )
    assert 1 <= figures["rank head"] <= 32


def test_entropy_and_logit_are_those_of_a_naive_attention():
    q = torch.randn(2, 4, 6, 8)
    k = torch.randn(2, 2, 6, 8)
    documents = torch.tensor([[0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]])
    entropies = []
    logs = []
    largest = 0.0
    for b in range(2):
        for t in range(6):
            keys = [s for s in range(t + 1) if t - s < 3 and documents[b, s] == documents[b, t]]
            logs.append(math.log(len(keys)))
            for head in range(4):
                scores = 0.5 * k[b, head // 2, keys] @ q[b, head, t]
                entropies.append(Categorical(logits=scores).entropy())
                largest = max(largest, scores.abs().max().item())
    entropy, logit = attention_figures(q, k, k, 3, 0.5, 0.0, documents)
    assert entropy.item() == pytest.approx(sum(entropies).item() / 4 / sum(logs), rel=1e-4)
    assert logit.item() == pytest.approx(largest, rel=1e-5)


def test_planted_activations_are_found():
    network = models.random_model(models.VARIANTS["layer_norm_gelu"])
    tokens = models.random_tokens(2, 16)
    with torch.no_grad():
        network.h[1].mlp.c_fc.bias[:96] = -100  # of 128 units
        network.h[1].mlp.c_fc.bias[96:] = 100
        network.h[2].attn.c_q.weight.mul_(1000)
    figures = activations(network, tokens)
    assert figures["dead h.1"] == 0.75 and figures["saturated h.1"] == 0.25
    assert figures["dead h.0"] == 0
    named = " ".join(unusual(figures, []))
    assert "dead h.1" in named and "attention_logit h.2" in named and "entropy h.2" in named


class Line(torch.nn.Module):
    """A model whose gradient is known: that of w · x, where x are normal numbers around 1."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(1000))

    def forward(self, tokens, targets):
        return (self.w * (1 + 20 * self.noise(tokens))).sum(-1).mean()

    def noise(self, tokens):
        rng = torch.Generator().manual_seed(int(tokens.sum()))
        return torch.randn(*tokens.shape, 1000, generator=rng)


def test_the_noise_scale_of_a_known_gradient():
    """The noise of a token is 20² × 1000, the square of the true gradient is 1000."""
    read = []

    def batches(step):
        read.append(step)
        return np.random.default_rng(step).integers(0, 10**6, (2, 9, 16))

    batches.batch_size = 9
    replay = SimpleNamespace(model=Line(), batches=batches, step=3, device="cpu")
    scale, half = noise_scale(replay)
    assert read == list(range(3, 3 + PASSES))
    assert abs(scale - 400) < half < 200
    batches.batch_size = 1
    assert math.isnan(noise_scale(replay)[0])


@pytest.mark.parametrize(
    "scale, half, is_named", [(100, 20, True), (100, 40, False), (9, 10, False)]
)
def test_a_batch_beyond_the_noise_scale_may_be_too_large(run, monkeypatch, scale, half, is_named):
    """The run's batch is 256 tokens."""
    monkeypatch.setattr(diagnose, "noise_scale", lambda replay: (scale, half))
    report = diagnose.diagnose(diagnose.DiagnoseOptions(str(run), forks=False))
    line = f"batch may be too large: the gradient noise scale is {scale} ± {half} tokens"
    assert any(text.startswith(line) for text in report["findings"]) == is_named
    assert report["signals"]["noise_scale tokens"] == scale


def test_options_of_a_fork_can_be_pasted(case):
    """No fork has a batch that the run's passes do not divide."""
    case = copy.copy(case)
    case.config = replace(case.config, micro_batch_size=8)
    forks = diagnose.measure_forks(case)
    assert forks["twice the batch"]["options"] == "--batch_tokens=512 --max_steps=3"
    assert "half the batch" not in forks
    for fork in forks.values():
        read_options(train.TrainConfig, ["--max_steps=6", *fork["options"].split()], "train.py")


def test_measuring_changes_no_weight(case):
    replays = [Replay(case.exact, case.data) for _ in range(2)]
    for measured, replay in enumerate(replays):
        if measured:
            activations(replay.model, case.held_out[0])
        replay.take_step(0.0)
    first, second = (replay.model.state_dict() for replay in replays)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_fork_reads_the_same_text_in_batches_of_another_size(case, factor):
    base = Replay(case.config, case.data)
    base.step = 4
    branch = base.fork(batch_tokens=int(256 * factor))
    expected = [base.batches(step)[0] for step in (4, 5)]
    read = [
        branch.batches(branch.step + step, micro_step)[0]
        for step in range(int(2 / factor))
        for micro_step in range(branch.batches.grad_accum)
    ]
    assert np.array_equal(np.concatenate(read), np.concatenate(expected))


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
    assert refused.code == 2 and "name runs, or files of" in refused.err
