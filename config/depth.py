"""A whole family of models from one dial: --depth=N sets width, heads, learning rates, batch and length of training.

    python train.py config/depth.py --depth=12

Hardware: CPU for a depth up to 4, one GPU with 80 GB from 8 on; with less memory lower micro_batch_size.
Time:     not yet measured at size; `python bench.py --plan` estimates hours by depth and card.
Expected: not yet measured at size; BENCHMARKS.md has the law that the small depths follow.

Any option may still be set beside the dial, as --max_tokens=100_000_000. The rules, each from what others measured:

    width           64 channels a layer, heads of 128 (nanochat's ratio; 128 a layer was worse there)
    length          10.5 tokens for each weight in a matrix (nanochat's fit; Hoffmann et al. 2022, arXiv:2203.15556, have
                    about 20 for each parameter of older recipes)
    batch           in tokens, with the 0.3271st power of the compute (DeepSeek LLM 2024, arXiv:2401.02954 §3.1; the idea
                    is McCandlish et al. 2018, arXiv:1812.06162): 2**18 at depth 12, at least 370 steps at any depth
    learning rates  Muon's grows with the square root of the batch and falls with the 0.32nd power of the length (Bjorck
                    et al. 2024, arXiv:2409.19913): with this batch the two cancel, and it stays. AdamW's on tables and
                    head with 1/√width (Yang et al. 2022, arXiv:2203.03466, in the form that nanochat and the speedruns
                    use)
"""

import math

data = "data/code"
prepare = "--source=python --include_site_packages=True --name=code"  # what every installation has; 8 and more need more

_depth = dial("depth", 12)  # noqa: F821 (the program gives it)

n_layer = _depth
n_embd = 64 * _depth
n_head = max(1, n_embd // 128)
value_embeds = min(3, (_depth + 1) // 2)
block_size = 1024

_vocab = 4096  # of data/code; with another data set the head's weights are counted a little wrong
_weights = 12 * n_layer * n_embd**2 + _vocab * n_embd
_weights_at_12 = 12 * 12 * 768**2 + _vocab * 768
max_tokens = int(10.5 * _weights)

_batch = 2**18 * (_weights / _weights_at_12) ** (
    2 * 0.3271
)  # compute is 6 · weights · length, and length ∝ weights
batch_tokens = 2 ** max(10, round(math.log2(_batch)))
micro_batch_size = min(
    batch_tokens // block_size, 64 if _depth > 4 else 4
)  # a CPU is fastest with few, measured

muon_lr = 0.03
embed_lr = 0.3 * (768 / n_embd) ** 0.5
head_lr = 0.006 * (768 / n_embd) ** 0.5
eval_interval = 500
