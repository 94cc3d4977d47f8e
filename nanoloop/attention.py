"""Fused causal attention: PyTorch's best kernel for the mask and the device.

Shapes in comments: B batch, H heads of queries, G heads of keys and values, D head size,
T positions of queries, S positions of keys (S > T when a cache holds earlier ones).
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

# The fastest first. PyTorch takes the first kernel that can do the shapes and the mask.
CUDA_KERNELS = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]

USES_FLEX = True  # False where FlexAttention cannot be compiled: nanoloop/device.py tries


def kernel_priority():
    """Return a context in which CUDA takes the fastest attention kernel.

    The choice depends on the card, dtypes and shapes alone, so ranks and resumed runs agree.
    """
    return sdpa_kernel(CUDA_KERNELS, set_priority=True)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int,
    scale: float,
    dropout: float = 0.0,
    documents: Tensor | None = None,
    positions: Tensor | None = None,
) -> Tensor:
    """Attend from each position to itself and the `window - 1` positions before it.

    q: (B, H, T, D); k, v: (B, G, S, D); returns (B, H, T, D) in q's dtype.
    documents: (B, T) int64, the number of each position's document; attention stays within it.
    positions: (T,) int64, the positions of the queries among the keys; None: the last T of S.
    """
    dtype = q.dtype
    shape = q.shape
    T = q.size(2)
    S = k.size(2)
    if q.device.type == "cpu" and q.requires_grad:
        # PyTorch's backward pass takes up to four times as long in bfloat16 on CPUs.
        q = q.float()
        k = k.float()
        v = v.float()
    is_grouped = q.size(1) != k.size(1)
    options = {"dropout_p": dropout, "scale": scale, "enable_gqa": is_grouped}
    is_plain = documents is None and positions is None
    if q.is_cuda and is_grouped:  # FlashAttention alone takes that, and no float32
        is_plain = is_plain and q.dtype == torch.bfloat16
    # FlexAttention is fast inside torch.compile, on CUDA, and knows no dropout.
    is_flexible = USES_FLEX and q.is_cuda and torch.compiler.is_compiling() and not dropout
    sees_all = is_plain and window >= S
    if sees_all and T == 1:
        y = F.scaled_dot_product_attention(q, k, v, **options)
    elif sees_all and T == S:
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, **options)
    elif is_flexible and T == S and positions is None:
        y = flex_attend(q, k, v, window, scale, documents)
    else:  # exact on every device, but masked scores are computed all the same
        key = torch.arange(S, device=q.device)
        query = key[S - T :] if positions is None else positions
        query = query[:, None]
        mask = (key <= query) & (query - key < window)  # (T, S)
        if documents is not None:
            mask = mask & (documents[:, None, :, None] == documents[:, None, None, :])
        if q.is_cuda:
            # Its kernels take grouped queries or a mask: the queries of a group become positions.
            mask = torch.cat([mask] * (q.size(1) // k.size(1)), dim=-2)
            q = q.reshape(*k.shape[:2], -1, q.size(3))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, **options).reshape(shape)
    return y.to(dtype)


def flex_attend(
    q: Tensor, k: Tensor, v: Tensor, window: int, scale: float, documents: Tensor | None
) -> Tensor:
    """Attend as `attend` does where T = S, and skip blocks that the mask hides.

    FlexAttention, arXiv:2412.05496. Without torch.compile it is a slow reference.
    """
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def is_visible(batch, head, query, key):
        is_near = (key <= query) & (query - key < window)
        if documents is None:
            return is_near
        return is_near & (documents[batch, query] == documents[batch, key])

    batch_size = None if documents is None else q.size(0)
    mask = create_block_mask(is_visible, batch_size, None, q.size(2), k.size(2), device=q.device)
    return flex_attention(q, k, v, block_mask=mask, scale=scale, enable_gqa=True)
