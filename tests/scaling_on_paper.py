"""What training on 1 to 1,024 GPUs would take, worked out from formulas, as Markdown tables:

    python -m tests.scaling_on_paper

Nothing in here was measured. The formulas and where they come from stand in tests/README.md beside the tables; the
functions below are those formulas, one each.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from nanoloop.device import PEAK_FLOPS

GB = 1e9
PEAK = PEAK_FLOPS["H100"]  # FLOPs per second and GPU, bf16
MFU = 0.5  # share of the peak that the arithmetic reaches on one GPU: an assumption, and the design's goal
MEMORY = 80 * GB  # of an H100
NVLINK = 450 * GB  # bytes per second and direction between the 8 GPUs of a machine (NVLink 4)
NETWORK = 50 * GB  # … from each GPU to other machines: a 400 Gb/s card per GPU
REACHED = 0.8  # share of a link's speed that large messages reach
GPUS = (1, 8, 64, 256, 1024)
BLOCK = 2048  # tokens per sequence


@dataclass(frozen=True)
class Size:
    name: str
    layers: int
    width: int
    batch: int  # tokens per optimizer step
    vocab: int = 50_304

    @property
    def hidden(self) -> int:
        """Weights of the blocks: 4 C² of attention and 8 C² of the MLP in each layer."""
        return 12 * self.layers * self.width**2

    @property
    def weights(self) -> int:
        """… and the tied table of tokens."""
        return self.hidden + self.vocab * self.width


SIZES = (
    Size("124M", 12, 768, 2**19),
    Size("354M", 24, 1024, 2**19),
    Size("774M", 36, 1280, 2**20),
    Size("1.6B", 48, 1600, 2**20),
    Size("6.6B", 32, 4096, 2**22),
)


def state_bytes(size: Size) -> float:
    """Weights, gradients and optimizer: 4 + 4 + 4 bytes a hidden weight (Muon), 4 + 4 + 8 one of the table (AdamW)."""
    return 12 * size.hidden + 16 * (size.weights - size.hidden)


def activation_bytes(size: Size, tokens: int) -> float:
    """34 bytes a token, channel and layer without the attention scores, which fused attention does not keep (Korthikanti
    et al. 2022, arXiv:2205.05198, equation 2); and logits with their gradient in float32."""
    return tokens * (34 * size.width * size.layers + 8 * size.vocab)


def compute_seconds(size: Size, gpus: int) -> float:
    """6 FLOPs a weight and token, 12 a channel, layer and position attended to (PaLM, arXiv:2204.02311, appendix B)."""
    per_token = 6 * size.weights + 12 * size.layers * size.width * BLOCK
    return size.batch * per_token / (gpus * PEAK * MFU)


def muon_seconds(size: Size, gpus: int) -> float:
    """Newton-Schulz: five times 4m²n + 2m³ FLOPs for a matrix of m × n, m ≤ n. Each GPU takes whole matrices: with more
    GPUs than matrices of a shape, the rest wait."""
    square, wide = 30 * size.width**3, 90 * size.width**3  # C × C; C × 4C
    turns = math.ceil(4 * size.layers / gpus) * square + 2 * math.ceil(size.layers / gpus) * wide
    return turns / (PEAK * MFU)


def bandwidth(gpus: int) -> float:
    """Bytes per second and GPU of a ring: within a machine NVLink; across, the cards of its 8 GPUs side by side, which
    is what a ring per card gives each of them."""
    return REACHED * (NVLINK if gpus <= 8 else min(NVLINK, 8 * NETWORK))


def passes(gpus: int) -> float:
    """Share of the message that each GPU sends in a ring all-gather or reduce-scatter; an all-reduce is both (Patarasuk
    & Yuan 2009)."""
    return (gpus - 1) / gpus


def replicated_bytes(size: Size, gpus: int) -> float:
    """Per optimizer step: gradients all-reduced in float32, and Muon's updates gathered, each GPU having made its share."""
    return passes(gpus) * (2 * 4 * size.weights + 4 * size.hidden)


def sharded_bytes(size: Size, gpus: int, micro_steps: int) -> float:
    """Weights gathered in bf16 forward and backward, in each micro-step; gradients reduce-scattered in float32 once; the
    matrices brought together for Newton-Schulz and back (ZeRO stage 3, arXiv:1910.02054, §7; FSDP, arXiv:2304.11277)."""
    return passes(gpus) * (
        micro_steps * 2 * 2 * size.weights + 4 * size.weights + 2 * 4 * size.hidden
    )


def plan(size: Size, gpus: int, sharded: bool) -> tuple[int, int, float] | None:
    """(sequences at once, micro-steps, bytes per GPU), the most sequences that fit; None where none does, or where the
    batch has too few sequences to give each GPU one."""
    held = state_bytes(size) / (gpus if sharded else 1)
    held += (
        4 * size.weights if sharded and size.batch // (gpus * BLOCK) > 1 else 0
    )  # see tests/README.md
    for rows in (32, 16, 8, 4, 2, 1):
        needed = held + activation_bytes(size, rows * BLOCK)
        micro_steps, rest = divmod(size.batch, gpus * rows * BLOCK)
        if needed <= 0.9 * MEMORY and micro_steps >= 1 and not rest:
            return rows, micro_steps, needed
    return None


def efficiency(size: Size, gpus: int, sharded: bool) -> tuple[float, float, float] | None:
    """(share of the time spent computing if nothing overlaps, the same if everything does, seconds per step)."""
    if not (planned := plan(size, gpus, sharded)):
        return None
    useful = compute_seconds(size, gpus)
    sent = sharded_bytes(size, gpus, planned[1]) if sharded else replicated_bytes(size, gpus)
    sending, muon = sent / bandwidth(gpus) if gpus > 1 else 0.0, muon_seconds(size, gpus)
    return (
        useful / (useful + muon + sending),
        useful / (max(useful, sending) + muon),
        useful + muon + sending,
    )


def table(head: list[str], rows: list[list]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) + "\n"


def main() -> None:
    print(
        "Memory per GPU in GB: weights, gradients and optimizer; sharded over N; activations of one sequence\n"
    )
    print(
        table(
            ["model", "replicated", *(f"sharded over {n}" for n in GPUS[1:]), f"{BLOCK} tokens"],
            [
                [
                    size.name,
                    f"{state_bytes(size) / GB:.1f}",
                    *(f"{state_bytes(size) / n / GB:.2f}" for n in GPUS[1:]),
                    f"{activation_bytes(size, BLOCK) / GB:.1f}",
                ]
                for size in SIZES
            ],
        )
    )
    for sharded in (False, True):
        told = "Sharded (--shard=True)" if sharded else "Replicated"
        print(
            f"{told}: share of the time that computes, if communication is hidden by nothing … if by all it can\n"
        )
        rows = []
        for size in SIZES:
            row = [size.name, f"{size.batch / 2**20:g}M"]
            for n in GPUS:
                found = efficiency(size, n, sharded)
                row.append(f"{found[0]:.0%} … {found[1]:.0%}" if found else "-")
            rows.append(row)
        print(
            table(
                ["model", "tokens a step", *(f"{n} GPUs" if n > 1 else "1 GPU" for n in GPUS)], rows
            )
        )
    print(
        "Communication per optimizer step on 64 GPUs, and Newton-Schulz in seconds on one GPU and shared by 64\n"
    )
    rows = []
    for size in SIZES:
        planned = plan(size, 64, True)
        rows.append(
            [
                size.name,
                f"{replicated_bytes(size, 64) / GB:.1f} GB",
                f"{replicated_bytes(size, 64) / bandwidth(64):.3f} s",
                *(
                    [
                        f"{sharded_bytes(size, 64, planned[1]) / GB:.1f} GB ({planned[1]} × {planned[0]} sequences)"
                    ]
                    if planned
                    else ["-"]
                ),
                f"{compute_seconds(size, 64):.3f} s",
                f"{muon_seconds(size, 1):.3f} s",
                f"{muon_seconds(size, 64):.4f} s",
            ]
        )
    print(
        table(
            [
                "model",
                "replicated sends",
                "which takes",
                "sharded sends",
                "computing takes",
                "Newton-Schulz on one",
                "on 64",
            ],
            rows,
        )
    )


if __name__ == "__main__":
    main()
