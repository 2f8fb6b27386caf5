"""Graders that are tried by request: in a process of their own, one after the other.

A user's template or text can take any time and memory, and answering must not wait for it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from typing import Any

from onsa.spec.errors import DataError

LONGEST_S = 120.0  # for one, with the model that it may have to load
MOST_WAITING = 8


class BusyError(Exception):
    """Too many wait; its argument is the seconds after which it may be worth asking again."""


class Trying:
    """The process, which is begun when it is first needed, and anew where it was ended."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._turn, self._count = threading.Lock(), threading.Lock()
        self._waiting = 0

    def ask(self, asked: dict[str, Any]) -> dict[str, Any]:
        """What :func:`onsa.programs.grading.main` says to something.

        Raises:
            BusyError: too many wait.
            DataError: it took too long, or too much.
        """
        with self._count:
            if self._waiting >= MOST_WAITING:
                raise BusyError(LONGEST_S / MOST_WAITING)
            self._waiting += 1
        try:
            with self._turn:
                line = self._said(json.dumps(asked))
        finally:
            with self._count:
                self._waiting -= 1
        if not line:
            raise DataError.of("grader-slow", key="grader", seconds=int(LONGEST_S))
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        """End it, also in the middle of something: who waits for that hears so."""
        process = self._process
        if process is not None:
            process.kill()
            with self._turn:
                if self._process is process:
                    self._left(process)

    def _said(self, asked: str) -> str:
        """Its answer; nothing where it was ended."""
        process = self._begun()
        assert process.stdin is not None and process.stdout is not None, "both are pipes"
        timer = threading.Timer(LONGEST_S, process.kill)
        timer.start()
        try:
            process.stdin.write(f"{asked}\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:
            line = ""
        finally:
            timer.cancel()
        if not line:
            self._left(process)
        return line

    def _begun(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            command = [sys.executable, "-m", "onsa.programs.grading"]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self._process

    def _left(self, process: subprocess.Popen[str]) -> None:
        process.communicate()
        self._process = None
