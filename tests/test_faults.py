"""What a run does when the disk, a signal, the terminal or its loss fails; and what it never runs.

Killed processes and real disks are in tests/slow/drill.py.
"""

import ast
import contextlib
import json
import mmap
import multiprocessing
import os
import resource
import signal
import stat
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import prepare_data
import train
from model import GPT, GPTConfig
from nanoloop import checkpoint, device, options
from nanoloop.device import peak_memory_mb, require_memory
from nanoloop.files import locked, write_if_possible
from nanoloop.options import EXIT_RESUMABLE, StopFlag, UserError, print_safely
from nanoloop.runlog import RUN_FILES, RunLog
from tests.conftest import ROOT, SMALL, make_documents

# ------------------------------------------------------------------------------------------------
# The disk


@contextlib.contextmanager
def file_size_limit(size: int):
    """Let the system refuse to write beyond `size` bytes of a file: a disk that fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, capsys):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with file_size_limit(1000):
        is_written = write_if_possible(path, lambda file: file.write(bytes(2000)))
    assert not is_written
    assert f"'{path}' was NOT written" in capsys.readouterr().out
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("file", b"old")]


def test_a_defect_while_a_file_is_written_is_raised(tmp_path):
    with pytest.raises(ZeroDivisionError):
        write_if_possible(tmp_path / "file", lambda file: 1 / 0)


def test_a_run_whose_last_checkpoint_fails_says_so_and_keeps_the_one_before(
    command, data_dir, tmp_path
):
    flags = [f"--{key}={value}" for key, value in SMALL.items()]
    flags += [f"--data={data_dir}", f"--out={tmp_path / 'run'}"]
    assert command(train.main, *flags, "--max_steps=2").code == 0
    last = tmp_path / "run" / "last.pt"
    before = last.read_bytes()
    with file_size_limit(20_000):
        result = command(train.main, *flags, "--max_steps=4", "--resume=True")
    assert result.code == 2
    assert "step 4" in result.err
    assert "last.pt' was NOT written" in result.out
    assert "Make room" in result.out
    assert last.read_bytes() == before


LOGGED = {
    "batch_tokens": 10,
    "overwrite": False,
    "wandb": False,
    "eval_only": False,
    "max_steps": None,
}


@pytest.mark.parametrize(
    "step, max_steps, is_warned", [(10, None, True), (40, None, False), (10, 50, False)]
)
def test_a_run_warns_where_it_holds_too_few_steps_for_a_schedule(
    tmp_path, step, max_steps, is_warned, capsys
):
    """A fifth of 50 steps, and a fifth of 200; a number of steps is what the user asked for."""
    log = RunLog(tmp_path, LOGGED | {"max_steps": max_steps}, 0, 0.0, 1, 1.0, None)
    log.write(1, 6.0, 0.1, {"loss": 3.0})
    log.write(step, 12.0, 0.2, {"loss": 2.0})
    warning = "about 50 steps fit into this run, too few for a schedule: set fewer --batch"
    assert (warning in capsys.readouterr().out) == is_warned


def test_a_log_that_could_not_be_written_is_complete_after_the_next_row(tmp_path):
    config = LOGGED
    log = RunLog(tmp_path, config, 0, 0.0, 1, 1.0, None)
    log.write(1, 1.0, 0.1, {"loss": 3.0})
    size = (tmp_path / "log.jsonl").stat().st_size
    with file_size_limit(size + 20):
        log.write(2, 2.0, 0.2, {"loss": 2.0})
    log.write(3, 3.0, 0.3, {"loss": 1.0})
    (tmp_path / "log.jsonl").unlink()
    log.write(4, 4.0, 0.4, {"loss": 0.5})
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 3.0), (2, 2.0), (3, 1.0), (4, 0.5)]


def test_a_resumed_log_drops_later_rows_and_a_row_cut_off_by_a_kill(tmp_path):
    lines = [json.dumps({"step": step, "tokens": 10 * step}) for step in (1, 2, 3)]
    (tmp_path / "log.jsonl").write_text("\n".join(lines) + '\n{"step": 4, "tok')
    config = LOGGED
    RunLog(tmp_path, config, 2, 2.0, 1, 1.0, None)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]


def test_a_resumed_run_continues_its_run_of_wandb_and_a_new_one_does_not(tmp_path, monkeypatch):
    ids = []

    def init(id=None, **options):
        ids.append(id)
        return SimpleNamespace(id=id or f"new {len(ids)}")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, Error=OSError))
    config = {"batch_tokens": 10, "overwrite": False, "wandb": True, "eval_only": False}
    for overwrite in (False, False, True, False):
        RunLog(tmp_path, config | {"overwrite": overwrite}, 0, 0.0, 1, 1.0, None)
    assert ids == [None, "new 1", None, "new 3"]


def test_temporary_files_of_a_killed_run_are_removed_and_no_others(config, tmp_path):
    (tmp_path / "run").mkdir()
    for name in [*RUN_FILES, "mine"]:
        (tmp_path / "run" / f"{name}.tmp").write_bytes(b"half")
    train.train(config())
    assert [path.name for path in (tmp_path / "run").glob("*.tmp")] == ["mine.tmp"]


def test_a_folder_is_locked_for_others_and_free_afterwards(tmp_path):
    folder = tmp_path / "a" / "b"
    with locked(folder / ".lock", "first"):
        with pytest.raises(UserError, match="second"):
            with locked(folder / ".lock", "second"):
                pass
    assert list(tmp_path.iterdir()) == [], "the folders existed only for the lock"
    with locked(folder / ".lock", "third"):
        (folder / "file").touch()
    assert (folder / "file").exists()


def test_damaged_checkpoints_are_skipped_for_the_one_before(config, tmp_path, capsys):
    train.train(config(max_steps=2, save_interval=1))
    run = tmp_path / "run"
    content = bytearray((run / "last.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (run / "last.pt").write_bytes(content)
    before = sorted(os.listdir(run))
    assert checkpoint.load_latest(run, rename=False)["step"] == 1
    train.train(config(resume=True, eval_only=True))
    assert sorted(os.listdir(run)) == before, "another run may be writing here"
    assert checkpoint.load_latest(run, rename=True)["step"] == 1
    assert "skipped" in capsys.readouterr().err
    assert (run / "last.damaged").exists()


@pytest.mark.parametrize(
    "before, after",
    [("bfloat16", "float16"), ("float16", "bfloat16")],
)
def test_a_run_resumes_on_a_machine_with_another_dtype(before, after, config, tmp_path):
    train.train(config(max_steps=2, dtype=before))
    summary = train.train(config(max_steps=3, dtype=after, resume=True))
    assert summary["val_loss"] < 6
    last = checkpoint.load(tmp_path / "run" / "last.pt")
    assert last["step"] == 3
    assert bool(last["scaler"]) == (after == "float16")
    assert {weight.dtype for weight in last["model"].values()} == {torch.float32}


@pytest.mark.parametrize("options", [{"resume": True}, {"init_from": "run", "out": "tuned"}])
def test_a_checkpoint_is_not_kept_in_memory_while_the_run_trains(options, config, monkeypatch):
    monkeypatch.chdir(Path(config().out).parent)
    train.train(config(max_steps=1, out="run"))
    loaded = []
    load = checkpoint.load

    def load_and_note(path):
        found = load(path)
        tensors = list(found["model"].values())
        if not options.get("resume"):
            tensors += [t for state in found["optimizer"].values() for t in state.values()]
        loaded.extend(map(weakref.ref, tensors))
        return found

    def step(*arguments):
        assert len(loaded) > 10
        assert [tensor for tensor in loaded if tensor() is not None] == []
        return torch.ones(())

    monkeypatch.setattr(checkpoint, "load", load_and_note)
    monkeypatch.setattr(train, "train_step", step)
    train.train(config(max_steps=2, **{"out": "run"} | options))


# ------------------------------------------------------------------------------------------------
# Signals, terminals, losses, memory


@pytest.fixture
def handlers():
    """Put the signal handlers back after a test."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("later", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_and_a_later_one_ends_the_program(
    number, later, handlers, capsys, monkeypatch
):
    now = 100.0
    monkeypatch.setattr(options.time, "monotonic", lambda: now)
    stop = StopFlag()
    stop.listen()
    assert stop.signal is None
    signal.raise_signal(number)
    assert stop.signal == number
    assert "finishing this step" in capsys.readouterr().out
    signal.raise_signal(signal.SIGHUP)  # ignored: a closed terminal

    # `timeout` and launchers pass a signal on that the process has received too.
    now += 1
    signal.raise_signal(later)
    signal.raise_signal(number)
    assert stop.signal == number
    assert signal.getsignal(later) == stop.handle

    now += 5
    raised = []
    monkeypatch.setattr(options.signal, "raise_signal", raised.append)
    stop.handle(later, None)
    assert raised == [later]
    assert signal.getsignal(later) is signal.SIG_DFL


def test_printing_to_a_closed_pipe_is_no_error(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        print_safely("to nobody")
        print_safely("and again")
        print("what follows goes nowhere, without an error", flush=True)


def test_printing_to_a_full_disk_is_no_error(monkeypatch):
    with open("/dev/full", "wb", buffering=0) as device:
        stream = os.fdopen(os.dup(device.fileno()), "w")
        monkeypatch.setattr(sys, "stdout", stream)
        print_safely("no room")
        with pytest.raises(OSError):
            stream.close()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n_layer": 40, "n_embd": 64},
        {"n_kv_head": 1, "tie_embeddings": True, "value_embeds": 0},
        {"activation": "swiglu", "n_embd": 132, "bigram_rows": 500},
    ],
)
def test_no_model_is_refused_that_the_memory_could_hold(options, monkeypatch):
    """The estimate counts less than weights, gradients, a moment of each, and Python's objects."""
    defaults = dict(n_layer=3, n_head=2, n_embd=96, vocab_size=300, block_size=64, value_embeds=2)
    config = GPTConfig(**(defaults | options))
    weights = sum(p.numel() for p in GPT(config).parameters())
    enough = 12 * weights + 24_000 * config.n_layer + 1
    monkeypatch.setattr(device, "memory_limit", lambda: enough)
    require_memory(config, 0, True)
    monkeypatch.setattr(device, "memory_limit", lambda: 2 * weights)
    with pytest.raises(UserError, match="GB of memory.*smaller --n_layer"):
        require_memory(config, 0, True)


def measure_memory(path, results) -> None:
    cpu = torch.device("cpu")
    before = peak_memory_mb(cpu)
    shard = np.memmap(path, "<u2")
    shard.max()
    mapped = peak_memory_mb(cpu)
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # no memory that earlier tests have freed
    objects = np.frombuffer(mmap.mmap(-1, 64 << 20, flags=private), "u1")
    objects[:] = 1
    results.put((mapped - before, peak_memory_mb(cpu) - mapped))


@pytest.mark.skipif(sys.platform != "linux", reason="needs fork and /proc")
def test_the_memory_of_a_run_is_what_it_holds_without_the_data_it_has_mapped(tmp_path):
    path = tmp_path / "shard"
    path.write_bytes(bytes(64 << 20))
    processes = multiprocessing.get_context("fork")  # the peak of a fork begins anew
    results = processes.Queue()
    process = processes.Process(target=measure_memory, args=(path, results))
    process.start()
    for_data, for_objects = results.get(timeout=60)
    process.join()
    assert for_data < 16
    assert for_objects > 48


# ------------------------------------------------------------------------------------------------
# Nobody gets in

SOURCES = [
    path
    for pattern in ("*.py", "nanoloop/*.py", "corpus/*.py", "config/*.py", "bench/*.py")
    for path in sorted(ROOT.glob(pattern))
] + sorted(ROOT.glob("research/**/*.py"))

# What runs code that stands in a file, and why it may.
RUNS_CODE = {
    ("nanoloop/options.py", "run_path"),  # config files are Python and run as the user
    ("bench/peers.py", "run_path"),  # the train.py of a peer, in a process of its own
    ("research/referee/starter.py", "run_path"),  # candidates, in the sandbox
    ("corpus/synthetic.py", "exec"),  # a program of three statements that it has built itself
}
RUNNING = {"exec", "run_path", "run_module", "execfile", "__import__", "unpickle", "Unpickler"}
OPENING = {"listen", "bind", "create_server", "serve_forever", "start_server"}


def calls(path) -> list[tuple[ast.Call, str]]:
    """List the calls in a file, each with the last part of the name that is called."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            found.append((node, name))
    return found


def runs_code(call: ast.Call, name: str) -> bool:
    # `model.eval()` is a method of torch, `eval("1")` is not.
    is_eval = name == "eval" and (call.args or isinstance(call.func, ast.Name))
    return name in RUNNING or bool(is_eval)


def test_no_code_is_run_from_files_but_config_files_and_candidates():
    found = {
        (str(path.relative_to(ROOT)), name)
        for path in SOURCES
        for call, name in calls(path)
        if runs_code(call, name)
    }
    assert found <= RUNS_CODE, found - RUNS_CODE


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_unpickled_and_no_port_is_opened(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = {alias.name.split(".")[0] for node in imports for alias in node.names}
    modules |= {(getattr(node, "module", None) or "").split(".")[0] for node in imports}
    assert not modules & {"pickle", "dill", "joblib", "shelve", "cloudpickle"}
    for call, name in calls(path):
        owner = getattr(getattr(call.func, "value", None), "id", "")
        assert name not in OPENING or owner == "stop"  # a StopFlag listens for signals
        options = {keyword.arg: keyword.value for keyword in call.keywords}
        # An exported folder's code is the copy of this project's that was just written.
        assert "trust_remote_code" not in options or path.name == "export.py"
        if name == "load" and owner in ("torch", "np", "numpy"):
            safe = getattr(options.get("weights_only"), "value", False)
            assert safe is True, f"line {call.lineno}"


def test_nothing_is_written_that_everybody_can_write(tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("".join(make_documents(9)))
    before = os.umask(0)
    try:
        options = ["--source=text.txt", "--name=n", "--tokenizer=byte"]
        assert command(prepare_data.main, *options).code == 0
        os.umask(0)
        flags = [f"--{key}={value}" for key, value in SMALL.items()]
        assert command(train.main, *flags, "--data=data/n", "--max_steps=1").code == 0
    finally:
        os.umask(before)
    written = [*(tmp_path / "out").rglob("*"), *(tmp_path / "data").rglob("*")]
    assert len(written) > 10
    assert [path for path in written if path.lstat().st_mode & stat.S_IWOTH] == []


def test_the_exit_code_of_a_stopped_run_asks_to_try_again():
    assert EXIT_RESUMABLE == os.EX_TEMPFAIL
