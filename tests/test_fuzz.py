"""Bad input by the hundred: whatever stands on the command line, in a config file, in a shard, a checkpoint or a text, the
program does its work or says in words why not. No traceback, and no file of the user's is changed.

    NANOLOOP_FUZZ=10 python -m pytest -q tests/test_fuzz.py     # ten times as many cases, others than before

A case is a number: what it does follows from its seed, so that a failure can be had again. Cases run in this process.
"""

import contextlib
import dataclasses
import gzip
import hashlib
import io
import json
import math
import os
import random
import shutil
import signal
import sys
import traceback
import typing
from pathlib import Path

import checkpoint
import console
import pytest
import torch

import bench
import prepare_data
import research.__main__
import sample
import train
from tests.conftest import make_documents

TIMES = int(os.environ.get("NANOLOOP_FUZZ", "1"))
SMALL = (
    "--block_size=16 --n_layer=1 --n_head=2 --n_embd=8 --value_embeds=1 --batch_tokens=64 --max_steps=2 --device=cpu "
    "--dtype=float32 --compile=False --prepare=None"
).split()
NUMBERS = [-(2**63), -1, 0, 1, 2, 3, 5, 8, 16, 33, 10**12, 2**63, 10**40]
REALS = [-1.0, -0.0, 0.0, 1e-300, 0.1, 0.5, 1.0, 1.5, 1e9, 1e300, math.inf, -math.inf, math.nan]
WORDS = [
    "",
    " ",
    "None",
    "True",
    "maybe",
    "x",
    "é☃",
    "-",
    "--",
    "=",
    "a=b",
    "0x10",
    "1e3",
    "1,2",
    "[1]",
    "{}",
    "\n",
    "%s",
    "'",
    "../x",
    "nothing/there",
    "x" * 5000,
    "FILE:",
    "FILE:x",
    "gpt2:",
    "a:b,c",
    "a:1,b:-1",
    ":",
    ",",
    "\udc80",
]
VALUES = [
    None,
    True,
    0,
    -1,
    2**70,
    0.5,
    math.nan,
    math.inf,
    "",
    "x",
    "é" * 100,
    [],
    [[]],
    {},
    {"a": None},
    [1, "2"],
]


class Late(Exception):
    pass


class Soon(list):
    """Signals that come after two steps: training options may ask for more of them than there is time."""

    looks = 0

    def __bool__(self):
        self.looks += 1
        return self.looks > 2


@pytest.fixture
def place(tmp_path, monkeypatch, data_dir):
    """A working directory with a text, prepared data and a finished run: what a user has to lose."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "catch_signals", Soon)
    monkeypatch.setattr(console.Log, "draw", lambda self: None)  # takes longer than all the rest
    monkeypatch.setattr(os, "fsync", lambda file: None)
    shutil.copytree(data_dir, "data/words")
    Path("text.txt").write_text("".join(make_documents(3)))
    code, told = run(train.main, *SMALL, "--data=data/words", "--out=out/run")
    assert code == 0, told
    return tmp_path


def run(main, *argv: str, stdin: str = "") -> tuple[int, str]:
    """(exit code, all that was printed) of a program run in this process; -1 for a traceback, -2 for too late."""

    def late(*_):
        raise Late

    printed, signals = io.StringIO(), signal.signal(signal.SIGALRM, late)
    before = sys.argv, sys.stdin, os.umask(0o022), signal.getsignal(signal.SIGINT)
    sys.argv, sys.stdin = ["program", *argv], io.StringIO(stdin)
    signal.setitimer(signal.ITIMER_REAL, 20)
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            console.run_command(main)
    except SystemExit as exit:
        code = exit.code or 0
    except Late:
        code = -2
    except BaseException:
        code = -1
        printed.write(traceback.format_exc())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signals)
        sys.argv, sys.stdin = before[:2]
        os.umask(before[2])
        signal.signal(signal.SIGINT, before[3])
    return code, printed.getvalue()


def fingerprints(*folders: str) -> dict[str, str]:
    paths = [
        path
        for folder in folders
        for path in [Path(folder), *Path(folder).rglob("*")]
        if path.is_file()
    ]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def check(case, code: int, told: str) -> None:
    assert code in (0, 2, 75), f"{case}: exit code {code}\n{told[-3000:]}"
    assert "Traceback" not in told, f"{case}\n{told[-3000:]}"
    assert code != 2 or told.strip(), f"{case}: not a word"


def cases(count: int, name: str) -> list[random.Random]:
    first = count * (TIMES - 1) if TIMES > 1 else 0
    return [random.Random(f"{name} {first + number}") for number in range(count * TIMES)]


# ---------------------------------------------------------------------------------------------------------------------
# Options


def any_value(rng: random.Random, kind) -> str:
    """For an option of this type: mostly a value of it, sometimes of another, sometimes nothing that is a value."""
    kinds = [part for part in typing.get_args(kind) or [kind]]
    pools = {int: NUMBERS, float: REALS, bool: [True, False], str: WORDS, type(None): [None]}
    pool = [
        value
        for part in kinds
        for value in pools.get(part, [part if isinstance(part, str) else "x"])
    ]
    if rng.random() < 0.25:
        pool = NUMBERS + REALS + WORDS + [True, False, None]
    return str(rng.choice(pool))


def options_of(cls, leave_out: str) -> dict:
    types = typing.get_type_hints(cls)
    return {
        field.name: types[field.name]
        for field in dataclasses.fields(cls)
        if field.name not in leave_out.split()
    }


# Left out: what needs a network, minutes, a GPU, or is not of this program.
PROGRAMS = {
    "train": (
        train.main,
        options_of(train.TrainConfig, "wandb compile prepare"),
        [*SMALL, "--data=data/words"],
    ),
    "sample": (
        sample.main,
        options_of(sample.SampleConfig, "run num_samples"),
        ["out/run", "--device=cpu", "--dtype=float32", "--max_new_tokens=3"],
    ),
    "prepare_data": (
        prepare_data.main,
        options_of(prepare_data.PrepareConfig, "workers source claude_model languages"),
        ["--source=text.txt", "--name=new", "--tokenizer=byte"],
    ),
    "bench": (bench.main, options_of(bench.BenchConfig, "wandb"), [*SMALL, "--data=data/words"]),
}


@pytest.mark.parametrize(
    "program, count", [("train", 60), ("sample", 30), ("prepare_data", 50), ("bench", 30)]
)
def test_any_options(place, monkeypatch, program, count):
    def measured(*args):
        raise console.UserError("here it would begin to measure")

    monkeypatch.setattr(bench, "alternate", measured)
    main, options, base = PROGRAMS[program]
    late = 0
    for number, rng in enumerate(cases(count, program)):
        names = rng.sample(sorted(options), rng.choice([1, 1, 1, 2, 3]))
        flags = [f"--{name}={any_value(rng, options[name])}" for name in names]
        if rng.random() < 0.1:
            flags.append(
                rng.choice(
                    [
                        "--",
                        "--x",
                        "-x",
                        "--=",
                        "=",
                        "--n_layer",
                        "config/none.py",
                        "--help=1",
                        "é",
                        "--\udc80=1",
                    ]
                )
            )
        before = fingerprints("text.txt", "data/words", "out/run")
        code, told = run(main, *base, *flags)
        if code == -2:  # a hundred million steps within a step are a wish like any other
            late += 1
            continue
        check(f"{program} {flags}", code, told)
        free = {"--resume=True", "--overwrite=True"} & set(flags)
        assert free or fingerprints("text.txt", "data/words", "out/run") == before, (
            f"changed by {program} {flags}"
        )
        for path in [*Path("out").glob("*"), *Path("data").glob("*"), Path("x"), Path("é☃")]:
            if path.is_dir() and path.name not in ("run", "words"):
                shutil.rmtree(path)
    assert late <= max(1, count * TIMES // 50)


@pytest.mark.parametrize("command", list(research.__main__.COMMANDS))
def test_any_options_of_the_referee(place, monkeypatch, command):
    """What it reads, and what it says of it; that a trial is safe from its change is shown elsewhere."""
    _, options = research.__main__.COMMANDS[command]
    monkeypatch.setitem(research.__main__.COMMANDS, command, (lambda chosen: 0, options))
    names = options_of(options, "")
    for rng in cases(12, command):
        flags = [f"--{name}={any_value(rng, names[name])}" for name in rng.sample(sorted(names), 2)]
        check(f"research {command} {flags}", *run(research.__main__.main, command, *flags))


# ---------------------------------------------------------------------------------------------------------------------
# Contents of files


def mutated(rng: random.Random, content: bytes) -> bytes:
    """Bytes like these: cut, flipped, doubled, overwritten, or others altogether."""
    content = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 5])):
        place = rng.randrange(len(content) + 1)
        way = rng.randrange(6)
        if way == 0:
            del content[place:]
        elif way == 1 and place < len(content):
            content[place] ^= 1 << rng.randrange(8)
        elif way == 2:
            content[place:place] = rng.randbytes(rng.randrange(1, 40))
        elif way == 3:
            content[place : place + rng.randrange(1, 40)] = b""
        elif way == 4:
            content[place:place] = content[max(0, place - 100) : place]
        elif rng.random() < 0.2:
            content = bytearray(rng.randbytes(rng.randrange(200)))
    return bytes(content)


def changed(rng: random.Random, value):
    """A tree of dictionaries and lists with one of its parts exchanged, dropped or added."""
    if isinstance(value, (dict, list)) and value and rng.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key, copy = rng.choice(keys), value.copy()
        if rng.random() < 0.15:
            del copy[key]
        elif rng.random() < 0.1 and isinstance(copy, dict):
            copy[rng.choice(["x", "", 1])] = rng.choice(VALUES)
        else:
            copy[key] = changed(rng, value[key])
        return copy
    return rng.choice(VALUES)


SENTENCES = [
    "n_layer = {}",
    "max_steps = {}",
    "data = {}",
    "x = {}",
    "_x = {}",
    "import nothing",
    "raise {}",
    "1 / 0",
    "def f(: pass",
    "(" * 300,
    "n_layer = n_layer",
    "import os",
    "def f(): return f()\nf()",
    "import sys; sys.exit({})",
    "0" * 5000,
    "class A: pass",
    "out = {}",
    "_d = dial({}, {})",
    "learning_rate = {}",
    "from model import *",
    "\ttab = {}",
    "exit()",
    "n_layer, n_head = {}",
    "lambda = {}",
    "optimizer = {}",
    "assert {}",
    "print({})",
    "open('nothing')",
]


def test_any_config_file(place):
    for number, rng in enumerate(cases(80, "config")):
        lines = [
            rng.choice(SENTENCES).replace("{}", repr(rng.choice(VALUES + NUMBERS + WORDS[:20])))
            for _ in range(rng.randint(1, 3))
        ]
        content = "\n".join(lines).encode(errors="surrogatepass")
        content = mutated(rng, content) if rng.random() < 0.4 else content
        Path("recipe.py").write_bytes(content)
        before = fingerprints("text.txt", "data/words", "out/run")
        code, told = run(
            train.main, "recipe.py", *SMALL, "--data=data/words", f"--out=out/{number}"
        )
        if code == -1 and b"Interrupt" in content:
            continue
        check(content, code, told)
        assert fingerprints("text.txt", "data/words", "out/run") == before, content


@pytest.mark.parametrize(
    "name, count",
    [("meta.json", 25), ("tokenizer.json", 25), ("train_000000.bin", 20), ("val_000000.bin", 10)],
)
def test_any_data_folder(place, name, count):
    good = Path("data/words", name).read_bytes()
    shutil.copytree("data/words", "data/bad")
    for rng in cases(count, name):
        if name.endswith(".json") and rng.random() < 0.7:
            content = json.dumps(changed(rng, json.loads(good))).encode()
        else:
            content = mutated(rng, good)
        Path("data/bad", name).write_bytes(content)
        before = fingerprints("data", "out/run")
        code, told = run(train.main, *SMALL, "--data=data/bad", "--out=out/new", "--overwrite=True")
        check(content[:300], code, told)
        assert fingerprints("data", "out/run") == before
        assert code != 2 or "data/bad" in told, told


def test_any_checkpoint(place):
    """Its bytes, or one of its values, are others; it is sampled from, resumed and fine-tuned."""
    path = Path("out/run/last.pt")
    good, whole, previous = (
        path.read_bytes(),
        checkpoint.load_checkpoint(path),
        Path("out/run").glob("*"),
    )
    others = {other: other.read_bytes() for other in previous if other.name != "last.pt"}
    ways = [
        (sample.main, ["out/bad/last.pt", "--device=cpu", "--dtype=float32", "--max_new_tokens=3"]),
        (
            train.main,
            [*SMALL, "--data=data/words", "--out=out/bad", "--resume=True", "--max_steps=3"],
        ),
        (
            train.main,
            [
                *SMALL,
                "--data=data/words",
                "--out=out/new",
                "--init_from=out/bad",
                "--overwrite=True",
            ],
        ),
    ]
    for rng in cases(50, "checkpoint"):
        shutil.rmtree("out/bad", ignore_errors=True)
        Path("out/bad").mkdir()
        for other, content in others.items():
            Path("out/bad", other.name).write_bytes(content)
        if rng.random() < 0.75:
            torch.save(exchanged := changed(rng, whole), "out/bad/last.pt")
            told_of = [
                key
                for key in whole
                if not isinstance(exchanged, dict) or exchanged.get(key) is not whole[key]
            ]
        else:
            Path("out/bad/last.pt").write_bytes(mutated(rng, good))
            told_of = "bytes"
        before = fingerprints("text.txt", "data/words", "out/run")
        main, flags = rng.choice(ways)
        code, told = run(main, *flags)
        check(f"{told_of} {flags[-2:]}", code, told)
        assert fingerprints("text.txt", "data/words", "out/run") == before


def texts() -> dict[str, bytes]:
    import pyarrow
    import pyarrow.parquet
    import zstandard

    documents, file = make_documents(20), io.BytesIO()
    table = pyarrow.table({"text": documents, "n": list(range(20))})
    pyarrow.parquet.write_table(table, file)
    stream = io.BytesIO()
    with pyarrow.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    lines = "".join(
        json.dumps({"text": text, "split": "val"}) + "\n" for text in documents
    ).encode()
    plain = "".join(documents).encode()
    return {
        "a.txt": plain,
        "b.jsonl": lines,
        "c.parquet": file.getvalue(),
        "d.arrow": stream.getvalue(),
        "e.txt.gz": gzip.compress(plain),
        "f.jsonl.zst": zstandard.compress(lines),
        "g.json": lines,
        "train.bin": bytes(3000),
        "h.bin": Path("data/words/val_000000.bin").read_bytes(),
        "i": plain,
    }


def test_any_text(place):
    good = texts()
    for number, rng in enumerate(cases(60, "text")):
        shutil.rmtree("texts", ignore_errors=True)
        Path("texts").mkdir()
        for name in rng.sample(sorted(good), rng.choice([1, 1, 2])):
            content = mutated(rng, good[name])
            if rng.random() < 0.2:  # a line that is JSON, but not what is expected
                content += (
                    json.dumps(rng.choice([*VALUES, {"text": rng.choice(VALUES)}])).encode() + b"\n"
                )
            Path("texts", name).write_bytes(content)
        flags = rng.sample(
            [
                "--strict=True",
                "--text_key=text",
                "--text_key=n",
                "--duplicates=near",
                "--quality=gopher,c4",
                "--max_bytes=99",
                "--shuffle_buffer=3",
                "--overwrite=True",
            ],
            rng.randrange(3),
        )
        tokenizer = rng.choice(["byte", "byte", "bpe:260"])
        before = fingerprints("texts", "text.txt", "data/words", "out")
        argv = [
            "--source=texts",
            "--name=new",
            f"--tokenizer={tokenizer}",
            "--val_fraction=0.2",
            *flags,
        ]
        code, told = run(prepare_data.main, *argv)
        check(f"text {number} {flags} {os.listdir('texts')}", code, told)
        assert fingerprints("texts", "text.txt", "data/words", "out") == before
        if code == 0:
            prepare_data.Data("data/new")
        shutil.rmtree("data/new", ignore_errors=True)
        shutil.rmtree("data/new.partial", ignore_errors=True)


def test_any_prompt(place):
    for rng in cases(20, "prompt"):
        Path("prompt.txt").write_bytes(mutated(rng, "once upon a time é☃".encode()))
        prompt = rng.choice(
            ["--prompt=FILE:prompt.txt", "--prompt=-", f"--prompt={rng.choice(WORDS)}"]
        )
        argv = ["out/run", "--device=cpu", "--dtype=float32", "--max_new_tokens=2", prompt]
        check(prompt, *run(sample.main, *argv, stdin=rng.choice(WORDS)))
