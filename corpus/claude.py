"""Synthetic text written by Claude: a document for each prompt of a JSONL file, through the `anthropic` package.

    {"prompt": "Tell a five-year-old why the sea is salty.", "system": "You write for children."}

A prompt that comes twice is asked once. It costs money, so three things are certain.

No call is made before every prompt has been checked.

The budget is not exceeded. Before each attempt its worst case is written down as spent: every byte of the request a
token, and the longest answer allowed. Only what the service then says it used takes the place of that; an attempt that
was refused costs nothing; one whose connection was cut may have been charged, so its worst case stands. Questions that
are in the air count with their worst case too, which may leave a little unspent: started again, the run uses it.

No answer is paid for twice. All of the above is in the answers file, a line before each attempt and one for what came
of it, synced to the disk one by one. Started again, a run reads that file, asks for what is missing, and goes on
counting from what was spent. Each answer stands there with its whole request (model, prompt, parameters), a hash of
it, and the service's own identifiers, usage, stop reason and date: a corpus that knows where a text came from can
drop it.

The package repeats what may be repeated, as often as claude_retries says: 408, 409, 429, every 5xx (529, overloaded,
among them), time-outs and cut connections. It waits as long as the service asks (retry-after), or else 0.5, 1, 2, 4, 8,
8 … seconds, each less up to a quarter at random.
"""

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from corpus.jsonlines import JsonLines
from corpus.sources import Document
from nanoloop.options import UserError, reading as explained, first_line, require

# What a stop reason says about the text; with any other (a refusal, say) the answer is not used.
USABLE = {"end_turn": None, "stop_sequence": None, "max_tokens": "cut off at claude_max_tokens"}


@dataclass(frozen=True)
class ClaudeConfig:
    """Options of --source=claude:PROMPTS.jsonl."""

    claude_model: str = (
        "claude-haiku-5-5"  # who answers the prompts of --source=claude:PROMPTS.jsonl
    )
    claude_max_tokens: int = 1024  # longest answer; longer ones are cut off, and counted
    claude_temperature: float | None = (
        None  # 0 to 1; None: not sent (a model that takes none refuses it)
    )
    claude_budget: float | None = (
        None  # never spend more: dollars, if the two prices are given, else tokens in all
    )
    claude_input_price: float | None = (
        None  # dollars per million input tokens, from the model's price list
    )
    claude_output_price: float | None = None  # … per million output tokens
    claude_concurrency: int = 4  # questions in the air at once
    claude_retries: int = (
        8  # attempts after the first when the service is busy, broken or out of reach
    )


def questions(prompts: Path, options: ClaudeConfig) -> dict[str, tuple[str, dict]]:
    """Key to (file:line, request), for each different prompt, in their order. The key is a hash of the request, by
    which its answer is found again wherever in the file the prompt stands by now. Raises UserError."""
    asked = {}
    for number, line in enumerate(prompts.read_bytes().splitlines(), 1):
        told = f'{prompts}:{number}: a line has to hold {{"prompt": "…"}} in UTF-8, with "system": "…" if wanted'
        with explained(told, f"it is {line[:60].decode(errors='replace')}"):
            row = {"system": None} | json.loads(line)
            require(
                len(row) == 2
                and row["prompt"].strip()
                and json.dumps(row, ensure_ascii=False).encode(),
                told,
            )
        message = {"role": "user", "content": row["prompt"]}
        body = {
            "model": options.claude_model,
            "max_tokens": options.claude_max_tokens,
            "messages": [message],
        }
        more = {"system": row["system"], "temperature": options.claude_temperature}
        body |= {name: value for name, value in more.items() if value is not None}
        asked.setdefault(
            hashlib.sha256(json.dumps(body).encode()).hexdigest(), (f"{prompts}:{number}", body)
        )
    return asked


def judge(answer: str) -> dict:
    """What to keep of an answer, which may be anything: its text if that can be used, a note if not or if it is cut,
    the answer as it came, and used, [input, output] tokens, if it tells."""
    row = {"text": "", "note": "no usable answer", "answer": answer}
    with suppress(ValueError, KeyError, TypeError, OverflowError):
        row["answer"] = message = json.loads(answer)
        row["used"] = [
            max(0, int(message["usage"][name])) for name in ("input_tokens", "output_tokens")
        ]
        text = "".join(block["text"] for block in message["content"] if block["type"] == "text")
        row |= (
            {"note": USABLE[message["stop_reason"]], "text": text} if text.encode().strip() else {}
        )
    return row


class Ledger:
    """The answers file. spent: [input, output] tokens of all it tells of; answers: key to (text, note). The key to the
    service, `secret`, is blotted out of every line."""

    def __init__(self, path: Path, secret: str):
        self.secret, self.lock, self.spent, self.answers = secret, threading.Lock(), [0, 0], {}
        self.file = JsonLines(path, self.count, hide=secret)

    def count(self, row: dict) -> None:
        self.spent = [sum(pair) for pair in zip(self.spent, row["spent"])]
        self.answers |= {row["key"]: (row["text"], row["note"])} if "text" in row else {}


def ask(client, ledger: Ledger, options: ClaudeConfig, key: str, where: str, body: dict) -> None:
    """Put one question, unless it is answered or the budget too small, and write down what comes. Raises UserError."""
    # No token stands for less than a byte; 200 are for what the service may wrap around a prompt.
    worst = len(json.dumps(body, ensure_ascii=False).encode()) + 200, body["max_tokens"]
    prices = [
        1 if p is None else p / 1e6
        for p in (options.claude_input_price, options.claude_output_price)
    ]

    def attempt(
        request, send
    ):  # the package's retries are around this; None instead of a response ends them
        with ledger.lock:
            cost = sum(p * (a + b) for p, a, b in zip(prices, ledger.spent, worst))
            if key in ledger.answers or cost > options.claude_budget:
                return None
            ledger.file.append({"key": key, "where": where, "spent": worst})
        response = send(request)  # raises where the connection is cut
        row = (
            judge(response.text())
            if response.status_code < 300
            else {"used": [0, 0], "error": response.text()}
        )
        row |= {"key": key, "request": body} | {
            name: response.headers.get(name) for name in ("request-id", "date")
        }
        with ledger.lock:
            ledger.file.append(
                row | {"spent": [a - b for a, b in zip(row.get("used", worst), worst)]}
            )
        return response if "error" in row else None

    try:
        client.with_options(middleware=[attempt]).post("/v1/messages", cast_to=object, body=body)
    except Exception as error:
        told = f"{where}: Claude did not answer ({first_line(error)})".replace(
            ledger.secret, "[hidden]"
        )
        raise UserError(
            f"{told}. Mend it and run the same command again: what was answered is kept"
        ) from None


def documents(prompts: Path, options: ClaudeConfig, answers: Path) -> Iterator[Document]:
    """The answers in the order of their prompts, whatever the order in which they come; those that are in the file
    `answers` already are taken from there. One that cannot be used is a document without text, with a note.

    Where the budget ends, this is told, and no more is asked. Raises UserError; ModuleNotFoundError without anthropic.
    """
    import anthropic

    secret = os.environ.get("ANTHROPIC_API_KEY", "")
    plain = secret.isascii() and secret.replace("-", "_").isidentifier()
    require(
        plain,
        "--source=claude:… needs your key, and nothing else, in the environment variable ANTHROPIC_API_KEY",
    )
    require(
        options.claude_budget,
        "--source=claude:… needs a limit to what it may cost: --claude_budget=N, see --help",
    )
    asked, ledger = questions(prompts, options), Ledger(answers, secret)
    client = anthropic.Anthropic(api_key=secret, max_retries=options.claude_retries)
    # Whoever wants no more documents wants no more questions put: closing `done` takes back what has not begun.
    with (
        ThreadPoolExecutor(max(1, options.claude_concurrency)) as pool,
        closing(
            pool.map(lambda key: ask(client, ledger, options, key, *asked[key]), asked)
        ) as done,
    ):
        for key, _ in zip(asked, done):
            if key in ledger.answers:
                yield Document(*ledger.answers[key], where=asked[key][0])
    left, paid = (
        sum(key not in ledger.answers for key in asked),
        "{:,} tokens in, {:,} out".format(*ledger.spent),
    )
    print(
        f"Claude: {len(asked) - left:,} answers, {paid}"
        + f"; {left:,} not asked: the budget is spent" * bool(left)
    )
