"""A user's mistake ends a program with exit code 2 and one message: given, expected, what to type.

Nothing is written or destroyed. A defect of the program keeps its traceback.
"""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch

import prepare_data
import sample
import train
from nanoloop import checkpoint
from nanoloop.options import NEEDS, UserError, explain, note, run_program
from tests.conftest import ROOT, SMALL, make_documents

RUN = [f"--{key}={value}" for key, value in SMALL.items()] + ["--max_steps=2"]

# What a user types after `train` (a small run on good data), `prepare` or `sample`, and what the
# message must contain.
MISTAKES = {
    # options
    "train --lerning_rate=1": ["--lerning_rate=1", "did you mean --learning_rate?"],
    "train --zzz=1": ["--zzz=1", "--help shows all options"],
    "train --n_layer=many": ["--n_layer", "many", "INT"],
    "train --max_steps=1.5": ["--max_steps", "1.5", "INT"],
    "train --resume=maybe": ["--resume", "maybe", "True"],
    "train --activation=relu3": ["relu3", "--activation", "swiglu"],
    "train --n_layer": ["--n_layer"],
    "train --lr=1": ["did you mean --muon_lr or --embed_lr", "--final_lr?"],
    "train --batch_size=8": ["did you mean --micro_batch_size?"],
    "train --wd=1": ["did you mean --weight_decay?"],
    "train --epochs=1": ["--help shows all options"],
    "train --max_steps=1e3": ["--max_steps", "from ['1e3']. Argument helptext"],
    "sample --temp=1": ["did you mean --temperature?"],
    "sample out/a prompt=x": ["no option --NAME=VALUE: prompt=x"],
    "sample out/a --init_from=gpt2": ["out/a", "--init_from=gpt2", "one of them"],
    "sample --temperature=0 --top_p=0.5": ["--top_p has no effect with temperature=0"],
    # options that have no effect beside the others
    "train --learning_rate=6e-4": ["--learning_rate has no effect", "muon_lr embed_lr head_lr"],
    "train --optimizer=adamw --momentum=0.9": ["--momentum has no effect", "use learning_rate"],
    "train --position=learned --rope_base=100": ["--rope_base has no effect", "position=learned"],
    "train --window_size=256": ["--window_size has no effect", "another --window_pattern"],
    "train --decay=0 --final_lr=0.1": ["--final_lr has no effect", "decay=0"],
    # values that do not fit each other
    "train --n_embd=33": ["n_embd=33", "n_head=2"],
    "train --batch_tokens=100": ["batch_tokens=100", "32"],
    "train --micro_batch_size=3": ["batch_tokens=256", "96"],
    "train --max_steps=None": ["max_steps", "max_seconds"],
    "train --log_interval=0": ["log_interval=0", "above 0"],
    "train --muon_lr=-0.1": ["muon_lr=-0.1", "at least 0"],
    "train --learning_rate=nan": ["learning_rate=nan", "finite"],
    "train --seed=-1": ["seed=-1", "at least 0"],
    "train --resume=True --overwrite=True": ["resume", "overwrite"],
    "train --eval_only=True": ["eval_only", "--init_from"],
    # what the machine does not have
    "train --n_layer=99999999": ["n_layer", "GB of memory"],
    "train --batch_tokens=3200000000000": ["micro_batch_size", "GB of memory"],
    "train --device=toaster": ["device=toaster", "--device=cpu"],
    # data
    "train --data=data/nothing": ["data/nothing", "does not exist", "prepare_data.py"],
    "train --data=data/nothing --prepare=--name='nothing": ["--name='nothing", "quotation"],
    "train --block_size=65536 --batch_tokens=65536": ["block_size = 65536", "smaller --block_size"],
    "train --warmup=0.5 --decay=0.7": ["warmup + decay must be at most 1, got 1.2"],
    "train --final_lr=2": ["final_lr", "between 0 and 1"],
    "train --momentum=1": ["momentum", "at least 0 and below 1"],
    "train --vocab_size=100": ["vocab_size=257", "got 100"],
    # checkpoints
    "train --init_from=out/nothing": ["out/nothing", "no run", "gpt2-medium"],
    "train --init_from=nothing.pt": ["nothing.pt", "does not exist"],
    "train --init_from=empty.pt": ["empty.pt", "damaged"],
    "train --init_from=torn.pt": ["torn.pt", "damaged"],
    "train --init_from=pickle.pt": ["pickle.pt", "damaged"],
    "train --init_from=other.pt": ["other.pt", "no checkpoint"],
    "train --init_from=future.pt": ["future.pt", "format 99", f"reads {checkpoint.FORMAT}"],
    "sample nothing.pt": ["nothing.pt", "does not exist"],
    "sample torn.pt": ["torn.pt", "damaged"],
    # config files
    "train nothing.py": ["nothing.py", "does not exist", "syntax.py"],
    "train syntax.py": ["syntax.py", "SyntaxError"],
    "train name.py": ["name.py", "NameError", "n_layers"],
    "train exit.py": ["exit.py", "SystemExit"],
    "train typo.py": ["typo.py", "--lerning_rate=1", "did you mean --learning_rate?"],
    "train type.py": ["type.py", "--n_layer", "many", "INT"],
    "train none.py": ["none.py", "'None'", "write None"],
    "train depth.py --depth=0": ["--depth", "above 0", "got 0"],
    "train depth.py --depth=x": ["--depth", "such as 12", "got x"],
    # preparation
    "prepare": ["--source"],
    "prepare --source=text.txt --source=empty.txt": ["--source is repeated", "--source=A B"],
    "prepare text.txt --duplicates_mb=4": ["--duplicates_mb has no effect", "duplicates=None"],
    "prepare --source=text.txt --hf_config=x": ["--hf_config has no effect", "text.txt"],
    "prepare text.txt nothing": ["--source=nothing does not exist"],
    "prepare --tokenizer=byte text.txt nothing": ["--source=nothing does not exist"],
    "prepare --source=text.txt nothing": ["--source=nothing does not exist"],
    "prepare --strict nothing": ["--source=nothing does not exist"],
    "prepare --name it nothing": ["--source=nothing does not exist"],
    "prepare --source=text.txt --name it b": ["'b' belongs to no option", "--source=A B"],
    "prepare text.txt --strict b": ["'b' belongs to no option", "--source=A B"],
    "prepare b --source=text.txt": ["'b' belongs to no option", "--source=A B"],
    "prepare --source=nothing": ["nothing", "python, shakespeare"],
    "prepare --source=empty": ["--source=empty", "without files"],
    "prepare --source=empty.txt": ["empty.txt", "1 empty"],
    "prepare --source=binary.bin": ["binary.bin", "1 binary"],
    "prepare --source=text.txt --tokenizer=wordpiece": ["wordpiece", "bpe:4096", "gpt2"],
    "prepare --source=text.txt --tokenizer=bpe:100": ["bpe:100", "257"],
    "prepare --source=text.txt --tokenizer=bpe:big": ["bpe:big", "257"],
    "prepare --source=text.txt --val_fraction=0.6 --test_fraction=0.5": ["0.6", "0.5", "below 1"],
    "prepare --source=text.txt --val_fraction=-0.1": ["-0.1"],
    "prepare --source=text.txt --name=../x": ["../x", "--name=mine"],
    "prepare --source=text.txt --shard_tokens=0": ["shard_tokens must be at least 1", "got 0"],
    "prepare text.txt --duplicates=near --duplicates_mb=0": ["duplicates_mb must be at least 1"],
    "prepare --source=text.txt --include_site_packages=True": ["--source=python"],
    "prepare --source=text.txt --tokeniser=byte": ["--tokeniser=byte", "did you mean --tokenizer?"],
}
FILES = {
    "empty.txt": b"",
    "binary.bin": b"\0\1\2" * 100,
    "text.txt": b"words " * 100,
    "empty.pt": b"",
    "torn.pt": b"PK\x03\x04 torn",
    "pickle.pt": b"\x80\x04K\x01.",
    "syntax.py": b"n_layer = = 2",
    "name.py": b"n_layer = 2\nn_head = n_layers",
    "exit.py": b"import sys\nsys.exit(0)",
    "typo.py": b"lerning_rate = 1",
    "type.py": b"n_layer = 'many'",
    "none.py": b"sample_prompt = 'None'",
    "depth.py": b"from nanoloop.dial import dial\nn_layer = dial('depth', 12)",
}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Make a working directory with the files of the table."""
    monkeypatch.chdir(tmp_path)
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "empty").mkdir()
    torch.save({"state_dict": {}}, "other.pt")
    torch.save({"format": 99}, "future.pt")
    return tmp_path


@pytest.fixture
def small(data_dir) -> list[str]:
    return [*RUN, f"--data={data_dir}"]


def without(flags: list[str], *others: str) -> list[str]:
    """Return the flags of options that the others do not set: repeating one is a mistake."""
    names = [flag.partition("=")[0] for flag in others]
    return [flag for flag in flags if flag.partition("=")[0] not in names]


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_message(result, *words: str) -> None:
    message = " ".join(result.err.split())
    assert any(line.startswith("error: ") for line in result.err.splitlines()), result.err
    assert not set("│─") & set(message)  # no frame of the parser
    assert result.code == 2, result
    assert "Traceback" not in message
    assert len(message) < 1500
    for word in words:
        assert word in message, message


@pytest.mark.parametrize("typed", MISTAKES)
def test_a_mistake_is_named_and_writes_nothing(typed, folder, small, command):
    program, *arguments = typed.split()
    before = contents(folder)
    if program == "train":
        # A config file comes first, and sets the layers itself.
        files = [word for word in arguments if not word.startswith("--")]
        flags = [word for word in arguments if word.startswith("--")]
        layers = ["--n_layer="] if files else []
        defaults = without(small, *flags, *layers)
        result = command(train.main, *files, *defaults, *flags)
    else:
        main = {"prepare": prepare_data.main, "sample": sample.main}[program]
        result = command(main, *arguments)
    assert_message(result, *MISTAKES[typed])
    assert contents(folder) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_cuda_on_a_machine_without_it_is_refused(folder, small, command):
    flags = without(small, "--device=cuda")
    assert_message(command(train.main, *flags, "--device=cuda"), "device=cuda", "--device=cpu")


def test_several_processes_are_refused(folder, small, command, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert_message(command(train.main, *small), "one process", "torchrun")


def test_scratch_names_in_a_config_file_are_no_options(folder, small, command):
    recipe = folder / "recipe.py"
    recipe.write_text(
        "import math\nfrom pathlib import Path\n_width = 32\n"
        "def double(x): return 2 * x\nn_embd = double(_width) // 2\n"
    )
    assert command(train.main, "recipe.py", *small).code == 0
    assert (folder / "out" / "recipe" / "last.pt").exists()


def test_the_last_of_a_repeated_flag_counts(folder, small, command):
    result = command(train.main, *small, "--max_steps=1")
    assert result.code == 0
    assert result.err.count("--max_steps is repeated: the last one counts") == 1
    assert checkpoint.load(Path("out/default/last.pt"))["step"] == 1


def test_a_switch_alone_is_on(folder, small, command):
    assert command(train.main, *small).code == 0
    assert command(train.main, *small, "--overwrite", "--seed=7").code == 0
    assert checkpoint.load(Path("out/default/last.pt"))["config"]["seed"] == 7


def test_help_shows_a_recipes_values(folder, command):
    (folder / "recipe.py").write_text("n_layer = 77\nsample_prompt = 'two\\nlines'\n")
    result = command(train.main, "recipe.py", "--help")
    assert result.code == 0
    assert "\n--n_layer=77 " in result.out and "\n--sample_prompt=two\\nlines " in result.out
    first = [line.split("=")[0] for line in result.out.splitlines() if line.startswith("--")]
    assert sorted(first) == sorted(f"--{field.name}" for field in fields(train.TrainConfig))
    assert first[0] == "--data"


@pytest.mark.parametrize("main", [train.main, prepare_data.main, sample.main])
def test_help_is_for_the_user(main, command):
    """What a docstring says to developers is not in it."""
    assert "Raises" not in command(main, "--help").out


def test_a_config_file_may_hold_the_rates_of_the_other_optimizer(folder, small, command):
    (folder / "recipe.py").write_text("embed_lr = 0.5\nlearning_rate = 0.001\n")
    result = command(train.main, "recipe.py", *small, "--optimizer=adamw")
    assert result.code == 0
    assert result.err == "note: embed_lr has no effect with optimizer=adamw: use learning_rate\n"


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_note_is_printed_once_for_all_ranks(monkeypatch, capsys, rank):
    monkeypatch.setenv("RANK", rank)
    note("a note")
    assert capsys.readouterr().err == "a note\n" * (rank == "0")


def test_what_an_option_needs_names_options():
    for cls in (train.TrainConfig, prepare_data.PrepareConfig, sample.SampleConfig):
        names = {field.name for field in fields(cls)}
        for need, options in getattr(cls, "NEEDS", NEEDS).items():
            assert {need.partition("=")[0], *options.split()} <= names


@pytest.mark.parametrize("flag", ["--n_layer=12", "--activation=relu2", "--seed=1337"])
def test_a_checkpoint_refuses_another_value_that_is_the_default(flag, folder, small, command):
    other = {"--n_layer=": "2", "--activation=": "gelu", "--seed=": "5"}
    first = [name + value for name, value in other.items()]
    rest = without(small, *first)
    assert command(train.main, *first, *rest).code == 0
    assert command(train.main, *rest, "--resume=True").code == 0
    result = command(train.main, *rest, "--resume=True", flag)
    assert_message(result, "the checkpoint needs", flag.removeprefix("--").partition("=")[0])


def test_flags_come_after_the_config_file(folder, small, command):
    (folder / "recipe.py").write_text("max_steps = 1\nn_layer = 3\n")
    assert command(train.main, "recipe.py", *small).code == 0
    config = checkpoint.load(Path("out/recipe/last.pt"))["config"]
    assert (config["max_steps"], config["n_layer"]) == (2, 2)


def test_a_run_is_never_overwritten_by_accident(folder, small, command):
    assert command(train.main, *small).code == 0
    before = contents(folder / "out")
    result = command(train.main, *small)
    assert_message(result, "out/default", "--resume=True", "--overwrite=True")
    assert contents(folder / "out") == before
    assert command(train.main, *small, "--overwrite=True").code == 0


def test_a_mistake_together_with_overwrite_destroys_nothing(folder, small, command):
    assert command(train.main, *small).code == 0
    before = contents(folder / "out")
    for mistake, word in {
        "--block_size=65536 --batch_tokens=65536": "smaller --block_size",
        "--init_from=nothing.pt": "does not exist",
        "--vocab_size=3": "got 3",
        "--data=nothing": "does not exist",
        "--device=toaster": "toaster",
    }.items():
        flags = mistake.split()
        result = command(train.main, *without(small, *flags), *flags, "--overwrite=True")
        assert_message(result, word)
        assert contents(folder / "out") == before, mistake


def test_a_checkpoint_does_not_take_another_tokenizer(folder, small, command):
    assert command(train.main, *small).code == 0
    for index, text in enumerate(make_documents(60)):
        (folder / "empty" / f"{index}.txt").write_text(text)
    for name, size in (("larger", 300), ("same_size", 257)):
        options = ["--source=empty", f"--name={name}", f"--tokenizer=bpe:{size}"]
        assert command(prepare_data.main, *options).code == 0
        flags = [f"--data=data/{name}", "--init_from=out/default", "--out=out/new"]
        flags += without(small, *flags)
        assert_message(command(train.main, *flags), f"data/{name}", "tokenizer")
        assert not Path("out/new").exists()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_running_out_of_memory_names_the_option(error):
    assert "--micro_batch_size" in explain(error)


def test_an_error_of_the_disk_names_the_path():
    message = explain(PermissionError(13, "Permission denied", "out/run"))
    assert message.startswith("Permission denied (out/run): check that path")


@pytest.mark.parametrize("error", [ZeroDivisionError(), AttributeError("x"), ValueError("x")])
def test_a_defect_has_no_explanation(error, monkeypatch):
    def main(argv):
        raise error

    assert explain(error) is None
    monkeypatch.setattr(sys, "argv", ["program"])
    with pytest.raises(type(error)):
        run_program(main)


def test_a_defect_in_the_model_keeps_its_file_and_line(small, folder, command, monkeypatch):
    def misspelt(model, *arguments):
        return arguments.misspelt

    monkeypatch.setattr(train.GPT, "__init__", misspelt)
    with pytest.raises(AttributeError) as raised:
        command(train.main, *small)
    last = raised.traceback[-1]
    assert (str(last.path), last.name) == (__file__, "misspelt")


# ------------------------------------------------------------------------------------------------
# As the shell sees it


PROGRAMS = ["train.py", "prepare_data.py", "sample.py", "-m research", "-m bench"]


def run_python(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=300
    )


def test_a_mistake_ends_a_real_program_with_exit_code_2(tmp_path):
    run = run_python(tmp_path, str(ROOT / "prepare_data.py"), "--source=x", "--workers=x")
    assert run.returncode == 2
    assert "--workers" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_python_without_the_libraries_is_told_the_environment(program):
    """-S leaves installed libraries out, as a Python outside the environment does."""
    run = run_python(ROOT, "-S", *program.split())
    assert run.returncode == 2
    assert run.stderr.startswith("error: ") and run.stderr.count("\n") == 1
    assert "source .venv/bin/activate" in run.stderr


def test_a_user_error_is_a_value_error():
    """The checks of a config raise ValueError, which tyro explains as a wrong option."""
    assert issubclass(UserError, ValueError)
