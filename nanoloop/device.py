"""The machine: device and dtype, memory, compilation, copies to a GPU."""

import contextlib
import ctypes
import functools
import gc
import math
import os
import resource
import sys
from pathlib import Path

import torch

from nanoloop import attention
from nanoloop.loss import mean_loss, token_losses
from nanoloop.options import first_line, note, reading, require
from nanoloop.ranks import local_rank, require_equal

# Dense bf16 operations per second of a card, from the data sheets, by a part of its name.
PEAK_FLOPS = {
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "4090": 165e12,
    "5090": 210e12,
}


def pick_device(device: str, dtype: str) -> tuple[torch.device, torch.dtype]:
    """Return the device, and the dtype of activations; "auto" picks the fastest.

    Raises UserError where the machine does not have the device, and where ranks differ.
    """
    if device == "auto":
        device = torch.accelerator.current_accelerator(check_available=True) or "cpu"
    with reading(f"device={device} cannot be used here", "try --device=cpu"):
        picked = torch.empty(0, device=device).device
    if picked.type == "cuda":
        picked = torch.device("cuda", local_rank(picked.index))
        torch.cuda.set_device(picked)
    fastest = fastest_dtype(picked)
    if picked.type == "cpu":
        if dtype not in ("auto", "float32", fastest):
            note(f"warning: {dtype} is slow on this CPU: --dtype={fastest}")
        elif dtype == "auto" and fastest == "float32":
            note("this CPU has no native bfloat16: float32")
    if dtype == "auto":
        dtype = fastest
    require_equal({"device": picked.type, "dtype": dtype})
    return picked, getattr(torch, dtype)


def fastest_dtype(device: torch.device) -> str:
    """Name the fastest dtype of activations: bfloat16 where the device multiplies it natively."""
    if device.type == "cuda":
        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return "bfloat16" if has_bfloat16 else "float16"
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return "bfloat16" if capabilities.get("avx512_bf16") else "float32"


def describe(model, device: torch.device, batches) -> tuple[int, float, float | None]:
    """Print the size of the model and how a batch is split.

    Returns the number of parameters, the FLOPs for a token, and the peak FLOPs per second of all
    devices together, None where unknown.
    """
    n_params = sum(p.numel() for p in model.parameters())
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    print(f"{n_params:,} parameters on {card}, activations {model.compute_dtype}")
    count = batches.world_size
    tokens = count * batches.grad_accum * batches.batch_size * batches.block_size
    ranks = f"{count} ranks × " if count > 1 else ""
    micro_steps = f"{batches.grad_accum} micro-steps × " if batches.grad_accum > 1 else ""
    sequences = f"{batches.batch_size} sequences × {batches.block_size} tokens"
    print(f"{tokens:,} tokens a step: {ranks}{micro_steps}{sequences}")
    peaks = (count * peak for name, peak in PEAK_FLOPS.items() if name in card)
    return n_params, flops_per_token(model), next(peaks, None)


def flops_per_token(model) -> float:
    """Count training FLOPs per token: 6 per matrix weight, 12·n_embd per position attended to.

    Tables that are looked up cost nothing (PaLM, arXiv:2204.02311, appendix B).
    """
    config = model.config
    blocks = sum(p.numel() for p in model.h.parameters() if p.ndim == 2)
    weights = blocks + model.lm_head.weight.numel()
    attended = sum(config.window(layer) for layer in range(config.n_layer))
    return 6 * weights + 12 * config.n_embd * attended


# -----------------------------------------------------------------------------
# Memory


def memory_limit() -> int:
    """Return the bytes of main memory of the machine, or of a smaller container."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            limits.append(int(Path(path).read_text()))
    return min(limits)


def require_memory(config, batch_size: int, trains_here: bool) -> None:
    """Raise UserError for sizes that the main memory cannot hold.

    Without this the system would kill the program without a message. The estimate is a lower
    bound: 4 bytes for each weight where the model is built, 8 more for its gradient and momentum
    where it is trained; the logits and some activations of `batch_size` sequences.
    """
    width = config.n_embd
    layers = config.n_layer
    vocab = config.vocab_size
    # 2000: the Python objects of a layer
    weights = layers * (10 * width**2 + 2000) + width * (vocab + config.bigram_rows)
    needed = 4 * weights
    if trains_here:
        token_bytes = 8 * vocab + 20 * width * layers
        needed = 12 * weights + batch_size * config.block_size * token_bytes
    limit = memory_limit()
    require(
        needed < limit,
        f"{weights:,} weights and {batch_size:,} sequences at once need at least "
        f"{needed / 1e9:,.0f} GB of memory, and there are {limit / 1e9:,.0f}: "
        "set a smaller --n_layer, --n_embd, --block_size or --micro_batch_size",
    )


def peak_memory_mb(device: torch.device) -> float:
    """Return the most memory that this process has held, in MiB: of its GPU or main memory.

    On Linux, mapped files do not count, such as shards: the system drops them where it needs room.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if sys.platform == "darwin":
        return usage / 2**20  # macOS counts bytes, Linux kibibytes
    mapped_pages = int(Path("/proc/self/statm").read_text().split()[2])
    return usage / 2**10 - mapped_pages * resource.getpagesize() / 2**20


def tune_process() -> None:
    """Keep freed memory in the process, and collect garbage only on request.

    A training step frees and allocates the same large blocks again and again. With glibc's
    defaults each of them costs a page fault per 4 KiB, up to a third of a step's time on a CPU.
    The automatic collector would look through all objects at a moment of its own choice and delay
    a step by half a second.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:  # C libraries other than glibc have none; the numbers are from mallopt(3)
        mallopt(-4, 0)  # M_MMAP_MAX
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
    gc.disable()
    gc.freeze()  # the objects of the imports stay: do not look at them again


# -----------------------------------------------------------------------------
# Compilation and copies

COMPILED_DEVICES: set[str] = set()  # the types of device on which `compiled` functions compile


def check_loss(model, device: torch.device) -> None:
    """Compare the loss of training, which a kernel computes on CUDA, with evaluation's.

    Raises UserError where they differ: a change of GPT.to_logits must change the kernel too.
    """
    C = model.config.n_embd
    x = torch.randn(1, 8, C, device=device, dtype=model.compute_dtype, requires_grad=True)
    weight = torch.randn(model.config.padded_vocab(), C, device=device)
    weight *= 10 / math.sqrt(C)  # logits of about ±10, which a softcap bends
    targets = torch.zeros(1, 8, dtype=torch.long, device=device)
    arguments = (x, weight, targets, model.to_logits, model.config)
    training = mean_loss(*arguments).item()
    evaluation = token_losses(*arguments).mean().item()
    require(
        math.isclose(training, evaluation, rel_tol=0.02),
        f"training computes the loss {training:.3f} where evaluation computes {evaluation:.3f}: "
        "change nanoloop/loss_kernel.py as GPT.to_logits was changed",
    )


def compile_model(network, batch_size: int, device: torch.device, wanted: bool | None):
    """Return the compiled network after one pass of warm-up.

    network: a GPT, or DistributedDataParallel around one. The wrapper comes first: then the
    backward pass is compiled in parts, and ranks exchange gradients while it runs.
    wanted: None means on CUDA only. Returns the network itself if it is not wanted or if no
    compiler works here.
    """
    is_cuda = device.type == "cuda"
    model = getattr(network, "module", network)
    if is_cuda:
        check_loss(model, device)
    if not (is_cuda if wanted is None else wanted):
        return network
    print("compiling the model", flush=True)
    tokens = torch.zeros(batch_size, model.config.block_size, dtype=torch.long, device=device)
    # FlexAttention needs more shared memory than some cards have.
    for uses_flex in (True, False):
        attention.USES_FLEX = uses_flex
        result = torch.compile(network, dynamic=False)
        try:
            # One tensor as tokens and targets would be compiled as a special case.
            result(tokens, tokens.clone()).backward()
            if is_cuda:
                COMPILED_DEVICES.add("cuda")
            break
        except Exception as error:  # no C++ compiler, no Triton, an old card: the types vary
            reason = first_line(error)
    else:
        print(f"warning: torch.compile does not work here ({reason}): not compiled")
        result = network
    network.zero_grad(set_to_none=True)
    return result


def compiled(function):
    """Compile `function`, of one CUDA tensor, if compile_model worked there."""

    @functools.cache
    def compile_once():
        return torch.compile(function, dynamic=False)

    @functools.wraps(function)
    def call(tensor):
        is_compiled = tensor.device.type in COMPILED_DEVICES
        return compile_once()(tensor) if is_compiled else function(tensor)

    return call


def to_device(array, device: torch.device) -> torch.Tensor:
    """Copy a numpy array to the device; a copy to a GPU does not wait for it.

    PyTorch reuses a pinned buffer only after the copy from it is complete.
    """
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
