"""The service for a benchmark: ``onsa serve`` over a home of its own, and a client of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from openai import OpenAI

STARTS_S = 60
ENDS = ("succeeded", "failed", "cancelled")


@contextmanager
def service(home: Path, **environ: str) -> Iterator[tuple[OpenAI, psutil.Process]]:
    """A client with the first key, and the process that keeps the others."""
    known = {**os.environ, "ONSA_HOME": str(home), "ONSA_LANG": "en", **environ}
    command = [sys.executable, "-c", "from onsa.app.cli import main; main()", "serve", "--port", "0"]
    place = home / "said.txt"
    with place.open("w") as said:
        process = subprocess.Popen(command, env=known, stdout=said, stderr=subprocess.STDOUT)
        try:
            text, deadline = "", time.monotonic() + STARTS_S
            while "http://" not in text and time.monotonic() < deadline:
                time.sleep(0.1)
                text = place.read_text()
            key, url = re.search(r"sk-onsa-\w+", text), re.search(r"http://\S+/v1", text)
            assert key and url, text
            yield OpenAI(base_url=url[0], api_key=key[0], max_retries=20, timeout=600), psutil.Process(process.pid)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait()


def share_models(home: Path) -> None:
    """Let a home have the packaged models that are there already."""
    shared = Path(os.environ.get("ONSA_HOME") or "~/.onsa").expanduser() / "models"
    shared.mkdir(parents=True, exist_ok=True)
    (home / "models").symlink_to(shared)
