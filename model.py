"""The GPT: configuration, attention, MLP, block, forward pass.

Modern by default, GPT-2 by switch: each modern part is one field of GPTConfig, so an ablation is
one option. Modules carry GPT-2's names: wte and wpe are the token and position embeddings, h the
blocks, ln the norms.

Letters for sizes, used in every comment below:
    B batch    T positions    C n_embd    L n_layer    V vocab_size
    H n_head   G n_kv_head    D head size, C / H
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from nanoloop.attention import attend
from nanoloop.loss import mean_loss, token_losses

# --------------------------------------------------------------------------------------------------
# Configuration. A field's comment is its --help text; the field is the only home of its default.


@dataclass(frozen=True)
class GPTConfig:
    """The shape of the model and its switches."""

    block_size: int = 1024  # context length in tokens
    vocab_size: int | None = None  # number of token ids; None: the tokenizer's
    n_layer: int = 12  # blocks
    n_head: int = 6  # attention heads
    n_kv_head: int | None = None  # heads of keys and values (grouped-query attention); None: n_head
    n_embd: int = 768  # channels
    position: Literal["rope", "learned"] = "rope"  # rotary, or a learned embedding
    rope_base: float = 100_000.0  # base of the rotary frequencies; larger: longer wavelengths
    norm: Literal["rms", "layer"] = "rms"  # RMSNorm without gain, or LayerNorm with gain (and bias)
    # of the MLP; gelu is GPT-2's approximation, gelu_exact nanoGPT's
    activation: Literal["relu2", "gelu", "gelu_exact", "swiglu"] = "relu2"
    qk_norm: bool = True  # normalize queries and keys per head
    bias: bool = False  # biases in Linear and LayerNorm
    tie_embeddings: bool = False  # one table for the token embedding and the output head
    logit_softcap: float | None = 15.0  # bound logits to ±this by a tanh; None: off
    value_embeds: int = 3  # value embeddings, in every other layer counted from the last; 0: none
    bigram_rows: int = 0  # rows of the table of token pairs: vocab_size² for all; 0: none
    residual_scalars: bool = True  # learned a, b: each block begins with x = a·x + b·embedding
    window_pattern: str | None = None  # S(hort) or L(ong) per layer, repeated; None: all long
    window_size: int = 256  # tokens that a short layer attends to, itself included
    document_mask: bool = False  # no attention across documents; a prompt is one document
    document_token: int | None = None  # a document's first token; None: train.py's end-of-text
    dropout: float = 0.0  # fraction of activations that training sets to zero
    weight_init: Literal["modern", "gpt2"] = "modern"  # scaled by the width, or GPT-2's 0.02

    def __post_init__(self):
        """Raise ValueError for sizes that do not fit."""
        sizes = "block_size n_layer n_head n_embd window_size rope_base"
        check_fields(self, sizes, lambda size: size >= 1, "at least 1")
        check_fields(self, "n_kv_head", lambda size: size >= 1, "at least 1, or None")
        half = (self.n_layer + 1) // 2
        check_fields(
            self,
            "value_embeds",
            lambda n: 0 <= n <= half,
            f"0 to {half}: every other layer has one",
        )
        check_fields(self, "window_pattern", lambda p: set(p) <= {"S", "L"}, "S and L, as SSSL")
        check_fields(self, "bigram_rows", lambda rows: rows >= 0, "at least 0")
        check_fields(self, "logit_softcap", lambda cap: 0 < cap < math.inf, "above 0, or None")
        check_fields(self, "dropout", lambda share: 0 <= share < 1, "at least 0 and below 1")
        check(
            self.n_embd % self.n_head == 0,
            f"n_embd={self.n_embd} is not divisible by n_head={self.n_head}",
        )
        check(
            self.n_head % self.kv_heads() == 0,
            f"n_head={self.n_head} is not divisible by n_kv_head={self.n_kv_head}",
        )
        check(
            self.position == "learned" or self.head_size() % 2 == 0,
            f"position=rope needs an even head size: n_embd={self.n_embd} / n_head={self.n_head}",
        )

    def kv_heads(self) -> int:
        return self.n_kv_head or self.n_head

    def head_size(self) -> int:
        return self.n_embd // self.n_head

    def padded_vocab(self) -> int:
        """Round vocab_size up to a multiple of 64: GPUs multiply such matrices fastest."""
        return math.ceil(self.vocab_size / 64) * 64

    def window(self, layer: int) -> int:
        """Return the number of tokens the layer attends to. The last layer is always long."""
        pattern = self.window_pattern or "L"
        is_short = pattern[layer % len(pattern)] == "S" and layer < self.n_layer - 1
        return min(self.window_size, self.block_size) if is_short else self.block_size

    def value_layers(self) -> range:
        """Return the layers that have a value embedding, the last layer first."""
        return range(self.n_layer - 1, -1, -2)[: self.value_embeds]


def check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def check_fields(config: GPTConfig, names: str, is_valid, rule: str) -> None:
    """Check fields, named with spaces between them; None is always valid."""
    for name in names.split():
        value = getattr(config, name)
        check(value is None or is_valid(value), f"{name}={value} must be {rule}")


# --------------------------------------------------------------------------------------------------
# Small parts. Weights are stored in float32 and used in the dtype of the activations.


class Linear(nn.Linear):
    """nn.Linear that casts its float32 weights to the dtype of the input."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


class LayerNorm(nn.LayerNorm):
    """nn.LayerNorm computed in float32, returned in the dtype of the input."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.float()
        y = F.layer_norm(x.float(), self.normalized_shape, self.weight.float(), bias, self.eps)
        return y.to(x.dtype)


def make_norm(config: GPTConfig) -> nn.Module:
    if config.norm == "layer":
        return LayerNorm(config.n_embd, bias=config.bias)
    # RMSNorm: Zhang & Sennrich 2019, arXiv:1910.07467.
    return nn.RMSNorm(config.n_embd, elementwise_affine=False)


def rotary_angles(config: GPTConfig) -> tuple[Tensor, Tensor]:
    """Compute cosine and sine of the rotation angles, (block_size, 1, D/2) each."""
    D = config.head_size()
    frequency = config.rope_base ** -(torch.arange(0, D, 2) / D)  # (D/2,) radians per position
    angle = torch.arange(config.block_size)[:, None, None] * frequency
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair of channels by its angle (rotary embedding, arXiv:2104.09864).

    x: (B, T, H, D); cos, sin: (T, 1, D/2). Channel i is paired with channel i + D/2.
    """
    x1, x2 = x.chunk(2, dim=-1)
    y1 = x1 * cos - x2 * sin
    y2 = x1 * sin + x2 * cos
    return torch.cat((y1, y2), dim=-1)


# --------------------------------------------------------------------------------------------------
# Attention, MLP, block


class Attention(nn.Module):
    """Causal self-attention; n_kv_head groups its queries (arXiv:2305.13245)."""

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.layer = layer
        self.head_size = config.head_size()
        self.window = config.window(layer)
        self.qk_norm = config.qk_norm
        self.dropout = config.dropout
        # Normalized queries and keys bound the scores, so the softmax may be sharper than 1 / √D.
        sharpness = 1.44 if config.qk_norm else 1.0
        self.scale = sharpness / math.sqrt(self.head_size)

        C = config.n_embd
        G = config.kv_heads()
        self.c_q = Linear(C, C, bias=config.bias)
        self.c_k = Linear(C, G * self.head_size, bias=config.bias)
        self.c_v = Linear(C, G * self.head_size, bias=config.bias)
        self.c_proj = Linear(C, C, bias=config.bias)
        if layer in config.value_layers():
            # The first 12 channels are enough to choose a gate (modded-nanogpt).
            self.value_gate = Linear(min(12, C), G, bias=False)

    def forward(self, x: Tensor, value_embed: Tensor | None, rotary, documents, cache) -> Tensor:
        B, T, C = x.shape
        q = self.c_q(x).view(B, T, -1, self.head_size)  # (B, T, H, D)
        k = self.c_k(x).view(B, T, -1, self.head_size)  # (B, T, G, D)
        v = self.c_v(x).view(B, T, -1, self.head_size)  # (B, T, G, D)

        # A part of the value depends on the token alone (modded-nanogpt; after arXiv:2410.17897).
        # Each head of values has a gate, which is 1 at first because value_gate begins at 0.
        if value_embed is not None:
            gate = 2 * torch.sigmoid(self.value_gate(x[..., : self.value_gate.in_features]))
            v = v + gate.unsqueeze(-1) * value_embed.view(B, T, -1, self.head_size)

        if self.qk_norm:  # bounded scores tolerate high learning rates (arXiv:2010.04245)
            q = F.rms_norm(q, (self.head_size,))
            k = F.rms_norm(k, (self.head_size,))
        if rotary is not None:
            cos, sin = rotary
            q = rotate(q, cos, sin)
            k = rotate(k, cos, sin)
        # Only now: in this order a GPU copies no tensor to another layout.
        q = q.transpose(1, 2)  # (B, H, T, D)
        k = k.transpose(1, 2)  # (B, G, T, D)
        v = v.transpose(1, 2)  # (B, G, T, D)

        dropout = self.dropout if self.training else 0.0
        if cache is None:
            y = attend(q, k, v, self.window, self.scale, dropout, documents)  # (B, H, T, D)
        else:
            y = cache.attend(self.layer, q, k, v, self.window, self.scale)
        y = y.transpose(1, 2).reshape(B, T, C)
        return F.dropout(self.c_proj(y), dropout)


class MLP(nn.Module):
    """Compute at each position: expand to hidden units, then project back."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.activation = config.activation
        self.dropout = config.dropout
        C = config.n_embd
        # SwiGLU has three matrices instead of two: 3 · 8/3 = 2 · 4 keeps the number of weights.
        hidden = 8 * C // 3 if config.activation == "swiglu" else 4 * C
        self.c_fc = Linear(C, hidden, bias=config.bias)
        if config.activation == "swiglu":
            self.c_gate = Linear(C, hidden, bias=config.bias)
        self.c_proj = Linear(hidden, C, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.c_fc(x)
        if self.activation == "relu2":  # So et al. 2021, arXiv:2109.08668
            h = F.relu(h).square()
        elif self.activation == "swiglu":  # Shazeer 2020, arXiv:2002.05202
            h = F.silu(self.c_gate(x)) * h
        else:  # the tanh form, with which GPT-2 was trained, or the exact one
            form = "tanh" if self.activation == "gelu" else "none"
            h = F.gelu(h, approximate=form)
        return F.dropout(self.c_proj(h), self.dropout, self.training)


class Block(nn.Module):
    """Attention between positions, then the MLP at each; both add to the residual x."""

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.ln_1 = make_norm(config)
        self.attn = Attention(config, layer)
        self.ln_2 = make_norm(config)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, value_embed: Tensor | None, rotary, documents, cache) -> Tensor:
        x = x + self.attn(self.ln_1(x), value_embed, rotary, documents, cache)
        return x + self.mlp(self.ln_2(x))


class Bigrams(nn.Embedding):
    """Embed pairs of tokens; the sum goes into x before any attention.

    With fewer than V² rows, pairs share rows by a hash (modded-nanogpt).
    """

    def forward(self, tokens: Tensor, previous: Tensor, vocab_size: int) -> Tensor:
        if self.num_embeddings >= vocab_size**2:
            row = previous * vocab_size + tokens
        else:
            # (36313 · tokens) xor (27191 · previous)
            row = (36313 * tokens ^ 27191 * previous) % self.num_embeddings
        return super().forward(row)


# --------------------------------------------------------------------------------------------------
# The model


class GPT(nn.Module):
    """A decoder-only transformer. Weights are float32; activations have compute_dtype."""

    def __init__(self, config: GPTConfig, compute_dtype: torch.dtype = torch.float32):
        super().__init__()
        assert config.vocab_size is not None, "vocab_size must be known to build the model"
        self.config = config
        self.compute_dtype = compute_dtype
        padded = config.padded_vocab()
        C = config.n_embd
        kv_size = config.kv_heads() * config.head_size()

        self.wte = nn.Embedding(padded, C)
        if config.position == "learned":
            self.wpe = nn.Embedding(config.block_size, C)
        else:
            cos, sin = rotary_angles(config)
            self.register_buffer("cos", cos, persistent=False)
            self.register_buffer("sin", sin, persistent=False)
        tables = {str(layer): nn.Embedding(padded, kv_size) for layer in config.value_layers()}
        self.value_embeds = nn.ModuleDict(tables)
        if config.bigram_rows:
            self.bigrams = Bigrams(config.bigram_rows, C)
        if config.residual_scalars:
            self.residual_scale = nn.Parameter(torch.ones(config.n_layer))
            self.shortcut_scale = nn.Parameter(torch.full((config.n_layer,), 0.1))
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = make_norm(config)
        self.lm_head = Linear(C, padded, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.wte.weight
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Fill matrices and tables from normal distributions; biases are 0."""
        config = self.config
        if config.weight_init == "gpt2":
            default = 0.02
            deviations = {"c_proj": 0.02 / math.sqrt(2 * config.n_layer)}
        else:
            default = 0.6 / math.sqrt(config.n_embd)
            deviations = {
                # A tied table makes the logits too, and those begin small.
                "wte": 0.02 if config.tie_embeddings else 0.8,
                "wpe": 0.02,
                "value_embeds": 0.01,
                "c_proj": 0.0,  # a new block changes nothing at first
                "lm_head": 0.001,  # all tokens are about equally probable at first
            }
        deviations |= {"bigrams": 0.0, "value_gate": 0.0}
        for name, weight in self.named_parameters():
            if name.endswith("bias"):
                weight.zero_()
            elif weight.ndim == 2:
                known = [deviations[part] for part in name.split(".") if part in deviations]
                weight.normal_(std=known[0] if known else default)

    def forward(
        self, tokens: Tensor, targets: Tensor | None = None, cache=None, reduction: str = "mean"
    ) -> Tensor:
        """Predict the next token at every position.

        tokens: (B, T) int64, T at most block_size.
        Without targets: returns logits, (B, T, V) float32; with a nanoloop.generate.KVCache only
        those of the last position, (B, 1, V).
        With targets, (B, T) int64, -1 where not scored: returns the cross-entropy in nats, a scalar
        for reduction="mean"; (B, T), 0 where not scored, for reduction="none".
        """
        positions = slice(tokens.size(1)) if cache is None else cache.positions
        x = self.embed(tokens, positions, cache)  # (B, T, C)
        x0 = x
        rotary = None
        if self.config.position == "rope":
            rotary = (self.cos[positions].to(x.dtype), self.sin[positions].to(x.dtype))
        documents = None
        if self.config.document_mask and cache is None:
            documents = (tokens == self.config.document_token).cumsum(dim=1)  # (B, T)

        for layer, block in enumerate(self.h):
            # Each block sees the embedding again, and may damp what earlier blocks added.
            if self.config.residual_scalars:
                a = self.residual_scale[layer].to(x.dtype)
                b = self.shortcut_scale[layer].to(x.dtype)
                x = a * x + b * x0
            value_embed = None
            if str(layer) in self.value_embeds:
                value_embed = self.value_embeds[str(layer)](tokens).to(x.dtype)
            x = block(x, value_embed, rotary, documents, cache)
        if cache is not None:
            x = x[:, -1:]
        x = self.ln_f(x)

        weight = self.lm_head.weight
        if targets is None:
            return self.to_logits(x, weight)
        loss = token_losses if reduction == "none" else mean_loss
        return loss(x, weight, targets, self.to_logits, self.config)

    def embed(self, tokens: Tensor, positions, cache) -> Tensor:
        """Add the embeddings of the tokens, their pairs and their positions: (B, T, C)."""
        T = tokens.size(1)
        assert T <= self.config.block_size, f"{T} tokens exceed block_size={self.config.block_size}"
        x = self.wte(tokens).to(self.compute_dtype)
        if self.config.bigram_rows:
            previous = F.pad(tokens, (1, 0))[:, :-1]  # 0 stands before the first token
            if cache is not None:
                previous[:, 0] = cache.last_token
            x = x + self.bigrams(tokens, previous, self.config.vocab_size).to(x.dtype)
        if self.config.position == "learned":
            x = x + self.wpe.weight[positions].to(x.dtype)
        x = F.dropout(x, self.config.dropout, self.training)
        if self.config.residual_scalars:
            x = F.rms_norm(x, (x.size(-1),))
        return x

    def to_logits(self, x: Tensor, weight: Tensor) -> Tensor:
        """Turn activations (..., C) into logits (..., V), float32, without the padding.

        `weight` is an argument because the chunked loss differentiates by it. On CUDA
        nanoloop/loss_kernel.py computes the same softcap: change both.
        """
        logits = F.linear(x, weight.to(x.dtype))[..., : self.config.vocab_size].float()
        softcap = self.config.logit_softcap
        if softcap is not None:  # Gemma 2, arXiv:2408.00118, section 2
            logits = softcap * torch.tanh(logits / softcap)
        return logits
