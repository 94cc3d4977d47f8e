"""The least that has nanoGPT's interface: a model that is a table and learns nothing."""

from pathlib import Path

FILES = {
    "configurator.py": """
import sys

for word in sys.argv[1:]:
    if not word.startswith("--"):
        exec(open(word).read())
        continue
    key, value = word[2:].split("=")
    default = globals()[key]
    if isinstance(default, bool):
        globals()[key] = value == "True"
    else:
        globals()[key] = type(default)(value)
""",
    "config/small.py": "n_layer = 7\n",
    "model.py": """
from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass
class GPTConfig:
    block_size: int = 8
    vocab_size: int = 8
    n_layer: int = 1
    n_head: int = 1
    n_embd: int = 8
    dropout: float = 0.0
    bias: bool = True


class GPT(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.table = torch.nn.Embedding(config.vocab_size, config.vocab_size)

    def forward(self, x, targets=None):
        assert x.dtype == torch.int64 and x.max() < self.table.num_embeddings
        logits = self.table(x)
        if targets is None:
            return logits, None
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
        return logits, loss

    @torch.no_grad()
    def generate(self, x, count, temperature=1.0, top_k=None):
        for _ in range(count):
            logits, _ = self(x)
            x = torch.cat((x, logits[:, -1].argmax(-1, keepdim=True)), dim=1)
        return x
""",
    "train.py": """
import os
import pickle
from contextlib import nullcontext

import numpy as np
import torch
from model import GPT, GPTConfig

dataset = out_dir = device = dtype = ""
compile = False
n_layer = n_head = n_embd = block_size = batch_size = gradient_accumulation_steps = 1
max_iters = log_interval = eval_interval = eval_iters = 1
dropout = 0.0
exec(open("configurator.py").read())
assert n_layer == EXPECTED and eval_interval == 10**9 and os.path.isdir(out_dir)
torch.manual_seed(1337)
with open(os.path.join("data", dataset, "meta.pkl"), "rb") as file:
    vocab_size = pickle.load(file)["vocab_size"]
tokens = np.memmap(os.path.join(dataset, "train.bin"), dtype=np.uint16, mode="r")
assert tokens.max() == vocab_size - 1
model = GPT(GPTConfig(vocab_size=vocab_size))
ctx = nullcontext()
tokens_per_iter = batch_size * block_size
iter_num = 0
while True:
    if iter_num % log_interval == 0:
        print(f"iter {iter_num}: loss 1.0000, time 1.00ms, mfu 1.00%")
    iter_num += 1
    if iter_num > max_iters:
        break
""",
    "data/openwebtext/prepare.py": """
import os

import numpy as np
import tiktoken
from datasets import load_dataset

num_proc = 8
assert num_proc == os.cpu_count()
enc = tiktoken.get_encoding("gpt2")
if __name__ == "__main__":
    dset = load_dataset("openwebtext", num_proc=num_proc)["train"]
    total_batches = 1024
    assert total_batches == len(dset)
    ids = [token for text in dset for token in [*enc.encode_ordinary(text), enc.eot_token]]
    np.array(ids, dtype=np.uint16).tofile("train.bin")
""",
}


def write_nanogpt(checkout: Path, n_layer: int = 1) -> Path:
    """Write the fake checkout; its train.py demands `n_layer`."""
    for name, text in FILES.items():
        path = checkout / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("EXPECTED", str(n_layer)))
    return checkout
