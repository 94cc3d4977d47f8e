"""An exam of trained models: python -m research exam RUN…

Synthetic tasks by difficulty, pairs of right and wrong Python, samples, the text of any file.
Checkpoints of several lengths make a curve; several seeds show which figures are noise.
"""

import json
import math
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from tyro.conf import Positional

from corpus.synthetic import exam_parts, task_names
from nanoloop.checkpoint import load_weights
from nanoloop.device import pick_device
from nanoloop.generate import generate
from nanoloop.options import note, require
from nanoloop.runlog import format_figures
from research.insight.pairs import FAULTS, held_out_functions, is_python, pairs_of
from research.insight.reading import half_interval, model_of, tokenizer_of
from research.page import write_page

SAMPLE_TOKENS = 200
FEWEST = 5  # points that can show a bend
LUCK = 0.02  # a share, or bits, so near to a line is on it
# Where the share bends up: whether the bits do too.
FINDINGS = {True: "emergent", False: "an artefact of the metric", None: "too few checkpoints"}


@dataclass(frozen=True)
class ExamOptions:
    """Examine trained models: tasks by difficulty, Python, any text."""

    runs: Positional[tuple[str, ...]] = ()  # folders of runs, or checkpoints
    tasks: str = "all"  # such as addition,sorting
    text: str | None = None  # file to predict
    count: int = 200  # items of each part; fewer where there are not so many
    page: str = "out/exam.html"  # file of tables and pictures, for a browser
    json: bool = False  # print a JSON object, for programs


def text_items(tokenizer, path: str, size: int):
    """Return a file as items, the windows of train.py's `evaluate`. size: tokens of a window."""
    text = Path(path).read_bytes().decode(errors="replace")
    tokens = np.array([tokenizer.end_of_text, *tokenizer.encode(text)])
    windows = np.split(tokens[1:], range(size, len(tokens) - 1, size))
    return list(zip(tokens[::size, None], windows))


# --------------------------------------------------------------------------------------------------
# Figures. An item is a pair of token ids: what stands before, and what is predicted.


@torch.no_grad()
def score(model, items, token_bytes, device):
    """Predict each item in one pass; return (3, N): bits, bytes, margin in bits.

    The margin is that of the right token over the best other one, where it is smallest: above 0,
    greedy decoding writes the item.
    """
    rows = []
    for before, after in items:
        tokens = torch.tensor([*before, *after])
        logits = model(tokens[None, :-1].to(device))[0, -len(after) :]
        bits = -logits.cpu().double().log_softmax(-1) / math.log(2)
        targets = tokens[-len(after) :, None]
        right = bits.gather(1, targets)
        margin = bits.scatter(1, targets, math.inf).amin(1) - right[:, 0]
        rows.append([right.sum(), token_bytes[after].sum(), margin.min()])
    return np.array(rows, float).T


def share_of(right):
    """Return the share of items that are right, with its 95 % interval (Wilson's)."""
    from scipy.stats import binomtest

    low, high = binomtest(round(sum(right)), len(right)).proportion_ci(method="wilson")
    return {"items": len(right), "share": np.mean(right), "low": low, "high": high}


def grade(right, wrong=None):
    """Return the figures of a part from the scores of its items, or of its pairs.

    The share of items that is exact, bits per byte with half of their 95 % interval, and the mean
    margin. Of pairs: the share in which the right one is more probable, where equal ones count
    half, and right minus wrong in bits per byte: below 0 is better.
    """
    bits, sizes, margins = right
    if wrong is not None:
        bits = bits - wrong[0]
        margins = -bits
    return share_of(np.heaviside(margins.round(6), 0.5)) | {
        "bits": bits.sum() / sizes.sum(),
        "half": half_interval(bits, sizes),
        "margin": margins.mean(),
    }


# --------------------------------------------------------------------------------------------------
# What several checkpoints show


def bends_up(x, y):
    """Say whether y begins to rise faster: two straight lines fit it better than one.

    Better is a BIC lower by more than 10. Points after y has 90 % of its gain do not count, for
    the end of a rise is a bend too. Returns None if too few points are left. x, y: (N,).
    """
    gain = y - y[0]
    n = 1 + np.argmax(gain >= 0.9 * gain.max())
    if n < FEWEST:
        return None
    x = x[:n]

    def fit(hinge):
        columns = np.column_stack([x**0, x, hinge])
        weights = np.linalg.lstsq(columns, y[:n])[0]
        variance = np.mean((y[:n] - columns @ weights) ** 2) + LUCK**2
        return n * np.log(variance), weights[2]

    line, _ = fit(0 * x)
    limit = line - 10 - 2 * np.log(n)  # a bend has two more parameters, its place and its slope
    fits = [fit(np.maximum(x - knot, 0)) for knot in x[1:-1]]
    return any(change > 0 and bent < limit for bent, change in fits)


def judge(rows):
    """Return what the rows of a part show together: "signal_to_noise", "finding".

    rows: one a checkpoint, of one seed or several. The signal is the deviation between checkpoints,
    the noise that between three seeds or more; where some have fewer checkpoints, the last count.
    """
    rows = sorted(rows, key=lambda row: row["tokens"])
    tokens, share, bits = np.array([(row["tokens"], row["share"], -row["bits"]) for row in rows]).T
    seeds = {}
    for row in rows:
        seeds.setdefault(row["seed"], []).append(row["bits"])
    n = min(map(len, seeds.values()))
    found = {}
    if len(seeds) > 2 and n > 1:
        curves = np.array([curve[-n:] for curve in seeds.values()])
        ratio = curves.mean(0).var(ddof=1) / curves.var(0, ddof=1).mean()
        found["signal_to_noise"] = ratio**0.5
    if bends_up(np.log1p(tokens), share):
        found["finding"] = FINDINGS[bends_up(np.log1p(tokens), bits)]
    return found


# --------------------------------------------------------------------------------------------------
# The command


def make_parts(tokenizer, tasks, functions, size: int, options: ExamOptions):
    """Return what each checkpoint is asked: name of a part to its items.

    A part is a list of items, or two of them, the right and the wrong ones of pairs. functions: of
    Python, held out. size: tokens of a context; a part that is longer is left out.
    """
    parts = exam_parts(tokenizer, tasks, options.count)
    for fault in FAULTS if functions else ():
        pairs = islice(pairs_of(functions, tokenizer, size, fault), options.count)
        parts[f"Python, {fault}"] = list(zip(*pairs)) or [()]
    if options.text:
        parts[options.text] = [text_items(tokenizer, options.text, size)]
    for part, (items, *_) in list(parts.items()):
        longest = max((sum(map(len, item)) for item in items), default=0)
        if longest > size + 1 or len(items) < 2:
            note(f"left out: {part} has {len(items)} items of up to {longest} tokens")
            del parts[part]
    return parts


def main(options: ExamOptions) -> None:
    require(options.runs, "no run: type its folder after the command, such as exam out/quickstart")
    require(options.count >= 1, f"count must be at least 1, got {options.count}")
    tasks = task_names(options.tasks)
    device, dtype = pick_device("auto", "auto")
    kinds = set()  # of checkpoints; only those of one kind compare
    parts = {}
    rows = {}  # name of a part to the rows of its checkpoints
    for run in options.runs:
        state = load_weights(run)
        config = state["config"]
        kinds.add((state.get("data"), config["block_size"]))
        require(len(kinds) == 1, f"'{run}' has other data or another block_size: examine it alone")
        if not parts:
            tokenizer = tokenizer_of(state)
            functions = held_out_functions(state)
            parts = make_parts(tokenizer, tasks, functions, config["block_size"], options)
        model = model_of(state, device, dtype)
        about = {"run": run, "seed": config.get("seed"), "tokens": state.get("tokens", 0)}
        for part, sides in parts.items():
            scores = (score(model, items, tokenizer.token_bytes, device) for items in sides)
            rows.setdefault(part, []).append(about | grade(*scores))
        if functions:
            start = [tokenizer.end_of_text, *tokenizer.encode("def").tolist()]
            written = generate(model, [start] * options.count, SAMPLE_TOKENS, 0.8, seed=0)
            share = share_of([is_python("def" + tokenizer.decode(new)) for new in written])
            rows.setdefault("Python, samples that compile", []).append(about | share)
    for found in rows.values():
        if "bits" in found[0]:
            found[-1] |= judge(found)
    write_page(options.page, "insight/exam.html", parts=rows)
    if options.json:
        print(json.dumps(rows))
        return
    print(*format_figures(about, " "), sep=" | ")
    for part, found in rows.items():
        figures = {name: value for name, value in found[-1].items() if name not in about}
        print(part, *format_figures(figures, " "), sep=" | ")
    print(f"curves: {options.page}")
