"""Draw docs/network.svg and docs/datum.svg from the code's own configuration.

    python -m tests.slow.draw

The drawings are narrow and their letters large, so that a phone shows them. A test compares the
files in docs/ with what this script makes.
"""

from dataclasses import dataclass, fields
from html import escape
from pathlib import Path
from typing import Literal, get_args, get_origin

from model import GPTConfig
from nanoloop.data import SPLITS
from nanoloop.vocabulary import END_OF_TEXT
from train import TrainConfig

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
WIDTH = 380
MARGIN = 12
TITLE = 18  # size of letters
LINE = 15
STEP = 22  # from line to line
GAP = 34  # between boxes, with the arrow
LONGEST = 38  # characters of a line


@dataclass
class Box:
    """A title, lines of text below it, and boxes inside. label: stands at the arrow above it."""

    title: str
    lines: list[str]
    label: str = ""
    inner: tuple["Box", ...] = ()


def switch(name: str) -> str:
    """Return a field with its default, and the other values it may have."""
    field = next(field for field in fields(TrainConfig) if field.name == name)
    text = f"{name} = {field.default}"
    if get_origin(field.type) is Literal:
        others = [value for value in get_args(field.type) if value != field.default]
        text += f"  (or {', '.join(others)})"
    return text


def network() -> list[Box]:
    """Describe GPT.forward: every field of GPTConfig stands where it acts."""
    before = Box("a · x + b · embedding", [switch("residual_scalars")])
    attention = Box(
        "attention: looks back",
        [
            *map(switch, ("n_head", "n_kv_head", "qk_norm")),
            *map(switch, ("rope_base", "value_embeds")),
            *map(switch, ("window_pattern", "window_size")),
            *map(switch, ("document_mask", "document_token")),
        ],
        "x + attention(norm(x))",
    )
    mlp = Box(
        "MLP: works at each position",
        ["4 · C hidden units", switch("activation")],
        "x + MLP(norm(x))",
    )
    embedding = Box(
        "embedding: wte[token]",
        [
            *map(switch, ("vocab_size", "block_size", "n_embd")),
            switch("bigram_rows"),
            switch("position"),
        ],
    )
    block = Box("block", [switch("n_layer")], "x: (B, T, C)", (before, attention, mlp))
    head = Box(
        "lm_head: a score per token",
        [switch("tie_embeddings"), switch("logit_softcap")],
        "norm(x): (B, T, C)",
    )
    everywhere = Box(
        "everywhere", [switch("norm"), switch("bias"), switch("dropout"), switch("weight_init")]
    )
    return [
        Box("tokens", ["whole numbers: (B, T)"]),
        embedding,
        block,
        head,
        Box(
            "loss", ["cross-entropy with the next token", "in nats: one number"], "logits (B, T, V)"
        ),
        everywhere,
    ]


def datum() -> list[Box]:
    """Describe what becomes of a text."""
    splits = ", ".join(SPLITS)
    return [
        Box("text", ["files, tables, Hugging Face data sets"]),
        Box("documents", ["curation drops some, if asked", f"a hash picks {splits}"]),
        Box("tokens", [f"{END_OF_TEXT} begins each document", "tokenizer.json: the bytes of each"]),
        Box("shards in data/NAME/", [f"{split}_000000.bin" for split in SPLITS], "prepare_data.py"),
        Box(
            "a batch (B, T)",
            [
                "f(data, seed, step, rank)",
                switch("batch_tokens"),
                switch("block_size"),
                switch("seed"),
            ],
            "train.py",
        ),
        Box("loss", ["model.py: forward"]),
        Box("gradients", ["backward: one per weight"]),
        Box(
            "optimizer step",
            [
                switch("optimizer"),
                f"muon_lr = {TrainConfig.muon_lr}: hidden matrices",
                f"embed_lr = {TrainConfig.embed_lr}: tables",
                f"head_lr = {TrainConfig.head_lr}: head",
                "then the next batch",
            ],
        ),
        Box(
            "checkpoint",
            [switch("save_interval"), "last.pt, previous.pt", "best.pt: lowest val_loss"],
            "every save_interval steps, at the end",
        ),
        Box("sample.py", ["loads a checkpoint, writes text"]),
    ]


def draw_text(x: float, y: float, text: str, size: int, weight: str = "normal") -> str:
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" font-weight="{weight}" '
        f'xml:space="preserve">{escape(text)}</text>'
    )


def wrapped(lines: list[str]) -> list[str]:
    """Put the other values of a switch on a line below it where they are too wide."""
    return [
        part
        for line in lines
        for part in (line.replace("  (", "\n    (").split("\n") if len(line) > LONGEST else [line])
    ]


def draw_box(box: Box, x: int, y: int, width: int) -> tuple[list[str], int]:
    """Return the elements of a box and of what is inside, and its height."""
    elements = [draw_text(x + 12, y + 27, box.title, TITLE, "bold")]
    height = 36
    for line in wrapped(box.lines):
        elements.append(draw_text(x + 12, y + height + 16, line, LINE))
        height += STEP
    height += 8
    if box.inner:
        inside, size = draw_column(box.inner, x + 10, y + height, width - 20)
        elements += inside
        height += size + 10
    frame = (
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" '
        'fill="#ffffff" stroke="#30507a" stroke-width="2"/>'
    )
    return [frame, *elements], height


def draw_column(boxes, x: int, y: int, width: int) -> tuple[list[str], int]:
    """Return the elements of boxes below each other, and their height."""
    elements = []
    top = y
    for index, box in enumerate(boxes):
        is_linked = index > 0 and box.title != "everywhere"
        if is_linked:
            middle = x + 30
            elements.append(
                f'<path d="M {middle} {y + 3} v {GAP - 12} m -6 -8 l 6 9 l 6 -9" '
                'fill="none" stroke="#30507a" stroke-width="2"/>'
            )
            elements.append(draw_text(middle + 16, y + 22, box.label, LINE))
        if index > 0:
            y += GAP
        drawn, height = draw_box(box, x, y, width)
        elements += drawn
        y += height
    return elements, y - top


def svg(boxes: list[Box], title: str) -> str:
    elements, height = draw_column(boxes, MARGIN, MARGIN, WIDTH - 2 * MARGIN)
    height += 2 * MARGIN
    start = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" font-family="Helvetica, Arial, sans-serif">'
    )
    background = f'<rect width="{WIDTH}" height="{height}" fill="#f2f5f9"/>'
    lines = [start, f"<title>{escape(title)}</title>", background, *elements, "</svg>"]
    return "\n".join(lines) + "\n"


def drawings() -> dict[str, str]:
    """Return the content of each file in docs/, by its name."""
    return {
        "network.svg": svg(network(), "The network with its switches"),
        "datum.svg": svg(datum(), "From text to checkpoint"),
    }


def drawn_fields() -> set[str]:
    """Return the fields of GPTConfig that the drawing of the network names."""
    text = drawings()["network.svg"]
    return {field.name for field in fields(GPTConfig) if f">{field.name} = " in text}


if __name__ == "__main__":
    for name, text in drawings().items():
        (DOCS / name).write_text(text, "utf-8")
        print(f"docs/{name}")
