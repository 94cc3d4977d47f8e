"""Synthetic tasks: their answers are right, and nothing held out is ever seen in training."""

import hashlib
import json
import random
import subprocess
import sys

import pytest

from corpus import synthetic
from corpus.bpe import train_bpe
from nanoloop.options import UserError
from nanoloop.tokenizer import load_tokenizer
from tests.conftest import ROOT

BYTES = load_tokenizer("byte")


def items(task: str, count: int = 300, seed: int = 0) -> list[tuple[str, str]]:
    rng = random.Random(seed)
    return [synthetic.TASKS[task](rng) for _ in range(count)]


# --------------------------------------------------------------------------------------------------
# Oracles: each solves its task from the prompt alone, in another way than the generator


def solve_addition(body: str) -> str:
    return str(sum(int(word) for word in body.split() if word.isdigit()))


def solve_modular(body: str) -> str:
    a, _, b, _, modulus, _ = body.split()
    return str((int(a) + int(b)) % int(modulus))


def solve_copying(body: str) -> str:
    return body.removesuffix(" =")


def solve_induction(body: str) -> str:
    *letters, last, _ = body.split()
    return letters[letters.index(last) + 1]


def solve_sorting(body: str) -> str:
    *numbers, _ = body.split()
    return " ".join(sorted(numbers, key=int))


def solve_brackets(body: str) -> str:
    """Remove closed pairs until none is left."""
    text = body.removesuffix(" =").replace(" ", "")
    while any(pair in text for pair in ("()", "[]", "{}")):
        text = text.replace("()", "").replace("[]", "").replace("{}", "")
    return " ".join(text[::-1].translate(str.maketrans("([{", ")]}")))


def solve_lookup(body: str) -> str:
    arrows, query = body.split(" , ")
    follow = dict(arrow.split(">") for arrow in arrows.split())
    letter, hops, _ = query.split()
    for _ in range(int(hops)):
        letter = follow[letter]
    return letter


def solve_python(body: str) -> str:
    """Interpret the function's statements: x is its only variable."""
    _, *lines, _, call = body.split("\n")
    x = int(call[2:].split(")")[0])
    operators = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}
    for line in lines:
        words = line.split()
        times = 1
        if words[0] == "if":
            times = int(x > int(words[3].rstrip(":")))
        elif words[0] == "for":
            times = int(words[3].removeprefix("range(").removesuffix("):"))
        for _ in range(times):
            x = operators[words[-2]](x, int(words[-1]))
    return str(x)


ORACLES = {
    "addition": solve_addition,
    "modular": solve_modular,
    "copying": solve_copying,
    "induction": solve_induction,
    "sorting": solve_sorting,
    "brackets": solve_brackets,
    "lookup": solve_lookup,
    "python": solve_python,
}


@pytest.mark.parametrize("task", synthetic.TASKS)
def test_the_answers_are_right(task):
    for prompt, answer in items(task):
        assert ORACLES[task](prompt.removeprefix(f"{task}: ")) == answer, prompt


@pytest.mark.parametrize("task", synthetic.TASKS)
def test_the_answers_of_an_exam_are_right_beyond_training_too(task):
    for part, (items,) in synthetic.exam_parts(BYTES, [task], 20).items():
        for before, after in items:
            body = BYTES.decode(before[1:]).removeprefix(f"{task}: ")
            assert f" {ORACLES[task](body)}\n" == BYTES.decode(after), part


def test_an_exam_goes_beyond_training():
    """By name, by what is drawn, and nothing of it is in train."""
    parts = synthetic.exam_parts(BYTES, ["addition"], 40)
    names = [f"addition, digits {n}" + ", beyond training" * (n > 4) for n in range(1, 9)]
    assert list(parts) == names
    for digits, (items,) in enumerate(parts.values(), 1):
        prompts = [BYTES.decode(before[1:]) for before, _ in items]
        assert max(len(word) for text in prompts for word in text.split()[1:]) == digits
        assert all(synthetic.item_split(prompt) == "val" for prompt in prompts)


def test_the_sizes_of_a_task_can_be_drawn_as_they_always_were():
    """Data that were prepared before keep their bytes."""
    text = "".join(f"{i} {s} {t}" for i, s, t in synthetic.documents("all", 0, range(300)))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "1cd1a99d8d8b63e7"


def test_an_induction_prompt_has_one_earlier_place_to_look_at():
    for prompt, _ in items("induction"):
        *letters, last, _ = prompt.removeprefix("induction: ").split()
        assert letters.count(last) == 1
        assert len(set(letters)) == len(letters)


@pytest.mark.parametrize("task", synthetic.TASKS)
def test_an_answer_is_one_line_with_no_space_around_it(task):
    for prompt, answer in items(task):
        assert answer
        assert "\n" not in answer
        assert answer == answer.strip()
        assert prompt == prompt.strip()


def test_a_prompt_has_the_same_tokens_alone_as_before_its_answer():
    """The space before an answer is a boundary for every tokenizer."""
    texts = [text for _, _, text in synthetic.documents("all", 1, range(200))]
    for tokenizer in (load_tokenizer("byte"), train_bpe("bpe:600", texts)):
        for task in synthetic.TASKS:
            for prompt, answer in items(task, 50):
                parts = [*tokenizer.encode(prompt), *tokenizer.encode(f" {answer}\n")]
                assert parts == list(tokenizer.encode(f"{prompt} {answer}\n")), prompt


# --------------------------------------------------------------------------------------------------
# Splits


def prompts_by_split(tasks: str, seed: int, count: int) -> dict[str, set[str]]:
    """Return the prompts in the documents of each split; an answer follows the last " ="."""
    found = {"train": set(), "val": set(), "test": set()}
    for _, split, text in synthetic.documents(tasks, seed, range(count)):
        found[split] |= {line.rsplit(" =", 1)[0] + " =" for line in text.splitlines()}
    return found


@pytest.mark.parametrize("tasks", ["modular", "addition,sorting", "induction"])
def test_no_held_out_prompt_is_trained_on_whatever_the_seeds(tasks):
    train = set()
    for seed in range(4):
        train |= prompts_by_split(tasks, seed, 300)["train"]
    assert len(train) > 500
    for split in ("val", "test"):
        held_out = prompts_by_split(tasks, 5, 300)[split] | prompts_by_split(tasks, 6, 300)[split]
        for task in tasks.split(","):
            held_out |= set(synthetic.held_out(task, 200, 0, split))
        assert len(held_out) > 200
        assert not held_out & train


def test_one_item_in_ten_is_held_out():
    sizes = {split: len(found) for split, found in prompts_by_split("addition", 0, 2000).items()}
    total = sum(sizes.values())
    assert 0.04 < sizes["val"] / total < 0.06
    assert 0.04 < sizes["test"] / total < 0.06


def test_a_small_task_is_not_exhausted():
    """modular has 9,409 prompts: text of ten times as many items, and a large exam, both end."""
    texts = [text for _, _, text in synthetic.documents("modular", 0, range(6000))]
    n_items = sum(text.count("\n") for text in texts)
    assert n_items == 6000 * synthetic.ITEMS_PER_DOCUMENT
    assert n_items > 10 * 9409
    assert 100 < len(synthetic.held_out("modular", 2000, 0)) < 9409 * 0.07


def test_an_exam_is_the_same_every_time_and_another_one_for_another_seed():
    exam = synthetic.held_out("lookup", 100, seed=0)
    assert exam == synthetic.held_out("lookup", 100, seed=0)
    assert exam != synthetic.held_out("lookup", 100, seed=1)


# --------------------------------------------------------------------------------------------------
# Determinism


def test_the_text_at_an_index_depends_on_the_seed_and_the_index_alone():
    documents = list(synthetic.documents("all", 7, range(60)))
    some = list(synthetic.documents("all", 7, range(40, 60)))
    assert some == [row for row in documents if row[0] >= 40]
    assert list(synthetic.documents("all", 8, range(60))) != documents


def test_another_process_generates_the_same_text():
    """Python's hash() of a string differs in every process: nothing may depend on it."""
    code = (
        "import json; from corpus import synthetic; "
        "print(json.dumps(list(synthetic.documents('all', 7, range(20)))))"
    )
    expected = [list(row) for row in synthetic.documents("all", 7, range(20))]
    environment = {"PYTHONHASHSEED": "1", "PATH": "/usr/bin:/bin"}
    program = [sys.executable, "-c", code]
    done = subprocess.run(program, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == expected


def test_all_tasks_of_a_mixture_get_an_equal_share():
    text = "".join(text for _, _, text in synthetic.documents("all", 0, range(500)))
    counts = [text.count(f"{task}: ") for task in synthetic.TASKS]
    total = sum(counts)
    assert total == 500 * synthetic.ITEMS_PER_DOCUMENT
    assert all(abs(count - total / 8) < 0.15 * total / 8 for count in counts)


# --------------------------------------------------------------------------------------------------
# Names


def test_task_names_are_a_list_or_all():
    assert synthetic.task_names("addition, sorting") == ["addition", "sorting"]
    assert synthetic.task_names("all") == list(synthetic.TASKS)


def test_an_unknown_task_is_refused_with_the_nearest_and_all_names():
    message = "'sortin': did you mean sorting.*addition, modular, copying.*python, and all"
    with pytest.raises(UserError, match=message):
        synthetic.task_names("addition,sortin")
    with pytest.raises(UserError, match="unknown synthetic task ''"):
        synthetic.task_names("")
