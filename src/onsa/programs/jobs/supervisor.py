"""Supervisor: hands jobs out to workers, a process each, and takes them back from those that died.

It keeps nothing that the database does not have: one that is killed is replaced by another, and workers go on
meanwhile.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field

from onsa.programs.jobs.telling import tell
from onsa.store.database import Database
from onsa.store.files import Files, Uploads
from onsa.store.job import Job, Lease, Status
from onsa.store.jobs import Jobs
from onsa.store.process import Worker, lives, orphaned, process_of, runs, this_process
from onsa.store.webhooks import Webhooks

POLL_S = 0.3
SWEEP_S = 60.0
NICENESS = 19  # training takes what answering leaves
HUNG_S = 1800.0  # how late a worker of this machine may be that is seen to run
LEAVE_S = 30.0  # what workers have to put their work down when the service ends


@dataclass
class Supervisor:
    """The workers that this process starts.

    at_once: jobs that are trained beside each other, over all machines that share the database; one more is validated.
    """

    database: Database
    at_once: int = 1
    started: dict[Lease, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.jobs = Jobs(self.database)
        self.files = Files(self.database)
        self.uploads = Uploads(self.database, self.files)

    def run(self, over: threading.Event) -> None:
        """Supervise until it is over; then workers are asked to put their work down."""
        swept = 0.0
        threading.Thread(target=tell, args=(Webhooks(self.database), over), daemon=True).start()
        while not over.wait(POLL_S):
            self.tend()
            if time.monotonic() - swept > SWEEP_S:
                self.files.sweep()
                self.uploads.sweep()
                swept = time.monotonic()
        self._leave()

    def _leave(self) -> None:
        """Let the workers of this machine put their work down, whoever started them."""
        here = this_process().host
        workers = [job.worker for job in self.jobs.held() if job.worker is not None and job.worker.host == here]
        for worker in workers:
            _signal(worker, signal.SIGTERM)
        for process in self.started.values():  # some may not have said yet that they live
            process.terminate()
        deadline = time.monotonic() + LEAVE_S
        while any(map(lives, workers)) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        for worker in workers:
            _end(worker)

    def tend(self) -> None:
        """One round: take back what was lost, hand out what is free."""
        self.started = {lease: process for lease, process in self.started.items() if process.poll() is None}
        held = list(self.jobs.held())
        for job in held:
            if self._lost(job):
                _end(job.worker)
                self.jobs.give_up(job)
        held = [job for job in held if not self._lost(job)]
        if not any(job.status is Status.VALIDATING for job in held):
            self._hand_out(Status.VALIDATING, "validate")
        for _ in range(self.at_once - sum(job.status is Status.RUNNING for job in held)):
            if not self._hand_out(Status.QUEUED, "run"):
                return

    def _lost(self, job: Job) -> bool:
        """Whether nobody works on a job any more, as far as can be seen from here.

        On a machine that is busy with answering, a worker may come to renew its lease long after it has run out.
        """
        assert job.lease_until is not None, "it is held"
        if job.worker is not None and not lives(job.worker):
            return True
        return time.time() - job.lease_until >= (HUNG_S if self._runs(job) else 0)

    def _runs(self, job: Job) -> bool:
        """Whether a job's worker is seen to run here; one that has not yet said that it lives, by who started it."""
        if job.worker is not None:
            return runs(job.worker)
        process = self.started.get(Lease(job.id, job.fence))
        return process is not None and process.poll() is None and runs(process_of(process.pid))

    def _hand_out(self, status: Status, what: str) -> bool:
        job = self.jobs.next(status)
        if job is None:
            return False
        lease = self.jobs.take(job, Status.RUNNING if status is Status.QUEUED else status)
        if lease is not None:
            self.started[lease] = _worker(what, lease)
        return lease is not None


def _worker(what: str, lease: Lease) -> subprocess.Popen[bytes]:
    """The process of a worker, in a group of its own: what stops the service in a terminal does not reach it."""
    command = [sys.executable, "-m", "onsa.programs.jobs.worker", what, lease.job, str(lease.fence)]
    return subprocess.Popen(command, start_new_session=True, preexec_fn=_yielding)


def _yielding() -> None:
    """Run at the lowest priority. Where Linux groups processes by session, a process's own niceness counts within its
    session alone, and the group's has to be set as well."""
    os.nice(NICENESS)
    with suppress(OSError), open("/proc/self/autogroup", "w") as group:
        group.write(str(NICENESS))


def _end(worker: Worker | None) -> None:
    """Kill a worker that is thought dead, if it is a process of this machine, before its job is another's."""
    if worker is None or worker.host != this_process().host:
        return
    while lives(worker):
        _signal(worker, signal.SIGKILL)
        time.sleep(0.01)


def _signal(worker: Worker, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        if lives(worker):
            os.kill(worker.pid, number)


def main(arguments: list[str]) -> int:
    """Supervise so many jobs at once, until SIGTERM, SIGINT, or the end of the process with the pid that follows."""
    over = threading.Event()
    for one in (signal.SIGTERM, signal.SIGINT):
        signal.signal(one, lambda *_: over.set())
    orphaned(over.set, int(arguments[1]))
    with Database() as database:
        Supervisor(database, int(arguments[0])).run(over)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
