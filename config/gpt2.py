"""GPT-2's size, trained with the modern parts: the default model, and the optimizer settings that go with it.

    python train.py config/gpt2.py --data=data/NAME

Hardware: one GPU with 80 GB (H100, H200, A100); with less memory lower micro_batch_size, nothing else changes.
Time:     not yet measured.
Expected: not yet measured.

The data is yours to prepare, with GPT-2's tokenizer or one of its own:
    python prepare_data.py --source=PATH --name=NAME --tokenizer=gpt2
"""

data = "data/text"

# 12 layers, 768 channels and 6 heads of 128 are the model's defaults.
block_size = 1024
window_pattern = "SSSL"  # three of four layers look back 256 tokens: cheaper, and no worse
micro_batch_size = 64  # 65,536 tokens at once
batch_tokens = 2**18

max_tokens = 2_500_000_000
muon_lr = 0.03
eval_interval = 500
