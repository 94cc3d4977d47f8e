"""Bad input by the thousand, through the programs as a user calls them.

    NANOLOOP_FUZZ=10 python -m pytest -q tests/slow/test_fuzz.py     # ten times as many cases

A program does its work or says in words why not. There is no traceback, and no file of the user
is changed. A case is a number: its seed.
"""

import contextlib
import hashlib
import io
import json
import os
import random
import shutil
import signal
import sys
import traceback
from pathlib import Path
from typing import get_type_hints

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

import bench.__main__ as bench
import prepare_data
import research.__main__ as research
import sample
import train
from nanoloop import checkpoint
from nanoloop.data import Data
from nanoloop.options import StopFlag, UserError, run_program
from tests.bad_input import (
    VALUES,
    WORDS,
    cases,
    changed,
    mutated,
    option_types,
    random_config_file,
    random_flags,
)
from tests.conftest import make_documents
from tests.test_fuzz import (
    assert_read_or_refused,
    curate_any_language,
    good_files,
    read_damaged_files,
)

TIMES = int(os.environ.get("NANOLOOP_FUZZ", "1"))
SMALL = (
    "--block_size=16 --n_layer=1 --n_head=2 --n_embd=8 --value_embeds=1 --batch_tokens=64 "
    "--max_steps=2 --device=cpu --dtype=float32 --compile=False --prepare=None"
).split()
TRAIN = [*SMALL, "--data=data/words"]
SAMPLE = ["--device=cpu", "--dtype=float32", "--max_new_tokens=3"]
MINE = ("text.txt", "data/words", "out/run")  # what the user has to lose


class TooLong(Exception):
    """A case asks for more work than there is time, such as 10**12 steps."""


class SignalAfterThreeSteps(StopFlag):
    """Stops each run after three steps, whatever its options ask for."""

    def listen(self) -> None:
        self.n_taken = 0

    def count(self, optimizer, args, kwargs) -> None:
        self.n_taken += isinstance(optimizer, torch.optim.AdamW)
        self.signal = signal.SIGTERM if self.n_taken >= 3 else None


@pytest.fixture
def folder(tmp_path, monkeypatch, data_dir):
    """Make a working directory with a text, prepared data and a finished run."""
    monkeypatch.chdir(tmp_path)
    stop = SignalAfterThreeSteps()
    hook = register_optimizer_step_post_hook(stop.count)
    monkeypatch.setattr(train, "StopFlag", lambda: stop)
    monkeypatch.setattr(train.RunLog, "draw", lambda self: None)  # takes longer than the rest
    monkeypatch.setattr(os, "fsync", lambda file: None)
    shutil.copytree(data_dir, "data/words")
    Path("text.txt").write_text("".join(make_documents(3)))
    code, printed = run(train.main, *TRAIN, "--out=out/run")
    assert code == 0, printed
    yield tmp_path
    hook.remove()


def run(main, *argv: str, stdin: str = "") -> tuple[int | None, str]:
    """Run a program in this process: its exit code, and all that it printed.

    The code is -1 for a traceback, None for a case that takes too long.
    """

    def end(*arguments) -> None:
        raise TooLong

    printed = io.StringIO()
    before = sys.argv, sys.stdin, os.umask(0o022), signal.getsignal(signal.SIGINT)
    handler = signal.signal(signal.SIGALRM, end)
    sys.argv = ["program", *argv]
    sys.stdin = io.StringIO(stdin)
    signal.setitimer(signal.ITIMER_REAL, 20)
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            run_program(main)
    except SystemExit as exit:
        code = exit.code or 0
    except TooLong:
        code = None
    except BaseException:
        code = -1
        printed.write(traceback.format_exc())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        sys.argv, sys.stdin = before[:2]
        os.umask(before[2])
        signal.signal(signal.SIGINT, before[3])
    return code, printed.getvalue()


def fingerprints(*folders: str) -> dict[str, str]:
    """Hash the files of folders, without the memory of which shards were checked."""
    paths = [path for name in folders for path in [Path(name), *Path(name).rglob("*")]]
    files = [path for path in paths if path.is_file() and path.name != ".checked.json"]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def assert_in_words(case, code: int | None, printed: str) -> None:
    assert code in (0, 2, 75), f"{case}: exit code {code}\n{printed[-3000:]}"
    assert "Traceback" not in printed, f"{case}\n{printed[-3000:]}"
    assert code == 0 or printed.strip(), f"{case}: no message"


# ------------------------------------------------------------------------------------------------
# Options. Left out: what needs a network, minutes, a GPU, or is not of this program.

PROGRAMS = {
    "train": (
        train.main,
        option_types(train.TrainConfig, "wandb", "compile", "prepare"),
        TRAIN,
        200,
    ),
    "sample": (
        sample.main,
        option_types(sample.SampleConfig, "run", "num_samples"),
        ["out/run", *SAMPLE],
        400,
    ),
    "prepare_data": (
        prepare_data.main,
        option_types(prepare_data.PrepareConfig, "workers", "source", "claude_model", "languages"),
        ["--source=text.txt", "--name=new", "--tokenizer=byte"],
        250,
    ),
}


def remove_what_was_written() -> None:
    for path in [*Path("out").glob("*"), *Path("data").glob("*"), Path("x"), Path("é☃")]:
        if path.is_dir() and path.name not in ("run", "words"):
            shutil.rmtree(path)


@pytest.mark.parametrize("program", PROGRAMS)
def test_any_options(folder, program):
    main, types, base, count = PROGRAMS[program]
    late = 0
    for rng in cases(count * TIMES, program):
        flags = random_flags(rng, types)
        before = fingerprints(*MINE)
        code, printed = run(main, *base, *flags)
        if code is None:
            late += 1
            continue
        assert_in_words(f"{program} {flags}", code, printed)
        may_change = {"--resume=True", "--overwrite=True"} & set(flags)
        assert may_change or fingerprints(*MINE) == before, f"changed by {program} {flags}"
        remove_what_was_written()
    assert late <= max(1, count * TIMES // 50)


def test_any_options_of_the_bench(folder, monkeypatch):
    def measure(*arguments):
        raise UserError("the measurement would begin here")

    monkeypatch.setattr(bench, "alternate", measure)
    types = option_types(bench.BenchConfig, "wandb")
    for rng in cases(200 * TIMES, "bench"):
        flags = random_flags(rng, types)
        assert_in_words(f"bench {flags}", *run(bench.main, *TRAIN, *flags))


@pytest.mark.parametrize("name", list(research.COMMANDS))
def test_any_options_of_research(folder, monkeypatch, name):
    """What a command reads and says of its options; what it does is tested elsewhere."""
    kind = get_type_hints(research.COMMANDS[name])["options"]

    def accept(options: kind) -> int:
        return 0

    monkeypatch.setitem(research.COMMANDS, name, accept)
    types = option_types(kind)
    for rng in cases(250 * TIMES, name):
        flags = random_flags(rng, types)
        assert_in_words(f"research {name} {flags}", *run(research.main, name, *flags))


# ------------------------------------------------------------------------------------------------
# Contents of files


def test_any_config_file(folder):
    for number, rng in enumerate(cases(300 * TIMES, "config")):
        content = random_config_file(rng)
        Path("recipe.py").write_bytes(content)
        before = fingerprints(*MINE)
        code, printed = run(train.main, "recipe.py", *TRAIN, f"--out=out/{number}")
        if code == -1 and b"Interrupt" in content:
            continue
        assert_in_words(content, code, printed)
        assert fingerprints(*MINE) == before, content


@pytest.mark.parametrize(
    "name", ["meta.json", "tokenizer.json", "train_000000.bin", "val_000000.bin"]
)
def test_any_data_folder(folder, name):
    good = Path("data/words", name).read_bytes()
    shutil.copytree("data/words", "data/bad")
    for rng in cases(100 * TIMES, name):
        content = mutated(rng, good)
        if name.endswith(".json") and rng.random() < 0.7:
            content = json.dumps(changed(rng, json.loads(good))).encode()
        Path("data/bad", name).write_bytes(content)
        before = fingerprints("data", "out/run")
        flags = [*SMALL, "--data=data/bad", "--out=out/new", "--overwrite=True"]
        code, printed = run(train.main, *flags)
        assert_in_words(content[:300], code, printed)
        assert fingerprints("data", "out/run") == before
        assert code != 2 or "data/bad" in printed, printed


def test_any_checkpoint(folder):
    """Its bytes, or one of its values, are others; it is sampled, resumed and fine-tuned."""
    good = Path("out/run/last.pt").read_bytes()
    content = checkpoint.load(Path("out/run/last.pt"))
    uses = [
        (sample.main, ["out/bad/last.pt", *SAMPLE]),
        (train.main, [*TRAIN, "--out=out/bad", "--resume=True", "--max_steps=3"]),
        (train.main, [*TRAIN, "--out=out/new", "--init_from=out/bad", "--overwrite=True"]),
    ]
    for rng in cases(200 * TIMES, "checkpoint"):
        shutil.rmtree("out/bad", ignore_errors=True)
        shutil.copytree("out/run", "out/bad")
        if rng.random() < 0.75:
            new = changed(rng, content)
            torch.save(new, "out/bad/last.pt")
            is_dict = isinstance(new, dict)
            case = [key for key in content if not is_dict or new.get(key) is not content[key]]
        else:
            Path("out/bad/last.pt").write_bytes(mutated(rng, good))
            case = ["bytes"]
        before = fingerprints(*MINE)
        main, flags = rng.choice(uses)
        code, printed = run(main, *flags)
        assert_in_words(f"{case} {flags[-2:]}", code, printed)
        assert fingerprints(*MINE) == before


PREPARATIONS = [
    "--strict=True",
    "--text_key=text",
    "--text_key=n",
    "--text_key=text.n",
    "--duplicates=near",
    "--quality=gopher,c4,fineweb",
    "--quality=unicode",
    "--decontaminate=text.txt",
    "--max_bytes=99",
    "--shuffle_buffer=3",
    "--overwrite=True",
]


def write_bad_texts(rng: random.Random, good: dict[str, bytes]) -> None:
    shutil.rmtree("texts", ignore_errors=True)
    Path("texts").mkdir()
    for name in rng.sample(sorted(good), rng.choice([1, 1, 2])):
        content = mutated(rng, good[name])
        if rng.random() < 0.2:  # a line that is JSON, but not what is expected
            value = rng.choice([*VALUES, {"text": rng.choice(VALUES)}])
            content += json.dumps(value).encode() + b"\n"
        Path("texts", name).write_bytes(content)


def test_any_text(folder):
    tokens = {"train.bin": bytes(3000), "h.bin": Path("data/words/val_000000.bin").read_bytes()}
    good = good_files() | tokens
    for number, rng in enumerate(cases(400 * TIMES, "text")):
        write_bad_texts(rng, good)
        flags = rng.sample(PREPARATIONS, rng.randrange(3))
        flags.append(f"--tokenizer={rng.choice(['byte', 'byte', 'bpe:260'])}")
        before = fingerprints("texts", *MINE)
        base = ["--source=texts", "--name=new", "--val_fraction=0.2"]
        code, printed = run(prepare_data.main, *base, *flags)
        assert_in_words(f"text {number} {flags} {os.listdir('texts')}", code, printed)
        assert fingerprints("texts", *MINE) == before
        if code == 0:
            Data(Path("data/new"))
        shutil.rmtree("data/new", ignore_errors=True)
        shutil.rmtree("data/.new.partial", ignore_errors=True)


def test_any_file(tmp_path):
    """The readers alone, which take a hundred times as many cases as the program."""
    good = good_files()
    for number, rng in enumerate(cases(6000 * TIMES, "slow file")):
        case = f"slow file {number}"
        assert_read_or_refused(case, lambda rng=rng: read_damaged_files(rng, good, tmp_path / "d"))


def test_any_language(tmp_path):
    path = tmp_path / "evaluation"
    for number, rng in enumerate(cases(5000 * TIMES, "slow text")):
        case = f"slow text {number}"
        assert_read_or_refused(case, lambda rng=rng: curate_any_language(rng, path))


def test_any_prompt(folder):
    for rng in cases(150 * TIMES, "prompt"):
        Path("prompt.txt").write_bytes(mutated(rng, "once upon a time é☃".encode()))
        prompt = rng.choice(["FILE:prompt.txt", "-", rng.choice(WORDS)])
        stdin = rng.choice(WORDS)
        result = run(sample.main, "out/run", *SAMPLE, f"--prompt={prompt}", stdin=stdin)
        assert_in_words(prompt, *result)
