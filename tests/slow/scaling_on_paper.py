"""What training on 1 to 1,024 GPUs would take by formulas, as Markdown tables. Not measured.

    python -m tests.slow.scaling_on_paper

docs/figures.md explains the formulas beside the tables; each function below is one of them.
"""

import math
from dataclasses import dataclass

from nanoloop.device import PEAK_FLOPS

GB = 1e9
PEAK = PEAK_FLOPS["H100"]  # FLOPs per second and GPU in bf16
MFU = 0.5  # fraction of the peak that one GPU's arithmetic reaches: an assumption
MEMORY = 80 * GB  # of an H100
NVLINK = 450 * GB  # bytes per second and direction between the 8 GPUs of a machine (NVLink 4)
NETWORK = 50 * GB  # from each GPU to other machines: a card of 400 Gb/s per GPU
REACHED = 0.8  # fraction of a link's speed that large messages reach
GPUS = (1, 8, 64, 256, 1024)
BLOCK = 2048  # tokens per sequence


@dataclass(frozen=True)
class Size:
    """A model of GPT-2's shape with a tied table."""

    name: str
    layers: int
    width: int
    batch: int  # tokens per optimizer step
    vocab: int = 50_304

    @property
    def hidden(self) -> int:
        """Count the weights of the blocks: 4 C² of attention and 8 C² of the MLP in each."""
        return 12 * self.layers * self.width**2

    @property
    def weights(self) -> int:
        return self.hidden + self.vocab * self.width


SIZES = (
    Size("124M", 12, 768, 2**19),
    Size("354M", 24, 1024, 2**19),
    Size("774M", 36, 1280, 2**20),
    Size("1.6B", 48, 1600, 2**20),
    Size("6.6B", 32, 4096, 2**22),
)


@dataclass(frozen=True)
class Plan:
    """How a batch is split: the most sequences at once that fit into a GPU's memory."""

    sequences: int
    micro_steps: int


@dataclass(frozen=True)
class Efficiency:
    """Fractions of the time that computes, if communication overlaps with nothing or with all."""

    lowest: float
    highest: float


def state_bytes(size: Size) -> float:
    """Count weight, gradient and optimizer: 12 bytes a hidden weight, 16 one of the table.

    Float32 each; Muon keeps one number for a weight, AdamW two.
    """
    return 12 * size.hidden + 16 * (size.weights - size.hidden)


def activation_bytes(size: Size, tokens: int) -> float:
    """Count 34 bytes a token, channel and layer, and the logits with their gradient in float32.

    Fused attention does not keep the scores (Korthikanti et al. 2022, arXiv:2205.05198, eq. 2).
    """
    return tokens * (34 * size.width * size.layers + 8 * size.vocab)


def compute_seconds(size: Size, gpus: int) -> float:
    """Take 6 FLOPs a weight and token, 12 a channel, layer and position attended to.

    From PaLM, arXiv:2204.02311, appendix B.
    """
    per_token = 6 * size.weights + 12 * size.layers * size.width * BLOCK
    return size.batch * per_token / (gpus * PEAK * MFU)


def muon_seconds(size: Size, gpus: int) -> float:
    """Take five times 4m²n + 2m³ FLOPs for a matrix of m × n, m ≤ n (Newton-Schulz).

    Each GPU takes complete matrices. With more GPUs than matrices of a shape, some wait.
    """
    square = 30 * size.width**3  # C × C
    wide = 90 * size.width**3  # C × 4C
    flops = math.ceil(4 * size.layers / gpus) * square
    flops += 2 * math.ceil(size.layers / gpus) * wide
    return flops / (PEAK * MFU)


def bandwidth(gpus: int) -> float:
    """Return the bytes per second and GPU of a ring.

    Within a machine it is NVLink's. Across machines a ring per card uses all 8 cards.
    """
    link = NVLINK if gpus <= 8 else min(NVLINK, 8 * NETWORK)
    return REACHED * link


def sent_fraction(gpus: int) -> float:
    """Return the fraction of a message that each GPU sends in a ring all-gather.

    A reduce-scatter sends as much; an all-reduce is one of each (Patarasuk & Yuan 2009).
    """
    return (gpus - 1) / gpus


def replicated_bytes(size: Size, gpus: int) -> float:
    """Count what a GPU sends per step: gradients all-reduced in float32, and Muon's updates."""
    return sent_fraction(gpus) * (2 * 4 * size.weights + 4 * size.hidden)


def sharded_bytes(size: Size, gpus: int, micro_steps: int) -> float:
    """Count what a GPU sends per step of a sharded run.

    Weights gathered in bf16 forward and backward in each micro-step; gradients reduce-scattered
    in float32 once; the matrices gathered for Newton-Schulz and sent back (ZeRO stage 3,
    arXiv:1910.02054, section 7; FSDP, arXiv:2304.11277).
    """
    weights = micro_steps * 2 * 2 * size.weights
    gradients = 4 * size.weights
    matrices = 2 * 4 * size.hidden
    return sent_fraction(gpus) * (weights + gradients + matrices)


def plan(size: Size, gpus: int, sharded: bool) -> Plan | None:
    """Return the plan with the most sequences; None where none fits or some GPU gets none."""
    held = state_bytes(size) / (gpus if sharded else 1)
    if sharded and size.batch // (gpus * BLOCK) > 1:
        held += 4 * size.weights  # complete gradients between micro-steps
    for sequences in (32, 16, 8, 4, 2, 1):
        needed = held + activation_bytes(size, sequences * BLOCK)
        micro_steps, rest = divmod(size.batch, gpus * sequences * BLOCK)
        if needed <= 0.9 * MEMORY and micro_steps >= 1 and not rest:
            return Plan(sequences, micro_steps)
    return None


def efficiency(size: Size, gpus: int, sharded: bool) -> Efficiency | None:
    planned = plan(size, gpus, sharded)
    if planned is None:
        return None
    useful = compute_seconds(size, gpus)
    muon = muon_seconds(size, gpus)
    sent = replicated_bytes(size, gpus)
    if sharded:
        sent = sharded_bytes(size, gpus, planned.micro_steps)
    sending = sent / bandwidth(gpus) if gpus > 1 else 0.0
    lowest = useful / (useful + muon + sending)
    highest = useful / (max(useful, sending) + muon)
    return Efficiency(lowest, highest)


# ------------------------------------------------------------------------------------------------
# Tables


def print_table(title: str, head: list[str], rows: list[list]) -> None:
    print(f"{title}\n")
    for line in (head, ["---"] * len(head), *rows):
        print(f"| {' | '.join(map(str, line))} |")
    print()


def print_memory() -> None:
    rows = []
    for size in SIZES:
        row = [size.name, f"{state_bytes(size) / GB:.1f}"]
        row += [f"{state_bytes(size) / count / GB:.2f}" for count in GPUS[1:]]
        row.append(f"{activation_bytes(size, BLOCK) / GB:.1f}")
        rows.append(row)
    title = (
        "Memory per GPU in GB: weights, gradients and optimizer, replicated or sharded over N; "
        "activations of one sequence"
    )
    sharded = [f"sharded over {count}" for count in GPUS[1:]]
    print_table(title, ["model", "replicated", *sharded, f"{BLOCK} tokens"], rows)


def print_efficiency(title: str, sharded: bool) -> None:
    rows = []
    for size in SIZES:
        row = [size.name, f"{size.batch / 2**20:g}M"]
        for count in GPUS:
            found = efficiency(size, count, sharded)
            row.append(f"{found.lowest:.0%} … {found.highest:.0%}" if found else "-")
        rows.append(row)
    columns = [f"{count} GPUs" if count > 1 else "1 GPU" for count in GPUS]
    print_table(title, ["model", "tokens a step", *columns], rows)


def print_communication() -> None:
    rows = []
    for size in SIZES:
        replicated = replicated_bytes(size, 64)
        planned = plan(size, 64, True)
        sharded = "-"
        if planned:
            sent = sharded_bytes(size, 64, planned.micro_steps) / GB
            split = f"{planned.micro_steps} × {planned.sequences} sequences"
            sharded = f"{sent:.1f} GB ({split})"
        rows.append(
            [
                size.name,
                f"{replicated / GB:.1f} GB",
                f"{replicated / bandwidth(64):.3f} s",
                sharded,
                f"{compute_seconds(size, 64):.3f} s",
                f"{muon_seconds(size, 1):.3f} s",
                f"{muon_seconds(size, 64):.4f} s",
            ]
        )
    title = (
        "Communication per optimizer step on 64 GPUs, and orthogonalization (Newton-Schulz) in "
        "seconds on one GPU and shared by 64"
    )
    head = ["model", "replicated sends", "taking", "sharded sends", "computing takes"]
    print_table(title, [*head, "Newton-Schulz on one", "on 64"], rows)


def main() -> None:
    print_memory()
    title = "the share of time that computes, if communication overlaps with nothing … with as much"
    print_efficiency(f"Replicated: {title} as possible", sharded=False)
    print_efficiency("Sharded (`--shard=True`): the same", sharded=True)
    print_communication()


if __name__ == "__main__":
    main()
