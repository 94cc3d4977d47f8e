"""GPT-2 itself, 124M parameters: learned positions, LayerNorm, GELU, biases, tied embeddings, AdamW. nanoGPT's settings.

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
