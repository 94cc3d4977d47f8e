"""Cross-entropy without the logits of all positions at once.

Logits are the largest tensors of a training step, but a position's logits are needed for its own
loss and gradients only. The forward pass computes loss and gradients for some rows at a time; the
backward pass scales them. Nothing is computed twice (Liger Kernel, arXiv:2410.10989).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_LOGITS = 2**28  # logits in memory at once, 1 GiB in float32


def needs_chunks(x: Tensor, targets: Tensor, vocab_size: int) -> bool:
    """Say whether to compute the loss for some rows at a time while training.

    On a CPU where all logits are too many to hold; on CUDA always, where a kernel does it.
    """
    return x.requires_grad and (x.is_cuda or targets.numel() * vocab_size > MAX_LOGITS)


def mean_loss(x: Tensor, weight: Tensor, targets: Tensor, to_logits, config) -> Tensor:
    """Compute the mean cross-entropy, in nats, of the targets that are not -1.

    x: (B, T, C). weight: (P, C), of the output head; rows from vocab_size on are padding.
    targets: (B, T) int64. to_logits(x, weight): turns activations (..., C) into logits (..., V),
    float32. config: has vocab_size and logit_softcap.
    """
    if needs_chunks(x, targets, config.vocab_size):
        total = ChunkedCrossEntropy.apply(x, weight, targets, to_logits, config)
        return total / (targets >= 0).sum()
    logits = to_logits(x, weight).flatten(0, 1)
    return F.cross_entropy(logits, targets.flatten(), ignore_index=-1)


def token_losses(x: Tensor, weight: Tensor, targets: Tensor, to_logits, config) -> Tensor:
    """Return the cross-entropy of every target, (B, T) in nats, 0 where it is -1.

    Arguments as above; the logits are computed for some rows at a time.
    """
    losses = [
        F.cross_entropy(to_logits(x, weight), target, ignore_index=-1, reduction="none")
        for x, target in chunks(x, weight, targets)
    ]
    return torch.cat(losses).view_as(targets)


def chunks(x: Tensor, weight: Tensor, targets: Tensor):
    """Return pairs of rows of x, (N, C), and their targets, (N,).

    N is the largest power of two that MAX_LOGITS allows: GPUs multiply such matrices fastest.
    """
    rows = 2 ** int(math.log2(max(1, MAX_LOGITS // len(weight))))
    return zip(x.flatten(0, -2).split(rows), targets.flatten().split(rows))


class ChunkedCrossEntropy(torch.autograd.Function):
    """Sum cross-entropies; the gradients are ready after the forward pass."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, targets: Tensor, to_logits, config) -> Tensor:
        def chunk_loss(x, weight, targets):
            logits = to_logits(x, weight)
            return F.cross_entropy(logits, targets, ignore_index=-1, reduction="sum")

        loss_and_grads = torch.func.grad_and_value(chunk_loss, argnums=(0, 1))
        if x.is_cuda:
            from nanoloop.loss_kernel import FusedLoss  # Triton comes with torch for CUDA

            loss_and_grads = FusedLoss(config)
        total = 0.0
        weight_grad = 0.0
        x_grads = []
        for x_chunk, target_chunk in chunks(x, weight, targets):
            grads, loss = loss_and_grads(x_chunk, weight, target_chunk)
            total = total + loss
            x_grads.append(grads[0])
            weight_grad = weight_grad + grads[1].float()
        ctx.save_for_backward(torch.cat(x_grads).view_as(x), weight_grad)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor):
        x_grad, weight_grad = ctx.saved_tensors
        return grad.to(x_grad.dtype) * x_grad, grad * weight_grad, None, None, None
