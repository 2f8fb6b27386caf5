"""A program that ends when the process that started it does: ``python -m onsa.store.kept PID COMMAND…``.

Programs of others do not look whether they are still wanted, and may start more of themselves; here all of them end.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

from onsa.store.process import orphaned

POLL_S = 0.2
LEAVE_S = 20.0


def main(arguments: list[str]) -> int:
    """Run a command in a group of its own until it ends, or is to end: by SIGTERM, or since nobody wants it.

    Returns:
        The command's status.
    """
    parent, *command = arguments
    program = subprocess.Popen(command, start_new_session=True)
    deadline: float | None = None

    def end() -> None:
        nonlocal deadline
        deadline = time.monotonic() + LEAVE_S
        program.terminate()

    signal.signal(signal.SIGTERM, lambda *_: end())
    orphaned(end, int(parent))
    while program.poll() is None and (deadline is None or time.monotonic() < deadline):
        time.sleep(POLL_S)
    with suppress(ProcessLookupError):  # itself, where it does not leave, and whom it has started
        os.killpg(program.pid, signal.SIGKILL)
    return program.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
