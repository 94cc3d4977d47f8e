"""Inside the sandbox: a trained candidate answers what the judge asks.

    worker.py CHECKPOINT     run in the folder with the candidate's model.py and train.py

First it says (block_size, vocab_size). A question is two int32 (B, T) and B·T int32 token ids; its
answer is three int32 (B, T, V) and B·T·V float32 logits. Both pass through the socket that is its
standard input. Whatever this process says is a claim of the candidate's.
"""

import os
import socket
import sys

import numpy as np
import torch


def main(checkpoint_path: str) -> None:
    channel = socket.socket(fileno=os.dup(0)).makefile("rwb")
    sys.path.insert(0, os.getcwd())
    from model import GPT
    from nanoloop.device import pick_device, tune_process
    from train import TrainConfig

    tune_process()
    checkpoint = torch.load(checkpoint_path, map_location="cpu", weights_only=True)
    config = TrainConfig(**checkpoint["config"])
    device, dtype = pick_device(config.device, config.dtype)
    model = GPT(config, dtype)
    model.load_state_dict(checkpoint["model"])
    model.to(device).eval()
    channel.write(np.array([config.block_size, config.vocab_size], dtype="<i4").tobytes())
    channel.flush()
    while len(header := channel.read(8)) == 8:
        shape = np.frombuffer(header, dtype="<i4")
        content = channel.read(4 * shape[0] * shape[1])
        tokens = np.frombuffer(content, dtype="<i4").reshape(shape).astype(np.int64)
        with torch.no_grad():
            logits = model(torch.from_numpy(tokens).to(device))
        logits = logits.float().cpu().contiguous().numpy()
        channel.write(np.array(logits.shape, dtype="<i4").tobytes())
        channel.write(memoryview(logits).cast("B"))
        channel.flush()


if __name__ == "__main__":
    main(sys.argv[1])
