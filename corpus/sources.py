"""Where text comes from: which files, in which order, and what is in them.

The order of the files is the order of the documents, so it never depends on the file system.
"""

import hashlib
import sysconfig
import urllib.request
from glob import glob
from pathlib import Path

from console import UserError, replace_file, require, sha256_of_file

SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
# nanoGPT's rules for this text: characters (on ASCII text bytes are characters), the last tenth is validation.
SHAKESPEARE_OPTIONS = {"name": "shakespeare_char", "tokenizer": "byte", "val_fraction": 0.1, "test_fraction": 0.0}
# Folders of Python source that are not what the interpreter's authors wrote for use: tests, copies of other projects.
NOT_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "_vendor", "_vendored", "__pycache__"}


def python_files(include_site_packages: bool) -> list[Path]:
    """The running interpreter's standard library, and with include_site_packages what is installed beside it."""
    paths = sysconfig.get_paths()
    roots = [paths["stdlib"]] + ([paths["purelib"], paths["platlib"]] if include_site_packages else [])
    files = []
    for root in dict.fromkeys(Path(path).resolve() for path in roots):  # purelib and platlib are often one folder
        files += sorted(file for file in root.rglob("*.py") if not NOT_LIBRARY & set(file.relative_to(root).parts[:-1]))
    return files


def text_files(sources: tuple[str, ...]) -> list[Path]:
    """Files, folders (everything below them but hidden files) and globs, as a list of files in a fixed order."""
    files: list[Path] = []
    for source in sources:
        matches = sorted(Path(match) for match in glob(source, recursive=True)) or [Path(source)]
        for path in matches:
            if path.is_dir():
                inside = (file for file in path.rglob("*") if file.is_file())
                files += sorted(f for f in inside if not any(p.startswith(".") for p in f.relative_to(path).parts))
            else:
                told = f"--source={source}: no such file or folder, and nothing matches it as a glob"
                require(path.is_file(), f"{told}. Give python, shakespeare, or paths: files, folders, globs in quotes")
                files.append(path)
    require(files, f"--source={' '.join(sources)}: the folder holds no files")
    return list(dict.fromkeys(files))  # a file named twice is read once


def shakespeare_file(data_root: Path) -> Path:
    """Tiny Shakespeare, downloaded once to data/tinyshakespeare.txt and checked."""
    path = data_root / "tinyshakespeare.txt"
    if not path.is_file() or sha256_of_file(path) != SHAKESPEARE_SHA256:
        print(f"downloading {SHAKESPEARE_URL}")
        try:
            with urllib.request.urlopen(SHAKESPEARE_URL, timeout=30) as response:
                content = response.read()
        except OSError as error:  # URLError and time-outs are OSErrors
            options = " ".join(f"--{key}={value}" for key, value in SHAKESPEARE_OPTIONS.items())
            raise UserError(
                f"tiny Shakespeare could not be downloaded ({error}). With a local copy of nanoGPT's input.txt, type:\n"
                f"  python prepare_data.py --source=PATH/input.txt {options.replace('=0.0', '=0')}"
            ) from None
        same = hashlib.sha256(content).hexdigest() == SHAKESPEARE_SHA256
        require(same, f"{SHAKESPEARE_URL} did not give nanoGPT's text: its SHA-256 is not {SHAKESPEARE_SHA256}")
        data_root.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda file: file.write(content))
    return path


def read_document(path: Path) -> tuple[str, str | None]:
    """(text, why it is left out or changed). Line ends and byte order marks stay as they are: bytes count."""
    content = path.read_bytes()
    if not content:
        return "", "empty"
    if b"\0" in content:
        return "", "binary"
    try:
        return content.decode("utf-8"), None
    except UnicodeDecodeError:
        return content.decode("utf-8", errors="replace"), "invalid UTF-8 replaced"
