"""What a run can see of the data: the training split, and no text that was held out."""

import glob
import hashlib
import marshal
import sysconfig
from pathlib import Path

from corpus.documents import split_of
from corpus.sources import python_files
from nanoloop.data import Data
from nanoloop.files import link_or_copy, write_json

LIBRARY_FOLDERS = ("/usr/lib", "/usr/lib64", "/usr/local/lib")


def training_data(data: Data, folder: Path) -> None:
    """Make a data folder with the training split alone: the same shards, the same batches."""
    folder.mkdir()
    shards = [row for row in data.meta["shards"] if row["split"] == "train"]
    for row in shards:
        link_or_copy(data.folder / row["file"], folder / row["file"])
    write_json(folder / "tokenizer.json", data.tokenizer.to_json())
    meta = {
        "fingerprint": data.meta["fingerprint"],
        "tokenizer": data.meta["tokenizer"],
        "shards": shards,
        "splits": {"train": data.meta["splits"]["train"]},
    }
    write_json(folder / "meta.json", meta)


def library_covers(data: Data, folder: Path) -> list[tuple[Path, Path]]:
    """Cover the held-out files of the interpreter's library, if that is the text.

    Returns pairs (cover, path). A cover works like its file but holds bytecode without comments and
    docstrings instead of the text. Other versions of Python are covered by an empty folder.
    """
    plan = data.meta.get("prepared_from", {})
    if plan.get("source") != ["python"]:
        return []
    empty_folder = folder / "other"
    empty_folder.mkdir(parents=True)
    empty_file = folder / "empty"
    empty_file.touch()
    covers = []
    for number, file in enumerate(python_files(plan["include_site_packages"])):
        text = file.read_bytes().decode("utf-8", errors="replace")
        digest = hashlib.sha256(text.encode("utf-8")).digest()
        split = split_of(digest, plan["val_fraction"], plan["test_fraction"])
        if text and split != "train":
            code = marshal.dumps(compile(text, str(file), "exec", optimize=2, dont_inherit=True))
            cover = folder / f"{number}.py"
            cover.write_text(f"import marshal\nexec(marshal.loads({code!r}))\n")
            covers.append((cover, file))
            cached = f"__pycache__/{glob.escape(file.stem)}.*.pyc"
            covers += [(empty_file, path) for path in file.parent.glob(cached)]
    library = Path(sysconfig.get_paths()["stdlib"]).resolve()
    for parent in LIBRARY_FOLDERS:
        for path in Path(parent).glob("python3*"):
            if not library.is_relative_to(path) and not path.is_symlink():
                covers.append((empty_folder, path))
    return covers
