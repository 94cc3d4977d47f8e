"""Many processes: however a global batch is split, the same losses; whoever fails, all end with its message.

torchrun starts real processes that talk over gloo on the CPU; with GPUs the same tests run over NCCL.
"""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

import sample
from checkpoint import load_checkpoint, read_tensors
from parallel import share
from tests.conftest import ROOT
from train import orthogonalize

GPUS = torch.cuda.device_count()
RECIPE = dict(
    block_size=32, n_layer=3, n_head=2, n_embd=32, value_embeds=1, batch_tokens=256, micro_batch_size=2, max_steps=9,
    dtype="float32", log_interval=1, eval_interval=4, save_interval=4, grad_clip=5.0, device="auto" if GPUS else "cpu",
)  # fmt: skip


def start(ranks: int, folder, data_dir, launcher=(), **options) -> subprocess.Popen:
    """`train.py` in `ranks` processes, writing to `folder`; one rank is a plain python."""
    flags = [f"--{key}={value}" for key, value in (RECIPE | options).items()]
    torchrun = ["-m", "torch.distributed.run", f"--nproc_per_node={ranks}", *launcher] if ranks > 1 else []
    port = [f"--master_port={29500 + os.getpid() % 2000}"] * bool(torchrun)
    command = [sys.executable, *torchrun, *port, str(ROOT / "train.py"), f"--data={data_dir}", f"--out={folder}", *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def run(*args, **options) -> tuple[int, str, str]:
    process = start(*args, **options)
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def rows(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def losses(folder) -> list[float]:
    return [row[key] for row in rows(folder) for key in ("loss", "val_loss", "val_bpb") if key in row]


@pytest.fixture(scope="module")
def alone(tmp_path_factory, data_dir):
    """The run in one process, by accumulation: what all others have to equal."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    code, _, err = run(1, folder, data_dir)
    assert code == 0, err
    return folder


enough = pytest.mark.skipif(0 < GPUS < 2, reason="needs two GPUs, or none")


@enough
@pytest.mark.parametrize("ranks, sharded", [(2, False), (4, True)])
def test_a_global_batch_teaches_the_same_however_it_is_split(ranks, sharded, alone, data_dir, tmp_path):
    if 0 < GPUS < ranks:
        pytest.skip(f"needs {ranks} GPUs")
    code, out, err = run(ranks, tmp_path / "run", data_dir, shard=sharded)
    assert code == 0, err
    assert losses(tmp_path / "run") == pytest.approx(losses(alone), rel=1e-4)
    assert out.count("tokens a step") == 1, "only the first rank prints"
    assert sorted(os.listdir(tmp_path / "run")) == sorted(os.listdir(alone)), "no temporary file is left"
    # The weights come together again, in one process, from whatever they were saved as.
    ours, theirs = (read_tensors(load_checkpoint(folder / "last.pt"))["model"] for folder in (alone, tmp_path / "run"))
    for name, weight in ours.items():
        torch.testing.assert_close(theirs[name], weight, rtol=0, atol=2e-3)  # AdamW divides tiny gradients by their size


@enough
def test_the_number_of_ranks_may_change_on_the_way(alone, data_dir, tmp_path):
    """2 sharded, then 1, then 4 with copies: each goes on where the one before stopped."""
    plan = [(2, True, 3), (1, False, 6), (4, False, 9)]
    for ranks, sharded, steps in plan:
        if 0 < GPUS < ranks:
            pytest.skip(f"needs {ranks} GPUs")
        more = dict(max_steps=steps, decay=0.0, momentum_warmup=0.0, weight_decay=0.0)
        code, _, err = run(ranks, tmp_path / "run", data_dir, shard=sharded, resume=steps > 3, **more)
        assert code == 0, err
    code, _, err = run(1, tmp_path / "whole", data_dir, **more)
    assert code == 0, err
    train_losses = [[row["loss"] for row in rows(tmp_path / name)] for name in ("run", "whole")]
    assert len(train_losses[0]) == 9 and train_losses[0] == pytest.approx(train_losses[1], rel=1e-4)


@enough
def test_a_sharded_run_can_be_sampled_and_a_changed_shard_is_passed_over(data_dir, tmp_path):
    """… with one table under two names, GPT-2's norm and biases, and activations in bfloat16, as any other."""
    odd = dict(tie_embeddings=True, norm="layer", bias=True, dtype="bfloat16", dropout=0.1, eval_interval=None)
    code, _, err = run(2, tmp_path / "run", data_dir, shard=True, sample_prompt="the", **odd)
    assert code == 0, err
    model, tokenizer = sample.load_model(str(tmp_path / "run"), torch.device("cpu"), torch.float32)
    assert len(model.generate([[tokenizer.end_of_text]], 5, seed=0)[0]) == 5

    file = next((tmp_path / "run" / "last.pt").glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    code, out, err = run(2, tmp_path / "run", data_dir, shard=True, resume=True, **odd)
    assert code == 0 and out.count("passed over") == 1 and (tmp_path / "run" / "last.damaged").exists(), err


@enough
def test_a_mistake_is_told_once_and_ends_all(data_dir, tmp_path):
    code, _, err = run(2, tmp_path / "run", data_dir, batch_tokens=192)  # 6 sequences: 2 ranks of 2 do not divide them
    assert code != 0 and err.count("error: ") == 1 and "2 ranks" in err, err
    assert "train.py\", line" not in err and not (tmp_path / "run").exists()


@enough
def test_a_killed_rank_ends_the_run_and_torchrun_starts_it_again(alone, data_dir, tmp_path):
    """kill -9 of one rank: the other cannot go on alone, and the same command of torchrun's ends as if nothing was."""
    folder, long = tmp_path / "run", dict(max_steps=40, log_interval=5, eval_interval=None, save_interval=5)
    process = start(2, folder, data_dir, launcher=["--max_restarts=1", "--monitor_interval=0.2"], **long)
    while not (folder / "last.pt").exists():
        assert process.poll() is None
        time.sleep(0.05)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(children[-1]), signal.SIGKILL)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert run(1, tmp_path / "whole", data_dir, **long)[0] == 0
    assert out.count("parameters on") == 2, "it did start twice"
    assert losses(folder)[-1] == pytest.approx(losses(tmp_path / "whole")[-1], rel=1e-4)


@enough
def test_preemption_saves_and_all_ranks_stop_at_one_step(data_dir, tmp_path):
    """SIGTERM to torchrun, as a cloud machine gives before it goes away: a checkpoint, and the run can go on."""
    process = start(2, tmp_path / "run", data_dir, max_steps=100_000, eval_interval=None, save_interval=None)
    while not (tmp_path / "run" / "log.jsonl").exists() or len(rows(tmp_path / "run")) < 3:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    step = load_checkpoint(tmp_path / "run" / "last.pt")["step"]
    assert f"stopped and saved at step {step}" in out and process.returncode != 0, err


def test_one_process_shares_with_nobody():
    stack = torch.randn(3, 8, 4)
    assert torch.equal(share(orthogonalize, stack, 8, sharded=False), orthogonalize(stack))
