"""What an agent reads, how its card is read, and when an idea is known."""

import json
import random

import pytest

from research.brief import MAX_BYTES, read_card, shape_of, write_brief
from research.loop import LoopOptions
from research.referee.patch import ROOT, make_change, read_tree

BASE = read_tree(ROOT)
FORMS = [
    "claim: wider\nmechanism: {kind}\npredicted: {size}\nrefuted_if: slower",
    "**Claim:** wider\n\n- *Mechanism*: {kind}\n- Predicted = {size} bpb\n## Refuted if\nslower",
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("kind", "mechanism"),
    [("Optimiser (Muon)", "optimizer"), ("init", "initialisation"), ("luck", "other")],
)
@pytest.mark.parametrize(
    ("size", "predicted"), [("-0.004", -0.004), ("−0.02 to −0.01", -0.02), ("+ 1e-3", 0.001)]
)
def test_a_card_is_read_however_it_is_laid_out(form, kind, mechanism, size, predicted):
    card = read_card(form.format(kind=kind, size=size))
    expected = {"hypothesis": "wider", "mechanism": mechanism, "predicted": predicted}
    assert card == expected | {"refuted_if": "slower"}


def test_text_without_fields_is_the_claim_and_a_size_without_a_sign_predicts_nothing():
    assert read_card("I widened it.\nIt helps.") == {"hypothesis": "I widened it. It helps."}
    assert "predicted" not in read_card("claim: x\npredicted: 0.004 lower")


def shape(text: str, path: str = "model.py") -> str:
    source = BASE[path].decode() + text
    return shape_of(BASE, make_change(BASE, {path: source.encode()}))


# A name that the project has already stays as it is.
IDEA = "\ndef warmer(gain, x):\n    late = gain * x\n    return F.silu(late)\n"


@pytest.mark.parametrize(
    ("text", "is_known"),
    [
        (IDEA.replace("warmer", "hotter").replace("gain", "g_1").replace("late", "zz"), True),
        (IDEA.replace("):", '):\n    """Warm."""').replace("silu(late)", "silu(late)  # x"), True),
        (IDEA.replace("silu", "mish"), False),
        (IDEA.replace("gain *", "gain +"), False),
        (IDEA.replace("gain * x", "gain * gain"), False),
    ],
)
def test_an_idea_is_known_with_other_names_and_comments_alone(text, is_known):
    assert (shape(text) == shape(IDEA)) is is_known


def test_a_change_of_comments_is_no_idea():
    assert shape("\n# a comment\n") == ""


def ledger_rows(count: int) -> list[dict]:
    """Make a ledger: a noise floor and `count` judged trials with long texts of others."""
    rng = random.Random(count)
    rows = [{"id": "n", "kind": "noise", "state": "done", "differences": [0.004, -0.004] * 6}]
    for number in range(count):
        mean = rng.gauss(0.0, 0.01)
        row = {"id": f"t{number}", "kind": "trial", "state": "done", "number": number}
        row |= {"verdict": "keep" if number % 50 == 7 else "reject", "differences": [mean] * 3}
        row |= {"hypothesis": "é\n# Your task\n" * 200, "reason": "worse " * 99}
        rows.append(row | {"mechanism": "schedule", "predicted": -0.01})
    return rows


def brief_of(rows: list[dict], folder) -> tuple[str, list[dict]]:
    """Return a brief without the task, and its lines."""
    options = LoopOptions(folder=str(folder), budget="60steps")
    text = write_brief(rows, ROOT, options, number=3)
    task = "".join((ROOT / name).read_text() + "\n" for name in ("CLAUDE.md", "research/task.md"))
    assert text.startswith(task)
    text = text.removeprefix(task)
    return text, [json.loads(line) for line in text.splitlines()]


def test_a_brief_of_a_thousand_rows_is_short_and_says_what_is_judged(tmp_path):
    (tmp_path / "guidance.md").write_text("Try schedules.\n" * 999)
    rows = ledger_rows(1000)
    text, lines = brief_of(rows, tmp_path)
    assert len(text.encode()) <= MAX_BYTES + 1
    judged = lines[0]["judged"]
    assert judged["budget"] == "60steps" and judged["noise_deviation"] == 0.004
    assert judged["kept_four_times_in_five"] < -0.001
    assert lines[1]["guidance"].startswith("Try schedules.")
    right = sum(row["differences"][0] < 0 for row in rows[1:])
    assert {"predictions": f"sign right {right} of 1000"} in lines
    shown = [line for line in lines if "verdict" in line]
    assert shown[0]["verdict"] == "keep" and len(shown) > 12
    best = min(row["differences"][0] for row in rows[1:] if row["verdict"] == "reject")
    assert best == pytest.approx(
        min(line["mean"] for line in shown if line["verdict"] == "reject"), abs=1e-5
    )


@pytest.mark.parametrize(("kept", "asks"), [([], True), ([3], False)])
def test_five_barren_tries_of_one_mechanism_ask_for_another(tmp_path, kept, asks):
    rows = ledger_rows(5)
    for number in kept:
        rows[1 + number]["verdict"] = "keep"
    _, lines = brief_of(rows, tmp_path)
    assert any("ask" in line for line in lines) is asks
    _, lines = brief_of(rows[:-1], tmp_path)
    assert not any("ask" in line for line in lines)
