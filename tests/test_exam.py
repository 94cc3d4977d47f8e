"""The exam: exact, continuous, and what its curves may be called; pairs of Python; a real run."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from corpus.synthetic import exam_parts
from nanoloop import checkpoint
from nanoloop.data import Data, Split
from nanoloop.generate import generate
from nanoloop.options import UserError
from nanoloop.tokenizer import load_tokenizer
from research.__main__ import main
from research.exam import bends_up, grade, judge, score, share_of, text_items
from research.insight.pairs import FAULTS, is_python, names_of, pairs_of
from tests.models import CPU, SMALL, random_model
from train import evaluate, train

BYTES = load_tokenizer("byte")
FUNCTION = '''def largest(values, default=None):
    """Return the largest (of all)."""
    best = default
    for value in values:
        if best is None or value > best[0]:
            best = [value]
    return best
'''


class Unigram(nn.Module):
    """A model that knows nothing but how frequent tokens are."""

    def __init__(self, vocab_size: int, block_size: int = 64):
        super().__init__()
        self.logits = torch.randn(vocab_size, generator=torch.Generator().manual_seed(0))
        self.config = SimpleNamespace(block_size=block_size)

    def forward(self, tokens, targets=None, reduction="mean"):
        logits = self.logits.expand(*tokens.shape, -1)
        if targets is None:
            return logits
        return cross_entropy(logits.mT, targets, ignore_index=-1, reduction=reduction)


# --------------------------------------------------------------------------------------------------
# Scores


def test_an_item_is_right_exactly_if_greedy_decoding_writes_it():
    """And its bits are those of the model's own loss."""
    model = random_model(SMALL)
    prompts = [[7], [3, 1, 4], [1, 5, 9, 2, 6]]
    written = [generate(model, [prompt], 4, temperature=0)[0] for prompt in prompts]
    items = list(zip(prompts, written))
    for position in range(4):  # a single wrong token, wherever it is
        wrong = list(written[1])
        wrong[position] = (wrong[position] + 1) % 50
        items.append((prompts[1], wrong))
    bits, sizes, margins = score(model, items, np.full(50, 3), CPU)
    assert (margins > 0).tolist() == [True] * 3 + [False] * 4
    assert sizes.tolist() == [12] * 7
    for (before, after), found in zip(items, bits):
        tokens = torch.tensor([[*before, *after]])
        loss = model(tokens[:, :-1], tokens[:, 1:], reduction="none")[0, -4:].sum()
        assert found == pytest.approx(loss.item() / np.log(2), rel=1e-4)


def test_figures_of_a_part():
    found = grade(np.array([[10.0, 30.0, 20.0, 20.0], [5, 5, 5, 5], [1.0, -1.0, 2.0, 0.0]]))
    assert found["share"] == 0.625 and found["bits"] == 4.0 and found["margin"] == 0.5
    assert found["low"] < 0.625 < found["high"] and found["half"] > 0


def test_a_pair_is_right_if_the_right_function_costs_less():
    right = np.array([[10.0, 20.0, 30.0, 41.0], [10, 10, 10, 10], [-9.0, -9.0, -9.0, -9.0]])
    wrong = np.array([[11.0, 22.0, 30.0, 40.0], [10, 10, 10, 10], [-9.0, -9.0, -9.0, -9.0]])
    found = grade(right, wrong)
    assert found["share"] == 0.625  # two are right, and one costs the same
    assert found["bits"] == pytest.approx(-0.05)


def test_the_interval_of_a_share_is_never_empty():
    assert share_of([False] * 100)["high"] > 0.02
    assert share_of([True] * 100)["low"] < 0.98


def test_the_text_of_a_file_costs_what_evaluate_says(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("Grüße an alle. " * 20)
    model = Unigram(257)
    bits, sizes, _ = score(model, text_items(BYTES, path, 64), BYTES.token_bytes, CPU)
    data = Data.__new__(Data)
    data.tokenizer = BYTES
    data.sources = {"text": (1.0, data)}
    data.splits = {"val": Split([np.array([256, *BYTES.encode(path.read_text())])])}
    expected = evaluate(model, data, "val", 64, 2, CPU)["val_bpb"]
    assert bits.sum() / sizes.sum() == pytest.approx(expected, rel=1e-5)
    assert sizes.sum() == len(path.read_bytes())


# --------------------------------------------------------------------------------------------------
# Pairs of Python


@pytest.fixture(scope="module")
def functions() -> list[str]:
    """Variants of a function, with other names."""
    names = ["best", "first", "record", "leader", "top"]
    return [FUNCTION.replace("best", a).replace("value", b) for a in names for b in "xyzuv"]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_unigram_model_cannot_tell_right_from_wrong(fault, functions):
    """Both functions of a pair have the same tokens, and only one has the fault."""
    sides = list(zip(*pairs_of(functions, BYTES, 300, fault)))
    model = Unigram(257, 300)
    found = grade(*(score(model, items, BYTES.token_bytes, CPU) for items in sides))
    assert found["items"] >= 20 and found["share"] == 0.5
    for (_, right), (_, wrong) in zip(*sides):
        texts = [BYTES.decode(tokens) for tokens in (right, wrong)]
        assert sorted(right) == sorted(wrong) and texts[0] in functions
        assert bool(names_of(texts[1])) == (fault == "undefined name")


def test_an_undefined_name_is_one_when_the_function_runs(functions):
    """Where Python gets to the name, it raises NameError."""
    raised = 0
    for _, (_, wrong) in pairs_of(functions, BYTES, 300, "undefined name"):
        scope = {}
        exec(BYTES.decode(wrong), scope)
        (function,) = (value for name, value in scope.items() if name != "__builtins__")
        try:
            function([1, 2])
        except NameError:
            raised += 1
        except TypeError:
            pass
    assert raised > 5


def test_a_function_that_is_too_long_makes_no_pair(functions):
    assert not list(pairs_of(functions, BYTES, len(FUNCTION) - 30, "wrong bracket"))


def test_what_the_end_of_a_sample_cuts_does_not_count():
    assert is_python(FUNCTION + "    return 1 +")
    assert is_python(FUNCTION + "class X(:\n")
    assert not is_python(FUNCTION.replace("is None", "is is None"))
    assert not is_python("default: 1")


# --------------------------------------------------------------------------------------------------
# Curves

TOKENS = np.logspace(4, 7, 12)
X = np.log(TOKENS)


def rows_of(share, bits, seed: int = 0) -> list[dict]:
    columns = zip(TOKENS, share, bits)
    return [{"seed": seed, "tokens": n, "share": s, "bits": b} for n, s, b in columns]


def test_a_jump_of_the_exact_score_alone_is_an_artefact_of_the_metric():
    """A smooth skill: each of an answer's 30 tokens gets better steadily."""
    bits = 1.2 - 1.18 * (X - X[0]) / (X[-1] - X[0])
    share = 2 ** (-30 * bits)
    assert share[0] < 0.01 and share[-1] > 0.5
    assert judge(rows_of(share, bits)) == {"finding": "an artefact of the metric"}


def test_a_jump_of_both_scores_is_emergent():
    """Nothing is learnt up to the seventh checkpoint, as in grokking."""
    rise = np.maximum(X - X[6], 0)
    assert judge(rows_of((0.3 * rise).clip(max=1), 3 - rise)) == {"finding": "emergent"}
    # A plateau after the rise changes nothing.
    rise = rise.clip(max=rise[-3])
    assert judge(rows_of(0.3 * rise, 3 - rise)) == {"finding": "emergent"}


def test_a_rise_between_too_few_checkpoints_has_no_name():
    rise = np.maximum(X - X[6], 0)
    early = 3 - 3 * (X > X[2])
    assert judge(rows_of(0.3 * rise, early)) == {"finding": "too few checkpoints"}
    assert judge(rows_of(0.3 * rise, 3 - rise)[:3]) == {}


def test_steady_curves_are_not_called_emergent():
    """Lines and power laws of any speed, with noise."""
    rng = np.random.default_rng(0)
    named = 0
    for _ in range(100):
        power = rng.uniform(0.05, 0.5)
        y = -rng.uniform(1, 5) * (TOKENS / TOKENS[0]) ** -power
        named += bool(bends_up(X, y + rng.normal(0, rng.uniform(0.01, 0.1), len(X))))
        y = rng.uniform(0.1, 1) * X
        named += bool(bends_up(X, y + rng.normal(0, rng.uniform(0.01, 0.1), len(X))))
    assert named <= 0.02 * 200


def test_seeds_show_what_is_noise():
    rng = np.random.default_rng(1)
    share = np.zeros(12)
    smooth = 5 - 0.3 * (X - X[0])
    steady = [row for seed in range(3) for row in rows_of(share, smooth + 0.1 * seed, seed)]
    assert judge(steady)["signal_to_noise"] > 3
    noise = [row for seed in range(3) for row in rows_of(share, 5 + rng.normal(size=12), seed)]
    assert judge(noise)["signal_to_noise"] < 1
    assert "signal_to_noise" not in judge(rows_of(share, smooth))


# --------------------------------------------------------------------------------------------------
# The command


@pytest.fixture
def run(config) -> str:
    train(config(block_size=64, batch_tokens=512, max_steps=2))
    return config().out


def test_a_run_takes_the_exam(run, tmp_path, command):
    text = tmp_path / "words.txt"
    text.write_text("the model learns " * 20)
    flags = (run, "--tasks=modular", "--count=10", f"--text={text}", f"--page={tmp_path}/e.html")
    printed = command(main, "exam", *flags)
    assert printed.code == 0, printed.err
    assert printed.out.startswith(f"run {run} | seed 1,337 | tokens 1,024\n")
    assert "\nmodular, modulus 97 | items 10 | share" in printed.out
    assert f"\n{text} | items" in printed.out
    page = (tmp_path / "e.html").read_text()
    assert "modular, modulus 98, beyond training" in page
    found = json.loads(command(main, "exam", *flags, "--json=True").out)
    (row,) = found["modular, modulus 97"]
    assert row["items"] == 10 and row["tokens"] == 1024 and row["share"] == 0 and row["bits"] > 1


def test_what_does_not_fit_is_left_out_with_its_size(run, tmp_path, command):
    flags = (run, "--tasks=python", "--count=10", f"--page={tmp_path}/e.html")
    printed = command(main, "exam", *flags)
    assert "python, statements 6, beyond training has 10 items of up to 205" in printed.err


def test_runs_of_another_kind_are_examined_alone(run, tmp_path):
    state = checkpoint.load(tmp_path / "run" / "last.pt")
    shorter = state["config"] | {"block_size": 32}
    for change in ({"data": "0" * 16}, {"config": shorter}):
        torch.save(state | change, tmp_path / "other.pt")
        with pytest.raises(UserError, match="data or another block_size: examine it alone"):
            main(["exam", run, str(tmp_path / "other.pt"), "--tasks=modular", "--count=2"])


def test_a_checkpoint_is_read_once(run, tmp_path, monkeypatch):
    read = []

    def load(path):
        read.append(path)
        return load_file(path)

    load_file = checkpoint.read_file
    monkeypatch.setattr(checkpoint, "read_file", load)
    runs = [f"{run}/last.pt"] * 2
    main(["exam", *runs, "--tasks=modular", "--count=2", f"--page={tmp_path}/e.html"])
    assert len(read) == 2


def test_an_unknown_task_and_a_missing_run_are_refused():
    with pytest.raises(UserError, match="did you mean sorting"):
        main(["exam", "out/none", "--tasks=sortin"])
    with pytest.raises(UserError, match="type its folder"):
        main(["exam"])


def test_the_parts_of_a_paper_are_the_same_every_time():
    parts = exam_parts(BYTES, ["lookup"], 20)
    assert parts == exam_parts(BYTES, ["lookup"], 20)
    assert list(parts)[3:5] == ["lookup, hops 4", "lookup, hops 5, beyond training"]
    assert all(before[0] == BYTES.end_of_text for [items] in parts.values() for before, _ in items)


def test_an_exam_without_items_is_refused():
    with pytest.raises(UserError, match="count must be at least 1, got 0"):
        main(["exam", "out/any", "--count=0"])
