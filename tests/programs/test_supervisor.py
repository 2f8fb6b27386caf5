"""Supervisor: who is thought to have lost a job, and who is only slow."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from onsa.programs.jobs import supervisor as module
from onsa.programs.jobs.supervisor import Supervisor
from onsa.store.database import Database
from onsa.store.job import Lease
from onsa.store.process import Worker, process_of


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    started = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield started
    started.kill()
    started.wait()


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    with Database() as database:
        yield Supervisor(database)


def held(worker: Worker | None, late_s: float = 5.0) -> Any:
    """A job whose lease ran out a while ago."""
    return SimpleNamespace(id="ftjob-1", fence=3, worker=worker, lease_until=time.time() - late_s)


def test_a_worker_that_is_seen_to_run_is_only_slow(
    supervisor: Supervisor, process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = process_of(process.pid)
    assert not supervisor._lost(held(worker))
    assert supervisor._lost(held(replace(worker, host="elsewhere")))
    assert not supervisor._lost(held(replace(worker, host="elsewhere"), -5.0))
    monkeypatch.setattr(module, "HUNG_S", 4.0)
    assert supervisor._lost(held(worker))


def test_one_that_is_stopped_or_gone_has_lost_it(supervisor: Supervisor, process: subprocess.Popen[bytes]) -> None:
    worker = process_of(process.pid)
    process.send_signal(signal.SIGSTOP)
    while psutil.Process(process.pid).status() != psutil.STATUS_STOPPED:
        time.sleep(0.01)
    assert supervisor._lost(held(worker)) and not supervisor._lost(held(worker, -5.0))
    process.send_signal(signal.SIGCONT)
    while supervisor._lost(held(worker)):
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert supervisor._lost(held(worker, -5.0))


def test_one_that_has_not_yet_said_that_it_lives(supervisor: Supervisor, process: subprocess.Popen[bytes]) -> None:
    assert supervisor._lost(held(None)) and not supervisor._lost(held(None, -5.0))
    supervisor.started[Lease("ftjob-1", 2)] = process  # of a lease before
    assert supervisor._lost(held(None))
    supervisor.started[Lease("ftjob-1", 3)] = process
    assert not supervisor._lost(held(None))
    process.kill()
    process.wait()
    assert supervisor._lost(held(None))
