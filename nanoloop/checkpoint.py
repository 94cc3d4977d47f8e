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
from dataclasses import fields, replace
from pathlib import Path

import torch
from torch import Tensor

from model import GPTConfig
from nanoloop.files import if_possible, replace_file, replace_folder, sha256_of_file, write_json
from nanoloop.options import UserError, explained, require, typed
from nanoloop.ranks import all_sum, local, placed, rank, world_size

CHECKPOINT_FORMAT = 3


def state_of(model, optimizers) -> dict | None:
    """A model's tensors by name, and what the optimizers keep for each of its parameters: all that training changes.
    None where a weight is not finite, on any rank."""
    params = dict(model.named_parameters())
    bad = sum(not local(p).isfinite().all() for p in params.values())
    states = {p: state for optimizer in optimizers for p, state in optimizer.state.items()}
    state = {
        "model": model.state_dict(),
        "optimizer": {name: states[p] for name, p in params.items() if p in states},
    }
    return None if all_sum(torch.tensor(float(bad))) else state


def load_state(checkpoint: dict, model, optimizers=(), sharded: bool = False) -> None:
    """Put a checkpoint's tensors into a model, on its device, and into its optimizers, whose rates and the like stay.

    A table of positions may be longer than the model's: it takes as many as it has.
    """
    params, own = dict(model.named_parameters()), model.state_dict()
    checkpoint = read_tensors(checkpoint, params if sharded else None)
    weights = {
        name: w[: len(own[name])] if name == "wpe.weight" else w
        for name, w in checkpoint["model"].items()
    }
    model.load_state_dict({name: placed(w, own.get(name, w)) for name, w in weights.items()})
    holder = {p: o.state for o in optimizers for group in o.param_groups for p in group["params"]}
    for name, state in checkpoint["optimizer"].items() if holder else ():
        p = params[name]
        holder[p][p] = {
            key: placed(value, p) if value.ndim else value.to(p.device)
            for key, value in state.items()
        }


def save_checkpoint(
    path: Path, checkpoint: dict, keep_old: Path | None = None, sharded: bool = False
) -> bool:
    """Write `checkpoint` to `path`, whole or not at all; keep_old: the name under which the one before stays. Returns
    whether the disk took it; if not, that was said, and what is there stays.

    checkpoint: "model", name to tensor; "optimizer", name of a parameter to its state; and plain values.
    """
    if sharded:
        steps = (
            begin_folder,
            write_shards,
            lambda path, checkpoint: end_folder(path, checkpoint, keep_old),
        )
        # The ranks go from step to step together, and none goes on when another could not.
        return all(
            not all_sum(torch.tensor(float(not if_possible(path, step, checkpoint))))
            for step in steps
        )
    return rank() > 0 or if_possible(
        path, replace_file, lambda file: torch.save(checkpoint, file), keep_old
    )


def partial_name(path: Path) -> Path:
    return path.with_name(path.name + ".tmp")


def begin_folder(path: Path, checkpoint: dict) -> None:
    if rank() == 0:
        shutil.rmtree(partial_name(path), ignore_errors=True)
        partial_name(path).mkdir()


def write_shards(path: Path, checkpoint: dict) -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException

    tensors, held = {}, set()
    for name, tensor in checkpoint["model"].items():
        tied = (
            local(tensor).data_ptr() in held
        )  # one table under two names: safetensors wants it twice
        tensors[f"model/{name}"] = tensor.clone() if tied else tensor
        held.add(local(tensor).data_ptr())
    for name, state in checkpoint["optimizer"].items():
        tensors |= {f"optimizer/{name}/{key}": tensor for key, tensor in state.items()}
    try:
        dcp.save(
            tensors,
            storage_writer=dcp.HuggingFaceStorageWriter(
                str(partial_name(path)), save_distributed=True
            ),
        )
    except CheckpointException as error:  # of all ranks, by rank
        raise next(iter(error.failures.values()))[0] from None


def end_folder(path: Path, checkpoint: dict, keep_old: Path | None) -> None:
    if rank() == 0:
        files = {file.name: sha256_of_file(file) for file in partial_name(path).iterdir()}
        plain = {
            key: value for key, value in checkpoint.items() if key not in ("model", "optimizer")
        }
        write_json(partial_name(path) / "checkpoint.json", {"files": files} | plain)
        replace_folder(partial_name(path), path, keep_old)


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
        tensors[key] = (
            torch.empty_like(own) if cut else torch.empty(about.size, dtype=about.properties.dtype)
        )
    with warnings.catch_warnings(action="ignore"):  # that one process reads it alone
        dcp.load(tensors, storage_reader=reader, no_dist=world_size() == 1)
    model, optimizer = {}, {}
    for key, tensor in tensors.items():
        kind, name, *rest = key.split("/")
        (model if kind == "model" else optimizer.setdefault(name, {}))[
            rest[0] if rest else name
        ] = tensor.detach()
    return checkpoint | {"model": model, "optimizer": optimizer}


def load_checkpoint(path: Path) -> dict:
    """Read a checkpoint onto the CPU; of a folder the plain values, whose tensors `read_tensors` gives. Raises
    UserError where it is missing, damaged or of another version."""
    require(
        path.exists(),
        f"checkpoint '{path}' does not exist: train first, or name a run that is there",
    )
    with explained(
        f"'{path}' is damaged or no checkpoint of this program", "it was not used, take another"
    ):
        if path.is_dir():
            checkpoint = json.loads((path / "checkpoint.json").read_text("utf-8"))
            damaged = [
                name
                for name, sha256 in checkpoint["files"].items()
                if sha256_of_file(path / name) != sha256
            ]
            require(
                not damaged,
                f"'{path}' is damaged (the checksum of {damaged} differs): it was not used",
            )
            checkpoint |= {"folder": str(path), "model": None, "optimizer": None}
        else:
            with zipfile.ZipFile(
                path
            ) as archive:  # torch writes a checksum of every tensor but does not look at it
                damaged = archive.testzip()
            require(
                damaged is None,
                f"'{path}' is damaged (the checksum of {damaged} differs): it was not used",
            )
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        version, *_ = (
            checkpoint[key]
            for key in ("format", "config", "model", "tokenizer", "step", "optimizer")
        )
    told = f"'{path}' has checkpoint format {version}, this program reads {CHECKPOINT_FORMAT}"
    require(version == CHECKPOINT_FORMAT, f"{told}: use the version of the program that wrote it")
    return checkpoint


def load_latest(out: Path) -> dict | None:
    """The run's newest checkpoint that can be read whole; None where there is none. Says aloud what it passes over."""
    paths = [out / name for name in ("last.pt", "previous.pt", "best.pt") if (out / name).exists()]
    for path in paths:
        try:
            return load_checkpoint(path)
        except (
            UserError
        ) as error:  # put aside, so that the next save does not keep it in place of a good one
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
    require(
        known,
        f"'{source}' is no run, checkpoint or folder of GPT-2, nor gpt2, gpt2-medium, gpt2-large, gpt2-xl",
    )
    remedy = "it takes `pip install transformers` and a network, or the path of a local folder of GPT-2's files"
    with explained(f"'{source}' could not be loaded", remedy):
        return runpy.run_path(str(Path(__file__).parent.parent / "config" / "gpt2_classic.py"))[
            "published_weights"
        ](source)


def adopt(config, begin: dict | None, data, resuming: bool):
    """A run's `config` completed by what the data and the checkpoint `begin` fix.

    Fine-tuning may choose another dropout and a smaller block_size; going on with a run keeps all that shapes it.
    Raises UserError where an option contradicts.
    """
    told = "eval_only=True needs weights: give --init_from=RUN, or --resume=True for the run's own"
    require(begin or not config.eval_only, told)
    fixed = {"vocab_size": max(config.vocab_size or 0, data.tokenizer.vocab_size)}
    fixed |= {"document_token": data.tokenizer.end_of_text} if config.document_mask else {}
    if begin:
        course = ["seed", "batch_tokens", "align_documents", "optimizer"] * resuming
        shape = [field.name for field in fields(GPTConfig) if resuming or field.name != "dropout"]
        fixed = typed(type(config), begin["config"], shape + course)
        if not resuming:
            fixed["block_size"] = min(config.block_size, fixed["block_size"])
        theirs, ours = (
            begin["tokenizer"],
            data.tokenizer,
        )  # GPT-2's weights come without one: then the size has to do
        same = theirs == ours.to_json() if theirs else fixed["vocab_size"] == ours.vocab_size
        told = f"'{data.folder}' has another tokenizer than the weights: prepare data with theirs"
        require(
            same,
            f"{told} (--tokenizer=gpt2 for GPT-2, else the path of the data they were trained on)",
        )
        told = (
            f"'{data.folder}' is not the data that the run was begun with: its fingerprint differs"
        )
        require(not resuming or begin["data"] == data.fingerprint, told)
    for name, value in fixed.items():
        told = f"{name}={getattr(config, name)}, but {'the checkpoint' if begin else 'the data'} needs {value}"
        require(
            getattr(config, name) in (getattr(type(config), name), value),
            f"{told}: leave the option out",
        )
    return replace(config, **fixed)
