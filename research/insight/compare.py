"""Compare runs, finished or running: python -m research compare RUN RUN …

Reads config.json, log.jsonl and summary.json of each folder. Prints a table of what differs and a
summary, and writes a page with the curves. A difference is candidate - baseline, below 0 is better;
the baseline is the first run's setting.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tyro.conf import Positional

from model import GPT
from nanoloop.checkpoint import model_config
from nanoloop.device import flops_per_token
from nanoloop.options import reading, require
from nanoloop.runlog import format_figure, read_rows
from research.insight.watch import is_finished
from research.page import write_page

AXES = ("step", "tokens", "seconds", "flops")
# Settings that change no weight.
IGNORED = set(
    "out prepare resume overwrite verify wandb sample_prompt log_interval eval_interval".split()
)
MAX_LINES = 8  # of the summary that tell of settings


@dataclass(frozen=True)
class CompareOptions:
    """Compare runs: settings, curves, final figures, speed."""

    runs: Positional[tuple[str, ...]] = ()  # folders of runs
    page: str = "out/compare.html"  # file of the curves, for a browser
    json: bool = False  # print a JSON object, for programs


def read_run(folder: str) -> tuple[dict, list[dict]]:
    """Return a run's config, with "finished", and its log's rows, each with AXES.

    Raises UserError.
    """
    path = Path(folder)
    hint = "name a folder that train.py has written, such as out/quickstart"
    with reading(f"'{folder}' is no run", hint), torch.device("meta"):
        config = json.loads((path / "config.json").read_bytes())
        flops = flops_per_token(GPT(model_config({"config": config})))
    rows = read_rows(path / "log.jsonl")
    require(rows, f"'{folder}' has no line in its log.jsonl yet: wait for one, or leave it out")
    for row in rows:
        row.setdefault("seconds", 0.0)  # an evaluation before the first step
        row["flops"] = row["tokens"] * flops
    return config | {"finished": is_finished(path, rows)}, rows


def having(rows: list[dict], figure: str) -> list[dict]:
    """Return the rows that hold a figure."""
    return [row for row in rows if figure in row]


def mean_text(values: list[float], sign: str = "") -> str:
    """Write the mean of one value a seed, with its 95 % interval from two seeds on.

    The interval is Student's.
    """
    from scipy.stats import sem, t

    mean = np.mean(values)
    if len(values) == 1:
        return f"{mean:{sign}.4f} (one seed)"
    half = sem(values) * t.isf(0.025, len(values) - 1)
    interval = f"{mean - half:{sign}.4f} to {mean + half:{sign}.4f}"
    return f"{mean:{sign}.4f} ({len(values)} seeds, 95 % interval {interval})"


def main(options: CompareOptions) -> None:
    require(len(options.runs) > 1, "type two or more folders of runs after the command")
    configs, logs = zip(*map(read_run, options.runs))
    table = {}
    for name in configs[0]:
        cells = [config.get(name) for config in configs]
        if name not in IGNORED and cells != cells[:1] * len(cells):
            table[name] = cells
    # Losses are per token of one text; bits per byte compare across tokenizers.
    is_same_text = not {"data", "vocab_size"} & table.keys()
    is_evaluated = all(having(log, "val_bpb") for log in logs)
    note = "data or vocabulary differ, so only val_bpb compares"
    require(is_same_text or is_evaluated, f"{note}: wait until each run has one")
    curve = "loss" if is_same_text else "val_bpb"
    final = "val_bpb" if is_evaluated else "loss"

    groups: dict[str, dict] = {}  # of runs that differ in the seed alone: final figure by seed
    for config, log in zip(configs, logs):
        setting = " ".join(f"{name}={config.get(name)}" for name in table if name != "seed")
        finals = groups.setdefault(setting, {})
        finals[config["seed"]] = having(log, final)[-1][final]
    baseline, *_ = groups.values()
    summary = []
    for setting, finals in groups.items():
        line = f"{final} {mean_text(list(finals.values()))} {setting or 'with the same settings'}"
        differences = [finals[seed] - baseline[seed] for seed in finals.keys() & baseline.keys()]
        if differences and finals is not baseline:
            line += f"; difference {mean_text(differences, '+')}"
        summary.append(line)
    hint = "which setting is better, pairs of fresh seeds tell: python -m research try --help"
    notes = [hint] if is_same_text else [note, hint]
    summary = [*summary[:MAX_LINES], *notes]

    curves = [having(log, curve) for log in logs]
    target = max(min(row[curve] for row in rows) for rows in curves)
    reached = [next(row for row in rows if row[curve] <= target) for rows in curves]
    for axis in AXES:
        table[f"last {axis}"] = [log[-1][axis] for log in logs]
    for axis in AXES:
        table[f"{axis} to {curve} {target:.4f}"] = [row[axis] for row in reached]
    texts = {"run": options.runs} | {
        name: list(map(format_figure, cells)) for name, cells in table.items()
    }
    write_page(
        options.page,
        "insight/compare.html",
        axes=AXES,
        curve=curve,
        curves=curves,
        texts=texts,
        summary=summary,
    )
    if options.json:
        print(json.dumps({"runs": options.runs, "table": table, "summary": summary}))
        return
    for name, cells in texts.items():
        print(f"{name:28}", *(f"{cell:>16}" for cell in cells))
    print(*summary, f"curves: {options.page}", sep="\n")
