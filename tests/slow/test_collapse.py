"""Generations on their own text: replaced text collapses, in the tail first; kept text does not.

OMP_NUM_THREADS=2 python -m pytest -q -n0 tests/slow/test_collapse.py
"""

import numpy as np
import pytest

from research.insight import collapse
from research.insight.collapse import CollapseOptions, run_generations
from tests.conftest import ROOT

GENERATIONS = 2


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> dict[str, dict]:
    """Train generations of the lesson's recipe, without controls that are not used here."""
    options = CollapseOptions(config=str(ROOT / "config/lesson.py"), generations=GENERATIONS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collapse, "REGIMES", ("real", "replace", "accumulate"))
        patch.chdir(tmp_path_factory.mktemp("lesson"))
        return {row["text"]: row for row in run_generations(options)}


def chain(rows, regime: str, figure: str) -> list:
    names = ["real 0", *(f"{regime} {n + 1}" for n in range(GENERATIONS))]
    return [rows[name][figure] for name in names]


def test_replaced_text_is_worse_each_generation_and_in_the_tail_first(rows):
    bpb = chain(rows, "replace", "val_bpb")
    noise = np.ptp(chain(rows, "real", "val_bpb"))
    assert min(np.diff(bpb)) > noise, bpb
    tenths = np.array(chain(rows, "replace", "tenths"))
    for generation in range(1, GENERATIONS + 1):
        rise = tenths[generation] - tenths[0]
        assert rise[0] > 1.5 * rise[-1], rise


def test_accumulated_text_stays_near_real_text(rows):
    first = rows["real 0"]["val_bpb"]
    rises = [np.subtract(chain(rows, name, "val_bpb"), first) for name in ("replace", "accumulate")]
    assert (rises[1][1:] < rises[0][1:] / 10).all(), rises
