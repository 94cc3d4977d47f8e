"""Four ranks, changing numbers of ranks, torchrun, kills and signals; see test_parallel.py."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import sample
from nanoloop import checkpoint
from nanoloop.generate import generate
from prepare_data import PrepareConfig, prepare
from tests.conftest import ROOT, make_documents
from tests.test_parallel import (
    assert_same_run,
    flags,
    losses,
    needs_two_gpus_or_none,
    rows,
    run_ranks,
)
from tests.test_parallel import single as single  # a fixture

pytestmark = needs_two_gpus_or_none


def torchrun(count: int, script: Path, arguments: list[str], *launcher: str) -> subprocess.Popen:
    """Start `torchrun script` in `count` processes."""
    port = f"--master_port={29500 + os.getpid() % 2000}"
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={count}", port]
    command += [*launcher, str(script), *arguments]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_until(condition, process: subprocess.Popen) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def children(process: subprocess.Popen) -> list[int]:
    command = ["pgrep", "-P", str(process.pid)]
    return [int(pid) for pid in subprocess.check_output(command, text=True).split()]


@pytest.mark.parametrize("is_sharded", [False, True])
def test_four_ranks_learn_what_one_process_learns(is_sharded, single, data_dir, tmp_path):
    result = run_ranks(4, tmp_path / "run", data_dir, shard=is_sharded)
    assert result.code == 0, result.err
    assert_same_run(tmp_path / "run", single)


def test_the_number_of_ranks_may_change_between_resumes(data_dir, tmp_path):
    """2 ranks sharded, then 1, then 4 replicated: each resumes where the one before stopped."""
    plan = [(2, True, 3), (1, False, 6), (4, False, 9)]
    constant = dict(decay=0.0, momentum_warmup=0.0, weight_decay=0.0)
    for count, is_sharded, steps in plan:
        options = constant | {"max_steps": steps, "shard": is_sharded, "resume": steps > 3}
        result = run_ranks(count, tmp_path / "run", data_dir, **options)
        assert result.code == 0, result.err
    result = run_ranks(1, tmp_path / "straight", data_dir, max_steps=9, **constant)
    assert result.code == 0, result.err
    found, expected = (
        [row["loss"] for row in rows(tmp_path / name)] for name in ("run", "straight")
    )
    assert len(found) == 9
    assert found == pytest.approx(expected, rel=1e-4)


def test_a_sharded_run_can_be_sampled_and_fine_tuned(data_dir, tmp_path):
    """Also with one table under two names, GPT-2's norm and biases, bfloat16 and dropout."""
    options = dict(tie_embeddings=True, norm="layer", bias=True, dtype="bfloat16", dropout=0.1)
    options |= dict(shard=True, max_steps=2)
    result = run_ranks(2, tmp_path / "run", data_dir, sample_prompt="the", **options)
    assert result.code == 0, result.err
    model, tokenizer = sample.load_model(str(tmp_path / "run"), torch.device("cpu"), torch.float32)
    assert len(generate(model, [[tokenizer.end_of_text]], 5, seed=0)[0]) == 5
    options["init_from"] = tmp_path / "run"
    for count in (1, 2):
        options["shard"] = count > 1
        result = run_ranks(count, tmp_path / f"tuned{count}", data_dir, **options)
        assert result.code == 0, result.err
    tuned = [losses(tmp_path / f"tuned{count}") for count in (1, 2)]
    assert tuned[0] == pytest.approx(tuned[1], rel=1e-2)  # bfloat16, other dropout


def test_ranks_skip_a_damaged_checkpoint_for_the_one_before(data_dir, tmp_path):
    result = run_ranks(2, tmp_path / "run", data_dir, shard=True)
    assert result.code == 0, result.err
    file = tmp_path / "run" / "last.pt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    result = run_ranks(2, tmp_path / "run", data_dir, shard=True, resume=True)
    assert result.code == 0, result.err
    assert result.err.count("skipped") == 1
    assert (tmp_path / "run" / "last.damaged").exists()


@pytest.mark.parametrize("difference", ["data", "step", "dtype", "momentum"])
def test_ranks_that_do_not_share_one_run_end_before_a_step(difference, data_dir, tmp_path):
    """Folders that each machine has for itself, and a command that was typed differently."""
    folder = tmp_path / "run"
    last = {"dtype": "bfloat16"} if difference == "dtype" else {"momentum": 0.9}
    options = {}
    if difference == "data":
        source = tmp_path / "source"
        source.mkdir()
        for index, text in enumerate(make_documents(100, seed=1)):
            (source / f"{index:03}.txt").write_text(text)
        other = PrepareConfig(source=(str(source),), name="words", tokenizer="byte")
        last = {"data": prepare(other, tmp_path / "data")}
    if difference == "step":
        for steps, name in ((2, "run"), (3, "other")):
            assert run_ranks(1, tmp_path / name, data_dir, max_steps=steps).code == 0
        last = {"out": tmp_path / "other"}
        options = {"resume": True}
    result = run_ranks(2, folder, data_dir, last, **options)
    assert result.code == 2
    assert result.err.count("error: ") == 1
    assert f"rank 1 has {difference}=" in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize("part", ["init_weights", "forward"])
def test_torchrun_shows_file_and_line_of_a_defect_in_the_model(part, data_dir, tmp_path):
    for name in ("train.py", "model.py"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "nanoloop", tmp_path / "nanoloop")
    model = tmp_path / "model.py"
    with open(model, "a", encoding="utf-8") as file:
        file.write(f"\nGPT.{part} = lambda self, *args, **options: self.misspelt\n")
    last_line = len(model.read_text().splitlines())
    arguments = flags(tmp_path / "run", data_dir)
    process = torchrun(2, tmp_path / "train.py", arguments)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 1
    assert f'model.py", line {last_line}, in ' in err
    assert "AttributeError: 'GPT' object has no attribute 'misspelt'" in err


def test_a_mistake_is_reported_once_and_ends_all_ranks(data_dir, tmp_path):
    # 6 sequences: 2 ranks of 2 sequences do not divide them.
    result = run_ranks(2, tmp_path / "run", data_dir, batch_tokens=192)
    assert result.code == 2
    assert result.err.count("error: ") == 1
    assert "2 ranks" in result.err
    assert "Traceback" not in result.err
    assert not (tmp_path / "run").exists()


def test_a_mistake_ends_torchrun_with_one_message(data_dir, tmp_path):
    # 6 sequences: 2 ranks of 2 sequences do not divide them.
    arguments = flags(tmp_path / "run", data_dir, batch_tokens=192)
    process = torchrun(2, ROOT / "train.py", arguments)
    _, err = process.communicate(timeout=240)
    assert process.returncode != 0
    assert err.count("error: ") == 1
    assert "2 ranks" in err
    assert 'train.py", line' not in err
    assert not (tmp_path / "run").exists()


def test_torchrun_restarts_a_run_whose_rank_was_killed(data_dir, tmp_path):
    """After kill -9 of a rank the other cannot continue alone; the restarted run ends equal."""
    folder = tmp_path / "run"
    options = dict(max_steps=80, log_interval=10, eval_interval=None, save_interval=10)
    arguments = flags(folder, data_dir, **options)
    launcher = ["--max_restarts=1", "--monitor_interval=0.2"]
    process = torchrun(2, ROOT / "train.py", arguments, *launcher)
    wait_until((folder / "last.pt").exists, process)
    os.kill(children(process)[-1], signal.SIGKILL)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert out.count("parameters on") == 2, "it started twice"
    result = run_ranks(2, tmp_path / "straight", data_dir, **options)
    assert result.code == 0, result.err
    assert losses(folder)[-1] == pytest.approx(losses(tmp_path / "straight")[-1], rel=1e-6)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("receivers", ["torchrun", "all", "ranks", "one rank"])
def test_a_signal_saves_and_all_ranks_stop_at_one_step(number, receivers, data_dir, tmp_path):
    """A cloud machine sends SIGTERM before it is taken away, a scheduler to every process."""
    folder = tmp_path / "run"
    options = dict(max_steps=100_000, eval_interval=None, save_interval=None)
    launcher = ["--max_restarts=2", "--monitor_interval=0.2"]
    process = torchrun(2, ROOT / "train.py", flags(folder, data_dir, **options), *launcher)
    log = folder / "log.jsonl"
    wait_until(lambda: log.exists() and len(rows(folder)) >= 3, process)
    started = children(process)
    everyone = [process.pid, *started]
    parts = {"torchrun": everyone[:1], "all": everyone, "ranks": started, "one rank": started[1:]}
    for pid in parts[receivers]:
        os.kill(pid, number)
    out, err = process.communicate(timeout=60)
    step = checkpoint.load(folder / "last.pt")["step"]
    assert process.returncode == (receivers in ("torchrun", "all")), err
    assert f"stopped and saved at step {step}" in out
    assert out.count("parameters on") == 1, "torchrun does not start a stopped run again"


def test_a_signal_ends_an_evaluation_on_all_ranks(data_dir, tmp_path):
    folder = tmp_path / "run"
    # A pass over the validation split with one sequence of 2 tokens at once takes long.
    options = dict(block_size=2, batch_tokens=4, micro_batch_size=1, max_steps=100_000)
    options |= dict(eval_interval=3, save_interval=3)
    process = torchrun(2, ROOT / "train.py", flags(folder, data_dir, **options))
    wait_until((folder / "last.pt").exists, process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert "stopped and saved at step 3" in out, err
    assert "val_loss" not in (folder / "log.jsonl").read_text()
