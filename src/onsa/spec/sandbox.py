"""Sandbox: Python source of others, run where it can do nothing but compute (Linux, on x86-64 and ARM).

It runs in a process of its own, which before it sees the source gives up, for good, every system call but those that
memory, time and its two pipes need (seccomp): it cannot open a file, reach a network, begin a process or signal one.
Its memory and the time of an answer are bounded.

The second half of this file is what runs in that process: it is started by path, alone, and so imports nothing of Onsa.
"""

import contextlib
import json
import os
import platform
import selectors
import subprocess
import sys
import time
import weakref

MEMORY_BYTES = 512 << 20
ANSWER_S = 10.0  # for one answer, and for the source itself
ORPHAN_S = 600  # of the processor's time in all, should nobody be left to end it
SOURCE_BYTES = 256 << 10
LINE_BYTES = 1 << 20
# Library modules that the source may import: they are there before files are out of reach.
MODULES = (
    *("bisect", "collections", "copy", "dataclasses", "datetime", "decimal", "difflib", "enum", "fractions"),
    *("functools", "heapq", "itertools", "json", "math", "operator", "random", "re", "statistics", "string"),
    *("textwrap", "typing", "unicodedata"),
)


class SandboxError(Exception):
    """The source failed, took too long or too much, or cannot be run safely here."""


class Sandbox:
    """A function ``grade(sample, item)`` of some source, in a process of its own.

    Raises:
        SandboxError: the source is too long, or fails; or this machine cannot hold it.
    """

    def __init__(self, source: str) -> None:
        if len(source.encode()) > SOURCE_BYTES:
            raise SandboxError(f"the source is longer than {SOURCE_BYTES} bytes")
        if not possible():
            raise SandboxError(f"source cannot be run safely on {platform.system()} {platform.machine()}")
        self._source = source
        self._asks = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._ends: weakref.finalize[[subprocess.Popen[bytes]], Sandbox] | None = None
        self._begun()

    def call(self, sample: dict[str, object], item: dict[str, object]) -> float:
        """What the function gives.

        Raises:
            SandboxError: it fails, gives no number, or takes too long or too much.
        """
        process = self._begun()
        said = self._asked(process, {"sample": sample, "item": item})
        value = said.get("value")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise SandboxError(str(said.get("error", "it gives no number")))
        return float(value)

    def close(self) -> None:
        """End the process."""
        if self._ends is not None:
            self._ends()
        self._process = self._ends = None

    def _begun(self) -> "subprocess.Popen[bytes]":
        """The process, begun anew where the last answer ended it."""
        if self._process is None or self._process.poll() is not None:
            self.close()
            command = [sys.executable, "-I", "-S", os.path.abspath(__file__)]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            self._process = subprocess.Popen(command, env={}, cwd="/", **pipes)  # type: ignore[call-overload]
            self._ends = weakref.finalize(self, _end, self._process)
            said = self._asked(self._process, {"source": self._source})
            if "error" in said:
                self.close()
                raise SandboxError(str(said["error"]))
        return self._process

    def _asked(self, process: "subprocess.Popen[bytes]", asked: dict[str, object]) -> dict[str, object]:
        assert process.stdin is not None and process.stdout is not None
        self._asks += 1
        try:
            process.stdin.write(json.dumps({"ask": self._asks, **asked}).encode() + b"\n")
            process.stdin.flush()
            said = json.loads(self._line(process))
        except (OSError, ValueError) as error:
            self.close()
            raise SandboxError(str(error) if isinstance(error, TimeoutError) else "its process ended") from None
        if not isinstance(said, dict) or said.get("ask") != self._asks:  # what the source wrote there itself
            self.close()
            raise SandboxError("it gives no number")
        return said

    def _line(self, process: "subprocess.Popen[bytes]") -> bytes:
        assert process.stdout is not None
        line, deadline = b"", time.monotonic() + ANSWER_S
        with selectors.DefaultSelector() as waiting:
            waiting.register(process.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                left = deadline - time.monotonic()
                if left <= 0 or not waiting.select(left):
                    raise TimeoutError(f"it takes longer than {ANSWER_S:g} s")
                part = os.read(process.stdout.fileno(), LINE_BYTES)
                line += part
                if not part or len(line) > LINE_BYTES:
                    raise ValueError("no answer")
        return line


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.communicate()


def possible() -> bool:
    """Whether this machine can hold such a process."""
    return sys.platform == "linux" and platform.machine() in CALLS


# What runs in the process itself. Numbers are the kernel's: those of system calls, of prctl, and of its filters.

READ, WRITE, CLOSE, SEEK, STAT = ((0, 63), (1, 64), (3, 57), (8, 62), (5, 80))
MEMORY = ((9, 222), (10, 226), (11, 215), (12, 214), (25, 216), (28, 233))  # mmap mprotect munmap brk mremap madvise
SIGNALS = ((13, 134), (14, 135), (15, 139), (131, 132))  # rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack
TIME = ((228, 113), (230, 115), (35, 101), (24, 124))  # clock_gettime clock_nanosleep nanosleep sched_yield
SELF = ((39, 172), (186, 178), (202, 98), (318, 278), (60, 93), (231, 94))  # getpid gettid futex getrandom exit, of all
_ALL = (READ, WRITE, CLOSE, SEEK, STAT, *MEMORY, *SIGNALS, *TIME, *SELF)
CALLS = {
    "x86_64": (0xC000003E, tuple(pair[0] for pair in _ALL)),
    "aarch64": (0xC00000B7, tuple(pair[1] for pair in _ALL)),
}
NO_NEW_PRIVILEGES, SECCOMP, FILTER = 38, 22, 2
LOAD, EQUAL, GIVE = 0x20, 0x15, 0x06
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050001, 0x80000000  # refused with EPERM


def lock() -> None:
    """Give up all but computing, for good."""
    import ctypes
    import resource
    import struct

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (ORPHAN_S, ORPHAN_S))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    architecture, calls = CALLS[platform.machine()]
    steps = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, architecture), (GIVE, 0, 0, KILL), (LOAD, 0, 0, 0)]
    for number in calls:
        steps += [(EQUAL, 0, 1, number), (GIVE, 0, 0, ALLOW)]
    steps.append((GIVE, 0, 0, REFUSE))
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(steps), ctypes.addressof(code)))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    for asked in ((NO_NEW_PRIVILEGES, 1, 0, 0, 0), (SECCOMP, FILTER, ctypes.byref(program), 0, 0)):
        if prctl(*asked) != 0:
            raise OSError(ctypes.get_errno(), "the kernel takes no filter")


def main() -> None:
    """Read requests, a JSON line each, and answer them, until there are no more."""
    for name in MODULES:
        __import__(name)
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdin = sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115

    def answer(ask: object, said: dict[str, object]) -> None:
        answers.write(json.dumps({"ask": ask, **said}).encode() + b"\n")
        answers.flush()

    lock()  # where it cannot, the process ends, and nothing of the source was seen
    space: dict[str, object] = {"__name__": "grader"}
    asked = json.loads(requests.readline())
    try:
        exec(compile(asked["source"], "<grader>", "exec"), space)
        grade = space["grade"]
    except BaseException as error:
        answer(asked["ask"], {"error": _said(error)})
        return
    answer(asked["ask"], {})
    for line in requests:
        try:
            asked = json.loads(line)
            answer(asked["ask"], {"value": grade(asked["sample"], asked["item"])})  # type: ignore[operator]
        except BaseException as error:
            with contextlib.suppress(Exception):
                answer(asked["ask"], {"error": _said(error)})


def _said(error: BaseException) -> str:
    if isinstance(error, KeyError) and error.args == ("grade",):
        return "it defines no function grade(sample, item)"
    return f"{type(error).__name__}: {error}"[:500]


if __name__ == "__main__":
    main()
