"""Files that are never half written: atomic replacement, locks, checksums."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from pathlib import Path

from nanoloop.options import UserError


def replace_file(path: Path, write, keep_old: Path | None = None) -> None:
    """Let `write(file)` fill a temporary file, sync it, rename it: `path` is never half written, whatever happens.

    keep_old: a name under which the file that is replaced stays.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if keep_old and path.exists():
            remove(keep_old)
            os.replace(path, keep_old)
        elif path.is_dir():
            shutil.rmtree(path)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def if_possible(path: Path, write, *args) -> bool:
    """write(path, *args), of what will be written again later: where the disk is full or fails it says so, leaves what
    is there as it is, and returns False."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)  # somebody may have deleted it meanwhile
        write(path, *args)
    except Exception as error:  # torch raises an error of its own on top of the disk's
        reason = error if isinstance(error, OSError) else error.__context__
        if not isinstance(reason, OSError):
            raise
        told = (
            f"warning: '{path}' was NOT written ({reason.strerror}); what was saved before is whole"
        )
        print(f"{told}. Make room on the disk: the next save tries again", flush=True)
        return False
    return True


@contextlib.contextmanager
def locked(folder: Path, wanted: bool = True):
    """Keep `folder` for this process. Raises UserError where another has it. The system forgets the lock with the
    process, however that ends; folders that were made for the lock alone do not stay."""
    if not wanted:
        yield
        return
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            told = f"'{folder}' is in use by another run: wait for its end, or type another --out=FOLDER"
            raise UserError(told) from None
        except OSError:
            pass  # a file system without locks
        try:
            yield
        finally:
            if made and [path.name for path in folder.glob("*")] == [".lock"]:
                os.unlink(folder / ".lock")
                with contextlib.suppress(OSError):
                    for path in made:
                        path.rmdir()


def write_json(path: Path, value) -> None:
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    content = text.encode(
        "utf-8", errors="backslashreplace"
    )  # a file name that is no UTF-8, as JSON's own escape
    replace_file(path, lambda file: file.write(content))


def sha256_of_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it, if it is there."""
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def replace_folder(partial: Path, final: Path, keep_old: Path | None = None) -> None:
    """Make the files in `partial` durable and let it take the place of `final`, which is there, old or new, at any
    moment but one between two renames. keep_old: a name under which what is replaced stays."""
    for path in partial.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    old = keep_old or final.with_name(final.name + ".old")
    if final.exists():
        remove(old)
        os.replace(final, old)
    os.replace(partial, final)
    if not keep_old:
        remove(old)


def link_or_copy(path: Path, to: Path) -> None:
    try:
        os.link(path, to)
    except OSError:  # another disk, or a file system without links
        shutil.copyfile(path, to)
