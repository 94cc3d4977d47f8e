"""Every drill, in its short version: see tests/drill.py."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

DRILLS = (
    "kill shards terminal wandb clock files".split(),
    "disk_full checkpoints sigterm second_run spikes memory".split(),
)


@pytest.fixture(scope="module")
def table() -> dict[str, list[str]]:
    """The rows that the drills print, half of them at a time on each of two cores; processes of their own, for they fork."""
    start = dict(
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    running = [
        subprocess.Popen([sys.executable, "-m", "tests.drill", *names], **start) for names in DRILLS
    ]
    printed = "".join(process.communicate()[0] for process in running)
    rows = [line.split(" | ") for line in printed.splitlines() if line.startswith("| `")]
    assert len(rows) == 12, printed
    return {row[0].split("`")[1]: row for row in rows}


@pytest.mark.parametrize("name", sum(DRILLS, []))
def test_a_drill_finds_every_promise_kept(table, name):
    assert "BROKEN" not in table[name][3] and int(table[name][2]) >= 1, table[name]
