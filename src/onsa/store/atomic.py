"""Files that are there whole or not at all: written beside, flushed to disk, renamed into place; and room for them."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from onsa.spec.errors import MachineError, Problem

RUST_ERROR = re.compile(r"\(os error (\d+)\)")


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that a reader, also after a power cut, sees the old content or the new, never a part.

    Raises:
        MachineError: the disk is full, or the folder may not be written.
    """
    beside = path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")
    with explained(path.parent, len(data)):
        try:
            with beside.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        _sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """:func:`write_bytes` for text, as UTF-8 with the line ends it has."""
    write_bytes(path, text.encode())


def publish(folder_tmp: Path, folder_final: Path) -> None:
    """Flush a finished folder to disk and rename it into place. Both names must lie on one file system.

    Raises:
        FileExistsError: ``folder_final`` is there already; ``folder_tmp`` is left as it was.
        MachineError: the disk is full, or the parent folder may not be written.
    """
    with explained(folder_final.parent, 0):
        for folder, _, names in os.walk(folder_tmp):
            for name in names:
                _sync(Path(folder, name))
            _sync(Path(folder))
        try:
            folder_tmp.rename(folder_final)
        except OSError as error:
            # POSIX lets rename say either for a folder that is there and not empty.
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(folder_final)) from None
            raise
        _sync(folder_final.parent)


def ready_folder(path: Path) -> None:
    """Make a folder, and those above it, where it is not there yet.

    Raises:
        MachineError: it cannot be made, or may not be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        reason = "" if os.access(path, os.W_OK) else os.strerror(errno.EACCES)
    except OSError as error:  # such as a file in its place
        reason = error.strerror or str(error)
    if reason:
        raise MachineError.of("folder-unwritable", folder=str(path), reason=reason)


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_files(files: dict[str, str]) -> str:
    """One SHA-256 for several files, from each one's name and SHA-256; their order does not matter."""
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def free_bytes(path: Path) -> int:
    """Bytes free for this user on the disk that holds ``path``, which need not exist yet."""
    place = path.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def ensure_space(path: Path, needed_bytes: int) -> None:
    """Make sure that ``needed_bytes`` fit on the disk that holds ``path``.

    Raises:
        MachineError: they do not; the message says how much is needed and how much is free.
    """
    if free_bytes(path) < needed_bytes:
        raise disk_full(path, needed_bytes)


def disk_full(path: Path, needed_bytes: int) -> MachineError:
    """The error that says how much is needed on the disk of ``path``, and how much is free there."""
    needed, free = (f"{size / 1e6:,.1f} MB" for size in (needed_bytes, free_bytes(path)))
    return MachineError(Problem("disk-full", {"folder": str(path), "needed": needed, "free": free}))


@contextmanager
def explained(folder: Path, needed_bytes: int) -> Iterator[None]:
    """Turn the two faults of a machine that a user can mend into errors that say how.

    Raises:
        MachineError: the disk is full, or the folder may not be written.
    """
    try:
        yield
    except Exception as error:
        number = _number(error)
        if number in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full(folder, needed_bytes) from None
        if number in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise MachineError.of("folder-unwritable", folder=str(folder), reason=os.strerror(number)) from None
        raise


def _number(error: Exception) -> int | None:
    """What the system said; safetensors, written in Rust, passes it on in words alone: ``(os error 28)``."""
    if isinstance(error, OSError):
        return error.errno
    found = RUST_ERROR.search(str(error))
    return int(found[1]) if found else None


def _sync(path: Path) -> None:
    """Wait until a file or a folder's list of names is on the disk."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:
        if os.name == "nt" and path.is_dir():  # Windows opens no folders, and journals their names itself
            return
        raise
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
