"""Preparation: every byte is accounted for, a kill loses nothing, nothing half done is left."""

import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest

import corpus.reading
import corpus.sources
import corpus.writer
import nanoloop.programs
import prepare_data
from corpus.sources import python_files
from nanoloop.data import Data
from nanoloop.options import UserError
from nanoloop.programs import prepare_missing
from prepare_data import PrepareConfig, prepare
from tests.conftest import ROOT, make_documents


def write_texts(folder, texts) -> str:
    folder.mkdir(exist_ok=True)
    for index, text in enumerate(texts):
        (folder / f"{index:03}.txt").write_text(text)
    return str(folder)


def options(source, **more) -> PrepareConfig:
    defaults = {"name": "d", "tokenizer": "byte", "val_fraction": 0.2, "test_fraction": 0.2}
    return PrepareConfig(source=(source,), **(defaults | more))


def texts_by_split(folder) -> dict[str, list[str]]:
    data = Data(folder)
    texts = {}
    for split, stream in data.splits.items():
        text = data.tokenizer.decode(stream.read(0, len(stream))) if len(stream) else ""
        texts[split] = text.split("<|endoftext|>")[1:]
    return texts


def assert_same_files(first, second) -> None:
    """Compare what a preparation writes; hidden files remember what a reader has checked."""
    names, others = (
        sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
        for folder in (first, second)
    )
    assert names == others
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


# --------------------------------------------------------------------------------------------------
# Documents and splits


def test_every_document_begins_with_end_of_text(tmp_path):
    source = write_texts(tmp_path / "s", ["first", "second", "third"])
    data = Data(prepare(options(source, val_fraction=0, test_fraction=0), tmp_path))
    stream = data.splits["train"]
    expected = [*b"first", 256, *b"second", 256, *b"third"]
    assert stream.read(0, len(stream)).tolist() == [256, *expected]


def test_splits_share_no_text_and_their_bytes_add_up(tmp_path):
    texts = make_documents(60) + make_documents(10)  # ten texts occur twice
    folder = prepare(options(write_texts(tmp_path / "s", texts)), tmp_path)
    data = Data(folder)
    found = texts_by_split(folder)
    for split, counts in data.meta["splits"].items():
        assert counts == {
            "documents": len(found[split]),
            "tokens": len(data.splits[split]),
            "bytes": sum(len(text.encode()) for text in found[split]),
        }
    distinct = [text for split in found.values() for text in set(split)]
    assert sorted(distinct) == sorted(set(texts))


def test_the_split_of_a_document_does_not_depend_on_the_others(tmp_path):
    texts = make_documents(40)
    some = texts[::-2]
    all_folder = prepare(options(write_texts(tmp_path / "all", texts), name="a"), tmp_path)
    some_folder = prepare(options(write_texts(tmp_path / "some", some), name="b"), tmp_path)
    expected = [text for text in texts_by_split(all_folder)["val"] if text in some]
    assert sorted(texts_by_split(some_folder)["val"]) == sorted(expected)


def test_a_single_text_is_split_by_position(tmp_path):
    text = "".join(chr(97 + i % 26) for i in range(1000))
    (tmp_path / "one.txt").write_text(text)
    config = options(str(tmp_path / "one.txt"), val_fraction=0.1, test_fraction=0.2)
    found = texts_by_split(prepare(config, tmp_path))
    assert found == {"train": [text[:700]], "test": [text[700:900]], "val": [text[900:]]}


# Sources of more text than the limits: each is (name, content) of its files.
BEYOND = {
    "one text": [("a.txt", "tiny words " * 5000)],
    "one text of wide characters": [("a.txt", "語🙂é" * 5000)],
    "many texts": [(f"{i:02}.txt", text) for i, text in enumerate(make_documents(90))],
    "two long texts": [("a.txt", "one " * 9000), ("b.txt", "two " * 9000)],
    "one long line": [("a.jsonl", json.dumps({"text": "long line " * 9000}) + "\n")],
    "official splits": [
        (
            f"{split}.jsonl",
            "".join(json.dumps({"text": text}) + "\n" for text in make_documents(90)),
        )
        for split in ("test", "train", "validation")
    ],
}


@pytest.mark.parametrize("limit", [{"max_bytes": 2001}, {"max_documents": 9}], ids=str)
@pytest.mark.parametrize("case", BEYOND)
def test_a_limit_holds_for_all_splits_together(tmp_path, case, limit):
    (tmp_path / "s").mkdir()
    for name, content in BEYOND[case]:
        (tmp_path / "s" / name).write_text(content)
    source = str(tmp_path / "s" / name) if len(BEYOND[case]) == 1 else str(tmp_path / "s")
    folder = prepare(options(source, val_fraction=0.1, test_fraction=0.1, **limit), tmp_path)
    splits = Data(folder).meta["splits"]
    counts = {key: sum(split[key] for split in splits.values()) for key in ("documents", "bytes")}
    assert counts["documents"] <= limit.get("max_documents", 10**9)
    if "max_bytes" in limit:
        assert 2001 - 4 < counts["bytes"] <= 2001, "the last document is cut between characters"
    assert splits["train"]["bytes"] >= counts["bytes"] / 2, "held-out splits take their share"
    if case.startswith(("one text", "official")) and "max_bytes" in limit:
        assert splits["val"]["bytes"] and splits["test"]["bytes"]
    texts = "".join(content for _, content in BEYOND[case])
    for text in sum(texts_by_split(folder).values(), []):
        assert text.strip() in texts and "\ufffd" not in text


def test_no_text_beyond_a_limit_shapes_the_tokenizer(tmp_path):
    text = "ab" * 500 + "xy" * 5000
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}))
    config = options(str(tmp_path / "a.jsonl"), tokenizer="bpe:300", max_bytes=1000, val_fraction=0)
    tokens = Data(prepare(replace(config, test_fraction=0), tmp_path)).tokenizer.tokens
    assert b"abab" in tokens
    assert not [token for token in tokens if len(token) > 1 and b"x" in token and b"<" not in token]


def test_the_number_of_shards_changes_no_token(tmp_path):
    source = write_texts(tmp_path / "s", make_documents(30))
    single = Data(prepare(options(source, name="a"), tmp_path))
    many = Data(prepare(options(source, name="b", shard_tokens=97), tmp_path))
    assert len(many.splits["train"].shards) > 10
    count = len(single.splits["train"])
    tokens = many.splits["train"].read(0, count).tolist()
    assert tokens == single.splits["train"].read(0, count).tolist()


def test_preparing_twice_gives_the_same_files_and_another_text_another_fingerprint(tmp_path):
    source = write_texts(tmp_path / "s", make_documents(30))
    config = options(source, tokenizer="bpe:300")
    first = prepare(config, tmp_path / "x")
    assert_same_files(first, prepare(config, tmp_path / "y"))
    changed = write_texts(tmp_path / "s2", make_documents(29) + ["another text"])
    other = prepare(options(changed, tokenizer="bpe:300"), tmp_path)
    assert Data(other).fingerprint != Data(first).fingerprint


def test_what_is_left_out_is_counted_and_named(tmp_path, capsys):
    source = write_texts(tmp_path / "s", make_documents(20))
    (tmp_path / "s" / "empty.txt").write_bytes(b"")
    (tmp_path / "s" / "picture.png").write_bytes(b"\x89PNG\0\0")
    (tmp_path / "s" / "latin.txt").write_bytes("café ".encode("latin-1") * 10)
    meta = Data(prepare(options(source), tmp_path)).meta
    counts = {note: row["documents"] for note, row in meta["notes"].items()}
    assert counts == {"empty": 1, "binary": 1, "invalid UTF-8 replaced": 1}
    assert meta["notes"]["binary"]["examples"] == [[0, f"{source}/picture.png", ""]]
    assert "picture.png" in capsys.readouterr().out
    assert sum(split["documents"] for split in meta["splits"].values()) == 21


def test_the_next_command_names_the_recipe_of_this_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").symlink_to(ROOT / "config")
    source = write_texts(tmp_path / "s", make_documents(20))
    for name in ("shakespeare_char", "mine"):
        prepare(options(source, name=name))
    recipes = re.findall("to train on it: (.*)", capsys.readouterr().out)
    assert recipes == [
        "python train.py config/shakespeare_char.py",
        "python train.py config/quickstart.py --data=data/mine --out=out/mine",
    ]


def test_a_shell_reads_the_next_command_as_it_is_meant(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    name = 'it\'s "$HOME" `date` !1'
    prepare(options(write_texts(tmp_path / "s", make_documents(9)), name=name))
    (recipe,) = re.findall("to train on it: (.*)", capsys.readouterr().out)
    program = ["sh", "-c", f"printf '%s\\n' {recipe}"]
    printed = subprocess.run(program, capture_output=True, text=True).stdout
    assert printed.splitlines()[-2:] == [f"--data=data/{name}", f"--out=out/{name}"]


# --------------------------------------------------------------------------------------------------
# Kills


KILLS = [
    (0, {}),
    (1, {}),
    (5, {}),
    (2, {"shuffle_buffer": 7}),
    (3, {"duplicates": "near"}),
]


@pytest.mark.parametrize("n_commits, more", KILLS, ids=str)
def test_a_killed_preparation_resumes_to_the_same_bytes(
    tmp_path, monkeypatch, capsys, n_commits, more
):
    source = write_texts(tmp_path / "s", make_documents(30) + make_documents(5))
    (tmp_path / "s" / "long.txt").write_text(" ".join(make_documents(15, seed=1)))
    monkeypatch.setattr(corpus.reading, "BATCH_BYTES", 1000)
    monkeypatch.setattr(corpus.reading, "PIECE", 1500)
    monkeypatch.setattr(corpus.writer, "COMMIT_SECONDS", 0)
    config = options(source, tokenizer="bpe:300", shard_tokens=200, duplicates_mb=1, **more)
    expected = prepare(config, tmp_path / "expected")
    write_json = corpus.writer.write_json
    commits = []

    def kill_instead_of_a_note(path, value):
        if path.name == "progress.json":
            commits.append(path)
            if len(commits) > n_commits:
                raise KeyboardInterrupt  # the shards are ahead of the progress that is noted
        write_json(path, value)

    with monkeypatch.context() as patched:
        patched.setattr(corpus.writer, "write_json", kill_instead_of_a_note)
        with pytest.raises(KeyboardInterrupt):
            prepare(config, tmp_path / "data")
    assert not (tmp_path / "data" / "d").exists()  # nothing looks complete
    resumed = prepare(config, tmp_path / "data")
    said = capsys.readouterr().out
    assert ("resuming" in said) == (n_commits > 0)
    assert ("nothing to resume from: starting anew" in said) == (n_commits == 0)
    assert_same_files(resumed, expected)
    assert os.listdir(tmp_path / "data") == ["d"]


def leave_half_made(config, root, monkeypatch):
    """Prepare as if killed after the last commit; return the half-made folder."""
    with monkeypatch.context() as patched:
        patched.setattr(prepare_data, "finish", None)
        with pytest.raises(TypeError):
            prepare(config, root)
    return root / f".{config.name}.partial"


def test_other_options_do_not_resume_an_old_preparation(tmp_path, monkeypatch, capsys):
    source = write_texts(tmp_path / "s", make_documents(30))
    leave_half_made(options(source), tmp_path, monkeypatch)
    data = Data(prepare(options(source, tokenizer="bpe:300", overwrite=True), tmp_path))
    assert data.tokenizer.vocab_size == 300
    assert int(data.splits["train"].read(0, 50).max()) < 300
    assert "half made, with another tokenizer: deleting it" in capsys.readouterr().out


def test_progress_of_another_edition_is_not_resumed(tmp_path, monkeypatch):
    source = write_texts(tmp_path / "s", make_documents(10))
    expected = prepare(options(source), tmp_path / "expected")
    progress = leave_half_made(options(source), tmp_path, monkeypatch) / "progress.json"
    progress.write_text(progress.read_text().replace('"format": ', '"format": 1'))
    with pytest.raises(UserError, match="is half made, with another format"):
        prepare(options(source), tmp_path)
    assert_same_files(prepare(options(source, overwrite=True), tmp_path), expected)


def test_a_full_disk_keeps_what_is_done(tmp_path, monkeypatch, command):
    source = write_texts(tmp_path / "s", make_documents(40))
    monkeypatch.setattr(corpus.reading, "BATCH_BYTES", 1000)
    monkeypatch.setattr(corpus.writer, "COMMIT_SECONDS", 0)
    monkeypatch.chdir(tmp_path)
    flags = [f"--source={source}", "--name=d", "--tokenizer=byte"]
    expected = prepare(PrepareConfig(source=(source,), name="d", tokenizer="byte"), tmp_path / "x")
    append_tokens = corpus.writer.append_tokens
    calls = []

    def append_until_full(*arguments):
        calls.append(arguments)
        if len(calls) > 5:
            raise OSError(28, "No space left on device")
        append_tokens(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(corpus.writer, "append_tokens", append_until_full)
        failed = command(prepare_data.main, *flags)
    assert failed.code == 2
    assert "make room on the disk" in failed.err
    assert "Traceback" not in failed.err
    resumed = command(prepare_data.main, *flags)
    assert resumed.code == 0
    assert "resuming" in resumed.out
    assert_same_files(tmp_path / "data" / "d", expected)


# --------------------------------------------------------------------------------------------------
# Known sources


def test_the_python_source_is_the_standard_library_without_tests():
    files = python_files(include_site_packages=False)
    names = {"/".join(path.parts[-2:]) for path in files}
    assert "json/decoder.py" in names
    assert any(name.endswith("/argparse.py") for name in names)
    unwanted = {"test", "tests", "site-packages", "_vendor"}
    assert not any(unwanted & set(path.parts) for path in files)


def test_tiny_shakespeare_is_split_as_nanogpt_does(tmp_path):
    """nanoGPT trains on text[: int(0.9 * n)]."""
    text = ROOT.parent / "shared" / "data" / "tinyshakespeare.txt"
    if not text.is_file():
        pytest.skip("the text is not on this machine")
    config = options(str(text), val_fraction=0.1, test_fraction=0)
    splits = Data(prepare(config, tmp_path)).splits
    assert [len(splits[name]) for name in splits] == [1 + 1_003_854, 1 + 111_540, 0]


def test_shakespeare_without_a_network_names_the_command_that_works(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(corpus.sources, "SHAKESPEARE_URL", "http://127.0.0.1:9/input.txt")
    result = command(prepare_data.main, "--source=shakespeare")
    assert result.code == 2
    assert "Traceback" not in result.err
    flags = "--name=shakespeare_char --tokenizer=byte --val_fraction=0.1 --test_fraction=0"
    assert f"--source=PATH/input.txt {flags}" in result.err
    assert not (tmp_path / "data").exists()


def test_shakespeare_is_downloaded_once_and_checked(tmp_path, monkeypatch):
    text = tmp_path / "input.txt"
    text.write_text("ROMEO: " * 100)
    monkeypatch.setattr(corpus.sources, "SHAKESPEARE_URL", text.as_uri())
    with pytest.raises(UserError, match="SHA-256"):
        prepare(PrepareConfig(source=("shakespeare",)), tmp_path / "data")
    sha256 = hashlib.sha256(text.read_bytes()).hexdigest()
    monkeypatch.setattr(corpus.sources, "SHAKESPEARE_SHA256", sha256)
    folder = prepare(PrepareConfig(source=("shakespeare",)), tmp_path / "data")
    data = Data(folder)
    assert folder.name == "shakespeare_char"
    assert data.tokenizer.name == "byte"
    assert [len(stream) for stream in data.splits.values()] == [631, 71, 0]
    text.unlink()  # the second time it reads its copy
    again = prepare(PrepareConfig(source=("shakespeare",), overwrite=True), tmp_path / "data")
    assert Data(again).fingerprint == data.fingerprint
    (tmp_path / "data" / "tinyshakespeare.txt").write_text("my notes on Hamlet")
    with pytest.raises(UserError, match="is another text.*move it away"):
        prepare(PrepareConfig(source=("shakespeare",), overwrite=True), tmp_path / "data")
    assert (tmp_path / "data" / "tinyshakespeare.txt").read_text() == "my notes on Hamlet"


# --------------------------------------------------------------------------------------------------
# The command


def test_the_command_works_as_a_program_and_overwrites_nothing(tmp_path, monkeypatch, command):
    (tmp_path / "text.txt").write_text("hello world. " * 200)
    flags = ["--source=text.txt", "--tokenizer=bpe:300", "--workers=1"]
    program = [sys.executable, str(ROOT / "prepare_data.py"), *flags]
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *_, ready, report, hint = done.stdout.splitlines()
    assert "data/text is ready" in ready
    assert (tmp_path / report.removeprefix("report: ")).read_text().startswith("<!doctype html>")
    assert hint.endswith("train.py config/quickstart.py --data=data/text --out=out/text")
    monkeypatch.chdir(tmp_path)
    again = command(prepare_data.main, *flags)
    assert again.code == 2
    assert "'data/text' exists: type --overwrite=True" in again.err


BAD = {
    "--source= is empty": {"source": ("",)},
    "a sum below 1": {"val_fraction": 0.5, "test_fraction": 0.5},
    "max_documents must be at least 1": {"max_documents": 0},
    "workers must be at least 1": {"workers": -1},
    "shard_tokens must be .* below 2\\*\\*31": {"shard_tokens": 2**31},
    "seed must be at least 0": {"seed": -1},
    "needs --source=python": {"include_site_packages": True},
    "cannot name a folder": {"name": "a/b"},
    "--source=.* is a folder without files": {},
}


@pytest.mark.parametrize("message", BAD)
def test_options_that_make_no_sense_are_refused_before_anything_is_written(tmp_path, message):
    (tmp_path / "empty").mkdir()
    config = PrepareConfig(**({"source": (str(tmp_path / "empty"),)} | BAD[message]))
    with pytest.raises(UserError, match=message.replace("= is", " is")):
        prepare(config, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_text_without_a_training_split_is_refused_with_what_was_found(tmp_path):
    (tmp_path / "s").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "s" / name).write_bytes(b"\x89PNG\0")
    with pytest.raises(UserError, match="no training text: 2 binary"):
        prepare(options(str(tmp_path / "s")), tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("data", ["data/mine", "data/mine/", "./data/mine"])
def test_missing_data_is_prepared_with_options_that_keep_their_quotes(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    programs = []
    monkeypatch.setattr(
        nanoloop.programs, "run_script", lambda *call: programs.append(call) or True
    )
    options = "--source='my texts' \"it's.txt\" --name=mine"
    assert prepare_missing(data, options) == data
    assert prepare_missing("data/other", options) == "data/other"
    assert programs == [("prepare_data.py", ["--source=my texts", "it's.txt", "--name=mine"])]
