"""Text written by Claude, from a local server of the Messages API with the faults of a real one."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from corpus import claude
from nanoloop.options import UserError, explain
from tests.conftest import ROOT

pytest.importorskip("anthropic")
KEY = "sk-ant-test_0123456789-abcdef"


def message(
    text: str, used: tuple[int, int] = (20, 10), stop_reason: str | None = "end_turn"
) -> dict:
    usage = {"input_tokens": used[0], "output_tokens": used[1]}
    content = [{"type": "text", "text": text}]
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-haiku-5-5",
        "content": content,
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": usage,
    }


def answer_well(request: SimpleNamespace):
    """Answer as a service without faults does."""
    return 200, message(f"About {request.prompt}.")


class Service:
    """The Messages API on loopback.

    answer(request) returns (status, JSON or text[, headers]), or "cut" to cut the connection. A
    request has its prompt, body, headers and the number of times its prompt came before. asked:
    all requests.
    """

    def __init__(self):
        self.answer = answer_well
        self.asked = []
        self.lock = threading.Lock()
        self.at_once = 0
        self.most_at_once = 0
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                prompt = body["messages"][0]["content"]
                with service.lock:
                    times = sum(old.prompt == prompt for old in service.asked)
                    request = SimpleNamespace(
                        prompt=prompt, body=body, headers=self.headers, times=times
                    )
                    service.asked.append(request)
                    service.at_once += 1
                    service.most_at_once = max(service.most_at_once, service.at_once)
                try:
                    came = service.answer(request) if self.path == "/v1/messages" else (404, {})
                finally:
                    with service.lock:
                        service.at_once -= 1
                if came == "cut":
                    self.close_connection = True
                    self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{")
                    return
                status, content, *headers = came
                content = (content if isinstance(content, str) else json.dumps(content)).encode()
                self.send_response(status)
                always = {
                    "Content-Type": "application/json",
                    "Content-Length": len(content),
                    "request-id": "req_7",
                }
                for name, value in (always | (headers[0] if headers else {})).items():
                    self.send_header(name, str(value))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def prompts(self) -> list[str]:
        return [request.prompt for request in self.asked]


@pytest.fixture
def service(monkeypatch):
    service = Service()
    for name in (
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "http_proxy",
        "https_proxy",
        "all_proxy",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ANTHROPIC_BASE_URL", service.url)
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    monkeypatch.setattr("anthropic._base_client.INITIAL_RETRY_DELAY", 0.01)
    yield service
    service.server.shutdown()
    service.server.server_close()


@pytest.fixture
def write(tmp_path):
    """write(prompts, claude_budget=…): the answers, and the rows of the answers file after them."""

    def run(prompts: list, **options) -> SimpleNamespace:
        path, answers = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
        rows = [prompt if isinstance(prompt, dict) else {"prompt": prompt} for prompt in prompts]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = claude.ClaudeConfig(**({"claude_budget": 1e9, "claude_retries": 3} | options))
        answers_read = list(claude.ask_all(path, config, answers))
        return SimpleNamespace(
            documents=answers_read,
            texts=[answer.text for answer in answers_read],
            rows=read(answers),
        )

    run.answers = tmp_path / "answers.jsonl"
    return run


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def spent(rows: list[dict]) -> list[int]:
    """[input, output] tokens."""
    return [sum(row["spent"][i] for row in rows) for i in (0, 1)]


# --------------------------------------------------------------------------------------------------
# Answers become documents


def test_documents_come_in_the_order_of_the_prompts_whatever_the_order_of_the_answers(
    service, write
):
    def slow_first(request):
        time.sleep(0.15 if request.prompt == "topic 0" else 0.0)
        return answer_well(request)

    service.answer = slow_first
    prompts = [f"topic {i}" for i in range(12)]
    done = write(prompts, claude_concurrency=4)
    assert done.texts == [f"About {prompt}." for prompt in prompts]
    assert [document.where.rsplit(":", 1)[1] for document in done.documents] == [
        str(i + 1) for i in range(12)
    ]
    answered = [row["request"]["messages"][0]["content"] for row in done.rows if "text" in row]
    assert answered != prompts and sorted(answered) == sorted(
        prompts
    )  # the file has them in the order they came


def test_no_more_questions_are_in_the_air_than_allowed(service, write):
    service.answer = lambda request: time.sleep(0.02) or answer_well(request)
    write([f"topic {i}" for i in range(9)], claude_concurrency=3)
    assert service.most_at_once == 3


def test_the_request_is_what_the_options_and_the_prompt_say(service, write):
    options = dict(claude_model="claude-sonnet-5-5", claude_max_tokens=77, claude_temperature=0.0)
    write([{"prompt": "the sea", "system": "Be brief."}], **options)
    assert service.asked[0].body == {
        "model": "claude-sonnet-5-5",
        "max_tokens": 77,
        "temperature": 0.0,
        "system": "Be brief.",
        "messages": [{"role": "user", "content": "the sea"}],
    }
    write(["the sky"])
    assert service.asked[1].body.keys() == {
        "model",
        "max_tokens",
        "messages",
    }  # what is not given is not sent


def test_an_answer_is_kept_with_its_provenance(service, write):
    done = write(["the sea"])
    asked, answered = done.rows
    assert asked["key"] == answered["key"] and re.fullmatch("[0-9a-f]{64}", answered["key"])
    assert answered["request"] == service.asked[0].body and answered["text"] == "About the sea."
    assert answered["request-id"] == "req_7" and answered["date"].endswith("GMT")
    assert answered["answer"] == message(
        "About the sea."
    )  # the model's name, id, usage and stop reason among it
    assert answered["used"] == [20, 10] == spent(done.rows)


def test_an_answer_is_on_the_disk_before_it_is_used(service, write, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    for document in claude.ask_all(prompts, claude.ClaudeConfig(claude_budget=1e9), write.answers):
        assert document.text in [row.get("text") for row in read(write.answers)]


def test_a_default_model_that_the_package_knows():
    from typing import get_args

    from anthropic.types import model_param

    assert claude.ClaudeConfig().claude_model in get_args(get_args(model_param.ModelParam)[0])


# --------------------------------------------------------------------------------------------------
# Faults


FAULTS = {
    "rate limit": lambda request: (429, {"type": "error"}, {"retry-after-ms": 5}),
    "overloaded": lambda request: (529, {"type": "error"}, {"retry-after-ms": 5}),
    "server error": lambda request: (500, "<html>oops"),
    "cut connection": lambda request: "cut",
}


def test_what_may_pass_is_tried_again(service, write):
    service.answer = lambda request: (
        FAULTS[request.prompt](request) if request.times < 2 else answer_well(request)
    )
    done = write(list(FAULTS))
    assert done.texts == [f"About {fault}." for fault in FAULTS]
    assert sorted(service.prompts()) == sorted([*FAULTS] * 3)


def test_the_service_is_given_the_time_it_asks_for(service, write):
    moments = []

    def busy(request):
        moments.append(time.monotonic())
        return answer_well(request) if request.times else (429, {}, {"retry-after": "0.3"})

    service.answer = busy
    write(["the sea"])
    assert moments[1] - moments[0] >= 0.3


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_stays_ends_the_run_and_keeps_the_answers(service, write, fault):
    service.answer = lambda request: (
        FAULTS[fault](request) if request.prompt == "b" else answer_well(request)
    )
    with pytest.raises(
        UserError, match="prompts.jsonl:2: Claude did not answer .*run the same command again"
    ):
        write(["a", "b", "c"], claude_retries=2)
    assert service.prompts().count("b") == 3
    service.answer = answer_well
    assert write(["a", "b", "c"]).texts == ["About a.", "About b.", "About c."]
    assert service.prompts().count("a") == 1


@pytest.mark.parametrize("status", [400, 401])
def test_what_cannot_pass_is_not_tried_again(service, write, status):
    service.answer = lambda request: (
        status,
        {"type": "error", "error": {"type": "x", "message": "no such model"}},
    )
    with pytest.raises(UserError, match=f"{status}.*no such model"):
        write(["a"])
    assert len(service.asked) == 1 and spent(read(write.answers)) == [0, 0]


MALFORMED = {
    "no JSON": "<html>",
    "half of it": json.dumps(message("x"))[:-20],
    "another shape": [1, 2],
    "nothing": "null",
    "no usage": {k: v for k, v in message("x").items() if k != "usage"},
    "usage in words": message("x") | {"usage": {"input_tokens": "many", "output_tokens": None}},
    "endless usage": json.dumps(message("x")).replace("20", "1e999"),
    "no content": message("x") | {"content": None},
    "content without text": message("x") | {"content": [{"type": "text"}]},
    "empty text": message(" \n"),
    "half a character": message("\ud800"),
    "refusal": message("I would rather not.", stop_reason="refusal"),
    "unknown stop": message("x", stop_reason=None),
}


def test_malformed_answers_are_kept_and_not_used(service, write):
    """The pipeline counts the notes and reports them. They were paid for: nobody asks again."""
    service.answer = lambda request: (
        (200, MALFORMED[request.prompt]) if request.prompt in MALFORMED else answer_well(request)
    )
    prompts = ["a", *MALFORMED, "z"]
    done = write(prompts)
    assert done.texts == ["About a."] + [""] * len(MALFORMED) + ["About z."]
    notes = dict(zip(prompts, [document.note for document in done.documents]))
    assert notes == {"a": None, "z": None} | dict.fromkeys(MALFORMED, "no usable answer")
    assert sum("answer" in row for row in done.rows) == len(prompts)
    assert write(prompts).documents == done.documents and len(service.asked) == len(prompts)


@pytest.mark.parametrize("usage", [None, {"input_tokens": "many", "output_tokens": 3}])
def test_an_answer_without_its_usage_counts_with_the_worst_case(service, write, usage):
    service.answer = lambda request: (200, message("text") | {"usage": usage})
    assert spent(write(["a"]).rows) == worst(service.asked[0].body)


def test_a_usage_below_zero_gives_nothing_back(service, write):
    service.answer = lambda request: (200, message("text", (-(10**9), 10)))
    assert spent(write(["a"]).rows) == [0, 10]


def test_an_answer_that_was_cut_off_says_so(service, write):
    service.answer = lambda request: (200, message("Once upon", stop_reason="max_tokens"))
    assert [(d.text, d.note) for d in write(["a"]).documents] == [
        ("Once upon", "cut off at claude_max_tokens")
    ]


# --------------------------------------------------------------------------------------------------
# The budget


def worst(body: dict) -> list[int]:
    return [len(json.dumps(body, ensure_ascii=False).encode()) + 200, body["max_tokens"]]


@pytest.mark.parametrize("seed", range(5))
def test_the_budget_is_never_exceeded(service, write, seed):
    """The service bills any cost up to a request's worst case, also for answers that get lost."""
    rng = random.Random(seed)
    prices = rng.choice([(None, None), (1.0, 5.0), (3.0, 15.0)])
    cost = [1 if price is None else price / 1e6 for price in prices]
    bills, lock = [0.0], threading.Lock()

    def bill(request):
        with lock:
            fate, most = rng.random(), worst(request.body)
            used = [rng.randint(1, tokens) if rng.random() < 0.7 else tokens for tokens in most]
            if fate < 0.15:
                return 529, {}, {"retry-after-ms": 1}  # not billed
            bills.append(bills[-1] + used[0] * cost[0] + used[1] * cost[1])
            if fate < 0.3:
                return "cut"
            return (200, "?") if fate < 0.4 else (200, message("text", tuple(used)))

    service.answer = bill
    budget = sum(cost) * rng.randint(2000, 9000)
    options = dict(
        claude_input_price=prices[0],
        claude_output_price=prices[1],
        claude_max_tokens=rng.randint(50, 900),
    )
    for _ in range(3):  # started again, with what is left
        try:
            done = write(
                [f"topic {'of weight ' * rng.randint(0, 20)}{i}" for i in range(40)],
                claude_budget=budget,
                claude_concurrency=rng.randint(1, 8),
                claude_retries=2,
                **options,
            )
        except UserError:
            continue
        assert len(done.documents) < 120
    read_in, written = spent(read(write.answers))
    assert 0 < bills[-1] <= read_in * cost[0] + written * cost[1] + 1e-9 <= budget + 2e-9


def test_where_the_budget_ends_the_run_says_so_and_uses_what_it_has(service, write, capsys):
    cost = sum(
        worst(
            {
                "model": "claude-haiku-5-5",
                "max_tokens": 100,
                "messages": [{"role": "user", "content": "a"}],
            }
        )
    )
    service.answer = lambda request: (200, message("text", (200, 100)))
    done = write(
        list("abcdef"), claude_budget=cost + 2 * 300, claude_max_tokens=100, claude_concurrency=1
    )
    assert done.texts == ["text"] * 3 and service.prompts() == ["a", "b", "c"]
    assert (
        "Claude: 3 answers, 600 tokens in, 300 out; 3 not asked: the budget is spent"
        in capsys.readouterr().out
    )
    done = write(list("abcdef"), claude_budget=1e9, claude_max_tokens=100)
    assert done.texts == ["text"] * 6 and sorted(service.prompts()) == list("abcdef")


def test_a_budget_that_allows_nothing_asks_nothing(service, write):
    assert write(["a"], claude_budget=10).documents == [] and service.asked == []


def test_with_prices_the_budget_is_in_dollars(service, write):
    prices = dict(claude_input_price=2.0, claude_output_price=10.0, claude_max_tokens=1000)
    most = worst(
        {
            "model": "claude-haiku-5-5",
            "max_tokens": 1000,
            "messages": [{"role": "user", "content": "a"}],
        }
    )
    dollars = (most[0] * 2 + most[1] * 10) / 1e6
    assert write(["a"], claude_budget=dollars * 0.999, **prices).documents == []
    assert write(["a"], claude_budget=dollars * 1.001, **prices).texts == ["About a."]


def test_one_price_alone_is_not_taken_for_a_cheap_service(service, write):
    """A token without a price counts as a dollar, so the budget is never exceeded."""
    assert (
        write(["a"], claude_budget=5.0, claude_input_price=1.0).documents == []
        and service.asked == []
    )


def test_a_reader_that_stops_early_stops_the_questions(service, tmp_path, write):
    """Preparation does so at --max_documents: requests under way end, no other is paid for."""
    may_answer = threading.Event()

    def answer(request):
        if request.prompt != "topic 0":
            may_answer.wait()
        return answer_well(request)

    service.answer = answer
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(f'{{"prompt": "topic {i}"}}\n' for i in range(50)))
    config = claude.ClaudeConfig(claude_budget=1e9, claude_concurrency=2)
    answers = claude.ask_all(prompts, config, write.answers)
    assert next(answers).text == "About topic 0."
    closing = threading.Thread(target=answers.close)
    closing.start()
    may_answer.set()
    closing.join()
    assert len(service.asked) < 20


# --------------------------------------------------------------------------------------------------
# Killed and started again


def test_killed_in_the_middle_and_started_again_nothing_answered_is_asked_twice(
    service, write, tmp_path
):
    service.answer = lambda request: time.sleep(0.03) or answer_well(request)
    prompts = [f"topic {i}" for i in range(30)]
    (tmp_path / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts)
    )
    code = (
        "import sys; from pathlib import Path; from corpus import claude\n"
        "options = claude.ClaudeConfig(claude_budget=1e9, claude_concurrency=3, claude_retries=3)\n"
        "list(claude.ask_all(Path(sys.argv[1]), options, Path(sys.argv[2])))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "prompts.jsonl", write.answers], cwd=ROOT
    )
    while len(service.asked) < 10 and process.poll() is None:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(0.1)
    before = [
        line for line in write.answers.read_text().splitlines(keepends=True) if line.endswith("\n")
    ]
    answered = {
        json.loads(line)["request"]["messages"][0]["content"] for line in before if '"text"' in line
    }
    lost = len(service.asked) - len(
        answered
    )  # under way at the kill: perhaps charged, without an answer
    assert 0 < len(answered) < 30 and lost <= 3
    done = write(prompts)
    assert done.texts == [f"About {prompt}." for prompt in prompts]
    assert all(service.prompts().count(prompt) == 1 for prompt in answered)
    assert len(service.asked) == 30 + lost and spent(done.rows)[1] >= 10 * 30 + 1024 * lost


@pytest.mark.parametrize("cut", [1, -1])
def test_a_line_that_a_kill_cut_off_is_dropped_and_the_rest_kept(service, write, cut):
    write(["a", "b"])
    whole = write.answers.read_bytes()
    *kept, last = whole.splitlines(keepends=True)
    write.answers.write_bytes(b"".join(kept) + last[:cut])
    assert write(["a", "b"]).texts == ["About a.", "About b."]
    assert len(service.asked) == 3 and write.answers.read_bytes().startswith(b"".join(kept))


def test_an_answer_is_found_again_when_the_prompts_move(service, write):
    write(["a", "b"])
    assert write(["new", "b", "a"]).texts == ["About new.", "About b.", "About a."]
    assert sorted(service.prompts()) == ["a", "b", "new"]


def test_another_model_or_temperature_is_another_question(service, write):
    write(["a"])
    write(["a"], claude_temperature=0.5)
    write(["a"], claude_model="claude-sonnet-5-5")
    assert len(service.asked) == 3


def test_a_prompt_that_comes_twice_is_asked_once(service, write):
    assert write(["a", "b", "a"], claude_concurrency=3).texts == ["About a.", "About b."]


def test_a_file_of_something_else_is_not_taken_for_answers(service, write):
    write.answers.write_text("Once upon a time\nthere was")
    with pytest.raises(UserError, match="answers.jsonl is not a file of answers"):
        write(["a"])
    assert service.asked == [] and write.answers.read_text() == "Once upon a time\nthere was"


# --------------------------------------------------------------------------------------------------
# The key


def test_the_key_is_in_no_file_and_no_message_even_if_the_service_repeats_it(
    service, write, tmp_path, capfd
):
    service.answer = lambda request: (200, message(f"Your key is {KEY}."))
    assert write(["a"]).texts == ["Your key is [hidden]."]
    service.answer = lambda request: (400, {"error": {"message": f"bad key {KEY}"}})
    with pytest.raises(UserError) as caught:
        write(["b"])
    assert KEY in str(service.asked[0].headers)
    printed = capfd.readouterr()
    assert KEY not in str(caught.value) + printed.out + printed.err and "[hidden]" in str(
        caught.value
    )
    assert caught.value.__cause__ is None and caught.value.__suppress_context__
    for path in tmp_path.rglob("*"):
        assert KEY.encode() not in path.read_bytes(), path


@pytest.mark.parametrize("key", [None, "", " ", "sk-ant\nsecret", '"sk-ant"', "schlüssel"])
def test_without_a_usable_key_the_run_says_where_it_belongs_and_not_what_it_was(
    service, write, monkeypatch, key
):
    monkeypatch.delenv("ANTHROPIC_API_KEY") if key is None else monkeypatch.setenv(
        "ANTHROPIC_API_KEY", key
    )
    with pytest.raises(UserError, match="ANTHROPIC_API_KEY") as caught:
        write(["a"])
    assert not key or not key.strip() or key not in str(caught.value)
    assert service.asked == []


def test_the_key_is_no_option():
    assert not [
        name
        for name in claude.ClaudeConfig.__dataclass_fields__
        if "key" in name or "secret" in name
    ]


# --------------------------------------------------------------------------------------------------
# The user's mistakes


@pytest.mark.parametrize(
    "line",
    [
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
    ],
)
def test_a_bad_prompt_is_named_by_its_line_before_anything_is_paid(service, tmp_path, line):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_bytes(b'{"prompt": "good"}\n' + line + b'\n{"prompt": "good too"}\n')
    with pytest.raises(UserError, match=r'prompts.jsonl:2: a line must be {"prompt": "…"}'):
        list(
            claude.ask_all(
                prompts, claude.ClaudeConfig(claude_budget=1e9), tmp_path / "answers.jsonl"
            )
        )
    assert service.asked == []


def test_without_a_budget_nothing_is_asked(service, write):
    with pytest.raises(UserError, match="--claude_budget=N"):
        write(["a"], claude_budget=None)
    assert service.asked == []


def test_without_the_package_the_command_says_what_to_install(service, write, monkeypatch):
    monkeypatch.setitem(sys.modules, "anthropic", None)
    with pytest.raises(ModuleNotFoundError) as caught:
        write(["a"])
    assert explain(caught.value).endswith("pip install anthropic")


def test_importing_the_source_does_not_load_the_package():
    code = "import sys; from corpus import claude; print('anthropic' in sys.modules)"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
        ).stdout
        == "False\n"
    )
