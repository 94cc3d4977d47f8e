"""Run the sides of a comparison in turn, and compare their figures.

A measurement returns a dictionary of figures. None stands for an unknown figure or an endless time.
"""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from statistics import median

from nanoloop.options import require
from nanoloop.runlog import format_figure

ROOT = Path(__file__).resolve().parent.parent

# --------------------------------------------------------------------------------------------------
# Processes


def is_nanogpt(checkout: Path) -> bool:
    return (checkout / "train.py").is_file() and (checkout / "configurator.py").is_file()


def is_nanoloop(checkout: Path) -> bool:
    return (checkout / "train.py").is_file() and (checkout / "prepare_data.py").is_file()


def alternate(
    name: str, repeats: int, sides: dict[str, Path], argv: list[str], run=None
) -> dict[str, list[dict]]:
    """Run the job `name` in the order A B A B …; return each side's figures in order.

    run: does one job; None: run_in_process.
    """
    run = run or run_in_process
    runs = {side: [] for side in sides}
    for repeat in range(repeats):
        for side, checkout in sides.items():
            figures = run(name, side, checkout, repeat, recipe_of(checkout, argv))
            runs[side].append(figures)
            key, value = next(iter(figures.items()))
            progress = f"{name} {repeat + 1} of {repeats}, {side}: {key} {format_figure(value)}"
            print(progress, file=sys.stderr)
    return runs


def recipe_of(checkout: Path, argv: list[str]) -> list[str]:
    """Name the checkout's config file in place of ours, if it has one: a patch may change it."""
    path = Path(argv[0]).resolve() if argv else ROOT
    if not path.is_relative_to(ROOT):
        return argv
    recipe = checkout / path.relative_to(ROOT)
    return [str(recipe), *argv[1:]] if recipe.is_file() else argv


def run_in_process(name: str, side: str, checkout: Path, repeat: int, argv: list[str]) -> dict:
    """Run one job by the checkout's bench, or by ours for nanoGPT; return its figures.

    Raises UserError with the reason if it fails.
    """
    home = ROOT if is_nanogpt(checkout) else checkout
    inherited = os.environ.get("PYTHONPATH", str(home))
    environment = os.environ | {"PYTHONPATH": f"{home}{os.pathsep}{inherited}"}
    with tempfile.TemporaryDirectory(prefix="nanoloop-bench-") as folder:
        arguments = json.dumps([name, side, str(checkout), repeat, argv, folder])
        # -P: the modules are those of the checkout, not of the current folder.
        command = [sys.executable, "-P", "-m", "bench", "job", arguments]
        result = run_session(command, environment)
    reason = failure(result.returncode, result.stderr)
    require(result.returncode == 0, f"{name} of {checkout} failed: {reason}")
    return json.loads(result.stdout.splitlines()[-1])


def run_session(command: list[str], environment) -> subprocess.CompletedProcess:
    """Run a command in a session of processes that ends with it, or with this process."""
    # The command reads from a pipe that only this process can write to. The pipe closes when this
    # process ends, however it ends: see end_with_parent.
    read_end, write_end = os.pipe()
    process = subprocess.Popen(
        command,
        stdin=read_end,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        os.close(read_end)
        os.close(write_end)
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def end_with_parent(folder: Path) -> None:
    """Kill this process and those it started as soon as standard input is closed.

    The folder of the job, which a killed parent leaves, is removed after them: they would write
    into it again. The shell that does it is in another session, so it outlives them.
    """
    script = f'kill -KILL -{os.getpgrp()}; rm -rf "$0"'

    def wait() -> None:
        os.read(0, 1)
        try:
            subprocess.run(["sh", "-c", script, str(folder)], start_new_session=True)
        finally:
            os.killpg(0, signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


def failure(code: int, errors: str) -> str:
    """Say why a process failed: its error message, or all it wrote if that is a defect."""
    if code == -signal.SIGKILL:
        return "it was killed (out of memory?): try a smaller --micro_batch_size or a smaller model"
    for line in reversed(errors.splitlines()):
        if line.startswith("error: "):
            return line.removeprefix("error: ")
    return "\n" + errors.strip()


# --------------------------------------------------------------------------------------------------
# Figures


def middle(values: list[float | None]) -> float | None:
    """Return the median; None counts as infinite."""
    value = median(math.inf if value is None else value for value in values)
    return None if math.isinf(value) else value


def ratio(key: str, this: float | None, other: float | None) -> float | None:
    """Return this / other, or other / this for times: how many times faster this side is."""
    if not this or not other:
        return None
    is_time = key.startswith("ms_") or "seconds" in key
    return other / this if is_time else this / other


def compare(runs: dict[str, list[dict]]) -> dict[str, dict]:
    """Return a row for each figure: each side's median, the ratio of the medians, its spread.

    The spread is the lowest and the highest ratio of the pairs (A B).
    """
    rows = {}
    for key, example in runs["this"][0].items():
        if isinstance(example, list):
            continue
        values = {side: [run.get(key) for run in results] for side, results in runs.items()}
        rows[key] = {side: middle(column) for side, column in values.items()}
        if "other" in runs:
            ratios = [ratio(key, *pair) for pair in zip(*values.values())]
            known = [value for value in ratios if value is not None]
            rows[key] |= {
                "ratio": ratio(key, *rows[key].values()),
                "lowest": min(known, default=None),
                "highest": max(known, default=None),
            }
    return rows
