"""The machine: devices, memory, compilation, copies, attention kernels; the settings that make them fast.

What it chooses, it prints. Of the project it imports console alone.
"""

import contextlib
import ctypes
import functools
import gc
import os
import resource
import sys
import time
from collections import deque
from pathlib import Path

import torch

from nanoloop.options import explained, first_line, require

# Floating-point operations per second, dense bf16, from the data sheets; by what is in the name of the card.
PEAK_FLOPS = {
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "4090": 165e12,
    "5090": 210e12,
}


def describe(model, device, batches) -> tuple[int, float, float | None]:
    """Print what is trained, on what and by how much at a time. Returns the number of the model's parameters, its FLOPs
    for a token, and the FLOPs a second that all its devices can do at most."""
    n_params = sum(p.numel() for p in model.parameters())
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    print(f"{n_params:,} parameters on {card}, activations {model.compute_dtype}")
    ranks, rows, T = batches.world_size, batches.batch_size, batches.block_size
    split = (
        f"{ranks} ranks × " * (ranks > 1)
        + f"{batches.grad_accum} micro-steps × {rows} sequences × {T}"
    )
    print(f"{ranks * batches.grad_accum * rows * T:,} tokens a step: {split}")
    peak = next((peak * ranks for name, peak in PEAK_FLOPS.items() if name in card), None)
    return n_params, model.flops_per_token(), peak


def pick_device(device: str, dtype: str):
    """The torch.device, and the torch.dtype of activations; "auto" is the fastest that the machine has.

    Raises UserError where the device cannot be used.
    """
    fastest = (
        "cuda"
        if torch.cuda.is_available()
        else "mps"
        if torch.backends.mps.is_available()
        else "cpu"
    )
    with explained(f"device={device} cannot be used here", "try --device=cpu"):
        found = torch.empty(0, device=fastest if device == "auto" else device).device
        if (
            found.type == "cuda" and "LOCAL_RANK" in os.environ
        ):  # each of torchrun's processes has a card of its own
            found = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(found)
    bf16 = getattr(torch.cpu, "get_capabilities", dict)().get(
        "avx512_bf16", False
    )  # multiplied natively
    if found.type == "cuda":
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    fastest = "bfloat16" if bf16 else "float16" if found.type == "cuda" else "float32"
    return found, getattr(torch, fastest if dtype == "auto" else dtype)


def memory_limit() -> float:
    """Bytes of main memory that this process may use: the machine's, or its container's if that is less."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            limits.append(int(Path(path).read_text()))
    return min(limits)


def require_memory(config, rows: int, trains_here: bool) -> None:
    """Refuse sizes that the main memory cannot hold: the system would end the program without a word.

    An estimate from below: 4 bytes per weight where the model is built and 8 more for gradient and momentum where it
    is trained; of `rows` sequences the logits and some activations.
    """
    width, layers, vocab = config.n_embd, config.n_layer, config.vocab_size
    weights = layers * (10 * width**2 + 2000) + width * (
        vocab + config.bigram_rows
    )  # 2000: a layer's Python objects
    held = rows * config.block_size * (8 * vocab + 20 * width * layers)
    needed, limit = (12 * weights + held if trains_here else 4 * weights), memory_limit()
    told = f"{weights:,} weights, and {rows:,} sequences at once, take {needed / 1e9:,.0f} GB of memory at least, and"
    remedy = "set a smaller --n_layer, --n_embd, --block_size or --micro_batch_size"
    require(needed < limit, f"{told} there are {limit / 1e9:,.0f}: {remedy}")


def try_compile(model, rows: int, device, wanted: bool | None):
    """The compiled model, warmed up for training; the model itself where that is not wanted (None: on CUDA it is) or no
    compiler works."""
    if not (device.type == "cuda" if wanted is None else wanted):
        return model
    compiled, tokens = (
        torch.compile(model, dynamic=False),
        torch.zeros(rows, model.config.block_size).long().to(device),
    )
    if device.type == "cuda":
        choose_attention(
            model.config, rows, device, model.compute_dtype
        )  # compiling fixes the choice
    print("compiling the model", flush=True)
    try:
        with torch.random.fork_rng():  # dropout in here takes no random number from the run
            compiled(
                tokens, tokens.clone()
            ).backward()  # one tensor in both is compiled as a special case
    except Exception as error:  # of many kinds: no C++ compiler, no Triton, a card too old for it
        print(f"torch.compile does not work here, going on without it ({first_line(error)})")
        compiled = model
    model.zero_grad(set_to_none=True)
    if device.type == "cuda" and compiled is not model:
        COMPILED_TOO.add("cuda")
    return compiled


COMPILED_TOO: set[str] = set()  # kinds of devices on which `compiled` functions are compiled


def compiled(function):
    """`function`, of one tensor, compiled where that is on CUDA and the model could be compiled; else as it is."""
    made = []

    @functools.wraps(function)
    def call(tensor):
        if tensor.device.type not in COMPILED_TOO:
            return function(tensor)
        made[:] = made or [torch.compile(function, dynamic=False)]
        return made[0](tensor)

    return call


PINNED: dict[tuple, deque] = {}  # by shape: (buffer, event) of the latest copies, the oldest first


def to_device(array, device, slots: int = 4):
    """A numpy array as a tensor on the device. A copy to a GPU takes place while the host goes on.

    It is made from pinned memory, `slots` buffers of a shape in turn, for tokens and targets of two batches. A buffer
    is filled again when the event behind its last copy has come: the host is ahead by so much at most.
    """
    tensor, turns = torch.from_numpy(array), PINNED.setdefault(array.shape, deque())
    if device.type != "cuda":
        return tensor.to(device)
    fresh = len(turns) < slots
    buffer, copied = (
        (torch.empty_like(tensor, pin_memory=True), torch.cuda.Event())
        if fresh
        else turns.popleft()
    )
    copied.synchronize()  # an event that is new has come already
    arrived = buffer.copy_(tensor).to(device, non_blocking=True)
    copied.record()
    turns.append((buffer, copied))
    return arrived


def time_attention(config, rows: int, device, dtype) -> dict[str, float]:
    """Milliseconds of one layer's causal attention, forward and backward, by each of torch's kernels that can do it.

    config: a GPTConfig; rows: sequences at once. FA3 is FlashAttention-3, if its package flash_attn_interface is there.
    """
    import torch
    import torch.nn.attention as kernels

    heads, times = (
        (config.n_head, config.n_kv_head or config.n_head, config.n_kv_head or config.n_head),
        {},
    )
    size, how = (
        config.n_embd // config.n_head,
        {"is_causal": True, "enable_gqa": heads[0] != heads[1]},
    )
    qkv = [
        torch.zeros(
            rows, n, config.block_size, size, device=device, dtype=dtype, requires_grad=True
        )
        for n in heads
    ]
    for name in ("CUDNN", "FLASH", "EFFICIENT", "FA3"):
        backend = getattr(kernels.SDPBackend, f"{name.replace('FA3', 'FLASH')}_ATTENTION")
        with (
            contextlib.suppress(Exception),
            kernels.sdpa_kernel(backend),
        ):  # it has not all of them, or not for these
            if name == "FA3":
                kernels.activate_flash_attention_impl(name)
            for step in range(8):
                if step == 3:  # in the first ones kernels are loaded
                    torch.accelerator.synchronize()
                    started = time.perf_counter()
                y = torch.nn.functional.scaled_dot_product_attention(*qkv, **how)
                y.backward(y.detach())
            torch.accelerator.synchronize()
            times[name] = 1000 * (time.perf_counter() - started) / 5
    with contextlib.suppress(AttributeError):  # where torch has no way back yet
        kernels.restore_flash_attention_impl() if kernels.current_flash_attention_impl() else None
    return times


def choose_attention(config, rows: int, device, dtype) -> None:
    """Of torch's attention kernels let the fastest at this run's shapes do them; the most general do the rest."""
    times = time_attention(config, rows, device, dtype)
    print("attention, ms a layer:", *(f"{name} {ms:.2f}" for name, ms in times.items()))
    best = min(times, key=times.get, default="EFFICIENT")
    torch.backends.cuda.enable_cudnn_sdp(best == "CUDNN")
    torch.backends.cuda.enable_flash_sdp(best in ("FLASH", "FA3"))
    if best == "FA3":
        torch.nn.attention.activate_flash_attention_impl(best)


def peak_memory_mb(device=None) -> float:
    """The most memory this process has held, in MiB: of its GPU, or the main memory."""
    if device and device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    # macOS counts bytes, Linux kibibytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        2**20 if sys.platform == "darwin" else 2**10
    )


def keep_memory() -> None:
    """Let the process keep the memory it frees, and look for garbage only when it is told to.

    The collector would choose a moment of its own, look through all objects, and hold up a step by half a second.

    A training step frees and takes the same large blocks again and again; with glibc's defaults each of them costs a
    page fault per 4 KiB, which took up to a third of the time of a step on a CPU. The numbers are M_MMAP_MAX and
    M_TRIM_THRESHOLD of mallopt(3); other C libraries do without.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(-4, 0)
        mallopt(-1, 2**31 - 1)
    gc.disable()
    gc.freeze()  # what is here now will stay: nobody need look at it again
