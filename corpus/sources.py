"""Where text comes from: the files that --source names, in the order of reading.

Sources are files, folders, the standard library, the Hugging Face hub, standard input, synthetic
tasks and prepared answers. reading.py reads what is found here.
"""

import hashlib
import json
import os
import re
import shutil
import sys
import sysconfig
import urllib.request
from dataclasses import dataclass, field
from fnmatch import fnmatch
from glob import glob
from pathlib import Path

import numpy as np

from corpus.destination import BESIDE, hidden
from corpus.formats import KEYED, format_of
from nanoloop.data import FORMATS, SPLITS
from nanoloop.files import replace_file, sha256_of_file
from nanoloop.options import UserError, reading, require

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
# What a file or a split is called, and the split it belongs to.
SPLIT_WORDS = {
    "train": "train",
    "test": "test",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
}
# Files that say which others belong to a data set: where the list is, and the name in its rows.
INDEXES = {
    "meta.json": ("shards", "file"),
    "state.json": ("_data_files", "filename"),
    "dataset_dict.json": ("splits", None),
}
# Files that describe tables or ready tokens beside them; the last two are nanoGPT's.
COMPANIONS = ["readme*", "license*", "dataset_info*", "state.json", "cache-*.arrow", "*.lock"]
COMPANIONS_OF = {
    "parquet": COMPANIONS,
    "arrow": COMPANIONS,
    "tokens": [*COMPANIONS, "input.txt", "prepare.py"],
}
HUB_HINT = (
    "With a network, check the name, --hf_config and --hf_split, and run the same command "
    "again. Without one, copy the files from elsewhere (hf download NAME --repo-type=dataset "
    "--local-dir=FOLDER) and type --source=FOLDER; or take --source=python, or your own text"
)


@dataclass
class Unit:
    """Something to read from its beginning to its end.

    kind: text, jsonl, json (values over several lines), csv, parquet, arrow, hf, synthetic, claude
    or tokens. path: for the kind hf, NAME:SPLIT. source: its name in the report. size: bytes on
    disk. cuts: where a single text is split by position, in bytes: the end of train and the end of
    test. answers: the path of the answers file, for the kind claude. split: of all its documents,
    where its data set says so. official: the held-out splits of its data set, to which no hash
    assigns a document. note: why it is not read.
    """

    kind: str
    path: str
    source: str
    size: int = 0
    cuts: tuple = ()
    answers: Path | None = None
    split: str | None = None
    official: set = field(default_factory=set)
    note: str | None = None


# --------------------------------------------------------------------------------------------------
# From --source to units. The order of the files never depends on the file system.


def find_units(config, data_root: Path) -> list[Unit]:
    """Return what --source asks for, in the order of reading. Raises UserError.

    What is found but not read is a unit with a note: the preparation counts it under this reason.
    config: a PrepareConfig with the name of the folder.
    """
    found = []
    seen = {}
    final = data_root / config.name
    for source in config.source:
        kind, _, rest = source.partition(":")
        if source in ("python", "shakespeare") and os.path.exists(source):
            print(f"note: --source={source} is a known text: for your path type ./{source}")
        files = {}
        if kind == "hf" and rest:
            found += hub_units(rest, source, config)
        elif kind in ("synthetic", "claude") and rest:
            answers = final.with_name(f"{final.name}.claude.jsonl")
            found.append(Unit(kind, rest, source, answers=answers))
        elif source == "python":
            files = python_files(config.include_site_packages)
        elif source == "shakespeare":
            files = {download_shakespeare(data_root): source}
        elif source == "-":
            files = {save_standard_input(final): source}
        else:
            found += listed_units(source, config, seen, final)
        found += [file_unit(file, label, config) for file, label in files.items()]
    # A file that is named twice is read once, also if its folder leaves it out.
    units = {(unit.path, unit.answers): unit for unit in [*found, *readable(found)]}
    to_read = readable(units.values())
    kinds = {unit.kind for unit in to_read}
    require(
        not (config.text_key and kinds) or kinds & set(KEYED),
        f"--text_key={config.text_key} names a field of JSON or a column of a table, and "
        f"--source={' '.join(config.source)} has neither: leave --text_key out",
    )
    held_out = [unit.path for unit in to_read if unit.split and unit.kind != "tokens"]
    if held_out:
        print(
            f"official val and test are kept: {len(held_out):,} of the files, such as "
            f"{held_out[0]}. --val_fraction and --test_fraction divide what has none"
        )
    return list(units.values())


def readable(units):
    """Return the units that have no note: those that are read."""
    return [unit for unit in units if unit.note is None]


def file_unit(path, source, config):
    """Return the unit of a file. Raises UserError for nanoGPT's numbered characters."""
    is_tokens = path.suffix == ".bin" and (path.stem in SPLITS or has_magic(path))
    if is_tokens and path.with_name("meta.pkl").exists():
        text = path.with_name("input.txt")
        raise UserError(
            f"{path} numbers the characters of nanoGPT's text: prepare the text itself, "
            f"--source='{text}' --tokenizer=byte --val_fraction=0.1 --test_fraction=0"
        )
    kind, note = ("tokens", None) if is_tokens else format_of(path, config.text_key)
    size = os.path.getsize(path) if os.path.exists(path) else 0  # a link can point nowhere
    return Unit(kind, str(path), source, size, note=note)


# --------------------------------------------------------------------------------------------------
# Files and folders


def listed_units(source, config, seen, final):
    """Return the units of a path, a folder or a pattern, each with its topmost folder.

    seen: as in walk. final: the data folder to write. A path that exists is no pattern, whatever
    characters it has.
    """
    root = Path(os.path.expanduser(source))
    paths = [root]
    if not os.path.exists(root):
        paths = sorted(map(Path, glob(str(root), recursive=True)))
    while not os.path.isdir(root):
        root = root.parent
    hint = "give python, shakespeare, hf:NAME, synthetic:TASKS, - or paths (quote a glob)"
    require(paths, f"--source={source} does not exist: {hint}")
    destination = Path(os.path.realpath(final))  # data/NAME can be a link to another disk
    homes = [os.path.realpath(final.parent), str(destination.parent)]
    n_seen = len(seen)
    units = []
    for path in paths:
        for file, note in walk(path, seen):
            is_kept = BESIDE.fullmatch(file.name) and os.path.realpath(file.parent) in homes
            real = Path(os.path.realpath(file))
            if (is_kept or (real == destination and not note)) and str(file) != source:
                continue  # a killed preparation finds the same files when it resumes
            message = f"'{final}' holds the source {file}: type another --name"
            require(note or not real.is_relative_to(destination), message)
            parts = file.relative_to(root).parts
            label = parts[0] if len(parts) > 1 else source
            unit = Unit("text", str(file), label) if note else file_unit(file, label, config)
            unit.note = note or unit.note
            unit.split = split_in_words("/".join(parts))
            units.append(unit)
    require(units or len(seen) == n_seen, f"--source={source} is a folder without files")
    leave_out_companions(units)
    keep_official_splits(units)
    return units


def walk(path, seen):
    """Yield each file of a path, in order, with why it is not read, or None.

    seen: real paths to the names under which they are listed. What is listed is not listed again,
    so a circle of links ends.
    """
    known = seen.setdefault(os.path.realpath(path), path)
    if known is not path:
        if known != path:
            yield path, "left out: another name of what is read"
        return
    if not os.path.isdir(path):
        # Reading says what is wrong with a link.
        is_file = os.path.isfile(path) or not os.path.exists(path)
        yield path, None if is_file else "left out: neither a file nor a folder"
        return
    try:
        names = os.listdir(path)
    except OSError:
        yield path, "unreadable"
        return
    index, indexed = read_index(path)
    for name in sorted({*names, *indexed}):
        child = path / name
        if index and name in (index.partition("/")[0], ".checked.json", ".checked.json.tmp"):
            continue  # training writes the last two
        if index and name not in indexed:
            yield child, f"left out: not in {index}"
        elif name.startswith("."):
            yield child, "left out: hidden"
        elif is_prepared(child):
            yield child, "left out: a prepared folder"
        else:
            yield from walk(child, seen)


def read_index(folder):
    """Return the index of a data set and the names that it lists.

    The index of a prepared folder, of the library datasets, or of the hub's cache. (None, [])
    without one.
    """
    for index, (key, column) in INDEXES.items():
        try:
            rows = json.loads((folder / index).read_bytes())[key]
            return index, [str(row[column] if column else row) for row in rows]
        except (OSError, ValueError, LookupError, TypeError):
            continue  # a file of this name can be anything
    is_inside = folder.name == "snapshots"
    try:
        commit = ((folder.parent if is_inside else folder) / "refs" / "main").read_text()
    except (OSError, ValueError):
        return None, []
    return "refs/main", [commit.strip() if is_inside else "snapshots"]


def is_prepared(folder):
    """Say whether a folder was prepared, or is being prepared."""
    states = (folder / "meta.json", folder / "progress.json")
    return os.path.isfile(folder / "tokenizer.json") and any(map(os.path.isfile, states))


def leave_out_companions(units):
    """Leave out the files that describe the tables or the ready tokens beside them."""
    kinds = {unit.kind for unit in readable(units)}
    patterns = sum((COMPANIONS_OF.get(kind, []) for kind in kinds), [])
    for unit in units:
        path = Path(unit.path)
        if "tokens" in kinds and path.suffix == ".bin":
            unit.kind = "tokens"  # one with a damaged header is refused by name
        elif any(fnmatch(path.name.lower(), pattern) for pattern in patterns):
            unit.note = unit.note or "left out: describes what is beside it"


def split_in_words(path):
    """Return the split that a path names, by its last such word.

    A word is all of its letters: latest_train.bin is no test.
    """
    words = re.findall("[a-z]+", path.lower())
    splits = [SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS]
    return splits[-1] if splits else None


def keep_official_splits(units):
    """Keep the splits in the names of files where they are those of a data set.

    Some file must be left for training: a hash divides it where an official split is missing. Text
    counts only if every file names a split: test_model.py beside model.py names none.
    """
    files = readable(units)
    tables = [unit for unit in files if unit.kind != "text"]
    splits = {unit.split for unit in tables or files}
    official = splits & {"val", "test"}
    if official == splits or (None in splits and not tables):
        official = set()
    for unit in units:
        is_beside = unit.kind == "text" and tables
        unit.official = set() if is_beside else official
        if unit.split not in unit.official:
            unit.split = None


def hub_units(name, source, config):
    """Return the units of a data set of the Hugging Face hub, one for each split."""
    if config.hf_split:
        return [Unit("hf", f"{name}:{config.hf_split}", source)]
    from datasets import get_dataset_split_names

    with reading(f"--source={source} could not be read", HUB_HINT):
        splits = get_dataset_split_names(name, config.hf_config)
    message = f"{source} has no split 'train': give --hf_split, one of {', '.join(splits)}"
    require("train" in splits, message)
    units = []
    for split in splits:
        unit = Unit("hf", f"{name}:{split}", source, split=SPLIT_WORDS.get(split))
        if unit.split is None:
            unit.note = "left out: a split that --hf_split does not name"
        units.append(unit)
    keep_official_splits(units)
    return units


def default_tokenizer(units):
    """Return the tokenizer of ready tokens, or a new one for text."""
    folders = [Path(unit.path).parent for unit in readable(units) if unit.kind == "tokens"]
    if not folders:
        return "bpe:4096"
    return str(folders[0]) if is_prepared(folders[0]) else "gpt2"


def has_magic(path):
    """Say whether a file begins as llm.c's shards do."""
    try:
        begin = np.fromfile(path, dtype="<i4", count=1).tolist()
    except OSError:
        return False
    return begin in [[magic] for magic, _ in FORMATS]


# --------------------------------------------------------------------------------------------------
# Text that comes with a name


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


def download_shakespeare(data_root):
    """Return the path of tiny Shakespeare, downloaded once. Raises UserError."""
    path = data_root / "tinyshakespeare.txt"
    if path.exists():
        is_same = sha256_of_file(path) == SHAKESPEARE_SHA256
        hint = "move it away, or prepare it by --source=PATH"
        require(is_same, f"'{path}' is another text than {SHAKESPEARE_URL}: {hint}")
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


def save_standard_input(final):
    """Copy standard input to a file: it is read twice if a tokenizer is trained on it.

    Each text has its own hidden name, so that another text is not taken for the first one.
    """
    path = hidden(final, "stdin")
    path.parent.mkdir(parents=True, exist_ok=True)
    digits = "[0-9a-f]" * 16
    for old in path.parent.glob(f"{path.stem}.{digits}.stdin"):  # of a process that was killed
        old.unlink()
    replace_file(path, lambda file: shutil.copyfileobj(sys.stdin.buffer, file, 2**20))
    return path.rename(path.with_suffix(f".{sha256_of_file(path)[:16]}.stdin"))
