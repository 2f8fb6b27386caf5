"""Jobs: what a project wants trained, with its events and checkpoints, and the queue that hands them to workers.

A job is one row. Whoever works on it holds a :class:`Lease`: until when, and the fence, a number that grows each time
the job is handed out. All that a worker writes is written only while the row still has the worker's fence, so that one
that was thought dead, and wakes, changes nothing.

::

    validating ──▶ queued ──▶ running ──▶ succeeded
        │            │  ▲        │   ├──▶ failed
        │            ▼  │        │   └──▶ queued      (its worker died; from its last checkpoint)
        └─────────▶ paused ◀─────┘        ── every state before an end ──▶ cancelled
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, final

from sqlalchemy import Connection, Row, func, select, update

from onsa.spec.errors import ConflictError, Problem, StoreError
from onsa.spec.messages import say
from onsa.store import schema as db
from onsa.store.database import Database
from onsa.store.job import ENDS, HELD, Job, JobEvent, Lease, Order, Status, Wish
from onsa.store.models import Models
from onsa.store.process import Worker
from onsa.store.records import Page, Records, dumped, holding, loaded
from onsa.store.webhooks import Webhooks

LEASE_S = 15.0
MOST_ATTEMPTS = 6  # workers that may die at one job without its having come further
CHECKPOINTS = 3  # of a job that can be asked
NO_MATTER: Mapping[str, str] = {}


@final
class Jobs:
    """The jobs of all projects."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._records = Records(database, db.jobs, "ftjob-", "fine-tuning job")
        self._events = Records(database, db.events, "ftevent-", "event")
        self._checkpoints = Records(database, db.checkpoints, "ftckpt_", "checkpoint")
        self._models = Models(database)
        self._webhooks = Webhooks(database)

    # What users do

    def create(self, project: str, order: Order) -> Job:
        """Take an order."""
        values = {
            "status": Status.VALIDATING.value,
            "model": order.model,
            "training_file": order.training_file,
            "validation_file": order.validation_file,
            "method": dumped(order.method),
            "seed": order.seed,
            "suffix": order.suffix,
            "metadata": dumped(order.metadata),
            "integrations": dumped(order.integrations),
            "result_files": dumped([]),
            "fence": 0,
            "attempts": 0,
        }
        with self._database.writing() as connection:
            name = self._records.add(connection, project, **values)
            self._tell(connection, project, name, JobEvent(say("event-created", job=name)))
            self._tell(connection, project, name, JobEvent(say("event-validating", file=order.training_file)))
        return self.get(project, name)

    def get(self, project: str | None, name: str) -> Job:
        """One job.

        Raises:
            MissingError: the project has none of this id.
        """
        return _job(self._records.get(project, name))

    def page(
        self, project: str | None, page: Page, metadata: Mapping[str, str] | None = NO_MATTER
    ) -> tuple[list[Job], bool]:
        """Some jobs, the newest first, and whether there are more; ``metadata``: that they must have, or have none."""
        where = holding(db.jobs.c.metadata, metadata)
        rows, more = self._records.page(project, page, *where)
        return [_job(row) for row in rows], more

    def events(self, project: str, name: str, page: Page) -> tuple[list[Row[Any]], bool]:
        """Some events of a job, and whether there are more.

        Raises:
            MissingError: the project has no such job, or it no such event.
        """
        self._records.get(project, name)
        return self._events.page(project, page, db.events.c.job == name)

    def checkpoints(self, project: str, name: str, page: Page) -> tuple[list[Row[Any]], bool]:
        """Some checkpoints of a job, and whether there are more.

        Raises:
            MissingError: the project has no such job, or it no such checkpoint.
        """
        self._records.get(project, name)
        return self._checkpoints.page(project, page, db.checkpoints.c.job == name)

    def cancel(self, project: str, name: str) -> Job:
        """End a job; one that a worker has ends within its next step.

        Raises:
            MissingError: the project has none of this id.
            ConflictError: it has ended already.
        """
        with self._database.writing() as connection:
            row = self._records.read(connection, project, name)
            if row.status in ENDS:
                raise _conflict(row)
            values: dict[str, Any] = {"wanted": Wish.CANCEL.value}
            if not _held(row):
                values = _standing(Status.CANCELLED)
                self._tell(connection, row.project, name, JobEvent(say("event-cancelled")))
                self._note(connection, row.project, name, Status.CANCELLED)
            self._records.change(connection, project, name, values)
        return self.get(project, name)

    def pause(self, project: str, name: str) -> Job:
        """Let a job rest; one that a worker has rests within its next step.

        Raises:
            MissingError: the project has none of this id.
            ConflictError: it rests, has ended, or is being cancelled.
        """
        with self._database.writing() as connection:
            row = self._records.read(connection, project, name)
            if row.status in ENDS or row.status == Status.PAUSED or row.wanted is not None:
                raise _conflict(row)
            values = {"wanted": Wish.PAUSE.value} if _held(row) else {"status": Status.PAUSED.value}
            if not _held(row):
                self._tell(connection, row.project, name, JobEvent(say("event-paused")))
            self._records.change(connection, project, name, values)
        return self.get(project, name)

    def resume(self, project: str, name: str) -> Job:
        """Let a job that rests go on.

        Raises:
            MissingError: the project has none of this id.
            ConflictError: it does not rest.
        """
        with self._database.writing() as connection:
            row = self._records.read(connection, project, name)
            if row.wanted == Wish.PAUSE:
                values: dict[str, Any] = {"wanted": None}
            elif row.status == Status.PAUSED:
                values = {"status": (Status.QUEUED if row.started else Status.VALIDATING).value}
                self._tell(connection, row.project, name, JobEvent(say("event-resumed")))
            else:
                raise _conflict(row)
            self._records.change(connection, project, name, values)
        return self.get(project, name)

    # What the supervisor does

    def next(self, status: Status) -> Job | None:
        """The job of those of a status, and free, that is next.

        That of the project with the fewest running jobs; of several, of the one whose last job began longest ago; and
        of those the oldest.
        """
        table, now = db.jobs, time.time()
        running = select(table.c.project, func.count().label("held")).where(table.c.lease_until > now)
        running_by = running.where(table.c.status == Status.RUNNING.value).group_by(table.c.project).subquery()
        last_by = select(table.c.project, func.max(table.c.started).label("last")).group_by(table.c.project).subquery()
        free = table.c.lease_until.is_(None)
        query = (
            select(table)
            .outerjoin(running_by, running_by.c.project == table.c.project)
            .outerjoin(last_by, last_by.c.project == table.c.project)
            .where(table.c.status == status.value, free)
            .order_by(func.coalesce(running_by.c.held, 0), func.coalesce(last_by.c.last, 0), table.c.seq)
        )
        with self._database.reading() as connection:
            row = connection.execute(query.limit(1)).first()
        return None if row is None else _job(row)

    def held(self) -> list[Job]:
        """Jobs that were handed out, the oldest first; of some the lease may have run out."""
        where = (db.jobs.c.lease_until.is_not(None), db.jobs.c.status.in_([status.value for status in HELD]))
        rows, _ = self._records.page(None, Page(order="asc"), *where)
        return [_job(row) for row in rows]

    def counts(self) -> dict[str, int]:
        """How many jobs there are of each status."""
        query = select(db.jobs.c.status, func.count()).group_by(db.jobs.c.status)
        with self._database.reading() as connection:
            found = {row[0]: row[1] for row in connection.execute(query)}
        return {status.value: found.get(status.value, 0) for status in Status}

    def take(self, job: Job, status: Status, lease_s: float = LEASE_S) -> Lease | None:
        """Hand a job out, as it was read, or nothing where somebody else was first."""
        held = {"fence": job.fence + 1, "lease_until": time.time() + lease_s, "attempts": job.attempts + 1}
        values: dict[str, Any] = {"status": status.value, **held}
        if status is Status.RUNNING:
            values["started"] = time.time()
        column = db.jobs.c
        unchanged = (column.id == job.id, column.fence == job.fence, column.status == job.status.value)
        with self._database.writing() as connection:
            taken = connection.execute(update(db.jobs).where(*unchanged).values(**values, pid=None))
        return Lease(job.id, job.fence + 1) if taken.rowcount else None

    def give_up(self, job: Job) -> None:
        """Take a job from a worker that died: back into the queue, or, after several, to its end."""
        with self._database.writing() as connection:
            unchanged = (db.jobs.c.id == job.id, db.jobs.c.fence == job.fence)
            row = connection.execute(select(db.jobs).where(*unchanged).with_for_update()).first()
            if row is not None:
                self._give_up(connection, _job(row))

    def _give_up(self, connection: Connection, job: Job) -> None:
        status = Status.QUEUED if job.status is Status.RUNNING else Status.VALIDATING
        event, values = JobEvent(say("event-lost"), "warn"), dict[str, Any]()
        if job.wanted is not None:
            status, event = _wished(job.wanted)
        elif job.attempts >= MOST_ATTEMPTS:
            status, event = Status.FAILED, JobEvent(say("event-given-up", times=job.attempts), "error")
            values["error"] = dumped({"code": "server_error", "message": event.message, "param": None})
        values |= _standing(status) | {"fence": job.fence + 1, "lease_until": None, "wanted": None, "pid": None}
        connection.execute(update(db.jobs).where(db.jobs.c.id == job.id).values(**values))
        self._tell(connection, job.project, job.id, event)
        self._note(connection, job.project, job.id, status)

    # What a worker does

    def beat(self, lease: Lease, worker: Worker, lease_s: float = LEASE_S) -> Wish | None:
        """Say that the worker lives; returns what a user wants of the job.

        Raises:
            StoreError: the job is no longer in its hands.
        """
        until = {"lease_until": time.time() + lease_s, "host": worker.host}
        with self._held(lease, pid=worker.pid, pid_started=worker.started, **until) as (_, row):
            return None if row.wanted is None else Wish(row.wanted)

    def tell(self, lease: Lease, *events: JobEvent, **values: Any) -> None:
        """Write events, and values of the job, such as its ``run`` or ``estimated`` end.

        Raises:
            StoreError: the job is no longer in the worker's hands.
        """
        with self._held(lease, **values) as (connection, row):
            for event in events:
                self._tell(connection, row.project, lease.job, event)

    def checkpoint(self, lease: Lease, step: int, model: str, metrics: Mapping[str, float], folder: str) -> list[str]:
        """Write down a checkpoint that can be asked under a model's name; a job has the last few of them.

        A job that has come further than before is given its full count of attempts again.

        Returns:
            The folders of those that are no more.

        Raises:
            StoreError: the job is no longer in the worker's hands.
        """
        table = db.checkpoints
        with self._held(lease, attempts=0) as (connection, row):
            query = select(table).where(table.c.job == lease.job).order_by(table.c.step)
            found = list(connection.execute(query))
            if step in [one.step for one in found]:
                return []  # a worker before this one had come so far
            told = {"job": lease.job, "step": step, "model": model, "metrics": dumped(dict(metrics))}
            self._checkpoints.add(connection, row.project, **told)
            self._models.add(connection, row.project, model, row.model, lease.job, folder)
            gone = found[: len(found) + 1 - CHECKPOINTS]
            for one in gone:
                self._checkpoints.remove(connection, None, one.id)
            dropped = [self._models.drop(connection, one.model) for one in gone]
            return [path for path in dropped if path is not None]

    def end(self, lease: Lease, status: Status, *events: JobEvent, **values: Any) -> None:
        """Let go of a job: ended, or back in the queue, unless a user wanted something else of it meanwhile.

        Args:
            values: ``error``, ``fine_tuned_model`` with its ``folder``, ``result_files``, ``trained_tokens``.

        Raises:
            StoreError: the job is no longer in the worker's hands.
        """
        folder = values.pop("folder", None)
        values = {name: dumped(value) if isinstance(value, list | dict) else value for name, value in values.items()}
        with self._held(lease, lease_until=None, wanted=None, pid=None) as (connection, row):
            if status not in ENDS:
                values["attempts"] = 0
                if row.wanted is not None:
                    status, wished = _wished(Wish(row.wanted))
                    events = (wished,)
            self._records.change(connection, None, lease.job, values | _standing(status))
            for event in events:
                self._tell(connection, row.project, lease.job, event)
            self._note(connection, row.project, lease.job, status)
            if folder is not None:
                self._models.add(connection, row.project, values["fine_tuned_model"], row.model, lease.job, folder)

    @contextmanager
    def _held(self, lease: Lease, **values: Any) -> Iterator[tuple[Connection, Row[Any]]]:
        """A transaction in which a job is in a worker's hands, with the job's row as it was.

        A job that the worker has let go of is in nobody's.
        """
        held = [status.value for status in HELD]
        mine = (db.jobs.c.id == lease.job, db.jobs.c.fence == lease.fence, db.jobs.c.status.in_(held))
        with self._database.writing() as connection:
            row = connection.execute(select(db.jobs).where(*mine).with_for_update()).first()
            if row is None:
                raise StoreError.of("job-taken", value=lease.job)
            if values:
                connection.execute(update(db.jobs).where(*mine).values(**values))
            yield connection, row

    def _note(self, connection: Connection, project: str, job: str, status: Status) -> None:
        """Let a project's webhooks be told of a job that has ended."""
        if status in ENDS:
            self._webhooks.note(connection, project, f"fine_tuning.job.{status.value}", job)

    def _tell(self, connection: Connection, project: str, job: str, event: JobEvent) -> None:
        told = {"level": event.level, "type": event.type, "message": event.message, "data": dumped(event.data or None)}
        self._events.add(connection, project, job=job, **told)


def _held(row: Row[Any]) -> bool:
    """Whether a worker has a job, or one that nobody has heard of for a while."""
    return row.status in HELD and row.lease_until is not None


def _wished(wish: Wish) -> tuple[Status, JobEvent]:
    """What becomes of a job of which a user wants something, when its worker has let go of it."""
    if wish is Wish.CANCEL:
        return Status.CANCELLED, JobEvent(say("event-cancelled"))
    return Status.PAUSED, JobEvent(say("event-paused"))


def _standing(status: Status) -> dict[str, Any]:
    """A status, and what goes with it."""
    rests = {} if status is Status.RUNNING else {"estimated": None}
    ended = {"finished": time.time()} if status in ENDS else {}
    return {"status": status.value, **rests, **ended}


def _conflict(row: Row[Any]) -> ConflictError:
    return ConflictError(Problem("job-state", {"value": row.id, "status": row.wanted or row.status}))


def _job(row: Row[Any]) -> Job:
    worker = None if row.pid is None else Worker(row.pid, row.pid_started, row.host)
    given = (row.model, row.training_file, loaded(row.method), row.seed, row.validation_file, row.suffix)
    order = Order(*given, loaded(row.metadata), loaded(row.integrations))
    wanted = None if row.wanted is None else Wish(row.wanted)
    ended = (loaded(row.error), row.finished, row.estimated, row.fine_tuned_model, loaded(row.result_files))
    facts = (row.id, row.project, row.created, Status(row.status), order, *ended, row.trained_tokens, row.run)
    return Job(*facts, wanted, row.fence, row.lease_until, row.attempts, worker)
