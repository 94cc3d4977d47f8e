"""What a proof breaks and hides, and what its figure means."""

import ast
from dataclasses import fields

import numpy as np
import pytest

pytest.importorskip("optuna")  # an optional library

from nanoloop.options import UserError
from research import prove, tune
from research.prove import BUGS, PARTS, ProveOptions, break_recipe, choose, share_of_gap
from research.referee.patch import ROOT, from_settings, is_config, may_change, read_tree
from train import TrainConfig

LESSON = "config/lesson.py"
BASE = read_tree(ROOT)
RECIPE = {name: code for name, code in BASE.items() if name == LESSON or not is_config(name)}
EDITS = PARTS | BUGS


def changed(tree: dict[str, bytes]) -> list[str]:
    return [name for name in RECIPE if tree[name] != RECIPE[name]]


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_changes_one_text_that_an_agent_may_change_back(name):
    text, replacement = EDITS[name]
    broken = break_recipe(BASE, LESSON, [name])
    (path,) = changed(broken)
    assert may_change(path) and RECIPE[path].count(text) == 1
    ast.parse(broken[path])
    assert broken[path].replace(replacement, text) == RECIPE[path]


def test_all_edits_together_can_be_undone():
    tree = break_recipe(BASE, LESSON, list(EDITS))
    for text, replacement in EDITS.values():
        (path,) = [name for name in RECIPE if replacement in tree[name]]
        tree[path] = tree[path].replace(replacement, text)
    assert changed(tree) == []


def test_a_seed_chooses_parts_and_two_bugs():
    chosen = [choose(ProveOptions(parts=3, seed=seed)) for seed in range(20)]
    assert chosen[0] == choose(ProveOptions(parts=3))
    assert len(set(map(tuple, chosen))) > 10
    for names in chosen:
        assert len(set(names) & set(PARTS)) == 3 and len(set(names) & set(BUGS)) == 2


def test_more_parts_than_there_are_and_a_recipe_that_lacks_one_are_refused():
    with pytest.raises(UserError, match="--parts must be 0 to 6"):
        choose(ProveOptions(parts=7))
    with pytest.raises(UserError, match="has no value table: use config/lesson.py"):
        break_recipe(BASE, "config/gpt2.py", ["value table"])


def test_nothing_beside_the_broken_recipe_names_what_is_off():
    copy = break_recipe(BASE, LESSON, choose(ProveOptions()))
    assert set(copy) - set(RECIPE) == {"CLAUDE.md", "research/task.md"}
    assert [name for name in copy if is_config(name)] == [LESSON]
    prose = copy["CLAUDE.md"] + copy["research/task.md"]
    assert b"value embedding" not in prose and b"## The referee" in prose


def test_random_options_and_the_search_can_undo_every_part():
    """Each part is an option, and the space of an option holds its value."""
    space = tune.read_space(prove.SPACE, {field.name for field in fields(TrainConfig)})
    for text, _ in PARTS.values():
        name, value = text.decode().replace(": float", "").split(" = ")
        assert value in space[name.strip()].choices


def test_no_value_of_the_space_is_invalid():
    space = dict(part.split("=") for part in prove.SPACE.split())
    for count in range(4):
        chosen = [f"{name}={values.split('|')[: count + 1][-1]}" for name, values in space.items()]
        from_settings(BASE, LESSON, " ".join(chosen))


# --------------------------------------------------------------------------------------------------
# The figure


def rows_of(broken, final, reference) -> list[dict]:
    names = ("broken", "agent", "whole")
    return [dict(zip(names, row)) for row in np.broadcast(broken, final, reference)]


def test_the_interval_holds_the_shares_that_a_t_test_does_not_refute():
    from scipy.stats import ttest_1samp

    rng = np.random.default_rng(0)
    broken = 3 + 0.1 * rng.standard_normal(8)
    gap = 1 + 0.2 * rng.standard_normal(8)
    gain = 0.6 * gap + 0.1 * rng.standard_normal(8)
    share, low, high = share_of_gap(rows_of(broken, broken - gain, broken - gap), "agent")
    assert low < share < high and share == pytest.approx(gain.mean() / gap.mean())
    for end in (low, high):
        assert ttest_1samp(gain - end * gap, 0).pvalue == pytest.approx(0.05)


def test_what_changed_nothing_has_0_and_what_undid_all_has_1():
    rows = rows_of([3.0, 3.3, 3.1], [3.0, 3.3, 3.1], [2.0, 2.1, 2.2])
    assert share_of_gap(rows, "agent") == share_of_gap(rows, "broken") == (0, 0, 0)
    assert share_of_gap(rows, "whole") == pytest.approx((1, 1, 1))


def test_a_gap_that_is_not_above_the_noise_has_no_share():
    with pytest.raises(UserError, match="the gap is not above the noise: type more --seeds"):
        share_of_gap(rows_of([3.0, 3.0, 3.0], 3.0, [2.0, 4.0, 3.1]), "agent")
