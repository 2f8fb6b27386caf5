"""The application: its routes under ``/v1``, how large a request may be, and whether it is well."""

from __future__ import annotations

import secrets

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from onsa.app.api import chat, completions, files, graders, jobs, metrics, stored, vectors
from onsa.app.api import models as models_of_project
from onsa.app.api.access import Keyed, Service
from onsa.app.api.asking import Models
from onsa.app.api.azure import Azure
from onsa.app.api.errors import envelope, handle
from onsa.spec.messages import say
from onsa.store.database import Database

JSON_BYTES = 32 << 20
FILE_BYTES = 512 << 20
PART_BYTES = 64 << 20


def application(database: Database, models: Models, file_bytes: int = FILE_BYTES) -> FastAPI:
    """The HTTP API over an open database, and the process of the models."""
    app = FastAPI(title="Onsa", version="1", docs_url=None, redoc_url=None)
    app.state.service = Service.over(database)
    app.state.models = models
    app.state.meters = metrics.Meters()
    handle(app)
    for one in (chat, stored, completions, vectors, files, jobs, graders, models_of_project):
        app.include_router(one.router, prefix="/v1")
    app.include_router(metrics.router)
    app.add_middleware(Azure)
    app.add_middleware(Keyed, service=app.state.service)
    app.add_middleware(Bounded, file_bytes=file_bytes)
    app.add_middleware(Numbered)
    app.add_middleware(metrics.Metered, meters=app.state.meters)
    return app


class Bounded:
    """Refuses bodies that are too large: by what they say, and by what comes."""

    def __init__(self, app: ASGIApp, file_bytes: int) -> None:
        self._app = app
        self._file_bytes = file_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        most, seen, begun = self._most(scope["path"]), 0, False
        said = dict(scope["headers"]).get(b"content-length", b"0")
        too_large = envelope(413, say("api-too-large", bytes=most), code="request_too_large")
        if said.isdigit() and int(said) > most:
            await too_large(scope, receive, send)
            return

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > most:
                raise _TooLargeError
            return message

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = begun or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, counted, watched)
        except _TooLargeError:
            if not begun:
                await too_large(scope, receive, send)

    def _most(self, path: str) -> int:
        """Bytes of a body; a form's own marks around a file are some more."""
        if path.endswith("/files"):
            return self._file_bytes + (1 << 16)
        return PART_BYTES + (1 << 16) if path.endswith("/parts") else JSON_BYTES


class _TooLargeError(Exception):
    pass


class Numbered:
    """Gives each response an id of its own, which clients show with an error."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = f"req_{secrets.token_hex(16)}".encode()

        async def numbered(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (b"x-request-id", name)]
            await send(message)

        await self._app(scope, receive, numbered)
