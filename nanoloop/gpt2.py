"""Other programs' weights as a checkpoint: GPT-2's, research export's, nanoGPT's."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from torch.nn.functional import pad

from model import GPT, GPTConfig
from nanoloop.options import reading, require

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

# What an exported folder holds besides transformers' files: a key of config.json, and a file.
OWN_CONFIG = "nanoloop"
OWN_TOKENIZER = "nanoloop_tokenizer.json"

# Parts of names here, and in transformers' Qwen3.
QWEN3_NAMES = {
    "wte": "model.embed_tokens",
    "h.": "model.layers.",
    "attn.c_q": "self_attn.q_proj",
    "attn.c_k": "self_attn.k_proj",
    "attn.c_v": "self_attn.v_proj",
    "attn.c_proj": "self_attn.o_proj",
    "mlp.c_fc": "mlp.up_proj",
    "mlp.c_gate": "mlp.gate_proj",
    "mlp.c_proj": "mlp.down_proj",
}


def qwen3_name(name: str) -> str:
    for part, replacement in QWEN3_NAMES.items():
        name = name.replace(part, replacement)
    return name


def published_weights(source: str) -> dict:
    """Load weights in Hugging Face's format: "config", "model" and "tokenizer" of a checkpoint.

    source: gpt2, gpt2-medium, gpt2-large or gpt2-xl, which transformers downloads once, or the
    path of a folder of GPT-2 or of python -m research export. "tokenizer" is None for a folder that
    was not exported: GPT-2's is tiktoken's "gpt2". Raises UserError where they cannot be read.
    """
    folder = Path(source)
    tokenizer = None
    with reading(f"'{source}' cannot be read", "export the run again"):
        if (folder / OWN_TOKENIZER).is_file():
            tokenizer = json.loads((folder / OWN_TOKENIZER).read_bytes())
            settings = json.loads((folder / "config.json").read_bytes())[OWN_CONFIG]
            config = GPTConfig(**settings)
            if not has_gpt2s_shape(config):
                weights = exported_weights(folder, config)
                return {"config": settings, "model": weights, "tokenizer": tokenizer}
    return gpt2_weights(source) | {"tokenizer": tokenizer}


def has_gpt2s_shape(config: GPTConfig) -> bool:
    is_classic = all(getattr(config, name) == value for name, value in SWITCHES.items())
    return is_classic and config.bigram_rows == 0 and config.kv_heads() == config.n_head


def exported_weights(folder: Path, config: GPTConfig) -> dict:
    """Read the weights of an exported folder that is not GPT-2's."""
    from safetensors.torch import load_file

    stored = {}
    for path in folder.glob("*.safetensors"):
        stored |= load_file(path)
    with torch.device("meta"):
        expected = GPT(config).state_dict()
    weights = {}
    for name, value in expected.items():
        is_tied = config.tie_embeddings and name == "lm_head.weight"
        name_in_file = "wte.weight" if is_tied else name
        found = stored.get(f"gpt.{name_in_file}")
        if found is None:
            found = stored[qwen3_name(name_in_file)]
        weights[name] = pad(found, (0, 0, 0, len(value) - len(found))) if value.ndim > 1 else found
    return weights


def gpt2_weights(source: str) -> dict:
    """Return the "config" and the "model" of GPT-2 by its name or folder."""
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
    weights = classic_weights(published.state_dict(), config, is_transposed=True)
    return {"config": asdict(config), "model": weights}


def classic_weights(stored: dict, config: GPTConfig, is_transposed: bool) -> dict:
    """Rename GPT-2's weights, split queries, keys and values, pad the table.

    is_transposed: matrices are (in, out), as published; nn.Linear has (out, in).
    """
    weights = {}
    for name, value in stored.items():
        name = name.removeprefix("_orig_mod.").removeprefix("transformer.")
        if is_transposed and ".c_" in name and value.ndim == 2:
            value = value.t()
        if "c_attn" in name:  # queries, keys and values in one matrix
            for part, rows in zip(("c_q", "c_k", "c_v"), value.chunk(3)):
                weights[name.replace("c_attn", part)] = rows
        else:
            weights[name] = value
    padding = config.padded_vocab() - len(weights["wte.weight"])
    table = pad(weights["wte.weight"], (0, 0, 0, padding))
    weights["wte.weight"] = table
    weights["lm_head.weight"] = table
    return weights


def nanogpt_weights(checkpoint: dict, path: Path) -> dict:
    """Turn nanoGPT's checkpoint into "config", "model" and "tokenizer" of ours.

    checkpoint: what its ckpt.pt holds. path: of that file; a tokenizer.json beside it is the
    vocabulary. "tokenizer" is None for GPT-2's. Raises UserError for another vocabulary, and
    where a weight is missing or unknown.
    """
    settings = SWITCHES | {"activation": "gelu_exact"} | checkpoint["model_args"]
    if settings["vocab_size"] == 50304:  # GPT-2's, padded by nanoGPT
        settings["vocab_size"] = 50257
    config = GPTConfig(**settings)
    tokenizer = None
    vocabulary = path.with_name("tokenizer.json")
    if vocabulary.is_file():
        tokenizer = json.loads(vocabulary.read_bytes())
    size = len(tokenizer["tokens"]) if tokenizer else 50257
    require(
        config.vocab_size == size,
        f"'{path}' has a vocabulary of {config.vocab_size}, expected {size}, that of {vocabulary} "
        "or else GPT-2's: docs/from_nanogpt.md says how to write that file",
    )
    weights = classic_weights(checkpoint["model"], config, is_transposed=False)
    with torch.device("meta"):
        expected = GPT(config).state_dict()
    names = sorted(expected.keys() ^ weights.keys())
    require(not names, f"'{path}' is of a changed nanoGPT: it lacks or adds {names[:3]}")
    return {"config": asdict(config), "model": weights, "tokenizer": tokenizer}
