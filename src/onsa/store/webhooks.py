"""Webhooks: addresses that are told when a project's jobs end, and what is still to be told them.

What is to be told is written in the transaction in which a job ends, so that nothing is forgotten, and told as often as
it takes; a receiver knows it again by its id.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import time
from dataclasses import dataclass
from typing import Any, final

from sqlalchemy import Connection, Row, select, update

from onsa.spec.errors import DataError
from onsa.store import schema as db
from onsa.store.database import Database
from onsa.store.records import Page, Records, new_id

SECRET = "whsec_"
KINDS = ("fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled")
FIRST_WAIT_S, MOST_ATTEMPTS = 5.0, 13  # each wait is twice the one before it: nearly six hours in all


@dataclass(frozen=True, slots=True)
class Webhook:
    """An address. secret: signs what is told it."""

    id: str
    project: str
    url: str
    secret: str


@dataclass(frozen=True, slots=True)
class Delivery:
    """Something to be told."""

    id: str
    url: str
    secret: str
    body: str
    attempts: int

    def headers(self, now: float) -> dict[str, str]:
        """What signs it, as Standard Webhooks say (https://www.standardwebhooks.com)."""
        moment = str(int(now))
        key = base64.b64decode(self.secret.removeprefix(SECRET))
        digest = hmac.new(key, f"{self.id}.{moment}.{self.body}".encode(), hashlib.sha256).digest()
        signature = f"v1,{base64.b64encode(digest).decode()}"
        return {"webhook-id": self.id, "webhook-timestamp": moment, "webhook-signature": signature}


@final
class Webhooks:
    """The webhooks of all projects."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._records = Records(database, db.webhooks, "webhook_", "webhook")
        self._deliveries = Records(database, db.deliveries, "evt_", "delivery")

    def create(self, project: str, url: str) -> Webhook:
        """Let an address be told.

        Raises:
            DataError: it is no address of HTTP.
        """
        if not url.startswith(("http://", "https://")):
            raise DataError.of("webhook-url", value=url)
        secret = SECRET + base64.b64encode(secrets.token_bytes(32)).decode()
        with self._database.writing() as connection:
            made = self._records.add(connection, project, url=url, secret=secret)
        return _webhook(self._records.get(project, made))

    def remove(self, project: str | None, name: str) -> None:
        """Let an address be told no more.

        Raises:
            MissingError: the project has none of this id.
        """
        with self._database.writing() as connection:
            self._records.remove(connection, project, name)

    def note(self, connection: Connection, project: str, kind: str, subject: str) -> None:
        """Write down, inside a transaction, that something is to be told to all of a project's addresses."""
        for row in list(connection.execute(select(db.webhooks).where(db.webhooks.c.project == project))):
            name, now = new_id("evt_"), time.time()
            told = {"id": name, "object": "event", "created_at": int(now), "type": kind, "data": {"id": subject}}
            body = json.dumps(told)
            self._deliveries.add(connection, project, id=name, webhook=row.id, body=body, attempts=0, due=now)

    def due(self) -> list[Delivery]:
        """What is to be told now."""
        both = db.deliveries.join(db.webhooks, db.webhooks.c.id == db.deliveries.c.webhook)
        chosen = (db.deliveries.c.id, db.webhooks.c.url, db.webhooks.c.secret, db.deliveries.c.body)
        query = select(*chosen, db.deliveries.c.attempts).select_from(both)
        with self._database.reading() as connection:
            rows = connection.execute(query.where(db.deliveries.c.due <= time.time()).order_by(db.deliveries.c.due))
            return [Delivery(*row) for row in rows]

    def told(self, delivery: Delivery) -> None:
        """Forget what was told."""
        with self._database.writing() as connection:
            self._deliveries.remove(connection, None, delivery.id)

    def failed(self, delivery: Delivery) -> None:
        """Tell it later again, or, after many times, no more."""
        attempts = delivery.attempts + 1
        due = time.time() + FIRST_WAIT_S * 2**delivery.attempts
        with self._database.writing() as connection:
            if attempts >= MOST_ATTEMPTS:
                self._deliveries.remove(connection, None, delivery.id)
                return
            mine = db.deliveries.c.id == delivery.id
            connection.execute(update(db.deliveries).where(mine).values(attempts=attempts, due=due))

    def list(self, project: str | None = None) -> list[Webhook]:
        """Addresses, the oldest first."""
        return [_webhook(row) for row in self._records.page(project, Page(order="asc"))[0]]


def _webhook(row: Row[Any]) -> Webhook:
    return Webhook(row.id, row.project, row.url, row.secret)
