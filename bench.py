"""How fast: one training step taken apart, or this project beside another checkout in the same minutes.

    python bench.py config/quickstart.py                               # tokens/s, ms per step by part, MFU, memory
    python bench.py config/quickstart.py --against=../patched          # … beside another working copy, or nanoGPT
    python bench.py config/shakespeare_char.py --against=../nanoGPT --target_loss=1.8857  # … and seconds to a loss
    python bench.py config/gpt2.py --sample=True --against=../nanoGPT  # decoding, with random weights
    python bench.py --prepare_text=texts/ --against=../nanoGPT         # preparing text, with datasets.map + tiktoken
    python bench.py config/depth.py --scaling=True                     # loss against compute, over several depths
    python bench.py --plan=True                                        # what the larger depths would take: an estimate

Every option of train.py may be given too. How it is kept honest:

- Each side runs in processes of its own, one at a time, in turn (A B A B): what the machine does meanwhile, it does to
  both. Figures are medians over the repeats; beside a ratio stand the lowest and the highest of the pairs.
- Each side runs its own train.py, unchanged and watched from outside: nanoloop at `Run.take_step`, nanoGPT at the lines
  it prints, which it does right after waiting for the device. Nothing else waits within a measured stretch.
- nanoGPT gets its own data format, the same tokens, and another seed each repeat. Its evaluations are switched off, for
  ours do not count either; after its last step it is scored on our whole validation split, in our windows.
- Doubts are decided for the other side: where it misses the target loss, its whole run counts as if it had reached it
  there; where this side misses it, its time is infinite.

Reading order: options, the arithmetic, a side's process, the modes, the output.
"""

import contextlib
import json
import math
import os
import runpy
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from itertools import pairwise, product
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import numpy as np
import torch
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

import prepare_data
import train
from corpus.sources import text_files
from model import GPT
from nanoloop.device import PEAK_FLOPS, peak_memory_mb
from nanoloop.files import write_json
from nanoloop.options import reading as explained, read_options, require, run_program as run_command
from nanoloop.runlog import format_figure as show

ROOT = Path(__file__).resolve().parent


@dataclass(frozen=True)
class BenchConfig(train.TrainConfig):
    """What to measure, after all the options of train.py."""

    max_steps: int | None = (
        10**9
    )  # as in train.py; recipes give it where it matters, with --target_loss
    against: str | None = (
        None  # another checkout to measure in turn with this one: nanoGPT, or a nanoloop
    )
    target_loss: float | None = (
        None  # measure training seconds to this validation loss too, in whole runs
    )
    their_flags: str | None = (
        None  # of nanoGPT's train.py, for --target_loss; None: its recipe for this data
    )
    sample: bool = False  # measure decoding instead
    new_tokens: str = (
        "256,1024"  # … of these lengths, and of the first for 8 and 32 sequences at once
    )
    prepare_text: str | None = (
        None  # measure preparing this file or folder, with the tokenizer of --data
    )
    scaling: bool = (
        False  # train a recipe that has the dial `depth` at several, and fit loss against compute
    )
    depths: str = "1,2,3,4"  # … these
    share: float = 1.0  # … for this share of the tokens that the recipe gives each
    plan: bool = (
        False  # estimate what config/depth.py takes from depth 4 to 24, and measure nothing
    )
    repeats: int | None = None  # measurements per side; None: 5 beside another, else 1
    steps: int = 50  # measured steps, in five stretches whose median counts
    warmup_steps: int = 10  # steps before them
    json: str | None = None  # write all figures to this file too


def numbers(text: str) -> list[int]:
    with explained(
        f"{text!r} cannot be read",
        "new_tokens and depths are whole numbers with commas between, as 1,2,3",
    ):
        return sorted({int(part) for part in text.split(",")})


# ---------------------------------------------------------------------------------------------------------------------
# The arithmetic. A run's figures are a dictionary; None stands for a figure that is not there, or a time without end.


def alternate(
    what: Callable, repeats: int, sides: dict[str, Path], argv: list[str]
) -> dict[str, list[dict]]:
    """Do the job `what` in the order A B A B …; returns each side's figures, in order."""
    runs: dict[str, list[dict]] = {name: [] for name in sides}
    for repeat, (name, checkout) in product(range(repeats), sides.items()):
        runs[name].append(run_job(what, name, checkout, repeat, own_recipe(checkout, argv)))
        print(
            f"{what.__name__} {repeat + 1} of {repeats}, {name}:",
            *list(runs[name][-1].items())[0],
            file=sys.stderr,
        )
    return runs


def middle(values: list[float | None]) -> float | None:
    """The median, None counting as infinite."""
    value = median(math.inf if value is None else value for value in values)
    return None if math.isinf(value) else value


def ratio(key: str, this: float | None, other: float | None) -> float | None:
    """Times: other / this, how many times fewer. All else: this / other. None where a figure is missing."""
    times = "seconds" in key or key.startswith("ms_")
    return None if not this or not other else other / this if times else this / other


def compare(runs: dict[str, list[dict]]) -> dict[str, dict]:
    """By figure: the median of each side, the ratio of the medians, the lowest and the highest ratio of the pairs."""
    rows = {}
    for key in [key for key, value in runs["this"][0].items() if not isinstance(value, list)]:
        columns = [[run.get(key) for run in side] for side in runs.values()]
        rows[key] = dict(zip(runs, map(middle, columns)))
        if "other" in runs:
            pairs = [found for pair in zip(*columns) if (found := ratio(key, *pair))] or [None]
            rows[key] |= {
                "ratio": ratio(key, **rows[key]),
                "lowest": min(pairs),
                "highest": max(pairs),
            }
    return rows


def judge_race(runs: dict[str, list[dict]], target: float) -> None:
    """Add to every run its seconds to the target, and how many of its side's runs reached it."""
    for name, side in runs.items():
        times = [
            next((s for s, loss in run["evaluations"] if loss <= target), None) for run in side
        ]
        for run, seconds in zip(side, times):
            run |= {"target_loss": target, "reached": len(times) - times.count(None)}
            run["seconds_to_target"] = seconds or (
                run["train_seconds"] if name == "other" else None
            )


def fit_power_law(compute: list[float], loss: list[float]) -> dict[str, float]:
    """loss = a · compute^-b + c, by least squares, and the largest distance of a point from it in nats.

    (Kaplan et al. 2020, arXiv:2001.08361; with the floor c, Henighan et al. 2020, arXiv:2010.14701.)
    """
    from scipy.optimize import curve_fit

    x, start = (
        np.array(compute) / compute[0],
        (loss[0], 0.3, min(loss) / 2),
    )  # numbers near 1 are fitted well
    (a, b, c), _ = curve_fit(
        lambda x, a, b, c: a * x**-b + c, x, loss, start, bounds=(0, np.inf), maxfev=10**5
    )
    error = np.abs(a * x**-b + c - loss).max()
    return {
        "a": float(a * compute[0] ** b),
        "b": float(b),
        "c": float(c),
        "largest_error": float(error),
    }


# ---------------------------------------------------------------------------------------------------------------------
# A side's process. It measures once and returns plain figures; what the measuring changes in it dies with it.


def make_job(
    side: str, checkout: str, repeat: int, argv: list[str], folder: str
) -> SimpleNamespace:
    """One measurement: of this or the other `side`, which repeat, our own argv, a new folder for what is written.

    It has all these and: options, the BenchConfig; flags, what of argv is for train.py, with seed and folder.
    """
    options = read_options(BenchConfig, argv, "bench.py config/NAME.py")
    own = {field.name for field in fields(BenchConfig)} - {
        field.name for field in fields(train.TrainConfig)
    }
    flags = [
        word for word in argv if word.split("=")[0].removeprefix("--").replace("-", "_") not in own
    ]
    flags += [
        f"--seed={options.seed + repeat}",
        f"--out={folder}",
        "--save_interval=None",
        "--sample_prompt=None",
    ]
    return SimpleNamespace(
        side=side, checkout=checkout, repeat=repeat, folder=folder, options=options, flags=flags
    )


class Done(BaseException):
    """Ends a run that has been measured, through whatever would catch an error."""


def synchronize(device: torch.device) -> None:
    return torch.accelerator.synchronize() if device.type != "cpu" else None


def timed(device: torch.device, function: Callable, *args, **options) -> tuple:
    """(what the function returns, the seconds until the device had done it); nothing may be under way before."""
    started = time.perf_counter()
    result = function(*args, **options)
    synchronize(device)
    return result, time.perf_counter() - started


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """The floating-point operations per second that the product of two large square matrices reaches here."""
    a = torch.randn((8192, 8192) if device.type == "cuda" else (2048, 2048), device=device).to(
        dtype
    )
    return 2 * len(a) ** 3 / median([timed(device, torch.matmul, a, a)[1] for _ in range(8)][2:])


def step_parts(take_step: Callable, run, network, batches) -> dict[str, float]:
    """Milliseconds of each part of a step, medians over ten steps.

    Data lasts from asking for a batch until the model is called, the copy to the device included; backward until the
    optimizer begins, clipping included; the rest is the schedule, forgetting gradients, and what lies between. The
    device is waited for between parts, so on a GPU they can sum to more than a step that is left alone.
    """
    draw, steps = type(batches).__call__, []

    def mark(part: str) -> None:  # begins the part, and ends the one before it
        synchronize(run.device)
        steps[-1].append((part, time.perf_counter()))

    type(batches).__call__ = lambda *args: (mark("data"), draw(*args))[1]
    register_optimizer_step_pre_hook(lambda *_: mark("optimizer"))
    register_optimizer_step_post_hook(lambda *_: mark("rest"))
    for _ in range(10):
        steps.append([])
        mark("rest")
        take_step(
            run, lambda *args: (mark("forward"), network(*args), mark("backward"))[1], batches
        )
        mark("end")
    return {
        f"ms_{part}": 1000
        * median(
            sum(end - begin for (name, begin), (_, end) in pairwise(step) if name == part)
            for step in steps
        )
        for part in ("data", "forward", "backward", "optimizer", "rest")
    }


def speed(job: SimpleNamespace) -> dict:
    """Training: speed, memory, and of nanoloop the parts of a step and the share of the device's arithmetic (MFU).

    mfu_of_matmul: of the rate of a large matrix product, measured here; mfu_of_sheet: of the card's data sheet.
    """
    warmup_steps, block, figures, stamps = job.options.warmup_steps, job.options.steps // 5, {}, []
    if is_nanogpt(job.checkout):
        lengths = f"--max_iters={warmup_steps + 5 * block} --log_interval={block} --eval_iters=1"
        return nanogpt_train(job, lengths, score=None)
    plain_step, plain_compile = train.Run.take_step, train.try_compile

    def timed_compile(*args):
        network, figures["compile_seconds"] = timed(torch.device("cpu"), plain_compile, *args)
        return network

    def watched_step(run, network, batches):
        measured = run.step - warmup_steps
        if measured in range(0, 5 * block + 1, block):
            synchronize(run.device)
            stamps.append(time.perf_counter())
        if measured < 5 * block:
            return plain_step(run, network, batches)
        seconds = median(end - begin for begin, end in pairwise(stamps)) / block
        speed, on_gpu = run.config.batch_tokens / seconds, run.device.type == "cuda"
        card = torch.cuda.get_device_name(run.device) if on_gpu else ""
        sheet = next((peak for name, peak in PEAK_FLOPS.items() if name in card), math.inf)
        figures.update(tokens_per_second=speed, ms_per_step=1000 * seconds)
        figures.update(
            step_parts(plain_step, run, network, batches), memory_mb=peak_memory_mb(run.device)
        )
        flops, rate = (
            speed * flops_per_token(run.model),
            matmul_rate(run.device, run.model.compute_dtype),
        )
        figures.update(
            matmul_teraflops=rate / 1e12,
            mfu_of_matmul=flops / rate,
            mfu_of_sheet=flops / sheet or None,
        )
        raise Done

    train.Run.take_step, train.try_compile = watched_step, timed_compile
    lengths = f"--max_steps={4 * (warmup_steps + 5 * block)} --max_tokens=None --max_seconds=None --eval_interval=None"
    with contextlib.suppress(Done):
        train.main(job.flags + lengths.split())
    return figures


def race(job: SimpleNamespace) -> dict:
    """A whole run: what it came to, and its evaluations as [training seconds, val_loss]."""
    if is_nanogpt(job.checkout):
        recipe = job.options.their_flags or NANOGPT_RECIPES.get(job.options.data)
        require(
            recipe,
            "nanoGPT's recipe for this data is not known: give it, as --their_flags='--max_iters=3000'",
        )
        return nanogpt_train(job, recipe, score=job.options.block_size)
    train.main(job.flags)
    rows = map(json.loads, Path(job.folder, "log.jsonl").read_text("utf-8").splitlines())
    evaluations = [[row["seconds"], row["val_loss"]] for row in rows if "val_loss" in row]
    require(
        evaluations, "the data has no validation split: prepare it with a --val_fraction above 0"
    )
    summary = json.loads(Path(job.folder, "summary.json").read_text("utf-8"))
    return {"evaluations": evaluations} | {
        name: summary[name] for name in ("val_loss", "train_seconds", "params")
    }


# What nanoGPT's README gives for tiny Shakespeare on a CPU.
NANOGPT_RECIPES = {
    "data/shakespeare_char": "config/train_shakespeare_char.py --eval_iters=20 --log_interval=1 "
    "--block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000 --lr_decay_iters=2000 "
    "--dropout=0.0"
}


def is_nanogpt(path: str | Path) -> bool:
    return Path(path, "configurator.py").is_file()


def nanogpt_flags(options: BenchConfig, recipe: str) -> list[str]:
    """nanoGPT's flags: our sizes, unless `recipe` begins with a config file; `recipe`; the use of the machine."""
    (device, dtype), (rows, grad_accum) = (
        train.pick_device(options.device, options.dtype),
        options.split_batch(),
    )
    sizes = {
        name: getattr(options, name)
        for name in ("n_layer", "n_head", "n_embd", "block_size", "dropout")
    }
    sizes |= {"batch_size": rows, "gradient_accumulation_steps": grad_accum}
    compiled = device.type == "cuda" if options.compile is None else options.compile
    use = {"device": device, "dtype": str(dtype)[6:], "compile": compiled, "eval_interval": 10**9}
    sizes, use = ([f"--{key}={value}" for key, value in group.items()] for group in (sizes, use))
    return (sizes if recipe.startswith("-") else []) + shlex.split(recipe) + use


def write_nanogpt_data(data: prepare_data.Data, folder: Path) -> np.ndarray:
    """train.bin, val.bin (uint16) and meta.pkl as nanoGPT reads them; returns its token for each of ours.

    Of bytes it gets those that occur, numbered as its own preparation numbers characters, and the end-of-text token.
    Other vocabularies stay as they are, padded to a multiple of 64, as it does with GPT-2's.
    """
    shards, size = (
        {name: data.splits[name].shards for name in ("train", "val")},
        data.tokenizer.vocab_size,
    )
    require(
        size <= 65536 and shards["val"],
        "nanoGPT's data takes 65,536 tokens at most, and a val split",
    )
    theirs, padded = np.arange(size), math.ceil(size / 64) * 64
    if data.tokenizer.pattern is None:
        used = sorted(
            {token for shard in shards["train"] + shards["val"] for token in np.unique(shard)}
        )
        theirs[used], padded = np.arange(len(used)), len(used)
    for name, split in shards.items():
        np.concatenate([theirs[shard].astype("<u2") for shard in split]).tofile(
            folder / f"{name}.bin"
        )
    # {"vocab_size": N} in the oldest of pickle's formats, which is plain text
    (folder / "meta.pkl").write_text(f"(dS'vocab_size'\nI{padded}\ns.")
    return theirs


def enter_nanogpt(checkout: str) -> None:
    """From here on `import model` is nanoGPT's, and its folder is where files are looked for."""
    sys.modules.pop("model")
    sys.path.insert(0, checkout)
    os.chdir(checkout)


def nanogpt_train(job: SimpleNamespace, recipe: str, score: int | None) -> dict:
    """nanoGPT's train.py to its end: speed and memory, and with `score`, a context, its training seconds and loss.

    Its first iterations, in which it compiles and evaluates, count as much as the others do on average.
    """
    data, rows, manual_seed = prepare_data.Data(job.options.data), [], torch.manual_seed
    theirs, flags = write_nanogpt_data(data, Path(job.folder)), nanogpt_flags(job.options, recipe)

    def stamp(line: str) -> None:  # its `print`: notes (iteration, time) of every line "iter N: …"
        if line.startswith("iter "):
            rows.append((int(line.split()[1].rstrip(":")), time.perf_counter()))

    enter_nanogpt(job.checkout)
    torch.manual_seed = lambda number: manual_seed(number + job.repeat)  # it has no option for this
    sys.argv = ["train.py", *flags, f"--dataset={job.folder}", f"--out_dir={job.folder}"]
    end = runpy.run_path("train.py", {"print": stamp}, "__main__")  # all its variables
    rows = [row for row in rows if row[0] >= job.options.warmup_steps]
    seconds = median((t1 - t0) / (i1 - i0) for (i0, t0), (i1, t1) in pairwise(rows))
    figures = {"tokens_per_second": end["tokens_per_iter"] / seconds, "ms_per_step": 1000 * seconds}
    figures["memory_mb"] = peak_memory_mb(torch.device(end["device"]))
    if score:
        mean, loss = (
            (rows[-1][1] - rows[0][1]) / (rows[-1][0] - rows[0][0]),
            nanogpt_loss(end, data, theirs, score),
        )
        figures |= {
            "train_seconds": mean * end["iter_num"],
            "val_loss": loss,
        }  # it counts on after its last update
        figures["evaluations"] = [[figures["train_seconds"], loss]]
    return figures


@torch.no_grad()
def nanogpt_loss(end: dict, data: prepare_data.Data, theirs: np.ndarray, block_size: int) -> float:
    """The loss of nanoGPT's model over our whole validation split in our windows, nats per token."""
    model, total, count = end["model"].eval(), 0.0, 0
    for tokens, targets in data.eval_batches("val", block_size, 32):
        wanted, scored = np.where(targets < 0, -1, theirs[targets]), (targets >= 0).sum()
        x, y = (torch.from_numpy(array).to(end["device"]) for array in (theirs[tokens], wanted))
        with end["ctx"]:
            total, count = (
                total + model(x, y)[1].item() * scored,
                count + scored,
            )  # it gives the mean of what is scored
    return float(total / count)


def decode(job: SimpleNamespace) -> dict:
    """Tokens per second of sampling from random weights, with nanoGPT's defaults; of nanoloop compiled on CUDA."""
    (device, dtype), theirs = (
        train.pick_device(job.options.device, job.options.dtype),
        is_nanogpt(job.checkout),
    )
    (first, *others), figures = numbers(job.options.new_tokens), {}
    options = replace(job.options, vocab_size=job.options.vocab_size or 50304)  # GPT-2's, padded
    if theirs:
        enter_nanogpt(job.checkout)
        import model as nanogpt

        model = nanogpt.GPT(options)  # it asks for names that both configurations have
    else:
        import sample

        model = GPT(options, dtype)
        sample.cast_weights(model, dtype)
    model.to(device).eval().compile(
        dynamic=False, disable=theirs or device.type != "cuda" or options.compile is False
    )
    for length, batch in [(first, 1), *((n, 1) for n in others)] + (
        [] if theirs else [(first, 8), (first, 32)]
    ):
        prompts = (
            torch.zeros(batch, 1, dtype=torch.long, device=device) if theirs else [[0]] * batch
        )
        with torch.autocast(device.type, dtype, enabled=theirs and device.type == "cuda"):
            for count in (
                min(16, length),
                length,
            ):  # the first is for warming up: compiling, capturing
                _, seconds = timed(
                    device, model.generate, prompts, count, temperature=0.8, top_k=200
                )
        figures[f"tokens_per_second_{length}" + f"_batch_{batch}" * (batch > 1)] = (
            batch * length / seconds
        )
    return figures | {
        "memory_mb" + "_batch_32" * (not theirs): peak_memory_mb(device)
    }  # nanoGPT has one


def tree_memory_mb() -> float:
    """Memory in MiB of the processes started from here, shared pages counted once; 0 where the system is not Linux.

    Mapped files do not count: the system takes their pages back when it needs room.
    """
    total = 0
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # processes end while we look
            if os.getsid(int(process.name)) == os.getsid(0):
                rows = map(str.split, (process / "smaps_rollup").read_text().splitlines())
                total += sum(int(row[1]) for row in rows if row[0] in ("Pss_Anon:", "Pss_Shmem:"))
    return total / 1024


def prepare(job: SimpleNamespace) -> dict:
    """From text to tokens: megabytes of text per second, and the memory that it takes in all processes it starts.

    Ours is the command as it is typed, an interpreter's start included; nanoGPT's imports are in its time, some
    seconds: give 100 MB of text or more.
    """
    source, own = (
        Path(job.options.prepare_text).resolve(),
        Path(job.options.data, "tokenizer.json").resolve(),
    )
    tokenizer = prepare_data.make_tokenizer(str(own) if own.is_file() else "gpt2", [])
    require(
        tokenizer.pattern and tokenizer.vocab_size <= 65536,
        f"name --data with byte pairs, not {tokenizer.name}",
    )
    files, memory = list(map(str, text_files(str(source)))), [tree_memory_mb()]

    def watch() -> None:
        while True:
            time.sleep(0.2)
            memory.append(tree_memory_mb())

    os.chdir(job.folder)
    write_json(Path("tokenizer.json"), tokenizer.to_json())
    options = (
        "--tokenizer=tokenizer.json --name=bench --val_fraction=0.0005 --test_fraction=0".split()
    )
    theirs = nanogpt_prepare, job.checkout, files, tokenizer.encoding
    threading.Thread(target=watch, daemon=True).start()
    ours = (
        subprocess.check_call,
        [sys.executable, prepare_data.__file__, f"--source={source}", *options],
    )
    _, seconds = timed(torch.device("cpu"), *(theirs if is_nanogpt(job.checkout) else ours))
    # Two bytes a token, and in front of each of our shards, which have a number in their name, a header.
    tokens = sum(
        os.path.getsize(path) // 2 - 512 * ("_" in path.name) for path in Path().rglob("*.bin")
    )
    speed, memory_mb = sum(map(os.path.getsize, files)) / 1e6 / seconds, max(memory) - memory[0]
    return {"megabytes_per_second": speed, "memory_mb": memory_mb, "tokens": tokens}


def nanogpt_prepare(checkout: str, files: list[str], encoding) -> None:
    """nanoGPT's data/openwebtext/prepare.py, but on our text, with our tokenizer, on all cores of this machine."""
    import datasets
    import tiktoken

    how = {"path": "json"} if ".json" in files[0] else {"path": "text", "sample_by": "document"}
    rows = datasets.load_dataset(data_files=files, cache_dir="cache", split="train", **how)
    datasets.load_dataset, tiktoken.get_encoding = (
        lambda *_, **options: {"train": rows},
        lambda name: encoding,
    )
    program = Path(checkout, "data/openwebtext/prepare.py").read_text("utf-8")
    program = program.replace(
        "total_batches = 1024", "total_batches = min(1024, len(dset))"
    )  # for a small val split
    Path("prepare.py").write_text(
        program.replace("num_proc = 8", f"num_proc = {os.cpu_count()}"), encoding="utf-8"
    )
    runpy.run_path("prepare.py", run_name="__main__")


def run_job(what: Callable, side: str, checkout: Path, repeat: int, argv: list[str]) -> dict:
    """what(make_job(…)) in a process of its own, where `import train` is the checkout's; nanoGPT is entered in there.

    Raises UserError with the reason where it fails.
    """
    home = ROOT if is_nanogpt(checkout) else checkout
    env = os.environ | {"PYTHONPATH": f"{home}{os.pathsep}{os.environ.get('PYTHONPATH', home)}"}
    with tempfile.TemporaryDirectory(prefix="nanoloop-bench-") as folder:
        values = json.dumps([what.__name__, side, str(checkout), repeat, argv, folder])
        process = subprocess.Popen(
            [sys.executable, "-P", str(ROOT / "bench.py"), "job", values],
            stdout=-1,
            stderr=-1,
            text=True,
            env=env,
            start_new_session=True,
        )
        try:
            said, told = (stream.strip().splitlines() for stream in process.communicate())
        finally:  # nothing stays behind, whatever has happened
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
    reason = next(
        (line for line in reversed(told) if line.startswith("error: ")), "\n".join(told[-8:])
    )
    if process.returncode == -9:
        reason = "it was killed, most likely for memory: try a smaller --micro_batch_size, or a smaller model"
    require(
        process.returncode == 0,
        f"{what.__name__} of {checkout} failed: {reason.removeprefix('error: ')}",
    )
    return json.loads(said[-1])


# ---------------------------------------------------------------------------------------------------------------------
# Loss against compute


def model_size(options: BenchConfig, vocab_size: int) -> dict:
    """Parameters, tokens to train on and training FLOPs of a recipe; its model is not built."""
    with torch.device("meta"):
        model = GPT(replace(options, vocab_size=vocab_size))
    tokens = (
        math.ceil(options.share * options.max_tokens / options.batch_tokens) * options.batch_tokens
    )
    flops = tokens * flops_per_token(model)
    return {"params": sum(p.numel() for p in model.parameters()), "tokens": tokens, "flops": flops}


def plan() -> dict[str, dict]:
    """For depths 4 to 24: size, tokens, FLOPs, and by card the hours if 40 % of its data sheet's rate are used."""
    rows = {}
    for depth in range(4, 25, 4):
        options = read_options(
            BenchConfig, [str(ROOT / "config" / "depth.py"), f"--depth={depth}"], "bench.py"
        )
        rows[f"d{depth}"] = row = model_size(
            options, 4096
        )  # the vocabulary that the recipe counts with
        row |= {
            f"{card} hours": row["flops"] / (0.4 * peak) / 3600 for card, peak in PEAK_FLOPS.items()
        }
    return rows


def scaling(
    options: BenchConfig, runs: dict, measure: Callable, argv: list[str]
) -> dict[str, dict]:
    """Train every depth, fit loss against compute and draw it.

    measure(argv) gives the runs of all sides; they go into `runs`, by depth.
    """
    from matplotlib.figure import Figure

    depths, points, laws = numbers(options.depths), {}, {}
    require(
        len(depths) >= 4,
        f"depths={options.depths}: a law of three constants needs at least 4 depths",
    )
    for depth in depths:
        sized = read_options(BenchConfig, [*argv, f"--depth={depth}"], "bench.py")
        runs[f"d{depth}"] = measure(
            [*argv, f"--depth={depth}", f"--max_tokens={model_size(sized, 1)['tokens']}"]
        )
        data = prepare_data.Data(options.data)  # if it was not there, the first run has made it
        size, there = model_size(sized, data.tokenizer.vocab_size), len(data.splits["train"])
        for name, own in runs[f"d{depth}"].items():
            told = own[0]["params"], size["tokens"] / there, median(run["val_loss"] for run in own)
            points.setdefault(name, {})[f"{name} d{depth}"] = size | dict(
                zip(("params", "epochs", "val_loss"), told)
            )
    axes = Figure(figsize=(8, 5), layout="constrained").subplots()
    for name, rows in points.items():
        flops, losses = zip(*((row["flops"], row["val_loss"]) for row in rows.values()))
        laws[name] = law = fit_power_law(flops, losses)
        (dots,) = axes.plot(
            flops, losses, "o", label=f"{name}: {law['a']:.3g} · C^-{law['b']:.3f} + {law['c']:.2f}"
        )
        along = np.geomspace(flops[0], 10 * flops[-1], 200)  # and where it leads
        axes.plot(along, law["a"] * along ** -law["b"] + law["c"], color=dots.get_color())
    axes.set(
        xscale="log",
        xlabel="training FLOPs, C",
        ylabel="val_loss (nats per token)",
        title="loss against compute",
    )
    axes.legend()
    Path("out").mkdir(exist_ok=True)
    axes.figure.savefig("out/scaling.png", dpi=120)
    return {f"scaling of {name}": rows for name, rows in points.items()} | {
        "law, in out/scaling.png": laws
    }


# ---------------------------------------------------------------------------------------------------------------------
# The output


def provenance(sides: dict[str, Path]) -> dict[str, str]:
    """The machine, and versions; of a checkout its commit, with + where files differ from it."""
    cpuinfo = (
        Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else os.uname().machine
    )
    cpu = next(
        (line for line in cpuinfo.splitlines() if line.startswith("model name")), cpuinfo[:40]
    ).split(":")[-1]
    card = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    where = {
        "date": time.strftime("%Y-%m-%d"),
        "hardware": f"{os.cpu_count()} cores of {cpu.strip()}{card}",
    }
    for name, path in sides.items():
        words = ["git", "-C", str(path), "describe", "--always", "--dirty=+", "--exclude=*"]
        where[f"{name} {path.name}"] = (
            subprocess.run(words, capture_output=True, text=True).stdout.strip() or "unknown"
        )
    return where | {"torch": str(torch.__version__), "Python": sys.version.split()[0]}


def cell(value) -> str:
    return (
        "-"
        if value is None
        else f"{value:.2g}"
        if isinstance(value, float) and 0 < value < 0.01
        else show(value)
    )


def table(title: str, rows: dict[str, dict]) -> str:
    """{row: {column: figure}} in columns, the first to the left, the others to the right."""
    columns = list(next(iter(rows.values())))
    cells = [[title, *columns]] + [
        [name, *(cell(row.get(key)) for key in columns)] for name, row in rows.items()
    ]
    widths = [max(map(len, column)) for column in zip(*cells)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in cells
    )


def benchmarks_row(result: dict) -> str:
    """A row for BENCHMARKS.md: what and how often, figures, machine and versions and date, command."""
    rows = [(key, row) for rows in result["tables"].values() for key, row in rows.items()]
    kept = [
        (key, row)
        for key, row in rows
        if "per_second" in key
        or key
        in (
            "memory_mb",
            "mfu_of_matmul",
            "this",
            "other",
            "val_loss",
            "seconds_to_target",
            "reached",
        )
    ]
    told = "; ".join(
        f"{key} " + ", ".join(f"{name} {cell(row[name])}" for name in row) for key, row in kept
    )
    where = ", ".join(f"{name} {version}" for name, version in result["where"].items())
    return f"| {', '.join(result['runs'])}; {result['repeats']} repeats | {told} | {where} | `{result['command']}` |"


def own_recipe(checkout: Path, argv: list[str]) -> list[str]:
    """argv with the checkout's own config file of that name, if it has one: a patch may change that too."""
    path = Path(argv[0]).resolve() if argv else ROOT
    theirs = checkout / path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    return [str(theirs), *argv[1:]] if theirs.is_file() else argv


def main(argv: list[str]) -> None:
    if argv[:1] == ["job"]:  # this is a side's process: its figures are the last line
        name, *values = json.loads(argv[1])
        return print("", json.dumps(globals()[name](make_job(*values))), sep="\n")
    argv = [
        f"{flag}=True" if flag in ("--sample", "--scaling", "--plan") else flag for flag in argv
    ]
    options, sides, runs = (
        read_options(BenchConfig, argv, "bench.py config/NAME.py"),
        {"this": ROOT},
        {},
    )
    if options.plan:
        return print(table("plan", plan()))
    require(all("=" in flag for flag in argv[1:]), "write options with =, as --repeats=3")
    if options.against:
        sides["other"] = other = Path(options.against).resolve()
        known = (other / "train.py").is_file() and (
            is_nanogpt(other) or (other / "prepare_data.py").is_file()
        )
        require(
            known,
            f"--against={options.against} is not the folder of a nanoGPT (train.py, configurator.py) or a "
            "nanoloop (train.py, prepare_data.py): give the path of one",
        )
        require(
            not (options.scaling and is_nanogpt(other)),
            "--scaling is for nanoloops alone: leave nanoGPT out",
        )
    repeats = options.repeats or (5 if options.against else 1)
    require(
        min(options.steps - 4, options.warmup_steps, repeats) > 0,
        "steps is 5 or more, warmup_steps and repeats 1",
    )
    if options.scaling:
        tables = scaling(options, runs, lambda words: alternate(race, repeats, sides, words), argv)
    else:
        what = prepare if options.prepare_text else decode if options.sample else speed
        runs[what.__name__] = alternate(what, repeats, sides, argv)
        if options.target_loss:
            runs["race"] = alternate(race, repeats, sides, argv)
            judge_race(runs["race"], options.target_loss)
        tables = {name: compare(part) for name, part in runs.items()}
    result = {
        "command": shlex.join(["python", "bench.py", *argv]),
        "where": provenance(sides),
        "repeats": repeats,
    }
    result |= {"tables": tables, "runs": runs}
    if options.json:
        write_json(Path(options.json), result)
    print(
        *map(table, tables, tables.values()),
        "ratio: this/other, times inverted",
        benchmarks_row(result),
        sep="\n\n",
    )


if __name__ == "__main__":
    run_command(main)
