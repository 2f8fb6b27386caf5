"""Store: the runs of this home, from creation to their end, with their metrics, artifacts and lineage."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Unpack, final

from sqlalchemy import Connection, Row, Select, Table, delete, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from onsa.spec.errors import Problem, StoreError
from onsa.store import schema as db
from onsa.store.atomic import sha256_file, sha256_files
from onsa.store.database import Database
from onsa.store.home import home
from onsa.store.process import Worker, lives, this_process
from onsa.store.run import Artifact, Fields, Link, Metric, Run, State

ID_DIGITS = 8
NEAREST = 3


@final
class Store:
    """The runs in one database. Threads may share it; a forked process opens its own.

    Every method that takes a run takes the :class:`Run` or its id, and raises StoreError where there is no such run or
    the database fails.
    """

    def __init__(self, url: str | None = None) -> None:
        """Open the database of ``url``, else that of ``ONSA_DB``, else the one in Onsa's home."""
        self._database = Database(url)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the database."""
        self._database.close()

    # Runs

    def create(self, identity: str, **fields: Unpack[Fields]) -> Run:
        """A new run in the state ``created``, with a folder of its own.

        Raises:
            MachineError: the folder cannot be made.
        """
        now = time.time()
        values = {
            **{name: str(fields.get(name, "")) for name in ("task", "model", "data", "adaptation")},
            "identity": identity,
            "state": State.CREATED.value,
            "created": now,
            "updated": now,
            "recipe": _dumped(fields.get("recipe", {})),
            "summary": _dumped({}),
        }
        short, again = fields.get("name") or identity[:ID_DIGITS], 1
        while True:
            run_id = short if again == 1 else f"{short}-{again}"
            try:
                with self._database.writing() as connection:
                    connection.execute(insert(db.runs).values(id=run_id, folder=f"runs/{run_id}", **values))
                break
            except IntegrityError:  # the id is taken, perhaps a moment ago by another process
                again += 1
        (home() / "runs" / run_id).mkdir(exist_ok=True)
        return self.get(run_id)

    def get(self, run_id: str) -> Run:
        """The run with exactly this id."""
        with self._database.reading() as connection:
            return _run(_row(connection, run_id))

    def named(self, run_id: str) -> Run | None:
        """The run with exactly this id, or none."""
        with self._database.reading() as connection:
            row = connection.execute(select(db.runs).where(db.runs.c.id == run_id)).first()
        return _run(row) if row else None

    def find(self, ref: str) -> Run:
        """The run that a user means: by id, by an id's beginning, by folder, or ``latest``.

        Raises:
            StoreError: no run is meant (the nearest ids are named), or more than one is (they are listed).
        """
        table = db.runs
        with self._database.reading() as connection:
            if ref == "latest":
                rows = connection.execute(_newest(1)).all()
            else:
                meant = or_(table.c.id.startswith(ref, autoescape=True), table.c.folder == _kept(Path(ref)))
                rows = connection.execute(_newest().where(meant)).all()
                rows = [row for row in rows if row.id == ref] or rows
            if not rows:
                raise _unknown(connection, ref)
        if len(rows) > 1:
            raise StoreError.of("run-ambiguous", value=ref, choices=", ".join(row.id for row in rows))
        return _run(rows[0])

    def list(self, limit: int | None = None) -> tuple[Run, ...]:
        """The newest runs, the newest first; all of them without a limit."""
        with self._database.reading() as connection:
            return tuple(map(_run, connection.execute(_newest(limit))))

    def by_identity(self, identity: str) -> Run | None:
        """The newest run with this identity."""
        with self._database.reading() as connection:
            row = connection.execute(_newest(1).where(db.runs.c.identity == identity)).first()
        return _run(row) if row else None

    # States

    def start(self, run: Run | str, fenced: bool = False) -> Run:
        """Put the run into the state ``running`` in this process. Of several processes that try, one succeeds.

        Args:
            fenced: something else sees to it that nobody is at this run any more, whatever stands in its row.

        Raises:
            StoreError: it has finished, or it is running in another process, which the message names.
        """
        run_id, me, table = _id(run), this_process(), db.runs
        while True:
            with self._database.writing() as connection:
                row = _row(connection, run_id)
                _startable(row, me, fenced)
                started = connection.execute(
                    update(table)
                    .where(table.c.id == run_id, table.c.state == row.state)
                    .where(table.c.pid.is_not_distinct_from(row.pid))
                    .values(
                        state=State.RUNNING.value,
                        error=None,
                        updated=time.time(),
                        pid=me.pid,
                        pid_started=me.started,
                        host=me.host,
                    )
                )
                # Databases that let two writers in at once let both read the old row; the first to write it wins.
                if started.rowcount == 1:
                    break
        run = self.get(run_id)
        run.folder.mkdir(exist_ok=True)  # a process that was killed may have written the run down, and no more
        return run

    def set_state(self, run: Run | str, state: State | str, error: str | None = None) -> Run:
        """Write down that the run is now created, paused, finished or failed, and why.

        Raises:
            ValueError: ``running``, which only :meth:`start` sets, or ``died``, which nobody does.
        """
        state = State(state)
        if state in (State.RUNNING, State.DIED):
            raise ValueError(f"a run becomes {state} by itself, or by start()")
        return self._update(run, state=state.value, error=error)

    def set_summary(self, run: Run | str, summary: Mapping[str, Any]) -> Run:
        """Write down what lists of runs show: the headline metric, its value, and so on."""
        return self._update(run, summary=_dumped(summary))

    # What runs make

    def add_metrics(self, run: Run | str, step: int, values: Mapping[str, float]) -> None:
        """Numbers of one step; those that a run resumed from an earlier step had written there are replaced."""
        table, run_id = db.metrics, _id(run)
        with self._database.writing() as connection:
            _touch(connection, run_id)
            connection.execute(
                delete(table).where(table.c.run == run_id, table.c.step == step, table.c.name.in_(list(values)))
            )
            rows = [
                {"run": run_id, "step": step, "name": name, "value": None if math.isnan(value) else float(value)}
                for name, value in values.items()
            ]
            if rows:
                connection.execute(insert(table), rows)

    def metrics(self, run: Run | str) -> tuple[Metric, ...]:
        """Every number of the run, by step and name."""
        table = db.metrics
        query = select(table.c.step, table.c.name, table.c.value).where(table.c.run == _id(run))
        with self._database.reading() as connection:
            rows = connection.execute(query.order_by(table.c.step, table.c.name))
            return tuple(Metric(step, name, math.nan if value is None else value) for step, name, value in rows)

    def add_artifact(self, run: Run | str, kind: str, path: Path) -> Artifact:
        """A file or folder that the run made, with the SHA-256 of its content; one at the same path is replaced."""
        run = self.get(_id(run))
        path = path.absolute()
        files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
        hashes = {file.relative_to(path).as_posix(): sha256_file(file) for file in files}
        artifact = Artifact(
            kind=kind,
            path=path.relative_to(run.folder).as_posix() if path.is_relative_to(run.folder) else str(path),
            sha256=hashes["."] if path.is_file() else sha256_files(hashes),
            bytes=sum(file.stat().st_size for file in files),
        )
        with self._database.writing() as connection:
            _touch(connection, run.id)
            _replace(connection, db.artifacts, {"run": run.id, "path": artifact.path}, artifact._asdict())
        return artifact

    def artifacts(self, run: Run | str) -> tuple[Artifact, ...]:
        """What the run made, by path."""
        table = db.artifacts
        query = select(table.c.kind, table.c.path, table.c.sha256, table.c.bytes).where(table.c.run == _id(run))
        with self._database.reading() as connection:
            return tuple(Artifact(*row) for row in connection.execute(query.order_by(table.c.path)))

    # Where runs come from

    def link(self, child: Run | str, parent: Run | str, relation: str) -> None:
        """Write down that ``child`` came out of ``parent``: resumed, tuned further, a trial of, …"""
        keys = {"child": _id(child), "parent": _id(parent), "relation": relation}
        with self._database.writing() as connection:
            _touch(connection, keys["child"])
            _row(connection, keys["parent"])
            _replace(connection, db.lineage, keys, {})

    def lineage(self, run: Run | str) -> tuple[Link, ...]:
        """Every relation among the run, those it came out of, and those that came out of it, over all generations."""
        table = db.lineage
        found: dict[Link, None] = {}
        with self._database.reading() as connection:
            for here, there in ((table.c.child, "parent"), (table.c.parent, "child")):
                seen: set[str] = set()
                front = {_id(run)}
                while front:
                    seen |= front
                    query = select(table.c.child, table.c.parent, table.c.relation).where(here.in_(front))
                    links = [Link(*row) for row in connection.execute(query.order_by(*table.c))]
                    found |= dict.fromkeys(links)
                    front = {getattr(link, there) for link in links} - seen
        return tuple(found)

    def _update(self, run: Run | str, **values: object) -> Run:
        with self._database.writing() as connection:
            _touch(connection, _id(run), **values)
        return self.get(_id(run))


def _id(run: Run | str) -> str:
    return run.id if isinstance(run, Run) else run


def _dumped(values: Mapping[str, Any]) -> str:
    return json.dumps(dict(values), ensure_ascii=False)


def _newest(limit: int | None = None) -> Select[Any]:
    return select(db.runs).order_by(db.runs.c.created.desc(), db.runs.c.id.desc()).limit(limit)


def _row(connection: Connection, run_id: str) -> Row[Any]:
    row = connection.execute(select(db.runs).where(db.runs.c.id == run_id)).first()
    if row is None:
        raise _unknown(connection, run_id)
    return row


def _touch(connection: Connection, run_id: str, **values: object) -> None:
    """Write about a run itself; first in each transaction, so that a run that is not there is said to be."""
    written = connection.execute(update(db.runs).where(db.runs.c.id == run_id).values(updated=time.time(), **values))
    if written.rowcount == 0:
        raise _unknown(connection, run_id)


def _replace(connection: Connection, table: Table, keys: Mapping[str, str], values: Mapping[str, object]) -> None:
    """Insert or overwrite, said in the one way that every database understands."""
    connection.execute(delete(table).where(*(table.c[name] == value for name, value in keys.items())))
    connection.execute(insert(table).values({**keys, **values}))


def _unknown(connection: Connection, ref: str) -> StoreError:
    known = list(connection.scalars(select(db.runs.c.id)))
    if not known:
        return StoreError(Problem("run-none", {"value": ref}))
    near = get_close_matches(ref, known, n=NEAREST, cutoff=0.4)
    newest = list(connection.scalars(select(db.runs.c.id).order_by(db.runs.c.created.desc()).limit(NEAREST)))
    return StoreError(Problem("run-unknown", {"value": ref, "near": ", ".join(near or newest)}))


def _startable(row: Row[Any], me: Worker, fenced: bool) -> None:
    """Refuse a run that has finished, or that another living process works on."""
    if row.state == State.FINISHED:
        raise StoreError.of("run-finished", run=row.id)
    worker = _worker(row)
    if row.state == State.RUNNING and not fenced and worker and not worker.same(me) and lives(worker):
        raise StoreError.of("run-running", run=row.id, pid=worker.pid, host=worker.host)


def _worker(row: Row[Any]) -> Worker | None:
    return None if row.pid is None else Worker(row.pid, row.pid_started, row.host)


def _run(row: Row[Any]) -> Run:
    state, worker = State(row.state), _worker(row)
    if state is State.RUNNING and worker is not None and not lives(worker):
        state = State.DIED
    return Run(
        id=row.id,
        identity=row.identity,
        state=state,
        task=row.task,
        model=row.model,
        data=row.data,
        adaptation=row.adaptation,
        created=datetime.fromtimestamp(row.created, UTC),
        updated=datetime.fromtimestamp(row.updated, UTC),
        folder=home() / row.folder,
        recipe=json.loads(row.recipe),
        summary=json.loads(row.summary),
        error=row.error,
        worker=worker,
    )


def _kept(folder: Path) -> str:
    """A run's folder as the table has it: relative to home, so that a home that is moved keeps its runs."""
    folder, base = folder.expanduser().resolve(), home().resolve()
    return folder.relative_to(base).as_posix() if folder.is_relative_to(base) else str(folder)
