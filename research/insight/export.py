"""Export a run as a Hugging Face folder: python -m research export RUN FOLDER

The folder loads without a network. It is loaded again and its logits are compared before it is
kept. --init_from=FOLDER reads it back.
"""

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tyro.conf import Positional

from model import GPT, GPTConfig
from nanoloop.checkpoint import load_weights
from nanoloop.gpt2 import OWN_CONFIG, OWN_TOKENIZER, has_gpt2s_shape, qwen3_name
from nanoloop.options import require
from nanoloop.tokenizer import Tokenizer
from nanoloop.vocabulary import END_OF_TEXT
from research.insight.reading import model_of, tokenizer_of

LARGEST_DIFFERENCE = 1e-3  # of a logit, in float32
ROOT = Path(__file__).parents[2]
# Qwen3 has none of these parts.
PLAIN = {
    "position": "rope",
    "norm": "rms",
    "bias": False,
    "qk_norm": True,
    "value_embeds": 0,
    "bigram_rows": 0,
    "residual_scalars": False,
    "logit_softcap": None,
    "document_mask": False,
    "window_pattern": None,
}
# The code of a model, with the file that transformers looks for.
CODE = (
    "model.py",
    "nanoloop/attention.py",
    "nanoloop/loss.py",
    "nanoloop/loss_kernel.py",
    "research/insight/modeling_nanoloop.py",
)

NOTES = {
    "GPT2LMHeadModel": "any program that reads GPT-2 can read it",
    "Qwen3ForCausalLM": "llama.cpp computes SiLU in each qwen3: convert it to GGUF if it is swiglu",
    "NanoloopForCausalLM": "its code is in the folder, so loading needs trust_remote_code=True",
}


@dataclass(frozen=True)
class ExportOptions:
    """Write a trained model as a folder that transformers loads."""

    run: Positional[str] = ""  # folder of a run, or a checkpoint
    folder: Positional[str] = ""  # to write; it must not exist


# -----------------------------------------------------------------------------
# The three forms


def as_gpt2(config: GPTConfig, weights: dict):
    """Return the model as a GPT2LMHeadModel: for the classic settings."""
    from transformers import GPT2Config, GPT2LMHeadModel

    published = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.block_size,
            n_embd=config.n_embd,
            n_layer=config.n_layer,
            n_head=config.n_head,
        )
    )
    state = {}
    for name in published.state_dict():
        name_here = name.removeprefix("transformer.")
        if "c_attn" in name:  # queries, keys and values in one matrix
            parts = [name_here.replace("c_attn", part) for part in ("c_q", "c_k", "c_v")]
            value = torch.cat([weights[part] for part in parts])
        else:
            value = weights[name_here]
        if ".c_" in name and value.ndim == 2:
            value = value.t()  # nn.Linear has (out, in), GPT-2 is published as (in, out)
        state[name] = value
    published.load_state_dict(state)
    return published


def as_qwen3(config: GPTConfig, weights: dict):
    """Return the model as a Qwen3ForCausalLM: rotary, RMSNorm, normalized queries and keys.

    relu(z)² is a gated MLP with relu whose gate and value are the same matrix. The sharper softmax
    is the gain of the queries' norm.
    """
    from transformers import Qwen3Config, Qwen3ForCausalLM

    is_gated = config.activation == "swiglu"
    network = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=config.vocab_size,
            hidden_size=config.n_embd,
            intermediate_size=len(weights["h.0.mlp.c_fc.weight"]),
            num_hidden_layers=config.n_layer,
            num_attention_heads=config.n_head,
            num_key_value_heads=config.kv_heads(),
            head_dim=config.head_size(),
            hidden_act="silu" if is_gated else "relu",
            max_position_embeddings=config.block_size,
            rms_norm_eps=torch.finfo(torch.float32).eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_base},
            tie_word_embeddings=config.tie_embeddings,
        )
    )
    # The norms have no gain in this project.
    state = {name: torch.ones_like(value) for name, value in network.state_dict().items()}
    for name, value in weights.items():
        state[qwen3_name(name)] = value
        if "c_fc" in name and not is_gated:
            state[qwen3_name(name.replace("c_fc", "c_gate"))] = value
    sharpness = GPT(config).h[0].attn.scale * config.head_size() ** 0.5
    for name in state:
        if name.endswith("q_norm.weight"):
            state[name] *= sharpness
    network.load_state_dict(state)
    return network


def as_own_code(config: GPTConfig, weights: dict, folder: Path):
    """Return the model with this project's code, which is copied into the folder."""
    for file in CODE:
        source = (ROOT / file).read_text("utf-8")
        # Modules of packages become files of one folder.
        source = source.replace("from nanoloop.", "from .").replace("from model ", "from .model ")
        (folder / Path(file).name).write_text(source, "utf-8")
    from research.insight.modeling_nanoloop import NanoloopConfig, NanoloopForCausalLM

    network = NanoloopForCausalLM(NanoloopConfig(settings=asdict(config)))
    network.gpt.load_state_dict(weights)
    network.generation_config.use_cache = False
    network.config.auto_map = {
        "AutoConfig": "modeling_nanoloop.NanoloopConfig",
        "AutoModelForCausalLM": "modeling_nanoloop.NanoloopForCausalLM",
    }
    return network


# -----------------------------------------------------------------------------
# Tokenizer, card, comparison


def hub_tokenizer(tokenizer: Tokenizer, block_size: int):
    """Return the tokenizer in the format of the tokenizers library. Raises UserError."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter

    # The library's regular expressions: $ ends a line there, and {1,3}+ repeats.
    pattern = (tokenizer.pattern or r"[\s\S]").replace("}+", "}").replace("$", r"\z")
    converter = TikTokenConverter("-", pattern, extra_special_tokens=tokenizer.special)
    converter.load_tiktoken_bpe = lambda _: tokenizer.ranks
    converted = converter.converted()
    # A document begins with end-of-text.
    converted.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, tokenizer.end_of_text)]
    )
    text = "".join(map(chr, range(0xD800))) + " the 12345 lines\n\n  of code,\t'll  don't\r\n" * 9
    is_same = converted.encode(text, add_special_tokens=False).ids == list(tokenizer.encode(text))
    is_same &= converted.token_to_id(END_OF_TEXT) == tokenizer.end_of_text
    require(is_same, f"the tokenizer {tokenizer.name} has no equal in the tokenizers library")
    return PreTrainedTokenizerFast(
        tokenizer_object=converted,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        model_max_length=block_size,
    )


def card(checkpoint: dict, kind: str) -> str:
    """Return the text of the folder's README.md."""
    config = checkpoint["config"]
    return f"""\
---
library_name: transformers
license: other
---

# A model trained with nanoloop

- class: {kind}
- data: {config.get("data")}, fingerprint {checkpoint.get("data")}
- steps: {checkpoint.get("step")}, tokens: {checkpoint.get("tokens")}
- best validation loss, nats per token: {checkpoint.get("best")}
- {config["n_layer"]} layers, {config["n_embd"]} channels, {config["n_head"]} heads
- a context of {config["block_size"]} and {config["vocab_size"]} tokens
- licence: that of the text it was trained on; write it here before you publish
- {NOTES[kind]}
"""


@torch.no_grad()
def largest_difference(model: GPT, folder: Path) -> float:
    """Load the folder again; return the largest difference of a logit on random tokens."""
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, local_files_only=True, dtype=torch.float32
    ).eval()
    generator = torch.Generator().manual_seed(0)
    shape = (4, model.config.block_size)
    tokens = torch.randint(model.config.vocab_size, shape, generator=generator)
    return (loaded(tokens).logits - model(tokens)).abs().max().item()


# -----------------------------------------------------------------------------


def convert(model: GPT, folder: Path):
    """Return a network of transformers with the same weights.

    The code that it needs is written into the folder.
    """
    config = model.config
    weights = model.state_dict()
    # Without the rows that round the vocabulary up.
    tables = ("wte.weight", "lm_head.weight")
    cut = weights | {name: weights[name][: config.vocab_size] for name in tables}
    if has_gpt2s_shape(config):
        return as_gpt2(config, cut)
    is_plain = all(getattr(config, name) == value for name, value in PLAIN.items())
    if is_plain and config.activation in ("relu2", "swiglu"):
        return as_qwen3(config, cut)
    return as_own_code(config, weights, folder)


def export(run: str, folder: Path) -> str:
    """Write the folder; return the name of its class. Raises UserError and leaves no folder."""
    require(not folder.exists(), f"'{folder}' exists: name a new folder")
    from transformers.utils import logging

    logging.disable_progress_bar()
    checkpoint = load_weights(run)
    require(checkpoint["tokenizer"], f"'{run}' holds no tokenizer: export a run of train.py")
    tokenizer = tokenizer_of(checkpoint)
    model = model_of(checkpoint)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        partial = Path(temporary) / "folder"
        partial.mkdir()
        network = convert(model, partial)
        kind = type(network).__name__
        end = tokenizer.end_of_text
        ends = {"bos_token_id": end, "eos_token_id": end}
        network.config.update(ends | {OWN_CONFIG: asdict(model.config)})
        network.generation_config.update(**ends, pad_token_id=end)
        network.save_pretrained(partial)
        hub_tokenizer(tokenizer, model.config.block_size).save_pretrained(partial)
        (partial / OWN_TOKENIZER).write_text(json.dumps(checkpoint["tokenizer"]), "utf-8")
        (partial / "README.md").write_text(card(checkpoint, kind), "utf-8")
        difference = largest_difference(model, partial)
        require(
            difference <= LARGEST_DIFFERENCE,
            f"the exported model's logits differ by {difference:.2g}, more than "
            f"{LARGEST_DIFFERENCE}: nothing was written",
        )
        partial.rename(folder)
    print(f"{folder}: {kind}, the largest difference of a logit is {difference:.2g}")
    print(f"note: {NOTES[kind]}")
    return kind


def main(options: ExportOptions) -> None:
    require(options.run and options.folder, "type a run and a new folder: export RUN FOLDER")
    export(options.run, Path(options.folder))
