"""Muon: momentum whose update has about the same size in every direction of a matrix.

Source: Jordan et al. 2024, kellerjordan.github.io/posts/muon.
"""

import torch
from torch import Tensor

from nanoloop import ranks
from nanoloop.device import compiled

# Coefficients of five odd polynomials, a·x + b·x³ + c·x⁵, that drive singular values in (0, 1]
# towards 1 (Polar Express, arXiv:2505.16932; computed with a safety margin of 2 %).
POLAR_EXPRESS = [
    (8.1566, -22.4833, 15.8788),
    (4.0429, -2.8089, 0.5000),
    (3.8917, -2.7725, 0.5061),
    (3.2858, -2.3681, 0.4645),
    (2.3465, -1.7098, 0.4232),
]


@compiled
def orthogonalize(matrices: Tensor) -> Tensor:
    """Return the nearest matrices whose singular values are all about 1.

    matrices: (N, rows, columns), float32; returns the same shape and dtype.
    """
    is_tall = matrices.size(-2) > matrices.size(-1)
    x = matrices.mT if is_tall else matrices  # x @ x.mT is cheaper on the short side
    # No singular value exceeds the Frobenius norm.
    x = x / (x.norm(dim=(-2, -1), keepdim=True) * 1.02 + 1e-6)
    if x.is_cuda:
        x = x.half()  # no value exceeds 1, and it rounds less than bfloat16; every card has it
    for a, b, c in POLAR_EXPRESS:
        gram = x @ x.mT
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # b·G + c·G²
        x = torch.baddbmm(x, factor, x, beta=a)  # a·x + factor @ x
    x = x.mT if is_tall else x
    return x.to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Optimize matrices only. The matrices of one shape are updated together, as one stack.

    With several ranks each orthogonalizes a part of a stack. Weight decay is cautious: it acts
    where it agrees with the sign of the update (arXiv:2510.12402).
    """

    def __init__(self, params, lr: float = 0.02, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            stacks: dict[torch.Size, list[Tensor]] = {}
            for p in group["params"]:
                stacks.setdefault(p.shape, []).append(p)
            for shape, params in stacks.items():
                self.update_stack(params, shape, group)

    def update_stack(self, params: list[Tensor], shape: torch.Size, group: dict) -> None:
        """Update the parameters of one shape, (rows, columns); each has a gradient."""
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        weights = [ranks.local(p) for p in params]
        grads = [ranks.local(p.grad) for p in params]
        momenta = [ranks.local(self.state[p]["momentum"]) for p in params]

        torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
        # Nesterov momentum: the gradient of a step ahead.
        ahead = torch.stack(grads).lerp_(torch.stack(momenta), group["momentum"])
        rows, columns = shape
        # local() returns another tensor only for a sharded parameter.
        is_sharded = weights[0] is not params[0]
        update = ranks.share_work(orthogonalize, ahead, rows, is_sharded)
        update *= max(1, rows / columns) ** 0.5

        old = torch.stack(weights)
        decay = group["weight_decay"] * (update * old > 0)
        new = old - group["lr"] * (update + decay * old)
        torch._foreach_copy_(weights, list(new))


class Optimizers(list):
    """Optimizers that take or skip a step together.

    GradScaler takes this for a single optimizer: in float16, one bad gradient makes all skip.
    """

    @property
    def param_groups(self) -> list[dict]:
        return [group for optimizer in self for group in optimizer.param_groups]

    def step(self) -> None:
        for optimizer in self:
            optimizer.step()

    def lr(self) -> float:
        """Return the learning rate of the matrices: the last optimizer's first group."""
        return self[-1].param_groups[0]["lr"]
