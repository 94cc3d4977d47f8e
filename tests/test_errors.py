"""Every mistake a user can make ends with exit code 2 and one message that names the thing and the remedy, without a
traceback, and with nothing half-made or destroyed."""

import os
import subprocess
import sys

import checkpoint
import console
import pytest
import torch

import prepare_data
import train
from tests.conftest import ROOT, make_documents


@pytest.fixture
def place(tmp_path, monkeypatch, data_dir):
    """An empty working directory, and the flags of a small run in it."""
    monkeypatch.chdir(tmp_path)
    return [
        "--block_size=32",
        "--n_layer=2",
        "--n_head=2",
        "--n_embd=32",
        "--value_embeds=1",
        "--max_steps=2",
        "--batch_tokens=256",
        "--device=cpu",
        f"--data={data_dir}",
    ]


def assert_told(result, *words: str) -> None:
    message = " ".join(
        result.err.replace("│", " ").split()
    )  # the frame and the line breaks of long messages
    assert result.code == 2, result
    assert "Traceback" not in message and len(message) < 1500
    for word in words:
        assert word in message, message


TRAIN_FLAGS = {
    "unknown key": (["--lerning_rate=1"], ["--lerning_rate=1", "did you mean --learning_rate?"]),
    "wrong type": (["--n_layer=many"], ["--n_layer", "many", "INT"]),
    "a float for a whole number": (["--max_steps=1.5"], ["--max_steps", "1.5", "INT"]),
    "neither True nor False": (["--resume=maybe"], ["--resume", "maybe", "True"]),
    "bad choice": (["--activation=relu3"], ["relu3", "--activation", "swiglu"]),
    "a value that is missing": (["--n_layer"], ["--n_layer"]),
    "n_embd not divisible": (["--n_embd=33"], ["n_embd=33", "n_head=2"]),
    "batch not divisible": (["--batch_tokens=100"], ["batch_tokens=100", "32"]),
    "micro-batch not divisible": (["--micro_batch_size=3"], ["batch_tokens=256", "96"]),
    "no end": (["--max_steps=None"], ["max_steps", "max_seconds"]),
    "an interval of nothing": (["--log_interval=0"], ["log_interval=0"]),
    "a rate below 0": (["--muon_lr=-0.1"], ["muon_lr=-0.1", "at least 0"]),
    "a rate that is no number": (["--learning_rate=nan"], ["learning_rate=nan", "finite"]),
    "a model for which there is no memory": (["--n_layer=99999999"], ["n_layer", "GB of memory"]),
    "a batch for which there is no memory": (
        ["--batch_tokens=3200000000000"],
        ["micro_batch_size", "GB of memory"],
    ),
    "resume and overwrite": (["--resume=True", "--overwrite=True"], ["resume", "overwrite"]),
    "missing data": (
        ["--data=data/nothing"],
        ["data/nothing", "does not exist", "prepare_data.py"],
    ),
    "a data set shorter than a window": (
        ["--block_size=65536", "--batch_tokens=65536"],
        ["65537", "--block_size"],
    ),
    "a vocabulary that is too small": (["--vocab_size=100"], ["vocab_size=100", "257"]),
    "weights that are not there": (["--init_from=out/nothing"], ["out/nothing", "no run"]),
    "a checkpoint that is not there": (
        ["--init_from=nothing.pt"],
        ["nothing.pt", "does not exist"],
    ),
    "nothing to evaluate": (["--eval_only=True"], ["eval_only", "--init_from"]),
    "a prompt that is no text": (["--sample_prompt=\udc80"], ["cannot begin", "surrogates"]),
    "a device that is no device": (["--device=toaster"], ["device=toaster", "--device=cpu"]),
}


@pytest.mark.parametrize("mistake", TRAIN_FLAGS)
def test_a_wrong_flag(place, command, mistake):
    flags, words = TRAIN_FLAGS[mistake]
    assert_told(command(train.main, *place, *flags), *words)
    assert os.listdir() == []


@pytest.mark.parametrize(
    "mistake", ["unknown key", "wrong type", "bad choice", "n_embd not divisible"]
)
def test_the_same_mistake_in_a_config_file(place, command, mistake):
    flags, words = TRAIN_FLAGS[mistake]
    key, value = flags[0][2:].split("=")
    with open("recipe.py", "w") as file:
        file.write(
            "".join(f"{k} = {v!r}\n" for k, v in (flag[2:].split("=") for flag in place))
            + f"{key} = {value!r}\n"
        )
    assert_told(command(train.main, "recipe.py"), *words, "recipe.py")
    assert os.listdir() == ["recipe.py"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_cuda_where_there_is_none(place, command):
    assert_told(command(train.main, *place, "--device=cuda"), "device=cuda", "--device=cpu")


@pytest.mark.parametrize(
    "content, words",
    [
        (None, ["does not exist", "recipe.py"]),
        ("n_layer = = 2", ["SyntaxError", "recipe.py"]),
        ("n_layer = 2\nn_head = n_layers", ["NameError", "n_layers", "recipe.py"]),
        ("import sys; sys.exit(0)", ["SystemExit", "recipe.py"]),
    ],
)
def test_a_config_file_that_cannot_be_run(place, command, content, words):
    if content is not None:
        with open("recipe.py", "w") as file:
            file.write(content)
    assert_told(command(train.main, "recipe.py", *place), *words)
    assert not os.path.exists("out")


def test_scratch_names_in_a_config_file_are_no_options(place, command):
    with open("recipe.py", "w") as file:
        file.write(
            "import math\nfrom pathlib import Path\n_width = 32\ndef double(x): return 2 * x\nn_embd = double(_width) // 2\n"
        )
    assert command(train.main, "recipe.py", *place).code == 0
    assert os.path.exists("out/recipe/last.pt")


def test_flags_come_after_the_config_file(place, command):
    with open("recipe.py", "w") as file:
        file.write("max_steps = 1\nn_layer = 3\n")
    assert command(train.main, "recipe.py", *place[:-1], "--max_steps=2", place[-1]).code == 0
    config = checkpoint.load_checkpoint(train.Path("out/recipe/last.pt"))["config"]
    assert (config["max_steps"], config["n_layer"]) == (2, 2)


def test_a_run_is_never_overwritten_by_accident(place, command):
    assert command(train.main, *place).code == 0
    before = {name: open(f"out/default/{name}", "rb").read() for name in os.listdir("out/default")}
    assert_told(command(train.main, *place), "out/default", "--resume=True", "--overwrite=True")
    assert {
        name: open(f"out/default/{name}", "rb").read() for name in os.listdir("out/default")
    } == before
    assert command(train.main, *place, "--overwrite=True").code == 0


def test_a_mistake_together_with_overwrite_destroys_nothing(place, command):
    assert command(train.main, *place).code == 0
    for wrong in (
        "--block_size=65536 --batch_tokens=65536",
        "--init_from=nothing.pt",
        "--vocab_size=3",
        "--data=nothing",
        "--device=toaster",
    ):
        assert command(train.main, *place, *wrong.split(), "--overwrite=True").code == 2
        assert os.path.exists("out/default/last.pt"), wrong


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"\x80\x04K\x01."])
def test_a_checkpoint_that_is_no_checkpoint(place, command, content):
    with open("bad.pt", "wb") as file:
        file.write(content)
    assert_told(command(train.main, *place, "--init_from=bad.pt"), "bad.pt", "damaged")


def test_somebody_elses_checkpoint(place, command):
    torch.save({"state_dict": {}}, "theirs.pt")
    assert_told(command(train.main, *place, "--init_from=theirs.pt"), "theirs.pt")


def test_a_tokenizer_that_does_not_match_the_checkpoint(place, command, tmp_path):
    assert command(train.main, *place).code == 0
    (tmp_path / "s").mkdir()
    for i, text in enumerate(make_documents(60)):
        (tmp_path / "s" / f"{i}.txt").write_text(text)
    command(prepare_data.main, "--source=s", "--name=other", "--tokenizer=bpe:300")
    result = command(
        train.main, *place[:-1], "--data=data/other", "--init_from=out/default", "--out=out/fine"
    )
    assert_told(result, "data/other")
    command(prepare_data.main, "--source=s", "--name=same_size", "--tokenizer=bpe:257")
    result = command(
        train.main,
        *place[:-1],
        "--data=data/same_size",
        "--init_from=out/default",
        "--out=out/fine",
    )
    assert_told(result, "data/same_size", "tokenizer")
    assert not os.path.exists("out/fine")


@pytest.mark.parametrize(
    "error",
    [
        "torch.OutOfMemoryError('CUDA out of memory')",
        "MemoryError()",
        'RuntimeError("DefaultCPUAllocator: can\'t allocate memory")',
    ],
)
def test_running_out_of_memory_names_the_knob(place, command, monkeypatch, error):
    def fail(*args, **kwargs):
        raise eval(error)

    monkeypatch.setattr(train, "evaluate", fail)
    assert_told(command(train.main, *place), "out of memory", "--micro_batch_size")


def test_several_processes_are_refused(place, command, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert_told(command(train.main, *place), "one process", "torchrun")


def test_a_defect_of_the_program_keeps_its_traceback(place, monkeypatch):
    """Only a user's mistake is told in one line; hiding our own would make them impossible to report."""

    monkeypatch.setattr(sys, "argv", ["program"])
    with pytest.raises(ZeroDivisionError):
        console.run_command(lambda argv: 1 / 0)


PREPARE_FLAGS = {
    "no source": ([], ["--source"]),
    "a source that is not there": (["--source=nothing"], ["nothing", "python, shakespeare"]),
    "an empty folder": (["--source=empty"], ["empty", "no files"]),
    "an empty file": (["--source=empty.txt"], ["empty.txt", "1 empty"]),
    "a binary file": (["--source=binary.bin"], ["binary.bin", "1 binary"]),
    "an unknown tokenizer": (
        ["--source=text.txt", "--tokenizer=wordpiece"],
        ["wordpiece", "bpe:4096", "gpt2"],
    ),
    "a vocabulary too small": (["--source=text.txt", "--tokenizer=bpe:100"], ["bpe:100", "257"]),
    "a vocabulary that is no number": (
        ["--source=text.txt", "--tokenizer=bpe:big"],
        ["bpe:big", "257"],
    ),
    "nothing left to train on": (
        ["--source=text.txt", "--val_fraction=0.6", "--test_fraction=0.5"],
        ["0.6", "0.5", "below 1"],
    ),
    "a negative share": (["--source=text.txt", "--val_fraction=-0.1"], ["-0.1"]),
    "a name that is a path": (["--source=text.txt", "--name=../x"], ["../x", "--name=mine"]),
    "shards of nothing": (["--source=text.txt", "--shard_tokens=0"], ["shard_tokens=0"]),
    "no memory for copies": (
        ["--source=text.txt", "--duplicates_mb=0"],
        ["duplicates_mb=0", "at least 1"],
    ),
    "site-packages of a text": (
        ["--source=text.txt", "--include_site_packages=True"],
        ["--source=python"],
    ),
    "an unknown key": (
        ["--source=text.txt", "--tokeniser=byte"],
        ["--tokeniser=byte", "did you mean --tokenizer?"],
    ),
}


@pytest.mark.parametrize("mistake", PREPARE_FLAGS)
def test_a_wrong_preparation(place, command, tmp_path, mistake):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").touch()
    (tmp_path / "binary.bin").write_bytes(b"\0\1\2" * 100)
    (tmp_path / "text.txt").write_text("words " * 100)
    before = sorted(os.listdir())
    flags, words = PREPARE_FLAGS[mistake]
    assert_told(command(prepare_data.main, *flags), *words)
    left = [os.path.join(folder, file) for folder, _, files in os.walk("data") for file in files]
    assert left == [] and sorted(set(os.listdir()) - {"data"}) == before


def test_a_full_disk(place, command, monkeypatch):
    """Every write of a checkpoint meets the error of a full disk, as /dev/full gives it."""
    assert command(train.main, *place).code == 0
    before = open("out/default/last.pt", "rb").read()

    def full(checkpoint, file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(train.torch, "save", full)
    result = command(train.main, *place, "--resume=True", "--max_steps=4")
    assert_told(result, "step 4", "could not be written")
    assert "No space left" in result.out and "Make room" in result.out
    assert open("out/default/last.pt", "rb").read() == before


def test_a_program_ends_with_exit_code_2(tmp_path):
    """The same as a real program, once: the shell sees 2, standard error the message, and no traceback."""
    run = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "--n_layer=x"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2 and "--n_layer" in run.stderr and "Traceback" not in run.stderr
