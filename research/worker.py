"""Inside the sandbox: a trained candidate answers what the judge asks. Token ids in, raw logits out, nothing else.

    worker.py CHECKPOINT     the candidate's own model.py and train.py lie in /box/tree

A question is two int32 (B, T) and B·T int32 token ids; its answer three int32 (B, T, V) and B·T·V float32. First of
all, unasked, it says (block_size, vocab_size). Whatever this process says is a claim of the candidate's.
"""

import os
import sys


def main(checkpoint_path: str) -> None:
    tree, answers, questions = sys.argv[2], os.fdopen(os.dup(1), "wb"), os.fdopen(os.dup(0), "rb")
    os.dup2(2, 1)  # what the candidate prints is not an answer
    import numpy as np
    import torch

    sys.path.insert(0, tree)
    import train
    from device import keep_memory, pick_device
    from model import GPT

    keep_memory()
    checkpoint = torch.load(checkpoint_path, map_location="cpu", weights_only=True)
    config = train.TrainConfig(**checkpoint["config"])
    device, dtype = pick_device(config.device, config.dtype)
    model = GPT(config, dtype)
    model.load_state_dict(checkpoint["model"])
    model.to(device).eval()
    answers.write(np.array([config.block_size, config.vocab_size], dtype="<i4").tobytes())
    answers.flush()
    while len(header := questions.read(8)) == 8:
        shape = np.frombuffer(header, dtype="<i4")
        tokens = np.frombuffer(questions.read(4 * shape[0] * shape[1]), dtype="<i4").reshape(shape).astype(np.int64)
        with torch.no_grad():
            logits = model(torch.from_numpy(tokens).to(device)).float().cpu().contiguous().numpy()
        answers.write(np.array(logits.shape, dtype="<i4").tobytes())
        answers.write(memoryview(logits).cast("B"))
        answers.flush()


if __name__ == "__main__" and sys.argv[1] != "--check":
    main(sys.argv[1])
