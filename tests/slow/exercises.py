"""Run the exercises of docs/tour.md on three seeds and print their tables.

    export OMP_NUM_THREADS=1
    python -m tests.slow.exercises FOLDER bfloat16 exercises
    python -m tests.slow.exercises FOLDER bfloat16 switches
    export ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2
    python -m tests.slow.exercises FOLDER float32 exercises
    python -m tests.slow.exercises FOLDER float32 switches
    python -m tests.slow.exercises FOLDER            # the tables alone

Every run is a folder below FOLDER. A run that is there is not done again, so the script resumes.
The runs end after a number of steps: a busy machine changes no figure.
"""

import json
import multiprocessing
import os
import re
import shutil
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
TOUR = ROOT / "docs/tour.md"
SEEDS = (1, 2, 3)
DTYPES = ("bfloat16", "float32")

# GPT-2's training as nanoGPT does it for small models.
ADAMW = "optimizer=adamw learning_rate=0.003 beta1=0.9 beta2=0.99 eps=1e-8 grad_clip=1.0"
COSINE = "warmup=0.05 decay=0.95 decay_shape=cosine"
CLASSIC = [
    "position=learned",
    "norm=layer",
    "activation=gelu",
    "qk_norm=False",
    "bias=True",
    "tie_embeddings=True",
    "logit_softcap=None",
    "value_embeds=0",
    "residual_scalars=False",
    "weight_init=gpt2",
    f"{ADAMW} {COSINE}",
]
EXERCISES = [
    "qk_norm=False",
    "position=learned",
    "muon_lr=0.2",
    "diff 4",
    "tie_embeddings=True",
    "n_head=1",
    "decay=0",
    "batch_tokens=512 max_steps=160",
    "n_layer=1",
    "bigram_rows=16384",
    "diff 11",
    "diff 12",
]
# The switches of the classic recipe one at a time, then all of them.
SWITCHES = [*CLASSIC, " ".join(CLASSIC)]
PARTS = {"exercises": EXERCISES, "switches": SWITCHES}


def diff_of_exercise(number: int) -> str:
    """Return the block of code marked diff in the exercise with this number."""
    text = TOUR.read_text("utf-8")
    section = text.partition(f"\n### {number}. ")[2].partition("\n### ")[0]
    return re.search(r"```diff\n(.*?)```", section, flags=re.DOTALL)[1]


def apply_diff(diff: str, tree: Path) -> None:
    """Apply the diff of one file to the copy of the project in `tree`.

    Raises ValueError unless the lines to replace occur exactly once.
    """
    header, *lines = diff.splitlines(keepends=True)
    path = tree / header.removeprefix("--- a/").strip()
    lines = lines[2:]  # without +++ and @@
    old = "".join(line[1:] for line in lines if line[0] in " -")
    new = "".join(line[1:] for line in lines if line[0] in " +")
    text = path.read_text("utf-8")
    if text.count(old) != 1:
        raise ValueError(f"the diff's lines occur {text.count(old)} times in {path}")
    path.write_text(text.replace(old, new), "utf-8")


def copy_project(target: Path) -> None:
    """Copy what train.py imports."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in ("model.py", "train.py", "prepare_data.py"):
        shutil.copy(ROOT / name, target)
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("nanoloop", "corpus", "config"):
        shutil.copytree(ROOT / name, target / name, ignore=ignored)


def train_in_child(tree: Path, folder: Path, flags: list[str]) -> None:
    """Train in a process that has the large libraries, but nothing of the project."""
    os.chdir(folder)
    sys.path.insert(0, str(tree))
    with open("output.txt", "a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        import train

        train.main([str(tree / "config/lesson.py"), *flags])


def run_part(folder: Path, dtype: str, part: str) -> None:
    import matplotlib.pyplot  # noqa: F401, each child has it then
    import numpy  # noqa: F401
    import torch  # noqa: F401
    import typeguard  # noqa: F401
    import tyro  # noqa: F401

    context = multiprocessing.get_context("fork")
    for change in ["", *PARTS[part]]:
        tree = folder / "trees" / (change.replace(" ", "_") if "diff" in change else "project")
        if not tree.exists():
            copy_project(tree)
            if change.startswith("diff"):
                apply_diff(diff_of_exercise(int(change.split()[1])), tree)
        for seed in SEEDS:
            out = run_folder(folder, dtype, change, seed)
            if (out / "summary.json").exists():
                continue
            flags = [f"--{option}" for option in change.split() if "=" in option]
            flags += [f"--seed={seed}", f"--dtype={dtype}", f"--out={out}", "--device=cpu"]
            flags += ["--save_interval=None", "--overwrite=True"]
            child = context.Process(target=train_in_child, args=(tree, folder, flags))
            child.start()
            child.join()
            print(dtype, change or "the recipe", seed, bits_per_byte(out), flush=True)


def run_folder(folder: Path, dtype: str, change: str, seed: int) -> Path:
    name = change.replace(" ", "_") or "recipe"
    return folder / dtype / name[:100] / str(seed)


def bits_per_byte(out: Path) -> float | None:
    """Return val_bpb of a run; None without a finished run."""
    summary = out / "summary.json"
    return json.loads(summary.read_text())["val_bpb"] if summary.exists() else None


def table(folder: Path, part: str) -> str:
    """Format a row for each change and dtype: val_bpb of each seed, mean difference to the recipe.

    A dot stands for a run that is not there; a row without any run is left out.
    """
    lines = ["| change | dtype | seed 1 | seed 2 | seed 3 | mean difference |", "|" + "---|" * 6]
    for change in ["", *PARTS[part]]:
        for dtype in DTYPES:
            scores = [bits_per_byte(run_folder(folder, dtype, change, seed)) for seed in SEEDS]
            base = [bits_per_byte(run_folder(folder, dtype, "", seed)) for seed in SEEDS]
            differences = [a - b for a, b in zip(scores, base) if a and b]
            if not differences:
                continue
            shown = " | ".join(f"{score:.3f}" if score else "·" for score in scores)
            mean = f"{statistics.mean(differences):+.3f}" if change else ""
            lines.append(f"| {label(change)} | {dtype} | {shown} | {mean} |")
    return "\n".join(lines)


def label(change: str) -> str:
    """Return how the page calls a change."""
    if not change:
        return "the recipe"
    if change == SWITCHES[-1]:
        return "all of them"
    if "adamw" in change:
        return "AdamW and a cosine"
    if change.startswith("diff"):
        return f"the diff of exercise {change.split()[1]}"
    return f"`{change}`"


if __name__ == "__main__":
    folder = Path(sys.argv[1]).resolve()
    if len(sys.argv) == 4:
        run_part(folder, *sys.argv[2:])
    for part in PARTS:
        print(table(folder, part))
        print()
