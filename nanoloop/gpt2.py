"""GPT-2's published weights in the form of a checkpoint."""

from dataclasses import asdict

from torch.nn.functional import pad

from model import GPTConfig
from nanoloop.options import reading

# What makes a model GPT-2 apart from its size. config/gpt2_classic.py sets the same.
SWITCHES = {
    "position": "learned",
    "norm": "layer",
    "activation": "gelu",
    "bias": True,
    "tie_embeddings": True,
    "qk_norm": False,
    "logit_softcap": None,
    "value_embeds": 0,
    "residual_scalars": False,
    "weight_init": "gpt2",
}


def published_weights(source: str) -> dict:
    """Load GPT-2's published weights as a checkpoint: "config", "model" and "tokenizer".

    source: gpt2, gpt2-medium, gpt2-large or gpt2-xl, which transformers downloads once, or the
    path of a folder in its format. "tokenizer" is None: GPT-2's is tiktoken's "gpt2". Raises
    UserError where they cannot be read.
    """
    from transformers import GPT2LMHeadModel

    hint = "check the network, or give the path of a folder with GPT-2's files"
    with reading(f"'{source}' cannot be loaded", hint):
        published = GPT2LMHeadModel.from_pretrained(source)
    config = GPTConfig(
        **SWITCHES,
        n_layer=published.config.n_layer,
        n_head=published.config.n_head,
        n_embd=published.config.n_embd,
        block_size=published.config.n_positions,
        vocab_size=published.config.vocab_size,
    )
    weights = {}
    for name, value in published.state_dict().items():
        name = name.removeprefix("transformer.")
        if ".c_" in name and value.ndim == 2:
            value = value.t()  # published as (in, out), nn.Linear has (out, in)
        if "c_attn" in name:  # queries, keys and values in one matrix
            for part, rows in zip(("c_q", "c_k", "c_v"), value.chunk(3)):
                weights[name.replace("c_attn", part)] = rows
        else:
            weights[name] = value
    padding = config.padded_vocab() - config.vocab_size
    table = pad(weights["wte.weight"], (0, 0, 0, padding))
    weights["wte.weight"] = table
    weights["lm_head.weight"] = table
    return {"config": asdict(config), "model": weights, "tokenizer": None}
