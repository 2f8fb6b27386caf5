"""A judge behind an OpenAI-compatible API: what it is asked, what is made of its words, and what goes wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import pytest

from onsa.programs.endpoint import Endpoint
from onsa.programs.feedback import Candidate
from onsa.programs.judge import open_judge
from onsa.spec.errors import MachineError

CANDIDATE = Candidate([{"role": "user", "content": "hello"}], "user: hello", ("good", "bad"))


@contextmanager
def served(answer: Callable[[dict[str, Any]], tuple[int, Any]]) -> Iterator[tuple[str, list[Any]]]:
    """A server on the loopback that answers so, and what it was asked: path, key and body."""
    asked: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.path, self.headers.get("Authorization"), body))
            status, said = answer(body)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(said if isinstance(said, bytes) else json.dumps(said).encode())

        def log_message(self, *_: Any) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def reply(text: str) -> tuple[int, Any]:
    return 200, {"choices": [{"message": {"role": "assistant", "content": text}}]}


def prefers_good(body: dict[str, Any]) -> tuple[int, Any]:
    (message,) = body["messages"]
    return reply("Answer A." if message["content"].index("good") < message["content"].index("bad") else "B")


def test_both_orders_are_asked_and_what_was_said_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONSA_JUDGE_KEY", "secret")
    with served(prefers_good) as (url, asked):
        judge = open_judge(f"some-model@{url}", "be kind")
        likely, notes = judge.first(CANDIDATE)
    assert likely == 1.0 and notes == {"a_in_both_orders": [1.0, 0.0], "said": ["Answer A.", "B"]}
    assert [(path, key) for path, key, _ in asked] == [("/v1/chat/completions", "Bearer secret")] * 2
    assert all(body["model"] == "some-model" and "be kind" in body["messages"][0]["content"] for *_, body in asked)
    assert "secret" not in judge.name and "/" not in judge.name


@pytest.mark.parametrize(("said", "likely"), [("A", 0.5), ("neither", 0.5), ("", 0.5)])
def test_what_goes_by_place_or_says_nothing_decides_nothing(said: str, likely: float) -> None:
    with served(lambda _: reply(said)) as (url, asked):
        assert open_judge(f"m@{url}").first(CANDIDATE)[0] == likely
    assert asked[0][1] is None, "no key, no header"


@pytest.mark.parametrize(
    "answer", [(401, {"error": {"message": "no key"}}), (200, {"choices": []}), (200, b"<html>"), (200, [])]
)
def test_what_goes_wrong_names_the_endpoint(answer: tuple[int, Any]) -> None:
    with served(lambda _: answer) as (url, _), pytest.raises(MachineError) as caught:
        open_judge(f"m@{url}").first(CANDIDATE)
    assert caught.value.problems[0].code == "endpoint-fails" and url in str(caught.value)


def test_one_that_is_not_there() -> None:
    with pytest.raises(MachineError, match=r"127\.0\.0\.1:9"):
        open_judge("m@http://127.0.0.1:9/v1").first(CANDIDATE)


def test_references() -> None:
    assert Endpoint.of("org/model:x@https://host/v1/") == Endpoint("org/model:x", "https://host/v1")
    assert Endpoint.of("latest") is None and Endpoint.of("a@b") is None
