"""`lit_pretrain serve`: OpenAI's interface over real HTTP."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lit_pretrain.__main__ import main
from lit_pretrain.chat.render import Renderer
from lit_pretrain.chat.template import find_template
from lit_pretrain.tokenizer.tokenizer import Tokenizer

pytest.importorskip("fastapi", reason="needs the serve extra")
pytest.importorskip("uvicorn", reason="needs the serve extra")
ROOT = Path(__file__).parents[3]
KEY = {"Authorization": "Bearer secret"}
HELLO = [{"role": "user", "content": "Hello"}]


class Server:
    """A running server."""

    def __init__(self, run: Path, *options: str) -> None:
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "lit_pretrain",
                "serve",
                f"--run={run}",
                "--port=0",
                "--device=cpu",
                *options,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ
            | {
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            },
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)/v1", line)
        assert found, line + self.process.communicate()[1]
        self.port = int(found[1])

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def ask(self, path: str, body: Any = None, *, headers: dict[str, str] = KEY) -> tuple[int, Any]:
        connection = self.connect()
        try:
            data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            connection.request(
                "GET" if data is None else "POST",
                path,
                data,
                {"Content-Type": "application/json", **headers},
            )
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def chat(self, **fields: Any) -> tuple[int, Any]:
        return self.ask("/v1/chat/completions", {"model": "talker", "messages": HELLO, **fields})

    def stream(self, path: str, **fields: Any) -> list[Any]:
        connection = self.connect()
        try:
            body = json.dumps({"model": "talker", "stream": True, **fields}).encode()
            connection.request("POST", path, body, {"Content-Type": "application/json", **KEY})
            response = connection.getresponse()
            assert (response.status, response.headers["content-type"]) == (
                200,
                "text/event-stream; charset=utf-8",
            )
            events = response.read().decode().split("\n\n")
        finally:
            connection.close()
        assert events[-2:] == ["data: [DONE]", ""]
        return [json.loads(event.removeprefix("data: ")) for event in events[:-2]]


@pytest.fixture(scope="module")
def server(chat_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    key = tmp_path_factory.mktemp("key") / "key"
    key.write_text("secret\n")
    server = Server(
        chat_run, f"--api_key_file={key}", "--max_body_bytes=200000", "--max_replies=128",
        "--max_request_tokens=12800",
    )  # fmt: skip
    yield server
    server.process.terminate()
    out, err = server.process.communicate(timeout=30)
    assert server.process.returncode == 0, err
    assert out.splitlines()[-1] == "stopped"
    assert "Traceback" not in err


@pytest.fixture(scope="module")
def renderer(dataset: Path) -> Renderer:
    return Renderer(Tokenizer.load(dataset), find_template("chatml", dataset))


def test_models(server: Server) -> None:
    status, listed = server.ask("/v1/models")
    assert status == 200
    assert listed["object"] == "list"
    assert [card["id"] for card in listed["data"]] == ["talker"]
    assert server.ask("/v1/models/talker") == (200, listed["data"][0])
    assert server.ask("/v1/models/other")[0] == 404


def test_a_chat(server: Server, renderer: Renderer) -> None:
    status, answer = server.chat(seed=3, max_tokens=9)
    assert status == 200, answer
    assert answer["object"] == "chat.completion"
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["role"] == "assistant"
    usage = answer["usage"]
    assert usage["prompt_tokens"] == len(renderer.prompt(HELLO))
    assert (usage["completion_tokens"], usage["total_tokens"]) == (9, usage["prompt_tokens"] + 9)
    events = server.stream(
        "/v1/chat/completions",
        messages=HELLO,
        seed=3,
        max_completion_tokens=9,
        stream_options={"include_usage": True},
    )
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    text = "".join(event["choices"][0]["delta"].get("content", "") for event in events[:-1])
    assert text == choice["message"]["content"]
    assert [event["choices"][0]["finish_reason"] for event in events[-3:-1]] == [None, "length"]
    assert (events[-1]["choices"], events[-1]["usage"]["total_tokens"]) == (
        [],
        usage["total_tokens"],
    )
    assert all(
        event["object"] == "chat.completion.chunk" and event["usage"] is None
        for event in events[:-1]
    )
    # the second of two turns reads only what is new
    turn = [
        *HELLO,
        {"role": "assistant", "content": text},
        {"role": "user", "content": [{"type": "text", "text": "And?"}]},
    ]
    assert (
        server.chat(messages=turn, max_tokens=1)[1]["usage"]["prompt_tokens_details"][
            "cached_tokens"
        ]
        >= usage["prompt_tokens"]
    )
    assert server.chat(seed=4, max_tokens=9)[1]["choices"] != answer["choices"]
    assert (
        server.chat(temperature=0, max_tokens=9)[1]["choices"]
        == server.chat(temperature=0, max_tokens=9, seed=9)[1]["choices"]
    )
    instructed = [{"role": "developer", "content": "Be brief."}, *HELLO]
    as_system = [{"role": "system", "content": "Be brief."}, *HELLO]
    assert server.chat(messages=instructed, max_tokens=1)[1]["usage"]["prompt_tokens"] == len(
        renderer.prompt(as_system)
    )


def test_completions(server: Server, renderer: Renderer) -> None:
    tokenizer = renderer.tokenizer
    ask = {"model": "talker", "prompt": "The fox", "seed": 0}
    status, answer = server.ask("/v1/completions", ask)
    assert status == 200, answer
    assert answer["usage"]["completion_tokens"] == 16  # OpenAI's default
    text = answer["choices"][0]["text"]
    ids = [tokenizer.bos_id, *tokenizer.encode("The fox")]
    assert server.ask("/v1/completions", ask | {"prompt": ids})[1]["choices"] == answer["choices"]
    cut = server.ask("/v1/completions", ask | {"stop": text[3:5]})[1]["choices"][0]
    assert (cut["text"], cut["finish_reason"]) == (text[: text.index(text[3:5])], "stop")
    several = server.ask(
        "/v1/completions", ask | {"prompt": ["The fox", "An owl"], "n": 2, "max_tokens": 3}
    )[1]
    assert [choice["index"] for choice in several["choices"]] == [0, 1, 2, 3]
    assert several["usage"]["prompt_tokens"] == len(ids) + 1 + len(tokenizer.encode("An owl"))
    assert several["usage"]["completion_tokens"] == 12
    streamed = server.stream("/v1/completions", prompt="The fox", seed=0)
    assert "".join(event["choices"][0]["text"] for event in streamed) == text


@pytest.mark.parametrize(
    ("fields", "status", "param", "code", "message"),
    [
        ({"model": "gpt-9"}, 404, "model", "model_not_found", "has 'talker'"),
        ({"max_tokens": 500}, 400, "max_tokens", "context_length_exceeded", "reads 128 tokens"),
        (
            {"messages": [{"role": "user", "content": "fox " * 500}]},
            400,
            "messages",
            "context_length_exceeded",
            "shorten it",
        ),
        ({"messages": []}, 400, "messages", "invalid_value", "at least 1"),
        (
            {"messages": [{"role": "king", "content": "x"}]},
            400,
            "messages",
            "invalid_value",
            "developer",
        ),
        (
            {"messages": [*HELLO, {"role": "system", "content": "x"}]},
            400,
            "messages",
            None,
            "message 2",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            400,
            "messages",
            "invalid_value",
            "text",
        ),
        ({"temperature": -1}, 400, "temperature", "invalid_value", "greater than or equal to 0"),
        ({"n": 0}, 400, "n", "invalid_value", "greater than or equal to 1"),
        ({"tools": [{"type": "function"}]}, 400, "tools", "unsupported_parameter", "not supported"),
        ({"logprobs": True}, 400, "logprobs", "unsupported_parameter", "not supported"),
        ({"temprature": 1}, 400, "temprature", "unknown_parameter", "temprature"),
    ],
)
def test_refusals(
    server: Server, fields: dict[str, Any], status: int, param: str, code: str, message: str
) -> None:
    got, answer = server.chat(**fields)
    error = answer["error"]
    assert (got, error["param"], error["code"]) == (status, param, code), answer
    assert message in error["message"]
    assert error["type"] == ("not_found_error" if status == 404 else "invalid_request_error")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"role": "user"}, "content"),
        ({"role": "user", "content": None}, "messages"),
        ({"role": "user", "content": []}, "messages"),
        ({"role": "user", "content": 7}, "messages"),
        ({"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}, "tool_calls"),
        ({"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}, "tool_calls"),
        ({"role": "assistant", "content": "x", "function_call": {"name": "f"}}, "function_call"),
        ({"role": "assistant", "content": "x", "refusal": "no"}, "refusal"),
        ({"role": "assistant", "content": "x", "audio": {"id": "a"}}, "audio"),
        ({"role": "assistant", "content": "x", "annotations": [{}]}, "annotations"),
        ({"role": "tool", "content": "x", "tool_call_id": "1"}, "tool_call_id"),
        ({"role": "user", "content": "x", "name": "Ann"}, "name"),
        ({"role": "user", "content": "x", "weight": 0}, "weight"),
        ({"role": "user", "content": [{"type": "text", "text": "x", "cache": 1}]}, "cache"),
        ({"role": "user", "content": [{"type": "text"}]}, "text"),
    ],
)
def test_a_message_is_refused_that_is_not_read_whole(
    server: Server, fields: dict[str, Any], param: str
) -> None:
    status, answer = server.chat(messages=[fields], max_tokens=1)
    assert (status, answer["error"]["param"]) == (400, param), answer


@pytest.mark.parametrize(
    "fields",
    [
        {"logprobs": 0},
        {"echo": True},
        {"store": True},
        {"verbosity": "low"},
        {"service_tier": "priority"},
        {"reasoning_effort": "high"},
        {"stream_options": {"include_usage": True}},
        {"stream": True, "stream_options": {"include_obfuscation": True}},
        {"stream": True, "stream_options": {"other": 1}},
        {"max_tokens": 1, "max_completion_tokens": 2},
        {"stop": ""},
        {"stop": ["a", ""]},
        {"temperature": "1"},
        {"n": True},
        {"seed": 1.5},
    ],
)
def test_a_field_is_refused_that_would_be_ignored(server: Server, fields: dict[str, Any]) -> None:
    status, answer = server.chat(**fields)
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error"), answer
    assert any(name in answer["error"]["message"] for name in [*fields, "include_obfuscation"])


def test_an_answer_can_be_sent_back_with_all_its_fields(server: Server) -> None:
    _, answer = server.chat(max_tokens=1)
    message = answer["choices"][0]["message"]
    spelt_out = {"annotations": [], "audio": None, "function_call": None, "tool_calls": None}
    status, second = server.chat(messages=[*HELLO, message | spelt_out, *HELLO], max_tokens=1)
    assert status == 200, second


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"model": "talker", "model": "other"}', "the key 'model' is given twice"),
        (b'{"model": "talker", "user": "\\ud800"}', "surrogate"),
        (b'{"model": "caf\xe9"}', "utf-8"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_body_is_refused_that_is_not_strict_json(server: Server, body: bytes, said: str) -> None:
    status, answer = server.ask("/v1/chat/completions", body)
    assert status == 400
    assert said in answer["error"]["message"]


def test_health_needs_no_key(server: Server) -> None:
    assert server.ask("/health", headers={}) == (200, {"status": "ok"})


def test_the_key_comes_before_everything(server: Server) -> None:
    """Neither a page nor a body is looked at without it."""
    for path in ("/docs", "/redoc", "/openapi.json", "/v1/models", "/nowhere"):
        assert server.ask(path, headers={})[0] == 401, path
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        # The body is announced and never sent.
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n"
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 401")


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil", ""])
def test_requests_for_another_host(server: Server, host: str) -> None:
    status, answer = server.ask("/v1/models", headers=KEY | {"Host": host})
    assert (status, answer["error"]["code"]) == (403, "wrong_host")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:80"])
def test_requests_for_this_host(server: Server, host: str) -> None:
    assert server.ask("/v1/models", headers=KEY | {"Host": host})[0] == 200


def test_limits_of_a_request(server: Server) -> None:
    large = b'{"model": "talker", "prompt": "' + b"a" * 200_000 + b'"}'
    status, answer = server.ask("/v1/completions", large)
    assert (status, answer["error"]["code"]) == (413, "body_too_large")
    connection = server.connect()
    pieces = (large[i : i + 1000] for i in range(0, len(large), 1000))
    connection.request("POST", "/v1/completions", pieces, KEY, encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()
    for fields, code in (
        ({"prompt": ["a"] * 129}, "too_many_replies"),
        ({"prompt": [[1]] * 129}, "too_many_replies"),
        ({"prompt": ["a"] * 3, "n": 43}, "too_many_replies"),
        ({"prompt": "a", "n": 128, "max_tokens": 101}, "too_many_tokens"),
    ):
        status, answer = server.ask("/v1/completions", {"model": "talker", **fields})
        assert (status, answer["error"]["code"]) == (400, code), answer
    assert server.chat(n=128, max_tokens=101)[1]["error"]["code"] == "too_many_tokens"


def test_refusals_of_other_kinds(server: Server) -> None:
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Bearer sécret".encode().decode("latin-1")},
    ):
        status, answer = server.ask("/v1/models", headers=headers)
        assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
    assert server.ask("/v1/chat/completions", b"{no json")[1]["error"]["message"].startswith(
        "the body is not JSON"
    )
    assert server.ask("/v2/models")[0] == 404
    assert server.ask("/v1/models", {})[0] == 405
    for prompt, message in (
        ([], "prompt is empty"),
        ([512], "token id 512"),
        ([[1], []], "prompt is empty"),
    ):
        status, answer = server.ask("/v1/completions", {"model": "talker", "prompt": prompt})
        assert (status, message in answer["error"]["message"]) == (400, True)
    assert (
        server.chat(
            tools=None, logprobs=False, frequency_penalty=0.0, user="me", store=False, max_tokens=1
        )[0]
        == 200
    )


def test_requests_wait_their_turn_and_one_that_left_holds_nobody_up(server: Server) -> None:
    gone = server.connect()
    body = json.dumps(
        {"model": "talker", "prompt": "The fox", "stream": True, "n": 128, "max_tokens": 100}
    ).encode()
    gone.request("POST", "/v1/completions", body, {"Content-Type": "application/json", **KEY})
    gone.getresponse().read(10)
    gone.close()  # 12,800 tokens were to come
    alone = [server.chat(seed=seed, max_tokens=5)[1]["choices"] for seed in range(4)]
    together: list[Any] = [None] * 4

    def ask(seed: int) -> None:
        together[seed] = server.chat(seed=seed, max_tokens=5)[1]["choices"]

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert together == alone


@pytest.mark.slow
def test_it_stops_in_the_middle_of_replies(chat_run: Path) -> None:
    server = Server(chat_run)
    connection = server.connect()
    long = {"model": "talker", "prompt": "The fox", "n": 128, "max_tokens": 100}
    connection.request(
        "POST",
        "/v1/completions",
        json.dumps(long | {"stream": True}).encode(),
        {"Content-Type": "application/json"},
    )
    response = connection.getresponse()
    begun = response.read(10)
    waiting: list[Any] = []
    thread = threading.Thread(target=lambda: waiting.append(server.ask("/v1/completions", long)))
    thread.start()
    time.sleep(0.5)
    server.process.send_signal(signal.SIGINT)
    ended = (begun + response.read()).decode().split("\n\n")
    thread.join(30)
    out, err = server.process.communicate(timeout=30)
    assert (server.process.returncode, out.splitlines()[-1]) == (0, "stopped"), err
    assert "Traceback" not in err
    told = {
        "message": "the server is stopping",
        "type": "server_error",
        "param": None,
        "code": None,
    }
    assert json.loads(ended[-2].removeprefix("data: ")) == {"error": told}
    assert waiting == [(503, {"error": told})]
    connection.close()


def test_what_cannot_be_served(chat_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for options, message in (
            ([f"--port={port}"], f"cannot listen on port {port}"),
            (["--host=0.0.0.0"], "give an --api_key_file"),
            (["--api_key=x"], "can read a command line"),
            (["--api-key", "x"], "can read a command line"),
            (["--api_key_file=nowhere"], "nowhere does not exist"),
            (["--max_replies=0"], "must be at least 1"),
            (["--port=70000"], "between 0 and 65535"),
            ([f"--api_key_file={os.devnull}"], "is empty"),
            (["--port=0", "--template=nope"], "data.template='nope'"),
        ):
            assert main(["serve", f"--run={chat_run}", *options]) == 2, options
            assert message in capsys.readouterr().err
