"""What the search of options promises, with a score that is a formula instead of a run."""

import re
import threading

import pytest

pytest.importorskip("optuna")  # an optional extra

from nanoloop.options import UserError
from research.patch import ROOT, Invalid
from research.tune import read_space, search

SPACE_TEXT = "muon_lr=log(0.001,0.1) n_layer=int(1,6) activation=relu2|swiglu"
NAMES = {"muon_lr", "n_layer", "activation", "decay", "seed", "data"}
SPACE = read_space(SPACE_TEXT, NAMES)


def bowl(settings: dict, seed: int, place=()) -> float:
    """Lowest, 1.5, at muon_lr 0.02, n_layer 4 and swiglu."""
    far = (
        abs(settings["muon_lr"] / 0.02 - 1)
        + abs(settings["n_layer"] - 4)
        + (settings["activation"] == "relu2")
    )
    return 1.5 + 0.1 * far


def test_a_space_is_read_as_it_is_written(tmp_path):
    assert (SPACE["muon_lr"].low, SPACE["muon_lr"].high, SPACE["muon_lr"].log) == (0.001, 0.1, True)
    assert (SPACE["n_layer"].low, SPACE["n_layer"].high) == (1, 6) and SPACE[
        "activation"
    ].choices == (
        "relu2",
        "swiglu",
    )
    assert read_space("decay=float(0,1)", NAMES)["decay"].log is False
    (tmp_path / "space").write_text(SPACE_TEXT.replace(" ", "\n"))
    assert read_space(str(tmp_path / "space"), NAMES) == SPACE


@pytest.mark.parametrize(
    "text",
    [
        "",
        "muon_rl=log(0.1,1)",
        "muon_lr=log(0,1)",
        "n_layer=int(4,2)",
        "n_layer=int(a,4)",
        "seed=int(1,9)",
        "data=a|b",
    ],
)
def test_a_space_that_makes_no_sense_is_told_in_words(text):
    with pytest.raises(UserError):
        read_space(text, NAMES)


def test_the_search_finds_what_is_there(tmp_path):
    study = search(SPACE, bowl, tmp_path, tries=40, seeds=1)
    assert study.best_value < 1.7 and study.best_params["activation"] == "swiglu"


def test_the_recipe_itself_is_tried_first(tmp_path):
    start = {"muon_lr": 0.02, "n_layer": 4, "activation": "swiglu"}
    study = search(SPACE, bowl, tmp_path, tries=3, seeds=1, start=start)
    assert study.trials[0].params == start == study.best_params


def test_a_search_goes_on_where_it_was(tmp_path):
    """Also after a score raised what nobody expected, as a kill would end it."""
    calls = []

    def breaks(settings, seed, place):
        calls.append(settings)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return bowl(settings, seed)

    with pytest.raises(KeyboardInterrupt):
        search(SPACE, breaks, tmp_path, tries=8, seeds=1)
    study = search(SPACE, breaks, tmp_path, tries=8, seeds=1)
    finished = [trial for trial in study.trials if trial.state.is_finished()]
    assert len(finished) == 8 and len(calls) == 9
    search(SPACE, breaks, tmp_path, tries=8, seeds=1)
    assert len(calls) == 9


def test_what_lies_behind_by_more_than_noise_gets_one_seed_and_a_near_tie_gets_all(tmp_path):
    seen: list[tuple[int, int]] = []

    def steps(settings, seed, place):
        seen.append((settings["n_layer"], seed))
        return 1.5 + 0.01 * abs(settings["n_layer"] - 4)

    start = {"n_layer": 4}
    study = search(
        {"n_layer": SPACE["n_layer"]}, steps, tmp_path, tries=15, seeds=3, sd=0.006, start=start
    )
    seeds = {layers: [seed for other, seed in seen if other == layers] for layers, _ in seen}
    assert seeds[4][:3] == [0, 1, 2] and study.best_params == start
    assert all(
        set(seeds[layers]) == ({0, 1, 2} if abs(layers - 4) == 1 else {0})
        for layers in seeds
        if layers != 4
    )


def test_a_setting_that_cannot_be_scored_does_not_end_the_search(tmp_path):
    def deep_ones_crash(settings, seed, place):
        if settings["n_layer"] > 3:
            raise Invalid("training ended with exit status 1")
        return bowl(settings, seed)

    study = search(SPACE, deep_ones_crash, tmp_path, tries=20, seeds=2)
    assert len(study.trials) == 20 and study.best_params["n_layer"] <= 3


def test_several_workers_share_one_search_each_in_its_place(tmp_path):
    places, three = [], threading.Barrier(3, timeout=60)

    def score(settings, seed, place):
        three.wait()  # for the other two: as many run at once as there are places
        places.append(place)
        return bowl(settings, seed)

    study = search(SPACE, score, tmp_path, 12, 1, [(1,), (2,), (3,)])
    assert sorted(trial.number for trial in study.trials) == list(range(12))
    assert sorted(places) == sorted(4 * [(1,), (2,), (3,)])


def test_the_search_never_asks_for_the_test_split():
    """All that a search learns comes through main's `score`, which scores one split."""
    source = re.sub(r'""".*?"""', "", (ROOT / "research/tune.py").read_text(), flags=re.DOTALL)
    body = re.search(r"    def score\(.*?\n\n", source, re.DOTALL)[0]
    assert '"val"' in body and "test" not in source
