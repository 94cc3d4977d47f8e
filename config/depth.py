"""A family of models of one dial: --depth=N sets width, heads, rates, batch and length.

    python train.py config/depth.py --depth=12

Hardware: a CPU for a depth of up to 4, one GPU with 80 GB from 8 on; with less memory set a
          smaller micro_batch_size.
Time:     not yet measured at size.
Expected: not yet measured at size; docs/figures.md has the law that the small depths follow.

Any option may still be set beside the dial, such as --max_tokens=100_000_000. The rules:

    width           64 channels a layer, heads of 128 channels (nanochat's ratio; it found 128 a
                    layer worse)
    length          10.5 tokens for each weight in a matrix (nanochat's fit; Hoffmann et al. 2022,
                    arXiv:2203.15556, find about 20 for each parameter of older recipes)
    batch           grows with the 0.3271st power of the compute (DeepSeek LLM 2024,
                    arXiv:2401.02954, section 3.1; the idea is from McCandlish et al. 2018,
                    arXiv:1812.06162): 2**18 tokens at depth 12, at least 370 steps at any depth
    learning rates  Muon's grows with the square root of the batch and falls with the 0.32nd power
                    of the length (Bjorck et al. 2024, arXiv:2409.19913). With this batch the two
                    cancel, so it is constant. AdamW's on tables and head falls with 1/√width (Yang
                    et al. 2022, arXiv:2203.03466, in nanochat's and the speedruns' form)
"""

import math

from nanoloop.dial import dial

data = "data/code"
# Every installation has this text. A depth of 8 and more needs more than that.
prepare = "--source=python --include_site_packages=True --name=code"

_depth = dial("depth", 12)

n_layer = _depth
n_embd = 64 * _depth
n_head = max(1, n_embd // 128)
value_embeds = min(3, (_depth + 1) // 2)
block_size = 1024

# The vocabulary of data/code. With other data the weights of the head are slightly miscounted.
_vocab = 4096
_weights = 12 * n_layer * n_embd**2 + _vocab * n_embd
_weights_at_12 = 12 * 12 * 768**2 + _vocab * 768
max_tokens = int(10.5 * _weights)

# Compute is 6 · weights · length, and the length is proportional to the weights.
_batch = 2**18 * (_weights / _weights_at_12) ** (2 * 0.3271)
batch_tokens = 2 ** max(10, round(math.log2(_batch)))
# A CPU is fastest with few sequences at once.
micro_batch_size = min(batch_tokens // block_size, 64 if _depth > 4 else 4)

muon_lr = 0.03
embed_lr = 0.3 * (768 / n_embd) ** 0.5
head_lr = 0.006 * (768 / n_embd) ** 0.5
eval_interval = 500
