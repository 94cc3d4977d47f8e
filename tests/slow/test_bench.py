"""Real measurements: this project alone, beside nanoGPT's interface, beside another checkout."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench import __main__ as bench
from bench import measure, peers, scaling
from bench.sides import compare, run_in_process
from corpus.bpe import train_bpe
from model import GPT, GPTConfig
from nanoloop.data import Data
from nanoloop.device import flops_per_token
from nanoloop.options import UserError, read_options
from tests.conftest import ROOT
from tests.fake_nanogpt import write_nanogpt
from train import TrainConfig, train

SIZES = {
    "block_size": 32,
    "n_layer": 1,
    "n_head": 1,
    "n_embd": 32,
    "value_embeds": 0,
    "batch_tokens": 128,
    "device": "cpu",
}
SMALL = [f"--{name}={value}" for name, value in SIZES.items()]
SHORT = ["--steps=5", "--warmup_steps=2"]


@pytest.fixture
def measured(command, tmp_path):
    """Run the benchmark as a program; return what it prints and the content of its file."""

    def run(*arguments) -> SimpleNamespace:
        path = tmp_path / "figures.json"
        result = command(bench.main, *arguments, f"--json={path}")
        assert result.code == 0, result.err
        return SimpleNamespace(out=result.out, **json.loads(path.read_text()))

    return run


@pytest.fixture
def nanogpt(tmp_path) -> Path:
    return write_nanogpt(tmp_path / "nanoGPT")


# --------------------------------------------------------------------------------------------------
# Training


def test_the_parts_of_a_step_are_what_happens_in_them():
    """A sleep lasts at least as long as it is asked to, on any machine."""

    class SlowBatches:
        grad_accum = 2

        def __call__(self, step, micro_step, rank):
            time.sleep(0.004)

    class SlowModel(torch.nn.Module):
        def forward(self):
            time.sleep(0.002)

    class SlowOptimizer(torch.optim.SGD):
        def step(self):
            time.sleep(0.001)

    class SlowTraining:
        device = torch.device("cpu")
        batches = SlowBatches()
        network = SlowModel()
        optimizers = [SlowOptimizer([torch.nn.Parameter(torch.zeros(1))])]

        def take_steps(self, count):
            for micro_step in range(2):
                self.batches(0, micro_step, 0)
                self.network()
                time.sleep(0.006)  # the backward pass
            self.optimizers[0].step()
            time.sleep(0.003)

    parts = measure.step_parts(SlowTraining())
    least = {"ms_data": 8, "ms_forward": 4, "ms_backward": 12, "ms_optimizer": 1, "ms_rest": 3}
    assert list(parts) == list(least)
    assert all(least[name] <= value for name, value in parts.items()), parts


def test_a_run_is_measured_and_leaves_only_its_figures(data_dir, tmp_path, monkeypatch, measured):
    monkeypatch.chdir(tmp_path)
    result = measured(*SMALL, f"--data={data_dir}", *SHORT)
    assert set(result.tables) == {"speed"}
    row = {key: cells["this"] for key, cells in result.tables["speed"].items()}
    assert row["tokens_per_second"] == pytest.approx(128 / row["ms_per_step"] * 1000)
    assert all(row[f"ms_{part}"] > 0 for part in measure.PARTS)
    assert 0 < row["mfu_of_matmul"] < 1 and row["mfu_of_sheet"] is None
    assert row["memory_mb"] > 50
    assert "tokens_per_second" in result.out
    assert result.out.splitlines()[-1].startswith("| speed; 1 repeats | tokens_per_second")
    assert os.listdir(tmp_path) == ["figures.json"]


def test_a_measured_model_is_the_one_that_train_py_trains(config):
    """The same steps at the same rates give the same weights."""
    options = config(max_steps=3, warmup=0.0, decay=0.0, momentum_warmup=0.0)
    training = measure.Training(options)
    training.take_steps(3)
    train(options)
    trained = torch.load(Path(options.out) / "last.pt", weights_only=True)["model"]
    for name, weight in training.model.state_dict().items():
        assert torch.equal(weight, trained[name]), name


def test_each_repeat_of_a_race_has_another_seed(config, data_dir, measured):
    """A race is a run of train.py with seed + repeat."""
    length = ["--max_steps=3", "--eval_interval=1", "--target_loss=9", "--repeats=2"]
    result = measured(*SMALL, f"--data={data_dir}", *SHORT, *length, "--dtype=float32")
    options = replace(config(**SIZES, max_steps=3), dtype="float32")
    for repeat, run in enumerate(result.runs["race"]["this"]):
        again = replace(options, seed=options.seed + repeat, out=f"{options.out}{repeat}")
        assert run["val_loss"] == train(again)["val_loss"]
        assert len(run["evaluations"]) == 3
        assert run["seconds_to_target"] == run["evaluations"][0][0]  # a loss of 9 is easy


def test_this_checkout_can_be_measured_beside_itself(data_dir, measured):
    length = ["--max_steps=2", "--target_loss=1", "--repeats=1"]
    result = measured(*SMALL, f"--data={data_dir}", *SHORT, *length, f"--against={ROOT}")
    speed = result.tables["speed"]["tokens_per_second"]
    assert speed["ratio"] == pytest.approx(speed["this"] / speed["other"])
    race = result.tables["race"]
    assert race["val_loss"]["ratio"] == 1.0
    # Both miss the target: this side's time is infinite, the other's that of its run.
    assert race["seconds_to_target"]["this"] is None
    assert race["seconds_to_target"]["other"] == race["train_seconds"]["other"]


# --------------------------------------------------------------------------------------------------
# nanoGPT


def test_speed_and_a_race_beside_nanogpt(data_dir, nanogpt, measured, tmp_path):
    length = ["--target_loss=3.9", "--max_steps=3", "--repeats=2", "--their_flags=--max_iters=8"]
    result = measured(*SMALL, f"--data={data_dir}", f"--against={nanogpt}", *SHORT, *length)
    speed = result.tables["speed"]
    row = speed["tokens_per_second"]
    assert row["ratio"] == pytest.approx(row["this"] / row["other"])
    assert row["lowest"] <= row["highest"]
    assert speed["memory_mb"]["ratio"] > 0
    race = result.tables["race"]
    assert race["target_loss"]["this"] == 3.9 and race["reached"]["other"] in (0, 1, 2)
    assert "seconds_to_target" in result.out
    assert f"--against={nanogpt}" in result.out.splitlines()[-1]

    # The loss is that of the whole split, each target once; each repeat has another seed.
    data = Data(data_dir)
    translation = torch.from_numpy(peers.write_data(data, tmp_path))
    stream = translation[data.splits["val"].read(0, len(data.splits["val"]))]
    vocab_size = pickle.loads((tmp_path / "meta.pkl").read_bytes())["vocab_size"]
    for repeat, run in enumerate(result.runs["race"]["other"]):
        torch.manual_seed(1337 + repeat)
        table = torch.nn.Embedding(vocab_size, vocab_size).weight
        expected = torch.nn.functional.cross_entropy(table[stream[:-1]], stream[1:]).item()
        assert run["val_loss"] == pytest.approx(expected, rel=1e-5)


def test_the_config_file_of_nanogpt_wins_over_our_sizes(data_dir, tmp_path):
    nanogpt = write_nanogpt(tmp_path / "nanoGPT", n_layer=7)
    recipe = "--their_flags=config/small.py --block_size=32 --max_iters=40"
    argv = [*SMALL, f"--data={data_dir}", f"--against={nanogpt}", recipe]
    figures = run_in_process("race", "other", nanogpt, 0, argv)
    assert figures["evaluations"] == [[figures["train_seconds"], figures["val_loss"]]]


def test_the_reason_of_a_failed_side_is_named(data_dir, nanogpt):
    argv = [*SMALL, f"--data={data_dir}", f"--against={nanogpt}"]
    with pytest.raises(UserError, match=f"^race of {nanogpt} failed: .*their_flags"):
        run_in_process("race", "other", nanogpt, 0, argv)


# --------------------------------------------------------------------------------------------------
# Text


def test_decoding_is_compared_for_one_text_and_measured_for_many(nanogpt, measured):
    options = ["--sample=True", "--vocab_size=64", "--new_tokens=2,12", "--repeats=1"]
    rows = measured(*SMALL, *options, f"--against={nanogpt}").tables["decode"]
    speeds = {f"tokens_per_second_{name}" for name in ("2", "12", "2_batch_8", "2_batch_32")}
    assert set(rows) == speeds | {"memory_mb_batch_32"}
    assert rows["tokens_per_second_12"]["ratio"] > 0
    assert rows["tokens_per_second_2_batch_8"]["other"] is None


# Takes the place of the library: it checks what nanoGPT's program loads.
DATASETS = """
def load_dataset(path, data_files, split, cache_dir, sample_by):
    assert (path, split, sample_by) == ("text", "train", "document")
    return [open(file).read() for file in data_files]
"""


def test_preparing_gives_each_side_the_same_tokens(nanogpt, monkeypatch, tmp_path):
    texts = [
        "the cat sat on the mat " * 20,
        "the dog lay on the log " * 20,
        "no more of this " * 30,
    ]
    for index, text in enumerate(texts):
        path = tmp_path / "my texts" / f"{index}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    tokenizer = train_bpe("bpe:300", texts)
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer.to_json()))
    (tmp_path / "libraries").mkdir()
    (tmp_path / "libraries" / "datasets.py").write_text(DATASETS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "libraries"))
    # Relative paths, as they are typed.
    monkeypatch.chdir(tmp_path)
    argv = ["--prepare_text=my texts", "--data=.", "--against=nanoGPT"]
    of_nanoloop = run_in_process("prepare", "this", ROOT, 0, argv)
    of_nanogpt = run_in_process("prepare", "other", nanogpt, 0, argv)
    n_tokens = sum(len(tokenizer.encode(text)) + 1 for text in texts)
    assert of_nanoloop["tokens"] == of_nanogpt["tokens"] == n_tokens
    assert of_nanoloop["megabytes_per_second"] > 0 and of_nanogpt["megabytes_per_second"] > 0


MEMORY = """
import subprocess, sys
from bench.text import program_memory_mb

before = program_memory_mb()
code = "x = bytearray(b'1' * 80_000_000); print(flush=True); input()"
pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
with subprocess.Popen([sys.executable, "-c", code], **pipes) as child:
    child.stdout.readline()
    print(program_memory_mb() - before)
    child.communicate(b"\\n")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not give the figure")
def test_the_memory_of_a_child_counts():
    command = [sys.executable, "-c", MEMORY]
    output = subprocess.check_output(command, cwd=ROOT, text=True, start_new_session=True)
    assert float(output) > 70


# --------------------------------------------------------------------------------------------------
# Loss against compute


def test_the_compute_of_a_run_is_counted_without_its_model():
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 64, "value_embeds": 1}
    options = bench.BenchConfig(**sizes, max_tokens=1000, batch_tokens=300, share=0.5)
    model = GPT(GPTConfig(**sizes, vocab_size=300))
    assert scaling.flops_of(options, 300) == 600 * flops_per_token(model)


def test_scaling_finds_the_law_and_draws_it(data_dir, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    trained = []

    def measure_law(name, argv):
        """Do no run: return the loss of a known law."""
        options = bench.read(argv)
        trained.append(options.max_tokens)
        flops = scaling.flops_of(replace(options, share=1.0), Data(data_dir).tokenizer.vocab_size)
        run = {"val_loss": 40 * flops**-0.1 + 1.5, "params": 1000 + len(trained)}
        return {"this": [run]}

    recipe = str(ROOT / "config/depth.py")
    argv = [recipe, f"--data={data_dir}", "--prepare=None", "--share=0.05"]
    runs, tables = scaling.measure_depths([1, 2, 3, 4], argv, bench.read, measure_law)
    law = tables["law, in out/scaling.png"]["this"]
    points = tables["scaling of this"]
    assert list(runs) == ["d1", "d2", "d3", "d4"]
    assert list(points) == ["this d1", "this d2", "this d3", "this d4"]
    assert Path("out/scaling.png").read_bytes().startswith(b"\x89PNG")
    assert law["largest_error"] < 1e-3
    assert law["b"] == pytest.approx(0.1, rel=0.02)
    assert law["c"] == pytest.approx(1.5, rel=0.02)
    assert [point["tokens"] for point in points.values()] == trained
    # The size is the one that each run reports.
    assert [point["params"] for point in points.values()] == [1001, 1002, 1003, 1004]
    largest = read_options(TrainConfig, [recipe, "--depth=4"], "train.py")
    assert trained[-1] == pytest.approx(0.05 * largest.max_tokens, abs=largest.batch_tokens)


def test_scaling_trains_each_depth(data_dir, monkeypatch, tmp_path, measured):
    monkeypatch.chdir(tmp_path)
    sizes = ["--batch_tokens=256", "--block_size=32", "--micro_batch_size=None", "--device=cpu"]
    options = ["--scaling=True", "--share=0.0001", "--prepare=None", *sizes]
    result = measured(str(ROOT / "config/depth.py"), f"--data={data_dir}", *options)
    points = result.tables["scaling of this"]
    assert list(points) == ["this d1", "this d2", "this d3", "this d4"]
    params = [point["params"] for point in points.values()]
    assert params == sorted(set(params))  # a deeper model is larger
    assert set(result.runs) == {"d1", "d2", "d3", "d4"}


# --------------------------------------------------------------------------------------------------
# Processes


def wait_until(condition) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    """Say whether a process exists and is no zombie."""
    path = Path(f"/proc/{pid}/stat")
    try:
        return path.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_a_killed_benchmark_leaves_no_job_and_no_folder(number, data_dir, tmp_path):
    length = ["--target_loss=0.01", "--max_steps=10_000_000"]
    command = [sys.executable, "-P", "-m", "bench", *SMALL, f"--data={data_dir}", *length]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}

    def folders() -> list[Path]:
        return list(tmp_path.glob("nanoloop-bench-*"))

    def trains() -> bool:
        return any((folder / "log.jsonl").is_file() for folder in folders())

    def hear_of_a_closed_terminal() -> None:
        """Under nohup, these tests and their children ignore the signal."""
        signal.signal(signal.SIGHUP, signal.SIG_DFL)

    options = {"cwd": tmp_path, "env": environment, "preexec_fn": hear_of_a_closed_terminal}
    with subprocess.Popen(command, **options) as parent:
        wait_until(lambda: parent.poll() is not None or trains())
        jobs = children(parent.pid)
        assert jobs and all(map(is_running, jobs))
        parent.send_signal(number)
    wait_until(lambda: not any(map(is_running, jobs)) and not folders())


def test_a_row_of_figures_can_be_compared_again(data_dir, measured):
    """The file holds the runs that its table is made of."""
    result = measured(*SMALL, f"--data={data_dir}", *SHORT, "--repeats=2")
    assert compare(result.runs["speed"]) == result.tables["speed"]
