"""Synthetic tasks: their answers are right, nothing held out is ever seen in training, and the grader is exact."""

import json
import random
import subprocess
import sys
from types import SimpleNamespace

import pytest

import prepare_data
from corpus import synthetic
from nanoloop.options import UserError
from tests.conftest import ROOT


def items(task: str, count: int = 300, seed: int = 0) -> list[tuple[str, str]]:
    rng = random.Random(seed)
    return [synthetic.TASKS[task](rng) for _ in range(count)]


# ---------------------------------------------------------------------------------------------------------------------
# Oracles: each solves its task from the prompt alone, in another way than the generator made it.


def solve_python(body: str) -> str:
    """Runs the function as a program of its own statements, by hand: x is the only variable."""
    *lines, call = body.split("\n")
    x = int(call[2:].split(")")[0])
    operate = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}
    for line in lines[1:-1]:
        words = line.split()
        times = 1
        if words[0] == "if":
            times = int(x > int(words[3].rstrip(":")))
        elif words[0] == "for":
            times = int(words[3][len("range(") : -2])
        for _ in range(times):
            x = operate[words[-2]](x, int(words[-1]))
    return str(x)


def solve_lookup(body: str) -> str:
    arrows, query = body.split(" , ")
    follow = dict(arrow.split(">") for arrow in arrows.split())
    place, hops = query.split()[:2]
    for _ in range(int(hops)):
        place = follow[place]
    return place


def solve_brackets(body: str) -> str:
    text = body.removesuffix(" =").replace(" ", "")
    while any(pair in text for pair in ("()", "[]", "{}")):
        text = text.replace("()", "").replace("[]", "").replace("{}", "")
    return " ".join(text[::-1].translate(str.maketrans("([{", ")]}")))


def solve_induction(body: str) -> str:
    *letters, last, _ = body.split()
    return letters[letters.index(last) + 1]


ORACLES = {
    "addition": lambda body: str(sum(int(word) for word in body.split() if word.isdigit())),
    "modular": lambda body: str((int(body.split()[0]) + int(body.split()[2])) % 97),
    "copying": lambda body: body.removesuffix(" ="),
    "induction": solve_induction,
    "sorting": lambda body: " ".join(sorted(body.split()[:-1], key=int)),
    "brackets": solve_brackets,
    "lookup": solve_lookup,
    "python": solve_python,
}


@pytest.mark.parametrize("task", synthetic.TASKS)
def test_the_answers_are_right(task):
    for prompt, answer in items(task):
        assert ORACLES[task](prompt.removeprefix(f"{task}: ")) == answer, prompt


def test_an_induction_prompt_has_one_earlier_place_to_look_at():
    for prompt, _ in items("induction"):
        *letters, last, _ = prompt.removeprefix("induction: ").split()
        assert letters.count(last) == 1 and len(set(letters)) == len(letters)


@pytest.mark.parametrize("task", synthetic.TASKS)
def test_an_answer_is_one_line_that_a_space_sets_off(task):
    """So a document can be a list of items, and a prompt is cut into the same tokens with and without its answer."""
    for prompt, answer in items(task):
        assert (
            answer and "\n" not in answer and answer == answer.strip() and prompt == prompt.strip()
        )


def test_a_prompt_has_the_same_tokens_alone_as_before_its_answer():
    documents = [text for _, _, text in synthetic.documents("all", seed=1, count=200)]
    for tokenizer in (prepare_data.make_tokenizer(name, documents) for name in ("byte", "bpe:600")):
        for task in synthetic.TASKS:
            for prompt, answer in items(task, 50):
                parts = [*tokenizer.encode(prompt), *tokenizer.encode(f" {answer}\n")]
                assert parts == list(tokenizer.encode(f"{prompt} {answer}\n")), (
                    tokenizer.name,
                    prompt,
                )


# ---------------------------------------------------------------------------------------------------------------------
# Splits


def prompts_by_split(tasks: str, seed: int, count: int) -> dict[str, set[str]]:
    """The prompts that stand in documents: an item is found again by the answer that the oracle gives to its prompt."""
    found: dict[str, set[str]] = {"train": set(), "val": set(), "test": set()}
    for _, split, text in synthetic.documents(tasks, seed, count):
        for line in text.splitlines():
            found[split].add(line.rsplit(" =", 1)[0] + " =")
    return found


@pytest.mark.parametrize("tasks", ["modular", "addition,sorting", "induction"])
def test_no_held_out_prompt_is_trained_on_whatever_the_seeds(tasks):
    train = set().union(*(prompts_by_split(tasks, seed, 300)["train"] for seed in range(4)))
    assert len(train) > 500
    for seed in (5, 6):
        for split in ("val", "test"):
            held_out = prompts_by_split(tasks, seed, 300)[split]
            assert held_out and not held_out & train
    for split in ("val", "test"):
        exam = set().union(*(synthetic.held_out(task, 200, 0, split) for task in tasks.split(",")))
        assert exam and not exam & train


def test_one_item_in_ten_is_held_out():
    sizes = {
        split: len(prompts) for split, prompts in prompts_by_split("addition", 0, 2000).items()
    }
    total = sum(sizes.values())
    assert 0.04 < sizes["val"] / total < 0.06 and 0.04 < sizes["test"] / total < 0.06


def test_a_small_task_is_not_exhausted():
    """modular has 9,409 prompts: a training text of ten times as many items and an exam of more than there are end."""
    items_made = sum(text.count("\n") for _, _, text in synthetic.documents("modular", 0, 6000))
    assert items_made == 6000 * synthetic.ITEMS_PER_DOCUMENT > 9409 * 10
    assert 100 < len(synthetic.held_out("modular", 2000, 0)) < 9409 * 0.07


# ---------------------------------------------------------------------------------------------------------------------
# Determinism


def test_what_stands_at_an_index_depends_on_the_seed_and_the_index_alone():
    whole = list(synthetic.documents("all", 7, 60))
    assert list(synthetic.documents("all", 7, 60, first=40)) == [
        row for row in whole if row[0] >= 40
    ]
    assert list(synthetic.documents("all", 8, 60)) != whole


def test_another_process_makes_the_same_text():
    """Python's own hash() of a string is another one in every process; nothing may depend on it."""
    code = "import json; from corpus import synthetic; print(json.dumps(list(synthetic.documents('all', 7, 20))))"
    for hash_seed in ("1", "2"):
        environment = {"PYTHONHASHSEED": hash_seed, "PATH": "/usr/bin:/bin"}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert [tuple(row) for row in json.loads(done.stdout)] == list(
            synthetic.documents("all", 7, 20)
        ), done.stderr


def test_all_tasks_of_a_mixture_get_an_equal_share():
    text = "".join(text for _, _, text in synthetic.documents("all", 0, 500))
    counts = [text.count(f"{task}: ") for task in synthetic.TASKS]
    assert sum(counts) == 500 * synthetic.ITEMS_PER_DOCUMENT
    assert all(abs(count - sum(counts) / 8) < 0.15 * sum(counts) / 8 for count in counts)


# ---------------------------------------------------------------------------------------------------------------------
# The exam

BYTES = prepare_data.make_tokenizer("byte", [])


class Candidate:
    """Stands in for model.GPT: knows what to say to a prompt, and keeps a record of how it was asked."""

    def __init__(self, say):
        self.say, self.calls = say, []

    def generate(self, prompts, max_new_tokens, temperature):
        self.calls.append(
            SimpleNamespace(prompts=prompts, max_new_tokens=max_new_tokens, temperature=temperature)
        )
        texts = [self.say(BYTES.decode(prompt[1:])) for prompt in prompts]
        return [list(text.encode())[:max_new_tokens] for text in texts]


def know(prompt: str) -> str:
    task, body = prompt.split(": ", 1)
    return ORACLES[task](body)


@pytest.mark.parametrize(
    "say, accuracy",
    [
        (lambda prompt: f" {know(prompt)}\n", 1.0),
        (
            lambda prompt: f" {know(prompt)}\n{prompt}",
            1.0,
        ),  # what comes after the line end does not count
        (
            lambda prompt: f" {know(prompt)}",
            0.0,
        ),  # an answer that does not end might go on: 57 is not 579
        (lambda prompt: f" {know(prompt)}0\n", 0.0),
        (lambda prompt: f"{know(prompt)}\n", 0.0),
        (lambda prompt: "", 0.0),
    ],
)
def test_the_grader_is_exact(say, accuracy):
    papers = synthetic.exam(BYTES, "all", block_size=256, count=20)
    result = synthetic.task_accuracy(Candidate(say), BYTES, papers)
    assert result == {f"acc_{task}": accuracy for task in synthetic.TASKS}


def test_accuracy_is_the_share_that_is_right():
    prompts = list(synthetic.held_out("sorting", 100, 0))
    candidate = Candidate(lambda prompt: f" {know(prompt)}\n" if prompt in prompts[:25] else " 0\n")
    papers = synthetic.exam(BYTES, "sorting", 64, count=100)
    assert synthetic.task_accuracy(candidate, BYTES, papers) == {"acc_sorting": 0.25}


def test_the_exam_is_the_same_every_time_and_greedy():
    assert synthetic.exam(BYTES, "lookup", 64) == synthetic.exam(BYTES, "lookup", 64)
    candidate = Candidate(lambda prompt: "")
    synthetic.task_accuracy(candidate, BYTES, synthetic.exam(BYTES, "lookup", 64, count=100))
    assert [len(call.prompts) for call in candidate.calls] == [64, 36]
    assert all(call.temperature == 0 for call in candidate.calls)
    assert all(
        prompt[0] == BYTES.end_of_text for call in candidate.calls for prompt in call.prompts
    )


def test_the_longest_answer_and_its_line_end_can_be_written():
    papers = synthetic.exam(BYTES, "sorting", 64)
    prompts, answers, longest = papers["sorting"]
    assert (
        longest == max(len(f" {answer}\n") for answer in answers)
        and len(prompts) == len(answers) == 200
    )


def test_items_that_do_not_fit_into_the_context_are_refused_with_the_size_they_need():
    with pytest.raises(
        UserError, match=r"task python needs --block_size=(\d+) or more, not 64"
    ) as caught:
        synthetic.exam(BYTES, "addition,python", block_size=64)
    needed = int(str(caught.value).split("--block_size=")[1].split()[0])
    assert synthetic.exam(BYTES, "python", block_size=needed)
    with pytest.raises(UserError):
        synthetic.exam(BYTES, "python", block_size=needed - 1)


def test_an_unknown_task_is_refused_with_the_nearest_and_all_names():
    with pytest.raises(
        UserError, match="'sortin': did you mean sorting.*addition, modular, copying"
    ) as caught:
        synthetic.task_names("addition,sortin")
    assert all(task in str(caught.value) for task in synthetic.TASKS)
    with pytest.raises(UserError, match="''"):
        synthetic.task_names("")
    assert synthetic.task_names("all") == list(synthetic.TASKS)
    assert synthetic.task_names("addition, sorting") == ["addition", "sorting"]


def test_a_real_model_takes_the_exam(data_dir):
    """An untrained GPT gets nothing right, and is asked in batches of prompts of several lengths."""
    import torch

    from model import GPT, GPTConfig

    torch.manual_seed(0)
    model = GPT(
        GPTConfig(block_size=64, vocab_size=257, n_layer=1, n_head=2, n_embd=16, value_embeds=0)
    )
    papers = synthetic.exam(BYTES, "addition,induction", 64, count=30)
    result = synthetic.task_accuracy(model, BYTES, papers)
    assert set(result) == {"acc_addition", "acc_induction"} and all(
        share <= 0.2 for share in result.values()
    )
