"""docs/tour.md is true: its code runs and prints what it shows, its drawings and diffs are ours."""

import ast
import contextlib
import html
import io
import re
import subprocess

import pytest
import torch

from nanoloop.options import read_options
from tests.conftest import ROOT
from tests.slow import draw, exercises
from train import TrainConfig

TOUR = (ROOT / "docs/tour.md").read_text("utf-8")
NUMBER = r"-?\d+(?:\.\d+)?"


def code_blocks() -> list[tuple[str, str | None]]:
    """Return the code of each block, and the output shown below it."""
    pattern = r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?"
    return [match.groups() for match in re.finditer(pattern, TOUR, flags=re.DOTALL)]


def assert_similar(printed: str, shown: str) -> None:
    """Compare texts; the last digit of a decimal number may differ by 2 between CPUs."""
    assert re.sub(rf"\s*{NUMBER}", "#", printed) == re.sub(rf"\s*{NUMBER}", "#", shown)
    for a, b in zip(re.findall(NUMBER, printed), re.findall(NUMBER, shown)):
        digits = len(b.partition(".")[2])
        tolerance = 2.1 * 10**-digits if digits else 0
        assert abs(float(a) - float(b)) <= tolerance, f"{a} is printed, {b} is shown:\n{printed}"


def test_a_digit_may_differ_and_a_word_or_a_whole_number_may_not():
    assert_similar("loss 5.549, 3 tokens", "loss 5.548, 3 tokens")
    for other in ("loss 5.543, 3 tokens", "loss 5.549, 4 tokens", "less 5.549, 3 tokens"):
        with pytest.raises(AssertionError):
            assert_similar("loss 5.549, 3 tokens", other)


def test_the_batch_by_hand_prints_what_it_shows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = code_blocks()
    assert sum(shown is not None for _, shown in blocks) >= 10
    names = {}
    try:
        for code, shown in blocks:
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(compile(ast.parse(code), "docs/tour.md", "exec"), names)
            if shown is not None:
                assert_similar(output.getvalue(), shown)
    finally:
        torch.set_printoptions(profile="default")


@pytest.mark.parametrize("name", draw.drawings())
def test_a_drawing_is_what_the_script_makes(name):
    message = "the code has changed: type `python -m tests.slow.draw`, and look at the drawing"
    assert (ROOT / "docs" / name).read_text("utf-8") == draw.drawings()[name], message
    assert f"]({name})" in TOUR


@pytest.mark.parametrize("name", draw.drawings())
def test_a_line_of_a_drawing_stays_in_its_box(name):
    lines = re.findall(r">([^<>]+)</text>", draw.drawings()[name])
    lines = [html.unescape(line) for line in lines]
    assert len(lines) > 20 and max(map(len, lines)) <= draw.LONGEST, lines


def test_the_drawing_of_the_network_names_every_switch():
    """A new field of GPTConfig belongs into the drawing."""
    fields = set(TrainConfig.__mro__[1].__dataclass_fields__)
    assert draw.drawn_fields() == fields


# --------------------------------------------------------------------------------------------------
# Exercises


def test_there_are_twelve_exercises_with_a_prediction_and_an_answer():
    for number in range(1, 13):
        section = TOUR.partition(f"\n### {number}. ")[2].partition("\n### ")[0]
        for word in ("**Predict first.**", "**Answer.**"):
            assert word in section, f"exercise {number} has no {word}"
        assert "```sh" in section, f"exercise {number} has no command"


@pytest.mark.parametrize("number", [4, 11, 12])
def test_a_diff_of_the_exercises_applies(number, tmp_path):
    """Here and with git, as the reader applies it."""
    diff = exercises.diff_of_exercise(number)
    assert len(diff.splitlines()) <= 10
    name = diff.splitlines()[0].removeprefix("--- a/")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    original = (ROOT / name).read_text("utf-8")
    (tmp_path / name).write_text(original, "utf-8")
    exercises.apply_diff(diff, tmp_path)
    changed = (tmp_path / name).read_text("utf-8")
    ast.parse(changed)
    assert changed != original

    (tmp_path / name).write_text(original, "utf-8")
    subprocess.run(["git", "apply"], input=diff, cwd=tmp_path, check=True, text=True)
    assert (tmp_path / name).read_text("utf-8") == changed


@pytest.mark.parametrize("change", dict.fromkeys(exercises.EXERCISES + exercises.SWITCHES))
def test_a_change_of_the_exercises_is_understood(change):
    flags = [f"--{option}" for option in change.split() if "=" in option]
    recipe = str(ROOT / "config/lesson.py")
    assert read_options(TrainConfig, [recipe, *flags], "train.py").max_steps in (80, 160)
