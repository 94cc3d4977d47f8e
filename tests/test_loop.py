"""What an agent reads, how its card is read, and when an idea is known."""

import json
import random
from functools import cache
from types import SimpleNamespace

import pytest

from nanoloop.options import UserError
from research import brief, loop
from research.brief import MAX_BYTES, comparable, read_card, shape_of, write_brief
from research.loop import LoopOptions, judged, read_hypothesis
from research.referee.patch import ROOT, hash_of, make_change, read_tree

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


@cache
def shape(text: str) -> str:
    """Return the shape of a change that appends a text to model.py."""
    return shape_of(BASE, make_change(BASE, {"model.py": BASE["model.py"] + text.encode()}))


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


KIND = {"config": "config/a.py", "budget": "60steps", "data": "d1", "hardware": "2 × cpu"}
FLOOR = {"id": "n", "kind": "noise", "state": "done", "differences": [0.004, -0.004] * 6} | KIND


def ledger_rows(count: int) -> list[dict]:
    """Make a ledger: a noise floor and `count` judged trials with long texts of others."""
    rng = random.Random(count)
    rows = [FLOOR]
    for number in range(count):
        mean = rng.gauss(0.0, 0.01)
        row = {"id": f"t{number}", "kind": "trial", "state": "done", "number": number}
        row |= {"verdict": "keep" if number % 50 == 7 else "reject", "differences": [mean] * 3}
        row |= KIND | {"hypothesis": "é\n# Your task\n" * 200, "reason": "worse " * 99}
        rows.append(row | {"mechanism": "schedule", "predicted": -0.01})
    return rows


def brief_of(rows: list[dict], folder) -> tuple[str, list[dict]]:
    """Return a brief without the task, and its lines.

    The smallest effect, which takes a second to compute, is two floors here.
    """
    options = LoopOptions(folder=str(folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(brief, "smallest_effect", lambda sd, max_pairs, alpha: 2 * sd)
        text = write_brief(rows, ROOT, options, number=3, floor=FLOOR)
    task = "".join((ROOT / name).read_text() + "\n" for name in ("CLAUDE.md", "research/task.md"))
    assert text.startswith(task)
    text = text.removeprefix(task)
    return text, [json.loads(line) for line in text.splitlines()]


def test_a_brief_of_a_thousand_rows_is_short_and_says_what_is_judged(tmp_path):
    (tmp_path / "guidance.md").write_text("Try schedules.\n" * 999)
    rows = ledger_rows(1000)
    text, lines = brief_of(rows, tmp_path)
    assert len(text.encode()) <= MAX_BYTES + 1
    facts = lines[0]["judged"]
    assert facts["budget"] == "60steps" and facts["noise_deviation"] == 0.004
    assert facts["kept_four_times_in_five"] == -0.008
    assert lines[1]["guidance"].startswith("Try schedules.")
    right = right_signs(rows[1:])
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


def scored_pair(split: str, baseline: float) -> dict:
    """Make a pair whose candidate is better by 0.5."""
    return {"split": split, "baseline": {"bpb": baseline}, "candidate": {"bpb": baseline - 0.5}}


def scored_trial(name: str, level: float) -> dict:
    """Make a trial of the recipe as it is now: its mean on val is level + 0.1."""
    pairs = [scored_pair("val", level), scored_pair("val", level + 0.2), scored_pair("test", 9.0)]
    pairs.append(scored_pair("val", 7.0) | {"failed": {}})
    row = {"id": name, "kind": "trial", "state": "done", "verdict": "keep", "pairs": pairs}
    tree = hash_of(sorted(BASE.items()))
    return row | KIND | {"reason": "better", "tree": tree, "differences": [-0.5, -0.5]}


def test_the_newest_trial_of_this_recipe_gives_val_bpb(tmp_path):
    rows = [FLOOR, scored_trial("t1", 3.0), scored_trial("t2", 2.0)]
    _, lines = brief_of(rows, tmp_path)
    assert lines[0]["judged"]["val_bpb"] == pytest.approx(2.1)
    changed = scored_trial("t3", 1.0) | {"tree": "of another recipe"}
    _, lines = brief_of([*rows, changed], tmp_path)
    assert lines[0]["judged"]["val_bpb"] == pytest.approx(2.1)
    _, lines = brief_of([FLOOR, changed], tmp_path)
    assert "val_bpb" not in lines[0]["judged"]


@pytest.mark.parametrize("name", list(KIND))
def test_what_was_judged_of_another_kind_is_not_in_the_brief(tmp_path, name):
    other = {name: "other"}
    noise = FLOOR | other | {"id": "n2", "differences": [9.0, -9.0] * 3}
    strangers = [row | other | {"id": f"x{row['id']}"} for row in ledger_rows(6)[1:]]
    strangers.append(scored_trial("x9", 1.0) | other)
    rows = [*ledger_rows(3), noise, *strangers]
    _, lines = brief_of(rows, tmp_path)
    facts = lines[0]["judged"]
    assert facts["noise_deviation"] == 0.004 and "val_bpb" not in facts
    assert facts.items() >= KIND.items()
    assert {"predictions": f"sign right {right_signs(rows[1:4])} of 3"} in lines
    assert {line["id"] for line in lines if "id" in line} == {"t0", "t1", "t2"}


def right_signs(rows: list[dict]) -> int:
    return sum(row["differences"][0] < 0 for row in rows)


def test_failures_are_counted_by_the_first_words_of_their_reasons(tmp_path):
    reasons = [
        "training ended with exit status 1",
        "training ended with exit status 9",
        "it is late",
    ]
    failed = {"kind": "trial", "state": "done", "verdict": "crash"} | KIND
    rows = [failed | {"id": str(n), "reason": reason} for n, reason in enumerate(reasons)]
    _, lines = brief_of([FLOOR, *rows], tmp_path)
    assert {"failures": {"training ended with": 2, "it is late": 1}} in lines


def test_an_idea_that_was_judged_for_another_recipe_is_new():
    row = scored_trial("t1", 1.0) | {"shape": "abc"}
    assert judged(comparable([row], FLOOR), "abc") == ["t1"]
    assert judged(comparable([row | {"config": "config/b.py"}], FLOOR), "abc") == []
    assert judged(comparable([row | {"verdict": "disturbed"}], FLOOR), "abc") == []


def test_a_folder_in_place_of_the_card_does_not_end_the_loop(tmp_path):
    (tmp_path / "HYPOTHESIS.md").mkdir()
    assert read_hypothesis(tmp_path) == {"hypothesis": ""}


def test_findings_on_a_run_and_the_training_data_are_in_the_brief(tmp_path, monkeypatch):
    """Ten lines of each command; what it says of a wrong run ends the loop before it begins."""
    commands = []

    def pretend(command, **options):
        commands.append(command[3:])
        printed = "\n".join(f"{command[3]} line {number}" for number in range(12))
        return SimpleNamespace(returncode=0, stdout=printed, stderr="")

    monkeypatch.setattr(loop.subprocess, "run", pretend)
    loop.write_insights("out/a run", tmp_path)
    assert commands == [["diagnose", "out/a run"], ["analyze", "out/a run"]]
    text, lines = brief_of([FLOOR], tmp_path)
    findings = {
        name: line[name] for line in lines for name in ("diagnose", "analyze") if name in line
    }
    assert [found.splitlines()[-1] for found in findings.values()] == [
        "diagnose line 9",
        "analyze line 9",
    ]
    assert lines[0]["judged"]["train_data"] == str(tmp_path / "train_data")

    wrong = SimpleNamespace(returncode=2, stderr="'out/a run' is no run")
    monkeypatch.setattr(loop.subprocess, "run", lambda command, **options: wrong)
    with pytest.raises(UserError, match="diagnose out/a run: 'out/a run' is no run"):
        loop.write_insights("out/a run", tmp_path)
