"""The search of options: how a space is read, and that a search resumes.

The score is a formula instead of a run. tests/slow/test_search.py has the rest.
"""

from types import SimpleNamespace

import pytest

pytest.importorskip("optuna")  # an optional library

from nanoloop.options import UserError
from research.tune import TuneOptions, read_space, search, setting_of

SPACE_TEXT = "muon_lr=log(0.001,0.1) n_layer=int(1,6) activation=relu2|swiglu"
NAMES = {"muon_lr", "n_layer", "activation", "decay", "seed", "data"}
SPACE = read_space(SPACE_TEXT, NAMES)


def bowl(settings: dict, seed: int, slot=None) -> float:
    """Lowest, 1.5, at muon_lr 0.02, n_layer 4 and swiglu."""
    rate = abs(settings["muon_lr"] / 0.02 - 1)
    depth = abs(settings["n_layer"] - 4)
    return 1.5 + 0.1 * (rate + depth + (settings["activation"] == "relu2"))


def test_a_space_is_read_as_it_is_written():
    rate = SPACE["muon_lr"]
    assert (rate.low, rate.high, rate.log) == (0.001, 0.1, True)
    assert (SPACE["n_layer"].low, SPACE["n_layer"].high) == (1, 6)
    assert SPACE["activation"].choices == ("relu2", "swiglu")
    assert read_space("decay=float(0,1)", NAMES)["decay"].log is False
    assert read_space(SPACE_TEXT.replace(" ", "\n"), NAMES) == SPACE


@pytest.mark.parametrize(
    "text",
    [
        "",
        "muon_rl=log(0.1,1)",
        "muon_lr=log(0,1)",
        "muon_lr=log(0.1)",
        "muon_lr=range(1,2)",
        "n_layer=int(4,2)",
        "decay=0.2,0.8",
        "n_layer=[1,2,3]",
        "activation=swiglu",
        "n_layer=int(a,4)",
        "seed=int(1,9)",
        "data=a|b",
    ],
)
def test_a_wrong_space_is_a_mistake_of_the_user(text):
    with pytest.raises(UserError):
        read_space(text, NAMES)


@pytest.mark.parametrize("name", ["tries", "seeds"])
def test_a_search_without_runs_is_a_mistake_of_the_user(name):
    with pytest.raises(UserError, match="tries and seeds must be at least 1, got"):
        TuneOptions(**{name: 0})


def test_the_recipe_itself_is_tried_first(tmp_path):
    start = {"muon_lr": 0.02, "n_layer": 4, "activation": "swiglu"}
    study = search(SPACE, bowl, tmp_path, tries=3, seeds=1, start=start)
    assert study.trials[0].params == start == study.best_params


def test_a_recipe_outside_the_space_is_tried_as_far_as_it_is_inside(tmp_path):
    space = read_space(
        "muon_lr=log(0.1,1) n_layer=2|4 activation=gelu|swiglu decay=int(0,1)", NAMES
    )
    recipe = SimpleNamespace(muon_lr=0.02, n_layer=4, activation="relu2", decay=None)
    start = setting_of(recipe, space)
    assert start == {"n_layer": "4"}
    study = search(space, lambda *_: 1.0, tmp_path, tries=1, seeds=1, start=start)
    assert study.trials[0].params["n_layer"] == "4"


def test_a_search_resumes(tmp_path):
    """After an interruption too, which leaves a setting without a score."""
    calls = []

    def score(settings, seed, slot):
        calls.append(settings)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return bowl(settings, seed)

    with pytest.raises(KeyboardInterrupt):
        search(SPACE, score, tmp_path, tries=8, seeds=1)
    study = search(SPACE, score, tmp_path, tries=8, seeds=1)
    assert sum(trial.state.is_finished() for trial in study.trials) == 8
    assert len(calls) == 9
    search(SPACE, score, tmp_path, tries=8, seeds=1)
    assert len(calls) == 9
    # Scores of another budget are no part of it.
    search(SPACE, score, tmp_path, tries=1, seeds=1, name="600s ")
    assert len(calls) == 10
