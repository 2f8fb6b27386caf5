"""The HTTP API as OpenAI's own client sees it, over a socket; the models' process is played, but for its words."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import openai
import pytest
import uvicorn
from openai import AzureOpenAI, OpenAI

from onsa.app.api.asking import Line, Models
from onsa.app.api.errors import RefusedError
from onsa.app.api.server import application
from onsa.store.aliases import Aliases
from onsa.store.database import Database
from onsa.store.job import JobEvent, Lease, Status, model_name
from onsa.store.jobs import Jobs
from onsa.store.key import Scope
from onsa.store.keys import Keys

BASE = "smollm2-135m"
ROWS = b'{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}\n' * 12
HELLO: list[dict[str, Any]] = [{"role": "user", "content": "hi"}]
FILE_BYTES = 100_000


class Playing:
    """An answer of the models' process, as it comes."""

    def __init__(self, played: Played, asked: Line) -> None:
        self.played, self.asked, self.left = played, asked, False

    async def aiter_lines(self) -> AsyncIterator[str]:
        for number in range(self.asked["n"]):
            for word in self.played.words:
                told = {"tokens": [_token(word)]} if self.asked["logprobs"] is not None else {}
                yield json.dumps({"i": number, "text": word, **told})
            if self.played.breaks:
                yield json.dumps({"i": number, "error": "the memory is too small"})
            tokens = {"prompt_tokens": 3, "cached_tokens": 1, "completion_tokens": len(self.played.words)}
            if self.played.away:
                return
            yield json.dumps({"i": number, "done": "stop", **tokens})

    async def aclose(self) -> None:
        self.left = True


class Played(Models):
    """Says what it is told to say, and remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__("nowhere")
        self.words = ["Hel", "lo"]
        self.heard: list[Line] = []
        self.playing: list[Playing] = []
        self.breaks = self.away = False

    async def _sent(self, path: str, asked: Line) -> Playing:
        if asked.get("prompt") == "too long":
            raise RefusedError(400, "too long", "prompt", "prompt-too-long")
        self.heard.append(asked)
        self.playing.append(Playing(self, asked))
        return self.playing[-1]


def _token(word: str) -> Line:
    return {"bytes": list(word.encode()), "logprob": -0.5, "top": [[list(word.encode()), -0.5]]}


class Served:
    """A running API, its database, and clients with keys of two projects."""

    def __init__(self, url: str, database: Database, models: Played) -> None:
        self.url, self.database, self.models = url, database, models
        self.keys = Keys(database)
        self.clients: list[OpenAI] = []

    def client(self, project: str = "mine", scopes: frozenset[Scope] = frozenset({Scope.TRAIN, Scope.INFER})) -> OpenAI:
        return self.with_key(self.keys.create(self.keys.project(project), "test", scopes)[1])

    def with_key(self, secret: str) -> OpenAI:
        self.clients.append(OpenAI(base_url=f"{self.url}/v1", api_key=secret, max_retries=0))
        return self.clients[-1]


@pytest.fixture
def served(home: Any) -> Iterator[Served]:
    with Database() as database, socket.create_server(("127.0.0.1", 0)) as bound:
        models = Played()
        app = application(database, models, FILE_BYTES)
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off", access_log=False))
        thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        found = Served(f"http://127.0.0.1:{bound.getsockname()[1]}", database, models)
        yield found
        for client in found.clients:
            client.close()
        server.should_exit = True
        thread.join()


def test_a_file_goes_and_comes_byte_for_byte(served: Served) -> None:
    client = served.client()
    made = client.files.create(file=("ünï.jsonl", ROWS), purpose="fine-tune")
    assert client.files.content(made.id).read() == ROWS
    assert (made.filename, made.bytes, made.purpose) == ("ünï.jsonl", len(ROWS), "fine-tune")
    assert [file.id for file in client.files.list(purpose="fine-tune")] == [made.id]
    assert client.files.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(made.id)


def test_a_file_that_expires(served: Served) -> None:
    lasts = {"anchor": "created_at", "seconds": 3600}
    made = served.client().files.create(file=("a", b"x"), purpose="batch", expires_after=lasts)  # type: ignore[arg-type]
    assert made.expires_at == pytest.approx(time.time() + 3600, abs=5)


def test_too_large_a_file_is_refused_as_it_comes(served: Served) -> None:
    client = served.client()
    with pytest.raises(openai.APIStatusError) as refused:
        client.files.create(file=("a", bytes(2 * FILE_BYTES)), purpose="fine-tune")
    assert refused.value.status_code == 413
    assert list(client.files.list()) == []


def test_a_file_in_parts(served: Served) -> None:
    client = served.client()
    upload = client.uploads.create(bytes=len(ROWS), filename="a.jsonl", mime_type="text/jsonl", purpose="fine-tune")
    parts = [client.uploads.parts.create(upload.id, data=data).id for data in (ROWS[:50], ROWS[50:])]
    done = client.uploads.complete(upload.id, part_ids=parts)
    assert done.file is not None and client.files.content(done.file.id).read() == ROWS
    with pytest.raises(openai.ConflictError) as over:
        client.uploads.cancel(upload.id)
    assert over.value.response.headers["x-should-retry"] == "false"


def order(client: OpenAI, **more: Any) -> Any:
    file = client.files.create(file=("a.jsonl", ROWS), purpose="fine-tune")
    return client.fine_tuning.jobs.create(**{"model": BASE, "training_file": file.id, **more})


def test_a_job_is_told_as_it_goes(served: Served) -> None:
    client, jobs = served.client(), Jobs(served.database)
    made = order(client, suffix="mine", seed=5, metadata={"team": "blue"})
    assert (made.status, made.seed, made.method.type, made.metadata) == (
        "validating_files",
        5,
        "supervised",
        {"team": "blue"},
    )
    job = jobs.get(None, made.id)
    lease = jobs.take(job, Status.VALIDATING)
    assert lease is not None
    jobs.end(lease, Status.QUEUED)
    lease = jobs.take(jobs.get(None, made.id), Status.RUNNING)
    assert lease is not None
    jobs.tell(lease, JobEvent("step", type="metrics", data={"train_loss": 1.0}))
    jobs.checkpoint(lease, 1, model_name(job, 1), {"loss": 0.5}, "folder")
    assert client.fine_tuning.jobs.retrieve(made.id).status == "running"
    jobs.end(lease, Status.SUCCEEDED, fine_tuned_model=model_name(job), folder="f", result_files=[], trained_tokens=9)
    ended = client.fine_tuning.jobs.retrieve(made.id)
    assert (ended.status, ended.trained_tokens) == ("succeeded", 9)
    assert ended.fine_tuned_model == f"ft:{BASE}:{job.project[5:13].lower()}:mine:{made.id[-8:]}"
    events = list(client.fine_tuning.jobs.list_events(made.id, limit=2))  # the client asks for further pages
    assert [event.message for event in events][:1] == ["step"] and len(events) == 3
    (checkpoint,) = client.fine_tuning.jobs.checkpoints.list(made.id)
    assert (checkpoint.step_number, checkpoint.metrics.valid_loss) == (1, 0.5)
    names = [model.id for model in client.models.list()]
    assert BASE in names and ended.fine_tuned_model in names
    assert client.models.delete(ended.fine_tuned_model).deleted
    assert [job.id for job in client.fine_tuning.jobs.list(metadata={"team": "blue"})] == [made.id]
    assert list(client.fine_tuning.jobs.list(metadata={"team": "red"})) == []


def test_a_job_at_rest_says_queued(served: Served) -> None:
    client = served.client()
    made = order(client)
    paused = client.fine_tuning.jobs.pause(made.id)
    assert (paused.status, paused.to_dict()["paused"]) == ("queued", True)
    assert client.fine_tuning.jobs.resume(made.id).to_dict()["paused"] is False
    assert client.fine_tuning.jobs.cancel(made.id).status == "cancelled"
    with pytest.raises(openai.ConflictError):
        client.fine_tuning.jobs.cancel(made.id)


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"model": "no-such"}, "model"),
        ({"training_file": "file-none"}, "training_file"),
        ({"validation_file": "file-none"}, "validation_file"),
        ({"seed": -1}, "seed"),
        ({"suffix": "x" * 65}, "suffix"),
        ({"method": {"type": "reinforcement"}}, "method.reinforcement"),
        ({"extra_body": {"nonsense": 1}}, "nonsense"),
    ],
)
def test_an_order_that_cannot_be_taken_names_the_parameter(served: Served, more: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        order(served.client(), **more)
    assert refused.value.param == param
    assert refused.value.type == "invalid_request_error"


def test_another_project_sees_nothing(served: Served) -> None:
    mine, other = served.client("mine"), served.client("other")
    job = order(mine)
    for call in (
        lambda: other.fine_tuning.jobs.retrieve(job.id),
        lambda: other.fine_tuning.jobs.cancel(job.id),
        lambda: other.fine_tuning.jobs.list_events(job.id),
        lambda: other.files.retrieve(job.training_file),
        lambda: other.files.content(job.training_file),
    ):
        with pytest.raises(openai.NotFoundError):
            call()
    assert list(other.files.list()) == [] == list(other.fine_tuning.jobs.list())


def test_keys_and_their_scopes(served: Served) -> None:
    with pytest.raises(openai.AuthenticationError) as none:
        served.with_key("wrong").models.list()
    assert none.value.code == "invalid_api_key"
    asks = served.client(scopes=frozenset({Scope.INFER}))
    assert asks.models.list()
    with pytest.raises(openai.PermissionDeniedError):
        asks.files.list()
    trains = served.client(scopes=frozenset({Scope.TRAIN}))
    with pytest.raises(openai.PermissionDeniedError):
        trains.chat.completions.create(model=BASE, messages=HELLO)  # type: ignore[call-overload]


def raw(url: str, method: str = "GET", body: bytes | None = None, **headers: str) -> tuple[int, Any]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        with urlopen(Request(url, body, named, method=method)) as answer:
            return answer.status, json.load(answer)
    except HTTPError as error:
        return error.code, json.load(error)


@pytest.mark.parametrize(
    ("path", "method", "body", "status"),
    [
        ("/v1/nothing", "GET", None, 404),
        ("/v1/files", "PUT", b"{}", 405),
        ("/v1/chat/completions", "POST", b"{bad", 400),
        ("/v1/chat/completions", "POST", b"[]", 400),
        ("/v1/chat/completions", "POST", b'{"model": "smollm2-135m"}', 400),
        ("/v1/chat/completions", "POST", b"\xff\xfe", 400),
    ],
)
def test_whatever_is_wrong_comes_in_one_envelope(
    served: Served, path: str, method: str, body: bytes | None, status: int
) -> None:
    key = served.client().api_key
    headers = {"authorization": f"Bearer {key}", "content_type": "application/json"}
    found, said = raw(served.url + path, method, body, **headers)
    assert found == status
    assert set(said) == {"error"} and set(said["error"]) == {"message", "type", "param", "code"}


def test_a_conversation(served: Served) -> None:
    said = served.client().chat.completions.create(model=BASE, messages=HELLO, n=2)  # type: ignore[call-overload]
    assert [choice.message.content for choice in said.choices] == ["Hello", "Hello"]
    assert (said.usage.prompt_tokens, said.usage.completion_tokens) == (3, 4)
    assert said.choices[0].finish_reason == "stop" and said.model == BASE


def test_a_stream_ends_with_what_it_took(served: Served) -> None:
    options = {"include_usage": True}
    given: Any = {"model": BASE, "messages": HELLO, "stream": True, "stream_options": options}
    chunks = list(served.client().chat.completions.create(**given))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Hello"
    assert chunks[-1].usage.total_tokens == 5 and chunks[-1].choices == []
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert {chunk.id for chunk in chunks} == {chunks[0].id}


@pytest.mark.parametrize("chat", [True, False])
def test_what_fails_on_the_way_is_told_as_the_end_of_a_stream(served: Served, chat: bool) -> None:
    served.models.breaks = True
    client = served.client()
    given: Any = {"messages": HELLO} if chat else {"prompt": "hi"}
    create: Any = client.chat.completions.create if chat else client.completions.create
    with pytest.raises(openai.APIError, match="could not be finished"):
        list(create(model=BASE, stream=True, **given))
    with pytest.raises(openai.InternalServerError, match="could not be finished"):
        create(model=BASE, **given)


@pytest.mark.parametrize(
    ("path", "body", "param", "code"),
    [
        ("/chat/completions", {"model": BASE, "messages": HELLO, "stop": list("abcde")}, "stop", "invalid_value"),
        ("/chat/completions", {"model": BASE, "messages": HELLO, "n": "x"}, "n", "invalid_type"),
        ("/chat/completions", {"model": BASE, "messages": ["x"]}, "messages[0]", "invalid_type"),
        ("/chat/completions", {"model": BASE}, "messages", "missing_required_parameter"),
        ("/chat/completions", {"model": BASE, "messages": HELLO, "nonsense": 1}, "nonsense", "unknown_parameter"),
        ("/embeddings", {"model": BASE, "input": ["a", ""]}, "input[1]", "invalid_value"),
        ("/completions", {"model": BASE, "prompt": "x", "n": 3, "best_of": 2}, "best_of", "invalid_value"),
        (
            "/fine_tuning/jobs",
            {"model": BASE, "training_file": "x", "hyperparameters": {"n_epochs": 100}},
            "hyperparameters.n_epochs",
            "invalid_value",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_place(served: Served, path: str, body: Any, param: str, code: str) -> None:
    with pytest.raises(openai.APIStatusError) as raised:
        served.client().post(path, body=body, cast_to=object)
    assert (raised.value.status_code, raised.value.param, raised.value.code) == (400, param, code)


def test_the_older_field_is_laid_under_the_methods_settings(served: Served) -> None:
    client = served.client()
    file = client.files.create(file=("a.jsonl", ROWS), purpose="fine-tune")
    method: Any = {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2, "batch_size": 4}}}
    older: Any = {"n_epochs": 3, "batch_size": 8}
    job = client.fine_tuning.jobs.create(model=BASE, training_file=file.id, method=method, hyperparameters=older)
    given: Any = job.method
    found = given.dpo.hyperparameters
    assert (found.n_epochs, found.batch_size, found.beta, found.learning_rate_multiplier) == (3, 4, 0.2, "auto")


def test_no_body_is_read_without_a_key(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", int(served.url.rsplit(":", 1)[1]))) as line:
        line.sendall(b"POST /v1/files HTTP/1.1\r\nhost: x\r\ncontent-length: 90000\r\n\r\n")  # and not a byte of it
        line.settimeout(20)
        assert line.recv(20).startswith(b"HTTP/1.1 401")


def test_jobs_without_metadata(served: Served) -> None:
    client = served.client()
    file = client.files.create(file=("a.jsonl", ROWS), purpose="fine-tune")
    plain = client.fine_tuning.jobs.create(model=BASE, training_file=file.id)
    marked = client.fine_tuning.jobs.create(model=BASE, training_file=file.id, metadata={"env": "Prod"}, suffix="お店")
    found: Any = client.get("/fine_tuning/jobs?metadata=null", cast_to=object)
    assert [one["id"] for one in found["data"]] == [plain.id]
    assert [one.id for one in client.fine_tuning.jobs.list(metadata={"env": "Prod"})] == [marked.id]
    assert not client.fine_tuning.jobs.list(metadata={"env": "prod"}).data


def test_a_deployment_is_the_model_whatever_the_body_says(served: Served) -> None:
    secret = served.client().api_key
    url = f"{served.url}/openai/deployments/{BASE}/chat/completions?api-version=1"
    body = json.dumps({"model": "<ignored>", "messages": HELLO}).encode()
    request = Request(url, body, {"api-key": secret, "content-type": "application/json"}, method="POST")
    with urlopen(request) as answer:
        assert json.load(answer)["model"] == BASE


def test_only_tools_that_are_allowed(served: Served) -> None:
    served.models.words = ['{"name": "add", "arguments": "{\\"a\\": 1}"}']
    other = {"type": "function", "function": {"name": "less", "parameters": {"type": "object", "properties": {}}}}
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [TOOL]}}
    given: Any = {"model": BASE, "messages": HELLO, "tools": [TOOL, other], "tool_choice": choice}
    said = served.client().chat.completions.create(**given)
    assert said.choices[0].message.tool_calls[0].function.arguments == '{"a": 1}'
    assert [tool["function"]["name"] for tool in served.models.heard[-1]["tools"]] == ["add"]
    for wrong in ({"type": "function", "function": None}, {"type": "nonsense"}):
        with pytest.raises(openai.BadRequestError):
            served.client().chat.completions.create(**{**given, "tools": [wrong]})


def test_an_answer_that_is_cut_off_is_no_answer(served: Served) -> None:
    served.models.away = True
    client = served.client()
    with pytest.raises(openai.InternalServerError, match="models are being"):
        client.chat.completions.create(model=BASE, messages=HELLO)  # type: ignore[arg-type]
    with pytest.raises(openai.APIError, match="models are being"):
        list(client.completions.create(model=BASE, prompt="x", stream=True))


def test_what_cannot_be_handed_on_is_refused(served: Served) -> None:
    with pytest.raises(openai.NotFoundError, match=r"Invalid URL \(POST /v1/responses\)"):
        served.client().post("/responses", body={}, cast_to=object)
    said: Any = served.client().chat.completions.create(model=BASE, messages=HELLO, top_p=0)  # type: ignore[call-overload]
    assert said.usage.completion_tokens_details.reasoning_tokens == 0 and served.models.heard[-1]["top_p"] > 0


def test_no_prompt_is_answered_where_one_is_refused(served: Served) -> None:
    client = served.client()
    with pytest.raises(openai.BadRequestError, match="too long"):
        client.completions.create(model=BASE, prompt=["one", "two", "too long"])
    assert [one.left for one in served.models.playing] == [True, True]
    said = client.completions.create(model=BASE, prompt=["one", "two"], n=2)
    assert [choice.text for choice in said.choices] == ["Hello"] * 4
    assert all(one.left for one in served.models.playing)


def test_log_probabilities_are_told(served: Served) -> None:
    said: Any = served.client().chat.completions.create(
        model=BASE,
        messages=HELLO,
        logprobs=True,
        top_logprobs=1,  # type: ignore[arg-type]
    )
    first = said.choices[0].logprobs.content[0]
    assert (first.token, bytes(first.bytes), first.logprob) == ("Hel", b"Hel", -0.5)
    assert first.top_logprobs[0].token == "Hel"


TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", ["auto", "required"])
def test_a_call_of_a_tool(served: Served, choice: str, stream: bool) -> None:
    call = '{"name": "add", "arguments": {"a": 1}}'
    served.models.words = ["<tool_", "call>", call, "</tool_call>"] if choice == "auto" else [call[:9], call[9:]]
    given: Any = {"model": BASE, "messages": HELLO, "tools": [TOOL], "tool_choice": choice, "stream": stream}
    said = served.client().chat.completions.create(**given)
    if stream:
        chunks = list(said)
        assert not any(chunk.choices[0].delta.content for chunk in chunks)
        (found,) = [chunk for chunk in chunks if chunk.choices[0].delta.tool_calls]
        calls, finish = found.choices[0].delta.tool_calls, found.choices[0].finish_reason
    else:
        calls, finish = said.choices[0].message.tool_calls, said.choices[0].finish_reason
        assert said.choices[0].message.content is None
    assert (calls[0].function.name, json.loads(calls[0].function.arguments)) == ("add", {"a": 1})
    assert finish == "tool_calls"
    assert (served.models.heard[-1]["schema"] is None) is (choice == "auto")


def test_what_only_begins_like_a_call_is_told(served: Served) -> None:
    served.models.words = ["a <", "b", "> <tool_"]
    given: Any = {"model": BASE, "messages": HELLO, "tools": [TOOL], "stream": True}
    chunks = list(served.client().chat.completions.create(**given))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "a <b> <tool_"


def test_completions_of_several_prompts(served: Served) -> None:
    said = served.client().completions.create(model=BASE, prompt=["a", "b"], n=2, best_of=3, echo=True, logprobs=1)
    assert [choice.index for choice in said.choices] == [0, 1, 2, 3]
    assert (said.usage.prompt_tokens, said.usage.completion_tokens) == (6, 12)  # type: ignore[union-attr]
    assert said.choices[0].logprobs.tokens == ["Hel", "lo"]  # type: ignore[union-attr]
    assert [asked["prompt"] for asked in served.models.heard] == ["a", "b"]


def test_kept_completions(served: Served) -> None:
    client = served.client()
    given: Any = {"model": BASE, "messages": HELLO, "metadata": {"k": "v"}}
    said = client.chat.completions.create(**given, store=True)
    client.chat.completions.create(**given)
    assert [kept.id for kept in client.chat.completions.list(metadata={"k": "v"})] == [said.id]
    assert client.chat.completions.retrieve(said.id).choices[0].message.content == "Hello"
    (message,) = client.chat.completions.messages.list(said.id)
    assert message.content == "hi"
    assert client.chat.completions.update(said.id, metadata={"k": "w"}).to_dict()["metadata"] == {"k": "w"}
    with pytest.raises(openai.NotFoundError):
        served.client("other").chat.completions.retrieve(said.id)
    assert client.chat.completions.delete(said.id).deleted


def test_an_alias_leads_the_same_user_to_the_same_model(served: Served) -> None:
    project = served.keys.project("mine")
    Aliases(served.database).set(project, "gpt-4o-mini", {BASE: 1.0, "minilm-l6": 1.0})
    client = served.client()
    found = {}
    for user in (f"user-{number}" for number in range(40)):
        given: Any = {"model": "gpt-4o-mini", "messages": HELLO, "user": user}
        answers = [client.chat.completions.with_raw_response.create(**given) for _ in range(2)]
        models = {answer.headers["x-onsa-model"] for answer in answers}
        assert len(models) == 1 and {answer.parse().model for answer in answers} == models
        found[user] = models.pop()
    assert 8 <= sum(model == BASE for model in found.values()) <= 32
    assert "gpt-4o-mini" in [model.id for model in client.models.list()]


def test_azures_paths_lead_to_the_same(served: Served) -> None:
    key = served.client().api_key
    azure = AzureOpenAI(azure_endpoint=served.url, api_key=key, api_version="2024-10-21", max_retries=0)
    said = azure.chat.completions.create(model=BASE, messages=HELLO)  # type: ignore[call-overload]
    assert said.choices[0].message.content == "Hello"
    made = azure.files.create(file=("a.jsonl", ROWS), purpose="fine-tune")
    assert azure.fine_tuning.jobs.create(model=BASE, training_file=made.id).status == "validating_files"
    azure.close()
    deployment = f"{served.url}/openai/deployments/{BASE}/chat/completions"
    body = json.dumps({"messages": HELLO}).encode()
    headers = {"api_key": key, "content_type": "application/json"}
    status, found = raw(f"{deployment}?api-version=2024-10-21", "POST", body, **headers)
    assert (status, found["model"]) == (200, BASE)
    assert raw(deployment, "POST", body, **headers)[0] == 400
    with urlopen(f"{served.url}/metrics") as answer:
        assert 'method="POST",route="/chat/completions",status="200"' in answer.read().decode()


def test_a_permission_lets_another_project_ask(served: Served) -> None:
    mine, other = served.client(), served.client("other")
    admin = served.client("admin", frozenset({Scope.ADMIN}))
    jobs = Jobs(served.database)
    made = order(mine)
    job = jobs.get(None, made.id)
    lease = jobs.take(job, Status.RUNNING) or Lease("", 0)
    name = model_name(job, 1)
    jobs.checkpoint(lease, 1, name, {}, "folder")
    given: Any = {"model": name, "messages": HELLO}
    with pytest.raises(openai.NotFoundError):
        other.chat.completions.create(**given)
    granted = admin.fine_tuning.checkpoints.permissions.create(name, project_ids=[served.keys.project("other")])
    assert other.chat.completions.create(**given).model == name
    permission = next(iter(granted))
    assert admin.fine_tuning.checkpoints.permissions.delete(permission.id, fine_tuned_model_checkpoint=name).deleted
    with pytest.raises(openai.NotFoundError):
        other.chat.completions.create(**given)


def test_it_says_how_it_is(served: Served) -> None:
    assert raw(f"{served.url}/healthz") == (200, {"status": "ok"})
    assert raw(f"{served.url}/readyz") == (200, {"status": "ok"})
    job = order(served.client())
    served.client().fine_tuning.jobs.retrieve(job.id)
    raw(f"{served.url}/v1/nothing/{job.id}")
    with urlopen(f"{served.url}/metrics") as answer:
        said = answer.read().decode()
    counted = 'onsa_requests_total{method="GET",route="/fine_tuning/jobs/{job_id}",status="200"} 1.0'
    assert counted in said and 'onsa_jobs{status="validating_files"} 1.0' in said
    assert job.id not in said and job.organization_id not in said
