"""Small measurements that `python -m bench` does not make. Run them on an idle machine.

    python -m tests.slow.measure attention config/gpt2.py          # a GPU's attention kernels
    python -m tests.slow.measure kernels config/gpt2.py            # a step's time by kernel
    python -m tests.slow.measure overheads config/quickstart.py    # logs, evaluations, checkpoints
    python -m tests.slow.measure opening config/quickstart.py      # 20 GB of prepared data, 3 times

Every option of train.py may follow.
"""

import contextlib
import io
import shutil
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.attention import sdpa_kernel

from bench.measure import Training, timed
from nanoloop import checkpoint
from nanoloop.attention import CUDA_KERNELS, flex_attend
from nanoloop.data import HEADER_BYTES, HEADER_INTS, open_data
from nanoloop.device import pick_device, tune_process
from nanoloop.files import sha256_of_file, write_json
from nanoloop.options import read_options, require, run_program
from nanoloop.runlog import RunLog
from train import TrainConfig, evaluate

WARMUP = 3  # the first calls load kernels
REPEATS = 5


def mean_ms(device: torch.device, function, *arguments) -> float:
    """Return the mean milliseconds of a call, after some calls that do not count."""
    for _ in range(WARMUP):
        function(*arguments)
    _, seconds = timed(device, lambda: [function(*arguments) for _ in range(REPEATS)])
    return 1000 * seconds / REPEATS


def attention(config: TrainConfig) -> None:
    """Time one layer of causal attention, forward and backward, by each kernel that can do it.

    FlexAttention also gets the recipe's window.
    """
    device, dtype = pick_device(config.device, config.dtype)
    require(device.type == "cuda", "the kernels differ on CUDA only, and this machine has none")
    rows, _ = config.split_batch()
    T = config.block_size
    size = config.head_size()

    def heads(count: int) -> torch.Tensor:
        shape = (rows, count, T, size)
        return torch.zeros(shape, device=device, dtype=dtype, requires_grad=True)

    q = heads(config.n_head)
    k = heads(config.kv_heads())
    v = heads(config.kv_heads())

    def run_sdpa(kernel) -> None:
        is_grouped = q.size(1) != k.size(1)
        with sdpa_kernel(kernel):
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=is_grouped)
        y.backward(y.detach())

    compiled = torch.compile(flex_attend, dynamic=False)

    def run_flex(window: int) -> None:
        y = compiled(q, k, v, window, size**-0.5, None)
        y.backward(y.detach())

    times = {}
    for kernel in CUDA_KERNELS:
        with contextlib.suppress(RuntimeError):  # it cannot do these shapes
            times[kernel.name] = mean_ms(device, run_sdpa, kernel)
    for window in (T, config.window_size):
        times[f"FLEX, window {window}"] = mean_ms(device, run_flex, window)
    print(f"{rows} sequences × {T}, {config.n_head} heads of {size}, {dtype}, one layer both ways")
    # Two products forward, five backward, each of 2·T²·D, half of them above the diagonal.
    flops = 7 * rows * config.n_head * T**2 * size
    for name, ms in times.items():
        teraflops = flops / ms / 1e9
        print(f"{name:20} {ms:8.3f} ms {teraflops:8.1f} TFLOP/s of the full causal triangle")


def kernels(config: TrainConfig) -> None:
    """Print the 25 kernels that take the most time of three steps."""
    training = Training(config)
    training.take_steps(WARMUP)
    with torch.profiler.profile() as profile:
        training.take_steps(3)
    processor = "device" if training.device.type == "cuda" else "cpu"
    averages = profile.key_averages()
    key = f"self_{processor}_time_total"
    print(averages.table(sort_by=key, row_limit=25, max_name_column_width=70))


def overheads(config: TrainConfig) -> None:
    """Print which share of a run's time its log lines, evaluations and checkpoints take."""
    training = Training(config)
    config = training.config
    device = training.device
    batches = training.batches
    data = batches.data
    training.take_steps(WARMUP)
    _, seconds = timed(device, training.take_steps, 20)
    step_ms = 1000 * seconds / 20
    batch_ms = mean_ms(device, batches, 0, 0, 0) * batches.grad_accum
    state = checkpoint.pack(
        training.model, training.optimizers, training.scaler, data, config, 1, 1.0, 1.0
    )
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        options = asdict(replace(config, wandb=False))
        log = RunLog(Path(folder), options, 0, 0.0, 1, 1.0, None)
        write_ms = mean_ms(device, log.write, 1, 1.0, 0.5, {"loss": 1.0, "lr": 0.02})
        save_ms = mean_ms(device, checkpoint.save, Path(folder) / "last.pt", state)
    sizes = (config.block_size, batches.batch_size)
    _, seconds = timed(device, evaluate, training.network, data, "val", *sizes, device)

    print(f"a step: {step_ms:.1f} ms, of which data {batch_ms / step_ms:.2%}")
    for name, ms, interval in (
        ("log line", write_ms, config.log_interval),
        ("evaluation", 1000 * seconds, config.eval_interval),
        ("checkpoint", save_ms, config.save_interval),
    ):
        when = "at the end only"
        if name == "log line" and interval is None:
            when = f"every 5 seconds: {ms / 5000:.3%} of the time"
        elif interval:
            when = f"every {interval} steps: {ms / (interval * step_ms):.2%} of the time"
        print(f"{name:10} {ms:8.1f} ms, {when}")


def opening(config: TrainConfig) -> None:
    """Time opening a folder of 20 GB with the tokenizer of `data`, the first time and later.

    Its shards hold zeros that take no room on the disk, so the first time is that of the checks.
    """
    tokens = 100_000_000
    header = np.zeros(HEADER_INTS, "<i4")
    header[:3] = (20240520, 1, tokens)
    source = open_data(config.data)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(source.folder / "tokenizer.json", folder)
        files = [f"train_{number:06d}.bin" for number in range(100)]
        for file in files:
            with open(folder / file, "wb") as shard:
                shard.write(header.tobytes())
                shard.truncate(HEADER_BYTES + 2 * tokens)
        checksum = sha256_of_file(folder / files[0])
        shards = [{"split": "train", "file": file, "sha256": checksum} for file in files]
        write_json(folder / "meta.json", source.meta | {"shards": shards})
        for when in ("first", "second", "third"):
            _, seconds = timed(torch.device("cpu"), open_data, name)
            print(f"20 GB opened the {when} time in {seconds:.3f} s")


JOBS = {
    "attention": attention,
    "kernels": kernels,
    "overheads": overheads,
    "opening": opening,
}


def main(argv: list[str]) -> None:
    name, *flags = argv or [""]
    require(name in JOBS, f"name a measurement: {', '.join(JOBS)}; got '{name}'")
    tune_process()
    JOBS[name](read_options(TrainConfig, flags, f"-m tests.slow.measure {name}"))


if __name__ == "__main__":
    run_program(main)
