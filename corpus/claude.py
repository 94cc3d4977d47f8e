"""Synthetic text written by Claude: a document for each prompt of a JSONL file.

    {"prompt": "Tell a five-year-old why the sea is salty.", "system": "You write for children."}

It asks through the `anthropic` package, and asks a repeated prompt once. It costs money, so three
things are certain.

It makes no call before every prompt is checked.

It does not exceed the budget. Before each attempt it records the worst case as spent: every byte of
the request is a token, and the answer is as long as allowed. What the service says it used replaces
that; a refused attempt costs nothing; an attempt whose connection was cut may have been charged, so
its worst case stays. Requests under way count with their worst case too. That may leave a little of
the budget, which the next run uses.

It pays for no answer twice. All of this is in the answers file: a line before each attempt and one
for its result, each synced to the disk. The next run reads that file, asks only for what is
missing, and continues the count of what was spent. Each answer is there with its request (model,
prompt, parameters), a hash of it, and the identifiers, usage, stop reason and date of the service:
a corpus that knows where a text came from can drop it.

The package repeats requests, claude_retries times, after 408, 409, 429, every 5xx (529, overloaded,
is one), time-outs and cut connections. It waits as long as the service asks (retry-after), or 0.5,
1, 2, 4, 8, 8 … seconds, each less up to a quarter at random.
"""

import hashlib
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from corpus.documents import Document
from nanoloop.options import UserError, first_line, reading, require

# The note on a text with each stop reason. With any other (a refusal) the answer is not used.
USABLE = {"end_turn": None, "stop_sequence": None, "max_tokens": "cut off at claude_max_tokens"}


@dataclass(frozen=True)
class ClaudeConfig:
    """Options of --source=claude:PROMPTS.jsonl."""

    claude_model: str = "claude-haiku-5-5"  # answers the prompts of --source=claude:PROMPTS.jsonl
    claude_max_tokens: int = 1024  # longest answer; longer ones are cut off, and counted
    claude_temperature: float | None = None  # 0 to 1; None: not sent (some models refuse it)
    claude_budget: float | None = None  # spend no more; dollars with both prices, else tokens
    claude_input_price: float | None = None  # dollars per million input tokens
    claude_output_price: float | None = None  # dollars per million output tokens
    claude_concurrency: int = 4  # requests at the same time
    claude_retries: int = 8  # attempts after the first, when the service is busy or fails


class Ledger:
    """The answers file: a row of JSON a line, without the key to the service.

    spent: [input, output] tokens. answers: key of a request to (text, note). Raises UserError, and
    leaves the file as it is, if it contains something else.
    """

    def __init__(self, path: Path, secret: str):
        self.secret = secret
        self.lock = threading.Lock()
        self.spent = np.zeros(2, dtype=object)  # whole numbers of any size
        self.answers = {}
        self.file = open(path, "a+")
        self.file.seek(0)
        complete, newline, _ = self.file.read().rpartition("\n")
        with reading(f"{path} is not a file of answers", "move it away to begin a new one"):
            for line in complete.splitlines():
                self.count(json.loads(line))
        self.file.truncate(len(complete + newline))  # a kill may have cut off the last line

    def append(self, row):
        """Add a row; it is on the disk when this returns."""
        line = json.dumps(row).replace(self.secret, "[hidden]")
        print(line, file=self.file, flush=True)
        os.fsync(self.file.fileno())
        self.count(json.loads(line))

    def count(self, row):
        self.spent += row["spent"]
        if "text" in row:
            self.answers[row["key"]] = (row["text"], row["note"])


def read_questions(prompts, options):
    """Return the different prompts, in order: {key: (file:line, request)}.

    Raises UserError. The key is a hash of the request, which finds its answer wherever the prompt
    moves in the file.
    """
    questions = {}
    for number, line in enumerate(prompts.read_bytes().splitlines(), 1):
        where = f"{prompts}:{number}"
        message = (
            f'{where}: a line must be {{"prompt": "…"}} in UTF-8, with "system": "…" if needed'
        )
        with reading(message, f"got {line[:60].decode(errors='replace')}"):
            row = {"system": None} | json.loads(line)
            is_text = row["prompt"].strip() and json.dumps(row, ensure_ascii=False).encode()
            require(is_text and len(row) == 2, message)
        body = {
            "model": options.claude_model,
            "max_tokens": options.claude_max_tokens,
            "messages": [{"role": "user", "content": row["prompt"]}],
        }
        optional = {"system": row["system"], "temperature": options.claude_temperature}
        body |= {name: value for name, value in optional.items() if value is not None}
        key = hashlib.sha256(json.dumps(body).encode()).hexdigest()
        questions.setdefault(key, (where, body))
    return questions


def parse_answer(content):
    """Return what to record of an answer, which may be anything.

    answer: as it came. used: [input, output] tokens, if it says so. text and note: as in Document.
    """
    row = {"text": "", "note": "no usable answer", "answer": content}
    with suppress(ValueError, KeyError, TypeError, OverflowError):
        message = json.loads(content)
        row["answer"] = message
        usage = message["usage"]
        row["used"] = [max(0, int(usage[name])) for name in ("input_tokens", "output_tokens")]
        text = "".join(block["text"] for block in message["content"] if block["type"] == "text")
        if text.encode().strip():
            row["note"] = USABLE[message["stop_reason"]]
            row["text"] = text
    return row


def ask(client, ledger, options, key, question):
    """Ask a question and record the result, if it has no answer and the budget allows.

    Raises UserError if the service does not answer.
    """
    where, body = question
    # No token is shorter than a byte. 200 are for what the service may put around a prompt.
    worst = [len(json.dumps(body, ensure_ascii=False).encode()) + 200, body["max_tokens"]]
    prices = [options.claude_input_price, options.claude_output_price]
    if None in prices:
        prices = [1e6, 1e6]  # the budget is in tokens

    def attempt(request, send):
        """Send the request once; None instead of a response ends the repetition."""
        with ledger.lock:
            cost = np.dot(prices, ledger.spent + worst) / 1e6
            if key in ledger.answers or cost > options.claude_budget:
                return None
            ledger.append({"key": key, "where": where, "spent": worst})
        response = send(request)  # raises if the connection is cut
        if response.status_code < 300:
            row = parse_answer(response.text())
        else:
            row = {"used": [0, 0], "error": response.text()}
        row |= {"key": key, "request": body}
        row |= {name: response.headers.get(name) for name in ("request-id", "date")}
        # The row before counted the worst case.
        row["spent"] = np.subtract(row.get("used", worst), worst).tolist()
        with ledger.lock:
            ledger.append(row)
        return response if "error" in row else None

    try:
        client.with_options(middleware=[attempt]).post("/v1/messages", cast_to=object, body=body)
    except Exception as error:
        reason = first_line(error).replace(ledger.secret, "[hidden]")
        hint = "run the same command again when the cause is gone: it keeps the answers"
        raise UserError(f"{where}: Claude did not answer ({reason}): {hint}") from None


def ask_all(prompts: Path, options: ClaudeConfig, answers: Path):
    """Yield the answers as Documents, in the order of their prompts.

    Those in the file `answers` cost nothing. Where the budget ends, it says so and asks no more.
    Raises UserError; ModuleNotFoundError without anthropic.
    """
    import anthropic

    secret = os.environ.get("ANTHROPIC_API_KEY", "")
    is_key = secret.isascii() and secret.replace("-", "_").isidentifier()
    require(
        is_key, "--source=claude:… needs the environment variable ANTHROPIC_API_KEY, a plain key"
    )
    message = "--source=claude:… needs a limit to its cost: type --claude_budget=N (see --help)"
    require(options.claude_budget, message)
    questions = read_questions(prompts, options)
    ledger = Ledger(answers, secret)
    client = anthropic.Anthropic(api_key=secret, max_retries=options.claude_retries)
    pool = ThreadPoolExecutor(max(1, options.claude_concurrency))
    answered = pool.map(partial(ask, client, ledger, options), questions, questions.values())
    try:
        for (key, (where, _)), _ in zip(questions.items(), answered):
            if key in ledger.answers:
                yield Document(*ledger.answers[key], where)
    finally:
        # A reader that wants no more answers asks no more questions.
        pool.shutdown(cancel_futures=True)
    missing = sum(key not in ledger.answers for key in questions)
    tokens_in, tokens_out = ledger.spent
    summary = (
        f"Claude: {len(questions) - missing:,} answers, {tokens_in:,} tokens in, {tokens_out:,} out"
    )
    if missing:
        summary += f"; {missing:,} not asked: the budget is spent"
    print(summary)
