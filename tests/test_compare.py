"""compare: settings, final figures, speed and curves of runs, from folders made by hand."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from nanoloop.options import UserError
from research.insight.compare import CompareOptions, main, mean_text
from tests.test_research_report import Page
from train import TrainConfig

SMALL = TrainConfig(
    vocab_size=257,
    n_layer=1,
    n_head=2,
    n_embd=32,
    block_size=32,
    value_embeds=0,
    batch_tokens=512,
    max_steps=40,
)
STEPS = range(10, 50, 10)


def make_run(folder: Path, losses, bpb: float | None = None, steps=STEPS, **settings) -> str:
    """Write the folder of a run whose loss is logged every 10 steps, and evaluated at the end."""
    folder.mkdir()
    config = asdict(SMALL) | {"out": str(folder)} | settings
    (folder / "config.json").write_text(json.dumps(config))
    rows = [
        {"step": step, "tokens": 512 * step, "seconds": step / 10, "loss": loss}
        for step, loss in zip(steps, losses)
    ]
    if bpb:
        rows[-1]["val_bpb"] = bpb
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def finish(folder: str) -> None:
    (Path(folder) / "summary.json").write_text(json.dumps({"steps": 40}))


def compare(capsys, tmp_path: Path, *runs: str) -> dict:
    main(CompareOptions(runs=runs, page=str(tmp_path / "compare.html"), json=True))
    return json.loads(capsys.readouterr().out)


def test_the_settings_that_differ_are_shown_and_no_others(capsys, tmp_path):
    a = make_run(tmp_path / "a", [5, 4, 3, 2], 1.5)
    b = make_run(tmp_path / "b", [5, 4, 3, 1], 1.4, n_layer=2, eval_interval=7)
    table = compare(capsys, tmp_path, a, b)["table"]
    assert table["n_layer"] == [1, 2]
    assert [
        name for name in table if not name.startswith(("last", "step", "tokens", "sec", "fl"))
    ] == ["n_layer"]


def test_the_common_loss_is_the_best_that_each_run_has_reached(capsys, tmp_path):
    a = make_run(tmp_path / "a", [5, 4, 3, 2.5])
    b = make_run(tmp_path / "b", [4, 2.4, 2, 1], n_layer=2)
    table = compare(capsys, tmp_path, a, b)["table"]
    assert table["step to loss 2.5000"] == [40, 20]
    assert table["tokens to loss 2.5000"] == [40 * 512, 20 * 512]
    assert table["seconds to loss 2.5000"] == [4, 2]
    slow, fast = table["flops to loss 2.5000"]
    assert slow < 2 * fast  # a step of two layers costs more
    assert table["last step"] == [40, 40]


def test_an_interval_needs_runs_that_differ_in_the_seed_alone(capsys, tmp_path):
    runs = [
        make_run(tmp_path / f"{layers}{seed}", [5, 4, 3, 2], bpb, n_layer=layers, seed=seed)
        for layers, seed, bpb in [(1, 1, 1.5), (1, 2, 1.6), (2, 1, 1.3), (2, 2, 1.42)]
    ]
    first, second, hint = compare(capsys, tmp_path, *runs)["summary"]
    assert first == "val_bpb 1.5500 (2 seeds, 95 % interval 0.9147 to 2.1853) n_layer=1"
    # candidate - baseline by seed: -0.2 and -0.18
    expected = "difference -0.1900 (2 seeds, 95 % interval -0.3171 to -0.0629)"
    assert second.endswith(f"n_layer=2; {expected}")
    assert "python -m research try" in hint


def test_one_pair_alone_is_never_called_better(capsys, tmp_path):
    a = make_run(tmp_path / "a", [5, 4, 3, 2], 1.5)
    b = make_run(tmp_path / "b", [5, 4, 3, 1], 1.2, n_layer=2)
    summary = compare(capsys, tmp_path, a, b)["summary"]
    assert summary[1] == "val_bpb 1.2000 (one seed) n_layer=2; difference -0.3000 (one seed)"
    assert "better" not in " ".join(summary[:-1])
    assert "python -m research try" in summary[-1]


def test_a_seed_counts_once(capsys, tmp_path):
    """The same run named twice shows no spread."""
    a = make_run(tmp_path / "a", [5, 4, 3, 2], 1.5)
    assert compare(capsys, tmp_path, a, a)["summary"][0].startswith("val_bpb 1.5000 (one seed)")


def test_a_running_run_is_no_seed_of_finished_ones(capsys, tmp_path):
    a = make_run(tmp_path / "a", [5, 4, 3, 2], seed=1)
    b = make_run(tmp_path / "b", [5, 4], steps=(10, 20), seed=2)
    finish(a)
    finish(b)  # of the run that it continues
    result = compare(capsys, tmp_path, a, b)
    assert result["table"]["finished"] == [True, False]
    assert result["summary"][1] == "loss 4.0000 (one seed) finished=False"


def test_other_text_or_tokens_compare_in_bits_per_byte_alone(capsys, tmp_path):
    a = make_run(tmp_path / "a", [5, 4, 3, 2], 1.5)
    b = make_run(tmp_path / "b", [9, 8, 7, 6], 1.4, vocab_size=1024)
    result = compare(capsys, tmp_path, a, b)
    assert result["table"]["step to val_bpb 1.5000"] == [40, 40]
    assert "only val_bpb compares" in result["summary"][-2]
    c = make_run(tmp_path / "c", [9, 8, 7, 6], data="data/other")
    with pytest.raises(UserError, match="only val_bpb compares: wait"):
        compare(capsys, tmp_path, a, c)


def test_a_summary_has_at_most_ten_lines(capsys, tmp_path):
    runs = [make_run(tmp_path / f"{n}", [5, 4], dropout=n / 20) for n in range(10)]
    assert len(compare(capsys, tmp_path, *runs)["summary"]) == 9


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / "config.json").unlink(), "is no run"),
        (lambda run: (run / "config.json").write_text("{"), "is no run"),
        (lambda run: (run / "log.jsonl").unlink(), "has no line in its log.jsonl yet"),
        (lambda run: (run / "log.jsonl").write_text('{"step": 1'), "has no line in its log.jsonl"),
    ],
)
def test_a_folder_that_is_no_run_is_a_mistake(tmp_path, damage, message):
    a = make_run(tmp_path / "a", [5, 4])
    b = make_run(tmp_path / "b", [5, 4])
    damage(tmp_path / "b")
    with pytest.raises(UserError, match=f"'{b}' {message}"):
        main(CompareOptions(runs=(a, b), page=str(tmp_path / "compare.html")))
    assert not (tmp_path / "compare.html").exists()


def test_a_single_run_is_a_mistake(tmp_path):
    with pytest.raises(UserError, match="two or more folders"):
        main(CompareOptions(runs=(str(tmp_path),)))


def test_the_terminal_has_a_table_and_the_page_the_curves(capsys, tmp_path):
    a = make_run(tmp_path / "a", [5, 4, 3, 2])
    b = make_run(tmp_path / "b", [5, 4, 3, 1], decay_shape="</script><b>")
    main(CompareOptions(runs=(a, b), page=str(tmp_path / "new/compare.html")))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["run", a, b]
    assert ["last", "tokens", "20,480", "20,480"] in [line.split() for line in lines]
    text = (tmp_path / "new/compare.html").read_text(encoding="utf-8")
    found = Page(text)
    assert found.open == []
    figures = [attributes for tag, attributes in found.elements if tag == "figure"]
    axes = [(figure["data-x"], figure["data-y"]) for figure in figures]
    assert axes == [(axis, "loss") for axis in ("step", "tokens", "seconds", "flops")]
    assert "b" not in [tag for tag, _ in found.elements]
    assert "&lt;/script&gt;&lt;b&gt;" in text


def test_equal_values_have_an_interval_of_no_width():
    assert mean_text([1.5, 1.5]) == "1.5000 (2 seeds, 95 % interval 1.5000 to 1.5000)"
