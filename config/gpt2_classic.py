"""GPT-2 with 124M parameters, as nanoGPT trains it: learned positions, LayerNorm, GELU, AdamW.

    python train.py config/gpt2_classic.py --data=data/NAME
    python train.py config/gpt2_classic.py --data=data/NAME --init_from=gpt2  # published weights

Hardware: one GPU with 80 GB; with less memory set a smaller micro_batch_size.
Time:     not yet measured.
Expected: not yet measured; nanoGPT reports a validation loss of about 2.85 on OpenWebText.

Prepare your data with GPT-2's tokenizer:
    python prepare_data.py --source=PATH --name=NAME --tokenizer=gpt2

Read it beside config/gpt2.py: the lines that differ are what the field has learned since.
"""

data = "data/text"

# The model. nanoloop/gpt2.py sets the same switches for the published weights.
n_layer = 12
n_head = 12
n_embd = 768
block_size = 1024
position = "learned"
norm = "layer"
activation = "gelu"  # GPT-2's approximation; nanoGPT trains with gelu_exact
bias = True  # as the published weights; nanoGPT trains without
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

# The schedule: 2,000 steps up, then a cosine down to a tenth
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
