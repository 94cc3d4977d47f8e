"""Text written by Claude, against a local server that has every fault a real service has."""

import json
import random
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest

from corpus import claude
from nanoloop.options import UserError, explain

KEY = "sk-ant-test_0123456789-abcdef"
MODEL = "claude-haiku-5-5"


def message(text: str, used=(20, 10), stop_reason: str | None = "end_turn") -> dict:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": MODEL,
        "content": [{"type": "text", "text": text}],
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": {"input_tokens": used[0], "output_tokens": used[1]},
    }


def answer_well(request: SimpleNamespace):
    return 200, message(f"About {request.prompt}.")


class Handler(BaseHTTPRequestHandler):
    """Answers as the Service says; its instances have it as an attribute of their class."""

    protocol_version = "HTTP/1.1"
    service: "Service"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.service.counted(body, self.headers) as request:
            is_known = self.path == "/v1/messages"
            answer = self.service.answer(request) if is_known else (404, {})
        if answer == "cut":
            self.close_connection = True
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{")
            return
        status, content, *headers = answer
        content = content if isinstance(content, str) else json.dumps(content)
        values = {"Content-Type": "application/json", "request-id": "req_7"}
        values |= {"Content-Length": len(content.encode())}
        self.send_response(status)
        for name, value in (values | (headers[0] if headers else {})).items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(content.encode())

    def log_message(self, *arguments):
        pass


class Service:
    """The Messages API on this machine.

    answer(request) returns (status, JSON or text[, headers]) or "cut". A request has its prompt,
    its body, its headers and the number of times its prompt came before. asked: all requests.
    """

    def __init__(self):
        self.answer = answer_well
        self.asked = []
        self.lock = threading.Lock()
        self.at_once = 0
        self.most_at_once = 0
        handler = type("Handler", (Handler,), {"service": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def counted(self, body: dict, headers):
        return CountedRequest(self, body, headers)

    def prompts(self) -> list[str]:
        return [request.prompt for request in self.asked]


class CountedRequest:
    """A request that counts as long as it is answered."""

    def __init__(self, service: Service, body: dict, headers):
        self.service = service
        prompt = body["messages"][0]["content"]
        self.request = SimpleNamespace(prompt=prompt, body=body, headers=headers)

    def __enter__(self) -> SimpleNamespace:
        service = self.service
        with service.lock:
            self.request.times = service.prompts().count(self.request.prompt)
            service.asked.append(self.request)
            service.at_once += 1
            service.most_at_once = max(service.most_at_once, service.at_once)
        return self.request

    def __exit__(self, *error):
        with self.service.lock:
            self.service.at_once -= 1


@pytest.fixture
def service(monkeypatch):
    pytest.importorskip("anthropic")  # an optional library, which takes seconds to import
    service = Service()
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("ANTHROPIC_BASE_URL", service.url)
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    # The package waits before it repeats.
    monkeypatch.setattr("anthropic._base_client.INITIAL_RETRY_DELAY", 0.001)
    yield service
    service.server.shutdown()
    service.server.server_close()


class Run:
    """run(prompts, claude_budget=…) returns the documents and the rows of the answers file."""

    def __init__(self, folder: Path):
        self.prompts = folder / "prompts.jsonl"
        self.answers = folder / "answers.jsonl"

    def write_prompts(self, prompts: list) -> None:
        rows = [prompt if isinstance(prompt, dict) else {"prompt": prompt} for prompt in prompts]
        self.prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def start(self, **options):
        defaults = {"claude_budget": 1e9, "claude_retries": 3}
        config = claude.ClaudeConfig(**(defaults | options))
        return claude.ask_all(self.prompts, config, self.answers)

    def rows(self) -> list[dict]:
        return [json.loads(line) for line in self.answers.read_text().splitlines()]

    def __call__(self, prompts: list, **options) -> SimpleNamespace:
        self.write_prompts(prompts)
        documents = list(self.start(**options))
        texts = [document.text for document in documents]
        return SimpleNamespace(documents=documents, texts=texts, rows=self.rows())


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(tmp_path)


def spent(rows: list[dict]) -> list[int]:
    """Return [input, output] tokens."""
    return [sum(row["spent"][index] for row in rows) for index in (0, 1)]


def body_of(prompt: str, max_tokens: int) -> dict:
    messages = [{"role": "user", "content": prompt}]
    return {"model": MODEL, "max_tokens": max_tokens, "messages": messages}


def worst_case(body: dict) -> list[int]:
    return [len(json.dumps(body, ensure_ascii=False).encode()) + 200, body["max_tokens"]]


# --------------------------------------------------------------------------------------------------
# Answers become documents


def test_documents_come_in_the_order_of_the_prompts_whatever_the_order_of_the_answers(service, run):
    """The first prompt is answered when all others are."""
    prompts = [f"topic {i}" for i in range(12)]
    others = threading.Semaphore(0)

    def answer_the_first_last(request):
        if request.prompt == "topic 0":
            for _ in prompts[1:]:
                others.acquire()
        others.release()
        return answer_well(request)

    service.answer = answer_the_first_last
    done = run(prompts, claude_concurrency=4)
    assert done.texts == [f"About {prompt}." for prompt in prompts]
    numbers = [document.where.rsplit(":", 1)[1] for document in done.documents]
    assert numbers == [str(i + 1) for i in range(12)]
    answered = [row["request"]["messages"][0]["content"] for row in done.rows if "text" in row]
    assert sorted(answered) == sorted(prompts)
    assert answered != prompts  # the file has them in the order they came


def test_as_many_questions_as_allowed_are_asked_at_once(service, run):
    """The first three wait for each other."""
    three = threading.Barrier(3)

    def answer_together(request):
        if request.prompt in ("topic 0", "topic 1", "topic 2"):
            three.wait()
        return answer_well(request)

    service.answer = answer_together
    run([f"topic {i}" for i in range(9)], claude_concurrency=3)
    assert service.most_at_once == 3


def test_the_request_is_what_the_options_and_the_prompt_say(service, run):
    options = {
        "claude_model": "claude-sonnet-5-5",
        "claude_max_tokens": 77,
        "claude_temperature": 0.0,
    }
    run([{"prompt": "the sea", "system": "Be brief."}], **options)
    assert service.asked[0].body == {
        "model": "claude-sonnet-5-5",
        "max_tokens": 77,
        "temperature": 0.0,
        "system": "Be brief.",
        "messages": [{"role": "user", "content": "the sea"}],
    }
    run(["the sky"])
    assert service.asked[1].body == body_of("the sky", 1024)  # what is not given is not sent


def test_an_answer_is_kept_with_its_provenance(service, run):
    asked, answered = run(["the sea"]).rows
    assert asked["key"] == answered["key"]
    assert re.fullmatch("[0-9a-f]{64}", answered["key"])
    assert answered["request"] == service.asked[0].body
    assert answered["text"] == "About the sea."
    assert answered["request-id"] == "req_7"
    assert answered["date"].endswith("GMT")
    # The name of the model, its id, usage and stop reason.
    assert answered["answer"] == message("About the sea.")
    assert answered["used"] == [20, 10] == spent([asked, answered])


def test_an_answer_is_on_the_disk_before_it_is_used(service, run):
    run.write_prompts(["a", "b"])
    for document in run.start():
        assert document.text in [row.get("text") for row in run.rows()]


def test_the_default_model_is_one_that_the_package_knows():
    model_param = pytest.importorskip("anthropic.types.model_param")
    known = get_args(get_args(model_param.ModelParam)[0])
    assert claude.ClaudeConfig().claude_model in known


# --------------------------------------------------------------------------------------------------
# Faults


FAULTS = {
    "rate limit": (429, {"type": "error"}, {"retry-after-ms": 1}),
    "overloaded": (529, {"type": "error"}, {"retry-after-ms": 1}),
    "server error": (500, "<html>oops"),
    "cut connection": "cut",
}


def test_a_fault_that_may_pass_is_tried_again(service, run):
    def fail_twice(request):
        return FAULTS[request.prompt] if request.times < 2 else answer_well(request)

    service.answer = fail_twice
    assert run(list(FAULTS)).texts == [f"About {fault}." for fault in FAULTS]
    assert sorted(service.prompts()) == sorted([*FAULTS] * 3)


def test_the_service_is_given_the_time_it_asks_for(service, run):
    moments = []

    def answer_later(request):
        moments.append(time.monotonic())
        return answer_well(request) if request.times else (429, {}, {"retry-after": "0.3"})

    service.answer = answer_later
    run(["the sea"])
    assert moments[1] - moments[0] >= 0.3


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_stays_ends_the_run_and_keeps_the_answers(service, run, fault):
    def fail_at_b(request):
        return FAULTS[fault] if request.prompt == "b" else answer_well(request)

    service.answer = fail_at_b
    message = "prompts.jsonl:2: Claude did not answer .*run the same command again"
    with pytest.raises(UserError, match=message):
        run(["a", "b", "c"], claude_retries=2)
    assert service.prompts().count("b") == 3
    service.answer = answer_well
    assert run(["a", "b", "c"]).texts == ["About a.", "About b.", "About c."]
    assert service.prompts().count("a") == 1


@pytest.mark.parametrize("status", [400, 401])
def test_a_fault_that_cannot_pass_is_not_tried_again(service, run, status):
    error = {"type": "error", "error": {"type": "x", "message": "no such model"}}
    service.answer = lambda request: (status, error)
    with pytest.raises(UserError, match=f"{status}.*no such model"):
        run(["a"])
    assert len(service.asked) == 1
    assert spent(run.rows()) == [0, 0]


def without_usage() -> dict:
    answer = message("x")
    del answer["usage"]
    return answer


MALFORMED = {
    "no JSON": "<html>",
    "half of it": json.dumps(message("x"))[:-20],
    "another shape": [1, 2],
    "nothing": "null",
    "no usage": without_usage(),
    "usage in words": message("x") | {"usage": {"input_tokens": "many", "output_tokens": None}},
    "endless usage": json.dumps(message("x")).replace("20", "1e999"),
    "no content": message("x") | {"content": None},
    "content without text": message("x") | {"content": [{"type": "text"}]},
    "empty text": message(" \n"),
    "half a character": message("\ud800"),
    "refusal": message("I would rather not.", stop_reason="refusal"),
    "unknown stop": message("x", stop_reason=None),
}


def test_malformed_answers_are_kept_and_not_used(service, run):
    """They were paid for: they are not asked for again."""

    def answer(request):
        known = MALFORMED.get(request.prompt)
        return (200, known) if known else answer_well(request)

    service.answer = answer
    prompts = ["a", *MALFORMED, "z"]
    done = run(prompts)
    assert done.texts == ["About a."] + [""] * len(MALFORMED) + ["About z."]
    notes = dict(zip(prompts, [document.note for document in done.documents]))
    assert notes == {"a": None, "z": None} | dict.fromkeys(MALFORMED, "no usable answer")
    assert sum("answer" in row for row in done.rows) == len(prompts)
    assert run(prompts).documents == done.documents
    assert len(service.asked) == len(prompts)


@pytest.mark.parametrize("usage", [None, {"input_tokens": "many", "output_tokens": 3}])
def test_an_answer_without_its_usage_counts_with_the_worst_case(service, run, usage):
    service.answer = lambda request: (200, message("text") | {"usage": usage})
    assert spent(run(["a"]).rows) == worst_case(service.asked[0].body)


def test_a_usage_below_zero_gives_nothing_back(service, run):
    service.answer = lambda request: (200, message("text", (-(10**9), 10)))
    assert spent(run(["a"]).rows) == [0, 10]


def test_an_answer_that_was_cut_off_says_so(service, run):
    service.answer = lambda request: (200, message("Once upon", stop_reason="max_tokens"))
    (document,) = run(["a"]).documents
    assert document.text == "Once upon"
    assert document.note == "cut off at claude_max_tokens"


# --------------------------------------------------------------------------------------------------
# The budget


class Biller:
    """Bills what it likes, up to the worst case, even for answers that get lost."""

    def __init__(self, rng: random.Random, prices: list[float]):
        self.rng = rng
        self.prices = prices
        self.total = 0.0
        self.lock = threading.Lock()

    def __call__(self, request):
        with self.lock:
            fate = self.rng.random()
            used = []
            for most in worst_case(request.body):
                used.append(most if self.rng.random() < 0.3 else self.rng.randint(1, most))
            if fate < 0.15:
                return 529, {}, {"retry-after-ms": 1}  # costs nothing
            self.total += sum(price * tokens for price, tokens in zip(self.prices, used))
        if fate < 0.3:
            return "cut"
        return 200, "?" if fate < 0.4 else message("text", used)


@pytest.mark.parametrize("seed", range(3))
def test_the_budget_is_never_exceeded(service, run, seed):
    rng = random.Random(seed)
    prices = rng.choice([(None, None), (1.0, 5.0), (3.0, 15.0)])
    cost = [1 if price is None else price / 1e6 for price in prices]
    biller = Biller(rng, cost)
    service.answer = biller
    budget = sum(cost) * rng.randint(2000, 9000)
    options = {
        "claude_input_price": prices[0],
        "claude_output_price": prices[1],
        "claude_max_tokens": rng.randint(50, 900),
        "claude_budget": budget,
        "claude_retries": 2,
    }
    for _ in range(3):  # each run has what the one before left
        prompts = [f"topic {'of weight ' * rng.randint(0, 20)}{i}" for i in range(30)]
        try:
            run(prompts, claude_concurrency=rng.randint(1, 8), **options)
        except UserError:
            continue
    recorded = sum(price * tokens for price, tokens in zip(cost, spent(run.rows())))
    assert 0 < biller.total <= recorded + 1e-9
    assert recorded <= budget + 1e-9


def test_where_the_budget_ends_the_run_says_so_and_uses_what_it_has(service, run, capsys):
    service.answer = lambda request: (200, message("text", (200, 100)))
    budget = sum(worst_case(body_of("a", 100))) + 2 * 300
    options = {"claude_max_tokens": 100, "claude_concurrency": 1}
    done = run(list("abcdef"), claude_budget=budget, **options)
    assert done.texts == ["text"] * 3
    assert service.prompts() == ["a", "b", "c"]
    expected = "Claude: 3 answers, 600 tokens in, 300 out; 3 not asked: the budget is spent"
    assert expected in capsys.readouterr().out
    larger = run(list("abcdef"), claude_budget=1e9, **options)
    assert larger.texts == ["text"] * 6
    assert service.prompts() == list("abcdef")


def test_a_budget_that_allows_nothing_asks_nothing(service, run):
    assert run(["a"], claude_budget=10).documents == []
    assert service.asked == []


def test_with_prices_the_budget_is_in_dollars(service, run):
    prices = {"claude_input_price": 2.0, "claude_output_price": 10.0, "claude_max_tokens": 1000}
    most_in, most_out = worst_case(body_of("a", 1000))
    dollars = (most_in * 2 + most_out * 10) / 1e6
    assert run(["a"], claude_budget=dollars * 0.999, **prices).documents == []
    assert run(["a"], claude_budget=dollars * 1.001, **prices).texts == ["About a."]


@pytest.mark.parametrize("price", ["claude_input_price", "claude_output_price"])
def test_with_one_price_the_budget_is_in_tokens(service, run, price):
    """So too little is bought, never too much, if dollars were meant."""
    most = sum(worst_case(body_of("a", 100)))
    options = {price: 1.0, "claude_max_tokens": 100}
    assert run(["a"], claude_budget=most - 1, **options).documents == []
    assert run(["a"], claude_budget=most, **options).texts == ["About a."]


def test_a_reader_that_stops_asks_no_more_questions(service, run):
    """As with --max_documents: what is asked is finished, the rest is not paid for."""

    def answer_slowly(request):
        time.sleep(0.1)
        return answer_well(request)

    service.answer = answer_slowly
    run.write_prompts([f"topic {i}" for i in range(50)])
    documents = run.start(claude_concurrency=2)
    assert next(documents).text == "About topic 0."
    documents.close()
    assert len(service.asked) < 20


# --------------------------------------------------------------------------------------------------
# Started again: tests/slow/test_claude.py kills a process


@pytest.mark.parametrize("cut", [1, -1])
def test_a_line_that_a_kill_cut_off_is_dropped_and_the_rest_is_kept(service, run, cut):
    run(["a", "b"])
    *kept, last = run.answers.read_bytes().splitlines(keepends=True)
    run.answers.write_bytes(b"".join(kept) + last[:cut])
    assert run(["a", "b"]).texts == ["About a.", "About b."]
    assert len(service.asked) == 3
    assert run.answers.read_bytes().startswith(b"".join(kept))


def test_an_answer_is_found_again_when_the_prompts_move(service, run):
    run(["a", "b"])
    assert run(["new", "b", "a"]).texts == ["About new.", "About b.", "About a."]
    assert sorted(service.prompts()) == ["a", "b", "new"]


def test_another_model_or_temperature_is_another_question(service, run):
    run(["a"])
    run(["a"], claude_temperature=0.5)
    run(["a"], claude_model="claude-sonnet-5-5")
    assert len(service.asked) == 3


def test_a_prompt_that_comes_twice_is_asked_once(service, run):
    assert run(["a", "b", "a"], claude_concurrency=3).texts == ["About a.", "About b."]
    assert sorted(service.prompts()) == ["a", "b"]


def test_another_file_is_not_taken_for_answers(service, run):
    run.answers.write_text("Once upon a time\nthere was")
    with pytest.raises(UserError, match="answers.jsonl is not a file of answers"):
        run(["a"])
    assert service.asked == []
    assert run.answers.read_text() == "Once upon a time\nthere was"


# --------------------------------------------------------------------------------------------------
# The key


def test_the_key_is_in_no_file_and_no_message_even_if_the_service_repeats_it(
    service, run, tmp_path, capfd
):
    service.answer = lambda request: (200, message(f"Your key is {KEY}."))
    assert run(["a"]).texts == ["Your key is [hidden]."]
    service.answer = lambda request: (400, {"error": {"message": f"bad key {KEY}"}})
    with pytest.raises(UserError) as raised:
        run(["b"])
    assert KEY in str(service.asked[0].headers)
    printed = capfd.readouterr()
    assert KEY not in str(raised.value) + printed.out + printed.err
    assert "[hidden]" in str(raised.value)
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__
    for path in tmp_path.rglob("*"):
        assert KEY.encode() not in path.read_bytes(), path


@pytest.mark.parametrize("key", [None, "", " ", "sk-ant\nsecret", '"sk-ant"', "schlüssel"])
def test_without_a_usable_key_the_run_names_its_variable_and_not_its_value(
    service, run, monkeypatch, key
):
    if key is None:
        monkeypatch.delenv("ANTHROPIC_API_KEY")
    else:
        monkeypatch.setenv("ANTHROPIC_API_KEY", key)
    with pytest.raises(UserError, match="ANTHROPIC_API_KEY") as raised:
        run(["a"])
    assert not (key or "").strip() or key not in str(raised.value)
    assert service.asked == []


def test_the_key_is_no_option():
    names = claude.ClaudeConfig.__dataclass_fields__
    assert not [name for name in names if "key" in name or "secret" in name]


# --------------------------------------------------------------------------------------------------
# The user's mistakes


BAD_LINES = [
    b"not JSON",
    b"[]",
    b'"text"',
    b"{}",
    b"",
    b'{"promt": "a"}',
    b'{"prompt": ""}',
    b'{"prompt": 3}',
    b'{"prompt": "a", "model": "x"}',
    b'{"prompt": "\xff"}',
    b'{"prompt": "\\ud800"}',
]


@pytest.mark.parametrize("line", BAD_LINES)
def test_a_bad_prompt_is_named_by_its_line_before_anything_is_paid(service, run, line):
    run.prompts.write_bytes(b'{"prompt": "good"}\n' + line + b'\n{"prompt": "good too"}\n')
    with pytest.raises(UserError, match=r'prompts.jsonl:2: a line must be {"prompt": "…"}'):
        list(run.start())
    assert service.asked == []


def test_without_a_budget_nothing_is_asked(service, run):
    with pytest.raises(UserError, match="--claude_budget=N"):
        run(["a"], claude_budget=None)
    assert service.asked == []


def test_without_the_package_the_command_says_what_to_install(service, run, monkeypatch):
    monkeypatch.setitem(sys.modules, "anthropic", None)
    with pytest.raises(ModuleNotFoundError) as raised:
        run(["a"])
    assert explain(raised.value).endswith("pip install anthropic")
