"""Small measurements that bench.py does not make. Not a test: run it by hand, on an idle machine.

    python tests/measure.py attention config/gpt2.py    # on a GPU: ms of each attention kernel at the recipe's shapes
    python tests/measure.py kernels config/gpt2.py      # where a step's time goes, by kernel (torch.profiler)
    python tests/measure.py overheads config/quickstart.py   # what log lines, evaluations, checkpoints and data cost

Every option of train.py may follow.
"""

import contextlib
import io
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from functools import wraps
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import console
import device as device_module
import torch

import model
import train
from nanoloop.data import TrainBatches, open_data


def attention(options: train.TrainConfig) -> None:
    """Each kernel on full causal attention, and the compiled one for windows at the recipe's window_size."""
    device, dtype = device_module.pick_device(options.device, options.dtype)
    rows, _ = options.split_batch()
    times = device_module.time_attention(options, rows, device, dtype)
    shape = (rows, options.n_head, options.block_size, options.n_embd // options.n_head)
    q, k, v = (torch.zeros(shape, device=device, dtype=dtype, requires_grad=True) for _ in range(3))
    flex = torch.compile(model.flex_attend, dynamic=False)
    for window in (options.block_size, options.window_size):
        for step in range(8):
            if step == 3:
                torch.accelerator.synchronize()
                started = time.perf_counter()
            y = flex(q, k, v, window, 0.1, False, None)
            y.backward(y.detach())
        torch.accelerator.synchronize()
        times[f"FLEX, window {window}"] = 1000 * (time.perf_counter() - started) / 5
    print(
        f"{rows} sequences × {options.block_size}, {options.n_head} heads of {shape[-1]}, {dtype}, one layer both ways"
    )
    for name, ms in times.items():
        # Two products forward, five backward, each 2·T²·D; half of it lies above the diagonal.
        flops = 7 * shape[0] * shape[1] * shape[2] ** 2 * shape[3]
        print(f"{name:20} {ms:8.3f} ms {flops / ms / 1e9:8.1f} TFLOP/s of the full causal triangle")


def kernels(options: train.TrainConfig) -> None:
    device, dtype = device_module.pick_device(options.device, options.dtype)
    data = open_data(options.data)
    options = replace(
        options, vocab_size=data.tokenizer.vocab_size, document_token=data.tokenizer.end_of_text
    )
    rows, grad_accum = options.split_batch()
    run, batches = (
        train.Run(options, data, device, dtype),
        TrainBatches(data, options.block_size, 1, rows, grad_accum),
    )
    wanted = device.type == "cuda" if options.compile is None else options.compile
    network = device_module.try_compile(run.model, rows, device, wanted)
    for _ in range(3):
        run.take_step(network, batches)
    with torch.profiler.profile() as profile:
        for _ in range(3):
            run.take_step(network, batches)
    key = f"self_{'device' if device.type == 'cuda' else 'cpu'}_time_total"
    print(profile.key_averages().table(sort_by=key, row_limit=25, max_name_column_width=70))


def overheads(options: train.TrainConfig, steps: int = 60) -> dict[str, float]:
    """Shares of a run's time: what happens every so many steps at the recipe's own intervals, and what steps wait for."""
    spent = defaultdict(list)

    def clock(owner, name: str) -> None:
        plain = getattr(owner, name)

        @wraps(plain)
        def timed(*args, **kwargs):
            started = time.perf_counter()
            result = plain(*args, **kwargs)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            spent[name].append(time.perf_counter() - started)
            return result

        undo.callback(setattr, owner, name, plain)
        setattr(owner, name, timed)

    undo = contextlib.ExitStack()
    with undo, tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        for owner, name in (
            (train.Run, "take_step"),
            (train.Run, "validate"),
            (train.Run, "save"),
            (console.Log, "write"),
        ):
            clock(owner, name)
        clock(TrainBatches, "__call__")
        own = dict(
            max_steps=steps, max_seconds=None, max_tokens=None, sample_prompt=None, out=folder
        )
        train.train(
            replace(
                options, **own, eval_interval=steps // 2, save_interval=steps // 3, log_interval=10
            )
        )
    mean = {
        name: sum(times[len(times) // 5 :]) / len(times[len(times) // 5 :])
        for name, times in spent.items()
    }
    _, grad_accum = options.split_batch()
    every = {
        "write": options.log_interval,
        "validate": options.eval_interval,
        "save": options.save_interval,
    }
    shares = {"data": mean["__call__"] * grad_accum / mean["take_step"]}
    print(f"a step: {1000 * mean['take_step']:.1f} ms, of which data {shares['data']:.2%}")
    for name, interval in every.items():
        told = "at the end only"
        if interval:
            shares[name] = mean[name] / (interval * mean["take_step"])
            told = f"every {interval} steps: {shares[name]:.2%} of the time"
        print(f"{name:10} {1000 * mean[name]:8.1f} ms, {told}")
    return shares


if __name__ == "__main__":
    device_module.keep_memory()
    job, *argv = sys.argv[1:] or ["help"]
    if job not in ("attention", "kernels", "overheads"):
        sys.exit(__doc__)
    globals()[job](console.read_options(train.TrainConfig, argv, "tests/measure.py"))
