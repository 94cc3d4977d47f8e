"""watch: one view of a run from its log, in each state that a run can have."""

import json
import os
import sys
import time
from types import SimpleNamespace

import pytest

from research.__main__ import main
from research.insight import watch
from research.insight.watch import BARS, WIDTH, curve, view


def rows(losses, left=1.0, speed=1000.0) -> list[dict]:
    """Write rows of a log, ten steps apart."""
    return [
        {
            "step": 10 * number,
            "tokens": 5120 * number,
            "loss": loss,
            "tokens_per_second": speed,
            "seconds_left": left,
        }
        for number, loss in enumerate(losses, 1)
    ]


@pytest.mark.parametrize("name", ["watch", "diagnose"])
def test_a_command_without_its_run_says_what_is_missing(command, name):
    printed = command(main, name)
    assert printed.code == 2 and "run (required)" in printed.err


def test_a_run_that_has_not_started(command, tmp_path):
    printed = command(main, "watch", tmp_path, "--once=True")
    assert printed.code == 0 and printed.out.startswith("no line yet")


def test_a_run_under_way_and_a_killed_one(command, tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows([5, 4, 3])))
    printed = command(main, "watch", tmp_path, "--once=True").out
    assert "step 30" in printed and "loss 5.000 to 3.000" in printed and "no new" not in printed
    os.utime(path, (time.time() - 3600, time.time() - 3600))
    assert "killed" in command(main, "watch", tmp_path).out  # it ends by itself


def test_a_finished_run_and_one_resumed_after_that():
    assert list(view(rows([5, 4], left=None), False))[-1] == "finished after 20 steps"
    finished = rows([5], left=None)
    resumed = finished + rows([4, 3])[1:]
    assert "resumed after step 10" in view(resumed, False)
    assert "finished" not in " ".join(view(resumed, False))


def test_a_rising_loss_a_loss_that_is_no_number_and_a_slower_run_are_named():
    assert "loss rising" in " ".join(view(rows([5, 2, 3, 3, 3, 3, 3]), False))
    assert "loss not finite" in " ".join(view(rows([5, float("nan")]), False))
    assert "loss rising" not in " ".join(view(rows([5, 2, 3, 3, 3, 2.01]), False))
    slow = rows([5, 4, 3, 2]) + rows([2], speed=100.0)
    assert "tokens/s falling: 100, usually 1,000" in view(slow, False)


def test_a_curve_has_the_first_trend_and_the_last_value():
    assert curve([8.0, 4.5, 1.0]) == BARS[7] + BARS[3] + BARS[0]
    assert curve([2.0]) == BARS[0]
    long = curve([float(n) for n in range(1000, 0, -1)])
    assert len(long) <= WIDTH and long[0] == BARS[7] and long[-1] == BARS[0]


# --------------------------------------------------------------------------------------------------
# Trackers, which are fakes here


class Tracker:
    """A library whose run notes what it gets."""

    def __init__(self):
        self.sent = []
        self.is_finished = False

    def init(self, **options):
        self.options = options
        return self

    def log(self, figures, step):
        self.sent.append((step, figures))

    def finish(self):
        self.is_finished = True


@pytest.fixture
def run(tmp_path):
    """Make the folder of a run: write(rows) the log, finish(steps)."""

    def write(new):
        (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in new))

    def finish(steps):
        (tmp_path / "summary.json").write_text(json.dumps({"steps": steps}))

    (tmp_path / "config.json").write_text('{"n_layer": 2}')
    return SimpleNamespace(folder=tmp_path, write=write, finish=finish)


@pytest.mark.parametrize("name", ["trackio", "wandb"])
@pytest.mark.parametrize("flag", ["--once=True", "--once=False"])
def test_a_tracker_gets_the_settings_and_each_row(run, command, monkeypatch, name, flag):
    library = Tracker()
    monkeypatch.setitem(sys.modules, name, library)
    run.write(rows([5, 4]))
    run.finish(20)
    before = {path.name: path.read_bytes() for path in run.folder.iterdir()}
    assert command(main, "watch", run.folder, f"--track={name}", flag).code == 0
    settings = {"project": "nanoloop", "name": run.folder.name, "config": {"n_layer": 2}}
    assert library.options == settings and library.is_finished
    expected = [
        (row["step"], {key: row[key] for key in row if key != "step"}) for row in rows([5, 4])
    ]
    assert library.sent == expected
    assert before == {path.name: path.read_bytes() for path in run.folder.iterdir()}


def test_tensorboard_gets_the_settings_and_each_figure(run, command, monkeypatch):
    calls = []

    class SummaryWriter:
        def __init__(self, folder):
            calls.append(folder)

        def __getattr__(self, name):
            return lambda *values: calls.append((name, *values))

    library = SimpleNamespace(SummaryWriter=SummaryWriter)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", library)
    run.write(rows([5, 4], left=None))
    run.finish(20)
    assert command(main, "watch", run.folder, "--once=True", "--track=tensorboard").code == 0
    figures = [
        ("add_scalar", name, value, row["step"])
        for row in rows([5, 4], left=None)
        for name, value in row.items()
        if name != "step" and value is not None
    ]
    settings = ("add_text", "config", '{"n_layer": 2}')
    assert calls == [f"runs/{run.folder.name}", settings, *figures, ("close",)]


def play(monkeypatch, *states) -> None:
    """Change the files of a run whenever watch sleeps."""
    waiting = list(states)
    monkeypatch.setattr(watch.time, "sleep", lambda seconds: waiting and waiting.pop(0)())


def test_the_last_row_is_sent_complete(run, command, monkeypatch):
    """An evaluation adds figures to it, then the summary is written."""
    library = Tracker()
    monkeypatch.setitem(sys.modules, "trackio", library)
    run.write(rows([5]))
    complete = rows([5, 4])
    complete[1]["val_loss"] = 4.5
    play(
        monkeypatch,
        lambda: run.write(rows([5, 4], left=None)),
        lambda: (run.write(complete), run.finish(20)),
    )
    assert command(main, "watch", run.folder, "--track=trackio").code == 0
    assert [step for step, _ in library.sent] == [10, 20]
    assert library.sent[1][1]["val_loss"] == 4.5


def test_a_resumed_run_sends_no_step_twice(run, command, monkeypatch):
    library = Tracker()
    monkeypatch.setitem(sys.modules, "trackio", library)
    run.write(rows([5, 4, 3]))
    play(
        monkeypatch,
        lambda: run.write(rows([5])),
        lambda: (run.write(rows([5, 4, 3])), run.finish(30)),
    )
    command(main, "watch", run.folder, "--track=trackio")
    assert [step for step, _ in library.sent] == [10, 20, 30]


def test_a_tracker_that_is_not_installed_is_named(run, command, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    refused = command(main, "watch", run.folder, "--track=trackio")
    assert refused.code == 2 and "pip install trackio" in refused.err
