"""Write the texts that the cases prepare: the same bytes on each side, with faults on purpose."""

import gzip
import json
import random
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
from safetensors.numpy import save_file

SENTENCE = "the a model learns to predict each next token from all that came before and no other"
WORDS = SENTENCE.split()
SCRIPTS = (
    "naïve café – œuvre",
    "Ελληνικά γράμματα",
    "русский текст",
    "中文文本。日本語",
    "🙂👩‍👩‍👧 emoji",
)


def write_texts(folder: Path) -> None:
    write_folder(folder / "words", make_documents(100, seed=0))
    write_folder(folder / "more", make_documents(150, seed=1))
    write_faults(folder / "faults")
    (folder / "one.txt").write_text("\n\n".join(prose())[:300_000])
    one_line = "x" + 2_100_000 * "é"  # a cut after an even number of bytes splits a character
    write_folder(folder / "long", ["".join(make_documents(18_000, seed=2)), one_line, *SCRIPTS])
    write_lines(folder)
    write_tables(folder)
    write_curation(folder)
    write_tokens(folder / "plain")
    write_gpt2(folder / "gpt2")
    write_rows(folder / "large.jsonl", make_documents(22_000, seed=3))


def prose() -> list[str]:
    """Return English prose that every Python has: the chapters of its language reference."""
    return [topics[name] for name in sorted(topics)]


def make_documents(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [make_document(rng) for _ in range(count)]


def make_document(rng: random.Random) -> str:
    words = rng.choices(WORDS, k=rng.randint(20, 80))
    numbers = [str(rng.randrange(1000)) for _ in range(5)]
    return " ".join(words + numbers) + ".\n"


def write_folder(folder: Path, documents: list[str]) -> None:
    folder.mkdir(parents=True)
    for index, text in enumerate(documents):
        (folder / f"{index:03}.txt").write_text(text, encoding="utf-8")


def write_faults(folder: Path) -> None:
    """Write a folder of good texts, packed ones, and some that cannot be read."""
    write_folder(folder / "prose", prose()[:25])
    write_folder(folder / "scripts" / "deeper", [text * 30 for text in SCRIPTS])
    (folder / "empty.txt").write_bytes(b"")
    (folder / "binary.dat").write_bytes(b"\x89PNG\0\0" * 100)
    (folder / "latin.txt").write_bytes("café ".encode("latin-1") * 50)
    (folder / "special.txt").write_text("<|endoftext|> is ordinary text here. " * 20)
    (folder / ".hidden.txt").write_text("not read")
    (folder / "encoded.txt").write_text("QUJD" * 2000)
    chapter = prose()[30].encode()
    packed = pack_gzip(chapter)
    (folder / "packed.txt.gz").write_bytes(packed)
    (folder / "cut.txt.gz").write_bytes(packed[: len(packed) // 2])
    (folder / "packed.txt.zst").write_bytes(pack_zstandard(chapter))


def pack_gzip(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)


def pack_zstandard(content: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor().compress(content)


def write_rows(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def write_lines(folder: Path) -> None:
    """Write JSON lines with every fault, plain and packed as two members or frames."""
    documents = make_documents(80, seed=4)
    good = [json.dumps({"text": text, "other": text[::-1]}) for text in documents]
    faults = [
        "{broken",
        "",
        '["no object"]',
        '{"other": "no text"}',
        '{"text": ""}',
        '{"text": 7}',
        '{"text": "half a character \\ud800 here"}',
        '\ufeff{"text": "begins with a mark"}',
    ]
    lines = "\n".join([*good[:40], *faults, *good[40:]]).encode()
    (folder / "lines.jsonl").write_bytes(lines + b"\n" + b'{"text": "caf\xe9"}\n')
    half = lines.index(b"\n", len(lines) // 2) + 1
    parts = (lines[:half], lines[half:])
    (folder / "lines.jsonl.gz").write_bytes(b"".join(map(pack_gzip, parts)))
    (folder / "lines.jsonl.zst").write_bytes(b"".join(map(pack_zstandard, parts)))


def write_tables(folder: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    texts = [*make_documents(300, seed=5), *SCRIPTS, None, "", "x" * 5000]
    table = pyarrow.table({"id": range(len(texts)), "content": texts})
    (folder / "tables").mkdir()
    parquet.write_table(table, folder / "tables" / "rows.parquet", row_group_size=70)
    (folder / "tables" / "README.md").write_text("a description, which is no text of the data set")
    with pyarrow.ipc.new_stream(folder / "rows.arrow", table.schema) as stream:
        stream.write_table(table, max_chunksize=64)


def write_curation(folder: Path) -> None:
    """Write documents of which each rule of curation drops some, and an evaluation set."""
    rng = random.Random(6)
    paragraphs = [part for text in prose() for part in text.split("\n\n") if len(part) > 200]
    documents = ["\n\n".join(rng.sample(paragraphs, 6)) for _ in range(150)]
    documents += documents[:10]  # copies
    documents += [change_words(text, rng, 0.01) for text in documents[10:40]]  # near copies
    documents += [change_words(text, rng, 0.3) for text in documents[40:50]]
    documents += list(spoiled(documents[50:90], rng))
    documents += [f"Diese Sätze stehen auf Deutsch da. {text}" * 30 for text in WORDS]
    rng.shuffle(documents)
    write_rows(folder / "curation.jsonl", documents)
    questions = [" ".join(text.split()[30:60]) for text in documents[:20]]
    write_rows(folder / "exam.jsonl", questions)


def change_words(text: str, rng: random.Random, share: float) -> str:
    words = text.split(" ")
    return " ".join(rng.choice(WORDS) if rng.random() < share else word for word in words)


def spoiled(texts: list[str], rng: random.Random) -> Iterator[str]:
    """Yield texts with the faults that the rules of quality look for."""
    spoil = [
        lambda text: "\n".join(f"- {line}" for line in text.splitlines()),
        lambda text: "\n".join(f"{line} ..." for line in text.splitlines()),
        lambda text: text.replace("a", "#"),
        lambda text: text[:200],
        lambda text: text.replace(" ", ""),
        lambda text: "\n".join(text.splitlines()[:3] * 40),
        lambda text: "\n\n".join(text.split("\n\n")[:2] * 20),
        lambda text: f"Lorem ipsum dolor. {text}",
        lambda text: "\n".join(f"{line} cookie policy {{" for line in text.splitlines()),
        lambda text: " ".join(str(rng.randrange(10**6)) for _ in range(400)),
    ]
    for index, text in enumerate(texts):
        yield spoil[index % len(spoil)](text)


def write_tokens(folder: Path) -> None:
    """Write tokens as nanoGPT does, without a header."""
    folder.mkdir()
    text = "".join(prose())[:20_000].encode()
    ids = np.frombuffer(text, np.uint8).astype("<u2")
    ids[:18_000].tofile(folder / "train.bin")
    ids[18_000:].tofile(folder / "val.bin")


def write_gpt2(folder: Path) -> None:
    """Write a small GPT-2 with random weights, in the format of the transformers library."""
    width = 32
    sizes = {"vocab_size": 257, "n_positions": 64, "n_embd": width, "n_layer": 2, "n_head": 2}
    names = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}
    ids = {"bos_token_id": 256, "eos_token_id": 256}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(names | sizes | ids))
    shapes = {"wte.weight": (257, width), "wpe.weight": (64, width)}
    shapes |= norm_shapes("ln_f", width)
    for layer in range(2):
        block = f"h.{layer}"
        shapes |= norm_shapes(f"{block}.ln_1", width)
        shapes |= norm_shapes(f"{block}.ln_2", width)
        shapes |= linear_shapes(f"{block}.attn.c_attn", width, 3 * width)
        shapes |= linear_shapes(f"{block}.attn.c_proj", width, width)
        shapes |= linear_shapes(f"{block}.mlp.c_fc", width, 4 * width)
        shapes |= linear_shapes(f"{block}.mlp.c_proj", 4 * width, width)
    rng = np.random.default_rng(8)
    tensors = {
        f"transformer.{name}": rng.normal(0, 0.1, shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def norm_shapes(name: str, width: int) -> dict[str, tuple]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def linear_shapes(name: str, inputs: int, outputs: int) -> dict[str, tuple]:
    return {f"{name}.weight": (inputs, outputs), f"{name}.bias": (outputs,)}
