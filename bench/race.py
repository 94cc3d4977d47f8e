"""Measure the training seconds to a target loss, in complete runs."""

import json
from dataclasses import replace
from pathlib import Path

import train
from nanoloop.device import tune_process
from nanoloop.options import require


def race(options) -> dict:
    """Do the complete run; return its results and its evaluations, [seconds, val_loss] each."""
    tune_process()
    summary = train.train(replace(options, save_interval=None, sample_prompt=None))
    log = Path(options.out, "log.jsonl").read_text("utf-8")
    rows = [json.loads(line) for line in log.splitlines()]
    evaluations = [[row["seconds"], row["val_loss"]] for row in rows if "val_loss" in row]
    require(evaluations, "the data has no val split: prepare it with val_fraction above 0")
    figures = {name: summary[name] for name in ("val_loss", "train_seconds", "params")}
    return figures | {"evaluations": evaluations}


def judge(runs: dict[str, list[dict]], target: float) -> None:
    """Add to each run its seconds to the target, and how many of its side reach it.

    A run of the other side that misses the target counts with the time of the complete run.
    """
    for side, results in runs.items():
        times = [seconds_to(target, run["evaluations"]) for run in results]
        for run, seconds in zip(results, times):
            if seconds is None and side == "other":
                seconds = run["train_seconds"]
            run["target_loss"] = target
            run["reached"] = len(times) - times.count(None)
            run["seconds_to_target"] = seconds


def seconds_to(target: float, evaluations: list[list[float]]) -> float | None:
    """Return the time of the first evaluation with at most the target loss."""
    return next((seconds for seconds, loss in evaluations if loss <= target), None)
