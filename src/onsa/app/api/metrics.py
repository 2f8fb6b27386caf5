"""``/healthz``, ``/readyz`` and ``/metrics``: whether the service is well, and how much it does; nobody's own data."""

from __future__ import annotations

import time
from collections.abc import MutableMapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from onsa.app.api.access import Serving
from onsa.app.api.asking import Models
from onsa.spec.errors import StoreError

METHODS = ("GET", "POST", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS")  # anyone can make up others
router = APIRouter()
BUCKETS = (0.005, 0.02, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Meters:
    """What is counted in this process."""

    def __init__(self) -> None:
        own = self.registry = CollectorRegistry()
        labels = ["route", "method", "status"]
        self.requests = Counter("onsa_requests", "Requests that were answered.", labels, registry=own)
        self.seconds = Histogram(
            "onsa_request_seconds", "Seconds to a request's last byte.", ["route"], buckets=BUCKETS, registry=own
        )
        self.jobs = Gauge("onsa_jobs", "Jobs by where they stand.", ["status"], registry=own)
        self.running = Gauge("onsa_answers_running", "Answers that are being given.", registry=own)
        self.waiting = Gauge("onsa_answers_waiting", "Requests that wait for an answer.", registry=own)
        self.tokens = Gauge("onsa_answer_tokens", "Tokens said since the models' process began.", registry=own)


class Metered:
    """Counts requests by their route, which has no ids in it."""

    def __init__(self, app: ASGIApp, meters: Meters) -> None:
        self._app = app
        self._meters = meters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            route = _route(scope)
            self._meters.requests.labels(route, _method(scope), str(status)).inc()
            self._meters.seconds.labels(route).observe(time.perf_counter() - began)


def _method(scope: MutableMapping[str, Any]) -> str:
    return str(scope["method"]) if scope.get("route") and scope["method"] in METHODS else "-"


def _route(scope: MutableMapping[str, Any]) -> str:
    """The path of a request's route; nothing where it has none, so that nobody can fill the memory with paths."""
    return str(getattr(scope.get("route"), "path", ""))


@router.get("/healthz")
def healthz() -> dict[str, str]:
    """Whether the process is there."""
    return {"status": "ok"}


@router.get("/readyz")
def readyz(service: Serving) -> Response:
    """Whether requests can be followed: the database answers."""
    try:
        service.jobs.counts()
    except StoreError:
        return JSONResponse({"status": "no database"}, 503)
    return JSONResponse({"status": "ok"})


@router.get("/metrics")
async def metrics(request: Request, service: Serving) -> Response:
    """For Prometheus."""
    meters: Meters = request.app.state.meters
    models: Models = request.app.state.models
    for status, count in (await run_in_threadpool(service.jobs.counts)).items():
        meters.jobs.labels(status).set(count)
    states = (await models.state()).values()
    for gauge, name in ((meters.running, "running"), (meters.waiting, "waiting"), (meters.tokens, "tokens")):
        gauge.set(sum(state[name] for state in states))
    return Response(generate_latest(meters.registry), media_type=CONTENT_TYPE_LATEST)
