"""Small models for the tests: every switch of GPTConfig at least once."""

from dataclasses import replace

import torch

from model import GPT, GPTConfig
from nanoloop.gpt2 import SWITCHES

CPU = torch.device("cpu")
SMALL = GPTConfig(block_size=16, vocab_size=50, n_layer=4, n_head=4, n_embd=32, value_embeds=2)
# Combinations of switches that meet each other in the code.
VARIANTS = {
    "modern": SMALL,
    "gpt2": replace(SMALL, **SWITCHES),
    "windows": replace(SMALL, window_pattern="SSL", window_size=5),
    "grouped_query": replace(SMALL, n_kv_head=2, value_embeds=1),
    "swiglu_tied": replace(SMALL, activation="swiglu", tie_embeddings=True, logit_softcap=None),
    "layer_norm_gelu": replace(SMALL, norm="layer", bias=True, activation="gelu", qk_norm=False),
    "bigrams": replace(SMALL, bigram_rows=50 * 50),
    "hashed_bigrams": replace(SMALL, bigram_rows=37, position="learned", residual_scalars=False),
    "documents": replace(
        SMALL, document_mask=True, document_token=0, window_pattern="SL", window_size=5
    ),
    "learned_windows": replace(
        SMALL, position="learned", residual_scalars=False, window_pattern="S", window_size=3
    ),
}


def random_model(config: GPTConfig, seed: int = 0) -> GPT:
    """Build a model whose every parameter matters: fresh projections of zero hide mistakes."""
    torch.manual_seed(seed)
    model = GPT(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return model


def random_tokens(batch: int, length: int, seed: int = 1, vocab_size: int = 50) -> torch.Tensor:
    """Draw (batch, length) token ids."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(vocab_size, (batch, length), generator=rng)
