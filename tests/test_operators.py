"""What the loop proposes by itself: the rules, without a repository or a run."""

import pytest

from nanoloop.options import UserError
from research.operators import added_numbers, conclude, is_plateau, read_factor, with_numbers
from research.referee.patch import compare
from research.referee.verdict import Noise

NOISE = Noise(0.004, 11)


@pytest.mark.parametrize(
    ("gain", "found", "label"),
    [
        (-0.03, [-0.03, -0.028, -0.033], "transfers"),
        (-0.03, [-0.01, -0.004, -0.002], "transfers"),  # smaller, but shown to be a gain
        (-0.03, [0.001, -0.001, 0.0], "bound to its scale"),
        (-0.03, [0.05, 0.04, 0.06], "bound to its scale"),
        (-0.005, [-0.006, 0.001, -0.002], "open"),  # not shown to gain, nor to have lost half of it
        (-0.03, [], "open"),
    ],
)
def test_three_pairs_say_whether_a_gain_transfers(gain, found, label):
    assert conclude(found, gain, NOISE).startswith(f"{label}: ")


def test_three_pairs_that_agree_by_luck_have_the_noise_of_the_floor():
    assert conclude([-0.001] * 3, -0.0011, NOISE).startswith("open: ")


def test_a_scale_is_a_factor_or_options():
    assert read_factor("3x") == 3
    assert read_factor("1.5x") == 1.5
    assert read_factor("n_layer=4 muon_lr=0.01") is None
    for wrong in ("3", "x", "3 x", "wide", ""):
        with pytest.raises(UserError, match="write it as 3x, or as options"):
            read_factor(wrong)


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        ([{}] * 5, True),
        ([{}] * 4, False),
        ([{"verdict": "keep"}] + [{}] * 5, True),
        ([{}] + [{"verdict": "keep (simpler)"}] + [{}] * 4, False),
        ([{"operator": "recombine"}] + [{}] * 4, False),
        ([{}] * 3 + [{"differences": []}] + [{}] * 2, True),  # one had no score
    ],
)
def test_a_plateau_is_five_judged_trials_without_a_keep_or_an_operator(last, expected):
    rows = [{"verdict": "reject", "differences": [0.0]} | row for row in last]
    assert is_plateau(rows) is expected


def test_the_numbers_of_a_change_are_found_and_replaced_where_they_stand():
    old = "a = 1\nb = 2\n"
    new = "a = 1\nrate = 0.02 if n2 > 64 else 2e-3  # not 7\nb = 2\nzero = 0\nc = x[-1] * .5\n"
    lines = compare("model.py", old, new, is_new=False)
    tree = {"model.py": new.encode()}
    numbers = added_numbers("".join(lines), tree)
    assert [number.text for number in numbers] == ["0.02", "64", "2e-3", "1"]
    settings = {str(number): value for number, value in zip(numbers, [0.0312345, 128, 2e-3, 1])}
    changed = with_numbers(tree, numbers, settings)["model.py"].decode()
    assert changed == new.replace("0.02 if n2 > 64", "0.03123 if n2 > 128")


def test_a_number_that_a_later_change_removed_or_doubled_is_left_alone():
    lines = compare("model.py", "", "rate = 3\nsize = 5\n", is_new=True)
    tree = {"model.py": b"rate = 3\nrate = 3\n"}
    assert added_numbers("".join(lines), tree) == []
