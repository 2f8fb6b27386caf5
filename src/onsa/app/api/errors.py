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
TYPES = {403: FORBIDDEN, 429: LIMITED}
UNLIKE = ("_type", "_parsing", "literal_error")  # how a fault ends that says: something else altogether
CODES = {"missing": "missing_required_parameter", "extra_forbidden": "unknown_parameter"}
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
    if problem.code == "store-unreachable":
        return envelope(HTTPStatus.SERVICE_UNAVAILABLE, message, code=problem.code)
    return envelope(HTTPStatus.BAD_REQUEST, message, problem.key, problem.code)


def _faulty(_: Request, error: Any) -> JSONResponse:
    """A body or parameter that is not as it should be: the first fault is named, as OpenAI does."""
    faults = error.errors()
    if faults[0]["type"] == "json_invalid":
        return envelope(HTTPStatus.BAD_REQUEST, say("api-not-json", reason=faults[0].get("ctx", {}).get("error", "")))
    # Of what a value could have been, that counts which it nearly is.
    whole = _param(faults[0], error.body) or ""
    alike = [fault for fault in faults if (_param(fault, error.body) or "").startswith(whole)]
    fault = min(alike, key=lambda one: one["type"].endswith(UNLIKE))
    param = _param(fault, error.body)
    message = say("api-faulty", param=param or "-", reason=fault["msg"])
    return envelope(HTTPStatus.BAD_REQUEST, message, param, _code(fault["type"]))


def _param(fault: Mapping[str, Any], body: Any) -> str | None:
    """Where a fault is, as ``messages[0].role``: without the names of what a value could have been."""
    where, *place = fault["loc"]
    if where != "body":
        return ".".join(map(str, place)) or None
    value, param = body, ""
    for part in place:
        last = part == place[-1]
        if isinstance(value, Mapping) and (part in value or (last and fault["type"] == "missing")):
            value, param = value.get(part), f"{param}.{part}"
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value, param = value[part], f"{param}[{part}]"
    return param.removeprefix(".") or None


def _code(kind: str) -> str:
    if kind in CODES:
        return CODES[kind]
    return "invalid_type" if kind.endswith(("_type", "_parsing")) else "invalid_value"


def _http(request: Request, error: Any) -> JSONResponse:
    words = str(error.detail)
    if error.status_code == HTTPStatus.NOT_FOUND:
        words = say("api-no-route", method=request.method, path=request.url.path)
    return envelope(error.status_code, words, headers=error.headers)


def _broken(_: Request, error: Exception) -> JSONResponse:
    """A fault of ours: said without what it was, which stands in the log."""
    return envelope(HTTPStatus.INTERNAL_SERVER_ERROR, say("api-broken"))
