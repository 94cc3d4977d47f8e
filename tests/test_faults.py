"""What the drills (tests/drill.py) do not reach: what a spike is, what a lock is, and that nobody gets in."""

import ast
import json
import math
import os
import signal
import stat
import statistics
import subprocess
import sys
import time

import console
import device as device_module
import pytest
import torch

import prepare_data
import train
from model import GPT, GPTConfig
from nanoloop.checkpoint import load_checkpoint
from nanoloop.device import require_memory
from nanoloop.files import locked
from nanoloop.options import UserError
from nanoloop.runlog import RUN_FILES, SpikeWatch
from tests.conftest import ROOT, make_documents

SOURCES = [
    path
    for part in ("*.py", "corpus/*.py", "research/*.py", "config/*.py")
    for path in sorted(ROOT.glob(part))
]

# ---------------------------------------------------------------------------------------------------------------------
# Spikes


def noise(count: int, seed: int = 0) -> list[float]:
    return (
        3
        + 0.1
        * torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    ).tolist()


def test_a_spike_stands_out_of_the_latest_hundred_losses():
    watch, losses = SpikeWatch("skip", 6.0), noise(150)
    assert not any(watch.look(step, loss) for step, loss in enumerate(losses))
    limit = statistics.fmean(losses[-100:]) + 6 * statistics.stdev(losses[-100:])
    assert watch.look(150, limit + 0.001) and not watch.look(151, limit - 0.001)
    assert watch.count == 1


def test_noise_makes_no_spikes_and_neither_does_the_beginning():
    watch = SpikeWatch("stop", 6.0)
    for step, loss in enumerate(
        [11.0, 9.0, 30.0, 5.0] + [9 / (1 + step / 50) + x for step, x in enumerate(noise(5000))]
    ):
        assert not watch.look(step, loss)


def test_a_spike_does_not_raise_the_mean_it_is_measured_by():
    watch = SpikeWatch("skip", 6.0)
    for step, loss in enumerate(noise(100)):
        watch.look(step, loss)
    before = watch.state()["recent"]
    assert watch.look(100, 50.0) and watch.state()["recent"] == before


def test_a_watch_goes_on_from_its_state_as_if_nothing_had_happened():
    losses = noise(80) + [9.0] + noise(80, seed=1) + [8.0]
    whole, first, second = (SpikeWatch("skip", 5.0) for _ in range(3))
    said = [whole.look(step, loss) for step, loss in enumerate(losses)]
    for step, loss in enumerate(losses[:90]):
        first.look(step, loss)
    second.restore(json.loads(json.dumps(first.state())))
    assert [second.look(step, loss) for step, loss in enumerate(losses[90:], 90)] == said[90:]
    assert second.state() == whole.state() and whole.count == 2


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_no_spike_for_it_ends_the_run(loss):
    watch = SpikeWatch("skip", 6.0)
    for step, value in enumerate(noise(50)):
        watch.look(step, value)
    assert not watch.look(50, loss)


@pytest.fixture
def spiking(monkeypatch):
    """spiking(steps) multiplies the loss of these training steps by 5."""
    forward = GPT.forward

    def make(steps: set[int]) -> None:
        calls = []

        def spiked(self, *args, **kwargs):
            calls.extend([1] * self.training)
            return forward(self, *args, **kwargs) * (
                5 if self.training and len(calls) - 1 in steps else 1
            )

        monkeypatch.setattr(GPT, "forward", spiked)

    return make


@pytest.mark.parametrize(
    "extra", [{}, {"dtype": "float16", "grad_clip": 1.0}, {"optimizer": "adamw"}]
)
def test_a_skipped_step_changes_no_weight(config, spiking, monkeypatch, extra):
    """The weights before step 26 are those before step 25, in which the loss was five times what it should be."""
    schedule, seen = train.set_schedule, []

    def photographed(optimizers, *args):
        seen.append(
            [
                p.clone()
                for optimizer in optimizers
                for group in optimizer.param_groups
                for p in group["params"]
            ]
        )
        return schedule(optimizers, *args)

    spiking({25})
    monkeypatch.setattr(train, "set_schedule", photographed)
    train.train(config(max_steps=28, on_spike="skip", **extra))
    same = [all(map(torch.equal, before, after)) for before, after in zip(seen, seen[1:])]
    assert [step for step, equal in enumerate(same) if equal] == [25]


def test_without_the_option_a_spike_is_a_step_like_any_other(config, spiking, tmp_path):
    spiking({25})
    train.train(config(max_steps=28))
    row = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert (
        "spikes" not in row
        and load_checkpoint(tmp_path / "run" / "last.pt")["spikes"]["recent"] == []
    )


def test_stop_ends_the_run_and_leaves_the_checkpoint_before(config, spiking, tmp_path):
    spiking({27})
    with pytest.raises(
        UserError, match="spike 1: the loss .* of step 27 .*on_spike=stop.*last checkpoint is older"
    ):
        train.train(config(max_steps=40, on_spike="stop", save_interval=5))
    assert load_checkpoint(tmp_path / "run" / "last.pt")["step"] == 25


def test_rewind_goes_back_to_the_checkpoint_and_on_behind_the_spike(
    config, spiking, tmp_path, monkeypatch
):
    asked, plain = [], train.TrainBatches.__call__
    monkeypatch.setattr(
        train.TrainBatches,
        "__call__",
        lambda self, step, *args: asked.append(step) or plain(self, step, *args),
    )
    spiking({27})
    summary = train.train(config(max_steps=30, on_spike="rewind", save_interval=5))
    assert (
        asked == [*range(28), *range(28, 33)] and summary["steps"] == 30
    )  # 25 to 29 on what comes after the spike
    last = load_checkpoint(tmp_path / "run" / "last.pt")
    assert (last["step"], last["spikes"]["ahead"], last["spikes"]["count"]) == (30, 3, 1)


def test_rewind_gives_up_where_every_way_on_spikes(config, spiking, tmp_path):
    spiking(set(range(27, 1000, 3)))
    with pytest.raises(UserError, match="each of 10 ways on from step 25 led to a spike"):
        train.train(config(max_steps=40, on_spike="rewind", save_interval=5))
    assert load_checkpoint(tmp_path / "run" / "last.pt")["step"] == 25


def test_skip_gives_up_after_ten_spikes_in_a_row(config, spiking):
    spiking(set(range(25, 100)))
    with pytest.raises(UserError, match="11 in a row"):
        train.train(config(max_steps=60, on_spike="skip"))


def test_the_first_bad_loss_is_told_with_the_last_good_one(config, monkeypatch):
    forward, calls = GPT.forward, []

    def poisoned(self, *args, **kwargs):
        calls.append(1)
        return forward(self, *args, **kwargs) * (math.nan if len(calls) == 7 else 1)

    monkeypatch.setattr(GPT, "forward", poisoned)
    with pytest.raises(
        UserError, match=r"loss is nan at step 6, \d\.\d+ before it, with learning rates \[.*Likely"
    ):
        train.train(config(max_steps=20))


# ---------------------------------------------------------------------------------------------------------------------
# Folders, files, memory, terminals


def test_a_folder_is_locked_for_others_and_free_afterwards(tmp_path):
    with locked(tmp_path / "a" / "b"):
        with pytest.raises(UserError, match="in use by another run.*--out"):
            with locked(tmp_path / "a" / "b"):
                pass
        with locked(tmp_path / "a" / "b", wanted=False):
            pass
    assert list(tmp_path.iterdir()) == []  # nothing was made in it: it was for the lock alone
    with locked(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "file").touch()
    assert (tmp_path / "a" / "b" / "file").exists()


def test_temporary_files_of_a_killed_run_go_with_the_next_and_no_others(config, tmp_path):
    (tmp_path / "run").mkdir()
    for name in [*RUN_FILES, "mine"]:
        (tmp_path / "run" / f"{name}.tmp").write_bytes(b"half")
    train.train(config())
    assert [path.name for path in (tmp_path / "run").glob("*.tmp")] == ["mine.tmp"]


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
    """The estimate is from below; the weights, gradients and one moment of each, and what Python needs of a layer."""
    config = GPTConfig(
        **(
            {
                "n_layer": 3,
                "n_head": 2,
                "n_embd": 96,
                "vocab_size": 300,
                "block_size": 64,
                "value_embeds": 2,
            }
            | options
        )
    )
    weights = sum(p.numel() for p in GPT(config).parameters())
    monkeypatch.setattr(
        device_module, "memory_limit", lambda: 12 * weights + 24_000 * config.n_layer + 1
    )
    require_memory(config, 0, True)
    monkeypatch.setattr(device_module, "memory_limit", lambda: 2 * weights)
    with pytest.raises(UserError, match="GB of memory at least.*smaller --n_layer"):
        require_memory(config, 0, True)


def test_ctrl_c_during_the_imports_ends_without_a_traceback(tmp_path):
    """A torch that takes a minute to import stands in for one that takes two seconds."""
    (tmp_path / "torch.py").write_text(
        "import pathlib, time\npathlib.Path('importing').touch()\ntime.sleep(60)\n"
    )
    code = f"import sys, runpy; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]; runpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')"
    run = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 30
    while not (tmp_path / "importing").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    run.send_signal(signal.SIGINT)
    assert run.communicate(timeout=30)[1] == "" and run.returncode == -signal.SIGINT


def test_a_log_that_cannot_be_written_is_written_whole_as_soon_as_it_can(
    config, tmp_path, monkeypatch, capsys
):
    write, failing = console.Log.write, [3, 4, 5]

    def sometimes(self, step, *args, **figures):
        if step in failing:
            monkeypatch.setattr(
                console,
                "open",
                lambda *args, **options: (_ for _ in ()).throw(OSError(28, "No space left")),
                raising=False,
            )
        write(self, step, *args, **figures)
        monkeypatch.delattr(console, "open", raising=False)

    monkeypatch.setattr(console.Log, "write", sometimes)
    train.train(config(max_steps=8, log_interval=1))
    steps = [
        json.loads(line)["step"]
        for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    ]
    assert steps == list(range(1, 9)) and "log.jsonl' was NOT written" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------------------------
# Nobody gets in

# What runs code that stands in a file, and why it may. Nothing else does.
RUNS_CODE = {
    ("console.py", "run_path"),  # config files, which are Python and run as you
    ("checkpoint.py", "run_path"),  # the recipe of GPT-2's weights
    ("bench.py", "run_path"),  # the other checkout's train.py, in a process of its own
    ("corpus/report.py", "run_path"),  # two of the project's own recipes, for their lengths
    ("research/zygote.py", "run_path"),  # candidates, in the sandbox
    (
        "corpus/synthetic.py",
        "exec",
    ),  # a program of three statements that the line above has put together
}


def calls(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield (
                node,
                node.func.attr
                if isinstance(node.func, ast.Attribute)
                else getattr(node.func, "id", ""),
            )


def test_no_code_is_run_but_what_is_known_to():
    found = {
        (str(path.relative_to(ROOT)), name)
        for path in SOURCES
        for node, name in calls(path)
        if name
        in ("exec", "run_path", "run_module", "execfile", "__import__", "unpickle", "Unpickler")
        or name == "eval"
        and (node.args or isinstance(node.func, ast.Name))
    }
    assert found <= RUNS_CODE, found - RUNS_CODE


def test_nothing_is_unpickled():
    for path in SOURCES:
        names = {
            alias.name.split(".")[0]
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for alias in node.names
        }
        assert not names & {"pickle", "dill", "joblib", "shelve", "cloudpickle"}, path
        for node, name in calls(path):
            if name == "load" and getattr(getattr(node.func, "value", None), "id", "") in (
                "torch",
                "np",
                "numpy",
            ):
                given = {keyword.arg: keyword.value for keyword in node.keywords}
                assert getattr(given.get("weights_only"), "value", False) is True, (
                    f"{path}:{node.lineno}"
                )
            assert name != "trust_remote_code" and "trust_remote_code" not in {
                word.arg for word in node.keywords
            }, path


def test_no_port_is_opened():
    for path in SOURCES:
        opening = {name for _, name in calls(path)} & {
            "listen",
            "bind",
            "create_server",
            "serve_forever",
            "start_server",
        }
        assert not opening, f"{path}: {opening}"


def test_secrets_stay_where_they_are(config, tmp_path, monkeypatch, data_dir):
    """Keys in the environment are in no file that a run, with wandb, or a preparation leaves."""
    pytest.importorskip("wandb")
    secrets = {
        "WANDB_API_KEY": "0123456789abcdef" * 2 + "deadbeef",
        "ANTHROPIC_API_KEY": "sk-ant-secret",
        "HF_TOKEN": "hf_secret",
        "HUGGING_FACE_HUB_TOKEN": "hf_other_secret",
        "AWS_SECRET_ACCESS_KEY": "aws-secret",
    }
    for name, value in {**secrets, "WANDB_MODE": "offline", "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("".join(make_documents(9)))
    prepare_data.main(["--source=text.txt", "--name=n", "--tokenizer=byte"])
    train.train(config(wandb=True))
    contents = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert {"last.pt", "meta.json", "report.html"} <= {path.name for path in contents}
    assert any(path.suffix == ".wandb" for path in contents)
    for path, content in contents.items():
        for name, value in secrets.items():
            assert value.encode() not in content, f"{name} is in {path}"


def test_nothing_that_is_made_can_be_written_by_everybody(config, tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("".join(make_documents(9)))
    before = os.umask(0)
    try:
        assert (
            command(prepare_data.main, "--source=text.txt", "--name=n", "--tokenizer=byte").code
            == 0
        )
        os.umask(0)
        flags = "--data=data/n --block_size=16 --n_layer=1 --n_head=2 --n_embd=8 --value_embeds=1 --batch_tokens=64 --max_steps=1 --device=cpu"
        assert command(train.main, *flags.split()).code == 0
    finally:
        os.umask(before)
    made = [
        path
        for name in ("out", "data")
        for path in [tmp_path / name, *(tmp_path / name).rglob("*")]
    ]
    assert len(made) > 10
    assert [path for path in made if path.lstat().st_mode & stat.S_IWOTH] == []
