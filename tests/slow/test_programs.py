"""Training and sampling as processes of their own: signals, trackers, pipes."""

import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace

import pytest

import train
from nanoloop import checkpoint
from nanoloop.options import EXIT_RESUMABLE
from tests.conftest import ROOT


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_with_a_checkpoint_and_the_way_to_resume(config, tmp_path, number):
    options = asdict(replace(config(log_interval=5, max_steps=1_000_000), out=None))
    recipe = "".join(f"{key} = {value!r}\n" for key, value in options.items())
    (tmp_path / "recipe.py").write_text(recipe)
    run = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), "recipe.py"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    try:
        printed = ""
        while "step 5 " not in printed:  # ends with the run at the latest
            line = run.stdout.readline()
            assert line, run.stderr.read()
            printed += line
        run.send_signal(number)
        rest, err = run.communicate()
    finally:
        run.kill()
    assert run.returncode == EXIT_RESUMABLE == 75 and "Traceback" not in err
    assert "--resume=True" in rest
    assert checkpoint.load(tmp_path / "out/recipe/last.pt")["step"] >= 5


def test_the_sampler_reads_its_prompt_from_a_pipe(config, tmp_path):
    train.train(config())
    words = [sys.executable, str(ROOT / "sample.py"), "run", "--prompt=-", "--max_new_tokens=5"]
    done = subprocess.run(words, input="the", cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("the"), done.stderr


def test_the_end_of_a_run_writes_text_on_request(config, capfd):
    train.train(config(sample_prompt="the model"))
    output = capfd.readouterr().out
    assert "python sample.py" in output
    assert "\nthe model" in output


def test_wandb_offline_gets_the_rows(config, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    train.train(config(wandb=True))
    assert list((tmp_path / "run/wandb").glob("offline-run-*/*.wandb"))
