"""Files as chunks of bytes, decompressed where they are compressed."""

import gzip
from functools import partial

CHUNK = 2**20  # bytes


def read_chunks(path):
    """Yield (bytes of the content, position in the file), a little at a time; b"" is the end.

    gzip and Zstandard are recognised by the first bytes of the file. A fault raises OSError,
    EOFError, or an error of zlib or zstandard, after the content before it and the b"".
    """
    try:
        with open(path, "rb") as file:
            for chunk in decompress(file):
                if chunk:
                    yield chunk, file.tell()
    except Exception:
        yield b"", 0
        raise
    yield b"", 0


def decompress(file):
    """Return an iterator of the content of an open file."""
    magic = file.read(4)
    file.seek(0)
    if magic[:2] == b"\x1f\x8b":
        # read1 returns what it has: read would lose it at a fault.
        return iter(partial(gzip.GzipFile(fileobj=file).read1, CHUNK), b"")
    if magic == b"\x28\xb5\x2f\xfd" or magic[1:] == b"\x2a\x4d\x18":  # or a skippable frame
        return read_zstandard(file)
    return iter(partial(file.read, CHUNK), b"")


def read_zstandard(file):
    """Yield the content of all frames, one after the other.

    zstandard's stream_reader ends without an error where a file is truncated, so this asks each
    frame whether it is complete.
    """
    import zstandard

    decompressor = zstandard.ZstdDecompressor(max_window_size=2**31)
    frame = decompressor.decompressobj()
    # A few bytes may stand for a thousand times as many.
    while compressed := file.read(512):
        while compressed:
            if frame.eof:
                frame = decompressor.decompressobj()
            yield frame.decompress(compressed)
            compressed = frame.unused_data
    if not frame.eof:
        raise EOFError("the file is truncated")
