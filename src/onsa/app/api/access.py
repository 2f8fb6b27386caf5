"""Access: who asks, and what their key allows."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Receive, Send

from onsa.app.api.errors import RefusedError, envelope
from onsa.spec.errors import StoreError
from onsa.spec.messages import say
from onsa.store.aliases import Aliases
from onsa.store.completions import Completions
from onsa.store.database import Database
from onsa.store.files import Files, Uploads
from onsa.store.jobs import Jobs
from onsa.store.key import Key, Scope
from onsa.store.keys import Keys
from onsa.store.models import Models

BEARER = "bearer "
KEYED = ("/v1/", "/openai/")  # paths that need one


@dataclass(frozen=True)
class Service:
    """What the routes work with; one for the whole of an application."""

    database: Database
    keys: Keys
    files: Files
    uploads: Uploads
    jobs: Jobs
    models: Models
    completions: Completions
    aliases: Aliases

    @classmethod
    def over(cls, database: Database) -> Service:
        """The service over an open database."""
        files = Files(database)
        owned = (Uploads(database, files), Jobs(database), Models(database), Completions(database), Aliases(database))
        return cls(database, Keys(database), files, *owned)


def service(request: Request) -> Service:
    """The application's service."""
    found: Service = request.app.state.service
    return found


def secret(request: Request) -> str:
    """The secret that a request brings: as a bearer token, or in the header that Azure's clients use."""
    given = request.headers.get("authorization", "")
    if given.lower().startswith(BEARER):
        return given[len(BEARER) :].strip()
    return request.headers.get("api-key", "").strip()


class Keyed:
    """Refuses what brings no key that is known, before anything of its body is read."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(KEYED):
            given = secret(Request(scope))
            try:
                key = await run_in_threadpool(self._service.keys.find, given) if given else None
            except StoreError as error:
                await envelope(503, str(error), code="store-unreachable")(scope, receive, send)
                return
            if key is None:
                words = say("api-wrong-key" if given else "api-no-key")
                await envelope(401, words, code="invalid_api_key")(scope, receive, send)
                return
            scope.setdefault("state", {})["key"] = key
        await self._app(scope, receive, send)


def allowed(scope: Scope) -> Callable[..., Key]:
    """A dependency: the key of a request, where it allows this.

    Raises:
        RefusedError: it does not.
    """

    def check(request: Request) -> Key:
        key: Key = request.state.key
        if not key.allows(scope):
            raise RefusedError(403, say("api-scope", scope=scope.value), code="insufficient_permissions")
        return key

    return check


Serving = Annotated[Service, Depends(service)]
Trainer = Annotated[Key, Depends(allowed(Scope.TRAIN))]
Asker = Annotated[Key, Depends(allowed(Scope.INFER))]
Admin = Annotated[Key, Depends(allowed(Scope.ADMIN))]
Object = dict[str, Any]
