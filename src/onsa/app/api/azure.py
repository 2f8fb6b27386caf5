"""Azure's paths: ``/openai/deployments/{name}/…`` and ``/openai/…`` with ``api-version``, led to the same routes.

A deployment is a model: its name stands in the path, and is put into a body that has none.
"""

from __future__ import annotations

import json
import re
from urllib.parse import parse_qs

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from onsa.app.api.errors import envelope
from onsa.spec.messages import say

DEPLOYMENT = re.compile(r"/openai/deployments/(?P<name>[^/]+)(?P<rest>/.+)")
PREFIX, VERSIONED = "/openai/", "/openai/v1/"


class Azure:
    """Leads Azure's paths to those under ``/v1``."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope.get("path", "")
        if scope["type"] != "http" or not path.startswith(PREFIX):
            await self._app(scope, receive, send)
            return
        if path.startswith(VERSIONED):
            await self._lead(scope, path.removeprefix("/openai"), receive, send)
            return
        if "api-version" not in parse_qs(scope["query_string"].decode()):
            refused = envelope(400, say("api-no-version"), "api-version", "missing_required_parameter")
            await refused(scope, receive, send)
            return
        found = DEPLOYMENT.fullmatch(path)
        if found is None:
            await self._lead(scope, "/v1/" + path.removeprefix(PREFIX), receive, send)
            return
        body = _named(await _body(receive), found["name"])
        headers = [pair for pair in scope["headers"] if pair[0] != b"content-length"]
        scope["headers"] = [*headers, (b"content-length", str(len(body)).encode())]
        await self._lead(scope, f"/v1{found['rest']}", _giving(body, receive), send)

    async def _lead(self, scope: Scope, path: str, receive: Receive, send: Send) -> None:
        scope["path"] = path  # in place, so that who counts requests sees their route
        await self._app(scope, receive, send)


async def _body(receive: Receive) -> bytes:
    """The whole of a body, which is bounded before it comes here."""
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


def _named(body: bytes, model: str) -> bytes:
    """A JSON body with the deployment as its model; what is no JSON object stays for others to refuse."""
    try:
        said = json.loads(body)
    except ValueError:
        return body
    return json.dumps({**said, "model": model}).encode() if isinstance(said, dict) else body


def _giving(body: bytes, receive: Receive) -> Receive:
    """Gives a body as one message, and then what comes."""
    given = False

    async def giving() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return giving
