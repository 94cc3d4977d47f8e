"""Synthetic tasks: text of a known structure.

What a model understands of it can be counted. An item is a prompt and its answer in plain text,
such as `addition: 27 + 35 =` and `62`; a document is a list of items. A seed generates it, and a
hash of its prompt alone decides the split of an item. So no prompt of val or test can be in train,
whatever the seed, the number of documents or the mixture of tasks: the right answer to a held-out
item is computed, not remembered.

The tasks serve two purposes. As an exam they count exact answers to held-out items. Small tasks
that each isolate one skill tell architectures apart where the loss on natural text is too noisy:
the claim of "Physics of Language Models: Part 4.1" (Allen-Zhu 2025, arXiv:2512.17351). And they can
be a share of a mixture. One third of *rephrased* web text beside two thirds of natural text reached
the same validation loss 5 to 10 times sooner at larger data budgets, while rephrased text alone was
no faster and textbook-style text alone was worse in many domains (Kang et al. 2025, "Demystifying
Synthetic Data in LLM Pre-training", arXiv:2510.01631). Whether tasks like these, which are no
rephrased text, do anything similar is open: measure it.
"""

import difflib
import hashlib
import inspect
import math
import random

from nanoloop.options import require

LETTERS = "abcdefghijklmnopqrstuvwxyz"
CLOSING = {"(": ")", "[": "]", "{": "}"}
ITEMS_PER_DOCUMENT = 16  # about 400 bytes: end-of-text is a small share of the tokens

# --------------------------------------------------------------------------------------------------
# Tasks: a random.Random to a prompt and its answer. The second argument is what makes an item hard:
# one of these sizes is drawn. Its default is the range of training.


def addition(rng, digits=range(1, 5)):
    """Carry digits: add two numbers of one to four digits.

    They are written most significant digit first, which is hard for a model that writes from left
    to right (Lee et al. 2023, arXiv:2307.03381).
    """
    a = rng.randrange(10 ** rng.choice(digits))
    b = rng.randrange(10 ** rng.choice(digits))
    return f"addition: {a} + {b} =", str(a + b)


def modular(rng, modulus=range(97, 98)):
    """Add modulo 97, the task of "grokking".

    Long after a model remembers the training items, it suddenly understands the held-out ones
    (Power et al. 2022, arXiv:2201.02177). There are only 9,409 prompts.
    """
    size = modulus[0]  # the only one: nothing is drawn
    a = rng.randrange(size)
    b = rng.randrange(size)
    return f"modular: {a} + {b} mod {size} =", str((a + b) % size)


def copying(rng, length=range(3, 11)):
    """Look back by position: repeat letters, of which some may occur several times."""
    letters = " ".join(rng.choices(LETTERS, k=rng.choice(length)))
    return f"copying: {letters} =", letters


def induction(rng, length=range(4, 13)):
    """Look back by content: say what follows the earlier copy of the last letter.

    Attention heads that do this appear at a visible step in the training of every language model,
    and learning from the context begins with them (Olsson et al. 2022, arXiv:2209.11895).
    """
    letters = rng.sample(LETTERS, rng.choice(length))
    index = rng.randrange(len(letters) - 1)
    return f"induction: {' '.join(letters)} {letters[index]} =", letters[index + 1]


def sorting(rng, length=range(3, 7)):
    """Compare everything with everything: sort three to six numbers below 100."""
    numbers = [rng.randrange(100) for _ in range(rng.choice(length))]
    return f"sorting: {' '.join(map(str, numbers))} =", " ".join(map(str, sorted(numbers)))


def brackets(rng, length=range(3, 15)):
    """Keep a stack: close the brackets that are still open.

    A transformer can learn this Dyck language of three kinds of brackets and bounded depth (Yao et
    al. 2021, arXiv:2105.11115). The first bracket stays open.
    """
    text = ""
    stack = ""
    for _ in range(rng.choice(length)):
        if len(stack) == 6 or (len(stack) > 1 and rng.random() < 0.5):
            text += CLOSING[stack[-1]]
            stack = stack[:-1]
        else:
            bracket = rng.choice("([{")
            text += bracket
            stack += bracket
    answer = [CLOSING[bracket] for bracket in reversed(stack)]
    return f"brackets: {' '.join(text)} =", " ".join(answer)


def lookup(rng, hops=range(1, 5)):
    """Reason in several hops: follow the arrows of a shuffled cycle.

    No hop is written down. This is the task Depo of Allen-Zhu 2025 (arXiv:2512.17351). Each of the
    one to four hops waits for the one before, so the depth of a model counts.
    """
    longest = max(4, *hops)  # with more hops than in training the cycle is longer too
    letters = rng.sample(LETTERS, rng.randint(longest + 1, longest + 4))
    steps = rng.choice(hops)
    arrows = [f"{a}>{b}" for a, b in zip(letters, letters[1:] + letters[:1])]
    shuffled = " ".join(rng.sample(arrows, len(arrows)))
    return f"lookup: {shuffled} , {letters[0]} {steps} =", letters[steps]


def python(rng, statements=range(1, 4)):
    """Execute a small Python function and say what it returns.

    The answer is Python's own (Zaremba and Sutskever 2014, arXiv:1410.4615).
    """
    source = "def f(x):\n"
    argument = rng.randrange(10)
    for _ in range(rng.choice(statements)):
        condition = f"if x > {rng.randrange(20)}: "
        loop = f"for _ in range({rng.randint(2, 3)}): "
        head = rng.choice(["", "", condition, loop])
        source += f"    {head}x = x {rng.choice('+-*')} {rng.randint(2, 4)}\n"
    source += "    return x"
    scope = {}
    exec(source, scope)  # it contains only the lines above
    return f"python: {source}\nf({argument}) ==", str(scope["f"](argument))


TASKS = {
    task.__name__: task
    for task in (addition, modular, copying, induction, sorting, brackets, lookup, python)
}


def task_names(tasks: str) -> list[str]:
    """Return the names in "addition,sorting"; "all" is all tasks. Raises UserError."""
    if tasks == "all":
        return list(TASKS)
    names = [name.strip() for name in tasks.split(",")]
    for name in names:
        nearest = difflib.get_close_matches(name, TASKS, n=1)
        hint = f"did you mean {nearest[0]}? " if nearest else ""
        known = f"{hint}Tasks are {', '.join(TASKS)}, and all"
        require(name in TASKS, f"unknown synthetic task {name!r}: {known}")
    return names


def item_split(prompt: str) -> str:
    """Return the split of an item by a hash of its prompt: 5 % val, 5 % test.

    No option changes these shares: an exam has to know what any training data left out.
    """
    remainder = int(hashlib.sha256(prompt.encode()).hexdigest(), 16) % 20
    return {0: "val", 1: "test"}.get(remainder, "train")


def documents(tasks: str, seed: int, indices: range):
    """Yield (index, split, text) of the documents with these indices.

    Of the items drawn for an index, those of train are one document, and the few of val and of test
    one each. The text at an index depends on the tasks, the seed and the index alone, so any
    process can generate any part. All tasks are equally probable. A task with few prompts repeats
    them, each in its split.
    """
    names = task_names(tasks)
    for index in indices:
        rng = random.Random(f"{seed} {index}")
        texts = {"train": "", "val": "", "test": ""}
        for _ in range(ITEMS_PER_DOCUMENT):
            prompt, answer = TASKS[rng.choice(names)](rng)
            texts[item_split(prompt)] += f"{prompt} {answer}\n"
        for split, text in texts.items():
            if text:
                yield index, split, text


def held_out(task: str, count: int, seed: int, split: str = "val", sizes=None) -> dict[str, str]:
    """Return different items of a held-out split: prompt to answer.

    sizes: how hard they are, beyond training too; None: as in training.

    `count` draws fall into the split; a small task repeats some, so there are fewer items. After
    100 * count draws in all it stops.
    """
    rng = random.Random(f"{seed} {task} {split}")
    items = []
    for _ in range(100 * count):
        prompt, answer = TASKS[task](rng, sizes) if sizes else TASKS[task](rng)
        if item_split(prompt) == split:
            items.append((prompt, answer))
        if len(items) == count:
            break
    return dict(items)


def exam_parts(tokenizer, tasks: list[str], count: int) -> dict[str, list]:
    """Return the parts of an exam: four sizes in each task's range of training, four beyond it.

    A part is one list of held-out items: token ids of a prompt, and of the answer with its line
    end.
    """
    parts = {}
    for task in tasks:
        _, axis = inspect.signature(TASKS[task]).parameters.values()
        trained = axis.default
        sizes = range(trained.start, trained.stop + len(trained))
        for size in sizes[:: math.ceil(len(trained) / 4)]:
            items = []
            for prompt, answer in held_out(task, count, 0, sizes=[size]).items():
                # As in training: end-of-text, then the item. The space before the answer is a
                # boundary for each tokenizer: a prompt has the same tokens without its answer.
                before = [tokenizer.end_of_text, *tokenizer.encode(prompt).tolist()]
                items.append((before, tokenizer.encode(f" {answer}\n").tolist()))
            name = f"{task}, {axis.name} {size}" + ", beyond training" * (size not in trained)
            parts[name] = [items]
    return parts
