"""Telling: what is to be told to webhooks is sent, beside the supervisor's own work."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from http.client import HTTPException
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from onsa.spec.errors import OnsaError, StoreError
from onsa.store.webhooks import Delivery, Webhooks

POLL_S = 1.0
WAIT_S = 10.0  # for a receiver
ACCEPTED = range(200, 300)


class _Straight(HTTPRedirectHandler):
    """Follows no redirect: what is signed for one address is not carried to another."""

    def redirect_request(self, *_: object) -> None:
        return None


def tell(webhooks: Webhooks, over: threading.Event) -> None:
    """Send what is due until it is over."""
    while not over.wait(POLL_S):
        for delivery in _due(webhooks):
            if over.is_set():
                return
            with suppress(OnsaError):  # the webhook is gone meanwhile, or the database is away: it stays due
                webhooks.told(delivery) if sent(delivery) else webhooks.failed(delivery)


def _due(webhooks: Webhooks) -> Sequence[Delivery]:
    try:
        return webhooks.due()
    except StoreError:  # the database is away for a while
        return ()


def sent(delivery: Delivery) -> bool:
    """Send one; whether its receiver has it."""
    headers = {"content-type": "application/json", **delivery.headers(time.time())}
    request = Request(delivery.url, delivery.body.encode(), headers, method="POST")
    try:
        with build_opener(_Straight).open(request, timeout=WAIT_S) as answer:
            return answer.status in ACCEPTED
    except (HTTPError, HTTPException, URLError, OSError, ValueError):
        return False
