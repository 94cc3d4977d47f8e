"""watch: one view of a run from its log, in each state that a run can have."""

import json
import os
import time

from research.__main__ import main
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
    assert view(rows([5, 4], left=None), 0)[-1] == "finished after 20 steps"
    finished = rows([5], left=None)
    resumed = finished + rows([4, 3])[1:]
    assert "resumed after step 10" in view(resumed, 0)
    assert not view(resumed, 0)[-1].startswith("finished")


def test_a_rising_loss_a_loss_that_is_no_number_and_a_slower_run_are_named():
    assert "loss rising" in " ".join(view(rows([5, 2, 3, 3, 3, 3, 3]), 0))
    assert "loss not finite" in " ".join(view(rows([5, float("nan")]), 0))
    assert "loss rising" not in " ".join(view(rows([5, 2, 3, 3, 3, 2.01]), 0))
    slow = rows([5, 4, 3, 2]) + rows([2], speed=100.0)
    assert "tokens/s falling: 100, usually 1,000" in view(slow, 0)


def test_a_curve_has_the_first_trend_and_the_last_value():
    assert curve([8.0, 4.5, 1.0]) == BARS[7] + BARS[3] + BARS[0]
    assert curve([2.0]) == BARS[0]
    long = curve([float(n) for n in range(1000, 0, -1)])
    assert len(long) <= WIDTH and long[0] == BARS[7] and long[-1] == BARS[0]
