"""Files that are never half written: atomic replacement, locks, checksums."""

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path

from filelock import FileLock, Timeout

from nanoloop.options import UserError, print_safely


def replace_file(path: Path, write, keep_old: Path | None = None) -> None:
    """Write a file completely or not at all: temporary name, sync, rename.

    write: called with the open binary file. keep_old: the new name of the file it replaces.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if keep_old and path.exists():
            os.replace(path, keep_old)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_if_possible(path: Path, write, keep_old: Path | None = None) -> bool:
    """Call `replace_file`; on a full or failing disk warn and return False.

    For what is written again later. The existing file stays as it is.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)  # the user may have deleted it
        replace_file(path, write, keep_old)
    except Exception as error:
        # torch raises an error of its own on top of the disk's.
        reason = error if isinstance(error, OSError) else error.__context__
        if not isinstance(reason, OSError):
            raise
        print_safely(
            f"warning: '{path}' was NOT written ({reason.strerror}); an earlier one stays intact. "
            "Make room on the disk: the next save tries again"
        )
        return False
    return True


@contextlib.contextmanager
def locked(path: Path, message: str):
    """Hold a lock on the file `path`. Raises UserError(message) where another process holds it.

    The system releases the lock when the process ends, however it ends. Folders that exist only
    for the lock are removed.
    """
    missing = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        # It also waits where no file can be made, such as in /proc.
        unwritable = f"'{path.parent}' cannot be written: check that path and its permissions"
        raise UserError(message if path.exists() else unwritable) from None
    except OSError:
        pass  # a file system without locks
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
            for folder in missing:
                folder.rmdir()
        lock.release()


def write_json(path: Path, value) -> None:
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    # The name of a file may be no valid UTF-8: write such bytes as JSON's escapes.
    content = text.encode("utf-8", errors="backslashreplace")
    replace_file(path, lambda file: file.write(content))


def sha256_of_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with its contents, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def link_or_copy(path: Path, target: Path) -> None:
    try:
        os.link(path, target)
    except OSError:  # another disk, or a file system without links
        shutil.copyfile(path, target)
