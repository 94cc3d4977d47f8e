"""Measure speed: one training step by its parts, or this project beside another checkout.

    python -m bench config/quickstart.py                          # tokens/s, parts of a step, MFU
    python -m bench config/quickstart.py --against=../patched     # … beside another working copy
    python -m bench config/shakespeare_char.py --against=../nanoGPT --target_loss=1.8857
    python -m bench config/gpt2.py --sample=True --against=../nanoGPT      # decoding
    python -m bench --prepare_text=texts/ --against=../nanoGPT             # preparing text
    python -m bench config/depth.py --scaling=True                # loss against compute

Every option of train.py may be given too. These rules keep a comparison fair:

- Each measurement runs in a process that does nothing else. The sides alternate (A B A B), so a
  busy machine disturbs them alike. Figures are medians over the repeats. Beside a ratio stand the
  lowest and the highest ratio of the pairs.
- Each side runs the code of its checkout, unchanged. Another nanoloop is measured by the bench of
  its checkout. A nanoloop's speed is that of train.train_step, called in a loop without log,
  evaluation and checkpoints. nanoGPT's comes from the lines that its train.py prints right after
  it waits for the device. Within a measured stretch nothing else waits for the device.
- nanoGPT gets the same tokens in its data format, and another seed in each repeat. Its evaluations
  are off, because ours do not count either. After its last step its model is scored on our whole
  validation split, in our windows.
- In doubt the other side wins. If it misses the target loss, its time is that of the complete run.
  If this side misses it, the time is infinite.

Reading order: this file, sides.py, measure.py, race.py, text.py, scaling.py, peers.py, report.py.
"""

import nanoloop.environment  # noqa: F401, says how to install what is missing

import json
import shlex
from dataclasses import dataclass, replace
from pathlib import Path

from bench import measure, peers, race, report, scaling, text
from bench.sides import ROOT, alternate, compare, end_with_parent, is_nanogpt, is_nanoloop
from nanoloop.files import write_json
from nanoloop.options import read_options, require, run_program
from train import TrainConfig

# By name of a job: how a nanoloop is measured, and how nanoGPT is.
JOBS = {
    "speed": (measure.speed, peers.speed),
    "race": (race.race, peers.race),
    "decode": (text.decode, peers.decode),
    "prepare": (text.prepare, peers.prepare),
}


@dataclass(frozen=True)
class BenchConfig(TrainConfig):
    """What to measure, and all the options of train.py."""

    max_steps: int | None = 10**9  # as in train.py; matters with target_loss and scaling
    against: str | None = None  # another checkout to measure in turn: nanoGPT, or a nanoloop
    target_loss: float | None = None  # measure the training seconds to this val_loss too
    their_flags: str | None = None  # nanoGPT's flags for target_loss; None: its known recipe
    sample: bool = False  # measure decoding instead, from random weights
    new_tokens: str = "256,1024"  # … of these lengths; of the first also 8 and 32 texts at once
    prepare_text: str | None = None  # measure preparing these texts, with the tokenizer of data
    scaling: bool = False  # train a recipe with the dial `depth` at several depths; fit a law
    depths: str = "1,2,3,4"  # … at these depths
    share: float = 1.0  # … for this fraction of the tokens that the recipe gives each
    repeats: int | None = None  # measurements per side; None: 5 beside another checkout, else 1
    steps: int = 50  # measured steps, in five stretches, whose median counts
    warmup_steps: int = 10  # steps before them
    json: str | None = None  # write all figures to this file too

    def lengths(self) -> list[int]:
        return whole_numbers("new_tokens", self.new_tokens)


def whole_numbers(name: str, value: str) -> list[int]:
    """Read numbers with commas between them; return each once, in order. Raises UserError."""
    parts = value.split(",")
    is_valid = all(part.isdecimal() and int(part) > 0 for part in parts)
    require(is_valid, f"{name} must be whole numbers above 0 such as 1,2,3, got {value!r}")
    return sorted(set(map(int, parts)))


def read(argv: list[str]) -> BenchConfig:
    """Read the options, and check them before anything is measured. Raises UserError."""
    options = read_options(BenchConfig, argv, "-m bench config/NAME.py")
    options.lengths()
    for name, least in (("steps", 5), ("warmup_steps", 1), ("repeats", 1)):
        value = getattr(options, name)
        require(value is None or value >= least, f"{name} must be at least {least}, got {value}")
    return options


def find_sides(options: BenchConfig) -> dict[str, Path]:
    """Return the checkouts to measure, this one first. Raises UserError."""
    if options.against is None:
        return {"this": ROOT}
    other = Path(options.against).resolve()
    require(
        is_nanogpt(other) or is_nanoloop(other),
        f"--against={options.against} is not the folder of a nanoGPT (train.py, configurator.py) "
        "or of a nanoloop (train.py, prepare_data.py): give the path of one",
    )
    require(
        not (options.scaling and is_nanogpt(other)),
        "--scaling compares nanoloops only: leave nanoGPT out",
    )
    return {"this": ROOT, "other": other}


def run_job(arguments: str) -> None:
    """Do one measurement in this process; print its figures as the last line.

    arguments: the JSON list that bench.sides.run_in_process writes.
    """
    name, _, checkout, repeat, argv, folder = json.loads(arguments)
    end_with_parent(Path(folder))
    options = read(argv)
    options = replace(options, seed=options.seed + repeat, out=folder)
    of_nanoloop, of_nanogpt = JOBS[name]
    job = of_nanogpt if is_nanogpt(Path(checkout)) else of_nanoloop
    print("", json.dumps(job(options)), sep="\n")


def main(argv: list[str]) -> None:
    if argv[:1] == ["job"]:
        run_job(argv[1])
        return
    options = read(argv)
    sides = find_sides(options)
    repeats = options.repeats or (5 if options.against else 1)

    def measure(name: str, argv: list[str]) -> dict[str, list[dict]]:
        return alternate(name, repeats, sides, argv)

    if options.scaling:
        depths = whole_numbers("depths", options.depths)
        runs, tables = scaling.measure_depths(depths, argv, read, measure)
    else:
        name = "speed"
        if options.prepare_text is not None:
            name = "prepare"
        elif options.sample:
            name = "decode"
        runs = {name: measure(name, argv)}
        if options.target_loss is not None:
            runs["race"] = measure("race", argv)
            race.judge(runs["race"], options.target_loss)
        tables = {name: compare(results) for name, results in runs.items()}
    result = {
        "command": shlex.join(["python", "-m", "bench", *argv]),
        "where": report.provenance(sides),
        "repeats": repeats,
        "tables": tables,
        "runs": runs,
    }
    if options.json is not None:
        write_json(Path(options.json), result)
    for title, rows in tables.items():
        print(report.table(title, rows), end="\n\n")
    print("ratio: this / other; of times other / this", end="\n\n")
    print(report.figures_row(result))


if __name__ == "__main__":
    run_program(main)
