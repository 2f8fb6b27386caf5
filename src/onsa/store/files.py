"""Files that projects uploaded, whole or in parts, and those that their jobs made."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, final

from sqlalchemy import ColumnElement, Connection, Row, delete, or_, select

from onsa.spec.errors import ConflictError, DataError
from onsa.store import schema as db
from onsa.store.blobs import Blobs
from onsa.store.database import Database
from onsa.store.records import Page, Records, new_id

UPLOAD_S = 3600  # how long the parts of an upload may take
RESULTS = "fine-tune-results"
PENDING, COMPLETED, CANCELLED, EXPIRED = "pending", "completed", "cancelled", "expired"
LONGEST_SUFFIX = 16  # letters of a name's end that a file on this machine keeps


@dataclass(frozen=True, slots=True)
class File:
    """A file. created, expires: seconds since 1970, UTC."""

    id: str
    created: float
    filename: str
    purpose: str
    bytes: int
    expires: float | None


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that comes in parts; ``file`` once it is complete. lasts_s: how long that file is kept then."""

    id: str
    created: float
    filename: str
    purpose: str
    bytes: int
    mime_type: str
    status: str
    expires: float
    lasts_s: int | None
    file: str | None


@final
class Files:
    """The files of all projects. One whose time is up is there for nobody, and removed by :meth:`sweep`."""

    def __init__(self, database: Database, blobs: Blobs | None = None) -> None:
        self._database = database
        self.blobs = blobs or Blobs()
        self._records = Records(database, db.files, "file-", "file")

    def create(
        self,
        project: str,
        filename: str,
        purpose: str,
        chunks: Iterable[bytes],
        lasts_s: int | None = None,
        *,
        name: str | None = None,
    ) -> File:
        """Keep a file.

        Args:
            lasts_s: seconds after which it expires.
            name: its id, where it is not to be a new one; it replaces a file of this id.

        Raises:
            MachineError: the disk is full, or may not be written.
        """
        name, now = name or new_id("file-"), time.time()
        stored = self.blobs.write(name, chunks)
        values = {"filename": filename, "purpose": purpose, "bytes": stored.bytes, "sha256": stored.sha256}
        with self._database.writing() as connection:
            connection.execute(delete(db.files).where(db.files.c.id == name, db.files.c.project == project))
            values |= {"id": name, "created": now, "expires": now + lasts_s if lasts_s else None}
            self._records.add(connection, project, **values)
        return self.get(project, name)

    def get(self, project: str | None, name: str) -> File:
        """One file.

        Raises:
            MissingError: the project has none of this id.
        """
        row = self._records.get(project, name)
        if row.expires is not None and row.expires <= time.time():
            raise self._records.missing(name)
        return _file(row)

    def page(self, project: str, page: Page, purpose: str | None = None) -> tuple[list[File], bool]:
        """Some files, and whether there are more."""
        column = db.files.c
        where: list[ColumnElement[bool]] = [or_(column.expires.is_(None), column.expires > time.time())]
        if purpose is not None:
            where.append(column.purpose == purpose)
        rows, more = self._records.page(project, page, *where)
        return [_file(row) for row in rows], more

    def content(self, file: File) -> Iterator[bytes]:
        """A file's bytes, as they came."""
        return self.blobs.read(file.id)

    def fetch(self, file: File, folder: Path) -> Path:
        """A file on this machine, under its own id: names of users' own choice never reach a disk."""
        suffix = Path(file.filename).suffix
        to = folder / f"{file.id}{suffix if suffix.isascii() and len(suffix) <= LONGEST_SUFFIX else ''}"
        self.blobs.fetch(file.id, to)
        return to

    def remove(self, project: str | None, name: str) -> None:
        """Remove a file.

        Raises:
            MissingError: the project has none of this id.
        """
        self.get(project, name)
        with self._database.writing() as connection:
            self._records.remove(connection, project, name)
        self.blobs.remove(name)

    def sweep(self) -> int:
        """Remove what has expired; returns how many files that were."""
        with self._database.reading() as connection:
            query = select(db.files.c.id).where(db.files.c.expires <= time.time())
            gone = list(connection.scalars(query))
        for name in gone:
            with self._database.writing() as connection:
                self._records.remove(connection, None, name)
            self.blobs.remove(name)
        return len(gone)


@final
class Uploads:
    """Files that come in parts."""

    def __init__(self, database: Database, files: Files) -> None:
        self._database = database
        self._files = files
        self._records = Records(database, db.uploads, "upload_", "upload")
        self._parts = Records(database, db.parts, "part_", "part")

    def create(
        self, project: str, filename: str, purpose: str, size: int, mime_type: str, lasts_s: int | None
    ) -> Upload:
        """Begin an upload of some bytes."""
        values = {"filename": filename, "purpose": purpose, "bytes": size, "mime_type": mime_type, "status": PENDING}
        with self._database.writing() as connection:
            values |= {"lasts_s": lasts_s, "expires": time.time() + UPLOAD_S}
            name = self._records.add(connection, project, **values)
        return self.get(project, name)

    def get(self, project: str, name: str) -> Upload:
        """One upload.

        Raises:
            MissingError: the project has none of this id.
        """
        return _upload(self._records.get(project, name))

    def add_part(self, project: str, name: str, chunks: Iterable[bytes]) -> Row[Any]:
        """Keep a part; returns it with its ``id`` and ``created``.

        Raises:
            MissingError: no such upload.
            ConflictError: the upload is over.
        """
        self._pending(project, name)
        part = new_id("part_")
        stored = self._files.blobs.write(part, chunks)
        try:
            with self._database.writing() as connection:
                self._still_pending(connection, name)
                self._parts.add(connection, project, id=part, upload=name, bytes=stored.bytes)
        except ConflictError:  # somebody ended it meanwhile
            self._files.blobs.remove(part)
            raise
        return self._parts.get(project, part)

    def complete(self, project: str, name: str, parts: list[str], md5: str | None) -> Upload:
        """Make a file of parts, in this order.

        Raises:
            MissingError: no such upload, or no such part of it.
            ConflictError: the upload is over.
            DataError: the parts are not as many bytes as was said, or have another MD5.
        """
        upload = self._pending(project, name)
        rows = [self._parts.get(project, part) for part in parts]
        for row in rows:
            if row.upload != name:
                raise self._parts.missing(row.id)
        size = sum(row.bytes for row in rows)
        if size != upload.bytes:
            raise DataError.of("upload-size", key="part_ids", found=size, said=upload.bytes)
        content = chain.from_iterable(self._files.blobs.read(part) for part in parts)
        made = self._files.create(project, upload.filename, upload.purpose, _with_md5(content, md5), upload.lasts_s)
        try:
            with self._database.writing() as connection:
                self._end(connection, name, COMPLETED, file=made.id)
        except ConflictError:  # somebody ended it meanwhile
            self._files.remove(project, made.id)
            raise
        self._forget_parts(name)
        return self.get(project, name)

    def cancel(self, project: str, name: str) -> Upload:
        """End an upload without a file.

        Raises:
            MissingError: no such upload.
            ConflictError: the upload is over.
        """
        self._pending(project, name)
        with self._database.writing() as connection:
            self._end(connection, name, CANCELLED)
        self._forget_parts(name)
        return self.get(project, name)

    def sweep(self) -> None:
        """End the uploads whose time is up."""
        query = select(db.uploads.c.id).where(db.uploads.c.status == PENDING, db.uploads.c.expires <= time.time())
        with self._database.reading() as connection:
            late = list(connection.scalars(query))
        for name in late:
            with suppress(ConflictError):  # somebody ended it meanwhile
                with self._database.writing() as connection:
                    self._end(connection, name, EXPIRED)
                self._forget_parts(name)

    def _pending(self, project: str, name: str) -> Upload:
        upload = self.get(project, name)
        if upload.status != PENDING:
            raise ConflictError.of("upload-over", value=name, status=upload.status)
        return upload

    def _still_pending(self, connection: Connection, name: str) -> None:
        row = self._records.read(connection, None, name)
        if row.status != PENDING:
            raise ConflictError.of("upload-over", value=name, status=row.status)

    def _end(self, connection: Connection, name: str, status: str, file: str | None = None) -> None:
        self._still_pending(connection, name)
        self._records.change(connection, None, name, {"status": status, "file": file})

    def _forget_parts(self, name: str) -> None:
        rows, _ = self._parts.page(None, Page(), db.parts.c.upload == name)
        for row in rows:
            with self._database.writing() as connection:
                self._parts.remove(connection, None, row.id)
            self._files.blobs.remove(row.id)


def _with_md5(chunks: Iterable[bytes], md5: str | None) -> Iterator[bytes]:
    """The same chunks; behind the last one, an error where they have another MD5 than was said."""
    digest = hashlib.md5(usedforsecurity=False)
    for chunk in chunks:
        digest.update(chunk)
        yield chunk
    if md5 is not None and digest.hexdigest() != md5.lower():
        raise DataError.of("upload-md5", key="md5", found=digest.hexdigest(), said=md5)


def _file(row: Row[Any]) -> File:
    return File(row.id, row.created, row.filename, row.purpose, row.bytes, row.expires)


def _upload(row: Row[Any]) -> Upload:
    status = EXPIRED if row.status == PENDING and row.expires <= time.time() else row.status
    facts = (row.id, row.created, row.filename, row.purpose, row.bytes, row.mime_type)
    return Upload(*facts, status, row.expires, row.lasts_s, row.file)
