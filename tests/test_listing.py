"""Which files a source has: each is read, refused, or left out for a reason that is counted."""

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

import corpus.sources
from corpus.documents import BatchReader
from corpus.reading import Cursor, read_batches
from corpus.sources import default_tokenizer, find_units
from corpus.writer import Progress, import_tokens
from nanoloop.data import Data, open_shard
from nanoloop.options import UserError
from nanoloop.tokenizer import load_tokenizer
from prepare_data import PrepareConfig, prepare, split_single_text
from tests.conftest import make_documents

OPTIONS = {"name": "d", "tokenizer": "byte", "val_fraction": 0, "test_fraction": 0, "workers": 1}


def units_of(*sources, **more):
    defaults = {"source": tuple(map(str, sources)), "text_key": None, "name": "d"}
    return find_units(SimpleNamespace(**(defaults | more)), Path("data"))


def listed(folder, *sources) -> dict[str, str]:
    """Return what is read of each file below a folder: its kind, or why it is left out."""
    units = units_of(*(sources or [folder]))
    return {os.path.relpath(unit.path, folder): unit.note or unit.kind for unit in units}


def rows_of(units, config):
    """Return the rows of units as the writer gets them, without tokens."""
    reader = BatchReader(config, tokenizer=None)
    return [
        row for batch in read_batches(units, config, Cursor(0, 0, 0)) for row in reader(batch)[1]
    ]


def write(folder, *names, content="some text"):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


def write_table(path, texts=("x", "y")):
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.table({"text": list(texts)})
    if path.suffix == ".parquet":
        return parquet.write_table(table, path)
    with pyarrow.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table)


def test_every_file_of_a_folder_is_read_or_has_a_reason(tmp_path):
    write(tmp_path, "a.txt", "deep/b.md", "README.md", ".hidden", ".git/config", "z/LICENSE.txt")
    write_table(tmp_path / "deep" / "one.parquet")
    os.mkfifo(tmp_path / "pipe")
    os.symlink("nowhere", tmp_path / "gone.txt")
    os.symlink("..", tmp_path / "deep" / "up")
    os.symlink("a.txt", tmp_path / "same.txt")
    assert listed(tmp_path) == {
        ".git": "left out: hidden",
        ".hidden": "left out: hidden",
        "README.md": "left out: describes what is beside it",
        "a.txt": "text",
        "deep/b.md": "text",
        "deep/one.parquet": "parquet",
        "deep/up": "left out: another name of what is read",
        "gone.txt": "text",  # reading finds it unreadable
        "pipe": "left out: neither a file nor a folder",
        "same.txt": "left out: another name of what is read",
        "z/LICENSE.txt": "left out: describes what is beside it",
    }


def test_what_preparations_keep_while_they_run_is_no_content(tmp_path):
    """Elsewhere such names belong to the user, and are counted."""
    write(tmp_path, "a.txt", "data/.b.lock", "data/.b.partial/x", "data/.c.0f.stdin", ".b.lock")
    config = SimpleNamespace(source=(str(tmp_path),), text_key=None, name="d")
    units = find_units(config, tmp_path / "data")
    names = {os.path.relpath(unit.path, tmp_path): unit.note for unit in units}
    assert names == {".b.lock": "left out: hidden", "a.txt": None}


def test_answers_of_claude_are_text_only_where_they_are_named(tmp_path, monkeypatch):
    """A preparation of their folder writes them: while it runs, its sources stay the same."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "a.txt", "mine.claude.jsonl")
    write(tmp_path, "data/d.claude.jsonl", content='{"text": "x"}')
    assert listed(tmp_path) == {"a.txt": "text", "mine.claude.jsonl": "jsonl"}
    named = "data/d.claude.jsonl"
    assert listed(tmp_path, named) == {named: "jsonl"}


def test_linked_folders_are_read_once(tmp_path):
    write(tmp_path, "disk/a.txt", "disk/sub/b.txt")
    (tmp_path / "s").mkdir()
    os.symlink(tmp_path / "disk", tmp_path / "s" / "one")
    os.symlink(tmp_path / "disk" / "sub", tmp_path / "s" / "two")
    assert listed(tmp_path / "s") == {
        "one/a.txt": "text",
        "one/sub/b.txt": "text",
        "two": "left out: another name of what is read",
    }


@pytest.mark.parametrize("order", [1, -1])
def test_what_is_named_is_read_though_a_folder_hides_it(tmp_path, order):
    write(tmp_path, "a.txt", ".hidden")
    sources = [tmp_path, tmp_path / ".hidden"][::order]
    assert listed(tmp_path, *sources) == {".hidden": "text", "a.txt": "text"}


def test_a_known_text_is_not_the_folder_of_its_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "python/a.txt")
    assert listed(tmp_path, "./python") == {"python/a.txt": "text"}
    assert "note" not in capsys.readouterr().out
    monkeypatch.setattr(corpus.sources, "python_files", lambda include: {})
    assert units_of("python", include_site_packages=False) == []
    assert "for your path type ./python" in capsys.readouterr().out


def test_what_is_named_twice_is_read_once(tmp_path):
    write(tmp_path, "s/a.txt", "s/.b.jsonl")
    names = {".b.jsonl": "jsonl", "a.txt": "text"}
    for sources in (["", ""], ["", "a.txt"], ["a.txt", "", "a.txt"]):
        found = listed(tmp_path / "s", *[tmp_path / "s" / name for name in sources])
        assert found == names | {".b.jsonl": "left out: hidden"}
    assert listed(tmp_path / "s", tmp_path / "s", tmp_path / "s/.b.jsonl") == names


def test_what_is_left_out_is_counted_and_is_no_fault(tmp_path):
    """Also where the name of a file is no UTF-8."""
    names = [b"na\xefve.txt", b"\xff\xfe/x.txt", b".hidd\xeen"]  # Latin-1, and no encoding at all
    names = [os.fsdecode(name) for name in names]
    write(tmp_path / "s", *names)
    config = PrepareConfig(source=(str(tmp_path / "s"),), strict=True, **OPTIONS)
    data = Data(prepare(config, tmp_path))
    assert data.meta["splits"]["train"]["documents"] == 2
    counted = {"documents": 1, "bytes": 0, "examples": [[0, f"{tmp_path}/s/{names[2]}", ""]]}
    assert data.meta["notes"] == {"left out: hidden": counted}


def test_a_single_text_beside_what_is_left_out_is_still_split_by_position(tmp_path):
    write(tmp_path, ".DS_Store", "a.txt", content="0123456789" * 9)
    units = units_of(tmp_path)
    config = PrepareConfig(source=("s",), **(OPTIONS | {"val_fraction": 0.1}))
    split_single_text(units, config)
    assert [unit.cuts for unit in units] == [(), (81, 81)]


@pytest.mark.parametrize("name", ["notes[1].txt", "what?.txt", "a*b.txt"])
def test_a_path_that_exists_is_no_pattern(tmp_path, name):
    write(tmp_path, name, "notes1.txt", "whatx.txt", "axb.txt")
    assert listed(tmp_path, tmp_path / name) == {name: "text"}


# --------------------------------------------------------------------------------------------------
# Data sets with an index


def write_saved(folder, cache="cache-0123456789abcdef.arrow"):
    """As datasets' save_to_disk, after .map() or .filter() has left its cache there."""
    write_table(folder / "data-00000-of-00001.arrow")
    write_table(folder / cache)
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
    write(folder, "state.json", content=json.dumps(state))
    write(folder, "dataset_info.json", content="{}")


def write_dictionary(folder):
    write_saved(folder / "train", cache="old.arrow")
    write_saved(folder / "validation", cache="old.arrow")
    write_saved(folder / "deleted")
    write(folder, "dataset_dict.json", content=json.dumps({"splits": ["train", "validation"]}))


def write_hub_cache(folder):
    """The cache of huggingface_hub: names in snapshots/COMMIT/ are links to blobs/HASH."""
    for commit in ("new", "old"):
        blob = folder / "blobs" / f"{commit}hash"
        write_table(folder / "blobs" / "x.parquet", [commit])
        os.replace(folder / "blobs" / "x.parquet", blob)
        snapshot = folder / "snapshots" / commit / "data"
        snapshot.mkdir(parents=True)
        os.symlink(f"../../../blobs/{commit}hash", snapshot / "train.parquet")
    write(folder, "refs/main", content="new")


def write_load_dataset_cache(folder):
    """The cache of load_dataset has no list of files."""
    write_table(folder / "json-train.arrow")
    write_table(folder / "cache-9c04d5dca968efb5.arrow")
    write(folder, "dataset_info.json", "json_builder.lock", content="{}")


INDEXED = {
    write_saved: ["data-00000-of-00001.arrow"],
    write_dictionary: [
        "train/data-00000-of-00001.arrow",
        "validation/data-00000-of-00001.arrow",
    ],
    write_hub_cache: ["snapshots/new/data/train.parquet"],
    write_load_dataset_cache: ["json-train.arrow"],
}


@pytest.mark.parametrize("write_set", INDEXED, ids=lambda write_set: write_set.__name__)
def test_the_files_of_a_data_set_are_those_of_its_index(tmp_path, write_set):
    write_set(tmp_path / "s")
    found = listed(tmp_path / "s")
    read = [path for path, kind in found.items() if not kind.startswith("left out")]
    assert read == INDEXED[write_set]
    assert len(found) > len(read)
    assert not found.keys() & {"state.json", "dataset_dict.json"}  # they are read as an index


def test_a_file_that_only_looks_like_an_index_is_text(tmp_path):
    write(
        tmp_path, "a.txt", "meta.json", "game/state.json", "other/dataset_dict.json", content="[3]"
    )
    assert [note for note in listed(tmp_path).values() if note.startswith("left")] == []


def test_a_file_that_the_index_names_and_that_is_missing_is_counted(tmp_path):
    write_saved(tmp_path / "s")
    (tmp_path / "s" / "data-00000-of-00001.arrow").unlink()
    units = [unit for unit in units_of(tmp_path / "s") if unit.note is None]
    rows = rows_of(units, PrepareConfig(source=("s",), **OPTIONS))
    path = f"{tmp_path}/s/data-00000-of-00001.arrow"
    assert [(row.where, row.note) for row in rows] == [(path, "unreadable")]


# --------------------------------------------------------------------------------------------------
# Official splits

SPLITS = {
    "tables": {"train-0-of-2.parquet": None, "validation.parquet": "val", "test.parquet": "test"},
    "folders": {"en/train/0.parquet": None, "en/dev/0.parquet": "val"},
    "one has no name": {"extra.parquet": None, "my_test.parquet": "test"},
    "the last word counts": {"latest_train.parquet": None, "test_valid.parquet": "val"},
    "lines": {"web.train.jsonl": None, "web.valid.jsonl": "val"},
    "text": {"wiki.train.tokens": None, "wiki.valid.tokens": "val", "wiki.test.tokens": "test"},
    "program": {"model.py": None, "test_model.py": None, "train.py": None},
    "nothing to train on": {"test-0.parquet": None, "test-1.parquet": None},
    "words in words": {"contest.parquet": None, "evaluate.parquet": None, "latest.parquet": None},
    "text beside tables": {"test.txt": None, "train.parquet": None, "validation.parquet": "val"},
}


@pytest.mark.parametrize("case", SPLITS)
def test_files_that_are_named_like_splits_keep_them(tmp_path, case):
    for name in SPLITS[case]:
        write(tmp_path, name)
    units = units_of(tmp_path)
    assert {os.path.relpath(unit.path, tmp_path): unit.split for unit in units} == SPLITS[case]


def test_text_beside_tables_with_official_splits_is_divided(tmp_path):
    write(tmp_path, "a.txt", "train.parquet", "test.parquet")
    official = {unit.kind: unit.official for unit in units_of(tmp_path)}
    assert official == {"text": set(), "parquet": {"test"}}


def test_a_fraction_divides_only_what_has_no_official_split(tmp_path, capsys):
    """The official test stays as it is; validation, which is missing, comes from train."""
    texts = make_documents(60)
    for name, part in {"train": texts[:50], "test": texts[50:]}.items():
        write_table(tmp_path / f"{name}.parquet", part)
    units = units_of(tmp_path)
    assert "official val and test are kept: 1 of the files" in capsys.readouterr().out
    fractions = {"val_fraction": 0.2, "test_fraction": 0.2}
    rows = rows_of(units, PrepareConfig(source=("s",), **(OPTIONS | fractions)))
    splits = [row.split for row in rows]
    assert splits[:10] == ["test"] * 10
    assert set(splits[10:]) == {"train", "val"}


def test_a_hub_data_set_brings_its_splits(monkeypatch):
    names = ["train", "validation", "test", "unsupervised"]
    library = SimpleNamespace(get_dataset_split_names=lambda name, config: names)
    monkeypatch.setitem(sys.modules, "datasets", library)
    units = units_of("hf:some/name", hf_config=None, hf_split=None)
    assert [(unit.path, unit.split) for unit in units if unit.note is None] == [
        ("some/name:train", None),
        ("some/name:validation", "val"),
        ("some/name:test", "test"),
    ]
    (unit,) = units_of("hf:some/name", hf_config=None, hf_split="validation")
    assert (unit.path, unit.split, unit.official) == ("some/name:validation", None, set())
    names[0] = "train_sft"
    with pytest.raises(UserError, match="no split 'train': give --hf_split, one of train_sft, "):
        units_of("hf:some/name", hf_config=None, hf_split=None)


# --------------------------------------------------------------------------------------------------
# Ready tokens


def write_tokens(path, tokens, dtype="<u2", magic=None):
    path.parent.mkdir(exist_ok=True)
    header = np.zeros(256 if magic is not None else 0, dtype="<i4")
    header[:3] = (magic, 1, len(tokens)) if magic is not None else ()
    path.write_bytes(header.tobytes() + np.array(tokens, dtype).tobytes())


def imported(tmp_path, data_dir, *sources) -> dict[str, list[int]]:
    """Import tokens without a report, with the tokenizer of the prepared folder `data_dir`."""
    (tmp_path / "imported").mkdir(exist_ok=True)
    progress = Progress({"shard_tokens": 100})
    units = units_of(*sources)
    tokenizer = load_tokenizer(str(data_dir))
    import_tokens(units, tmp_path / "imported", tokenizer, progress, strict=True)
    paths = sorted((tmp_path / "imported").iterdir())
    return {path.name.split("_")[0]: open_shard(path, "").tolist() for path in paths}


@pytest.mark.parametrize("dtype", ["<u2", "<i4", "<u4", "<i8"])
def test_bare_tokens_of_any_width_are_the_same_tokens(tmp_path, data_dir, dtype):
    tokens = [256, *b"some text", 256, *b"more of it", 0, 0]
    write_tokens(tmp_path / "s" / "train.bin", tokens, dtype)
    write_tokens(tmp_path / "s" / "val.bin", tokens, dtype)
    assert imported(tmp_path, data_dir, tmp_path / "s") == {"train": tokens, "val": tokens}


@pytest.mark.parametrize("size", [0, 1, 7])
def test_tokens_of_an_odd_size_are_refused_by_name(tmp_path, data_dir, size):
    write_tokens(tmp_path / "s" / "train.bin", [1, 2])
    (tmp_path / "s" / "val.bin").write_bytes(bytes(size))
    with pytest.raises(UserError, match=f"s/val.bin holds {size} bytes, not tokens of two"):
        imported(tmp_path, data_dir, tmp_path / "s")


def test_words_in_the_names_of_tokens_decide_their_split(tmp_path, data_dir):
    for number, name in enumerate(["latest_interval", "a_test_000000", "test_dev"]):
        write_tokens(tmp_path / "s" / f"{name}.bin", [256, number], magic=20240520)
    found = imported(tmp_path, data_dir, tmp_path / "s")
    assert found == {"train": [256, 0], "val": [256, 2], "test": [256, 1]}


def test_a_damaged_shard_is_refused_by_name(tmp_path, data_dir):
    write_tokens(tmp_path / "s" / "x_val_000000.bin", [256, 65], magic=20240520)
    write_tokens(tmp_path / "s" / "x_train_000001.bin", [256, 66], magic=0)
    assert {unit.kind for unit in units_of(tmp_path / "s")} == {"tokens"}
    with pytest.raises(UserError, match="x_train_000001.bin does not begin as a shard"):
        imported(tmp_path, data_dir, tmp_path / "s")


def test_strict_stops_at_a_fault_beside_tokens(tmp_path):
    """What only describes the tokens, or is hidden, is no fault."""
    write_tokens(tmp_path / "s" / "train.bin", [256, *b"abc"], magic=20240520)
    write_tokens(tmp_path / "s" / "val.bin", [256, *b"def"], magic=20240520)
    write(tmp_path / "s", "README.md", ".hidden")
    config = PrepareConfig(source=(str(tmp_path / "s"),), strict=True, overwrite=True, **OPTIONS)
    prepare(config, tmp_path)
    write(tmp_path / "s", "doc.pdf", content="%PDF-1.4")
    with pytest.raises(UserError, match="s/doc.pdf: PDF: make text of it .*--strict=False"):
        prepare(config, tmp_path)
    prepare(replace(config, strict=False), tmp_path)


@pytest.mark.parametrize("name", ["x.txt", "notes/x.md", "x.parquet"])
def test_text_beside_tokens_is_refused_by_name(tmp_path, name):
    write_tokens(tmp_path / "s" / "x_val_000000.bin", [256, 65], magic=20240520)
    write(tmp_path / "s", name)
    with pytest.raises(UserError, match=f"x_val_000000.bin holds tokens, .*s/{name} does not"):
        prepare(PrepareConfig(source=(str(tmp_path / "s"),), **OPTIONS), tmp_path)


def test_a_prepared_folder_brings_its_tokenizer_and_its_splits(tmp_path, data_dir):
    units = units_of(data_dir)
    assert default_tokenizer(units) == str(data_dir)
    found = imported(tmp_path, data_dir, data_dir)
    assert {len(stream) for stream in Data(data_dir).splits.values()} == {*map(len, found.values())}
    shutil.copytree(data_dir, tmp_path / "other")
    tokenizer = load_tokenizer("byte").to_json() | {"pattern": "x"}
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match="has another tokenizer than .*: type --tokenizer=/"):
        imported(tmp_path, tmp_path / "other", data_dir)


def test_training_on_a_prepared_folder_changes_nothing_that_it_lists(tmp_path, data_dir):
    """Training notes there which files it has checked."""
    folder = tmp_path / "mine"
    shutil.copytree(data_dir, folder, ignore=shutil.ignore_patterns(".checked.json"))
    write(folder, "notes.txt")
    before = listed(folder)
    assert before["notes.txt"] == "left out: not in meta.json"
    Data(folder)
    assert (folder / ".checked.json").exists()
    write(folder, ".checked.json.tmp")  # while it writes
    assert listed(folder) == before


def test_prepared_folders_are_no_text_of_the_folder_around_them(tmp_path):
    write(tmp_path, "a.txt")
    for state in ("meta.json", "progress.json"):  # complete, and half done
        write(tmp_path / "data" / state, "tokenizer.json", state)
    assert listed(tmp_path) == {
        "a.txt": "text",
        "data/meta.json": "left out: a prepared folder",
        "data/progress.json": "left out: a prepared folder",
    }


@pytest.mark.parametrize("tokens", [[65, 256, 66], [65, 66, 67]])
def test_tokens_without_end_of_text_are_named_as_a_sign(tmp_path, data_dir, capsys, tokens):
    write_tokens(tmp_path / "s" / "train.bin", tokens)
    write_tokens(tmp_path / "s" / "val.bin", [67, 67])
    imported(tmp_path, data_dir, tmp_path / "s")
    is_warned = "end-of-text (256) never occurs in these tokens" in capsys.readouterr().out
    assert is_warned == (256 not in tokens)
