"""A first model in a minute: Python source, on any machine, without a network.

    python train.py config/quickstart.py

Hardware: 2 CPU cores; a GPU is used if there is one.
Time:     60 seconds of training, 65 to 68 in all with preparing the data and writing text.
Expected: val_bpb (bits per byte of source) about 1.55 after 730 steps, 1.61 after 500; a faster
          machine takes more steps and ends lower.
"""

data = "data/python"
# The standard library, and a tokenizer trained on it.
prepare = "--source=python --name=python --duplicates=near --tokenizer=bpe:2048"

# In a minute two cores see two million tokens, most of a first pass over the data. A small model
# learns most from them. Its tables of value embeddings and of token pairs cost no arithmetic and
# gain more than another layer; twice the vocabulary would make a step a third longer (docs/log.md
# has the experiments).
n_layer = 1
n_head = 1
n_embd = 128
block_size = 128
value_embeds = 1
bigram_rows = 65_536
# The cap on the logits costs a fifth of a step on a CPU and gains nothing here.
logit_softcap = None
batch_tokens = 3072
embed_lr = 0.6
head_lr = 0.012
max_seconds = 60
max_tokens = 10_000_000  # a GPU reaches these first; more passes would only memorize the text

sample_prompt = "class Node:\n    def"
