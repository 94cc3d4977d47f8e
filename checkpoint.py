"""Checkpoints: one dictionary of tensors and plain values, in one file or, of a sharded run, in a folder.

A file is torch's own format. A folder holds a file of tensors from each rank (safetensors, written and read through
torch.distributed.checkpoint, so that another number of ranks can read it) and checkpoint.json: the plain values and the
checksums of the other files. Reading either never executes anything in it.
"""

import json
import runpy
import shutil
import warnings
import zipfile
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from console import (UserError, disk_took, explained, replace_file, replace_folder, require, sha256_of_file,
                     write_json)  # fmt: skip
from parallel import all_sum, local, placed, rank, world_size

CHECKPOINT_FORMAT = 3


def state_of(model, optimizers) -> dict | None:
    """A model's tensors by name, and what the optimizers keep for each of its parameters: all that training changes.
    None where a weight is not finite, on any rank."""
    params = dict(model.named_parameters())
    bad = sum(not local(p).isfinite().all() for p in params.values())
    states = {p: state for optimizer in optimizers for p, state in optimizer.state.items()}
    state = {"model": model.state_dict(), "optimizer": {name: states[p] for name, p in params.items() if p in states}}
    return None if all_sum(torch.tensor(float(bad))) else state


def load_state(checkpoint: dict, model, optimizers=(), sharded: bool = False) -> None:
    """Put a checkpoint's tensors into a model, on its device, and into its optimizers, whose rates and the like stay.

    A table of positions may be longer than the model's: it takes as many as it has.
    """
    params, own = dict(model.named_parameters()), model.state_dict()
    checkpoint = read_tensors(checkpoint, params if sharded else None)
    weights = {name: w[: len(own[name])] if name == "wpe.weight" else w for name, w in checkpoint["model"].items()}
    model.load_state_dict({name: placed(w, own.get(name, w)) for name, w in weights.items()})
    holder = {p: o.state for o in optimizers for group in o.param_groups for p in group["params"]}
    for name, state in checkpoint["optimizer"].items() if holder else ():
        p = params[name]
        holder[p][p] = {key: placed(value, p) if value.ndim else value.to(p.device) for key, value in state.items()}


def save_checkpoint(path: Path, checkpoint: dict, keep_old: Path | None = None, sharded: bool = False) -> bool:
    """Write `checkpoint` to `path`, whole or not at all; keep_old: the name under which the one before stays.

    Whether the disk took it, of which all ranks hear; if not, that was said and all is as it was.
    checkpoint: "model", name to tensor; "optimizer", name of a parameter to its state; and plain values.
    """
    if sharded:
        good = save_folder(path, checkpoint, keep_old)
    else:
        write = partial(replace_file, path, lambda file: torch.save(checkpoint, file), keep_old)
        good = rank() > 0 or disk_took(path, write)
    return not all_sum(torch.tensor(float(not good)))


def save_folder(path: Path, checkpoint: dict, keep_old: Path | None) -> bool:
    import torch.distributed.checkpoint as dcp

    making = path.with_name(path.name + ".tmp")

    def begin() -> None:
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir()

    def end() -> None:
        files = {file.name: sha256_of_file(file) for file in making.iterdir()}
        plain = {key: value for key, value in checkpoint.items() if key not in ("model", "optimizer")}
        write_json(making / "checkpoint.json", {"files": files} | plain)
        replace_folder(making, path, keep_old)

    good = rank() > 0 or disk_took(path, begin)
    if all_sum(torch.tensor(float(not good))):  # nobody writes before the folder is there
        return False
    tensors, held = {}, set()
    for name, tensor in checkpoint["model"].items():
        tied = local(tensor).data_ptr() in held  # one table under two names: safetensors wants it twice
        tensors[f"model/{name}"] = tensor.clone() if tied else tensor
        held.add(local(tensor).data_ptr())
    for name, state in checkpoint["optimizer"].items():
        tensors |= {f"optimizer/{name}/{key}": tensor for key, tensor in state.items()}
    writer = dcp.HuggingFaceStorageWriter(str(making), save_distributed=True)
    good = disk_took(path, lambda: dcp.save(tensors, storage_writer=writer))  # what fails on one rank, fails on all
    if good and rank() == 0:
        good = disk_took(path, end)
    if not good and rank() == 0:
        shutil.rmtree(making, ignore_errors=True)  # its bytes may be what others lack
    return good


def read_tensors(checkpoint: dict, like: dict[str, Tensor] | None = None) -> dict:
    """A checkpoint with all its tensors; those of a folder are read now.

    like: the parameters of a sharded model, by name: of them, and of what the optimizer keeps for them, each rank reads
    its own rows. None: everything is read whole, to the CPU.
    """
    if "folder" not in checkpoint:
        return checkpoint
    import torch.distributed.checkpoint as dcp

    reader, tensors = dcp.HuggingFaceStorageReader(checkpoint["folder"]), {}
    for key, about in reader.read_metadata().state_dict_metadata.items():
        own = (like or {}).get(key.split("/")[1])
        cut = own is not None and own.shape == about.size
        tensors[key] = torch.empty_like(own) if cut else torch.empty(about.size, dtype=about.properties.dtype)
    with warnings.catch_warnings(action="ignore"):  # that one process reads it alone
        dcp.load(tensors, storage_reader=reader, no_dist=world_size() == 1)
    model, optimizer = {}, {}
    for key, tensor in tensors.items():
        kind, name, *rest = key.split("/")
        (model if kind == "model" else optimizer.setdefault(name, {}))[rest[0] if rest else name] = tensor.detach()
    return checkpoint | {"model": model, "optimizer": optimizer}


def load_checkpoint(path: Path) -> dict:
    """Read a checkpoint onto the CPU; of a folder the plain values, whose tensors `read_tensors` gives. Raises
    UserError where it is missing, damaged or of another version."""
    require(path.exists(), f"checkpoint '{path}' does not exist: train first, or name a run that is there")
    with explained(f"'{path}' is damaged or no checkpoint of this program", "it was not used, take another"):
        if path.is_dir():
            checkpoint = json.loads((path / "checkpoint.json").read_text("utf-8"))
            damaged = [name for name, sha256 in checkpoint["files"].items() if sha256_of_file(path / name) != sha256]
            require(not damaged, f"'{path}' is damaged (the checksum of {damaged} differs): it was not used")
            checkpoint |= {"folder": str(path), "model": None, "optimizer": None}
        else:
            with zipfile.ZipFile(path) as archive:  # torch writes a checksum of every tensor but does not look at it
                damaged = archive.testzip()
            require(damaged is None, f"'{path}' is damaged (the checksum of {damaged} differs): it was not used")
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        version, *_ = (checkpoint[key] for key in ("format", "config", "model", "tokenizer", "step", "optimizer"))
    told = f"'{path}' has checkpoint format {version}, this program reads {CHECKPOINT_FORMAT}"
    require(version == CHECKPOINT_FORMAT, f"{told}: use the version of the program that wrote it")
    return checkpoint


def load_latest(out: Path) -> dict | None:
    """The run's newest checkpoint that can be read whole; None where there is none. Says aloud what it passes over."""
    paths = [out / name for name in ("last.pt", "previous.pt", "best.pt") if (out / name).exists()]
    for path in paths:
        try:
            return load_checkpoint(path)
        except UserError as error:  # put aside, so that the next save does not keep it in place of a good one
            print(f"passed over, and renamed to .damaged: {error}")
            path.rename(path.with_suffix(".damaged"))
    require(not paths, f"no checkpoint in '{out}' can be read: type --overwrite=True to begin anew")
    print(f"'{out}' has no checkpoint to go on from: beginning at step 0")


def load_weights(source: str) -> dict:
    """A checkpoint from a run's folder or by its own name, or GPT-2's weights in the same form. Raises UserError."""
    path = Path(source)
    if path.is_dir() and list(path.glob("*.pt")):
        path = path / ("best.pt" if (path / "best.pt").exists() else "last.pt")
    if path.suffix == ".pt":
        return read_tensors(load_checkpoint(path))
    known = source.startswith("gpt2") or (path / "config.json").is_file()
    require(known, f"'{source}' is no run, checkpoint or folder of GPT-2, nor gpt2, gpt2-medium, gpt2-large, gpt2-xl")
    remedy = "it takes `pip install transformers` and a network, or the path of a local folder of GPT-2's files"
    with explained(f"'{source}' could not be loaded", remedy):
        return runpy.run_path(str(Path(__file__).with_name("config") / "gpt2_classic.py"))["published_weights"](source)
