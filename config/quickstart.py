data = "data/python"
prepare = "--source=python"
block_size = 256
n_layer = 4
n_head = 4
n_embd = 256
value_embeds = 2
batch_tokens = 8192
max_seconds = 60
sample_prompt = "def "
