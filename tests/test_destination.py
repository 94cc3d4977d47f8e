"""A preparation replaces and removes only what a preparation wrote, whenever it is killed."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import prepare_data
from corpus.destination import hidden, publish
from nanoloop.data import Data
from nanoloop.files import locked
from nanoloop.options import UserError
from prepare_data import prepare
from tests.conftest import make_documents
from tests.test_prepare import assert_same_files, leave_half_made, options, write_texts


@pytest.fixture
def source(tmp_path) -> str:
    return write_texts(tmp_path / "s", make_documents(12))


@pytest.fixture
def root(tmp_path):
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Return a source, and the folders that it gives with two tokenizers."""
    folder = tmp_path_factory.mktemp("two")
    source = write_texts(folder / "s", make_documents(12))
    older = prepare(options(source, tokenizer="bpe:260"), folder / "older")
    return source, older, prepare(options(source), folder / "newer")


def contents(folder) -> dict:
    """Return what is at each path below a folder: bytes, the target of a link, None."""
    found = {}
    for path in sorted(folder.rglob("*")):
        content = path.read_bytes() if path.is_file() else None
        found[str(path)] = os.readlink(path) if path.is_symlink() else content
    return found


@pytest.mark.parametrize("is_linked", [False, True])
@pytest.mark.parametrize("stage", ["finish", "publish"])
def test_a_killed_preparation_of_the_folder_around_it_resumes(
    tmp_path, monkeypatch, capsys, stage, is_linked
):
    """Its own temporary files are not among its sources, also behind a link to another disk."""
    write_texts(tmp_path / "s", make_documents(12))
    (tmp_path / "data").mkdir()
    if is_linked:
        (tmp_path / "disk" / "d").mkdir(parents=True)
        (tmp_path / "data" / "d").symlink_to(tmp_path / "disk" / "d")
    config = options(str(tmp_path))
    with monkeypatch.context() as patched:
        patched.setattr(prepare_data, stage, None)  # calling None ends it there, as a kill does
        with pytest.raises(TypeError):
            prepare(config, tmp_path / "data")
    resumed = prepare(config, tmp_path / "data")
    assert "resuming" in capsys.readouterr().out
    expected = prepare(options(str(tmp_path / "s")), tmp_path / "expected")
    files = [path.name for path in expected.glob("*.bin")]
    assert files and all((resumed / n).read_bytes() == (expected / n).read_bytes() for n in files)


# --------------------------------------------------------------------------------------------------
# What is not ours


def text_folder(final, source):
    write_texts(final, ["my text " * 30])


def model_folder(final, source):
    final.mkdir()
    for name in ("meta.json", "tokenizer.json"):
        (final / name).write_text('{"model": "mine"}')


def data_with_a_note(final, source):
    prepare(options(source), final.parent)
    (final / "notes.txt").write_text("what I saw in the report")


def data_with_a_sample(final, source):
    """A preparation writes a file of this name, but does not leave it there."""
    prepare(options(source), final.parent)
    (final / "sample.jsonl").write_text('{"text": "mine"}')


def data_with_a_shard(final, source):
    """Its name is one of ours, but the data set has no such shard."""
    prepare(options(source), final.parent)
    (final / "train_000007.bin").write_bytes(b"mine")


def data_with_a_damaged_index(final, source):
    prepare(options(source), final.parent)
    (final / "meta.json").write_text('{"prepared_from": {}, "shards": 5}')


def data_with_a_folder(final, source):
    prepare(options(source), final.parent)
    write_texts(final / "drafts", ["mine"])


def plain_file(final, source):
    final.write_text("mine")


def link_to_texts(final, source):
    final.symlink_to(source)


def link_to_itself(final, source):
    final.symlink_to(final)


NOT_OURS = [
    text_folder,
    model_folder,
    data_with_a_note,
    data_with_a_sample,
    data_with_a_shard,
    data_with_a_damaged_index,
    data_with_a_folder,
    plain_file,
    link_to_texts,
    link_to_itself,
]


@pytest.mark.parametrize("put", NOT_OURS, ids=lambda put: put.__name__)
def test_a_destination_that_no_preparation_wrote_stays(root, source, put):
    put(root / "d", source)
    before = contents(root.parent)
    message = "no preparation wrote it|which no preparation wrote|does not name the shards"
    for overwrite in (False, True):
        with pytest.raises(UserError, match=message):
            prepare(options(source, overwrite=overwrite), root)
        assert contents(root.parent) == before


def test_a_destination_that_holds_the_source_stays(root, source):
    tokens = str(prepare(options(source), root))
    before = contents(root)
    with pytest.raises(UserError, match="holds the source .*type another --name"):
        prepare(options(tokens, overwrite=True), root)
    assert {path: contents(root)[path] for path in before} == before


def test_a_destination_that_is_filled_meanwhile_stays_and_the_work_waits(
    root, source, monkeypatch, capsys
):
    finish = prepare_data.finish

    def finish_late(*arguments):
        finish(*arguments)
        text_folder(root / "d", source)

    monkeypatch.setattr(prepare_data, "finish", finish_late)
    with pytest.raises(UserError, match="no preparation wrote it"):
        prepare(options(source, overwrite=True), root)
    assert (root / "d" / "000.txt").exists()
    shutil.rmtree(root / "d")
    monkeypatch.setattr(prepare_data, "make_tokenizer", None)
    monkeypatch.setattr(prepare_data, "encode", None)
    assert len(Data(prepare(options(source), root)).splits["train"])
    assert "12 of 12 files are done" in capsys.readouterr().out


NAMES = ["d.old", "d.partial", "d.lock", "d.tmp", "d.replaced", ".d", "d.d"]


def test_names_like_temporary_ones_belong_to_the_user(root, source):
    for name in NAMES:
        write_texts(root / name, ["mine"])
    before = contents(root)
    prepare(options(source), root)
    prepare(options(source, overwrite=True), root)
    assert {path: contents(root)[path] for path in before} == before
    assert sorted(os.listdir(root)) == sorted([*NAMES, "d"]), "nothing temporary is left"


@pytest.mark.parametrize("purpose", ["partial", "replaced"])
def test_a_folder_of_the_user_under_a_hidden_name_stays(root, source, purpose):
    write_texts(hidden(root / "d", purpose), ["mine"])
    before = contents(root)
    with pytest.raises(UserError, match=rf"\.d\.{purpose}' holds '000.txt'.*move it away"):
        prepare(options(source, overwrite=True), root)
    assert contents(root) == before


def test_a_file_of_the_user_under_the_name_of_a_lock_stays(root, source):
    hidden(root / "d", "lock").write_text("mine")
    before = contents(root)
    with pytest.raises(UserError, match=r"\.d\.lock' is no lock of a preparation: move it away"):
        prepare(options(source, overwrite=True), root)
    assert contents(root) == before


@pytest.mark.parametrize("exists", [False, True])
def test_a_link_as_destination_stays_and_what_it_names_is_written(root, two, exists):
    disk = root.parent / "disk"
    disk.mkdir()
    source, older, newer = two
    if exists:
        shutil.copytree(older, disk / "d")
    (root / "d").symlink_to(disk / "d")
    prepare(options(source, overwrite=True), root)
    assert (root / "d").readlink() == disk / "d"
    assert_same_files(disk / "d", newer)
    assert os.listdir(disk) == ["d"]


def test_a_link_to_a_missing_folder_is_no_source_of_the_folder_around_it(tmp_path, two):
    """It leads to where the data goes, on a disk that is new."""
    _, _, newer = two
    write_texts(tmp_path / "s", make_documents(12))
    (tmp_path / "s" / "data").mkdir()
    (tmp_path / "s" / "data" / "d").symlink_to(tmp_path / "disk" / "deep" / "d")
    data = Data(prepare(options(str(tmp_path / "s")), tmp_path / "s" / "data"))
    assert data.meta["notes"] == {}
    assert data.fingerprint == Data(newer).fingerprint
    assert (tmp_path / "disk" / "deep" / "d" / "meta.json").is_file()


def test_an_empty_folder_is_free(root, source):
    (root / "d").mkdir()
    assert Data(prepare(options(source), root)).meta["splits"]


# --------------------------------------------------------------------------------------------------
# One writer, and what it resumes


def test_one_process_at_a_time_prepares_a_name(root, source):
    with locked(hidden(root / "d", "lock"), ""):
        before = contents(root)
        for overwrite in (False, True):
            with pytest.raises(UserError, match="/d' is being prepared by another process"):
                prepare(options(source, overwrite=overwrite), root)
        assert contents(root) == before
        prepare(options(source, name="e"), root)
    prepare(options(source), root)
    assert sorted(os.listdir(root)) == ["d", "e"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "data").symlink_to("/proc")
    with pytest.raises(UserError, match="/data' cannot be written: check that path"):
        prepare(options("s"), tmp_path / "data")


# Calls that rename or remove: the two renames are the fourth and the fifth.
@pytest.mark.parametrize("n_calls", [1, 3, 4, 5, 7])
def test_a_kill_in_the_last_second_loses_no_work(root, two, monkeypatch, n_calls):
    source, older, newer = two
    final = Path(shutil.copytree(older, root / "d"))
    config = options(source, overwrite=True)
    calls = []

    def killed(function):
        def call(*arguments, **more):
            calls.append(function)
            if len(calls) == n_calls + 1:
                raise KeyboardInterrupt
            return function(*arguments, **more)

        return call

    def publish_until_killed(*arguments):
        for module, name in [(os, "replace"), (os, "unlink"), (shutil, "rmtree")]:
            patched.setattr(module, name, killed(getattr(module, name)))
        publish(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(prepare_data, "publish", publish_until_killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(config, root)
    with pytest.raises(UserError, match="exists: type --overwrite=True"):
        prepare(options(source), root)
    is_published = n_calls >= 5
    assert_same_files(final, newer if is_published else older)
    if not is_published:
        monkeypatch.setattr(prepare_data, "make_tokenizer", None)
        monkeypatch.setattr(prepare_data, "encode", None)
    assert_same_files(prepare(config, root), newer)
    assert os.listdir(root) == ["d"]


@pytest.mark.parametrize("key", ["max_documents", "source"])
def test_half_made_work_is_deleted_only_when_asked_to(root, two, monkeypatch, tmp_path, key):
    source, _, newer = two
    leave_half_made(options(source), root, monkeypatch)
    before = contents(root)
    other = {"max_documents": 3, "source": (write_texts(tmp_path / "t", make_documents(3)),)}
    with pytest.raises(UserError, match=f"is half made, with another .*{key}.*--overwrite=True"):
        prepare(replace(options(source), **{key: other[key]}), root)
    assert contents(root) == before
    assert_same_files(prepare(options(source), root), newer)
