"""The training runs to compare: a small model, and what each variant changes of it."""

from dataclasses import dataclass, field

SMALL = {
    "data": "data/words",
    "block_size": 32,
    "n_layer": 4,
    "n_head": 4,
    "n_embd": 32,
    "value_embeds": 1,
    "batch_tokens": 256,
    "max_steps": 20,
    "log_interval": 1,
    "eval_interval": 10,
    "save_interval": 8,
    "device": "cpu",
    "dtype": "float32",
}
GPT2 = {
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
ADAMW = {
    "optimizer": "adamw",
    "learning_rate": 3e-3,
    "beta1": 0.9,
    "beta2": 0.95,
    "eps": 1e-8,
    "grad_clip": 1.0,
}
PROMPT = "¶ the model"
MIXTURE = "data/words:0.7,data/more:0.3"


@dataclass(frozen=True)
class Variant:
    """changes: options beside SMALL. max_logits: forces the chunked loss. needs: earlier cases."""

    changes: dict
    max_logits: int | None = None
    needs: tuple[str, ...] = field(default=("data/words",))

    def options(self) -> dict:
        return SMALL | self.changes


def variant(max_logits: int | None = None, needs: tuple[str, ...] = (), **changes) -> Variant:
    return Variant(changes, max_logits, ("data/words", *needs))


# Switches of GPTConfig: each is compared in its gradients too.
MODELS = {
    "modern": variant(),
    "learned_positions": variant(position="learned"),
    "rope_base": variant(rope_base=100.0),
    "layer_norm": variant(norm="layer"),
    "layer_norm_bias": variant(norm="layer", bias=True),
    "bias": variant(bias=True),
    "gelu": variant(activation="gelu"),
    "swiglu": variant(activation="swiglu"),
    "no_qk_norm": variant(qk_norm=False),
    "tied": variant(tie_embeddings=True),
    "no_softcap": variant(logit_softcap=None),
    "softcap": variant(logit_softcap=1.5),
    "value_embeds_0": variant(value_embeds=0),
    "value_embeds_2": variant(value_embeds=2),
    "bigrams_hashed": variant(bigram_rows=1000),
    "bigrams_full": variant(bigram_rows=257 * 257),
    "no_residual_scalars": variant(residual_scalars=False),
    "windows": variant(window_pattern="SSL", window_size=8),
    "kv_heads": variant(n_kv_head=2, value_embeds=2),
    "kv_head": variant(n_kv_head=1, n_layer=3),
    "document_mask": variant(document_mask=True),
    "document_windows": variant(document_mask=True, window_pattern="S", window_size=5),
    "dropout": variant(dropout=0.2),
    "dropout_gpt2": variant(**GPT2 | {"dropout": 0.1}),
    "gpt2_init": variant(weight_init="gpt2"),
    "gpt2": variant(**GPT2),
    "gpt2_adamw": variant(**GPT2 | ADAMW),
    "larger_vocab": variant(vocab_size=300),
    "bfloat16": variant(dtype="bfloat16"),
    "bfloat16_gpt2": variant(**GPT2 | {"dtype": "bfloat16", "dropout": 0.1}),
    "bfloat16_switches": variant(
        dtype="bfloat16", bigram_rows=1000, document_mask=True, window_pattern="SL", n_kv_head=2
    ),
    "float16": variant(dtype="float16"),
    "chunked": variant(5000),
    "chunked_bfloat16": variant(5000, dtype="bfloat16", tie_embeddings=True),
    "chunked_float16": variant(5000, dtype="float16", document_mask=True),
    "chunked_no_softcap": variant(1, logit_softcap=None, norm="layer"),
}

# What only training has: compared in the runs alone.
RUNS = {
    "adamw": variant(**ADAMW),
    "adamw_bfloat16": variant(**ADAMW | {"dtype": "bfloat16", "grad_clip": None}),
    "clip": variant(grad_clip=0.1),
    "accumulation": variant(micro_batch_size=2, dropout=0.1),
    "accumulation_clip_float16": variant(micro_batch_size=4, grad_clip=0.5, dtype="float16"),
    "accumulation_chunked": variant(3000, micro_batch_size=4),
    "float16_adamw": variant(**ADAMW | {"dtype": "float16"}),
    "cosine": variant(warmup=0.25, decay=0.75, decay_shape="cosine", final_lr=0.0),
    "linear": variant(warmup=0.1, decay=0.3, final_lr=0.5),
    "no_decay": variant(decay=0.0, warmup=0.5),
    "momentum": variant(momentum=0.9, momentum_warmup=0.0, weight_decay=0.0),
    "momentum_warmup": variant(momentum_warmup=0.8, weight_decay=1.0),
    "rates": variant(muon_lr=0.05, embed_lr=0.1, head_lr=0.02, scalar_lr=0.1),
    "max_tokens": variant(max_steps=None, max_tokens=4000),
    "both_limits": variant(max_tokens=10**6, save_interval=None, eval_interval=None),
    "intervals": variant(log_interval=3, eval_interval=7, save_interval=5),
    "seed": variant(seed=7),
    "epochs": variant(max_steps=130),
    "mixture": variant(data=MIXTURE, needs=("data/more",)),
    "mixture_aligned": variant(data=MIXTURE, align_documents=True, needs=("data/more",)),
    "aligned": variant(align_documents=True, max_steps=80),
    "aligned_masked": variant(align_documents=True, document_mask=True, dtype="bfloat16"),
    "byte_pairs": variant(data="data/faults", needs=("data/faults",)),
    "finetuned": variant(init_from="out/modern", block_size=16, needs=("train/modern",)),
    "finetuned_gpt2": variant(
        needs=("train/dropout_gpt2",),
        **GPT2 | {"init_from": "out/dropout_gpt2", "dropout": 0.3, "block_size": 16},
    ),
    "sampled": variant(sample_prompt=PROMPT, max_steps=5),
}


def flags(options: dict) -> list[str]:
    return [f"--{name}={value}" for name, value in options.items()]
