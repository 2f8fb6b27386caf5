"""A worker between its job and the queue: it lets go of what is cancelled, also while it takes no steps."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from onsa.programs.jobs import worker
from onsa.programs.jobs.worker import Work
from onsa.store.database import Database
from onsa.store.files import Files
from onsa.store.job import Order, Status
from onsa.store.jobs import Jobs
from onsa.store.keys import Keys

ORDER = Order("smollm2-135m", "file-x", {"type": "supervised"}, 7)


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Iterator[Work]:
    """A job in the hands of this process, which asks after it many times a second."""
    monkeypatch.setattr(worker, "LEASE_S", 0.25)
    with Database() as database:
        jobs = Jobs(database)
        made = jobs.create(Keys(database).project("mine"), ORDER)
        lease = jobs.take(made, Status.RUNNING)
        assert lease is not None
        yield Work(database, jobs, Files(database), jobs.get(None, made.id), lease)


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set where the process would have ended."""
    ended = threading.Event()
    monkeypatch.setattr(worker.os, "_exit", lambda _: ended.set())
    return ended


@pytest.mark.parametrize("stepping", [False, True])
def test_cancelled_while_it_takes_no_steps(work: Work, left: threading.Event, stepping: bool) -> None:
    work.stepping = stepping
    with worker._beating(work):
        work.jobs.cancel(work.job.project, work.job.id)
        assert left.wait(1.0 if stepping else 20.0) is not stepping
    found = work.jobs.get(None, work.job.id)
    assert found.status is (Status.RUNNING if stepping else Status.CANCELLED)


def test_a_pause_waits_for_the_end_of_measuring(work: Work, left: threading.Event) -> None:
    with worker._beating(work):
        work.jobs.pause(work.job.project, work.job.id)
        assert not left.wait(1.0)
    assert work.jobs.get(None, work.job.id).status is Status.RUNNING


def test_ends_where_the_job_is_lost(work: Work, left: threading.Event) -> None:
    with worker._beating(work):
        work.jobs.end(work.lease, Status.QUEUED)
        assert left.wait(20.0)
