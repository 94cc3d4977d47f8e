"""Attention, against its definition: for every query a softmax over the keys that it may see."""

import pytest
import torch
from torch import Tensor

from nanoloop.attention import attend, flex_attend


def naive_attention(q, k, v, window: int, scale: float, documents=None) -> Tensor:
    """Attend one query at a time. Shapes as in `attend`; the queries are the last T of S."""
    B, H, T, _ = q.shape
    G, S = k.shape[1:3]
    out = torch.zeros_like(q)
    for b in range(B):
        for h in range(H):
            group = h * G // H  # consecutive query heads share a key head
            for t in range(T):
                now = S - T + t
                visible = list(range(max(0, now - window + 1), now + 1))
                if documents is not None:
                    visible = [s for s in visible if documents[b, s] == documents[b, now]]
                weights = torch.softmax(k[b, group, visible] @ q[b, h, t] * scale, dim=0)
                out[b, h, t] = weights @ v[b, group, visible]
    return out


def random_qkv(T: int, S: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw queries of 4 heads, keys and values: (2, heads, positions, 8) each."""
    torch.manual_seed(0)
    q = torch.randn(2, 4, T, 8)
    k = torch.randn(2, kv_heads, S, 8)
    v = torch.randn(2, kv_heads, S, 8)
    return q, k, v


# Training, a prompt in windows, one new token, several new tokens behind a cache.
SHAPES = [(9, 9, 9), (9, 9, 4), (9, 9, 1), (1, 9, 9), (1, 9, 4), (3, 9, 9), (3, 9, 4)]


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("T, S, window", SHAPES)
def test_attention_is_the_naive_one(T, S, window, kv_heads):
    q, k, v = random_qkv(T, S, kv_heads)
    torch.testing.assert_close(attend(q, k, v, window, 0.3), naive_attention(q, k, v, window, 0.3))


@pytest.mark.parametrize("window", [12, 4])
def test_attention_within_documents_is_the_naive_one(window):
    q, k, v = random_qkv(12, 12, kv_heads=2)
    documents = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, 2, 2, 2, 3], [1] * 12])
    out = attend(q, k, v, window, 0.3, documents=documents)
    torch.testing.assert_close(out, naive_attention(q, k, v, window, 0.3, documents))


@pytest.mark.parametrize("window", [9, 4])
def test_queries_may_stand_anywhere_among_the_keys(window):
    """A cache with slots for later positions: what stands in them does not count."""
    q, k, v = random_qkv(2, 9, kv_heads=2)
    positions = torch.tensor([4, 5])
    out = attend(q, k, v, window, 0.3, positions=positions)
    expected = naive_attention(q, k[:, :, :6], v[:, :, :6], window, 0.3)
    torch.testing.assert_close(out, expected)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("has_documents", [False, True])
def test_flex_attention_is_the_naive_one(kv_heads, has_documents):
    """The kernel for windows on GPUs, run here without compilation."""
    torch.manual_seed(0)
    q = torch.randn(2, 4, 32, 16)
    k = torch.randn(2, kv_heads, 32, 16)
    v = torch.randn(2, kv_heads, 32, 16)
    documents = None
    if has_documents:
        documents = torch.tensor([[0] * 9 + [1] * 23, [1] * 30 + [2] * 2])
    expected = naive_attention(q, k, v, 5, 0.3, documents)
    torch.testing.assert_close(flex_attend(q, k, v, 5, 0.3, documents), expected)


def test_training_in_bfloat16_attends_in_float32_on_a_cpu():
    """PyTorch's backward pass is slow there in bfloat16. The result is rounded once."""
    q, k, v = (x.bfloat16().requires_grad_() for x in random_qkv(9, 9, kv_heads=4))
    out = attend(q, k, v, 9, 0.3)
    exact = attend(q.float(), k.float(), v.float(), 9, 0.3)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, exact.bfloat16())


def test_dropout_drops_attention_and_keeps_its_mean():
    """With values of 1 every output is 1; dropout scatters it around 1."""
    torch.manual_seed(0)
    q, k, _ = random_qkv(64, 64, kv_heads=4)
    v = torch.ones_like(k)
    assert torch.equal(attend(q, k, v, 64, 0.3).round(decimals=5), torch.ones_like(q))
    dropped = attend(q, k, v, 64, 0.3, dropout=0.5)
    assert dropped.std() > 0.1
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.05)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpus_fastest_attention_agrees_with_the_exact_one():
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from nanoloop.attention import kernel_priority

    q, k, v = (torch.randn(8, 6, 256, 128, device="cuda").bfloat16() for _ in range(3))
    with kernel_priority():
        fast = attend(q, k, v, 256, 0.1)
    with sdpa_kernel(SDPBackend.MATH):
        exact = attend(q.float(), k.float(), v.float(), 256, 0.1)
    torch.testing.assert_close(fast.float(), exact, atol=0.03, rtol=0.03)
