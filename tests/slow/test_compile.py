"""Compiled and recorded: one graph for each use, in training, optimizing and decoding.

The graphs are counted and run as they are, without a compiler.
"""

from dataclasses import replace

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

import train
from nanoloop import device as device_module
from nanoloop import muon
from nanoloop.generate import KVCache
from tests.models import CPU, SMALL, VARIANTS, random_model, random_tokens
from tests.test_loss import loss_and_grads


@pytest.fixture
def graphs(monkeypatch) -> list:
    """Collect the graphs that torch.compile makes."""
    compile = torch.compile
    found = []

    def backend(graph, example):
        found.append(graph)
        return graph.forward

    def compile_with_backend(function, **options):
        return compile(function, backend=backend, **options)

    monkeypatch.setattr(torch, "compile", compile_with_backend)
    torch.compiler.reset()
    return found


def test_compiling_happens_before_the_clock_starts_and_once_for_each_use(config, graphs):
    """One graph for training, in the warm-up, and one for evaluation; no batch needs another."""
    train.train(config(compile=True, max_steps=3, eval_interval=1, dropout=0.1))
    assert len(graphs) == 2


def test_an_optimizer_step_is_compiled_once_for_each_shape(graphs, monkeypatch):
    """The rate changes in every step; it is no part of what is compiled."""
    devices = set()
    monkeypatch.setattr(device_module, "COMPILED_DEVICES", devices)
    monkeypatch.setattr(
        muon, "orthogonalize", device_module.compiled(muon.orthogonalize.__wrapped__)
    )
    torch.manual_seed(0)
    shapes = [(8, 8), (32, 8), (8, 8), (8, 32)]
    params = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    plain = [torch.nn.Parameter(p.detach().clone()) for p in params]
    compiled_muon = muon.Muon(params, lr=0.1)
    plain_muon = muon.Muon(plain, lr=0.1)
    for step in range(4):
        for p, q in zip(params, plain):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        compiled_muon.param_groups[0]["lr"] = plain_muon.param_groups[0]["lr"] = 0.1 / (step + 1)
        devices.add("cpu")
        compiled_muon.step()
        devices.clear()
        plain_muon.step()
    assert len(graphs) == 3
    for p, q in zip(params, plain):
        torch.testing.assert_close(p, q)


def test_a_compiled_step_of_decoding_is_compiled_once(graphs):
    """With the fixed shapes that a GPU uses: one graph for the prompt, one for all steps."""
    model = random_model(SMALL)
    tokens = random_tokens(2, 16)
    full = model(tokens)
    model.compile(dynamic=False)
    cache = KVCache(model.config, 2, torch.float32, CPU, has_fixed_shapes=True)
    with torch.no_grad():
        for _ in range(2):
            cache.clear()
            cache.decode(model, tokens[:, :5])
            for t in range(5, 16):
                logits = cache.decode(model, tokens[:, t : t + 1])
                torch.testing.assert_close(logits, full[:, t], atol=1e-4, rtol=1e-4)
    assert len(graphs) == 2


@pytest.mark.parametrize("name", VARIANTS)
def test_a_recorded_step_gives_the_logits_of_a_full_pass(name):
    """A CUDA graph repeats the operations of one step without its Python code.

    Here they are recorded on a CPU. No number that Python knew may have become part of them.
    """
    model = random_model(VARIANTS[name])
    tokens = random_tokens(2, 16).clamp(min=1)
    full = model(tokens)
    cache = KVCache(model.config, 2, torch.float32, CPU, has_fixed_shapes=True)
    with torch.no_grad():
        record = make_fx(lambda new: cache.decode(model, new))(tokens[:, :1])
        cache.clear()
        cache.decode(model, tokens[:, :5])
        for t in range(5, 16):
            logits = record(tokens[:, t : t + 1])
            torch.testing.assert_close(logits, full[:, t], atol=1e-4, rtol=1e-4)


def test_a_compiled_loss_in_chunks_is_one_graph_and_the_same(monkeypatch):
    monkeypatch.setattr("nanoloop.loss.MAX_LOGITS", 1000)
    model = random_model(replace(SMALL, n_layer=1, value_embeds=0))
    tokens = random_tokens(2, 16)
    expected = loss_and_grads(model, tokens, tokens.clone())
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for value, grad in zip(loss_and_grads(compiled, tokens, tokens.clone()), expected):
        torch.testing.assert_close(value, grad)
