"""Files as chunks of bytes: decompressed where they are compressed, and text in UTF-8."""

import bz2
import codecs
import contextlib
import gzip
import lzma
import unicodedata
from functools import partial

CHUNK = 2**20  # bytes
HEAD = 2**18  # bytes of a file that say what it holds
SAMPLE = 2**12  # bytes that say how its text is encoded
# UTF-32's mark begins with UTF-16's.
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
OPENERS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
WIDE = ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")
NO_CHARACTER = ("Cc", "Cn", "Co", "Cs")  # Unicode: control, unassigned, private, half a character


def read_chunks(path, size=None):
    """Yield (bytes of the content, position in the file), a little at a time; b"" is the end.

    Compression is recognised by the first bytes of the file, UTF-16 and UTF-32 by those of the
    text, which becomes UTF-8 without a byte order mark. Other content stays as it is. A fault
    raises OSError, EOFError, UnicodeError, or an error of zlib, lzma or zstandard, after the
    content before it and the b"".
    """
    try:
        with open(path, "rb") as file:
            encoding = encoding_of(first_bytes(decompress(file, SAMPLE), SAMPLE)[:SAMPLE])
            file.seek(0)
            for chunk in recode(decompress(file, size or CHUNK), encoding):
                if chunk:
                    yield chunk, file.tell()
    except Exception:
        yield b"", 0
        raise
    yield b"", 0


def read_head(path):
    """Return about HEAD bytes of the content. A fault ends it."""
    return first_bytes((chunk for chunk, _ in read_chunks(path, HEAD)), HEAD)


def first_bytes(chunks, size):
    head = b""
    with contextlib.suppress(Exception):  # whoever reads on will meet the fault
        while len(head) < size:
            head += next(chunks)
    return head


# --------------------------------------------------------------------------------------------------
# Compression


def decompress(file, size):
    """Return an iterator of the content of an open file, about `size` bytes at a time."""
    magic = file.read(6)
    file.seek(0)
    for beginning, opener in OPENERS.items():
        if magic.startswith(beginning):
            # read1 returns what it has: read would lose it at a fault.
            return iter(partial(opener(file).read1, size), b"")
    if magic.startswith(b"\x28\xb5\x2f\xfd") or magic[1:4] == b"\x2a\x4d\x18":  # skippable
        return read_zstandard(file)
    return iter(partial(file.read, size), b"")


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


# --------------------------------------------------------------------------------------------------
# Encoding


def recode(chunks, encoding):
    """Yield chunks of text as UTF-8. What cannot be decoded becomes invalid UTF-8."""
    if encoding is None:
        yield from chunks
        return
    errors = "surrogateescape" if encoding == "utf-8-sig" else "surrogatepass"
    decoder = codecs.getincrementaldecoder(encoding)(errors)
    for chunk in chunks:
        yield decoder.decode(chunk).encode(errors=errors)
    if decoder.getstate()[0]:  # the end is half a character
        yield b"\xff"


def encoding_of(sample):
    """Return the encoding of a text that is not plain UTF-8; None for anything else.

    A byte order mark decides. Without one, UTF-16 and UTF-32 have many zero bytes, and make
    characters in their encoding. Any two letters of ASCII are a Chinese character of UTF-16, so
    few zeros count only beside other bytes, and from 16 on.
    """
    for mark, encoding in MARKS.items():
        if sample.startswith(mark):
            return encoding
    zeros = sample.count(0)
    is_few = zeros * 4 < len(sample)
    if zeros * 100 < len(sample) or (is_few and (sample.isascii() or zeros < 16)):
        return None
    return next((encoding for encoding in WIDE if is_plain(sample, encoding)), None)


def is_plain(sample, encoding):
    """Say whether nearly all of a sample is characters of an encoding.

    In the wrong order of bytes, ASCII becomes characters that end in a zero byte: few may.
    """
    try:
        text = codecs.getincrementaldecoder(encoding)("surrogatepass").decode(sample)
    except UnicodeDecodeError:
        return False
    n_odd = sum(unicodedata.category(c) in NO_CHARACTER and not c.isspace() for c in text)
    n_turned = sum(ord(c) % 256 == 0 for c in text)
    return n_odd * 50 <= len(text) and n_turned * 4 <= len(text)
