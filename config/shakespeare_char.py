"""Tiny Shakespeare by characters, nanoGPT's CPU benchmark: bytes, context 64, the last tenth as validation.

    python train.py config/shakespeare_char.py

Hardware: 2 CPU cores.
Time:     8.0 to 9.4 seconds of training (five seeds).
Expected: val_loss 1.818 to 1.842 (five seeds). nanoGPT's CPU recipe ends at 1.8857 after 2,000 steps.
"""

data = "data/shakespeare_char"
prepare = "--source=shakespeare --name=shakespeare_char"

block_size = 64
n_layer = 2
n_head = 2
n_embd = 128
value_embeds = 1
batch_tokens = 2048
embed_lr = 0.6
head_lr = 0.012
max_steps = 200

log_interval = 20
sample_prompt = "ROMEO:"
