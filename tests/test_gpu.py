"""What a GPU needs to be kept busy: nothing waits, nothing is overwritten too early, the fastest kernels are found.

The logic is shown here without one; the tests at the end, and those named gpu in other files, need one and skip
themselves.
"""

import re
import shlex
import weakref
from dataclasses import replace
from types import SimpleNamespace

import console
import device as device_module
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import bench
import prepare_data
import train
from model import GPT, GPTConfig
from nanoloop.data import TrainBatches, open_data
from tests import measure
from tests.conftest import ROOT

CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def make_run(config: train.TrainConfig) -> tuple[train.Run, TrainBatches]:
    data, device = open_data(config.data), torch.device(config.device)
    config = replace(
        config, vocab_size=data.tokenizer.vocab_size, document_token=data.tokenizer.end_of_text
    )
    rows, grad_accum = config.split_batch()
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return train.Run(config, data, device, dtype), TrainBatches(
        data, config.block_size, 1, rows, grad_accum
    )


# ---------------------------------------------------------------------------------------------------------------------
# The logic, on a CPU


@pytest.mark.parametrize(
    "options", [{}, dict(grad_clip=1.0, optimizer="adamw"), dict(bigram_rows=64, dropout=0.1)]
)
def test_a_step_asks_the_device_for_no_number(config, options):
    """Each such question, .item() or `if tensor:`, makes the program wait until all that it has ordered is done."""
    run, batches = make_run(config(**options))
    asked = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            asked.append(str(function))
            return function(*args, **(kwargs or {}))

    run.take_step(run.model, batches)  # optimizers make their state in the first step
    with Watch():
        run.take_step(run.model, batches)
        assert any("mm" in name for name in asked)
        assert not [name for name in asked if "_local_scalar_dense" in name or "nonzero" in name]
        bool(run.take_step(run.model, batches) > 0)  # and here is one
    assert [name for name in asked if "_local_scalar_dense" in name]


def test_a_pinned_buffer_is_filled_again_only_when_it_has_been_copied(monkeypatch):
    """With copies that take place as late as they may: when the event behind them is waited for."""
    late = []

    class Event:
        copies = ()

        def record(self):
            self.copies = late[:]
            late.clear()

        def synchronize(self):
            for copy in self.copies:
                copy()

    class Buffer:
        def __init__(self, like, pin_memory):
            assert pin_memory
            self.content = torch.empty(like.shape, dtype=like.dtype)
            made.append(self)

        def copy_(self, tensor):
            self.content.copy_(tensor)
            return self

        def to(self, device, non_blocking):
            assert non_blocking
            there = torch.zeros_like(self.content)
            late.append(lambda: there.copy_(self.content))
            return there

    made, events = [], []
    monkeypatch.setattr(device_module, "PINNED", {})
    monkeypatch.setattr(torch, "empty_like", Buffer)
    monkeypatch.setattr(torch.cuda, "Event", lambda: events.append(Event()) or events[-1])
    arrays = [np.full((2, 3 + i % 2), i) for i in range(20)]  # of two shapes
    arrived = [device_module.to_device(array, SimpleNamespace(type="cuda")) for array in arrays]
    assert len(made) == 8  # four for each shape, and no more
    for event in events:
        event.synchronize()
    assert [t.tolist() for t in arrived] == [array.tolist() for array in arrays]


def test_on_a_cpu_an_array_is_not_even_copied():
    array = np.arange(6)
    assert device_module.to_device(array, CPU).data_ptr() == array.ctypes.data


def test_a_function_is_compiled_where_the_model_was_and_nowhere_else(monkeypatch):
    made = []
    monkeypatch.setattr(
        torch,
        "compile",
        lambda function, dynamic: made.append(function) or (lambda x: -function(x)),
    )
    monkeypatch.setattr(device_module, "COMPILED_TOO", set())
    double = device_module.compiled(lambda x: 2 * x)
    assert double(torch.ones(())) == 2 and not made
    device_module.COMPILED_TOO.add("cpu")
    assert double(torch.ones(())) == double(torch.ones(())) == -2 and len(made) == 1


def test_a_compiled_optimizer_step_is_compiled_once_for_each_shape(monkeypatch):
    """The rate changes in every step; it is no part of what is compiled."""
    graphs = []
    compile = torch.compile
    counted = lambda graph, example: graphs.append(graph) or graph.forward  # noqa: E731
    monkeypatch.setattr(
        torch, "compile", lambda function, **options: compile(function, backend=counted, **options)
    )
    monkeypatch.setattr(device_module, "COMPILED_TOO", {"cpu"})
    monkeypatch.setattr(
        train, "orthogonalize", device_module.compiled(train.orthogonalize.__wrapped__)
    )
    params = [
        torch.nn.Parameter(torch.randn(shape)) for shape in [(8, 8), (32, 8), (8, 8), (8, 32)]
    ]
    plain = [torch.nn.Parameter(p.detach().clone()) for p in params]
    optimizers = train.Muon(params, lr=0.1), train.Muon(plain, lr=0.1)
    for step in range(4):
        for p, q in zip(params, plain):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        for optimizer, kinds in zip(optimizers, ({"cpu"}, set())):
            monkeypatch.setattr(device_module, "COMPILED_TOO", kinds)
            optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
            optimizer.step()
    assert len(graphs) == 3
    for p, q in zip(params, plain):
        torch.testing.assert_close(p, q)


@pytest.fixture
def attention_flags():
    backends = torch.backends.cuda
    before = backends.cudnn_sdp_enabled(), backends.flash_sdp_enabled()
    yield lambda: (backends.cudnn_sdp_enabled(), backends.flash_sdp_enabled())
    backends.enable_cudnn_sdp(before[0]), backends.enable_flash_sdp(before[1])


@pytest.mark.parametrize(
    "times, cudnn, flash",
    [
        ({"CUDNN": 1.0, "FLASH": 1.5, "EFFICIENT": 2.0}, True, False),
        ({"CUDNN": 1.5, "FLASH": 1.0, "EFFICIENT": 2.0}, False, True),
        ({"EFFICIENT": 2.0}, False, False),
        ({}, False, False),
    ],
)
def test_the_fastest_attention_is_the_one_that_is_used(
    times, cudnn, flash, attention_flags, monkeypatch, capsys
):
    monkeypatch.setattr(device_module, "time_attention", lambda *shape: times)
    device_module.choose_attention(None, 1, CPU, torch.float32)
    assert attention_flags() == (cudnn, flash)
    assert all(
        f"{name} {ms:.2f}" in capsys.readouterr().out for name, ms in list(times.items())[:1]
    )


def test_flash_attention_3_is_switched_on_if_it_is_the_fastest(attention_flags, monkeypatch):
    asked = []
    monkeypatch.setattr(device_module, "time_attention", lambda *shape: {"FLASH": 2.0, "FA3": 1.0})
    monkeypatch.setattr(torch.nn.attention, "activate_flash_attention_impl", asked.append)
    device_module.choose_attention(None, 1, CPU, torch.float32)
    assert asked == ["FA3"] and attention_flags() == (False, True)


def test_kernels_that_are_not_there_are_not_timed(monkeypatch):
    """A CPU has its own FLASH and none of the others."""
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: None)
    for kv_heads in (2, 1):
        config = GPTConfig(
            vocab_size=8, n_head=2, n_kv_head=kv_heads, n_embd=16, block_size=8, value_embeds=0
        )
        times = device_module.time_attention(config, 2, CPU, torch.float32)
        assert set(times) == {"FLASH"} and times["FLASH"] > 0


def test_garbage_is_collected_at_evaluations_alone(config, command, monkeypatch):
    """What is left to Python's collector is what refers to itself: a list that holds itself, one a step."""

    class Knot:
        def __init__(self):
            self.self = self

    plain_step, left, knots = train.Run.take_step, [], []

    def step(run, *rest):
        knots.append(weakref.ref(Knot()))
        left.append(sum(knot() is not None for knot in knots))
        return plain_step(run, *rest)

    monkeypatch.setattr(train.Run, "take_step", step)
    options = [
        f"--{key}={value}"
        for key, value in vars(config(max_steps=6, eval_interval=3, n_layer=1)).items()
    ]
    done = command(train.main, *options)
    assert done.code == 0, done.err
    assert left == [1, 2, 3, 1, 2, 3]


def test_what_a_run_does_beside_its_steps_is_measured(config, capsys):
    before = train.Run.take_step, train.Run.save, TrainBatches.__call__
    shares = measure.overheads(config(save_interval=1000, eval_interval=500), steps=12)
    assert set(shares) == {"data", "write", "validate", "save"} and all(
        0 < share < 1 for share in shares.values()
    )
    assert (train.Run.take_step, train.Run.save, TrainBatches.__call__) == before
    assert "every 1000 steps" in capsys.readouterr().out


def test_a_compiled_model_writes_the_same_text_without_compiling_again(monkeypatch):
    """What bench.py --sample measures on CUDA: a step, a beginning and a beginning anew are compiled once each."""
    config = GPTConfig(
        block_size=16, vocab_size=50, n_layer=2, n_head=2, n_embd=32, value_embeds=1, bigram_rows=37
    )
    model, graphs = GPT(config).eval(), []
    expected = [model.generate([[7], [3, 1]], 30, temperature=0) for _ in range(2)]
    trials = lambda step, arguments: [step(*arguments) for _ in range(3)] and step  # noqa: E731
    monkeypatch.setattr(torch.cpu, "make_graphed_callables", trials, raising=False)
    model.compile(
        dynamic=False, backend=lambda graph, example: graphs.append(graph) or graph.forward
    )
    assert [model.generate([[7], [3, 1]], 30, temperature=0) for _ in range(2)] == expected
    assert len(graphs) == 3


def test_the_commands_for_whoever_has_a_gpu_are_understood():
    """Each of the list in BENCHMARKS.md, and every ablation of the loop."""
    text = (ROOT / "BENCHMARKS.md").read_text().partition("**On a GPU")[2].partition("\n## ")[0]
    text = text.replace("LOSS", "3.3").replace("\\\n", " ")
    changes = re.search(r"for change in (.*?); do", text).group(1).replace("$seed", "1").split()
    lines = [
        line.strip()
        for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
        for line in block.splitlines()
    ]
    lines = [
        line.replace("$seed", "1").replace("$change", change)
        for line in lines
        for change in changes
    ]
    seen = set()
    for line in sorted(set(line for line in lines if line.startswith("python"))):
        _, program, *words = shlex.split(line, comments=True)
        seen.add(program)
        if program == "-m":
            assert words[0] == "pytest"
            continue
        if program == "tests/measure.py":
            assert callable(getattr(measure, words.pop(0)))
        options = {"bench.py": bench.BenchConfig, "prepare_data.py": prepare_data.PrepareConfig}
        words = [str(ROOT / word) if word.startswith("config/") else word for word in words]
        console.read_options(options.get(program, train.TrainConfig), words, program)
    assert (
        seen == {"-m", "tests/measure.py", "bench.py", "prepare_data.py", "train.py"}
        and len(changes) > 15
    )


# ---------------------------------------------------------------------------------------------------------------------
# With a GPU


@needs_gpu
@pytest.mark.parametrize("compile", [False, True])
def test_a_step_on_a_gpu_waits_for_nothing(config, compile):
    run, batches = make_run(
        config(device="cuda", window_pattern="SL", window_size=16, grad_clip=1.0)
    )
    network = device_module.try_compile(run.model, batches.batch_size, run.device, compile)
    for _ in range(3):
        run.take_step(network, batches)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")  # an operation that waits raises
    try:
        run.take_step(network, batches)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
def test_batches_reach_a_gpu_that_is_behind_unharmed():
    arrays, device = [np.full((64, 1024), i) for i in range(40)], torch.device("cuda")
    torch.cuda._sleep(10**8)
    arrived = [device_module.to_device(array, device) for array in arrays]
    assert all((there == i).all() for i, there in enumerate(arrived))


@needs_gpu
def test_a_gpu_chooses_an_attention_that_agrees_with_the_general_one(attention_flags):
    config, device = GPTConfig(vocab_size=64, n_layer=1, block_size=256), torch.device("cuda")
    device_module.choose_attention(config, 8, device, torch.bfloat16)
    q, k, v = (torch.randn(8, 6, 256, 128, device=device, dtype=torch.bfloat16) for _ in range(3))
    chosen = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        exact = torch.nn.functional.scaled_dot_product_attention(
            q.float(), k.float(), v.float(), is_causal=True
        )
    torch.testing.assert_close(chosen.float(), exact, atol=0.03, rtol=0.03)
