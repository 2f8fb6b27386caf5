"""Errors over HTTP: one envelope, ``{"error": {message, type, param, code}}``, for whatever goes wrong."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from onsa.spec.errors import ConflictError, MachineError, MissingError, OnsaError
from onsa.spec.messages import say

INVALID, FORBIDDEN, LIMITED, BROKEN = "invalid_request_error", "permission_error", "rate_limit_error", "server_error"
TYPES = {401: "authentication_error", 403: FORBIDDEN, 429: LIMITED}
PLACES = ("body", "query", "path", "header")  # where FastAPI says that a faulty value stood
FINAL = {"x-should-retry": "false"}  # what it is answered now it is answered again


class RefusedError(Exception):
    """A request that is not followed, with what is said about it."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.headers = status, message, param, code, headers


def envelope(
    status: int,
    message: str,
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """An error as a response."""
    kind = TYPES.get(status, INVALID if status < HTTPStatus.INTERNAL_SERVER_ERROR else BROKEN)
    error = {"message": message, "type": kind, "param": param, "code": code}
    return JSONResponse({"error": error}, status, dict(headers or {}))


def handle(app: FastAPI) -> None:
    """Let an application answer with the envelope, whatever is raised."""
    app.add_exception_handler(RefusedError, _refused)
    app.add_exception_handler(OnsaError, _onsa)
    app.add_exception_handler(RequestValidationError, _faulty)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _broken)


def _refused(_: Request, error: Any) -> JSONResponse:
    return envelope(error.status, error.message, error.param, error.code, error.headers)


def _onsa(_: Request, error: Any) -> JSONResponse:
    problem = error.problems[0]
    message = "\n".join(f"{one.what} {one.fix}" for one in error.problems)
    if isinstance(error, MissingError):
        return envelope(HTTPStatus.NOT_FOUND, message, problem.key, "not_found")
    if isinstance(error, ConflictError):
        return envelope(HTTPStatus.CONFLICT, message, problem.key, "conflict", FINAL)
    if isinstance(error, MachineError):
        return envelope(HTTPStatus.INSUFFICIENT_STORAGE, message, problem.key, problem.code)
    return envelope(HTTPStatus.BAD_REQUEST, message, problem.key, problem.code)


def _faulty(_: Request, error: Any) -> JSONResponse:
    """A body or parameter that is not as it should be: the first fault is named, as OpenAI does."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return envelope(HTTPStatus.BAD_REQUEST, say("api-not-json", reason=first.get("ctx", {}).get("error", "")))
    place = [str(part) for part in first["loc"] if part not in PLACES]
    param = ".".join(place) or None
    code = "unknown_parameter" if first["type"] == "extra_forbidden" else None
    return envelope(HTTPStatus.BAD_REQUEST, say("api-faulty", param=param or "-", reason=first["msg"]), param, code)


def _http(_: Request, error: Any) -> JSONResponse:
    return envelope(error.status_code, str(error.detail), headers=error.headers)


def _broken(_: Request, error: Exception) -> JSONResponse:
    """A fault of ours: said without what it was, which stands in the log."""
    return envelope(HTTPStatus.INTERNAL_SERVER_ERROR, say("api-broken"))
