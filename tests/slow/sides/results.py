"""Read what a command leaves on the disk, without what differs from run to run."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from sides.checkout import expect
from sides.compare import SharedKeys

# What depends on the clock or the machine.
UNSTABLE = {
    "seconds",
    "seconds_left",
    "lr",  # two names for one thing, of two editions
    "lr_scale",
    "train_seconds",
    "total_seconds",
    "tokens_per_second",
    "mfu",
    "peak_memory_mb",
}
# Every checkpoint has these; of its other values, only those are compared that each side has.
CHECKPOINT_KEYS = {"model", "optimizer", "step", "tokens", "best", "data", "tokenizer", "scaler"}
PROSE = {"warnings"}  # of report.json: words for people, which may change


def stable(values: dict) -> dict:
    return {key: value for key, value in values.items() if key not in UNSTABLE}


def read_checkpoint(path: Path) -> SharedKeys:
    """Read a checkpoint: a file, or the folder of a sharded run."""
    expect(path.exists(), f"{path.name} was not written")
    if path.is_dir():
        return read_sharded_checkpoint(path)
    checkpoint = stable(torch.load(path, map_location="cpu", weights_only=True))
    missing = CHECKPOINT_KEYS - checkpoint.keys()
    expect(not missing, f"{path} has no {missing}")
    kept = {"config": SharedKeys(checkpoint["config"]), "model": dict(checkpoint["model"])}
    return SharedKeys(checkpoint | kept)


def read_sharded_checkpoint(folder: Path) -> SharedKeys:
    plain = stable(json.loads((folder / "checkpoint.json").read_text()))
    missing = CHECKPOINT_KEYS - {"model", "optimizer"} - plain.keys()
    expect(not missing, f"{folder} has no {missing}")
    files = sorted(path for path in folder.iterdir() if path.suffix == ".safetensors")
    expect(set(plain.pop("files")) >= {path.name for path in files}, f"{folder} hides a file")
    tensors = {path.name: dict(sorted(load_file(path).items())) for path in files}
    return SharedKeys(plain | {"config": SharedKeys(plain["config"]), "tensors": tensors})


def complete_checkpoint(path: Path, like: Path) -> None:
    """Give a checkpoint the values that it lacks and `like` has."""
    if path.is_dir():
        path = path / "checkpoint.json"
        like = like / "checkpoint.json"
        values = json.loads(path.read_text())
        path.write_text(json.dumps(json.loads(like.read_text()) | values))
        return
    checkpoint = torch.load(path, weights_only=True)
    expected = torch.load(like, weights_only=True)
    if expected.keys() - checkpoint.keys():
        torch.save(expected | checkpoint, path)


def read_run(folder: Path) -> dict:
    """Read a run's folder: checkpoints, log, summary, and the names of its files."""
    result = {"files": sorted(path.name for path in folder.glob("[!.]*"))}
    result["config"] = SharedKeys(json.loads((folder / "config.json").read_text()))
    lines = (folder / "log.jsonl").read_text().splitlines()
    result["log"] = [stable(json.loads(line)) for line in lines]
    if (folder / "summary.json").exists():
        result["summary"] = stable(json.loads((folder / "summary.json").read_text()))
    for path in sorted(folder.glob("*.pt")):
        result[path.name] = read_checkpoint(path)
    return result


def read_data(folder: Path) -> dict:
    """Read a prepared folder: every shard byte for byte, and what its JSON files say."""
    expect((folder / "meta.json").exists(), f"{folder} was not prepared")
    result = {"files": sorted(path.name for path in folder.glob("[!.]*"))}
    for path in sorted(folder.glob("[!.]*")):
        if path.suffix == ".json":
            result[path.name] = json.loads(path.read_text())
        elif path.suffix == ".bin":
            result[path.name] = path.read_bytes()
    if "report.json" in result:
        report = result["report.json"]
        result["report.json"] = {key: report[key] for key in report if key not in PROSE}
    return result


def read_model(path: Path) -> dict:
    """Read a checkpoint's tensors alone."""
    checkpoint = read_checkpoint(path)
    return {key: checkpoint[key] for key in ("model", "optimizer")}
