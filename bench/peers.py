"""Measure nanoGPT: its data format, its recipe, its timing.

Each function runs in a process that ends after it, because it replaces parts of the libraries that
nanoGPT's programs use. The programs run as they are, inside their folder.
"""

import math
import os
import runpy
import shlex
import sys
import time
from bisect import bisect_left
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.measure import STRETCHES
from bench.text import (
    decoding_speed,
    fixed_tokenizer,
    preparation_speed,
    text_files,
    with_vocabulary,
)
from nanoloop.data import Data
from nanoloop.device import peak_memory_mb, pick_device
from nanoloop.options import require
from nanoloop.programs import prepare_missing
from train import evaluate

# By prepared folder: the flags of the README for tiny Shakespeare on a CPU.
RECIPES = {
    "data/shakespeare_char": "config/train_shakespeare_char.py --eval_iters=20 --log_interval=1 "
    "--block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000 "
    "--lr_decay_iters=2000 --dropout=0.0"
}


def enter(options) -> None:
    """Work in nanoGPT's folder: `import model` and relative paths find its files."""
    checkout = Path(options.against).resolve()
    sys.modules.pop("model", None)
    sys.path.insert(0, str(checkout))
    os.chdir(checkout)


# --------------------------------------------------------------------------------------------------
# Training


def speed(options) -> dict:
    """Measure nanoGPT's training speed and memory."""
    n_steps = options.steps // STRETCHES
    n_iterations = options.warmup_steps + STRETCHES * n_steps
    flags = f"--max_iters={n_iterations} --log_interval={n_steps} --eval_iters=1"
    return run_training(options, flags, is_scored=False)


def race(options) -> dict:
    """Do nanoGPT's complete run; measure its training seconds and its loss on our val split."""
    recipe = options.their_flags or RECIPES.get(options.data)
    example = "--their_flags='--max_iters=3000'"
    require(recipe, f"nanoGPT's recipe for {options.data} is not known: give it, as {example}")
    return run_training(options, recipe, is_scored=True)


def run_training(options, recipe: str, is_scored: bool) -> dict:
    """Run nanoGPT's train.py to its end, and note when it prints a line.

    Its first iterations compile and evaluate. They count as much as the others do on average.
    """
    data = open_folder(options)
    translation = write_data(data, Path(options.out))
    flags = flags_of(options, recipe)
    iterations = []
    times = []

    def note_line(line: str) -> None:
        if line.startswith("iter "):  # "iter 10: loss …"
            iterations.append(int(line.split()[1].rstrip(":")))
            times.append(time.perf_counter())

    enter(options)
    # The program has no option for the seed.
    set_seed = torch.manual_seed
    torch.manual_seed = lambda _: set_seed(options.seed)
    sys.argv = ["train.py", *flags, f"--dataset={options.out}", f"--out_dir={options.out}"]
    variables = runpy.run_path("train.py", {"print": note_line}, "__main__")
    first = bisect_left(iterations, options.warmup_steps)
    message = "nanoGPT printed fewer than two lines after warmup_steps: set a smaller log_interval"
    require(len(times) >= first + 2, message)
    steps = np.diff(iterations[first:])
    seconds = np.diff(times[first:])
    device = torch.device(variables["device"])
    figures = {
        "tokens_per_second": variables["tokens_per_iter"] / np.median(seconds / steps),
        "ms_per_step": 1000 * np.median(seconds / steps),
        "memory_mb": peak_memory_mb(device),
    }
    if is_scored:
        model = Translated(variables["model"], variables["ctx"], translation, device)
        loss = evaluate(model, data, "val", options.block_size, 32, device)["val_loss"]
        # The counter counts the last update too.
        train_seconds = variables["iter_num"] * seconds.sum() / steps.sum()
        figures |= {
            "val_loss": loss,
            "train_seconds": train_seconds,
            "evaluations": [[train_seconds, loss]],
        }
    return figures


def open_folder(options) -> Data:
    """Open the folder that --data names. Raises UserError, also for a mixture of folders."""
    is_folder = ":" not in options.data or Path(options.data).exists()
    require(is_folder, f"nanoGPT needs one folder of data, got --data={options.data}")
    return Data(prepare_missing(options.data, options.prepare))


class Translated(nn.Module):
    """nanoGPT's model, called with our tokens and scored as ours."""

    def __init__(self, model: nn.Module, autocast, translation: np.ndarray, device: torch.device):
        super().__init__()
        self.model = model
        self.autocast = autocast
        self.translation = torch.from_numpy(translation).to(device)

    def forward(self, tokens: Tensor, targets: Tensor, reduction: str) -> Tensor:
        """Return the loss of each target, (B, T), 0 where it is -1."""
        targets = torch.where(targets < 0, -1, self.translation[targets])
        with self.autocast:
            logits, _ = self.model(self.translation[tokens], targets)  # (B, T, V)
        logits = logits.float().transpose(1, 2)
        return F.cross_entropy(logits, targets, ignore_index=-1, reduction=reduction)


def flags_of(options, recipe: str) -> list[str]:
    """Return nanoGPT's flags: our sizes, then `recipe`, then the use of the machine.

    A recipe that begins with a config file has its own sizes: then ours are left out.
    """
    device, dtype = pick_device(options.device, options.dtype)
    sizes = {}
    if recipe.startswith("-"):
        names = ("n_layer", "n_head", "n_embd", "block_size", "dropout")
        sizes = {name: getattr(options, name) for name in names}
        sizes["batch_size"], sizes["gradient_accumulation_steps"] = options.split_batch()
    machine = {
        "device": device,
        "dtype": str(dtype).removeprefix("torch."),
        "compile": device.type == "cuda" if options.compile is None else options.compile,
        "eval_interval": 10**9,
    }
    first, last = ([f"--{key}={value}" for key, value in part.items()] for part in (sizes, machine))
    return first + shlex.split(recipe) + last


def write_data(data: Data, folder: Path) -> np.ndarray:
    """Write train.bin, val.bin (uint16) and meta.pkl as nanoGPT reads them.

    Returns nanoGPT's token for each of ours. Of bytes it gets those that occur, numbered in order,
    as its preparation numbers characters. Other vocabularies stay as they are, padded to a multiple
    of 64, as it pads GPT-2's. Raises UserError.
    """
    size = data.tokenizer.vocab_size
    require(
        size <= 65536 and len(data.splits["val"]),
        "nanoGPT needs at most 65,536 different tokens, and a val split",
    )
    translation = np.arange(size)
    n_tokens = math.ceil(size / 64) * 64
    if data.tokenizer.pattern is None:
        shards = data.splits["train"].shards + data.splits["val"].shards
        used = np.unique(np.concatenate([np.unique(shard) for shard in shards]))
        n_tokens = len(used)
        translation[used] = np.arange(n_tokens)
    for name in ("train", "val"):
        tokens = np.concatenate(data.splits[name].shards)
        translation[tokens].astype("<u2").tofile(folder / f"{name}.bin")
    # {"vocab_size": n_tokens} in the first format of pickle, which is plain text.
    (folder / "meta.pkl").write_text(f"(dS'vocab_size'\nI{n_tokens}\ns.")
    return translation


# --------------------------------------------------------------------------------------------------
# Text


def decode(options) -> dict:
    """Measure nanoGPT's sampling from random weights: one sequence at a time, not compiled."""
    device, dtype = pick_device(options.device, options.dtype)
    enter(options)
    import model as nanogpt

    model = nanogpt.GPT(with_vocabulary(options))  # its configuration is a part of ours
    model.to(device).eval()

    def sample(batch_size: int, count: int) -> None:
        prompts = torch.zeros(batch_size, 1, dtype=torch.long, device=device)
        with torch.autocast(device.type, dtype, enabled=device.type == "cuda"):
            model.generate(prompts, count, temperature=0.8, top_k=200)

    cases = [(1, length) for length in options.lengths()]
    figures = decoding_speed(sample, cases, device)
    return figures | {"memory_mb": peak_memory_mb(device)}


def prepare(options) -> dict:
    """Measure nanoGPT's data/openwebtext/prepare.py on our text.

    It has our tokenizer and all cores. The time includes its imports, some seconds: give 100 MB of
    text or more.
    """
    import datasets
    import tiktoken

    files = text_files(options)
    encoding = fixed_tokenizer(options).encoding
    program = Path(options.against, "data/openwebtext/prepare.py").read_text("utf-8")
    program = program.replace("num_proc = 8", f"num_proc = {os.cpu_count()}")
    # A small val split has fewer documents than batches.
    program = program.replace("total_batches = 1024", "total_batches = min(1024, len(dset))")
    os.chdir(options.out)
    Path("prepare.py").write_text(program, encoding="utf-8")
    kind = {"path": "text", "sample_by": "document"}
    if ".json" in Path(files[0]).name:
        kind = {"path": "json"}
    load_dataset = datasets.load_dataset
    datasets.load_dataset = lambda *_, **options: {
        "train": load_dataset(data_files=files, cache_dir="cache", split="train", **kind)
    }
    tiktoken.get_encoding = lambda name: encoding
    return preparation_speed(files, lambda: runpy.run_path("prepare.py", run_name="__main__"))
