"""What the search of options finds and drops, with a score that is a formula instead of a run."""

import threading

import pytest

pytest.importorskip("optuna")  # an optional library

from research.referee.patch import Invalid
from research.tune import search
from tests.test_tune import SPACE, bowl


def test_the_search_finds_the_lowest_score(tmp_path):
    study = search(SPACE, bowl, tmp_path, tries=40, seeds=1)
    assert study.best_value < 1.7
    assert study.best_params["activation"] == "swiglu"


def test_a_setting_far_behind_gets_one_seed_and_a_near_tie_gets_all(tmp_path):
    seeds: dict[int, list[int]] = {}

    def score(settings, seed, slot):
        layers = settings["n_layer"]
        seeds.setdefault(layers, []).append(seed)
        return 1.5 + 0.01 * abs(layers - 4)

    space = {"n_layer": SPACE["n_layer"]}
    start = {"n_layer": 4}
    study = search(space, score, tmp_path, tries=15, seeds=3, noise_sd=0.006, start=start)
    assert seeds[4][:3] == [0, 1, 2] and study.best_params == start
    for layers in set(seeds) - {4}:
        is_near = abs(layers - 4) == 1
        assert set(seeds[layers]) == ({0, 1, 2} if is_near else {0})


def test_a_setting_that_cannot_be_scored_does_not_end_the_search(tmp_path):
    def score(settings, seed, slot):
        if settings["n_layer"] > 3:
            raise Invalid("training ended with exit status 1")
        return bowl(settings, seed)

    study = search(SPACE, score, tmp_path, tries=20, seeds=2)
    assert len(study.trials) == 20
    assert study.best_params["n_layer"] <= 3


def test_several_workers_share_one_search_each_in_its_slot(tmp_path):
    used = []
    three = threading.Barrier(3, timeout=60)

    def score(settings, seed, slot):
        three.wait()  # for the other two: as many run at once as there are slots
        used.append(slot)
        return bowl(settings, seed)

    study = search(SPACE, score, tmp_path, tries=12, seeds=1, slots=["a", "b", "c"])
    assert sorted(trial.number for trial in study.trials) == list(range(12))
    assert sorted(used) == sorted(4 * ["a", "b", "c"])
