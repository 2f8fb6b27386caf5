"""The process of the HTTP API: it imports nothing that is slow, so that it is there at once."""

from __future__ import annotations

import socket
import sys

import uvicorn

from onsa.app.api.asking import Models
from onsa.app.api.server import application
from onsa.store.database import Database
from onsa.store.process import orphaned

GRACE_S = 10


def main(arguments: list[str]) -> int:
    """Serve on a socket that the service's first process listens at, given by its number; models answer at a path.

    Args:
        arguments: the socket's number, the path, and the pid of the process that starts this one.
    """
    bound = socket.socket(fileno=int(arguments[0]))
    with Database() as database:
        config = uvicorn.Config(
            application(database, Models(arguments[1])),
            access_log=False,
            log_level="warning",
            server_header=False,
            timeout_graceful_shutdown=GRACE_S,
            lifespan="off",
        )
        server = uvicorn.Server(config)

        def end() -> None:
            server.should_exit = True

        orphaned(end, int(arguments[2]))
        server.run([bound])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
