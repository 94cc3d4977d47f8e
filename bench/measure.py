"""Measure training: speed, memory, the parts of a step, the share of the device's arithmetic."""

import time
from collections.abc import Callable
from statistics import median

import torch

from model import GPT
from nanoloop import checkpoint
from nanoloop.attention import kernel_priority
from nanoloop.data import TrainBatches, open_data
from nanoloop.device import (
    PEAK_FLOPS,
    compile_model,
    flops_per_token,
    peak_memory_mb,
    pick_device,
    tune_process,
)
from nanoloop.programs import prepare_missing
from train import TrainConfig, make_optimizers, set_schedule, train_step

STRETCHES = 5  # of measured steps; the median of their times counts
PARTS = ("data", "forward", "backward", "optimizer", "rest")
TIMED_STEPS = 10  # steps taken apart


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize()


def timed(device: torch.device, function: Callable, *args):
    """Return function(*args), and the seconds until the device has done it."""
    synchronize(device)
    started = time.perf_counter()
    result = function(*args)
    synchronize(device)
    return result, time.perf_counter() - started


# --------------------------------------------------------------------------------------------------
# One run, without the loop of train.py: no log, no evaluation, no checkpoint


class Training:
    """The parts of a run, built by the functions that train.train builds them with."""

    def __init__(self, config: TrainConfig):
        self.device, dtype = pick_device(config.device, config.dtype)
        data = open_data(prepare_missing(config.data, config.prepare))
        start = checkpoint.load_weights(config.init_from) if config.init_from else None
        config = checkpoint.complete(config, start, data, resuming=False)
        rows, passes = config.split_batch()
        self.batches = TrainBatches(
            data, config.block_size, config.seed, rows, passes, 1, config.align_documents
        )
        torch.manual_seed(config.seed)
        self.model = GPT(config, dtype).to(self.device)
        self.optimizers = make_optimizers(self.model, config)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=dtype == torch.float16)
        self.network, self.compile_seconds = timed(
            self.device, compile_model, self.model, rows, self.device, config.compile
        )
        self.config = config
        self.n_steps = 0

    def take_steps(self, count: int) -> None:
        for _ in range(count):
            set_schedule(self.optimizers, 0.5, self.config)
            train_step(
                self.network,
                self.optimizers,
                self.scaler,
                self.batches,
                self.n_steps,
                self.config,
                self.device,
            )
            self.n_steps += 1


# --------------------------------------------------------------------------------------------------
# The parts of a step, timed from outside


class StepTimer:
    """Adds up the seconds of each part of a step; waits for the device between parts."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.part: str | None = None
        self.started = time.perf_counter()

    def begin(self, part: str | None) -> None:
        """End the part under way and begin another, or none."""
        synchronize(self.device)
        now = time.perf_counter()
        if self.part is not None:
            self.seconds[self.part] += now - self.started
        self.part = part
        self.started = now


class TimedBatches:
    """Batches that begin the part "data" when they are asked for one."""

    def __init__(self, batches: TrainBatches, timer: StepTimer):
        self.batches = batches
        self.grad_accum = batches.grad_accum
        self.timer = timer

    def __call__(self, step: int, micro_step: int, rank: int):
        self.timer.begin("data")
        return self.batches(step, micro_step, rank)


def step_parts(training: Training) -> dict[str, float]:
    """Return the milliseconds of each part of a step, medians over ten steps.

    data: from asking for a batch until the model is called, the copy to the device included.
    backward: until the optimizer begins, clipping included. rest: the schedule, zeroing gradients
    and what lies between. The waits between parts can make their sum longer than a plain step.
    """
    timer = StepTimer(training.device)
    training.batches = TimedBatches(training.batches, timer)
    training.network.register_forward_pre_hook(lambda *_: timer.begin("forward"))
    training.network.register_forward_hook(lambda *_: timer.begin("backward"))
    for optimizer in training.optimizers:
        optimizer.register_step_pre_hook(lambda *_: timer.begin("optimizer"))
        optimizer.register_step_post_hook(lambda *_: timer.begin("rest"))
    steps = []
    for _ in range(TIMED_STEPS):
        timer.seconds = dict.fromkeys(PARTS, 0.0)
        timer.begin("rest")
        training.take_steps(1)
        timer.begin(None)
        steps.append(timer.seconds)
    return {f"ms_{part}": 1000 * median(step[part] for step in steps) for part in PARTS}


# --------------------------------------------------------------------------------------------------
# The measurement


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the FLOPs per second of the product of two large square matrices."""
    size = 8192 if device.type == "cuda" else 2048
    a = torch.randn(size, size, device=device).to(dtype)
    seconds = [timed(device, torch.matmul, a, a)[1] for _ in range(8)]
    return 2 * size**3 / median(seconds[2:])


def speed(options) -> dict:
    """Measure training: speed, memory, the parts of a step, and MFU.

    MFU is the share of the device's FLOPs per second that the model uses. mfu_of_matmul: of a
    large matrix product, measured here. mfu_of_sheet: of the card's data sheet, None if unknown.
    """
    tune_process()
    with kernel_priority():
        training = Training(options)
        training.take_steps(options.warmup_steps)
        n_steps = options.steps // STRETCHES
        stretches = [
            timed(training.device, training.take_steps, n_steps)[1] for _ in range(STRETCHES)
        ]
        parts = step_parts(training)
    device = training.device
    seconds = median(stretches) / n_steps
    tokens_per_second = training.config.batch_tokens / seconds
    flops = tokens_per_second * flops_per_token(training.model)
    memory_mb = peak_memory_mb(device)
    matmul = matmul_rate(device, training.model.compute_dtype)
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    sheet = next((peak for name, peak in PEAK_FLOPS.items() if name in card), None)
    return {
        "tokens_per_second": tokens_per_second,
        "ms_per_step": 1000 * seconds,
        **parts,
        "compile_seconds": training.compile_seconds,
        "memory_mb": memory_mb,
        "matmul_teraflops": matmul / 1e12,
        "mfu_of_matmul": flops / matmul,
        "mfu_of_sheet": flops / sheet if sheet else None,
    }
