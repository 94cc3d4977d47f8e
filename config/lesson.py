"""The lesson's recipe: a small model that the exercises of docs/tour.md change.

    python train.py config/lesson.py

Hardware: 2 CPU cores.
Time:     8 seconds in all on idle cores, also the first time, which prepares the data.
Expected: val_bpb (bits per byte of source) about 2.50.

The run ends after a number of steps, not of seconds, so a busy machine gives the same answer.
"""

data = "data/lesson"
# Three megabytes of the standard library. The vocabulary is small, so the head is cheap.
prepare = (
    "--source=python --name=lesson --tokenizer=bpe:1024 --max_bytes=3_000_000 --duplicates=near"
)

n_layer = 2
n_head = 4
n_embd = 128
block_size = 64
value_embeds = 1
batch_tokens = 1024
embed_lr = 0.6
head_lr = 0.012
max_steps = 80
