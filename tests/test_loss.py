"""Cross-entropy in chunks: the same loss and gradients, without all logits at once."""

import math
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model import GPT, GPTConfig
from nanoloop import device
from nanoloop.loss import chunks, mean_loss
from nanoloop.options import UserError
from tests.models import CPU, SMALL, VARIANTS, random_model, random_tokens


@pytest.fixture
def at_most(monkeypatch):
    """Limit the logits in memory: at_most(n)."""
    return lambda count: monkeypatch.setattr("nanoloop.loss.MAX_LOGITS", count)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_loss_at_initialisation_is_that_of_a_guess(name):
    torch.manual_seed(0)
    loss = GPT(VARIANTS[name])(random_tokens(8, 16), random_tokens(8, 16, seed=2))
    assert loss.item() == pytest.approx(math.log(50), abs=0.1)


def test_the_loss_is_the_cross_entropy_of_the_logits_and_skips_minus_one():
    model = random_model(SMALL)
    tokens = random_tokens(2, 16)
    targets = random_tokens(2, 16, seed=2)
    targets[0, 3:7] = -1
    is_scored = targets >= 0
    log_probability = model(tokens).log_softmax(dim=-1)
    picked = log_probability.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    each = model(tokens, targets, reduction="none")
    torch.testing.assert_close(each, -picked * is_scored)
    torch.testing.assert_close(model(tokens, targets), each.sum() / is_scored.sum())


@pytest.mark.parametrize("name", ["modern", "swiglu_tied"])
def test_a_kernel_that_computes_another_loss_than_the_model_is_noticed(name, monkeypatch):
    """As on CUDA after a change of GPT.to_logits alone."""
    model = random_model(VARIANTS[name])
    device.check_loss(model, CPU)
    changed = replace(model.config, logit_softcap=5.0)
    computed = GPT(changed).to_logits
    monkeypatch.setattr(
        device,
        "mean_loss",
        lambda x, weight, targets, _, config: mean_loss(x, weight, targets, computed, config),
    )
    with pytest.raises(UserError, match="change nanoloop/loss_kernel.py as GPT.to_logits"):
        device.check_loss(model, CPU)


def loss_and_grads(model: GPT, tokens, targets) -> list[torch.Tensor]:
    """Return the loss and the gradients of three times the loss."""
    model.zero_grad()
    loss = model(tokens, targets)
    (3 * loss).backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters())]


@pytest.mark.parametrize("softcap", [15.0, None])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_a_loss_in_chunks_has_the_value_and_gradients_of_the_plain_one(
    at_most, dtype, tolerance, softcap
):
    """Here 33 positions, 7 at a time."""
    model = random_model(replace(SMALL, logit_softcap=softcap))
    model.compute_dtype = dtype
    tokens = random_tokens(3, 11)
    targets = random_tokens(3, 11, seed=2)
    targets[1, 3:9] = -1
    plain = loss_and_grads(model, tokens, targets)
    at_most(7 * 64)
    chunked = loss_and_grads(model, tokens, targets)
    for expected, found in zip(plain, chunked):
        assert (expected - found).norm() <= tolerance * expected.norm()


class LargestTensor(TorchDispatchMode):
    """Notes the most elements that a tensor has among all that are computed."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.elements = max(self.elements, leaf.numel())
        return result


@pytest.mark.parametrize(
    "limit, largest",
    [(2**28, 48 * 512), (2048, 32 * 512)],  # all logits; no more than the head's weights
)
def test_a_loss_in_chunks_never_holds_all_logits(at_most, limit, largest):
    """48 positions with 512 logits each."""
    model = random_model(replace(SMALL, vocab_size=512, n_embd=32))
    tokens = random_tokens(3, 16)
    at_most(limit)
    with LargestTensor() as found:
        model(tokens, tokens).backward()
    assert found.elements == largest


def test_an_evaluation_never_holds_all_logits(at_most):
    """The losses of the targets, computed for 4 of 48 positions at a time, are the same."""
    model = random_model(replace(SMALL, vocab_size=512, n_embd=32))
    tokens = random_tokens(3, 16)
    expected = model(tokens, tokens, reduction="none")
    at_most(4 * 512)
    with torch.no_grad(), LargestTensor() as found:
        losses = model(tokens, tokens, reduction="none")
    torch.testing.assert_close(losses, expected)
    assert found.elements == 512 * 32 < expected.numel() * 512  # the head's weights, all logits


def test_pieces_have_a_power_of_two_of_rows(at_most):
    """Tensor cores multiply them fastest; here 33 rows of 64 logits, of which 7 rows would fit."""
    x = torch.zeros(3, 11, 2)
    at_most(7 * 64)
    pieces = chunks(x, torch.zeros(64, 2), torch.zeros(3, 11))
    assert [len(targets) for _, targets in pieces] == [4] * 8 + [1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("softcap", [15.0, None])
def test_the_kernel_on_a_gpu_has_the_value_and_gradients_of_the_cpu(softcap):
    model = random_model(replace(SMALL, logit_softcap=softcap))
    tokens = random_tokens(3, 11)
    targets = random_tokens(3, 11, seed=2)
    targets[1, 3:9] = -1
    expected = loss_and_grads(model, tokens, targets)
    found = loss_and_grads(model.cuda(), tokens.cuda(), targets.cuda())
    for on_cpu, on_gpu in zip(expected, found):
        assert (on_gpu.cpu() - on_cpu).norm() <= 1e-4 * on_cpu.norm()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_compiled_loss_in_chunks_takes_less_memory_on_a_gpu(at_most):
    config = GPTConfig(
        block_size=1024, vocab_size=50304, n_layer=1, n_head=1, n_embd=64, value_embeds=0
    )
    model = GPT(config, torch.bfloat16).cuda()
    tokens = torch.randint(50304, (8, 1024), device="cuda")
    peaks = []
    grads = []
    for limit in (2**40, 2**26):
        at_most(limit)
        torch.compiler.reset()
        torch.cuda.reset_peak_memory_stats()
        torch.compile(model, dynamic=False)(tokens, tokens.clone()).backward()
        peaks.append(torch.cuda.max_memory_allocated())
        grads.append(model.lm_head.weight.grad.clone())
        model.zero_grad()
    assert peaks[1] < 0.6 * peaks[0]
    torch.testing.assert_close(*grads, atol=1e-5, rtol=0.05)
