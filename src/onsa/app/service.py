"""The service as one tree of processes: the HTTP API, the models and the supervisor of jobs, each begun anew where it
ends.

The process that the user started keeps the others. It does nothing else, so that nothing but a signal ends it; where it
is killed, those notice, and end as well.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from tempfile import TemporaryDirectory

from onsa.spec.errors import MachineError
from onsa.spec.messages import say
from onsa.spec.serving import Answering
from onsa.store.database import Database
from onsa.store.key import Scope
from onsa.store.keys import Keys

POLL_S = 0.1
AGAIN_S = 1.0  # before a process that ended at once is begun anew
LEAVE_S = 40.0


@dataclass(frozen=True)
class Settings:
    """Where to listen, how many jobs are trained beside each other, and how requests are answered."""

    host: str
    port: int
    jobs: int
    answering: Answering


def first_key() -> str | None:
    """The secret of a key that allows all, where there is no key yet."""
    with Database() as database:
        keys = Keys(database)
        if any(key.revoked is None for key in keys.list()):
            return None
        return keys.create(keys.project(), "first", frozenset(Scope))[1]


def run(settings: Settings, progress: Callable[[str], None]) -> int:
    """Serve until SIGINT or SIGTERM.

    Raises:
        MachineError: the address cannot be listened at.
    """
    over = threading.Event()
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, lambda *_: over.set())
    with _listening(settings) as bound, TemporaryDirectory(prefix="onsa-") as folder:
        # Here, so that a web process that is begun anew finds the same socket, with whoever waits at it.
        host, port = bound.getsockname()[:2]
        commands = {
            "web": ["onsa.app.web", str(bound.fileno()), f"{folder}/models"],
            "models": ["onsa.app.host", f"{folder}/models", json.dumps(asdict(settings.answering))],
            "supervisor": ["onsa.programs.jobs.supervisor", str(settings.jobs)],
        }
        began: dict[str, tuple[subprocess.Popen[bytes], float]] = {}

        def begin(name: str) -> None:
            command = [sys.executable, "-m", *commands[name], str(os.getpid())]
            process = subprocess.Popen(command, pass_fds=[bound.fileno()], start_new_session=True)
            began[name] = (process, time.monotonic())

        for name in commands:
            begin(name)
        progress(say("serve-at", url=f"http://{host}:{port}/v1"))
        while not over.wait(POLL_S):
            for name, (process, at) in list(began.items()):
                if process.poll() is not None and time.monotonic() - at > AGAIN_S:
                    progress(say("serve-again", name=name, status=process.returncode))
                    begin(name)
        progress(say("serve-ends"))
        _end([process for process, _ in began.values()])
    return 0


def _listening(settings: Settings) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        return socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except OSError as error:
        place = f"{settings.host}:{settings.port}"
        raise MachineError.of("serve-address", place=place, reason=error.strerror or str(error)) from None


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + LEAVE_S
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
