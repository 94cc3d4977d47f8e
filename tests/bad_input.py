"""Bad input, made by a seeded generator: options, values, bytes, trees and config files."""

import dataclasses
import math
import random
import typing
import unicodedata

INTEGERS = [-(2**63), -1, 0, 1, 2, 3, 5, 8, 16, 33, 10**12, 2**63, 10**40]
REALS = list(map(float, "-1 -0 0 1e-300 0.1 0.5 1 1.5 1e9 1e300 inf -inf nan".split()))
WORDS = "None True maybe x é☃ - -- = a=b 0x10 1e3 1,2 [1] {} %s ' ../x nothing/there".split()
WORDS += "FILE: FILE:x gpt2: a:b,c a:1,b:-1 : ,".split()
WORDS += ["", " ", "\n", "x" * 5000, "\udc80"]
VALUES = [None, True, 0, -1, 2**70, 0.5, math.nan, math.inf]
VALUES += ["", "x", "é" * 100, [], [[]], {}, {"a": None}, [1, "2"]]
FLAGS = "-- --x -x --= = --n_layer config/none.py --help=1 é".split() + ["--\udc80=1"]
LINES = [
    "n_layer = {}",
    "max_steps = {}",
    "data = {}",
    "x = {}",
    "_x = {}",
    "out = {}",
    "optimizer = {}",
    "learning_rate = {}",
    "n_layer, n_head = {}",
    "n_layer = n_layer",
    "lambda = {}",
    "assert {}",
    "print({})",
    "raise {}",
    "1 / 0",
    "exit()",
    "import sys; sys.exit({})",
    "import os",
    "import nothing",
    "from model import *",
    "open('nothing')",
    "class A: pass",
    "def f(: pass",
    "def f(): return f()\nf()",
    "(" * 300,
    "0" * 5000,
    "\ttab = {}",
    "from nanoloop.dial import dial\n_d = dial({}, {})",
]

# Unicode's blocks, from the first character to the last: ASCII, Latin, combining marks, Cyrillic,
# Hebrew, Arabic, Devanagari, Thai, Lao, Burmese, Hangul, Khmer, other spaces and invisible signs,
# Chinese and Japanese, Arabic's forms, wide forms, noncharacters, emoji, tags.
SCRIPTS = [
    (0x20, 0x7E),
    (0xA0, 0x17F),
    (0x300, 0x36F),
    (0x400, 0x4FF),
    (0x590, 0x5FF),
    (0x600, 0x6FF),
    (0x900, 0x97F),
    (0xE00, 0xE7F),
    (0xE80, 0xEFF),
    (0x1000, 0x109F),
    (0x1100, 0x11FF),
    (0x1780, 0x17FF),
    (0x2000, 0x206F),
    (0x3000, 0x30FF),
    (0x4E00, 0x9FFF),
    (0xAC00, 0xD7A3),
    (0xFB50, 0xFEFF),
    (0xFF00, 0xFFFF),
    (0x1F300, 0x1FAFF),
    (0xE0000, 0xE01EF),
]
BREAKS = [" ", " ", " ", "\n", "\n\n", "\r\n", "\t", "\0", "\u2028", "\x85", "", "。", ". ", "…"]


def cases(count: int, name: str) -> list[random.Random]:
    """Make a generator for each case: what a case does follows from its name and number."""
    return [random.Random(f"{name} {number}") for number in range(count)]


def value_for(rng: random.Random, kind) -> str:
    """Choose a value for an option: mostly of its type, sometimes of another or of none."""
    pools = {int: INTEGERS, float: REALS, bool: [True, False], str: WORDS, type(None): [None]}
    if rng.random() < 0.25:
        return str(rng.choice(INTEGERS + REALS + WORDS + [True, False, None]))
    pool = []
    for part in typing.get_args(kind) or [kind]:
        literal = part if isinstance(part, str) else "x"
        pool += pools.get(part, [literal])
    return str(rng.choice(pool))


def option_types(cls: type, *left_out: str) -> dict:
    types = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    return {name: types[name] for name in names if name not in left_out}


def random_flags(rng: random.Random, types: dict) -> list[str]:
    """Choose one to three options and a value for each, and now and then no option at all."""
    count = min(rng.choice([1, 1, 1, 2, 3]), len(types))
    names = rng.sample(sorted(types), count)
    flags = [f"--{name}={value_for(rng, types[name])}" for name in names]
    if rng.random() < 0.1:
        flags.append(rng.choice(FLAGS))
    return flags


def random_text(rng: random.Random) -> str:
    """Write words of one to three scripts, with marks and breaks where no writer has them."""
    scripts = rng.sample(SCRIPTS, rng.randint(1, 3))
    words = []
    for _ in range(rng.choice([0, 1, 5, 20, 100])):
        script = rng.choice(scripts)
        words += [chr(rng.randint(*script)) for _ in range(rng.randint(1, 8))]
        words.append(rng.choice(BREAKS))
    return "".join(words) * rng.choice([1, 1, 1, 5])


def disguised(rng: random.Random, text: str) -> str:
    """Write a text in another form of Unicode, and with other spaces."""
    form = rng.choice(["NFC", "NFD", "NFKC", "NFKD"])
    return unicodedata.normalize(form, text).replace(" ", rng.choice([" ", "\xa0", "  ", "\u3000"]))


def random_config_file(rng: random.Random) -> bytes:
    lines = []
    for _ in range(rng.randint(1, 3)):
        value = rng.choice(VALUES + INTEGERS + WORDS[:20])
        lines.append(rng.choice(LINES).replace("{}", repr(value)))
    content = "\n".join(lines).encode(errors="surrogatepass")
    return mutated(rng, content) if rng.random() < 0.4 else content


def mutated(rng: random.Random, content: bytes) -> bytes:
    """Cut, flip, insert, delete or repeat bytes, or give others altogether."""
    content = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 5])):
        start = rng.randrange(len(content) + 1)
        end = start + rng.randrange(1, 40)
        change = rng.choice(["cut", "flip", "insert", "delete", "repeat", "replace"])
        if change == "cut":
            del content[start:]
        elif change == "flip" and start < len(content):
            content[start] ^= 1 << rng.randrange(8)
        elif change == "insert":
            content[start:start] = rng.randbytes(end - start)
        elif change == "delete":
            del content[start:end]
        elif change == "repeat":
            content[start:start] = content[max(0, start - 100) : start]
        elif rng.random() < 0.2:
            content = bytearray(rng.randbytes(rng.randrange(200)))
    return bytes(content)


def changed(rng: random.Random, tree):
    """Exchange, drop or add one part of a tree of dictionaries and lists."""
    if not (isinstance(tree, dict | list) and tree and rng.random() < 0.85):
        return rng.choice(VALUES)
    copy = tree.copy()
    key = rng.choice(list(tree) if isinstance(tree, dict) else range(len(tree)))
    change = rng.random()
    if change < 0.15:
        del copy[key]
    elif change < 0.25 and isinstance(copy, dict):
        copy[rng.choice(["x", "", 1])] = rng.choice(VALUES)
    else:
        copy[key] = changed(rng, tree[key])
    return copy
