"""The service's commands: ``onsa serve``, its keys, and its queue."""

from __future__ import annotations

from typing import Annotated

import typer

from onsa.app.options import Json
from onsa.spec.serving import Answering, Engine
from onsa.store.key import FIRST, Scope

keys_app = typer.Typer(help="The keys with which the service is reached.", no_args_is_help=True)
webhooks_app = typer.Typer(help="Addresses that are told when a job ends.", no_args_is_help=True)
aliases_app = typer.Typer(help="Names that lead to models.", no_args_is_help=True)
Project = Annotated[str, typer.Option("--project", help="The project's name; it is made where there is none.")]


def serve(
    host: Annotated[
        str, typer.Option("--host", help="Where to listen: this machine alone, unless told so.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 8321,
    jobs: Annotated[int, typer.Option("--jobs", min=0, help="Jobs that are trained beside each other.")] = 1,
    answer_tokens: Annotated[int, typer.Option(min=0, help="Tokens of an answer where a request names no number.")] = 0,
    engine: Annotated[Engine, typer.Option("--engine", help="What computes answers; vllm is for GPUs.")] = Engine.ONSA,
    networks: Annotated[int, typer.Option("--networks", min=1, help="Networks in memory at once.")] = 3,
) -> None:
    """Serve OpenAI's API: files, fine-tuning jobs, and the models that answer. Ctrl-C ends it; jobs go on next time."""
    from onsa.app.console import err, out
    from onsa.app.service import Settings, first_key, run
    from onsa.spec.extras import program
    from onsa.spec.messages import say

    if engine is Engine.VLLM:
        program("vllm", "--engine vllm")  # or a message, before anything starts
    secret = first_key()
    if secret is not None:
        out().print(say("serve-first-key", key=secret), soft_wrap=True)
    raise typer.Exit(run(Settings(host, port, jobs, Answering(engine, networks, answer_tokens)), err().print))


@keys_app.command("create")
def create(
    name: Annotated[str, typer.Argument(help="What the key is for, to find it again.")],
    project: Project = FIRST,
    scope: Annotated[list[Scope] | None, typer.Option("--scope", help="What it allows; may be repeated.")] = None,
    json: Json = False,
) -> None:
    """Make a key and show it, this once. Without a scope it allows to train and to ask."""
    from onsa.app.console import emit, out
    from onsa.spec.messages import say
    from onsa.store.database import Database
    from onsa.store.keys import Keys

    with Database() as database:
        keys = Keys(database)
        key, secret = keys.create(keys.project(project), name, frozenset(scope or (Scope.TRAIN, Scope.INFER)))
    if json:
        emit({"id": key.id, "project": key.project, "name": key.name, "scopes": sorted(key.scopes), "secret": secret})
    else:
        out().print(say("key-made", name=name, key=secret), soft_wrap=True)


@keys_app.command("list")
def list_keys(json: Json = False) -> None:
    """All keys, by project; of each, its last letters."""
    from datetime import datetime

    from onsa.app.console import emit, out, table
    from onsa.spec.messages import say
    from onsa.store.database import Database
    from onsa.store.keys import Keys

    with Database() as database:
        keys = Keys(database)
        found, projects = keys.list(), keys.projects()
    if json:
        emit(
            [
                {
                    "id": key.id,
                    "project": projects[key.project],
                    "name": key.name,
                    "scopes": sorted(key.scopes),
                    "last_letters": key.shown,
                    "created": key.created,
                    "revoked": key.revoked,
                }
                for key in found
            ]
        )
        return
    names = ["id", *(say(f"keys-{name}") for name in ("project", "name", "scopes", "letters", "created", "state"))]
    rows = [
        (
            key.id,
            projects[key.project],
            key.name,
            ", ".join(sorted(key.scopes)),
            f"…{key.shown}",
            datetime.fromtimestamp(key.created).strftime("%Y-%m-%d"),
            say("key-revoked" if key.revoked else "key-good"),
        )
        for key in found
    ]
    out().print(table(names, rows))


@keys_app.command("revoke")
def revoke(
    key: Annotated[str, typer.Argument(help="The key's id, or its last letters.")],
    json: Json = False,
) -> None:
    """Make a key useless, at once and for good."""
    from onsa.app.console import emit, out
    from onsa.spec.messages import say
    from onsa.store.database import Database
    from onsa.store.keys import Keys

    with Database() as database:
        gone = Keys(database).revoke(key)
    if json:
        emit({"id": gone.id, "revoked": True})
    else:
        out().print(say("key-gone", name=gone.name, letters=gone.shown))


def jobs(json: Json = False) -> None:
    """The queue: jobs of all projects, the newest first."""

    from onsa.app.api.objects import job_object
    from onsa.app.console import emit, out, table
    from onsa.spec.messages import say
    from onsa.store.database import Database
    from onsa.store.jobs import Jobs
    from onsa.store.keys import Keys
    from onsa.store.records import Page

    with Database() as database:
        found, _ = Jobs(database).page(None, Page())
        projects = Keys(database).projects()
    if json:
        emit([job_object(job) for job in found])
        return
    names = ["id", *(say(f"jobs-{name}") for name in ("project", "model", "method", "status"))]
    rows = [
        (
            job.id,
            projects[job.project],
            job.order.model,
            job.order.method["type"],
            say(f"job-{job.status.value}"),
        )
        for job in found
    ]
    out().print(table(names, rows))


@webhooks_app.command("add")
def add_webhook(
    url: Annotated[str, typer.Argument(help="Where it is told, by POST.")], project: Project = FIRST, json: Json = False
) -> None:
    """Tell an address when a project's jobs end, signed with a secret that is shown this once."""
    from onsa.app.console import emit, out
    from onsa.spec.messages import say
    from onsa.store.database import Database
    from onsa.store.keys import Keys
    from onsa.store.webhooks import Webhooks

    with Database() as database:
        made = Webhooks(database).create(Keys(database).project(project), url)
    if json:
        emit({"id": made.id, "url": made.url, "secret": made.secret})
    else:
        out().print(say("webhook-made", name=made.id, url=made.url, secret=made.secret), soft_wrap=True)


@webhooks_app.command("list")
def list_webhooks(json: Json = False) -> None:
    """All addresses, by project."""
    from onsa.app.console import emit, out, table
    from onsa.spec.messages import say
    from onsa.store.database import Database
    from onsa.store.keys import Keys
    from onsa.store.webhooks import Webhooks

    with Database() as database:
        projects = Keys(database).projects()
        found = [(one.id, projects[one.project], one.url) for one in Webhooks(database).list()]
    if json:
        emit([{"id": name, "project": project, "url": url} for name, project, url in found])
    else:
        out().print(table(["id", say("keys-project"), say("webhooks-url")], found))


@webhooks_app.command("remove")
def remove_webhook(name: Annotated[str, typer.Argument(metavar="ID")], json: Json = False) -> None:
    """Tell an address no more."""
    from onsa.app.console import emit
    from onsa.store.database import Database
    from onsa.store.webhooks import Webhooks

    with Database() as database:
        Webhooks(database).remove(None, name)
    if json:
        emit({"id": name, "removed": True})


@aliases_app.command("set")
def set_alias(
    name: Annotated[str, typer.Argument(help="What clients ask for, such as gpt-4o-mini.")],
    targets: Annotated[list[str], typer.Argument(metavar="MODEL[=WEIGHT]...", help="What answers.")],
    project: Project = FIRST,
    json: Json = False,
) -> None:
    """Let a name lead to a model, or to several by weight: each user to the same one."""
    from onsa.app.console import emit, out
    from onsa.spec.messages import say
    from onsa.store.aliases import Aliases, weights
    from onsa.store.database import Database
    from onsa.store.keys import Keys

    with Database() as database:
        made = Aliases(database).set(Keys(database).project(project), name, weights(targets))
    if json:
        emit({"name": made.name, "targets": made.targets})
    else:
        led = ", ".join(f"{model} ({weight:g})" for model, weight in made.targets.items())
        out().print(say("alias-set", name=name, targets=led), soft_wrap=True)


@aliases_app.command("list")
def list_aliases(json: Json = False) -> None:
    """All aliases, by project."""
    from onsa.app.console import emit, out, table
    from onsa.spec.messages import say
    from onsa.store.aliases import Aliases
    from onsa.store.database import Database
    from onsa.store.keys import Keys

    with Database() as database:
        projects, found = Keys(database).projects(), Aliases(database).list(None)
    if json:
        emit([{"name": one.name, "project": projects[one.project], "targets": one.targets} for one in found])
        return
    rows = [(one.name, projects[one.project], ", ".join(f"{m}={w:g}" for m, w in one.targets.items())) for one in found]
    out().print(table([say("keys-name"), say("keys-project"), say("aliases-targets")], rows))


@aliases_app.command("remove")
def remove_alias(
    name: Annotated[str, typer.Argument(help="The alias.")], project: Project = FIRST, json: Json = False
) -> None:
    """Let a name lead nowhere."""
    from onsa.app.console import emit
    from onsa.store.aliases import Aliases
    from onsa.store.database import Database
    from onsa.store.keys import Keys

    with Database() as database:
        Aliases(database).remove(Keys(database).project(project), name)
    if json:
        emit({"name": name, "removed": True})
