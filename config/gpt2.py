"""GPT-2's size, trained with the modern parts: the default model, and the optimizer settings that go with it.

    python train.py config/gpt2.py --data=data/NAME

Hardware: one GPU with 80 GB (H100, H200, A100); with less memory lower micro_batch_size, nothing else changes.
Time:     not yet measured.
Expected: not yet measured.

The data is yours to prepare, with GPT-2's tokenizer or one of its own:
    python prepare_data.py --source=PATH --name=NAME --tokenizer=gpt2
"""

data = "data/text"

# 12 layers, 768 channels and 6 heads of 128 are the model's defaults. What each part below is worth on a GPU has not been
# measured; where it comes from stands beside it, and BENCHMARKS.md has the loop that takes each of them away in turn.
block_size = 1024
window_pattern = "SSSL"  # three of four layers look back 256 tokens (modded-nanogpt, nanochat)
window_size = 256
value_embeds = 3  # tables, in every other of the last layers (modded-nanogpt)
bigram_rows = (
    5 * 50_304
)  # a table of token pairs: the largest gain per second on a CPU, and in modded-nanogpt's records
micro_batch_size = 64  # 65,536 tokens at once
batch_tokens = (
    2**18
)  # smaller batches learn more per token and keep a GPU less busy (autoresearch: 2**18 beat 2**19)

max_tokens = 2_500_000_000
muon_lr = (
    0.03  # 0.02 at 2**17 tokens (modded-nanogpt, nanochat), with about the square root of the batch
)
embed_lr = 0.3
head_lr = 0.006
weight_decay = 0.1  # of the hidden matrices, cautious, falling with the learning rate (nanochat)
warmup = 0.0  # Muon's momentum rises instead
decay = 0.6  # linear over the last three fifths (nanochat, autoresearch)
final_lr = 0.1
eval_interval = 500
