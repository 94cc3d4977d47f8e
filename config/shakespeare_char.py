"""Tiny Shakespeare by characters, nanoGPT's CPU benchmark: bytes, context 64, the last tenth as validation.

    python train.py config/shakespeare_char.py

Hardware: 2 CPU cores.
Time:     3 seconds of training.
Expected: val_loss 1.83 to 1.88. nanoGPT's CPU recipe ends at 1.89 to 1.92 after 2,000 steps and about 100 seconds.
          With --max_steps=1000 it becomes a better writer.
"""

data = "data/shakespeare_char"
prepare = "--source=shakespeare --name=shakespeare_char"

# One layer, and a table of what pairs of characters mean: as much as can be learnt from a first fifth of the text.
block_size = 64
n_layer = 1
n_head = 4
n_embd = 128
value_embeds = 1
bigram_rows = 8192
batch_tokens = 2048
muon_lr = 0.06
embed_lr = 0.6
head_lr = 0.012
max_steps = 100

log_interval = 20
sample_prompt = "ROMEO:"
