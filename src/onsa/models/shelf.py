"""Folders that are made once and then kept: whole or not at all, made by one process while others wait."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

from onsa.spec.messages import say
from onsa.store.atomic import publish, sha256_file, write_text

MANIFEST = "onsa-manifest.json"

Progress = Callable[[str], None]


def silent(_: str) -> None:
    """Progress for nobody."""


def shelved(folder: Path, source_sha256: str, make: Callable[[Path], None], progress: Progress = silent) -> Path:
    """``folder``, which ``make`` fills unless it is there and complete.

    Args:
        source_sha256: of what the folder is made from; a folder made from something else is made anew.
        make: fills an empty folder; whatever it raises leaves nothing behind.

    Raises:
        MachineError: the disk is full, or the place may not be written.
    """
    if _complete(folder, source_sha256):
        return folder
    from filelock import FileLock, Timeout  # what is there already needs no lock

    lock = FileLock(folder.parent / f".{folder.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress(say("fetch-wait", name=folder.name))
        lock.acquire()
    try:
        if not _complete(folder, source_sha256):
            _make(folder, source_sha256, make)
    finally:
        lock.release()
    return folder


def _make(folder: Path, source_sha256: str, make: Callable[[Path], None]) -> None:
    # What a killed process left: nobody works on it, since this one holds the lock.
    for left in folder.parent.glob(f".{folder.name}.*.tmp"):
        shutil.rmtree(left)
    if folder.exists():
        shutil.rmtree(folder)
    draft = folder.with_name(f".{folder.name}.{uuid4().hex[:8]}.tmp")
    draft.mkdir(parents=True)
    try:
        make(draft)
        paths = sorted(path for path in draft.rglob("*") if path.is_file())
        files = {
            path.relative_to(draft).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
            for path in paths
        }
        write_text(draft / MANIFEST, json.dumps({"source": source_sha256, "files": files}, indent=1))
        publish(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _complete(folder: Path, source_sha256: str) -> bool:
    """Whether every file of the manifest is there in its size. Contents are hashed where a run's identity needs it."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return manifest["source"] == source_sha256 and all(
            (folder / name).stat().st_size == file["bytes"] for name, file in manifest["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False
