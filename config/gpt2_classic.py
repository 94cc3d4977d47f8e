"""GPT-2 itself, 124M parameters: learned positions, LayerNorm, GELU, biases, tied tables, AdamW. nanoGPT's settings.

    python train.py config/gpt2_classic.py --data=data/NAME
    python train.py config/gpt2_classic.py --data=data/NAME --init_from=gpt2   # begin with the published weights

Hardware: one GPU with 80 GB; with less memory lower micro_batch_size, nothing else changes.
Time:     not yet measured.
Expected: not yet measured here; nanoGPT reports a validation loss of about 2.85 on OpenWebText for these settings.

Read it beside config/gpt2.py: each line here is one thing that has been learnt since.
    python prepare_data.py --source=PATH --name=NAME --tokenizer=gpt2
"""

data = "data/text"

# The model
n_layer = 12
n_head = 12
n_embd = 768
block_size = 1024
position = "learned"
norm = "layer"
activation = "gelu"
bias = True
tie_embeddings = True
qk_norm = False
logit_softcap = None
value_embeds = 0
residual_scalars = False
weight_init = "gpt2"

# The optimizer
optimizer = "adamw"
learning_rate = 6e-4
beta1 = 0.9
beta2 = 0.95
eps = 1e-8
weight_decay = 0.1
grad_clip = 1.0

# The schedule: 2,000 steps up, a cosine down to a tenth over the rest
max_steps = 600_000
warmup = 2_000 / max_steps
decay = 1 - warmup
decay_shape = "cosine"
final_lr = 0.1

# 480 sequences a step
micro_batch_size = 12
batch_tokens = 480 * block_size
eval_interval = 2_000
save_interval = 2_000


def published_weights(source: str) -> dict:
    """GPT-2's published weights as a checkpoint of this program: its "config", "model" and "tokenizer".

    source: gpt2, gpt2-medium, gpt2-large or gpt2-xl, which the transformers library downloads once, or the path of a
    local folder in its format. They come without a tokenizer (None): GPT-2's is tiktoken's "gpt2".

    There a matrix is (in, out), and q, k, v are one; in nn.Linear it is (out, in). The vocabulary's padding is 0.
    """
    from dataclasses import asdict, fields

    from torch.nn.functional import pad
    from transformers import GPT2LMHeadModel

    from model import GPTConfig

    published = GPT2LMHeadModel.from_pretrained(source)
    theirs, recipe = published.config, globals()
    switches = {
        field.name: recipe[field.name] for field in fields(GPTConfig) if field.name in recipe
    }
    sizes = {"n_layer": theirs.n_layer, "n_head": theirs.n_head, "n_embd": theirs.n_embd}
    config = GPTConfig(
        **switches | sizes | {"block_size": theirs.n_positions, "vocab_size": theirs.vocab_size}
    )
    weights = {}
    for name, value in published.state_dict().items():
        value = value.t() if ".c_" in name and value.ndim == 2 else value
        parts = ("c_q", "c_k", "c_v") if "c_attn" in name else ("c_attn",)
        for part, rows in zip(parts, value.chunk(len(parts))):
            weights[name.removeprefix("transformer.").replace("c_attn", part)] = rows
    table = pad(weights["wte.weight"], (0, 0, 0, config.padded_vocab() - theirs.vocab_size))
    weights |= {"wte.weight": table, "lm_head.weight": table}
    return {"config": asdict(config), "model": weights, "tokenizer": None}
