"""Several ranks compute what one process computes, however a global batch is split.

The ranks talk over gloo on the CPU, or NCCL where the machine has two GPUs. More ranks, torchrun,
kills and signals: tests/slow/test_ranks.py.
"""

import json
import multiprocessing
import os
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import train
from model import GPT, GPTConfig
from nanoloop import checkpoint, ranks
from nanoloop.data import open_data
from nanoloop.muon import orthogonalize
from nanoloop.options import UserError, run_program
from nanoloop.ranks import share_work
from nanoloop.runlog import RunLog

# The ranks are forks of a server that imports once what a run needs, so a run starts in a moment.
PRELOADED = [
    "train",
    "tyro",
    "torch._dynamo",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
]
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(PRELOADED)
GPUS = torch.cuda.device_count()
RECIPE = {
    "block_size": 32,
    "n_layer": 3,
    "n_head": 2,
    "n_embd": 32,
    "value_embeds": 1,
    "batch_tokens": 256,
    "micro_batch_size": 2,
    "max_steps": 9,
    "dtype": "float32",
    "log_interval": 1,
    "eval_interval": 4,
    "save_interval": 4,
    "grad_clip": 5.0,
    "device": "auto" if GPUS else "cpu",
}
needs_two_gpus_or_none = pytest.mark.skipif(GPUS == 1, reason="needs two GPUs, or none")


def flags(folder: Path, data_dir: Path, **options) -> list[str]:
    values = {"data": data_dir, "out": folder} | RECIPE | options
    return [f"--{key}={value}" for key, value in values.items()]


def run_ranks(
    count: int, folder: Path, data_dir: Path, last: dict | None = None, **options
) -> SimpleNamespace:
    """Run train.py in `count` processes; return exit code, output and errors of all together.

    last: options that only the last rank has.
    """
    if 0 < GPUS < count:
        pytest.skip(f"needs {count} GPUs")
    streams = [folder.with_name(f"{folder.name}.{name}") for name in ("out", "err")]
    for stream in streams:
        stream.write_text("")
    port = free_port()
    processes = []
    for rank in range(count):
        changes = last if last and rank == count - 1 else {}
        arguments = flags(folder, data_dir, **options | changes)
        # One rank is a plain `python train.py`.
        variables = launcher_variables(count, rank, port) if count > 1 else {}
        process = SERVER.Process(target=be_rank, args=(variables, arguments, streams))
        process.start()
        processes.append(process)
    code = join(processes)
    return SimpleNamespace(code=code, out=streams[0].read_text(), err=streams[1].read_text())


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def launcher_variables(count: int, rank: int, port: int) -> dict:
    variables = {"WORLD_SIZE": count, "RANK": rank, "LOCAL_RANK": rank}
    return variables | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}


def join(processes: list) -> int:
    """Wait for processes to end; return the largest of their exit codes, 0 if all succeeded."""
    for process in processes:
        process.join(240)
        process.kill()
        process.join()
    return max(abs(process.exitcode) for process in processes)


def be_rank(variables: dict, arguments: list[str], streams: list[Path]) -> None:
    """Be one rank: the process of a forkserver becomes a `python train.py`."""
    for number, stream in enumerate(streams, start=1):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_APPEND), number)
    # The old sys.stdout knows another file.
    sys.stdout = open(1, "w", closefd=False)
    sys.stderr = open(2, "w", closefd=False)
    os.environ |= {name: str(value) for name, value in variables.items()}
    torch.set_num_threads(1)
    RunLog.draw = lambda log: None  # the picture takes as long as the run
    sys.argv = ["train.py", *arguments]
    run_program(train.main, many=True)


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    keys = ("loss", "val_loss", "val_bpb")
    return [row[key] for row in rows(folder) for key in keys if key in row]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(folder / "last.pt")["model"]


@pytest.fixture(scope="session")
def single(tmp_path_factory, data_dir) -> Path:
    """Run in one process, with accumulation: what all others have to equal."""
    folder = tmp_path_factory.mktemp("single") / "run"
    result = run_ranks(1, folder, data_dir)
    assert result.code == 0, result.err
    return folder


def assert_same_run(folder: Path, single: Path) -> None:
    assert losses(folder) == pytest.approx(losses(single), rel=1e-4)
    assert sorted(os.listdir(folder)) == sorted(os.listdir(single)), "no temporary file is left"
    found = weights(folder)
    for name, weight in weights(single).items():
        # AdamW divides tiny gradients by their size.
        torch.testing.assert_close(found[name], weight, rtol=0, atol=2e-3)


@needs_two_gpus_or_none
def test_two_ranks_learn_what_one_process_learns(single, data_dir, tmp_path):
    """tests/slow/test_ranks.py has four of them, sharded too."""
    result = run_ranks(2, tmp_path / "run", data_dir)
    assert result.code == 0, result.err
    assert result.out.count("tokens a step") == 1, "only rank 0 prints"
    assert result.err == "", "nothing to warn of"
    assert_same_run(tmp_path / "run", single)


@pytest.mark.parametrize(
    "name, other",
    [("step", 8), ("seconds", 0.5), ("data", "0123456789abcdef"), ("head_lr", 0.1), ("seed", 2)],
)
def test_ranks_of_different_runs_are_refused(name, other, config, data_dir, monkeypatch):
    def gather(gathered, values):
        gathered[:] = [values, values | {name: other}]

    monkeypatch.setattr(ranks, "world_size", lambda: 2)
    monkeypatch.setattr(ranks.dist, "all_gather_object", gather)
    with pytest.raises(UserError, match=f"rank 1 has {name}={other}, rank 0 has .*one command"):
        checkpoint.complete(config(), None, open_data(data_dir), resuming=False)


def test_the_paths_of_one_run_may_differ_between_machines(config, data_dir, monkeypatch):
    seen = []
    monkeypatch.setattr(checkpoint, "require_equal", seen.append)
    data = open_data(data_dir)
    for change in ({"out": "here"}, {"out": "there"}, {"data": "elsewhere"}):
        checkpoint.complete(config(**change), None, data, resuming=False)
    assert seen[0] == seen[1] == seen[2]


@pytest.mark.parametrize(
    "variables",
    [{"WORLD_SIZE": "4"}, {"RANK": "0"}, {"RANK": "1", "WORLD_SIZE": "2"}, {"RANK": "one"}],
)
def test_half_of_a_launchers_variables_are_refused(variables, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="cannot connect .*torchrun, or type `unset RANK"):
        with ranks.connected():
            pass


def test_sharding_in_a_single_process_is_refused_before_the_folder_is_written(config, tmp_path):
    with pytest.raises(UserError, match="shard=True .*type torchrun"):
        train.train(config(shard=True))
    assert not (tmp_path / "run").exists()


def bytes_held(model: GPT) -> int:
    """Count the bytes of parameters and buffers, of which those on the meta device have none."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum(tensor.nbytes for tensor in tensors if not tensor.is_meta)


def save_sharded_model(variables: dict, options: dict, folder: Path) -> None:
    """Be one rank: build a sharded model; write down what this rank holds before and after."""
    os.environ |= {name: str(value) for name, value in variables.items()}
    torch.set_num_threads(1)
    held = {}

    def make_model() -> GPT:
        torch.manual_seed(ranks.rank())  # the weights are to be those of rank 0's seed
        model = GPT(GPTConfig(**options))
        held["bytes"] = bytes_held(model)
        return model

    with ranks.connected():
        model = ranks.build(make_model, torch.device("cpu"), is_sharded=True)
        held["weights"] = ranks.gathered(model.state_dict())
        held["buffers"] = dict(model.named_buffers())
        held["rows"] = len(ranks.local(model.wte.weight))
        held["is_tied"] = model.lm_head.weight is model.wte.weight
        torch.save(held, folder / f"{ranks.rank()}.pt")


def test_rank_0_alone_makes_the_weights_of_a_sharded_model(tmp_path):
    """They are bit for bit those of a model that is not sharded."""
    options = dict(block_size=32, vocab_size=100, n_layer=3, n_head=2, n_embd=20, value_embeds=1)
    options |= dict(bigram_rows=7, n_kv_head=1, activation="swiglu", norm="layer", bias=True)
    options |= dict(tie_embeddings=True)
    port = free_port()
    processes = []
    for rank in range(2):
        arguments = (launcher_variables(2, rank, port), options, tmp_path)
        processes.append(SERVER.Process(target=save_sharded_model, args=arguments))
        processes[-1].start()
    assert join(processes) == 0
    torch.manual_seed(0)
    expected = GPT(GPTConfig(**options))
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert first["bytes"] == bytes_held(expected)
    assert second["bytes"] == 0
    weights = expected.state_dict()
    assert first["weights"].keys() == weights.keys()
    for name, weight in weights.items():
        assert torch.equal(first["weights"][name], weight), name
    for held in (first, second):
        assert held["rows"] == len(expected.wte.weight) / 2
        assert held["is_tied"] == (expected.lm_head.weight is expected.wte.weight)
        assert held["buffers"].keys() == dict(expected.named_buffers()).keys()
        for name, buffer in expected.named_buffers():
            assert torch.equal(held["buffers"][name], buffer), name


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("count", [1, 2])
def test_several_ranks_map_a_checkpoint_and_share_its_pages(count, config, tmp_path, monkeypatch):
    """Then it is in memory once, and a rank with a shard reads its own rows alone."""
    train.train(config(max_steps=1))
    path = tmp_path / "run" / "last.pt"
    monkeypatch.setattr(checkpoint, "world_size", lambda: count)
    start = checkpoint.load(path)
    assert start["step"] == 1
    assert (str(path) in Path("/proc/self/maps").read_text()) == (count > 1)


def test_a_single_process_shares_its_work_with_nobody():
    stack = torch.randn(3, 8, 4)
    shared = share_work(orthogonalize, stack, 8, is_sharded=False)
    assert torch.equal(shared, orthogonalize(stack))
