"""Blobs: bytes under a name, in ``files/`` of Onsa's home or at any place that ``ONSA_FILES`` names as a URL.

A URL is read by fsspec: ``s3://bucket/folder`` with s3fs installed, ``gs://`` with gcsfs, and so on. What is written is
there whole or not at all.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, final
from uuid import uuid4

from onsa.spec.errors import StoreError
from onsa.store.atomic import explained
from onsa.store.home import home

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Stored:
    """How much was written, and its SHA-256 as hex digits."""

    bytes: int
    sha256: str


@final
class Blobs:
    """Bytes by name."""

    def __init__(self, url: str | None = None) -> None:
        """Open the place of ``url``, else that of ``ONSA_FILES``, else the one in Onsa's home.

        Raises:
            StoreError: the URL cannot be used.
        """
        chosen = url or os.environ.get("ONSA_FILES") or str(home() / "files")
        from fsspec.core import url_to_fs  # here, since it takes a while and not all commands need it

        try:
            self._files, root = url_to_fs(chosen)
            self._root = root.rstrip("/")
            self._files.makedirs(self._root, exist_ok=True)
        except (ImportError, ValueError, OSError) as error:
            raise StoreError.of("files-unreachable", place=chosen, reason=str(error)) from None

    def write(self, name: str, chunks: Iterable[bytes]) -> Stored:
        """Write some bytes, as they come, under a name.

        Raises:
            MachineError: the disk is full, or the folder may not be written.
        """
        final = self._path(name)
        sha256, size = hashlib.sha256(), 0
        draft = f"{self._root}/.{name}.{uuid4().hex[:8]}.tmp"
        try:
            with explained(Path(self._root), 0), self._files.open(draft, "wb") as file:
                for chunk in chunks:
                    file.write(chunk)
                    sha256.update(chunk)
                    size += len(chunk)
            self._files.mv(draft, final)
        except BaseException:
            if self._files.exists(draft):
                self._files.rm(draft)
            raise
        return Stored(size, sha256.hexdigest())

    def read(self, name: str) -> Iterator[bytes]:
        """The bytes of a name, in chunks."""
        with self._files.open(self._path(name), "rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    def fetch(self, name: str, to: Path) -> None:
        """Write the bytes of a name to a file of this machine."""
        with explained(to.parent, 0), to.open("wb") as file:
            for chunk in self.read(name):
                file.write(chunk)

    def remove(self, name: str) -> None:
        """Remove a name; one that is gone already stays gone."""
        try:
            self._files.rm(self._path(name))
        except FileNotFoundError:
            return

    def _path(self, name: str) -> str:
        """Where a name lies. Names are ids of ours; one with a slash in it is none, whoever asks."""
        if "/" in name or name.startswith("."):
            raise StoreError.of("files-unreachable", place=name, reason="not a name")
        return f"{self._root}/{name}"


def chunks_of(file: BinaryIO | Any) -> Iterator[bytes]:
    """A file's bytes from where it stands, in chunks."""
    while chunk := file.read(CHUNK_BYTES):
        yield chunk
