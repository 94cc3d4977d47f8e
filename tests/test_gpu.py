"""What keeps a GPU busy: no step waits for it, no buffer is overwritten early, no collector runs.

The logic is shown on a CPU first; the tests at the end need a GPU and skip themselves.
"""

import gc
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import train
from model import GPT
from nanoloop import attention
from nanoloop import device as device_module
from nanoloop.data import TrainBatches, open_data
from nanoloop.generate import generate
from tests.models import CPU, SMALL, VARIANTS, random_model, random_tokens
from tests.runs import StopAfter

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def stepper(config):
    """Build the parts of a run; the result takes one step: stepper(**options)()."""

    def make(compile: bool = False, **options):
        settings = config(**options)
        data = open_data(settings.data)
        settings = replace(settings, vocab_size=data.tokenizer.vocab_size)
        device = torch.device(settings.device)
        rows, grad_accum = settings.split_batch()
        batches = TrainBatches(data, settings.block_size, 1, rows, grad_accum)
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        model = GPT(settings, dtype).to(device)
        optimizers = train.make_optimizers(model, settings)
        scaler = torch.amp.GradScaler(device.type, enabled=False)
        network = device_module.compile_model(model, rows, device, compile)
        steps = iter(range(1000))
        return lambda: train.train_step(
            network, optimizers, scaler, batches, next(steps), settings, device
        )

    return make


# --------------------------------------------------------------------------------------------------
# The logic, on a CPU


class Operations(TorchDispatchMode):
    """Notes the names of all operations."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))

    def that_wait(self) -> list[str]:
        """Return the operations that give Python a number: it must wait for the device there."""
        return [name for name in self.names if "_local_scalar_dense" in name or "nonzero" in name]


@pytest.mark.parametrize(
    "options",
    [{}, {"grad_clip": 1.0, "optimizer": "adamw"}, {"bigram_rows": 64, "dropout": 0.1}],
    ids=str,
)
def test_a_step_asks_the_device_for_no_number(stepper, options):
    step = stepper(**options)
    step()  # optimizers create their states in the first step
    with Operations() as operations:
        loss = step()
    assert any("mm" in name for name in operations.names)
    assert operations.that_wait() == []
    with Operations() as operations:
        bool(loss > 0)
    assert operations.that_wait() != []


def test_on_a_cpu_an_array_is_not_even_copied():
    array = np.arange(6)
    assert device_module.to_device(array, CPU).data_ptr() == array.ctypes.data


def test_a_function_is_compiled_once_and_only_where_the_model_was(monkeypatch):
    compiled = []

    def compile(function, dynamic):
        compiled.append(function)
        return lambda x: -function(x)

    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr(device_module, "COMPILED_DEVICES", set())
    double = device_module.compiled(lambda x: 2 * x)
    one = torch.ones(())
    assert double(one) == 2 and not compiled
    device_module.COMPILED_DEVICES.add("cpu")
    assert double(one) == double(one) == -2 and len(compiled) == 1


def test_what_flex_attention_cannot_do_on_a_card_is_compiled_without_it(monkeypatch):
    """A T4 has less shared memory than it needs; masked attention still compiles there."""
    tried = []

    def compile(network, dynamic):
        def fail_with_flex(*tokens):
            tried.append(attention.USES_FLEX)
            if attention.USES_FLEX:
                raise RuntimeError("out of resource: shared memory")
            return network(*tokens)

        return fail_with_flex

    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr(attention, "USES_FLEX", True)
    model = random_model(SMALL)
    network = device_module.compile_model(model, 2, CPU, True)
    assert tried == [True, False]
    assert network is not model
    assert all(p.grad is None for p in model.parameters())


class Knot:
    """An object that refers to itself: only Python's collector frees it."""

    def __init__(self):
        self.itself = self


class Knots(StopAfter):
    """Ties a knot after each step, and counts those that are left."""

    def __init__(self):
        super().__init__(steps=1000)
        self.knots = []
        self.left = []

    def count(self, optimizer, args, kwargs) -> None:
        if isinstance(optimizer, torch.optim.AdamW):
            self.knots.append(weakref.ref(Knot()))
            self.left.append(sum(knot() is not None for knot in self.knots))


def test_garbage_is_collected_at_log_lines_alone(config):
    knots = Knots()
    device_module.tune_process()
    try:
        train.train(config(max_steps=6, log_interval=3, n_layer=1), knots)
    finally:
        knots.hook.remove()
        gc.unfreeze()
        gc.enable()
    assert knots.left == [1, 2, 3, 1, 2, 3]


# --------------------------------------------------------------------------------------------------
# With a GPU


@needs_gpu
@pytest.mark.parametrize("compile", [False, True])
def test_a_step_on_a_gpu_waits_for_nothing(stepper, compile):
    options = {"device": "cuda", "window_pattern": "SL", "window_size": 16, "grad_clip": 1.0}
    step = stepper(compile, **options)
    for _ in range(3):
        step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")  # an operation that waits raises
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
def test_batches_reach_a_gpu_that_is_behind_unharmed():
    arrays = [np.full((64, 1024), i) for i in range(40)]
    torch.cuda._sleep(10**8)
    arrived = [device_module.to_device(array, torch.device("cuda")) for array in arrays]
    assert all((tensor == i).all() for i, tensor in enumerate(arrived))


@needs_gpu
@pytest.mark.parametrize("name", VARIANTS)
def test_a_gpu_computes_the_same_model(name):
    model = random_model(VARIANTS[name])
    tokens = random_tokens(2, 16)
    expected = model(tokens)
    logits = model.cuda()(tokens.cuda()).cpu()
    torch.testing.assert_close(logits, expected, atol=2e-3, rtol=2e-3)


@needs_gpu
def test_compiled_windows_on_a_gpu_are_those_of_the_mask():
    config = replace(
        VARIANTS["modern"], block_size=256, n_embd=128, window_pattern="SL", window_size=64
    )
    model = random_model(config).cuda()
    tokens = random_tokens(2, 256).cuda()
    expected = model(tokens, tokens)
    compiled = torch.compile(model)
    torch.testing.assert_close(compiled(tokens, tokens), expected, atol=2e-3, rtol=2e-3)
    compiled(tokens, tokens).backward()


@needs_gpu
@pytest.mark.parametrize("name", VARIANTS)
def test_a_gpu_writes_the_same_text_from_a_captured_graph(name):
    model = random_model(VARIANTS[name])
    prompts = [[7, 2, 8], [3, 1, 4], [9, 2, 6]]
    expected = generate(model, prompts, 30, temperature=0)
    model.cuda()
    assert generate(model, prompts, 30, temperature=0) == expected
    assert generate(model, prompts, 30, seed=1) == generate(model, prompts, 30, seed=1)
