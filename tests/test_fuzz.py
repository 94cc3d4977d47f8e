"""Bad input by the hundred: it is accepted or refused in words, never by a traceback.

Here the readers of options, config files, data and checkpoints are called alone. The programs get
thousands of cases in tests/slow/test_fuzz.py. A case is a number: its seed.
"""

import contextlib
import io
import json
import shutil
from pathlib import Path

import pytest
import torch

import prepare_data
import sample
import train
from model import GPT
from nanoloop import checkpoint
from nanoloop.data import open_data
from nanoloop.options import UserError, read_options
from tests.bad_input import (
    cases,
    changed,
    mutated,
    option_types,
    random_config_file,
    random_flags,
)

OPTIONS = [train.TrainConfig, sample.SampleConfig, prepare_data.PrepareConfig]


def assert_read_or_refused(case, read) -> None:
    """Call read(): it returns, raises UserError, or ends the program as a wrong option does."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
            read()
    except UserError as error:
        assert str(error), case
    except SystemExit as exit:
        assert exit.code in (0, 2), case
        assert printed.getvalue(), case
    except Exception as error:
        raise AssertionError(f"{case}: {error!r}") from error


@pytest.mark.parametrize("cls", OPTIONS, ids=lambda cls: cls.__name__)
def test_any_options(cls):
    types = option_types(cls)
    for rng in cases(60, cls.__name__):
        flags = random_flags(rng, types)
        assert_read_or_refused(flags, lambda flags=flags: read_options(cls, flags, "program"))


def test_any_config_file(tmp_path):
    recipe = tmp_path / "recipe.py"
    argv = [str(recipe), "--max_steps=1"]
    for rng in cases(80, "config"):
        content = random_config_file(rng)
        recipe.write_bytes(content)
        assert_read_or_refused(content, lambda: read_options(train.TrainConfig, argv, "train.py"))


@pytest.mark.parametrize("name", ["meta.json", "tokenizer.json", "train_000000.bin"])
def test_any_data_folder(name, data_dir, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(data_dir, folder)
    good = (data_dir / name).read_bytes()
    for rng in cases(60, name):
        content = mutated(rng, good)
        if name.endswith(".json") and rng.random() < 0.7:
            content = json.dumps(changed(rng, json.loads(good))).encode()
        (folder / name).write_bytes(content)
        case = f"{name}: {content[:300]}"
        assert_read_or_refused(case, lambda: open_data(str(folder)))


def start_from(path: Path, config, data, resuming: bool) -> None:
    """Do what training does with a checkpoint before its first step."""
    start = checkpoint.load(path)
    complete = checkpoint.complete(config, start, data, resuming)
    model = GPT(complete)
    optimizers = train.make_optimizers(model, complete)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    checkpoint.restore(start, resuming, model, optimizers, scaler)


@pytest.mark.parametrize("resuming", [True, False])
def test_any_checkpoint(resuming, config, data_dir, tmp_path):
    train.train(config(max_steps=1))
    path = tmp_path / "run" / "last.pt"
    good = path.read_bytes()
    content = checkpoint.load(path)
    data = open_data(str(data_dir))
    for rng in cases(60, f"checkpoint {resuming}"):
        if rng.random() < 0.8:
            new = changed(rng, content)
            torch.save(new, path)
            is_same = isinstance(new, dict)
            case = [key for key in content if not is_same or new.get(key) is not content[key]]
        else:
            path.write_bytes(mutated(rng, good))
            case = "bytes"
        assert_read_or_refused(case, lambda: start_from(path, config(), data, resuming))
