"""Preparations that are killed at random moments, interrupted, or lose a worker."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

from corpus.workers import ordered_map
from nanoloop.data import Data
from nanoloop.options import UserError
from prepare_data import PrepareConfig, prepare
from tests import worker_tasks
from tests.conftest import ROOT, make_documents


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Write 5 MB of JSON lines; return the flags that prepare them and the result."""
    folder = tmp_path_factory.mktemp("large")
    texts = [" ".join(make_documents(20, seed)) for seed in range(1250)]
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    options = {"tokenizer": "byte", "duplicates": "near", "name": "d"}
    flags = [f"--{key}={value}" for key, value in options.items()]
    expected = prepare(PrepareConfig(source=(str(path),), **options), folder)
    return [f"--source={path}", "--workers=2", *flags], expected


PROGRAM = """
import sys
import corpus.writer
import prepare_data
from nanoloop.options import run_program
corpus.writer.COMMIT_SECONDS = 0  # so that each start gets a little further
run_program(prepare_data.main)
"""


def start(flags, folder) -> subprocess.Popen:
    program = [sys.executable, "-c", PROGRAM, *flags]
    return subprocess.Popen(
        program,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def assert_same_files(first, second) -> None:
    """Compare what a preparation writes; hidden files remember what a reader has checked."""
    names, others = (
        sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
        for folder in (first, second)
    )
    assert names == others
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_killed_at_random_moments_it_ends_with_the_same_bytes(tmp_path, large):
    """Reading to the end of its output also says that no worker has outlived it."""
    flags, expected = large
    rng = random.Random(0)
    kills = 0
    while not (tmp_path / "data" / "d").exists():
        process = start(flags, tmp_path)
        # Later and later, so that it ends on any machine.
        timer = threading.Timer(rng.uniform(0.5, 1.5) + kills / 4, process.kill)
        timer.start()
        _, errors = process.communicate()
        timer.cancel()
        if process.returncode == -signal.SIGKILL:
            kills += 1
        else:
            assert process.returncode == 0, errors
    assert kills > 1
    assert_same_files(tmp_path / "data" / "d", expected)


def kill_at_event(number, config, root) -> bool:
    """Prepare in a process that dies before its event `number` in the file system.

    Return whether it came so far: the name of each event is one of sys.audit's.
    """
    pid = os.fork()
    if pid == 0:
        events = []

        def count(event, arguments):
            is_write = event == "open" and str(arguments[1])[0] in "wax"
            if is_write or event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link"):
                events.append(event)
                if len(events) > number:
                    os._exit(1)

        sys.addaudithook(count)
        with open(os.devnull, "w") as sys.stdout:
            prepare(config, root)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    return status != 0


@pytest.mark.parametrize("kind", ["text", "tokens"])
def test_killed_at_every_moment_it_ends_with_the_same_bytes(tmp_path, kind, monkeypatch):
    """Over an older folder, which is complete, or comes back, until the new one is."""
    for name, seed in [("old", 1), ("new", 2)]:
        (tmp_path / name).mkdir()
        for index, text in enumerate(make_documents(9, seed)):
            (tmp_path / name / f"{index}.txt").write_text(text)
    options = {"name": "d", "tokenizer": "byte", "val_fraction": 0.6}
    config = PrepareConfig(source=(str(tmp_path / "new"),), overwrite=True, **options)
    if kind == "tokens":
        tokens = prepare(config, tmp_path / "tokens")
        config = replace(config, source=(str(tokens),), tokenizer=None)
    expected = prepare(config, tmp_path / "expected")
    older = prepare(PrepareConfig(source=(str(tmp_path / "old"),), **options), tmp_path / "older")
    root = tmp_path / "data"
    number = 0
    is_killed = True
    while is_killed:
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(older, root / "d")
        is_killed = kill_at_event(number, config, root)
        if number % 2:  # first another command, which is refused
            with pytest.raises(UserError, match="type --overwrite=True"):
                prepare(replace(config, overwrite=False), root)
            assert Data(root / "d").fingerprint in {
                Data(older).fingerprint,
                Data(expected).fingerprint,
            }
        assert_same_files(prepare(config, root), expected)
        assert os.listdir(root) == ["d"]
        number += 1
    assert number > 20


def test_two_preparations_of_one_name_destroy_nothing(tmp_path, large):
    """Started together: one does the work, the other is refused or finds it done."""
    flags, expected = large
    processes = [start(flags, tmp_path) for _ in range(2)]
    outputs = [process.communicate() for process in processes]
    assert sorted(process.returncode for process in processes) == [0, 2]
    errors = "".join(errors for _, errors in outputs)
    assert "is being prepared by another process" in errors or "exists" in errors
    assert_same_files(tmp_path / "data" / "d", expected)
    assert os.listdir(tmp_path / "data") == ["d"]


def test_ctrl_c_ends_all_processes_with_one_word(tmp_path, large):
    """A terminal sends it to all of them."""
    flags, _ = large
    process = start(flags, tmp_path)
    while not (tmp_path / "data" / ".d.partial" / "tokenizer.json").exists():
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate()  # until the last worker has closed its end
    assert process.returncode == 130
    assert "interrupted" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("seed", range(20))
def test_a_worker_killed_at_a_random_moment_ends_the_work(seed):
    """Mostly it is writing 50 MB. The parent ends with the message, or with all results."""
    rng = random.Random(seed)
    sizes = [50_000_000] * 8
    results = ordered_map(worker_tasks.make_large_result, sizes, 2)
    assert len(next(results)) == sizes[0]
    victim = rng.choice(multiprocessing.active_children())
    timer = threading.Timer(rng.uniform(0, 0.3), victim.kill)
    timer.start()
    try:
        assert len(list(results)) == 7
    except UserError as error:
        assert "a worker was killed (out of memory?)" in str(error)
    timer.join()
    assert not multiprocessing.active_children()
