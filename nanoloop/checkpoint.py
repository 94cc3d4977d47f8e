"""Checkpoints: tensors and plain values in one file, in torch's format.

Reading a file executes nothing in it. The file of a sharded run is like any other: rank 0 gathers
the complete tensors one after the other, so any number of ranks can resume.
"""

import contextlib
import math
import zipfile
from collections.abc import Set
from dataclasses import asdict, replace
from pathlib import Path
from typing import get_type_hints

import torch
from torch import Tensor
from typeguard import check_type

from model import GPTConfig
from nanoloop.files import write_if_possible
from nanoloop.gpt2 import nanogpt_weights, published_weights
from nanoloop.options import UserError, note, reading, require
from nanoloop.ranks import (
    all_sum,
    gathered,
    in_turn,
    local,
    placed,
    rank,
    require_equal,
    world_size,
)

FORMAT = 3

# What a checkpoint must hold, and the options besides GPTConfig's that a resumed run keeps.
CONTENT = {
    "config": dict,
    "model": dict[str, Tensor],
    "optimizer": dict[str, dict[str, Tensor]],
    "scaler": dict,
    "step": int,
    "seconds": float,
    "best": float,
    "tokenizer": dict,
    "data": str,
}
COURSE = {"seed": int, "batch_tokens": int, "align_documents": bool, "optimizer": str}

# -----------------------------------------------------------------------------
# Writing


def pack(
    model, optimizers, scaler, data, config, step: int, seconds: float, best_loss: float
) -> dict:
    """Collect what a checkpoint holds. Raises UserError if a weight is not finite on any rank."""
    params = dict(model.named_parameters())
    bad = sum(not local(p).isfinite().all() for p in params.values())
    bad = all_sum(torch.tensor(float(bad)))
    require(not bad, f"the weights are not finite after step {step}: they were not saved")
    states = {p: state for optimizer in optimizers for p, state in optimizer.state.items()}
    return {
        "format": FORMAT,
        "model": gathered(model.state_dict()),
        "optimizer": {name: gathered(states[p]) for name, p in params.items() if p in states},
        "config": asdict(config),
        "scaler": scaler.state_dict(),
        "step": step,
        "tokens": step * config.batch_tokens,
        "seconds": seconds,
        "best": best_loss,
        "data": data.fingerprint,
        "tokenizer": data.tokenizer.to_json(),
        "torch": str(torch.__version__),
    }


def save(path: Path, checkpoint: dict) -> bool:
    """Write a checkpoint completely or not at all; warn and return False if the disk fails.

    checkpoint: as `pack` returns it. The last.pt that another replaces is kept as previous.pt.
    """
    if rank() > 0:
        return True
    keep_old = path.with_name("previous.pt") if path.name == "last.pt" else None
    return write_if_possible(path, lambda file: torch.save(checkpoint, file), keep_old)


# -----------------------------------------------------------------------------
# Reading


def load(path: Path) -> dict:
    """Read a checkpoint onto the CPU.

    Raises UserError if it is missing, damaged or of another format.
    """
    require(path.exists(), f"checkpoint '{path}' does not exist: train first, or name another run")
    with reading(f"'{path}' is damaged or no checkpoint", "it was not used, name another"):
        checkpoint = read_file(path)
        if "model_args" in checkpoint:
            return nanogpt_weights(checkpoint, path)
        found = checkpoint["format"]
        require(
            found == FORMAT,
            f"'{path}' has checkpoint format {found}, this program reads {FORMAT}: use the version "
            "of the program that wrote it",
        )
        check_types(checkpoint, CONTENT)
        check_types(checkpoint["config"], COURSE)
        model_config(checkpoint)
    return checkpoint


def read_file(path: Path) -> dict:
    # torch stores a checksum of every tensor but does not compare it.
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged:
        raise ValueError(f"the checksum of {damaged} differs")
    # Mapped, ranks share its pages, and a rank with a shard reads its own rows alone.
    is_mapped = world_size() > 1
    return torch.load(path, map_location="cpu", weights_only=True, mmap=is_mapped)


def check_types(values: dict, types: dict) -> None:
    for name, kind in types.items():
        check_type(values[name], kind)


def model_config(checkpoint: dict) -> GPTConfig:
    """Return the config of a checkpoint's model. Raises UserError for values that are invalid."""
    with reading("the checkpoint's config is damaged", "name another checkpoint"):
        types = get_type_hints(GPTConfig)
        check_types(checkpoint["config"], types)
        return GPTConfig(**{name: checkpoint["config"][name] for name in types})


def load_latest(out: Path, rename: bool) -> dict | None:
    """Load the newest readable checkpoint of a run; return None if it has none.

    rename: rename a damaged one, so that the next save does not keep it in place of a good one.
    """
    hint = "type --overwrite=True to start anew"
    latest = load_first(out, ("last.pt", "previous.pt", "best.pt"), hint, rename)
    if latest is None:
        print(f"'{out}' has no checkpoint to resume: starting at step 0")
        return None
    with contextlib.suppress(Exception):  # it is missing or damaged
        # last.pt is written before its step is evaluated. Mapped: no tensor is read.
        best = torch.load(out / "best.pt", map_location="cpu", weights_only=True, mmap=True)
        latest["best"] = min(latest["best"], best["best"])
    return latest


def load_first(out: Path, names: tuple, hint: str, rename: bool = False) -> dict | None:
    """Load the first readable checkpoint of these names; return None if there is none.

    Raises UserError with the hint if all are damaged.
    """
    paths = [out / name for name in names if (out / name).exists()]
    for path in paths:
        try:
            return load(path)
        except UserError as error:
            note(f"warning: checkpoint skipped: {error}")
            if rename:
                path.rename(path.with_suffix(".damaged"))
    require(not paths, f"no checkpoint in '{out}' can be read: {hint}")
    return None


def load_weights(source: str) -> dict:
    """Load a checkpoint by its path or folder, nanoGPT's too, or GPT-2's weights.

    Raises UserError.
    """
    path = Path(source)
    names = ("best.pt", "last.pt", "previous.pt", "ckpt.pt")  # the last is nanoGPT's
    best = load_first(path, names, "name another run")
    if best:
        return best
    if path.suffix == ".pt":
        return load(path)
    is_gpt2 = source.startswith("gpt2") or (path / "config.json").is_file()
    require(
        is_gpt2,
        f"'{source}' is no run, no checkpoint, no folder of GPT-2's files and none of gpt2, "
        "gpt2-medium, gpt2-large, gpt2-xl",
    )
    return published_weights(source)


# -----------------------------------------------------------------------------
# Starting a run


def find_start(out: Path, config) -> tuple[dict | None, bool]:
    """Return the checkpoint that a run starts from, and whether it resumes that run.

    None means random weights. A run that is not resumed takes only the weights. Raises UserError.
    """
    if config.resume:
        # An evaluation does not hold the lock: another run may be writing here.
        resumed = in_turn(lambda: load_latest(out, rename=not config.eval_only))
        if resumed:
            return resumed, True
    if config.init_from:
        return load_weights(config.init_from) | {"optimizer": {}}, False
    return None, False


def complete(config, start: dict | None, data, resuming: bool, given: Set[str] = frozenset()):
    """Return a run's config with what its data and the checkpoint `start` fix.

    A resumed run keeps all that shapes it; fine-tuning may set another dropout and a smaller
    block_size. given: names of options that the user set, perhaps to their defaults. Raises
    UserError where an option contradicts, and where ranks differ.
    """
    require(
        start or not config.eval_only,
        "eval_only=True needs weights: type --init_from=RUN, or --resume=True for this run's",
    )
    # The paths of one run may differ between machines.
    shared = asdict(config) | dict.fromkeys(("out", "init_from", "prepare"))
    shared |= {"data": data.fingerprint}
    shared |= {key: (start or {}).get(key) for key in ("step", "seconds")}
    require_equal(shared)
    tokenizer = data.tokenizer
    if start is None:
        source = "the data"
        fixed = {"vocab_size": max(config.vocab_size or 0, tokenizer.vocab_size)}
        if config.document_mask:
            fixed["document_token"] = tokenizer.end_of_text
    else:
        source = "the checkpoint"
        fixed = asdict(model_config(start))
        is_same = fixed["vocab_size"] == tokenizer.vocab_size
        if start["tokenizer"]:  # GPT-2's published weights come without one
            is_same = start["tokenizer"] == tokenizer.to_json()
        require(
            is_same,
            f"'{data.folder}' has another tokenizer than the weights: prepare it with "
            "--tokenizer=gpt2 for GPT-2, else --tokenizer=FOLDER of the data they were trained on",
        )
        if resuming:
            require(
                start["data"] == data.fingerprint,
                f"'{data.folder}' is not the data of this run, its fingerprint differs: give the "
                "run's data, or another --out=FOLDER",
            )
            fixed |= {name: start["config"][name] for name in COURSE}
        else:
            del fixed["dropout"]
            fixed["block_size"] = min(config.block_size, fixed["block_size"])
    for name, value in fixed.items():
        asked = getattr(config, name)
        is_default = asked == getattr(type(config), name)
        is_free = asked is None or name not in given
        message = f"{source} needs {name}={value}, got {asked}: leave the option out"
        require(asked == value or (is_default and is_free), message)
    with reading("the checkpoint's config does not fit", "name another checkpoint"):
        return replace(config, **fixed)


def restore(
    start: dict | None, is_resumed: bool, model, optimizers, scaler
) -> tuple[int, float, float]:
    """Load the checkpoint `start`; return the run's step, seconds of training and best loss.

    A run that is not resumed begins at step 0. A table of positions may be longer than the
    model's: its first rows are used. Learning rates stay.
    """
    if start is None:
        return 0, 0.0, math.inf
    params = dict(model.named_parameters())
    weights = start["model"]
    current = model.state_dict()
    owners = {p: o for o in optimizers for group in o.param_groups for p in group["params"]}
    with reading("the checkpoint's weights do not fit the model", "name another checkpoint"):
        if "wpe.weight" in current:
            weights["wpe.weight"] = weights["wpe.weight"][: len(current["wpe.weight"])]
        model.load_state_dict({name: placed(w, current[name]) for name, w in weights.items()})
        for name, state in start["optimizer"].items():
            p = params[name]
            owners[p].state[p] = {key: placed(value, p) for key, value in state.items()}
    if not is_resumed:
        return 0, 0.0, math.inf
    if start["scaler"]:  # empty if the run had no float16
        scaler.load_state_dict(start["scaler"])
    return start["step"], start["seconds"], start["best"]
