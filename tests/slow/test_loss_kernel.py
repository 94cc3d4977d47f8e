"""The kernel of the loss on CUDA, without a GPU: its values, and its machine instructions.

Triton's interpreter computes the values on the CPU, Triton's compiler makes the machine code of an
H100. Both need Triton's package alone (`pip install triton`).
"""

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests.conftest import ROOT

pytest.importorskip("triton", reason="needs triton: pip install triton")

DTYPES = {"float32": 3e-5, "bfloat16": 4e-3, "float16": 4e-4}  # dtype: tolerance of a gradient
INTERPRET = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from tests.slow.test_loss_kernel import compare
compare()
"""


def expected(logits, targets, vocab_size, softcap):
    """Compute losses and gradient of the logits without padding, by torch in float64."""
    leaf = logits.double().requires_grad_()
    scored = leaf[:, :vocab_size]
    if softcap is not None:
        scored = softcap * torch.tanh(scored / softcap)
    losses = F.cross_entropy(scored, targets, ignore_index=-1, reduction="none")
    (gradient,) = torch.autograd.grad(losses.sum(), leaf)
    return losses.detach(), gradient


def compare() -> None:
    """Compare kernel and torch for all kinds of logits; runs in the interpreter."""
    from nanoloop.loss_kernel import replace_by_gradient

    sizes = [(50, 64), (128, 128), (5000, 5056)]  # vocabulary, with padding
    softcaps = [15.0, 1.5, 60.0, None]
    for name, softcap, (size, padded) in itertools.product(DTYPES, softcaps, sizes):
        torch.manual_seed(0)
        logits = (8 * torch.randn(6, padded)).to(getattr(torch, name))
        logits[:, size:] = 1000.0  # padding must not count, whatever it is
        targets = torch.randint(size, (6,))
        targets[1] = size - 1
        targets[2] = -1
        losses, gradient = expected(logits, targets, size, softcap)
        found = replace_by_gradient(logits, targets, size, softcap)
        torch.testing.assert_close(found.double(), losses, atol=3e-5, rtol=1e-5)
        torch.testing.assert_close(logits.double(), gradient, atol=DTYPES[name], rtol=0)
    print("equal")


def test_losses_and_gradients_are_those_of_torch():
    """In an interpreter of its own, because Triton chooses its mode when it is imported."""
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", INTERPRET]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.endswith("equal\n"), done.stderr


def instructions_per_logit(softcap, needs_maximum: bool, folder: Path) -> float:
    """Count the instructions of the kernel's two loops on an H100, for each logit of bfloat16."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from nanoloop.loss_kernel import BLOCK, cross_entropy_kernel

    constants = {"softcap": softcap, "needs_maximum": needs_maximum, "block": BLOCK}
    types = {
        "logits_ptr": "*bf16",
        "targets_ptr": "*i64",
        "losses_ptr": "*fp32",
        "width": "i32",
        "vocab_size": "i32",
        **dict.fromkeys(constants, "constexpr"),
    }
    # What Triton sees at run time: addresses and the padded width are multiples of 16.
    aligned = {(index,): [["tt.divisibility", 16]] for index in range(4)}
    source = ASTSource(cross_entropy_kernel, types, constants, aligned)
    binary = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8})
    path = folder / "kernel.cubin"
    path.write_bytes(binary.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/nvdisasm"
    text = subprocess.run([tool, "-c", path], capture_output=True, text=True, check=True).stdout
    assert "LDL" not in text and "STL" not in text  # registers suffice

    labels = {}
    count = 0
    in_loops = 0
    for line in text.splitlines():
        if label := re.match(r"(\.L_x_\d+):", line.strip()):
            labels[label[1]] = count
        elif instruction := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*);", line):
            count += 1
            target = re.search(r"BRA.*?(\.L_x_\d+)", instruction[1])
            if target and target[1] in labels:  # a jump back ends a loop
                # The endless loop behind the last instruction is a single one.
                in_loops += max(0, count - labels[target[1]] - 1)
    return in_loops / (BLOCK / (8 * 32))


@pytest.mark.parametrize(
    "softcap, needs_maximum, limit", [(15.0, False, 44), (60.0, True, 50), (None, True, 28)]
)
def test_a_logit_costs_few_instructions(softcap, needs_maximum, limit, tmp_path):
    """PyTorch's compiler takes 176 with the softcap and 85 without (docs/figures.md)."""
    assert 20 < instructions_per_logit(softcap, needs_maximum, tmp_path) <= limit
