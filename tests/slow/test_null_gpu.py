"""The CUDA path by counts: kernels, launches, memory, the order of events. None of them is a time.

They need a CUDA build of torch and a card. A card that notes kernels and does not run them is
enough, and on it they are exact: a shim of CUDA's runtime on host memory, found by the function
`nullgpu_count` of libcuda.so.1. It names the card that NULLGPU_CC chooses.
"""

import ctypes
import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend

import train
from model import GPT
from nanoloop import attention, device, ranks
from nanoloop.options import read_options
from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="needs a CUDA build of torch and a card, or a shim of CUDA's runtime",
)
CUDA = torch.device("cuda")


def null_gpu():
    """Return the shim's library; None with a real card."""
    library = ctypes.CDLL("libcuda.so.1")
    if not hasattr(library, "nullgpu_count"):
        return None
    library.nullgpu_line.restype = ctypes.c_char_p
    library.nullgpu_line.argtypes = [ctypes.c_long]
    library.nullgpu_count.restype = ctypes.c_long
    return library


NULL_GPU = null_gpu() if torch.cuda.is_available() else None
needs_null_gpu = pytest.mark.skipif(NULL_GPU is None, reason="needs a card that notes its kernels")


def noted(*kinds: str) -> list[str]:
    """Return what the card has noted of these kinds since `nullgpu_clear`."""
    lines = [NULL_GPU.nullgpu_line(i).decode() for i in range(NULL_GPU.nullgpu_count())]
    return [line for line in lines if line.startswith(kinds)]


@pytest.fixture(autouse=True)
def kernels_that_run(monkeypatch):
    """Leave out cuDNN on the null GPU: it links CUDA's runtime statically and finds no driver."""
    if NULL_GPU:
        kernels = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
        monkeypatch.setattr(attention, "CUDA_KERNELS", kernels)


# --------------------------------------------------------------------------------------------------
# Attention


def kernel_of(monkeypatch, case: str, kv_heads: int, dtype, dropout: float) -> str:
    """Name the kernel that PyTorch takes for a case of `attend`."""
    chosen = []

    def choose(q, k, v, attn_mask=None, **options):
        kernel = torch._fused_sdp_choice(q, k, v, attn_mask=attn_mask, **options)
        chosen.append(SDPBackend(kernel).name)
        return torch.empty_like(q)

    monkeypatch.setattr(F, "scaled_dot_product_attention", choose)
    is_training = case != "cache"

    def heads(count: int, length: int) -> torch.Tensor:
        shape = (2, length, count, 64)
        x = torch.empty(shape, device=CUDA, dtype=dtype, requires_grad=is_training)
        return x.transpose(1, 2)

    q = heads(4, 64 if is_training else 1)
    documents = None
    positions = None
    if case == "documents":
        documents = torch.zeros(2, 64, dtype=torch.long, device=CUDA)
    if case == "cache":
        positions = torch.zeros(1, dtype=torch.long, device=CUDA)
    window = 16 if case == "window" else 64
    k = heads(kv_heads, 64)
    v = heads(kv_heads, 64)
    y = attention.attend(q, k, v, window, 0.1, dropout, documents, positions)
    assert y.shape == q.shape
    return chosen[0]


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("dtype", ["auto", "float16", "float32"])
@pytest.mark.parametrize("kv_heads", [4, 2], ids=["ungrouped", "grouped"])
@pytest.mark.parametrize("case", ["plain", "window", "documents", "cache"])
@pytest.mark.parametrize("is_preferred", [True, False], ids=["train", "sample"])
def test_no_case_is_left_to_the_unfused_kernel(
    monkeypatch, is_preferred, case, kv_heads, dtype, dropout
):
    """MATH holds all scores at once. In windows it is what FlexAttention replaces if compiled."""
    fastest = device.fastest_dtype(CUDA) if dtype == "auto" else dtype
    arguments = (monkeypatch, case, kv_heads, getattr(torch, fastest), dropout)
    if is_preferred:
        with attention.kernel_priority():
            kernel = kernel_of(*arguments)
    else:
        kernel = kernel_of(*arguments)
    assert kernel != "MATH"
    has_flash = fastest == "bfloat16"
    if case == "plain" and has_flash:
        assert kernel == "FLASH_ATTENTION" or (is_preferred and not NULL_GPU)


# --------------------------------------------------------------------------------------------------
# A step


class Batches:
    """Random tokens in the place of data."""

    def __init__(self, config):
        self.config = config
        self.batch_size, self.grad_accum = config.split_batch()

    def __call__(self, step: int, micro_step: int, rank: int):
        shape = (self.batch_size, self.config.block_size + 1)
        tokens = np.random.default_rng(step).integers(0, self.config.vocab_size, shape)
        return tokens[:, :-1].copy(), tokens[:, 1:].copy()


def steps_of(recipe: str, *flags: str):
    """Build a recipe's model and optimizers; return the network, and a function for a step."""
    path = str(ROOT / "config" / recipe)
    config = read_options(train.TrainConfig, [path, *flags], "test")
    model = GPT(config, torch.bfloat16).to(CUDA)
    optimizers = train.make_optimizers(model, config)
    scaler = torch.amp.GradScaler("cuda", enabled=False)
    batches = Batches(config)
    network = device.compile_model(model, batches.batch_size, CUDA, config.compile)

    def step() -> None:
        train.set_schedule(optimizers, 0.5, config)
        train.train_step(network, optimizers, scaler, batches, 0, config, CUDA)

    return network, step


def test_evaluating_needs_less_memory_than_training():
    """Otherwise the first evaluation ends a run that fitted the card."""
    flags = ("--micro_batch_size=12", "--batch_tokens=12288", "--compile=False")
    with attention.kernel_priority():
        network, step = steps_of("gpt2.py", "--vocab_size=50257", *flags)
        for _ in range(2):
            step()
        torch.cuda.reset_peak_memory_stats()
        step()
        training = device.peak_memory_mb(CUDA)
        torch.cuda.reset_peak_memory_stats()
        tokens = torch.zeros(12, 1024, dtype=torch.long, device=CUDA)
        with torch.no_grad():
            network.eval()(tokens, tokens.clone(), reduction="none")
        evaluation = device.peak_memory_mb(CUDA)
    assert training < 11_000  # 10,364 with FlashAttention
    assert evaluation < 0.8 * training  # 7,555


@needs_null_gpu
def test_a_compiled_step_of_a_small_model_launches_few_kernels_and_waits_for_none():
    """Each launch costs the processor some microseconds, which is what bounds a small model."""
    with attention.kernel_priority():
        _, step = steps_of("quickstart.py", "--vocab_size=2048", "--max_steps=9")
        for _ in range(3):
            step()
        NULL_GPU.nullgpu_clear()
        NULL_GPU.nullgpu_log(1)
        step()
        NULL_GPU.nullgpu_log(0)
    assert len(noted("KERNEL", "GEMM")) <= 170  # 165 are known
    waits = noted("SYNC")
    assert all("cudaEventSynchronize" in line for line in waits), "of the pinned buffers"


@needs_null_gpu
def test_ranks_exchange_gradients_during_the_backward_pass(monkeypatch):
    """Wrapped, then compiled: the buckets are ready one after another and not all at the end."""
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    for name, value in {"RANK": 0, "WORLD_SIZE": 8, "LOCAL_RANK": 0}.items():
        monkeypatch.setitem(os.environ, name, str(value))
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=8)
    try:
        config = train.TrainConfig(n_layer=4, value_embeds=0, vocab_size=4096, max_steps=1)
        replicated = ranks.replicate(GPT(config, torch.bfloat16).to(CUDA))
        products_before = []

        def hook(state, bucket):
            products_before.append(len(noted("GEMM")))
            future = torch.futures.Future()
            future.set_result(bucket.buffer())
            return future

        replicated.register_comm_hook(None, hook)
        with attention.kernel_priority():
            network = device.compile_model(replicated, 2, CUDA, True)
            tokens = torch.zeros(2, 1024, dtype=torch.long, device=CUDA)
            products_before.clear()
            NULL_GPU.nullgpu_clear()
            NULL_GPU.nullgpu_log(1)
            loss = network(tokens, tokens.clone())
            forward = len(noted("GEMM"))
            loss.backward()
            NULL_GPU.nullgpu_log(0)
    finally:
        dist.destroy_process_group()
    total = len(noted("GEMM"))
    assert len(products_before) >= 2
    assert products_before[0] < (forward + total) / 2
