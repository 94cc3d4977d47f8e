"""A first model in a minute: Python source, on any machine, without a network.

    python train.py config/quickstart.py

Hardware: 2 CPU cores (a GPU is used if there is one).
Time:     60 seconds of training, about 75 in all with preparing the data.
Expected: QUICKSTART_EXPECTED
"""

data = "data/python"
prepare = "--source=python --name=python"  # the standard library of the interpreter that runs this, a tokenizer of 4,096 byte pairs

# In a minute two cores see a million tokens: a small model and small batches learn most from them.
n_layer = 4
n_head = 4
n_embd = 128
block_size = 128
value_embeds = 2
batch_tokens = 2048
max_seconds = 60

log_interval = 50
sample_prompt = "def "
