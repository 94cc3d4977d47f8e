"""The GPT: configuration, attention, MLP, block, forward pass, generation. Imports torch alone.

Modern by default, GPT-2 by switch: every modern part is one field of GPTConfig, so that an ablation is one line.
Modules carry GPT-2's names: wte and wpe are the token and position tables, h the blocks, ln the norms.

Letters for sizes, used in every comment below:
    B batch    T time (positions)    S positions attended to (S ≥ T when a cache holds earlier ones)
    C n_embd   H n_head   G n_kv_head   D head size, C / H   V vocab_size   L n_layer
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# ---------------------------------------------------------------------------------------------------------------------
# Configuration


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True)
class GPTConfig:
    """The model's shape and its switches. Raises ValueError for sizes that do not fit each other."""

    block_size: int = 1024  # context length T in tokens
    vocab_size: int | None = None  # number of token ids; None: the tokenizer's
    n_layer: int = 12  # blocks
    n_head: int = 6  # attention heads
    n_kv_head: int | None = (
        None  # heads that keys and values have (grouped-query attention); None: n_head
    )
    n_embd: int = 768  # channels
    position: Literal["rope", "learned"] = (
        "rope"  # how a token's place enters: rotated queries and keys | a table
    )
    rope_base: float = 100_000.0  # longest wavelength of the rotation, in tokens / 2π
    norm: Literal["rms", "layer"] = "rms"  # RMSNorm without gain | LayerNorm with gain (and bias)
    activation: Literal["relu2", "gelu", "swiglu"] = "relu2"  # of the MLP
    qk_norm: bool = True  # normalise queries and keys per head
    bias: bool = False  # biases in Linear and LayerNorm
    tie_embeddings: bool = False  # one table for the input embedding and the output head
    logit_softcap: float | None = 15.0  # logits are squashed into ±this by tanh; None: off
    value_embeds: int = (
        3  # tables of per-token values, added in every other layer counted from the last; 0: none
    )
    bigram_rows: int = (
        0  # rows of a table of vectors for pairs of tokens: V² for all, fewer are shared; 0: none
    )
    residual_scalars: bool = (
        True  # x = a·x + b·x0 before each block, with a, b learned and x0 the embedding
    )
    window_pattern: str | None = (
        None  # per layer S (window_size) or L (all), repeated, as SSSL; the last is L; None: L
    )
    window_size: int = 256  # tokens that a layer of kind S sees, itself included
    document_mask: bool = (
        False  # attention stays within a document; generation takes its prompt for one document
    )
    document_token: int | None = (
        None  # the token that begins a document; None: the tokenizer's end-of-text
    )
    dropout: float = 0.0  # share of activations zeroed in training
    weight_init: Literal["modern", "gpt2"] = "modern"  # see GPT.init_weights

    def __post_init__(self):
        kv_head, pattern, tables = (
            self.n_kv_head or self.n_head,
            self.window_pattern,
            (self.n_layer + 1) // 2,
        )
        for name in ("block_size", "n_layer", "n_head", "n_embd", "window_size", "rope_base"):
            require(getattr(self, name) >= 1, f"{name}={getattr(self, name)} must be at least 1")
        require(
            self.n_embd % self.n_head == 0,
            f"n_embd={self.n_embd} is not divisible by n_head={self.n_head}",
        )
        require(
            self.n_head % kv_head == 0,
            f"n_head={self.n_head} is not divisible by n_kv_head={kv_head}",
        )
        even = self.position != "rope" or self.n_embd // self.n_head % 2 == 0
        require(
            even,
            f"position=rope needs an even head size: n_embd={self.n_embd} / n_head={self.n_head} is odd",
        )
        require(
            0 <= self.value_embeds <= tables,
            f"{self.value_embeds=} is not 0 to {tables}, half of n_layer",
        )
        require(
            not set(pattern or "L") - set("SL"),
            f"window_pattern={pattern!r} may hold only S and L, as in SSSL",
        )
        require(self.bigram_rows >= 0, f"bigram_rows={self.bigram_rows} must be at least 0")
        capped = self.logit_softcap is None or 0 < self.logit_softcap < math.inf
        require(capped, f"logit_softcap={self.logit_softcap} must be above 0, and finite, or None")
        require(0 <= self.dropout < 1, f"dropout={self.dropout} must be at least 0 and below 1")

    def padded_vocab(self) -> int:
        """Rows of the token tables: GPUs multiply matrices fastest when their sizes are multiples of 64."""
        return math.ceil(self.vocab_size / 64) * 64

    def window(self, layer: int) -> int:
        """Tokens that the layer attends to, itself included."""
        short = self.window_pattern and self.window_pattern[layer % len(self.window_pattern)] == "S"
        return (
            min(self.window_size, self.block_size)
            if short and layer < self.n_layer - 1
            else self.block_size
        )


# ---------------------------------------------------------------------------------------------------------------------
# Small parts


class Linear(nn.Linear):
    """nn.Linear whose weights are stored in float32 and used in the input's dtype: mixed precision in plain sight."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(
            x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype)
        )


class LayerNorm(nn.LayerNorm):
    """nn.LayerNorm computed in float32, returned in the input's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.float()
        return F.layer_norm(
            x.float(), self.normalized_shape, self.weight.float(), bias, self.eps
        ).to(x.dtype)


def make_norm(config: GPTConfig) -> nn.Module:
    layer = config.norm == "layer"  # else RMSNorm (Zhang & Sennrich 2019, arXiv:1910.07467)
    return (
        LayerNorm(config.n_embd, bias=config.bias)
        if layer
        else nn.RMSNorm(config.n_embd, elementwise_affine=False)
    )


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding (Su et al. 2021, arXiv:2104.09864): turn each pair of channels by its angle.

    x: (B, H, T, D); cos, sin: (T, D/2). Channel i is paired with channel i + D/2.
    """
    first, second = x.chunk(2, dim=-1)  # (B, H, T, D/2) each
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)


class KVCache:
    """The keys and values of the positions decoded so far, of all layers: (L, B, G, block_size, D) each, in `dtype`; on
    a CPU in float32, see Attention.

    whole: a layer gets all block_size of them, and masks those that are not there yet. So a step of one token has the
    same shapes each time and asks no number of the device, as a CUDA graph needs. On a CPU it would be wasted work.
    """

    def __init__(
        self,
        config: GPTConfig,
        batch_size: int,
        dtype: torch.dtype,
        device: torch.device,
        whole=False,
    ):
        heads, size = config.n_kv_head or config.n_head, config.n_embd // config.n_head
        shape = (2, config.n_layer, batch_size, heads, config.block_size, size)
        make, on_cpu = (
            torch.zeros if whole else torch.empty,
            device.type == "cpu",
        )  # masked NaNs would still be NaNs
        self.both, self.whole = (
            make(shape, dtype=torch.float32 if on_cpu else dtype, device=device),
            whole,
        )
        # How many positions are there, and the latest token of each row. `at`: the (T,) positions under way.
        self.length, self.last = (
            torch.zeros(n, dtype=torch.long, device=device) for n in (1, batch_size)
        )

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keep one layer's (B, G, T, D) keys and values; returns all its S, (B, G, S, D), and `attend`'s at."""
        held, end = self.both[:, layer], None if self.whole else int(self.at[-1]) + 1
        held[0].index_copy_(2, self.at, k), held[1].index_copy_(2, self.at, v)
        return held[0, :, :, :end], held[1, :, :, :end], self.at if self.whole else None


# ---------------------------------------------------------------------------------------------------------------------
# Attention


def attend(
    q: Tensor, k: Tensor, v: Tensor, window: int, scale: float, dropout=0.0, documents=None, at=None
) -> Tensor:
    """Causal attention of T of S positions to the `window` latest before each, by the best kernel at hand.

    q: (B, H, T, D); k, v: (B, G, S, D); returns (B, H, T, D). documents: None, or (B, T) with T = S, the number of the
    document at each position: there is no attention between documents. at: (T,) the positions; None: the last T.
    """
    T, S, options = q.size(2), k.size(2), {"scale": scale, "enable_gqa": q.size(1) != k.size(1)}
    if documents is None and at is None and window >= S and T in (1, S):
        # A single one sees all: no mask. Not bool(T > 1): that stays a symbol where T varies in a compiled model.
        return F.scaled_dot_product_attention(
            q, k, v, is_causal=True if T > 1 else False, dropout_p=dropout, **options
        )
    if T == S and at is None and q.is_cuda and torch.compiler.is_compiling() and not dropout:
        return flex_attend(q, k, v, window, documents=documents, **options)
    # Any device, any T. It is exact but saves no time: the scores outside the mask are computed all the same.
    query = (torch.arange(S - T, S, device=q.device) if at is None else at)[:, None]  # (T, 1)
    key = torch.arange(S, device=q.device)  # (S,)
    mask = (key <= query) & (query - key < window)  # (T, S)
    if documents is not None:
        mask = mask & (documents[:, None, :, None] == documents[:, None, None, :])  # (B, 1, T, T)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, **options)


def flex_attend(
    q: Tensor, k: Tensor, v: Tensor, window: int, scale: float, enable_gqa: bool, documents
) -> Tensor:
    """Attention that skips what lies outside the window and the document (FlexAttention, arXiv:2412.05496).

    Shapes as in `attend`, with T = S. Fast only inside torch.compile on CUDA; elsewhere a slow reference.
    """
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def visible(batch, head, query, key):
        near = (key <= query) & (query - key < window)
        return (
            near if documents is None else near & (documents[batch, query] == documents[batch, key])
        )

    rows = None if documents is None else q.size(0)
    mask = create_block_mask(visible, rows, None, q.size(2), k.size(2), device=q.device)
    return flex_attention(q, k, v, block_mask=mask, scale=scale, enable_gqa=enable_gqa)


class Attention(nn.Module):
    """Multi-head causal self-attention, with fewer key and value heads where n_kv_head says so (arXiv:2305.13245)."""

    def __init__(self, config: GPTConfig, layer: int, has_value_embed: bool):
        super().__init__()
        self.config, self.layer, self.head_size = config, layer, config.n_embd // config.n_head
        kv_head = config.n_kv_head or config.n_head
        # A normalised query and key agree by √D at most after the classic 1/√D. The speedruns found sharper better.
        self.scale = (1.44 if config.qk_norm else 1.0) / math.sqrt(self.head_size)
        self.c_q = Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.c_k = Linear(config.n_embd, kv_head * self.head_size, bias=config.bias)
        self.c_v = Linear(config.n_embd, kv_head * self.head_size, bias=config.bias)
        self.c_proj = Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.value_gate = (
            Linear(min(12, config.n_embd), kv_head, bias=False) if has_value_embed else None
        )

    def forward(
        self, x: Tensor, value_embed: Tensor | None, rotary: tuple | None, cache, documents
    ) -> Tensor:
        split_heads = (*x.shape[:2], -1, self.head_size)  # (B, T, H or G, D)
        q, k, v = (
            self.c_q(x).view(split_heads),
            self.c_k(x).view(split_heads),
            self.c_v(x).view(split_heads),
        )
        if value_embed is not None:
            # What a token offers to later ones depends partly on the token itself (value residuals, arXiv:2410.17897;
            # a table of its own in the speedruns). The gate, 1 at first, lets each head decide how much.
            gate = 2 * torch.sigmoid(
                self.value_gate(x[..., : self.value_gate.in_features])
            )  # (B, T, G)
            v = v + gate[..., None] * value_embed.view(split_heads)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, H or G, T, D)
        if (
            self.config.qk_norm
        ):  # bounded scores forgive high learning rates (Henry et al. 2020, arXiv:2010.04245)
            q, k = F.rms_norm(q, (self.head_size,)), F.rms_norm(k, (self.head_size,))
        if rotary is not None:
            q, k = rotate(q, *rotary), rotate(k, *rotary)
        # On CPUs torch's backward pass in bfloat16 takes up to four times as long as in float32, casts included, and
        # the forward pass of a single query up to eight times as long.
        q, k, v = (
            t.float() if x.device.type == "cpu" and (x.requires_grad or cache) else t
            for t in (q, k, v)
        )
        k, v, at = cache.extend(self.layer, k, v) if cache else (k, v, None)  # (B, G, S, D)
        dropout = self.config.dropout if self.training else 0.0
        y = attend(
            q, k, v, self.config.window(self.layer), self.scale, dropout, documents, at
        )  # (B, H, T, D)
        y = y.transpose(1, 2).reshape(x.shape).to(x.dtype)  # (B, T, C)
        return F.dropout(self.c_proj(y), dropout)


# ---------------------------------------------------------------------------------------------------------------------
# MLP and block


class MLP(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.activation, self.dropout = config.activation, config.dropout
        # SwiGLU has three matrices instead of two: 8/3 keeps the number of weights.
        hidden = 8 * config.n_embd // 3 if config.activation == "swiglu" else 4 * config.n_embd
        self.c_fc = Linear(config.n_embd, hidden, bias=config.bias)
        self.c_gate = (
            Linear(config.n_embd, hidden, bias=config.bias)
            if config.activation == "swiglu"
            else None
        )
        self.c_proj = Linear(hidden, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.c_fc(x)
        if self.activation == "relu2":  # So et al. 2021, arXiv:2109.08668
            h = F.relu(h).square()
        elif self.activation == "gelu":  # the tanh form is the one GPT-2 was trained with
            h = F.gelu(h, approximate="tanh")
        else:  # Shazeer 2020, arXiv:2002.05202
            h = F.silu(self.c_gate(x)) * h
        return F.dropout(self.c_proj(h), self.dropout, self.training)


class Block(nn.Module):
    """Communication between positions, then computation at each of them; both add to the residual stream x."""

    def __init__(self, config: GPTConfig, layer: int, has_value_embed: bool):
        super().__init__()
        self.ln_1, self.attn = make_norm(config), Attention(config, layer, has_value_embed)
        self.ln_2, self.mlp = make_norm(config), MLP(config)

    def forward(self, x: Tensor, *context) -> Tensor:
        x = x + self.attn(self.ln_1(x), *context)
        return x + self.mlp(self.ln_2(x))


# ---------------------------------------------------------------------------------------------------------------------
# The loss


MANY_LOGITS = 2**28  # at once, at most, in training: a gigabyte in float32


def head(x: Tensor, weight: Tensor, vocab_size: int, softcap: float | None) -> Tensor:
    """Activations (…, C) to logits (…, V) in float32, padding cut off."""
    logits = F.linear(x, weight.to(x.dtype))[..., :vocab_size].float()
    return (
        logits if softcap is None else softcap * torch.tanh(logits / softcap)
    )  # Gemma 2, arXiv:2408.00118 §2


class HeadLoss(torch.autograd.Function):
    """The sum of the cross-entropies of what `head` predicts, with the logits of a part of the positions at a time.

    Logits are by far the largest tensors of a step, and those of a position are needed for its own loss and gradients
    only. So the forward pass finds both while it has them, and the backward pass just scales (Hsu et al. 2024, Liger
    Kernel, arXiv:2410.10989). Nothing is computed twice.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, targets: Tensor, *shape) -> Tensor:
        def loss_of(part, weight, wanted):
            return F.cross_entropy(
                head(part, weight, *shape), wanted, ignore_index=-1, reduction="sum"
            )

        loss, grad_weight, grad_x, rows = 0.0, 0.0, [], max(1, MANY_LOGITS // len(weight))
        for part, wanted in zip(x.flatten(0, -2).split(rows), targets.flatten().split(rows)):
            grads, own = torch.func.grad_and_value(loss_of, (0, 1))(part, weight, wanted)
            loss, grad_weight = loss + own, grad_weight + grads[1].float()
            grad_x.append(grads[0])
        ctx.save_for_backward(torch.cat(grad_x).view_as(x), grad_weight)
        return loss

    @staticmethod
    def backward(ctx, grad: Tensor):
        return *(grad.to(saved.dtype) * saved for saved in ctx.saved_tensors), None, None, None


# ---------------------------------------------------------------------------------------------------------------------
# The model


class GPT(nn.Module):
    """A decoder-only transformer. Weights are float32; compute_dtype is the dtype of the activations."""

    def __init__(self, config: GPTConfig, compute_dtype: torch.dtype = torch.float32):
        super().__init__()
        assert config.vocab_size is not None, "vocab_size has to be known before the model is built"
        self.config, self.compute_dtype = config, compute_dtype
        C, L, D, G = (
            config.n_embd,
            config.n_layer,
            config.n_embd // config.n_head,
            config.n_kv_head or config.n_head,
        )
        self.wte = nn.Embedding(config.padded_vocab(), C)
        if config.position == "learned":
            self.wpe = nn.Embedding(config.block_size, C)
        else:
            frequency = config.rope_base ** -(
                torch.arange(0, D, 2) / D
            )  # (D/2,) radians per position
            angle = torch.outer(torch.arange(config.block_size), frequency)  # (block_size, D/2)
            self.register_buffer("cos", angle.cos(), persistent=False)
            self.register_buffer("sin", angle.sin(), persistent=False)
        with_value = range(L - 1, -1, -2)[: config.value_embeds]
        self.value_embeds = nn.ModuleDict(
            {str(i): nn.Embedding(config.padded_vocab(), G * D) for i in with_value}
        )
        if config.bigram_rows:
            self.bigrams = nn.Embedding(config.bigram_rows, C)
        if config.residual_scalars:
            self.residual_scale = nn.Parameter(torch.ones(L))
            self.shortcut_scale = nn.Parameter(torch.full((L,), 0.1))
        self.h = nn.ModuleList(Block(config, layer, layer in with_value) for layer in range(L))
        self.ln_f = make_norm(config)
        self.lm_head = Linear(C, config.padded_vocab(), bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.wte.weight
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Fill every matrix and table from a normal distribution with the deviation below; biases are 0."""
        modern, hidden = self.config.weight_init == "modern", 0.6 / math.sqrt(self.config.n_embd)
        deviation = {  # (modern, gpt2); gpt2 is GPT-2's and nanoGPT's
            "wte": (
                0.02 if self.config.tie_embeddings else 0.8,
                0.02,
            ),  # a tied table has to make calm logits too
            "wpe": (0.02, 0.02),
            "value_embeds": (0.01, 0.02),
            "bigrams": (0.0, 0.0),
            "c_proj": (
                0.0,
                0.02 / math.sqrt(2 * self.config.n_layer),
            ),  # 0: a new block changes nothing at first
            "value_gate": (0.0, 0.0),  # every gate is 1 at first
            "lm_head": (0.001, 0.02),  # every token is about equally probable at first
        }
        for name, weight in self.named_parameters():
            modern_std, gpt2_std = next(
                (deviation[k] for k in deviation if k in name.split(".")), (hidden, 0.02)
            )
            if weight.ndim == 2:
                weight.normal_(std=modern_std if modern else gpt2_std)
            elif name.endswith("bias"):
                weight.zero_()

    def forward(
        self, tokens: Tensor, targets: Tensor | None = None, cache=None, reduction: str = "mean"
    ) -> Tensor:
        """Predict the next token at every position.

        tokens: (B, T) int64. Without targets returns logits, (B, T, V) float32; with a cache only the last
        position's, (B, 1, V). With targets, (B, T) int64 where -1 means "not scored", returns the cross-entropy in
        nats per token: a scalar for reduction="mean", (B, T) for "none" (0 where not scored).
        """
        T, at = tokens.size(1), slice(tokens.size(1))
        assert T <= self.config.block_size, (
            f"{T} positions exceed block_size={self.config.block_size}"
        )
        if cache is not None:
            at = cache.at = cache.length + torch.arange(T, device=tokens.device)  # (T,)
            cache.length += T
        x, rotary = self.wte(tokens).to(self.compute_dtype), None  # (B, T, C)
        if self.config.bigram_rows:
            x = x + self.bigrams(self.pair(tokens, cache)).to(x.dtype)
        if self.config.position == "rope":
            rotary = self.cos[at].to(x.dtype), self.sin[at].to(x.dtype)  # (T, D/2) each
        else:
            x = x + self.wpe.weight[at].to(x.dtype)
        x = F.dropout(x, self.config.dropout, self.training)
        if self.config.residual_scalars:
            x = x0 = F.rms_norm(x, (x.size(-1),))
        alone = self.config.document_mask and cache is None
        documents = (
            (tokens == self.config.document_token).cumsum(dim=1) if alone else None
        )  # (B, T)
        for layer, block in enumerate(self.h):
            if self.config.residual_scalars:
                # Each block sees the embedding again and may damp what was added before it (nanochat, modded-nanogpt).
                x = (
                    self.residual_scale[layer].to(x.dtype) * x
                    + self.shortcut_scale[layer].to(x.dtype) * x0
                )
            table = self.value_embeds[str(layer)] if str(layer) in self.value_embeds else None
            x = block(x, table(tokens).to(x.dtype) if table else None, rotary, cache, documents)
        x = x if cache is None else x[:, -1:]  # (B, T or 1, C)
        x, weight, shape = (
            self.ln_f(x),
            self.lm_head.weight,
            (self.config.vocab_size, self.config.logit_softcap),
        )
        if (
            reduction == "mean"
            and x.requires_grad
            and targets is not None
            and targets.numel() * shape[0] > MANY_LOGITS
        ):
            return HeadLoss.apply(x, weight, targets, *shape) / (targets >= 0).sum()
        logits = head(x, weight, *shape)  # (B, T, V)
        if targets is None:
            return logits
        loss = F.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction=reduction
        )
        return loss.view(targets.shape) if reduction == "none" else loss

    def pair(self, tokens: Tensor, cache: KVCache | None) -> Tensor:
        """(B, T) rows of the bigram table: each token with the one before it, for which 0 stands at the very beginning.

        What two tokens mean together is known before any attention. Pairs share rows by a hash where they are too many
        (modded-nanogpt's bigram hash embedding).
        """
        V, rows, before = (
            self.config.vocab_size,
            self.config.bigram_rows,
            F.pad(tokens, (1, 0))[:, :-1],
        )
        if cache is not None:
            before[:, 0] = cache.last
            cache.last.copy_(tokens[:, -1])
        return before * V + tokens if rows >= V * V else (36313 * tokens ^ 27191 * before) % rows

    def flops_per_token(self) -> float:
        """Training FLOPs per token, forward and backward: 6 per matrix weight and 12·C per position attended to.

        (PaLM, arXiv:2204.02311, appendix B: tables that are looked up cost nothing; the causal half is not deducted.)
        """
        weights = self.lm_head.weight.numel() + sum(
            p.numel() for p in self.h.parameters() if p.ndim == 2
        )
        attended = sum(self.config.window(layer) for layer in range(self.config.n_layer))
        return 6 * weights + 12 * self.config.n_embd * attended

    # -----------------------------------------------------------------------------------------------------------------
    # Generation

    @torch.no_grad()
    def generate(
        self,
        prompts: list[list[int]],
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stop_token: int | None = None,
        on_token=None,
    ) -> list[list[int]]:
        """Continue each prompt by up to max_new_tokens tokens; returns the new tokens of each, without stop_token.

        temperature: 0 takes the most probable token, 1 samples the model's distribution. top_k, top_p: sample among
        the k most probable tokens, or the fewest that hold probability p (nucleus, arXiv:1904.09751). seed: the same
        seed gives the same tokens. on_token: called with each new (B,) column of tokens; a row still inside its prompt
        shows its prompt there, one that met stop_token repeats it.

        A token is predicted from at most block_size tokens before it. When the cache is full it is filled again with
        the latest half of them, so that a token costs the same however long the text gets. Raises ValueError.
        """
        require(
            bool(prompts) and all(prompts),
            "every prompt needs at least one token (end-of-text begins a document)",
        )
        require(
            temperature == 0 or temperature >= 1e-4, f"{temperature=} must be 0, or at least 0.0001"
        )
        valid = (
            (top_k is None or top_k >= 1)
            and (top_p is None or 0 < top_p <= 1)
            and max_new_tokens <= 10**7
        )
        require(
            valid,
            f"{top_k=} is not 1 or more, or {top_p=} not in (0, 1], or {max_new_tokens=} is above 10**7",
        )
        was_training, device = self.training, self.wte.weight.device
        self.eval()
        generator = None if seed is None else torch.Generator(device).manual_seed(seed)
        # Prompts of several lengths need no padding: all rows advance together from the shortest prompt's end, and a
        # row that is still inside its prompt takes the prompt's token instead of the sampled one.
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)  # (B,)
        total = int(lengths.max()) + max_new_tokens
        text = torch.tensor(
            [p + [-1] * (total - len(p)) for p in prompts], device=device
        )  # (B, total)
        done = torch.zeros_like(lengths, dtype=torch.bool)
        # On CUDA the step of one token is captured as a graph: its hundreds of small kernels are started all at once.
        capture, S = (
            getattr(getattr(torch, device.type), "make_graphed_callables", None),
            self.config.block_size,
        )
        whole = (
            capture is not None and min(max_new_tokens, S) > 8
        )  # the capture itself takes a few steps
        cache, begin = KVCache(self.config, len(prompts), self.compute_dtype, device, whole), -S
        plain = lambda new: self(new, cache=cache)  # noqa: E731
        step = capture(plain, (text[:, :1].clone(),)) if whole else plain
        for end in range(int(lengths.min()), total):  # the cache holds text[:, begin : end - 1]
            if end - begin > S:
                begin = max(0, end - (S if begin < 0 else max(1, S // 2)))
                cache.length.zero_(), cache.last.zero_()
                logits = plain(text[:, begin:end])[:, -1]  # (B, V)
            else:
                logits = step(text[:, end - 1 : end])[:, -1]
            token = sample_token(logits, temperature, top_k, top_p, generator)  # (B,)
            token = torch.where(
                done, text[:, end - 1], torch.where(end < lengths, text[:, end], token)
            )
            done |= (end >= lengths + max_new_tokens - 1) | (
                (end >= lengths) & (token == stop_token)
            )
            text[:, end] = token
            if on_token is not None:
                on_token(token)
            if stop_token is not None and done.all():  # which waits for the device
                break
        self.train(was_training)
        rows = [row[len(p) : len(p) + max_new_tokens] for row, p in zip(text.tolist(), prompts)]
        return [row[: row.index(stop_token)] if stop_token in row else row for row in rows]


def sample_token(
    logits: Tensor, temperature: float, top_k: int | None, top_p: float | None, generator=None
) -> Tensor:
    """Draw one token per row. logits: (B, V) float32; returns (B,) int64."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    ordered, tokens = (logits / temperature).topk(
        min(top_k or logits.size(-1), logits.size(-1))
    )  # (B, k), descending
    probability = ordered.softmax(dim=-1)
    if (
        top_p is not None
    ):  # a token goes where what the more probable ones hold suffices already; the first never
        probability = probability.masked_fill(
            probability.cumsum(dim=-1) - probability >= max(top_p, 1e-30), 0.0
        )
    return tokens.gather(-1, torch.multinomial(probability, 1, generator=generator))[:, 0]
