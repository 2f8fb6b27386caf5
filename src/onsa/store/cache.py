"""Cache: folders under ``cache/`` that can be made again; of each kind those used longest ago go first."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from uuid import uuid4

from onsa.store.home import home

STALE_S = 86_400  # after which a draft is one that a killed process has left


def root(kind: str) -> Path:
    """The folder of a kind's folders, which is made where it is missing."""
    folder = home() / "cache" / kind
    folder.mkdir(exist_ok=True)
    return folder


def draft(kind: str, key: str) -> Path:
    """A new folder beside the others, to be written and then renamed to its key."""
    for left in root(kind).glob(".*.tmp"):
        if time.time() - left.stat().st_mtime > STALE_S:
            shutil.rmtree(left, ignore_errors=True)
    folder = root(kind) / f".{key}.{uuid4().hex[:8]}.tmp"
    folder.mkdir()
    return folder


def size(folder: Path) -> int:
    """The bytes of a folder's files."""
    return sum(path.stat().st_size for path in folder.iterdir())


def make_room(kind: str, room: int) -> None:
    """Remove a kind's folders until the others take ``room`` bytes at most."""
    folders = sorted(root(kind).glob("[!.]*"), key=lambda folder: folder.stat().st_mtime)
    total = sum(map(size, folders))
    for folder in folders:
        if total <= room:
            return
        total -= size(folder)
        shutil.rmtree(folder, ignore_errors=True)
