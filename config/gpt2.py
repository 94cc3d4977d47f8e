"""GPT-2's size with modern parts: the default model and its optimizer settings.

    python train.py config/gpt2.py --data=data/NAME

Hardware: one GPU with 80 GB (H100, H200, A100); with less memory set a smaller micro_batch_size.
Time:     not yet measured.
Expected: not yet measured.

Prepare your data with GPT-2's tokenizer, or train one of 32,768 tokens on it, which saves a third
of the head's arithmetic (docs/figures.md); compare the two in bits per byte:
    python prepare_data.py --source=PATH --name=NAME --tokenizer=gpt2
    python prepare_data.py --source=PATH --name=NAME --tokenizer=bpe:32768
"""

data = "data/text"

# 12 layers, 768 channels and 6 heads of 128 channels are the model's defaults. The gain of each
# part below on a GPU is not yet measured; its source stands beside it.
block_size = 1024
window_pattern = "SSSL"  # three of four layers attend to 256 tokens (modded-nanogpt, nanochat)
window_size = 256
value_embeds = 3  # tables, in every other of the last layers (modded-nanogpt)
bigram_rows = 5 * 50_304  # a table of token pairs: the largest gain per second on a CPU
micro_batch_size = 64  # 65,536 tokens at once
batch_tokens = 2**18  # autoresearch: better than 2**19; smaller batches keep a GPU less busy

max_tokens = 2_500_000_000
muon_lr = 0.03  # 0.02 at 2**17 tokens (modded-nanogpt, nanochat), times √(batch ratio)
embed_lr = 0.3
head_lr = 0.006
weight_decay = 0.1  # of the hidden matrices, cautious, falling with the learning rate (nanochat)
warmup = 0.0  # Muon's momentum rises instead
decay = 0.6  # linear over the last three fifths (nanochat, autoresearch)
final_lr = 0.1
eval_interval = 500
