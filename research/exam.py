"""An exam of synthetic tasks: python -m research exam RUN --tasks=addition,sorting

Prints the share of held-out items that a run's model answers exactly, decoded greedily. An item is
right if the answer and a line end follow its prompt, to the letter.
"""

import json
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from corpus.synthetic import held_out, task_names
from nanoloop.device import pick_device
from nanoloop.generate import generate
from nanoloop.options import require
from sample import load_model

BATCH_SIZE = 64


@dataclass(frozen=True)
class ExamOptions:
    """Examine a trained model in synthetic tasks."""

    run: Annotated[str, tyro.conf.Positional] = ""  # folder of a run, or a checkpoint
    tasks: str = "all"  # such as addition,sorting
    split: Literal["val", "test"] = "val"  # of the items
    count: int = 200  # items of each task, fewer where a task has not so many
    seed: int = 0  # which items
    device: str = "auto"  # cpu, cuda, mps; auto: the fastest there is
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # of activations
    json: bool = False  # print a JSON object, for programs


@dataclass(frozen=True)
class Paper:
    """Held-out items of one task."""

    prompts: list[list[int]]  # tokens
    answers: list[str]
    answer_tokens: int  # of the longest answer and its line end


def write_paper(
    tokenizer, task: str, block_size: int, count: int = 200, seed: int = 0, split: str = "val"
) -> Paper:
    """Return the paper that the arguments fix. Raises UserError if block_size is too small."""
    items = held_out(task, count, seed, split)
    # As in training: end-of-text, then the item. The space before the answer is a boundary for each
    # tokenizer, so a prompt has the same tokens with and without its answer.
    prompts = [[tokenizer.end_of_text, *tokenizer.encode(item).tolist()] for item in items]
    answers = list(items.values())
    longest = max(len(tokenizer.encode(f" {answer}\n")) for answer in answers)
    size = max(map(len, prompts)) + longest
    message = f"task {task} needs --block_size={size} or more, got {block_size}: leave it out"
    require(size <= block_size, message)
    return Paper(prompts, answers, longest)


def grade(model, tokenizer, paper: Paper) -> float:
    """Return the share of the items that the model answers exactly, decoded greedily."""
    right = 0
    for start in range(0, len(paper.prompts), BATCH_SIZE):
        prompts = paper.prompts[start : start + BATCH_SIZE]
        written = generate(model, prompts, paper.answer_tokens, temperature=0)
        for tokens, answer in zip(written, paper.answers[start:]):
            right += tokenizer.decode(tokens).startswith(f" {answer}\n")
    return right / len(paper.prompts)


def main(options: ExamOptions) -> None:
    require(options.run, "no run: type its folder after the command, such as exam out/quickstart")
    require(options.count >= 1, f"count must be at least 1, got {options.count}")
    names = task_names(options.tasks)
    device, dtype = pick_device(options.device, options.dtype)
    model, tokenizer = load_model(options.run, device, dtype)
    size = model.config.block_size
    choice = (options.count, options.seed, options.split)
    papers = {name: write_paper(tokenizer, name, size, *choice) for name in names}
    shares = {f"acc_{name}": grade(model, tokenizer, paper) for name, paper in papers.items()}
    if options.json:
        print(json.dumps(shares))
    else:
        for name, share in shares.items():
            print(f"{name}: {share:.4f}")
