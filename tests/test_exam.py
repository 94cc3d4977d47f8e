"""The exam: its items are fixed and fit, its grader is exact, a real model takes it."""

import json

import pytest
import torch

from corpus import synthetic
from model import GPT, GPTConfig
from nanoloop.options import UserError
from nanoloop.tokenizer import load_tokenizer
from research.__main__ import main
from research.exam import Paper, grade, write_paper

BYTES = load_tokenizer("byte")
CONFIG = GPTConfig(block_size=64, vocab_size=257, n_layer=1, n_head=2, n_embd=16, value_embeds=0)


class Parrot(GPT):
    """Continues each prompt with the text that `answers` holds for it."""

    def __init__(self, answers: dict[str, str]):
        super().__init__(CONFIG)
        self.answers = answers

    def forward(self, tokens, targets=None, cache=None, reduction="mean"):
        """Make the next byte of the continuation certain; after its end, a zero byte."""
        previous = getattr(cache, "texts", None)
        texts = tokens.tolist()
        if previous is not None:
            texts = [old + new for old, new in zip(previous, texts)]
        cache.texts = texts
        logits = torch.zeros(len(texts), 1, CONFIG.vocab_size)
        for row, text in enumerate(texts):
            logits[row, 0, self.next_byte(BYTES.decode(text[1:]))] = 1.0
        return logits

    def next_byte(self, text: str) -> int:
        for prompt, answer in self.answers.items():
            rest = (prompt + answer).removeprefix(text)
            if rest != prompt + answer and len(text) >= len(prompt) and rest:
                return rest.encode()[0]
        return 0


def sorting_items(count: int) -> dict[str, str]:
    return synthetic.held_out("sorting", count, seed=0)


@pytest.mark.parametrize(
    "form, share",
    [
        (" {}\n", 1.0),
        (" {}\nsorting: 1", 1.0),  # what follows the line end does not count
        (" {}", 0.0),  # an answer that does not end might go on: 57 is not 579
        (" {}0\n", 0.0),
        ("{}\n", 0.0),
        ("", 0.0),
    ],
)
def test_the_grader_is_exact(form, share):
    items = sorting_items(20)
    model = Parrot({prompt: form.format(answer) for prompt, answer in items.items()})
    assert grade(model, BYTES, write_paper(BYTES, "sorting", 64, count=20)) == share


def test_the_grade_is_the_share_of_right_answers():
    """Over several batches, the last of which is not full."""
    items = list(sorting_items(100).items())
    model = Parrot({prompt: f" {answer}\n" for prompt, answer in items[:25]})
    paper = write_paper(BYTES, "sorting", 64, count=100)
    assert len(paper.prompts) == 100
    assert grade(model, BYTES, paper) == 0.25


def test_a_paper_is_the_same_every_time():
    paper = write_paper(BYTES, "lookup", 64, count=50)
    assert paper == write_paper(BYTES, "lookup", 64, count=50)
    assert paper != write_paper(BYTES, "lookup", 64, count=50, seed=1)
    assert paper != write_paper(BYTES, "lookup", 64, count=50, split="test")
    assert all(prompt[0] == BYTES.end_of_text for prompt in paper.prompts)


def test_the_longest_answer_and_its_line_end_can_be_written():
    paper = write_paper(BYTES, "sorting", 64)
    assert paper.answer_tokens == max(len(f" {answer}\n") for answer in paper.answers)
    assert len(paper.prompts) == len(paper.answers) == 200


def test_items_that_do_not_fit_are_refused_with_the_size_they_need():
    with pytest.raises(
        UserError, match=r"task python needs --block_size=\d+ or more, got 64"
    ) as error:
        write_paper(BYTES, "python", 64)
    needed = int(str(error.value).split("--block_size=")[1].split()[0])
    assert isinstance(write_paper(BYTES, "python", needed), Paper)
    with pytest.raises(UserError):
        write_paper(BYTES, "python", needed - 1)


def test_a_trained_run_takes_the_exam(config, capsys):
    """It prints one line per task, or one JSON object."""
    import train

    train.train(config(block_size=64, batch_tokens=512, max_steps=2))
    run = config().out
    flags = ["--tasks=addition,induction", "--count=20", "--device=cpu"]
    capsys.readouterr()
    main(["exam", run, *flags])
    assert capsys.readouterr().out == "acc_addition: 0.0000\nacc_induction: 0.0000\n"
    main(["exam", run, *flags, "--json=True"])
    assert json.loads(capsys.readouterr().out) == {"acc_addition": 0.0, "acc_induction": 0.0}


def test_an_unknown_task_is_refused():
    with pytest.raises(UserError, match="did you mean sorting"):
        main(["exam", "out/none", "--tasks=sortin"])
