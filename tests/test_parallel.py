"""Many processes: however a global batch is split, the same losses; whoever fails, all end with its message.

The processes talk over gloo on the CPU; with GPUs the same tests run over NCCL. torchrun starts them where it is torchrun
that matters; elsewhere they are forks of a server that has imported torch once, and told their places as it would.
"""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time

import console
import pytest
import torch

import sample
import train
from nanoloop.checkpoint import load_checkpoint, read_tensors
from nanoloop.ranks import share
from tests.conftest import ROOT

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["torch._dynamo", "torch.distributed.fsdp", "train"])
GPUS = torch.cuda.device_count()
RECIPE = dict(
    block_size=32,
    n_layer=3,
    n_head=2,
    n_embd=32,
    value_embeds=1,
    batch_tokens=256,
    micro_batch_size=2,
    max_steps=9,
    dtype="float32",
    log_interval=1,
    eval_interval=4,
    save_interval=4,
    grad_clip=5.0,
    device="auto" if GPUS else "cpu",
)


def arguments(folder, data_dir, **options) -> list[str]:
    return [
        f"--data={data_dir}",
        f"--out={folder}",
        *(f"--{key}={value}" for key, value in (RECIPE | options).items()),
    ]


def torchrun(ranks: int, folder, data_dir, *launcher, **options) -> subprocess.Popen:
    """`torchrun train.py` in `ranks` processes, writing to `folder`."""
    port = f"--master_port={29500 + os.getpid() % 2000}"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        f"--nproc_per_node={ranks}",
        port,
        *launcher,
    ]
    command += [str(ROOT / "train.py"), *arguments(folder, data_dir, **options)]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def run(ranks: int, folder, data_dir, **options) -> tuple[int, str, str]:
    """The same without torchrun: (exit code, what was printed, what was printed as an error) of all ranks together."""
    files = [folder.with_name(f"{folder.name}.{name}") for name in ("out", "err")]
    for file in files:
        file.write_text("")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    places = [place | {"RANK": str(number), "LOCAL_RANK": str(number)} for number in range(ranks)]
    places = places if ranks > 1 else [{}]  # a plain python
    argv = arguments(folder, data_dir, **options)
    processes = [SERVER.Process(target=one_rank, args=(place, argv, files)) for place in places]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
        process.kill()
        process.join()
    return max(abs(process.exitcode) for process in processes), *(
        file.read_text() for file in files
    )


def one_rank(place: dict[str, str], argv: list[str], files: list) -> None:
    for number, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), number)
    sys.stdout, sys.stderr = (
        open(number, "w", closefd=False) for number in (1, 2)
    )  # the old ones know another file
    os.environ |= place
    torch.set_num_threads(1)
    sys.argv = ["train.py", *argv]
    console.run_command(train.main, many=True)


def rows(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def losses(folder) -> list[float]:
    return [
        row[key] for row in rows(folder) for key in ("loss", "val_loss", "val_bpb") if key in row
    ]


@pytest.fixture(scope="module")
def alone(tmp_path_factory, data_dir):
    """The run in one process, by accumulation: what all others have to equal."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    code, _, err = run(1, folder, data_dir)
    assert code == 0, err
    return folder


enough = pytest.mark.skipif(0 < GPUS < 2, reason="needs two GPUs, or none")


@enough
@pytest.mark.parametrize("ranks, sharded", [(2, False), (4, False), (2, True), (4, True)])
def test_a_global_batch_teaches_the_same_however_it_is_split(
    ranks, sharded, alone, data_dir, tmp_path
):
    if 0 < GPUS < ranks:
        pytest.skip(f"needs {ranks} GPUs")
    code, out, err = run(ranks, tmp_path / "run", data_dir, shard=sharded)
    assert code == 0, err
    assert losses(tmp_path / "run") == pytest.approx(losses(alone), rel=1e-4)
    assert out.count("tokens a step") == 1, "only the first rank prints"
    assert sorted(os.listdir(tmp_path / "run")) == sorted(os.listdir(alone)), (
        "no temporary file is left"
    )
    # The weights come together again, in one process, from whatever they were saved as.
    ours, theirs = (
        read_tensors(load_checkpoint(folder / "last.pt"))["model"]
        for folder in (alone, tmp_path / "run")
    )
    for name, weight in ours.items():
        # AdamW divides tiny gradients by their size.
        torch.testing.assert_close(theirs[name], weight, rtol=0, atol=2e-3)


@enough
def test_the_number_of_ranks_may_change_on_the_way(alone, data_dir, tmp_path):
    """2 sharded, then 1, then 4 with copies: each goes on where the one before stopped."""
    plan = [(2, True, 3), (1, False, 6), (4, False, 9)]
    for ranks, sharded, steps in plan:
        if 0 < GPUS < ranks:
            pytest.skip(f"needs {ranks} GPUs")
        more = dict(max_steps=steps, decay=0.0, momentum_warmup=0.0, weight_decay=0.0)
        code, _, err = run(
            ranks, tmp_path / "run", data_dir, shard=sharded, resume=steps > 3, **more
        )
        assert code == 0, err
    code, _, err = run(1, tmp_path / "whole", data_dir, **more)
    assert code == 0, err
    train_losses = [[row["loss"] for row in rows(tmp_path / name)] for name in ("run", "whole")]
    assert len(train_losses[0]) == 9 and train_losses[0] == pytest.approx(train_losses[1], rel=1e-4)


@enough
def test_a_sharded_run_can_be_sampled(data_dir, tmp_path):
    """… with one table under two names, GPT-2's norm and biases, and activations in bfloat16, as any other."""
    odd = dict(tie_embeddings=True, norm="layer", bias=True, dtype="bfloat16", dropout=0.1)
    code, _, err = run(
        2, tmp_path / "run", data_dir, shard=True, max_steps=2, sample_prompt="the", **odd
    )
    assert code == 0, err
    model, tokenizer = sample.load_model(str(tmp_path / "run"), torch.device("cpu"), torch.float32)
    assert len(model.generate([[tokenizer.end_of_text]], 5, seed=0)[0]) == 5


@enough
def test_a_shard_that_was_changed_is_passed_over_for_the_checkpoint_before(data_dir, tmp_path):
    code, _, err = run(2, tmp_path / "run", data_dir, shard=True)
    assert code == 0, err
    file = next((tmp_path / "run" / "last.pt").glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    code, out, err = run(2, tmp_path / "run", data_dir, shard=True, resume=True)
    assert (
        code == 0 and out.count("passed over") == 1 and (tmp_path / "run" / "last.damaged").exists()
    ), err


@enough
def test_a_mistake_is_told_once_and_ends_all(data_dir, tmp_path):
    process = torchrun(
        2, tmp_path / "run", data_dir, batch_tokens=192
    )  # 6 sequences: 2 ranks of 2 do not divide them
    _, err = process.communicate(timeout=240)
    assert process.returncode != 0 and err.count("error: ") == 1 and "2 ranks" in err, err
    assert 'train.py", line' not in err and not (tmp_path / "run").exists()


@enough
def test_a_killed_rank_ends_the_run_and_torchrun_starts_it_again(alone, data_dir, tmp_path):
    """kill -9 of one rank: the other cannot go on alone, and the same command of torchrun's ends as if nothing was."""
    folder, long = (
        tmp_path / "run",
        dict(max_steps=80, log_interval=10, eval_interval=None, save_interval=10),
    )
    process = torchrun(2, folder, data_dir, "--max_restarts=1", "--monitor_interval=0.2", **long)
    while not (folder / "last.pt").exists():
        assert process.poll() is None
        time.sleep(0.05)
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True
    ).stdout.split()
    os.kill(int(children[-1]), signal.SIGKILL)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert run(2, tmp_path / "whole", data_dir, **long)[0] == 0
    assert out.count("parameters on") == 2, "it did start twice"
    assert losses(folder)[-1] == pytest.approx(losses(tmp_path / "whole")[-1], rel=1e-6)


@enough
def test_preemption_saves_and_all_ranks_stop_at_one_step(data_dir, tmp_path):
    """SIGTERM to torchrun, as a cloud machine gives before it goes away: a checkpoint, and the run can go on."""
    process = torchrun(
        2, tmp_path / "run", data_dir, max_steps=100_000, eval_interval=None, save_interval=None
    )
    while not (tmp_path / "run" / "log.jsonl").exists() or len(rows(tmp_path / "run")) < 3:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    step = load_checkpoint(tmp_path / "run" / "last.pt")["step"]
    assert f"stopped and saved at step {step}" in out and process.returncode != 0, err


def test_one_process_shares_with_nobody():
    stack = torch.randn(3, 8, 4)
    assert torch.equal(
        share(train.orthogonalize, stack, 8, sharded=False), train.orthogonalize(stack)
    )
