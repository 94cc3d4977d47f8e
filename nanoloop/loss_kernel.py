"""The cross-entropy of the output head in one kernel, for CUDA.

PyTorch reads the logits of a step several times and writes them in float32. This kernel reads them
twice and writes the gradient where the logits were. Nothing on a CPU imports this file.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096  # logits that a program has in registers at once
LOG2_E = tl.constexpr(1.4426950408889634)
# With a softcap of at most this, exp(logit - softcap) cannot underflow in float32.
SAFE_SOFTCAP = 40.0


class FusedLoss:
    """Compute a sum of cross-entropies, and its gradients by activations and weights."""

    def __init__(self, config):
        self.vocab_size = config.vocab_size
        self.softcap = config.logit_softcap

    def __call__(self, x: Tensor, weight: Tensor, targets: Tensor):
        """Return (gradient of x, gradient of weight), sum of losses.

        x: (N, C). weight: (P, C); rows from vocab_size on are padding. targets: (N,), -1: none.
        """
        weight = weight.to(x.dtype)
        logits = F.linear(x, weight)  # (N, P)
        losses = replace_by_gradient(logits, targets, self.vocab_size, self.softcap)
        return (logits @ weight, logits.T @ x), losses.sum()


def replace_by_gradient(
    logits: Tensor, targets: Tensor, vocab_size: int, softcap: float | None
) -> Tensor:
    """Overwrite logits with the gradient of the sum of losses; return the losses.

    logits: (N, P), before the softcap, contiguous; columns from vocab_size on are padding.
    targets: (N,) int64, -1 where not scored. Returns (N,) float32, nats.
    """
    losses = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    needs_maximum = softcap is None or softcap > SAFE_SOFTCAP
    cross_entropy_kernel[(len(logits),)](
        logits,
        targets,
        losses,
        logits.size(1),
        vocab_size,
        softcap,
        needs_maximum,
        BLOCK,
        num_warps=8,
    )
    return losses


@triton.jit
def to_bits(logits, softcap: tl.constexpr):
    """Bound logits to ±softcap and divide by log(2): exp2 is one instruction of a GPU.

    softcap · tanh(z / softcap) = 2 · softcap · sigmoid(2 · z / softcap) - softcap
    """
    if softcap is None:
        bits = logits * LOG2_E
    else:
        bound = softcap * LOG2_E
        sigmoid = 1 / (1 + tl.exp2(logits * (-2 * LOG2_E / softcap)))
        bits = 2 * bound * sigmoid - bound
    return bits


@triton.jit
def cross_entropy_kernel(
    logits_ptr,
    targets_ptr,
    losses_ptr,
    width,
    vocab_size,
    softcap: tl.constexpr,
    needs_maximum: tl.constexpr,
    block: tl.constexpr,
):
    """Compute one row: its loss, then its gradient over its logits.

    needs_maximum: the largest logit is unknown, so sum up relative to the largest so far.
    """
    row = tl.program_id(0)
    row_ptr = logits_ptr + row.to(tl.int64) * width
    target = tl.load(targets_ptr + row).to(tl.int32)
    # Read before the gradient takes its place.
    target_bits = to_bits(tl.load(row_ptr + tl.maximum(target, 0)).to(tl.float32), softcap)

    sums = tl.zeros([block], tl.float32)
    if needs_maximum:
        highest = tl.full([block], -1e30, tl.float32)
    else:
        highest = softcap * LOG2_E
    for start in range(0, width, block):
        columns = start + tl.arange(0, block)
        # Masks at the padded width, a multiple of 64, keep loads of 16 bytes.
        logits = tl.load(row_ptr + columns, mask=columns < width, other=0.0).to(tl.float32)
        bits = tl.where(columns < vocab_size, to_bits(logits, softcap), -float("inf"))
        if needs_maximum:
            higher = tl.maximum(highest, bits)
            sums *= tl.exp2(highest - higher)
            highest = higher
        sums += tl.exp2(bits - highest)
    if needs_maximum:
        peak = tl.max(highest)
        sums *= tl.exp2(highest - peak)
        highest = peak
    log_sum = highest + tl.log2(tl.sum(sums))
    is_scored = target >= 0
    tl.store(losses_ptr + row, tl.where(is_scored, (log_sum - target_bits) / LOG2_E, 0.0))

    log_sum = tl.where(is_scored, log_sum, float("inf"))  # a gradient of 0
    for start in range(0, width, block):
        columns = start + tl.arange(0, block)
        logits = tl.load(row_ptr + columns, mask=columns < width, other=0.0).to(tl.float32)
        bits = to_bits(logits, softcap)
        gradient = tl.exp2(bits - log_sum) - tl.where(columns == target, 1.0, 0.0)
        if softcap is not None:
            tanh = bits * (1 / (softcap * LOG2_E))
            gradient *= 1 - tanh * tanh
        gradient = tl.where(columns < vocab_size, gradient, 0.0)
        tl.store(row_ptr + columns, gradient, mask=columns < width)
