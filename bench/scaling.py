"""Measure loss against compute: train one recipe at several depths, and fit a power law."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch

from model import GPT
from nanoloop.data import open_data
from nanoloop.device import flops_per_token
from nanoloop.options import require


def tokens_of(options) -> int:
    """Return the tokens of a run: the share of max_tokens, in complete steps."""
    require(options.max_tokens, "--scaling needs a recipe that sets max_tokens")
    steps = math.ceil(options.share * options.max_tokens / options.batch_tokens)
    return steps * options.batch_tokens


def flops_of(options, vocab_size: int) -> float:
    """Return the training FLOPs of a run, without memory for its model."""
    with torch.device("meta"):
        model = GPT(replace(options, vocab_size=vocab_size))
    return tokens_of(options) * flops_per_token(model)


def measure_depths(
    depths: list[int], argv: list[str], read: Callable, measure: Callable
) -> tuple[dict, dict[str, dict]]:
    """Train the recipe at each depth and fit the law; return the runs by depth, and the tables.

    read(argv): the options. measure("race", argv): the runs of all sides.
    """
    message = f"the law has three constants and needs at least 4 depths, got {depths}"
    require(len(depths) >= 4, message)
    runs = {}
    points: dict[str, dict] = {}
    for depth in depths:
        name = f"d{depth}"
        options = read([*argv, f"--depth={depth}"])
        n_tokens = tokens_of(options)
        runs[name] = measure("race", [*argv, f"--depth={depth}", f"--max_tokens={n_tokens}"])
        data = open_data(options.data)  # the first run has prepared it if it was missing
        flops = flops_of(options, data.tokenizer.vocab_size)
        n_available = sum(len(source.splits["train"]) for _, source in data.sources.values())
        for side, results in runs[name].items():
            points.setdefault(side, {})[f"{side} {name}"] = {
                "params": results[0]["params"],
                "tokens": n_tokens,
                "flops": flops,
                "epochs": n_tokens / n_available,
                "val_loss": median(run["val_loss"] for run in results),
            }
    path = Path("out/scaling.png")
    laws = fit_and_draw(points, path)
    tables = {f"scaling of {side}": rows for side, rows in points.items()}
    return runs, tables | {f"law, in {path}": laws}


def fit_and_draw(points: dict[str, dict], path: Path) -> dict[str, dict]:
    """Return each side's law; draw it with its points, up to ten times the largest compute."""
    from matplotlib.figure import Figure

    laws = {}
    axes = Figure(figsize=(8, 5), layout="constrained").subplots()
    for side, rows in points.items():
        compute = [row["flops"] for row in rows.values()]
        loss = [row["val_loss"] for row in rows.values()]
        law = fit_power_law(compute, loss)
        label = f"{side}: {law['a']:.3g} · C^-{law['b']:.3f} + {law['c']:.2f}"
        (dots,) = axes.plot(compute, loss, "o", label=label)
        x = np.geomspace(compute[0], 10 * compute[-1], 200)
        axes.plot(x, law["a"] * x ** -law["b"] + law["c"], color=dots.get_color())
        laws[side] = law
    axes.set(
        xscale="log",
        xlabel="training FLOPs, C",
        ylabel="val_loss (nats per token)",
        title="loss against compute",
    )
    axes.legend()
    path.parent.mkdir(exist_ok=True)
    axes.figure.savefig(path, dpi=120)
    return laws


def fit_power_law(compute: list[float], loss: list[float]) -> dict[str, float]:
    """Fit loss = a · compute^-b + c by least squares.

    largest_error: the largest distance of a point from the law, in nats.
    (Kaplan et al. 2020, arXiv:2001.08361; the floor c: Henighan et al. 2020, arXiv:2010.14701.)
    """
    from scipy.optimize import curve_fit

    def law(x, a, b, c):
        return a * x**-b + c

    x = np.array(compute) / compute[0]  # numbers near 1 are fitted well
    start = (loss[0], 0.3, min(loss) / 2)
    constants, _ = curve_fit(law, x, loss, start, bounds=(0, np.inf), maxfev=10**5)
    a, b, c = constants.tolist()
    error = np.abs(law(x, a, b, c) - loss).max()
    return {"a": a * compute[0] ** b, "b": b, "c": c, "largest_error": float(error)}
