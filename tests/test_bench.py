"""bench.py: its arithmetic, its fairness to the other side, and what it says; on models of a few hundred weights."""

import json
import pickle
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import bench
import model
import prepare_data
import train
from nanoloop.device import PEAK_FLOPS
from nanoloop.options import UserError, read_options
from tests.conftest import ROOT

SMALL = "--block_size=32 --n_layer=1 --n_head=1 --n_embd=32 --value_embeds=0 --batch_tokens=128 --device=cpu".split()

# The least that has nanoGPT's interface. Its model is a random table of what follows which token; it learns nothing.
NANOGPT = {
    "configurator.py": """
import sys
for word in sys.argv[1:]:
    if word.startswith("--"):
        key, value = word[2:].split("=")
        old = globals()[key]
        globals()[key] = value if isinstance(old, str) else value == "True" if isinstance(old, bool) else type(old)(value)
    else:
        exec(open(word).read())
""",
    "config/small.py": "n_layer = 7\n",
    "model.py": """
from dataclasses import dataclass
import torch

@dataclass
class GPTConfig:
    block_size: int = 8
    vocab_size: int = 8
    n_layer: int = 1
    n_head: int = 1
    n_embd: int = 8
    dropout: float = 0.0
    bias: bool = True

class GPT(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.table = torch.nn.Embedding(config.vocab_size, config.vocab_size)

    def forward(self, x, targets=None):
        assert x.dtype == torch.int64 and x.max() < self.table.num_embeddings
        logits = self.table(x)
        if targets is None:
            return logits, None
        return logits, torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)

    @torch.no_grad()
    def generate(self, x, count, temperature=1.0, top_k=None):
        for _ in range(count):
            x = torch.cat((x, self(x)[0][:, -1].argmax(-1, keepdim=True)), dim=1)
        return x
""",
    "train.py": """
import os, pickle
from contextlib import nullcontext
import numpy as np
import torch
from model import GPT, GPTConfig

dataset = out_dir = device = dtype = ""
compile = False
n_layer = n_head = n_embd = block_size = batch_size = gradient_accumulation_steps = 1
max_iters = log_interval = eval_interval = eval_iters = 1
dropout = 0.0
exec(open("configurator.py").read())
assert n_layer == EXPECTED and eval_interval == 10**9 and os.path.isdir(out_dir)
torch.manual_seed(1337)
with open(os.path.join("data", dataset, "meta.pkl"), "rb") as file:
    vocab_size = pickle.load(file)["vocab_size"]
assert np.memmap(os.path.join(dataset, "train.bin"), dtype=np.uint16, mode="r").max() == vocab_size - 1
model, ctx, tokens_per_iter = GPT(GPTConfig(vocab_size=vocab_size)), nullcontext(), batch_size * block_size
iter_num = 0
while True:
    if iter_num % log_interval == 0:
        print(f"iter {iter_num}: loss 1.0000, time 1.00ms, mfu 1.00%")
    iter_num += 1
    if iter_num > max_iters:
        break
""",
    "data/openwebtext/prepare.py": """
import os
import numpy as np
import tiktoken
from datasets import load_dataset
num_proc = 8
assert num_proc == os.cpu_count()
enc = tiktoken.get_encoding("gpt2")
if __name__ == "__main__":
    dset = load_dataset("openwebtext", num_proc=num_proc)["train"]
    total_batches = 1024
    assert total_batches == len(dset)
    ids = [token for text in dset for token in [*enc.encode_ordinary(text), enc.eot_token]]
    np.array(ids, dtype=np.uint16).tofile("train.bin")
""",
}


@pytest.fixture
def nanogpt(tmp_path) -> Path:
    checkout = tmp_path / "nanoGPT"
    for name, text in NANOGPT.items():
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text(text.replace("EXPECTED", "1"))
    return checkout


@pytest.fixture
def here(monkeypatch, tmp_path):
    """Jobs run in this process, one after the other, and what they change in it is put back after each."""
    order = []

    def run_job(what, side, checkout, repeat, argv):
        order.append(f"{what.__name__} {side} {repeat}")
        folder = tmp_path / f"job{len(order)}"
        folder.mkdir()
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "model", model)
            patch.setattr(sys, "path", [*sys.path])
            patch.setattr(sys, "argv", ["program"])
            patch.chdir(Path.cwd())
            for owner, name in (
                (torch, "manual_seed"),
                (train, "try_compile"),
                (train.Run, "take_step"),
            ):
                patch.setattr(owner, name, getattr(owner, name))
            patch.setattr(prepare_data.TrainBatches, "__call__", prepare_data.TrainBatches.__call__)
            patch.setattr(train, "catch_signals", list)
            for hook in ("register_optimizer_step_pre_hook", "register_optimizer_step_post_hook"):
                register = getattr(bench, hook)
                patch.setattr(
                    bench,
                    hook,
                    lambda function, register=register: hooks.append(register(function)),
                )
            hooks = []
            figures = what(bench.make_job(side, str(checkout), repeat, argv, str(folder)))
        for handle in hooks:
            handle.remove()
        return json.loads(json.dumps(figures))

    monkeypatch.setattr(bench, "run_job", run_job)
    return order


# ---------------------------------------------------------------------------------------------------------------------
# The arithmetic


def test_sides_take_turns(monkeypatch):
    asked = []
    monkeypatch.setattr(
        bench, "run_job", lambda what, *rest: asked.append(rest[:3]) or {"x": len(asked)}
    )
    runs = bench.alternate(bench.speed, 2, {"this": ROOT, "other": Path("/there")}, [])
    assert asked == [
        ("this", ROOT, 0),
        ("other", Path("/there"), 0),
        ("this", ROOT, 1),
        ("other", Path("/there"), 1),
    ]
    assert runs == {"this": [{"x": 1}, {"x": 3}], "other": [{"x": 2}, {"x": 4}]}


def test_a_row_holds_medians_their_ratio_and_the_spread_of_the_pairs():
    runs = {
        "this": [{"tokens_per_second": value} for value in (10.0, 30.0, 20.0)],
        "other": [{"tokens_per_second": value} for value in (10.0, 10.0, 5.0)],
    }
    row = bench.compare(runs)["tokens_per_second"]
    assert row == {"this": 20.0, "other": 10.0, "ratio": 2.0, "lowest": 1.0, "highest": 4.0}


def test_times_say_how_many_times_fewer():
    assert (
        bench.ratio("tokens_per_second", 30.0, 10.0) == 3
        and bench.ratio("memory_mb", 30.0, 10.0) == 3
    )
    assert (
        bench.ratio("seconds_to_target", 10.0, 30.0) == 3
        and bench.ratio("ms_per_step", 10.0, 30.0) == 3
    )
    assert (
        bench.ratio("memory_mb", None, 1.0) is None and bench.ratio("memory_mb", 1.0, None) is None
    )


def test_alone_there_is_no_ratio_and_what_is_missing_stays_missing():
    assert bench.compare({"this": [{"a": 1.0, "b": None}, {"a": 3.0, "b": None}]}) == {
        "a": {"this": 2.0},
        "b": {"this": None},
    }


def test_a_time_without_end_moves_the_median_up_and_can_be_the_median():
    assert bench.middle([1.0, None, 3.0]) == 3.0
    assert bench.middle([1.0, None, None]) is None


def test_in_a_race_doubts_are_decided_for_the_other_side():
    def run(*evaluations):
        return {
            "evaluations": [*evaluations],
            "train_seconds": evaluations[-1][0],
            "val_loss": evaluations[-1][1],
        }

    runs = {
        "this": [run((1, 3.0), (2, 1.5), (3, 1.0)), run((4, 2.0))],
        "other": [run((50, 1.4)), run((60, 1.6))],
    }
    bench.judge_race(runs, 1.5)
    assert [one["seconds_to_target"] for one in runs["this"]] == [
        2,
        None,
    ]  # the first at or below it; never
    assert [one["seconds_to_target"] for one in runs["other"]] == [
        50,
        60,
    ]  # a miss counts as if it had just made it
    assert [one["reached"] for side in runs.values() for one in side] == [1, 1, 1, 1]
    assert (
        bench.compare(runs)["seconds_to_target"]["ratio"] is None
    )  # half of this side's runs never reached it


@pytest.mark.parametrize("a, b, c", [(300.0, 0.15, 1.7), (5000.0, 0.3, 0.5)])
def test_the_fit_finds_the_law_that_made_the_points(a, b, c):
    compute = [1e12, 5e12, 3e13, 2e14, 1e15]
    law = bench.fit_power_law(compute, [a * x**-b + c for x in compute])
    assert law["b"] == pytest.approx(b, rel=1e-3) and law["c"] == pytest.approx(c, rel=1e-3)
    assert law["a"] == pytest.approx(a, rel=1e-2) and law["largest_error"] < 1e-4


# ---------------------------------------------------------------------------------------------------------------------
# nanoloop's side


def test_the_parts_of_a_step_are_what_happens_in_them(here, monkeypatch):
    monkeypatch.setattr(bench, "run_job", None)
    weight = torch.nn.Parameter(torch.zeros(1))
    weight.grad = torch.zeros(1)

    class Batches:
        def __call__(self, step):
            time.sleep(0.004)

    class Slow(torch.optim.SGD):
        def step(self):
            time.sleep(0.001)

    def take_step(run, network, batches):
        for micro_step in range(2):
            batches(micro_step)
            network(micro_step)
            time.sleep(0.006)  # the backward pass
        optimizer.step()
        time.sleep(0.003)

    optimizer, hooks = Slow([weight]), []
    for name in ("register_optimizer_step_pre_hook", "register_optimizer_step_post_hook"):
        register = getattr(bench, name)
        monkeypatch.setattr(
            bench, name, lambda function, register=register: hooks.append(register(function))
        )
    run = SimpleNamespace(device=torch.device("cpu"))
    parts = bench.step_parts(take_step, run, lambda step: time.sleep(0.002), Batches())
    for hook in hooks:
        hook.remove()
    least = {"ms_data": 8, "ms_forward": 4, "ms_backward": 12, "ms_optimizer": 1, "ms_rest": 3}
    assert list(parts) == list(least)
    assert all(least[name] <= value for name, value in parts.items()), parts


def test_a_run_is_watched_and_leaves_nothing(data_dir, tmp_path, monkeypatch, command):
    """As a user would: in a process of its own, with a table, a row and a file."""
    monkeypatch.chdir(tmp_path)
    done = command(
        bench.main, *SMALL, f"--data={data_dir}", "--steps=5", "--warmup_steps=1", "--json=a.json"
    )
    assert done.code == 0, done.err
    result = json.loads(Path("a.json").read_text())
    assert set(result) == {"command", "where", "repeats", "tables", "runs"} and set(
        result["tables"]
    ) == {"speed"}
    row = {key: cells["this"] for key, cells in result["tables"]["speed"].items()}
    assert row["tokens_per_second"] == pytest.approx(128 / row["ms_per_step"] * 1000)
    assert all(
        row[f"ms_{part}"] > 0 for part in ("data", "forward", "backward", "optimizer", "rest")
    )
    assert 0 < row["mfu_of_matmul"] < 1 and row["mfu_of_sheet"] is None and row["memory_mb"] > 50
    assert "tokens_per_second" in done.out and done.out.splitlines()[-1].startswith(
        "| speed; 1 repeats | tokens_per_s"
    )
    assert [path.name for path in tmp_path.iterdir() if path.name != "source0"] == ["a.json"]


def test_a_job_gives_train_py_its_own_options_and_seed(data_dir):
    argv = ["--data=x", "--steps=9", "--their-flags=--a=1", "--max_steps=7", "--seed=5"]
    job = bench.make_job("this", "/here", 3, argv, "/tmp/folder")
    assert job.flags[:3] == ["--data=x", "--max_steps=7", "--seed=5"] and "--seed=8" in job.flags
    assert "--out=/tmp/folder" in job.flags and job.options.steps == 9
    read_options(train.TrainConfig, job.flags, "train.py")


def test_another_working_copy_brings_its_own_recipe(tmp_path):
    (tmp_path / "config").mkdir()
    recipe = str(ROOT / "config" / "quickstart.py")
    assert bench.own_recipe(tmp_path, [recipe, "--a=1"]) == [
        recipe,
        "--a=1",
    ]  # it has none of that name
    (tmp_path / "config" / "quickstart.py").write_text("")
    assert bench.own_recipe(tmp_path, [recipe, "--a=1"]) == [
        str(tmp_path / "config" / "quickstart.py"),
        "--a=1",
    ]
    assert bench.own_recipe(tmp_path, ["--a=1"]) == ["--a=1"]


# ---------------------------------------------------------------------------------------------------------------------
# nanoGPT's side


def test_nanogpt_reads_the_same_tokens(data_dir, tmp_path):
    data = prepare_data.Data(data_dir)
    theirs = bench.write_nanogpt_data(data, tmp_path)
    ours = np.concatenate(data.splits["train"].shards)
    written = np.fromfile(tmp_path / "train.bin", dtype=np.uint16)
    assert len(np.fromfile(tmp_path / "val.bin", dtype=np.uint16)) == len(data.splits["val"])
    used = np.unique(np.concatenate([ours, *data.splits["val"].shards]))
    assert (used[written] == ours).all() and (
        theirs[ours] == written
    ).all()  # numbered in order, none left out
    assert pickle.loads((tmp_path / "meta.pkl").read_bytes()) == {"vocab_size": len(used)}


def test_nanogpt_gets_our_sizes_unless_its_recipe_has_a_file():
    sizes = dict(
        n_layer=3, n_head=2, n_embd=64, block_size=32, batch_tokens=256, micro_batch_size=4
    )
    options = bench.BenchConfig(**sizes, value_embeds=0, device="cpu")
    flags = bench.nanogpt_flags(options, "--max_iters=9")
    assert {
        "--n_layer=3",
        "--n_embd=64",
        "--batch_size=4",
        "--gradient_accumulation_steps=2",
    } <= set(flags)
    assert flags.index("--max_iters=9") > flags.index("--n_layer=3")
    flags = bench.nanogpt_flags(options, bench.NANOGPT_RECIPES["data/shakespeare_char"])
    assert (
        flags[0] == "config/train_shakespeare_char.py"
        and "--n_layer=4" in flags
        and "--n_layer=3" not in flags
    )
    assert {"--compile=False", f"--eval_interval={10**9}"} <= set(flags[-4:]) and flags[
        -4
    ].startswith("--device=")


def test_both_sides_in_turn_throughput_and_race(data_dir, nanogpt, here, command, tmp_path):
    done = command(
        bench.main,
        *SMALL,
        f"--data={data_dir}",
        f"--against={nanogpt}",
        "--target_loss=3.9",
        "--max_steps=3",
        "--repeats=2",
        "--steps=5",
        "--warmup_steps=2",
        "--their_flags=--max_iters=8",
        f"--json={tmp_path}/a.json",
    )
    assert done.code == 0, done.err
    assert here == [
        f"{mode} {side} {i}"
        for mode in ("speed", "race")
        for i in (0, 1)
        for side in ("this", "other")
    ]
    result = json.loads((tmp_path / "a.json").read_text())
    rows = result["tables"]["speed"]["tokens_per_second"]
    assert (
        rows["ratio"] == pytest.approx(rows["this"] / rows["other"])
        and rows["lowest"] <= rows["highest"]
    )
    race, runs = result["tables"]["race"], result["runs"]["race"]
    assert race["target_loss"]["this"] == 3.9 and race["reached"]["other"] in (0, 1, 2)
    assert result["tables"]["speed"]["memory_mb"]["ratio"] > 0
    data = prepare_data.Data(data_dir)
    theirs = torch.from_numpy(bench.write_nanogpt_data(data, tmp_path))
    stream = theirs[data.splits["val"].read(0, len(data.splits["val"]))]
    vocab_size = pickle.loads((tmp_path / "meta.pkl").read_bytes())["vocab_size"]
    for repeat, run in enumerate(
        runs["other"]
    ):  # on the whole split, once each; another seed each repeat
        torch.manual_seed(1337 + repeat)
        table = torch.nn.Embedding(vocab_size, vocab_size).weight
        expected = torch.nn.functional.cross_entropy(table[stream[:-1]], stream[1:]).item()
        assert run["val_loss"] == pytest.approx(expected, rel=1e-5)
    assert "seconds_to_target" in done.out and f"--against={nanogpt}" in done.out.splitlines()[-1]


def test_the_file_of_nanogpts_recipe_wins_over_our_sizes(data_dir, nanogpt, here):
    program = nanogpt / "train.py"
    program.write_text(program.read_text().replace("n_layer == 1", "n_layer == 7"))
    argv = [
        *SMALL,
        f"--data={data_dir}",
        "--their_flags=config/small.py --block_size=32 --max_iters=40",
    ]
    figures = bench.run_job(bench.race, "other", nanogpt, 0, argv)
    assert figures["evaluations"] == [[figures["train_seconds"], figures["val_loss"]]]


def test_nanogpts_length_has_to_be_known(data_dir, nanogpt, here):
    with pytest.raises(UserError, match="their_flags"):
        bench.run_job(bench.race, "other", nanogpt, 0, [*SMALL, f"--data={data_dir}"])


def test_decoding_is_compared_at_batch_one_and_scales_by_itself(nanogpt, here, command, tmp_path):
    done = command(
        bench.main,
        *SMALL,
        "--sample",
        "--vocab_size=64",
        "--new_tokens=2,12",
        f"--against={nanogpt}",
        "--repeats=1",
        f"--json={tmp_path}/a.json",
    )
    assert done.code == 0, done.err
    rows = json.loads((tmp_path / "a.json").read_text())["tables"]["decode"]
    assert {f"tokens_per_second_{what}" for what in ("2", "12", "2_batch_8", "2_batch_32")} | {
        "memory_mb_batch_32"
    } == set(rows)
    assert (
        rows["tokens_per_second_12"]["ratio"] > 0
        and rows["tokens_per_second_2_batch_8"]["other"] is None
    )


def test_preparing_gives_both_sides_the_same_tokens(nanogpt, here, monkeypatch, tmp_path):
    """With a `datasets` of one function: what nanoGPT's program is given is looked at, not the library."""
    texts, loaded = (
        ["the cat sat on the mat " * 20, "the dog lay on the log " * 20, "no more of this " * 30],
        [],
    )
    (tmp_path / "my texts").mkdir()
    for index, text in enumerate(texts):
        (tmp_path / "my texts" / f"{index}.txt").write_text(text)
    tokenizer = prepare_data.train_bpe("bpe:300", texts)
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer.to_json()))

    def load_dataset(path, data_files, split, **options):
        loaded.append((path, options["sample_by"]))
        return [Path(file).read_text() for file in data_files]

    import tiktoken

    monkeypatch.setattr(tiktoken, "get_encoding", tiktoken.get_encoding)
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    no_thread = SimpleNamespace(
        Thread=lambda **options: SimpleNamespace(start=lambda: None)
    )  # it would never end
    monkeypatch.setattr(bench, "threading", no_thread)
    argv = [f"--prepare_text={tmp_path / 'my texts'}", f"--data={tmp_path}"]
    ours, theirs = (bench.run_job(bench.prepare, "", side, 0, argv) for side in (ROOT, nanogpt))
    assert (
        ours["tokens"] == theirs["tokens"] == sum(len(tokenizer.encode(text)) + 1 for text in texts)
    )
    assert ours["megabytes_per_second"] > 0 and theirs["megabytes_per_second"] > 0
    assert loaded == [("text", "document")]


@pytest.mark.skipif(sys.platform != "linux", reason="the figure is Linux's")
def test_the_memory_of_a_child_counts():
    before = bench.tree_memory_mb()
    code = "x = bytearray(b'1' * 80_000_000); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        child.stdout.readline()
        assert bench.tree_memory_mb() - before > 70
        child.communicate(b"\n")


# ---------------------------------------------------------------------------------------------------------------------
# Loss against compute


def test_scaling_finds_the_law_and_draws_it(here, data_dir, monkeypatch, tmp_path, command):
    monkeypatch.chdir(tmp_path)
    trained = []

    def race(job):
        trained.append(job.options.max_tokens)
        size = bench.model_size(
            replace(job.options, share=1.0), prepare_data.Data(data_dir).tokenizer.vocab_size
        )
        return {
            "val_loss": 40 * size["flops"] ** -0.1 + 1.5,
            "train_seconds": 1.0,
            "params": 1000 + len(trained),
        }

    monkeypatch.setattr(bench, "race", race)
    done = command(
        bench.main,
        str(ROOT / "config/depth.py"),
        f"--data={data_dir}",
        "--prepare=None",
        "--scaling",
        "--share=0.05",
        "--json=a.json",
    )
    assert done.code == 0, done.err
    tables = json.loads(Path("a.json").read_text())["tables"]
    law, points = tables["law, in out/scaling.png"]["this"], tables["scaling of this"]
    assert list(points) == ["this d1", "this d2", "this d3", "this d4"]
    assert (
        Path("out/scaling.png").read_bytes().startswith(b"\x89PNG") and law["largest_error"] < 1e-3
    )
    assert law["b"] == pytest.approx(0.1, rel=0.02) and law["c"] == pytest.approx(1.5, rel=0.02)
    assert [point["tokens"] for point in points.values()] == trained
    assert [point["params"] for point in points.values()] == [
        1001,
        1002,
        1003,
        1004,
    ]  # as each run has told
    recipe = read_options(
        train.TrainConfig, [str(ROOT / "config/depth.py"), "--depth=4"], "train.py"
    )
    assert trained[-1] == pytest.approx(0.05 * recipe.max_tokens, abs=recipe.batch_tokens)


def test_the_plan_follows_the_recipe_and_the_data_sheets(command):
    rows = bench.plan()
    assert list(rows) == ["d4", "d8", "d12", "d16", "d20", "d24"]
    for row in rows.values():
        assert row["H100 hours"] == pytest.approx(row["flops"] / (0.4 * PEAK_FLOPS["H100"] * 3600))
        assert row["flops"] > 6 * row["tokens"] * row["params"] / 2
    done = command(bench.main, "--plan")
    assert done.code == 0 and "d24" in done.out and "H200 hours" in done.out


def test_a_model_is_sized_without_being_built():
    options = bench.BenchConfig(
        n_layer=2, n_head=2, n_embd=64, value_embeds=1, max_tokens=1000, batch_tokens=300, share=0.5
    )
    size, real = (
        bench.model_size(options, 300),
        model.GPT(model.GPTConfig(n_layer=2, n_head=2, n_embd=64, value_embeds=1, vocab_size=300)),
    )
    assert size["params"] == sum(p.numel() for p in real.parameters())
    assert size["tokens"] == 600 and size["flops"] == 600 * real.flops_per_token()  # whole steps


# ---------------------------------------------------------------------------------------------------------------------
# What it says


@pytest.mark.parametrize(
    "flags, told",
    [
        (["--against=/nowhere"], "is not the folder of a nanoGPT"),
        (["--steps=4"], "steps is 5 or more"),
        (["--repeats=-1"], "repeats 1"),
        (["--sample", "--new_tokens=a"], "whole numbers with commas"),
        (["--repeat=3"], "did you mean --repeats?"),
        (["--repeats", "3"], "with ="),
        (["--scaling", "--depths=1,2,3"], "at least 4 depths"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_told(flags, told, command, here, data_dir):
    done = command(bench.main, f"--data={data_dir}", *flags)
    assert done.code == 2 and told in done.err and "Traceback" not in done.err


def test_nanogpt_has_no_depth_to_turn(command, nanogpt):
    done = command(bench.main, "--scaling", f"--against={nanogpt}")
    assert done.code == 2 and "leave nanoGPT out" in done.err


@pytest.mark.parametrize(
    "code, complaint, told",
    [
        (
            2,
            "warning: x\nerror: out of memory. Set less",
            "speed of /there failed: out of memory. Set less",
        ),
        (1, "Traceback (most recent call last):\nValueError: odd", "ValueError: odd"),
        (-9, "", "killed, most likely for memory"),
    ],
)
def test_why_a_side_failed_is_told(code, complaint, told, monkeypatch):
    class Process:
        pid, returncode = 2**31 - 1, code  # no process has this number

        def __init__(self, *args, **options):
            assert (
                options["env"]["PYTHONPATH"].startswith("/there") and options["start_new_session"]
            )

        def communicate(self):
            return "", complaint

    monkeypatch.setattr(bench.subprocess, "Popen", Process)
    with pytest.raises(UserError, match=told.replace(".", r"\.")):
        bench.run_job(bench.speed, "other", Path("/there"), 0, [])


def test_a_table_lines_up_and_a_row_has_four_cells():
    rows = {
        "tokens_per_second": {"this": 12345.6, "other": None},
        "ms_x": {"this": 0.0012, "other": 3.0},
    }
    lines = bench.table("speed", rows).splitlines()
    assert (
        len({len(line) for line in lines}) == 1
        and "12,346" in lines[1]
        and lines[1].rstrip().endswith("-")
    )
    result = {
        "tables": {"speed": rows},
        "runs": {"speed": []},
        "repeats": 5,
        "command": "python bench.py",
    }
    result["where"] = bench.provenance({"this": ROOT, "other": Path("/")})
    row = bench.benchmarks_row(result)
    assert (
        row.count(" | ") == 3
        and row.endswith("| `python bench.py` |")
        and str(torch.__version__) in row
    )
    assert result["where"]["hardware"] in row and time.strftime("%Y-") in row and "5 repeats" in row


def test_every_option_is_read():
    source = (ROOT / "bench.py").read_text()
    for name in {field.name for field in fields(bench.BenchConfig)} - {
        field.name for field in fields(train.TrainConfig)
    }:
        assert f"options.{name}" in source, name
