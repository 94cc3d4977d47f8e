"""The benchmark: its arithmetic, its fairness to the other side, and its messages."""

import pickle
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bench import __main__ as bench
from bench import peers, race, report, scaling
from bench.sides import alternate, compare, failure, middle, ratio, recipe_of
from nanoloop.data import Data
from nanoloop.options import UserError
from tests.conftest import ROOT
from tests.fake_nanogpt import write_nanogpt
from train import TrainConfig

# --------------------------------------------------------------------------------------------------
# The sides of a comparison


def test_sides_take_turns():
    jobs = []

    def run(name, side, checkout, repeat, argv):
        jobs.append((name, side, checkout, repeat))
        return {"x": len(jobs)}

    other = Path("/other")
    runs = alternate("speed", 2, {"this": ROOT, "other": other}, [], run)
    assert jobs == [
        ("speed", "this", ROOT, 0),
        ("speed", "other", other, 0),
        ("speed", "this", ROOT, 1),
        ("speed", "other", other, 1),
    ]
    assert runs == {"this": [{"x": 1}, {"x": 3}], "other": [{"x": 2}, {"x": 4}]}


def test_a_row_holds_medians_their_ratio_and_the_spread_of_the_pairs():
    runs = {
        "this": [{"tokens_per_second": value} for value in (10.0, 30.0, 20.0)],
        "other": [{"tokens_per_second": value} for value in (10.0, 10.0, 5.0)],
    }
    row = compare(runs)["tokens_per_second"]
    assert row == {"this": 20.0, "other": 10.0, "ratio": 2.0, "lowest": 1.0, "highest": 4.0}


@pytest.mark.parametrize(
    "key, this, other",
    [
        ("tokens_per_second", 30.0, 10.0),
        ("memory_mb", 30.0, 10.0),
        ("seconds_to_target", 10.0, 30.0),
        ("ms_per_step", 10.0, 30.0),
    ],
)
def test_the_ratio_of_times_is_inverted(key, this, other):
    assert ratio(key, this, other) == 3


def test_a_missing_figure_has_no_ratio():
    assert ratio("memory_mb", None, 1.0) is None
    assert ratio("memory_mb", 1.0, None) is None


def test_one_side_alone_has_no_ratio_and_a_missing_figure_stays_missing():
    runs = {"this": [{"a": 1.0, "b": None}, {"a": 3.0, "b": None}]}
    assert compare(runs) == {"a": {"this": 2.0}, "b": {"this": None}}


def test_an_endless_time_moves_the_median_up_and_can_be_the_median():
    assert middle([1.0, None, 3.0]) == 3.0
    assert middle([1.0, None, None]) is None


def test_another_working_copy_brings_its_own_recipe(tmp_path):
    recipe = str(ROOT / "config" / "quickstart.py")
    assert recipe_of(tmp_path, [recipe, "--a=1"]) == [recipe, "--a=1"]  # it has none of that name
    recipe_there = tmp_path / "config" / "quickstart.py"
    recipe_there.parent.mkdir()
    recipe_there.write_text("")
    assert recipe_of(tmp_path, [recipe, "--a=1"]) == [str(recipe_there), "--a=1"]
    assert recipe_of(tmp_path, ["--a=1"]) == ["--a=1"]


@pytest.mark.parametrize(
    "code, errors, expected",
    [
        (2, "warning: x\nerror: out of memory. Set less", "out of memory. Set less"),
        (1, "Traceback (most recent call last):\nValueError: odd", "ValueError: odd"),
        (-9, "", "it was killed (out of memory?)"),
    ],
)
def test_the_reason_of_a_failed_side_is_named(code, errors, expected):
    assert expected in failure(code, errors)


def test_a_defect_of_a_side_keeps_its_traceback():
    assert "Traceback (most recent call last):" in failure(1, "Traceback (most recent call last):")


# --------------------------------------------------------------------------------------------------
# A race to a loss


def race_run(*evaluations: tuple[float, float]) -> dict:
    seconds, loss = evaluations[-1]
    return {"evaluations": list(evaluations), "train_seconds": seconds, "val_loss": loss}


def test_in_doubt_the_other_side_wins_a_race():
    runs = {
        "this": [race_run((1, 3.0), (2, 1.5), (3, 1.0)), race_run((4, 2.0))],
        "other": [race_run((50, 1.4)), race_run((60, 1.6))],
    }
    race.judge(runs, 1.5)
    # The first evaluation at the target or below it; a miss has no time.
    assert [run["seconds_to_target"] for run in runs["this"]] == [2, None]
    # A miss of the other side counts with the time of the complete run.
    assert [run["seconds_to_target"] for run in runs["other"]] == [50, 60]
    assert [run["reached"] for results in runs.values() for run in results] == [1, 1, 1, 1]
    # Half of this side's runs missed the target: the median is infinite.
    assert compare(runs)["seconds_to_target"]["ratio"] is None


# --------------------------------------------------------------------------------------------------
# nanoGPT


def test_nanogpt_reads_the_same_tokens(data_dir, tmp_path):
    data = Data(data_dir)
    translation = peers.write_data(data, tmp_path)
    ours = np.concatenate(data.splits["train"].shards)
    written = np.fromfile(tmp_path / "train.bin", dtype=np.uint16)
    assert len(np.fromfile(tmp_path / "val.bin", dtype=np.uint16)) == len(data.splits["val"])
    used = np.unique(np.concatenate([ours, *data.splits["val"].shards]))
    # The tokens that occur are numbered in order, and none is left out.
    assert (used[written] == ours).all()
    assert (translation[ours] == written).all()
    meta = pickle.loads((tmp_path / "meta.pkl").read_bytes())
    assert meta == {"vocab_size": len(used)}


SIZES = {
    "n_layer": 3,
    "n_head": 2,
    "n_embd": 64,
    "block_size": 32,
    "batch_tokens": 256,
    "micro_batch_size": 4,
    "value_embeds": 0,
    "device": "cpu",
}


def test_nanogpt_gets_our_sizes_and_then_its_flags():
    flags = peers.flags_of(bench.BenchConfig(**SIZES), "--max_iters=9")
    ours = {"--n_layer=3", "--n_embd=64", "--batch_size=4", "--gradient_accumulation_steps=2"}
    assert ours <= set(flags)
    assert flags.index("--max_iters=9") > flags.index("--n_layer=3")


def test_a_recipe_of_nanogpt_with_a_config_file_keeps_its_sizes():
    recipe = peers.RECIPES["data/shakespeare_char"]
    flags = peers.flags_of(bench.BenchConfig(**SIZES), recipe)
    assert flags[0] == "config/train_shakespeare_char.py"
    assert "--n_layer=4" in flags and "--n_layer=3" not in flags
    *_, device, dtype, compiled, eval_interval = flags
    assert device.startswith("--device=") and dtype.startswith("--dtype=")
    assert (compiled, eval_interval) == ("--compile=False", f"--eval_interval={10**9}")


def test_nanogpts_model_is_scored_as_ours():
    """Its tokens are translated, and a target of -1 has no loss."""
    table = torch.randn(3, 3)
    translation = np.array([0, 0, 2, 1])  # token 1 never occurs

    def model(x, targets):
        return table[x], None

    class Plain(torch.nn.Module):
        forward = staticmethod(model)

    scored = peers.Translated(Plain(), torch.no_grad(), translation, torch.device("cpu"))
    tokens = torch.tensor([[2, 3, 0]])
    loss = scored(tokens, torch.tensor([[3, 0, -1]]), reduction="none")
    expected = F.cross_entropy(table[[2, 1]], torch.tensor([1, 0]), reduction="none")
    assert torch.equal(loss[0, :2], expected) and loss[0, 2] == 0


def test_the_length_of_nanogpts_run_must_be_known():
    options = bench.BenchConfig(**SIZES, data="data/x")
    with pytest.raises(UserError, match="their_flags"):
        peers.race(options)


def test_nanogpt_cannot_train_on_a_mixture():
    options = bench.BenchConfig(**SIZES, data="data/a:0.5,data/b:0.5")
    with pytest.raises(UserError, match="nanoGPT needs one folder of data"):
        peers.speed(options)


# --------------------------------------------------------------------------------------------------
# Loss against compute


@pytest.mark.parametrize("a, b, c", [(300.0, 0.15, 1.7), (5000.0, 0.3, 0.5)])
def test_the_fit_finds_the_law_of_the_points(a, b, c):
    compute = [1e12, 5e12, 3e13, 2e14, 1e15]
    law = scaling.fit_power_law(compute, [a * x**-b + c for x in compute])
    assert law["b"] == pytest.approx(b, rel=1e-3)
    assert law["c"] == pytest.approx(c, rel=1e-3)
    assert law["a"] == pytest.approx(a, rel=1e-2)
    assert law["largest_error"] < 1e-4


def test_a_share_of_a_run_is_complete_steps():
    options = bench.BenchConfig(max_tokens=1000, batch_tokens=300, share=0.5)
    assert scaling.tokens_of(options) == 600


# --------------------------------------------------------------------------------------------------
# Options and messages


def test_every_option_is_read():
    source = "".join(path.read_text() for path in (ROOT / "bench").glob("*.py"))
    common = {field.name for field in fields(TrainConfig)}
    for name in {field.name for field in fields(bench.BenchConfig)} - common:
        assert f"options.{name}" in source or f"self.{name}" in source, name


def test_an_option_may_stand_before_its_value():
    assert bench.read(["--repeats", "3"]) == bench.read(["--repeats=3"])


def test_lists_of_numbers_are_read_in_order_and_once():
    assert bench.whole_numbers("depths", "3,1,2,1") == [1, 2, 3]


@pytest.mark.parametrize(
    "flags, expected",
    [
        (["--against=/nowhere"], "is not the folder of a nanoGPT"),
        (["--steps=4"], "steps must be at least 5, got 4"),
        (["--warmup_steps=0"], "warmup_steps must be at least 1, got 0"),
        (["--repeats=-1"], "repeats must be at least 1, got -1"),
        (["--sample=True", "--new_tokens=a"], "new_tokens must be whole numbers above 0"),
        (["--repeat=3"], "did you mean --repeats?"),
        (["--scaling=True", "--depths=1,2,3"], "at least 4 depths, got [1, 2, 3]"),
        (["--scaling=True", "--depths=0"], "depths must be whole numbers above 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_option_is_named(flags, expected, command):
    result = command(bench.main, *flags)
    assert result.code == 2
    assert expected in result.err and "Traceback" not in result.err


def test_nanogpt_has_no_depths_to_compare(command, tmp_path):
    nanogpt = write_nanogpt(tmp_path / "nanoGPT")
    result = command(bench.main, "--scaling=True", f"--against={nanogpt}")
    assert result.code == 2 and "leave nanoGPT out" in result.err


ROWS = {
    "tokens_per_second": {"this": 12345.6, "other": None},
    "ms_x": {"this": 0.0012, "other": 3.0},
}


def test_the_columns_of_a_table_line_up():
    lines = report.table("speed", ROWS).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert "12,346" in lines[1] and lines[1].endswith("-")


def test_a_row_names_figures_machine_versions_and_command():
    result = {
        "tables": {"speed": ROWS},
        "runs": {"speed": []},
        "repeats": 5,
        "command": "python -m bench",
        "where": report.provenance({"this": ROOT, "other": Path("/")}),
    }
    row = report.figures_row(result)
    assert row.count(" | ") == 3 and row.endswith("| `python -m bench` |")
    assert row.startswith("| speed; 5 repeats | tokens_per_second this 12,346, other -")
    assert str(torch.__version__) in row and result["where"]["hardware"] in row
    assert time.strftime("%Y-") in row
