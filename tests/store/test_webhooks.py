"""Webhooks: told of every end of a job once it is sure, signed, again where it fails, and of nobody else's."""

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from openai import OpenAI

from onsa.programs.jobs.telling import sent, tell
from onsa.spec.errors import DataError
from onsa.store.database import Database
from onsa.store.job import Order, Status
from onsa.store.jobs import Jobs
from onsa.store.keys import Keys
from onsa.store.webhooks import FIRST_WAIT_S, MOST_ATTEMPTS, Webhooks

ORDER = Order("smollm2-135m", "file-x", {"type": "supervised"}, 7)


@pytest.fixture
def database() -> Iterator[Database]:
    with Database() as opened:
        yield opened


class Receiver:
    """An address that remembers what it was told; the first answers may be others than 200."""

    def __init__(self, *answers: int) -> None:
        self.heard: list[tuple[dict[str, str], bytes]] = []
        left = list(answers)
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.heard.append((dict(self.headers), body))
                self.send_response(left.pop(0) if left else 200)
                self.send_header("location", "/elsewhere")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                return

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hook"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def test_the_client_verifies_what_it_is_told(database: Database) -> None:
    project, receiver = Keys(database).project(), Receiver()
    made = Webhooks(database).create(project, receiver.url)
    jobs, webhooks = Jobs(database), Webhooks(database)
    cancelled = jobs.create(project, ORDER)
    jobs.cancel(project, cancelled.id)
    done = jobs.create(project, ORDER)
    lease = jobs.take(done, Status.RUNNING)
    assert lease is not None
    jobs.end(lease, Status.SUCCEEDED)
    over = threading.Event()
    thread = threading.Thread(target=tell, args=(webhooks, over))
    thread.start()
    deadline = time.monotonic() + 20
    while webhooks.due() and time.monotonic() < deadline:
        time.sleep(0.05)
    over.set()
    thread.join()
    receiver.close()
    client = OpenAI(api_key="-", webhook_secret=made.secret)
    told = [client.webhooks.unwrap(body.decode(), headers) for headers, body in receiver.heard]
    client.close()
    assert [(one.type, one.data.id) for one in told] == [  # type: ignore[union-attr]
        ("fine_tuning.job.cancelled", cancelled.id),
        ("fine_tuning.job.succeeded", done.id),
    ]


@pytest.mark.parametrize("answer", [500, 404, 302])
def test_what_is_not_taken_is_told_again_later(
    database: Database, answer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, receiver, webhooks = Keys(database).project(), Receiver(answer), Webhooks(database)
    webhooks.create(project, receiver.url)
    with database.writing() as connection:
        webhooks.note(connection, project, "fine_tuning.job.failed", "ftjob-x")
    (first,) = webhooks.due()
    assert not sent(first)
    webhooks.failed(first)
    assert webhooks.due() == []
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + FIRST_WAIT_S + 1)
    (again,) = webhooks.due()
    assert (again.id, again.attempts) == (first.id, 1)
    assert sent(again)
    assert len(receiver.heard) == 2  # a redirect is not followed
    receiver.close()


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/nobody", "http://127.0.0.1:port/"])
def test_after_many_times_it_is_given_up(database: Database, url: str) -> None:
    project, webhooks = Keys(database).project(), Webhooks(database)
    webhooks.create(project, url)
    with database.writing() as connection:
        webhooks.note(connection, project, "fine_tuning.job.failed", "ftjob-x")
    (delivery,) = webhooks.due()
    assert not sent(delivery)
    webhooks.failed(replace(delivery, attempts=MOST_ATTEMPTS - 1))
    assert webhooks.due() == []


def test_other_projects_are_not_told(database: Database) -> None:
    keys, webhooks = Keys(database), Webhooks(database)
    webhooks.create(keys.project("other"), "http://127.0.0.1:9/nobody")
    job = Jobs(database).create(keys.project(), ORDER)
    Jobs(database).cancel(keys.project(), job.id)
    assert webhooks.due() == []


def test_an_address_is_one_of_http(database: Database) -> None:
    with pytest.raises(DataError, match="file:///etc/passwd"):
        Webhooks(database).create(Keys(database).project(), "file:///etc/passwd")


def test_what_is_told_names_the_job_alone(database: Database) -> None:
    project, webhooks = Keys(database).project(), Webhooks(database)
    webhooks.create(project, "http://127.0.0.1:9/nobody")
    job = Jobs(database).create(project, ORDER)
    Jobs(database).cancel(project, job.id)
    (delivery,) = webhooks.due()
    said = json.loads(delivery.body)
    assert (said["object"], said["type"], said["data"]) == ("event", "fine_tuning.job.cancelled", {"id": job.id})
    assert said["id"] == delivery.id
