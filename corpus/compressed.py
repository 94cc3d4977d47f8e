"""Files as chunks of bytes: decompressed, and text in UTF-8."""

import bz2
import codecs
import contextlib
import gzip
import lzma
from functools import partial

import regex

CHUNK = 2**20  # bytes
HEAD = 2**18  # bytes of a file that say what it holds
# Byte order marks. UTF-32's begins with UTF-16's.
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
WITHOUT_MARK = ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")
# Characters that no text has: control characters, halves of pairs, codes without a character.
NO_TEXT = regex.compile(r"[[\p{Cc}\p{Cs}\p{Co}\p{Cn}]--[\t\n\f\r\x1b]]", regex.V1)
OPENERS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}


def read_chunks(path, size=None):
    """Yield the content of a file, a little at a time; b"" is the end.

    Compression is recognised by the first bytes of the file. Text in UTF-16 and UTF-32 becomes
    UTF-8, without a mark. Other content stays as it is. A fault raises OSError, EOFError, or an
    error of zlib, lzma or zstandard, after the content before it and the b"".
    """
    try:
        with open(path, "rb") as file:
            encoding = encoding_of(first_bytes(decompress(file, 4096), 4096))
            file.seek(0)
            yield from filter(None, recode(decompress(file, size or CHUNK), encoding))
    except Exception:
        yield b""
        raise
    yield b""


def read_head(path):
    """Return about HEAD bytes of the content. A fault ends it."""
    return first_bytes(read_chunks(path, HEAD), HEAD)


def first_bytes(chunks, size):
    head = b""
    with contextlib.suppress(Exception):  # read_chunks raises it again
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


def encoding_of(beginning):
    """Return the encoding that a byte order mark names, or that zero bytes show.

    UTF-16 and UTF-32 show themselves without a mark. None for UTF-8 and for other content.
    """
    for mark, encoding in MARKS.items():
        if beginning.startswith(mark):
            return encoding
    # The spaces and line ends of UTF-16 have a byte 0, and half of its bytes are odd in UTF-8.
    as_utf8 = beginning.decode(errors="ignore").encode().translate(None, bytes(range(32)))
    if b"\0" not in beginning or len(as_utf8) > 0.75 * len(beginning):
        return None
    n_ascii = dict.fromkeys(WITHOUT_MARK, 0)
    for encoding in WITHOUT_MARK:
        with contextlib.suppress(UnicodeDecodeError):
            text = codecs.getincrementaldecoder(encoding)().decode(beginning)
            if not NO_TEXT.search(text):
                n_ascii[encoding] = sum(map(str.isascii, text))
    # The wrong order of bytes makes rare characters of the ASCII ones.
    best = max(n_ascii, key=n_ascii.get)
    return best if n_ascii[best] else None
