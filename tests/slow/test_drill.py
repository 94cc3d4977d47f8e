"""Every drill in its short version: see drill.py."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.slow.drill import DRILLS


@pytest.fixture(scope="module")
def table() -> dict[str, list[str]]:
    """Run all drills, half of them at a time on each of two cores; return their rows by name.

    They run in processes of their own, because they fork.
    """
    names = list(DRILLS)
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.slow.drill", *half],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for half in (names[::2], names[1::2])
    ]
    printed = "".join(process.communicate()[0] for process in running)
    rows = [line.split(" | ") for line in printed.splitlines() if line.startswith("| `")]
    assert len(rows) == len(DRILLS), printed
    return {row[0].split("`")[1]: row for row in rows}


@pytest.mark.parametrize("name", DRILLS)
def test_a_drill_finds_every_promise_kept(table, name):
    _, _, tries, result, _ = table[name]
    assert "BROKEN" not in result
    assert int(tries) >= 1
