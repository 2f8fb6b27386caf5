"""A store with all that the tests of OpenAI's own package ask for by name, put back before each of them."""

from __future__ import annotations

import json
import time
from typing import Any

from sqlalchemy import delete, insert, select, update

from onsa.store import schema as db
from onsa.store.aliases import Aliases
from onsa.store.blobs import Blobs
from onsa.store.database import Database
from onsa.store.key import Scope
from onsa.store.keys import Keys

BASE = "smollm2-135m"
MODELS = ("gpt-6-astra", "gpt-4o-mini", "gpt-3.5-turbo-instruct", "text-embedding-3-small")
TUNED = ("ft:gpt-4o-mini:acemeco:suffix:abc123", "ft:gpt-4o-mini-2024-07-18:org:weather:B7R9VjQd")
JOB = "ft-AF1WoRqd3aJAHsqc9NY7iL8F"
SECRETS = {"My API Key": set(Scope), "My Admin API Key": set(Scope)}
DATA = b'{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}\n' * 12
AFTER = "after"  # what lists are asked to begin behind
UPLOAD = "upload_abc123"
GRANTED = PART = "string"
# What is done to a job has to be possible: it is in another state for each call.
STATES = {"pause": "queued", "resume": "paused", "cancel": "queued"}


def seed(database: Database, test: str = "") -> None:
    """Put all that is asked for into its place. ``test``: the name of the test that follows."""
    keys = Keys(database)
    project = keys.project("seeded")
    known = {key.name for key in keys.list()}
    for secret, scopes in SECRETS.items():
        if secret not in known:
            keys.create(project, secret, frozenset(scopes), secret)
    aliases = Aliases(database)
    for name in MODELS:
        aliases.set(project, name, {BASE: 1.0})
    blobs, now = Blobs(), time.time()
    for name in ("file_id", "file-abc123", AFTER):
        blobs.write(name, [DATA])
    blobs.write(PART, [])
    state = next((state for call, state in STATES.items() if call in test), "succeeded")
    waiting = ("queued", "validating_files")
    with database.writing() as connection:
        if connection.scalar(select(db.projects.c.id).where(db.projects.c.id == GRANTED)) is None:
            connection.execute(insert(db.projects).values(id=GRANTED, name=GRANTED, created=now))
        for table in (db.permissions, db.events, db.checkpoints, db.parts):
            connection.execute(delete(table))
        for table, rows in _rows(state, now).items():
            connection.execute(delete(table).where(table.c.id.in_([row["id"] for row in rows])))
            connection.execute(insert(table), [{"project": project, "created": now, **row} for row in rows])
        connection.execute(insert(db.parts).values(id=PART, project=project, created=now, upload=UPLOAD, bytes=0))
        others = (db.jobs.c.status.in_(waiting), db.jobs.c.id != JOB)  # made by tests before this one
        connection.execute(update(db.jobs).where(*others).values(status="cancelled"))


def _rows(state: str, now: float) -> dict[Any, list[dict[str, Any]]]:
    file = {"filename": "seed.jsonl", "purpose": "fine-tune", "bytes": len(DATA), "sha256": "0" * 64, "expires": None}
    job = {
        "status": state,
        "model": BASE,
        "training_file": "file-abc123",
        "method": json.dumps({"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1}}}),
        "seed": 7,
        "result_files": "[]",
        "fence": 0,
        "attempts": 0,
        "started": None,
    }
    said = {"role": "assistant", "content": "hello", "refusal": None}
    document = {
        "object": "chat.completion",
        "created": int(now),
        "model": BASE,
        "choices": [{"index": 0, "message": said, "logprobs": None, "finish_reason": "stop"}],
    }
    completion = {"model": BASE, "metadata": "{}", "messages": json.dumps([said])}
    upload = {"filename": "f", "purpose": "fine-tune", "bytes": 0, "mime_type": "text/jsonl", "status": "pending"}
    return {
        db.files: [{"id": name, **file} for name in ("file_id", "file-abc123", AFTER)],
        db.jobs: [{"id": JOB, **job}, {"id": AFTER, **job}],
        db.events: [{"id": AFTER, "job": JOB, "level": "info", "type": "message", "message": "hello"}],
        db.checkpoints: [{"id": AFTER, "job": JOB, "step": 1, "model": TUNED[0], "metrics": "{}"}],
        db.models: [{"id": name, "base": BASE, "run": "none", "folder": "none"} for name in (*TUNED, JOB)],
        db.permissions: [
            {"id": name, "model": model, "granted": GRANTED}
            for name, model in (("cp_zc4Q7MP6XxulcVzj4MZdwsAB", TUNED[1]), (AFTER, JOB))
        ],
        db.completions: [
            {"id": name, "document": json.dumps({"id": name, **document}), **completion}
            for name in ("completion_id", AFTER)
        ],
        db.uploads: [{"id": UPLOAD, "expires": now + 3600, **upload}],
    }
