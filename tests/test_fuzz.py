"""Bad input by the dozen: it is accepted or refused in words, never by a traceback.

Here the readers of options, config files, data, checkpoints and texts are called alone. The
programs get thousands of cases in tests/slow/test_fuzz.py. A case is a number: its seed.
"""

import contextlib
import gzip
import io
import json
import random
import shutil
from pathlib import Path

import pytest
import torch

import prepare_data
import sample
import train
from corpus.curation import SETS, CurationConfig, Curator, View, evaluation_ngrams
from corpus.documents import read_documents
from corpus.reading import read
from corpus.sources import find_units
from model import GPT
from nanoloop import checkpoint
from nanoloop.data import open_data
from nanoloop.options import UserError, read_options
from tests.bad_input import (
    cases,
    changed,
    disguised,
    mutated,
    option_types,
    random_config_file,
    random_flags,
    random_text,
)
from tests.every_format import not_readable, readable

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
    for rng in cases(20, cls.__name__):
        flags = random_flags(rng, types)
        assert_read_or_refused(flags, lambda flags=flags: read_options(cls, flags, "program"))


def test_any_config_file(tmp_path):
    recipe = tmp_path / "recipe.py"
    argv = [str(recipe), "--max_steps=1"]
    for rng in cases(30, "config"):
        content = random_config_file(rng)
        recipe.write_bytes(content)
        assert_read_or_refused(content, lambda: read_options(train.TrainConfig, argv, "train.py"))


@pytest.mark.parametrize("name", ["meta.json", "tokenizer.json", "train_000000.bin"])
def test_any_data_folder(name, data_dir, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(data_dir, folder)
    good = (data_dir / name).read_bytes()
    for rng in cases(30, name):
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
    for rng in cases(15, f"checkpoint {resuming}"):
        if rng.random() < 0.8:
            new = changed(rng, content)
            torch.save(new, path)
            is_same = isinstance(new, dict)
            case = [key for key in content if not is_same or new.get(key) is not content[key]]
        else:
            path.write_bytes(mutated(rng, good))
            case = "bytes"
        assert_read_or_refused(case, lambda: start_from(path, config(), data, resuming))


def good_files() -> dict[str, bytes]:
    """Return files of every kind, with texts in many languages."""
    texts = [random_text(rng) for rng in cases(8, "texts")]
    return readable(texts) | not_readable(texts[0])


def read_damaged_files(rng: random.Random, good: dict[str, bytes], folder: Path) -> None:
    """Damage one or two files and read them: nothing vanishes, and every text is valid UTF-8."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    names = rng.sample(sorted(good), rng.choice([1, 1, 2]))
    for name in names:
        (folder / name).write_bytes(mutated(rng, good[name]))
    key = rng.choice([None, None, "text", "n", "text.n"])
    config = prepare_data.PrepareConfig(source=(str(folder),), name="d", text_key=key)
    units = find_units(config, folder.parent)
    assert sorted(Path(unit.path).name for unit in units) == sorted(names)
    for unit in units:
        blocks = read(unit, config)
        documents = [row for block in blocks for row in read_documents(unit, block, config)]
        is_blank = not Path(unit.path).read_bytes().strip()
        assert documents or is_blank, f"{unit.path} is neither read nor counted"
        for document in documents:
            document.text.encode()
            assert document.text or document.note


def test_any_file(tmp_path):
    good = good_files()
    for number, rng in enumerate(cases(20, "file")):
        case = f"file {number}"
        assert_read_or_refused(case, lambda rng=rng: read_damaged_files(rng, good, tmp_path / "d"))


def curate_any_language(rng: random.Random, evaluation: Path) -> None:
    """Judge a random text by every rule, and find a copy of it by decontamination."""
    text = random_text(rng)
    view = View(text)
    quality = rng.choice([*SETS, ",".join(SETS)])
    curator = Curator(CurationConfig(quality=quality, duplicates="near"))
    curator.judge(view, rng.random() < 0.5)
    curator.signatures([view])
    copy = View(disguised(rng, text))
    assert copy.words == view.words
    # In JSON an evaluation's text is one value, in a text file each paragraph is one.
    content = json.dumps({"question": text}, ensure_ascii=rng.random() < 0.5)
    content = content.encode(rng.choice(["utf-8", "utf-8-sig", "utf-16"]))
    evaluation.write_bytes(rng.choice([content, gzip.compress(content)]))
    evaluation_ngrams.cache_clear()
    # Raises UserError for fewer than 8 words.
    curator = Curator(CurationConfig(decontaminate=str(evaluation)))
    assert curator.judge(copy) == "decontaminate"


def test_any_language(tmp_path):
    path = tmp_path / "evaluation"
    for number, rng in enumerate(cases(20, "text")):
        case = f"text {number}"
        assert_read_or_refused(case, lambda rng=rng: curate_any_language(rng, path))
