"""Downloads and packed files."""

import hashlib
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path

from nanoloop.files import replace_file, sha256_of_file
from nanoloop.options import UserError, require


def download(url: str, sha256: str, path: Path, remedy: str) -> Path:
    """The file behind `url`, fetched once to `path`. Raises UserError if it is not to be had, or is another file."""
    if not path.is_file() or sha256_of_file(path) != sha256:
        print(f"downloading {url}")
        try:
            with urllib.request.urlopen(url, timeout=30) as response:
                content = response.read()
        except OSError as error:  # URLError and time-outs are OSErrors
            raise UserError(f"{url} could not be downloaded ({error}). {remedy}") from None
        same = hashlib.sha256(content).hexdigest() == sha256
        require(same, f"{url} did not give the file that was expected: its SHA-256 is not {sha256}")
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda file: file.write(content))
    return path


def chunks(path: Path) -> Iterator[tuple[bytes, int]]:
    """Yields (bytes of a file, position in the file), unpacked if its first bytes are gzip's or Zstandard's. It is read
    a little at a time, for that may stand for a thousand times as much. Raises OSError, EOFError, zlib's and
    zstandard's errors, after all that was good."""
    with open(path, "rb") as file:
        magic, make, step = file.read(4), None, 2**20
        file.seek(0)
        if magic[:2] == b"\x1f\x8b":
            make, step = lambda: zlib.decompressobj(wbits=31), 4096
        elif magic == b"\x28\xb5\x2f\xfd":
            import zstandard

            make, step = zstandard.ZstdDecompressor().decompressobj, 512
        unpacking = make and make()
        while packed := file.read(step):
            while packed:
                if make and unpacking.eof:  # packed files joined one behind the other are one file
                    unpacking = make()
                if (
                    chunk := unpacking.decompress(packed) if make else packed
                ):  # the decompressor may still be gathering
                    yield chunk, file.tell()
                packed = unpacking.unused_data if make else b""
        if make and not unpacking.eof:
            raise EOFError("the packed file ends too early")
