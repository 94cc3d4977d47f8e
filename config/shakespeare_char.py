"""Tiny Shakespeare by characters, nanoGPT's CPU benchmark: bytes, a context of 64.

    python train.py config/shakespeare_char.py

Hardware: 2 CPU cores.
Time:     3 seconds of training on a fast machine, 10 on a slow one.
Expected: val_loss 1.84 to 1.88 on the last tenth of the text. nanoGPT's CPU recipe ends at 1.89 to
          1.92 after 2,000 steps and about 100 seconds. --max_steps=1000 writes better text.
"""

data = "data/shakespeare_char"
prepare = "--source=shakespeare --name=shakespeare_char"

# One layer and a table of character pairs: 90 steps see a fifth of the text and teach no more.
block_size = 64
n_layer = 1
n_head = 4
n_embd = 128
value_embeds = 1
bigram_rows = 8192
# With base 100,000 most rotations hardly turn in 64 positions.
rope_base = 100.0
# The cap on the logits costs a twentieth of a step on a CPU and gains nothing here.
logit_softcap = None
batch_tokens = 2048
muon_lr = 0.06
embed_lr = 0.6
head_lr = 0.012
max_steps = 90

sample_prompt = "ROMEO:"
