"""Measure text: tokens per second of decoding, megabytes per second of preparing."""

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from bench.measure import timed
from bench.sides import ROOT
from model import GPT
from nanoloop.device import peak_memory_mb, pick_device
from nanoloop.files import write_json
from nanoloop.generate import generate
from nanoloop.options import require
from nanoloop.tokenizer import Tokenizer, load_tokenizer
from sample import cast_weights

# --------------------------------------------------------------------------------------------------
# Decoding, with nanoGPT's settings: temperature 0.8, top_k 200


def decode(options) -> dict:
    """Measure sampling from random weights; on CUDA the model is compiled."""
    device, dtype = pick_device(options.device, options.dtype)
    model = GPT(with_vocabulary(options), dtype)
    cast_weights(model, dtype)
    model.to(device).eval()
    if device.type == "cuda" and options.compile is not False:
        model.compile(dynamic=False)

    def sample(batch_size: int, count: int) -> None:
        generate(model, [[0]] * batch_size, count, temperature=0.8, top_k=200)

    lengths = options.lengths()
    cases = [(1, length) for length in lengths]
    cases += [(8, lengths[0]), (32, lengths[0])]
    figures = decoding_speed(sample, cases, device)
    return figures | {"memory_mb_batch_32": peak_memory_mb(device)}


def with_vocabulary(options):
    """Return the options with GPT-2's vocabulary, padded, if they name none."""
    return replace(options, vocab_size=options.vocab_size or 50304)


def decoding_speed(
    sample: Callable, cases: list[tuple[int, int]], device: torch.device
) -> dict[str, float]:
    """Time sample(batch_size, count) for each (batch_size, count); return tokens per second."""
    figures = {}
    for batch_size, count in cases:
        sample(batch_size, min(16, count))  # compile and capture
        _, seconds = timed(device, sample, batch_size, count)
        name = f"tokens_per_second_{count}"
        if batch_size > 1:
            name += f"_batch_{batch_size}"
        figures[name] = batch_size * count / seconds
    return figures


# --------------------------------------------------------------------------------------------------
# Preparing


def prepare(options) -> dict:
    """Measure prepare_data.py as it is typed, the start of its interpreter included."""
    files = text_files(options)
    tokenizer = fixed_tokenizer(options)
    command = [sys.executable, str(ROOT / "prepare_data.py"), "--name=bench"]
    command += [f"--source={Path(options.prepare_text).resolve()}", "--tokenizer=tokenizer.json"]
    command += ["--val_fraction=0.0005", "--test_fraction=0"]
    os.chdir(options.out)
    write_json(Path("tokenizer.json"), tokenizer.to_json())
    return preparation_speed(files, lambda: subprocess.check_call(command))


def fixed_tokenizer(options) -> Tokenizer:
    """Return the tokenizer of --data, or GPT-2's if it is not prepared. Raises UserError."""
    has_tokenizer = Path(options.data, "tokenizer.json").is_file()
    tokenizer = load_tokenizer(options.data if has_tokenizer else "gpt2")
    is_valid = tokenizer.pattern is not None and tokenizer.vocab_size <= 65536
    require(is_valid, f"--data needs at most 65,536 byte pairs, got {tokenizer.name}")
    return tokenizer


def text_files(options) -> list[str]:
    """List the files of --prepare_text that are not hidden. Raises UserError."""
    source = Path(options.prepare_text).resolve()
    paths = [source, *sorted(source.rglob("[!.]*"))]
    files = [str(path) for path in paths if path.is_file()]
    require(files, f"--prepare_text={source}: there are no such files")
    return files


def preparation_speed(files: list[str], action: Callable) -> dict:
    """Time action(), which writes the tokens of `files` below the current folder.

    memory_mb: the most memory of all processes, without what they had before.
    """
    with watched_memory() as samples:
        _, seconds = timed(torch.device("cpu"), action)
    n_tokens = 0
    for path in Path().rglob("*.bin"):
        # Tokens have two bytes. Our shards, with a number in their name, have a header too.
        n_tokens += path.stat().st_size // 2 - (512 if "_" in path.name else 0)
    return {
        "megabytes_per_second": sum(map(os.path.getsize, files)) / 1e6 / seconds,
        "memory_mb": max(samples) - samples[0],
        "tokens": n_tokens,
    }


@contextlib.contextmanager
def watched_memory():
    """Yield a list that gets the memory of this program, in MiB, every 0.2 seconds."""
    samples = [program_memory_mb()]
    is_done = threading.Event()

    def watch() -> None:
        while not is_done.wait(0.2):
            samples.append(program_memory_mb())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        is_done.set()
        thread.join()


def program_memory_mb() -> float:
    """Sum the memory of this process and those it started, in MiB; 0 outside Linux.

    Shared pages count once. Mapped files do not count: the system takes their pages back when it
    needs memory.
    """
    total = 0
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # processes end meanwhile
            if os.getsid(int(process.name)) != os.getsid(0):
                continue
            for line in (process / "smaps_rollup").read_text().splitlines():
                name, *values = line.split()
                if name in ("Pss_Anon:", "Pss_Shmem:"):
                    total += int(values[0])
    return total / 1024
