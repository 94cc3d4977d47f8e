"""Synthetic tasks: text whose structure is known, so that what a model has understood of it can be counted exactly.

An item is a prompt and its answer in plain text, as `addition: 27 + 35 =` and `62`; a document is a list of them. It
is made from a seed, and which split it belongs to is decided by a hash of its prompt alone. So no prompt of val or
test can stand in train, whatever the seed, the number of documents or the mixture of tasks: a right answer on a
held-out item was worked out, not remembered.

They serve two ends. As an exam: exact-match accuracy on held-out items, during training and from a checkpoint. That
small tasks, each isolating one skill, tell architectures apart where the loss on natural text drowns in noise is the
claim of "Physics of Language Models: Part 4.1" (Allen-Zhu 2025, arXiv:2512.17351). And as a share of a mixture: one
third of *rephrased* web text beside two thirds of natural text reached the same validation loss 5 to 10 times sooner at
larger data budgets, while rephrased text alone was no faster and textbook-style text alone was worse in many domains
(Kang et al. 2025, "Demystifying Synthetic Data in LLM Pre-training", arXiv:2510.01631). Whether tasks like these, which
are no rephrased text, do anything of the kind is open: measure.
"""

import difflib
import hashlib
import random
from collections.abc import Iterator
from itertools import islice

from nanoloop.options import require

LETTERS = "abcdefghijklmnopqrstuvwxyz"
CLOSING = {"(": ")", "[": "]", "{": "}"}
ITEMS_PER_DOCUMENT = (
    16  # drawn for each document: some 400 bytes, so end-of-text is a small share of the tokens
)


def addition(rng: random.Random) -> tuple[str, str]:
    """Carrying digits: two numbers of one to four digits. Written plainly, most significant digit first, which is the
    hard way round for a model that writes from left to right (Lee et al. 2023, arXiv:2307.03381)."""
    a, b = (rng.randrange(10 ** rng.randint(1, 4)) for _ in range(2))
    return f"addition: {a} + {b} =", str(a + b)


def modular(rng: random.Random) -> tuple[str, str]:
    """Addition modulo 97, the task on which "grokking" was seen: long after the training items are known by heart, the
    held-out ones are suddenly understood (Power et al. 2022, arXiv:2201.02177). It has 9,409 prompts and no more."""
    a, b = rng.randrange(97), rng.randrange(97)
    return f"modular: {a} + {b} mod 97 =", str((a + b) % 97)


def copying(rng: random.Random) -> tuple[str, str]:
    """Looking back by position: repeat a string of letters, in which a letter may come several times."""
    letters = " ".join(rng.choices(LETTERS, k=rng.randint(3, 10)))
    return f"copying: {letters} =", letters


def induction(rng: random.Random) -> tuple[str, str]:
    """Looking back by content: find the earlier place of the last letter and say what followed it there. Attention
    heads that do this appear at a visible step of the training of every language model, and learning from the context
    begins with them (Olsson et al. 2022, arXiv:2209.11895)."""
    letters = rng.sample(LETTERS, rng.randint(4, 12))
    place = rng.randrange(len(letters) - 1)
    return f"induction: {' '.join(letters)} {letters[place]} =", letters[place + 1]


def sorting(rng: random.Random) -> tuple[str, str]:
    """Comparing everything with everything: three to six numbers below 100, smallest first."""
    numbers = [rng.randrange(100) for _ in range(rng.randint(3, 6))]
    return f"sorting: {' '.join(map(str, numbers))} =", " ".join(map(str, sorted(numbers)))


def brackets(rng: random.Random) -> tuple[str, str]:
    """Keeping a stack: close what is still open. A Dyck language with three kinds of brackets and bounded depth, which
    is known to be within a transformer's reach (Yao et al. 2021, arXiv:2105.11115). The first bracket stays open."""
    text = stack = ""
    for _ in range(rng.randint(3, 14)):
        close = len(stack) == 6 or (len(stack) > 1 and rng.random() < 0.5)
        bracket = CLOSING[stack[-1]] if close else rng.choice("([{")
        text, stack = text + bracket, stack[:-1] if close else stack + bracket
    return f"brackets: {' '.join(text)} =", " ".join(
        CLOSING[bracket] for bracket in reversed(stack)
    )


def lookup(rng: random.Random) -> tuple[str, str]:
    """Reasoning in several hops, without writing the steps down: follow the arrows of a shuffled cycle one to four
    times. The task Depo of Allen-Zhu 2025 (arXiv:2512.17351); each hop waits for the one before, so depth counts."""
    letters, hops = rng.sample(LETTERS, rng.randint(5, 8)), rng.randint(1, 4)
    arrows = [f"{a}>{b}" for a, b in zip(letters, letters[1:] + letters[:1])]
    return f"lookup: {' '.join(rng.sample(arrows, len(arrows)))} , {letters[0]} {hops} =", letters[
        hops
    ]


def python(rng: random.Random) -> tuple[str, str]:
    """Executing a program in one's head (Zaremba and Sutskever 2014, arXiv:1410.4615): a small Python function and what
    it returns. The answer is Python's own."""
    source, argument = "def f(x):\n", rng.randrange(10)
    for _ in range(rng.randint(1, 3)):
        head = rng.choice(
            ["", "", f"if x > {rng.randrange(20)}:", f"for _ in range({rng.randint(2, 3)}):"]
        )
        source += f"    {head}{' ' * bool(head)}x = x {rng.choice('+-*')} {rng.randint(2, 4)}\n"
    exec(source + "    return x", scope := {})  # nothing but the lines above can be in it
    return f"python: {source}    return x\nf({argument}) ==", str(scope["f"](argument))


TASKS = {
    t.__name__: t
    for t in (addition, modular, copying, induction, sorting, brackets, lookup, python)
}


def task_names(tasks: str) -> list[str]:
    """The names in "addition,sorting"; "all" stands for every task. Raises UserError."""
    names = list(TASKS) if tasks == "all" else [name.strip() for name in tasks.split(",")]
    for name in names:
        meant = "".join(
            f"did you mean {near}? " for near in difflib.get_close_matches(name, TASKS, n=1)
        )
        require(
            name in TASKS,
            f"unknown synthetic task {name!r}: {meant}Known are {', '.join(TASKS)}, and all",
        )
    return names


def item_split(prompt: str) -> str:
    """The split of an item, 5 % val and 5 % test by a hash of its prompt. No option changes the shares: an evaluation
    has to know what any training data left out."""
    return {0: "val", 1: "test"}.get(
        int(hashlib.sha256(prompt.encode()).hexdigest(), 16) % 20, "train"
    )


def documents(
    tasks: str, seed: int, count: int = 10_000, first: int = 0
) -> Iterator[tuple[int, str, str]]:
    """Yields (index, split, text) for index first … count - 1: of 16 items drawn, those of train make one document, and
    the few of val and of test, if any, one each. What stands at an index depends on the tasks, the seed and the index
    alone, so it can be made in any order or by several workers. Tasks are drawn with equal chances.

    Where a task has few prompts they come again and again, in their own split; nothing waits for a prompt that is new.
    """
    names = task_names(tasks)
    for index in range(first, count):
        rng, texts = random.Random(f"{seed} {index}"), {"train": "", "val": "", "test": ""}
        for _ in range(ITEMS_PER_DOCUMENT):
            prompt, answer = TASKS[rng.choice(names)](rng)
            texts[item_split(prompt)] += f"{prompt} {answer}\n"
        yield from ((index, split, text) for split, text in texts.items() if text)


def held_out(task: str, count: int, seed: int, split: str = "val") -> dict[str, str]:
    """Different items of a held-out split, prompt to answer: `count` draws that fell into it, so fewer items where a
    task is so small that they repeat. Where nearly nothing falls into it, 100 · count draws in all are enough."""
    rng = random.Random(f"{seed} {task} {split}")
    drawn = (TASKS[task](rng) for _ in range(100 * count))
    return dict(islice((item for item in drawn if item_split(item[0]) == split), count))


def exam(
    tokenizer, tasks: str, block_size: int, count: int = 200, seed: int = 0, split: str = "val"
) -> dict:
    """Task to (prompts as lists of tokens, answers as text, tokens to write): held-out items, the same at every call.

    tasks: as "addition,sorting". Raises UserError for an unknown task and for items longer than block_size tokens.
    """
    papers = {}
    for task in task_names(tasks):
        items = held_out(task, count, seed, split)
        # As in training: end-of-text, then the item. The answer's space is the boundary between two pieces of text for
        # every tokenizer here, so a prompt has the same tokens alone as in front of its answer.
        prompts = [[tokenizer.end_of_text, *map(int, tokenizer.encode(prompt))] for prompt in items]
        longest = max(len(tokenizer.encode(f" {answer}\n")) for answer in items.values())
        size = max(map(len, prompts)) + longest
        require(
            size <= block_size,
            f"task {task} needs --block_size={size} or more, not {block_size}; or leave it out",
        )
        papers[task] = prompts, list(items.values()), longest
    return papers


def task_accuracy(model, tokenizer, papers: dict) -> dict[str, float]:
    """Share of the exam's items that a model.GPT answers exactly, greedily decoded: {"acc_addition": 0.93, …}. An item
    is right if what follows its prompt is the answer and a line end, to the letter."""
    result = {}
    for task, (prompts, wanted, longest) in papers.items():
        batches = [prompts[start : start + 64] for start in range(0, len(prompts), 64)]
        answers = [
            answer for batch in batches for answer in model.generate(batch, longest, temperature=0)
        ]
        right = [
            tokenizer.decode(answer).startswith(f" {text}\n")
            for answer, text in zip(answers, wanted)
        ]
        result[f"acc_{task}"] = sum(right) / len(right)
    return result
