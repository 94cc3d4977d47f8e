"""Where text comes from: the files that --source names, in the order of reading.

Sources are files, folders, the standard library, the Hugging Face hub, standard input, synthetic
tasks and prepared answers. reading.py reads what is found here.
"""

import hashlib
import shutil
import sys
import sysconfig
import urllib.request
from dataclasses import dataclass
from glob import glob
from pathlib import Path

import numpy as np

from nanoloop.data import FORMATS
from nanoloop.files import replace_file, sha256_of_file
from nanoloop.options import UserError, require

SHAKESPEARE_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
# nanoGPT's options for this text: its characters are bytes, and the last tenth is validation.
SHAKESPEARE_OPTIONS = {
    "name": "shakespeare_char",
    "tokenizer": "byte",
    "val_fraction": 0.1,
    "test_fraction": 0,
}
# Folders with Python source that is no library: tests, and copies of other projects.
NOT_LIBRARY = set(
    "test tests idle_test site-packages dist-packages _vendor _vendored __pycache__".split()
)
TABLES = ("parquet", "arrow")


@dataclass
class Unit:
    """Something to read from its beginning to its end.

    kind: text, jsonl, parquet, arrow, hf, synthetic, claude or tokens. source: its name in the
    report. size: bytes on disk. cuts: where a single text is split by position, in bytes: the end
    of train and the end of test. answers: the path of the answers file, for the kind claude.
    """

    kind: str
    path: str
    source: str
    size: int = 0
    cuts: tuple = ()
    answers: Path | None = None


# --------------------------------------------------------------------------------------------------
# From --source to units. The order of the files never depends on the file system.


def find_units(config, data_root: Path, name: str) -> list[Unit]:
    """Return what --source asks for, in the order of reading. Raises UserError.

    config: a PrepareConfig. name: of the prepared folder.
    """
    units = {}  # by path: a file that is named twice is read once
    for source in config.source:
        kind, _, rest = source.partition(":")
        ready = token_files(source)
        if kind in ("hf", "synthetic", "claude") and rest:
            answers = data_root / f"{name}.claude.jsonl"
            units[source] = Unit(kind, rest, source, answers=answers)
            continue
        if ready:
            files = dict.fromkeys(ready, source)
        elif source == "python":
            files = python_files(config.include_site_packages)
        elif source == "shakespeare":
            files = {download_shakespeare(data_root): source}
        elif source == "-":
            files = {save_standard_input(data_root, config.name or "stdin"): source}
        else:
            files = text_files(source)
        for file, label in files.items():
            kind = "tokens" if ready else kind_of(file, config.text_key)
            size = file.stat().st_size if file.exists() else 0  # a link can point nowhere
            units.setdefault(str(file), Unit(kind, str(file), label, size))
    return list(units.values())


def kind_of(file, text_key):
    suffix = Path(file.name.removesuffix(".gz").removesuffix(".zst")).suffix[1:]
    if suffix in ("json", "stdin") and text_key:
        return "jsonl"
    return suffix if suffix in ("jsonl", *TABLES) else "text"


def python_files(include_site_packages):
    """Return the files of the standard library, each with the name of its package.

    include_site_packages: those of the installed packages too.
    """
    names = ["stdlib"]
    if include_site_packages:
        names += ["purelib", "platlib"]
    files = {}
    for name in names:
        root = Path(sysconfig.get_path(name)).resolve()
        for file in sorted(root.rglob("*.py")):
            *folders, _ = file.relative_to(root).parts
            if not NOT_LIBRARY & set(folders):
                files[file] = [*folders, root.name][0]
    return files


def text_files(source):
    """Return the files of a path, a folder or a glob, each with its topmost folder.

    Hidden files are left out. Tables stand alone: the other files beside them describe them.
    """
    files = {}
    for path in sorted(map(Path, glob(source, recursive=True))) or [Path(source)]:
        hint = "give python, shakespeare, hf:NAME, synthetic:TASKS, - or paths (quote a glob)"
        require(path.exists(), f"--source={source} does not exist: {hint}")
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            parts = file.relative_to(path).parts
            is_hidden = any(part.startswith(".") for part in parts)
            if not is_hidden and (file.is_file() or file.is_symlink()):
                files[file] = parts[0] if len(parts) > 1 else source
    require(files, f"--source={source} is a folder without files")
    tables = {file: label for file, label in files.items() if file.suffix[1:] in TABLES}
    return tables or files


def token_files(source):
    """Return files of ready tokens: llm.c's shards, and nanoGPT's train.bin and val.bin."""
    files = []
    for path in map(Path, sorted(glob(source, recursive=True))):
        files += sorted(path.glob("*.bin")) if path.is_dir() else [path]
    return [
        file
        for file in files
        if file.suffix == ".bin" and (file.stem in ("train", "val") or has_magic(file))
    ]


def has_magic(path):
    """Say whether a file begins as llm.c's shards do."""
    return np.fromfile(path, dtype="<i4", count=1).tolist() in [[magic] for magic, _ in FORMATS]


def download_shakespeare(data_root):
    """Return the path of tiny Shakespeare, downloaded once. Raises UserError."""
    path = data_root / "tinyshakespeare.txt"
    if path.is_file() and sha256_of_file(path) == SHAKESPEARE_SHA256:
        return path
    print(f"downloading {SHAKESPEARE_URL}")
    try:
        with urllib.request.urlopen(SHAKESPEARE_URL, timeout=30) as response:
            content = response.read()
    except OSError as error:
        flags = " ".join(f"--{key}={value}" for key, value in SHAKESPEARE_OPTIONS.items())
        raise UserError(
            f"{SHAKESPEARE_URL} could not be downloaded ({error}). With a copy of nanoGPT's "
            f"input.txt, type:\n  python prepare_data.py --source=PATH/input.txt {flags}"
        ) from None
    is_same = hashlib.sha256(content).hexdigest() == SHAKESPEARE_SHA256
    require(is_same, f"{SHAKESPEARE_URL} changed: its SHA-256 is not {SHAKESPEARE_SHA256}")
    data_root.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda file: file.write(content))
    return path


def save_standard_input(data_root, stem):
    """Copy standard input to a file: it is read twice if a tokenizer is trained on it.

    Each text has its own file name, so that another text is not taken for the first one.
    """
    data_root.mkdir(parents=True, exist_ok=True)
    for old in data_root.glob(f"{stem}.*.stdin"):  # of a process that was killed
        old.unlink()
    path = data_root / f"{stem}.stdin"
    replace_file(path, lambda file: shutil.copyfileobj(sys.stdin.buffer, file, 2**20))
    return path.rename(path.with_suffix(f".{sha256_of_file(path)[:16]}.stdin"))
