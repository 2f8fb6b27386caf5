"""Read: a file or a hub data set as a Table, or an error that says which line, what is wrong there, and the fix."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from onsa.data.decode import decode
from onsa.data.delimited import named, read_delimited
from onsa.data.hub import is_hub_id, read_hub
from onsa.data.json_rows import is_jsonl, read_json, read_jsonl
from onsa.data.rows import gathered
from onsa.data.table import Row, Table
from onsa.spec.errors import DataError, OnsaError
from onsa.spec.sections import FORMATS, Data
from onsa.store.atomic import sha256_file

MAGIC = (
    (b"PK\x03\x04", "ZIP / XLSX / DOCX"),
    (b"\xd0\xcf\x11\xe0", "XLS / DOC"),
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x89PNG", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF8", "GIF"),
    (b"%PDF", "PDF"),
    (b"SQLite format 3\0", "SQLite"),
    (b"PAR1", "Parquet"),
    (b"ARROW1", "Arrow"),
    (b"GGUF", "GGUF"),
)


def read(data: Data) -> Table:
    """The rows that ``data.path`` names: a file, or the training rows of a hub data set.

    Raises:
        DataError: what :func:`read_file` and :func:`onsa.data.hub.read_hub` raise.
    """
    if is_hub(data):
        return read_hub(data)["train"]
    return read_file(data.path, data)


def is_hub(data: Data) -> bool:
    """Whether ``data.path`` is a hub data set: said so, or ``owner/name`` with no such file or folder here."""
    if data.format is not None:
        return data.format == "hub"
    path = Path(data.path)
    return (
        is_hub_id(data.path) and path.suffix.lower() not in FORMATS and not path.exists() and not path.parent.exists()
    )


def read_file(path: str | Path, data: Data) -> Table:
    """The rows of one file, in the format, encoding and delimiter that ``data`` says or the file shows.

    Raises:
        DataError: the file is missing, unreadable, empty, binary, of no known format, broken, or without rows.
    """
    path, file = Path(path), str(path)
    head = _head(path, file)
    kind = data.format or FORMATS.get(path.suffix.lower())
    if kind != "parquet":
        known = next((name for magic, name in MAGIC if head.startswith(magic)), None)
        if known:
            raise DataError.of("file-binary-known", file=file, known=known)
    if kind is None or kind == "hub":
        raise DataError.of("format-unknown", file=file, value=path.suffix or path.name, choices=" ".join(FORMATS))
    if kind == "parquet":
        rows, columns = _parquet(path, file)
        return Table(rows, columns, file, kind, sha256_file(path))
    text = decode(path, file, data.encoding)
    found: dict[str, Any] = {"file": file, "format": kind, "sha256": text.sha256, "encoding": text.encoding}
    if text.blank:
        raise DataError.of("file-empty", file=file)
    if kind in ("csv", "tsv"):
        prefer = "\t" if kind == "tsv" else ","
        rows, columns, found["delimiter"] = read_delimited(text.opened, file, data.delimiter, prefer)
        return Table(rows, columns, **found)
    if kind == "json":
        with text.opened() as source:
            whole = source.read()
        if data.format is not None or not is_jsonl(whole):
            return Table(*read_json(whole, file), **found)
    with text.opened("\n") as source:
        rows, columns = read_jsonl(source, file)
    return Table(rows, columns, **{**found, "format": "jsonl"})


def _head(path: Path, file: str) -> bytes:
    """A file's first bytes, of which there are some."""
    try:
        with path.open("rb") as source:
            head = source.read(16)
    except (FileNotFoundError, NotADirectoryError):
        raise _missing(path, file) from None
    except IsADirectoryError:
        inside = sorted(entry.name for entry in path.iterdir() if entry.suffix.lower() in FORMATS)
        raise DataError.of("file-is-folder", file=file, names=", ".join(inside[:5]) or "-") from None
    except OSError as error:
        raise DataError.of("file-unreadable", file=file, reason=error.strerror or str(error)) from None
    if not head:
        raise DataError.of("file-empty", file=file)
    return head


def _missing(path: Path, file: str) -> OnsaError:
    folder = path.parent
    if not folder.is_dir():
        return DataError.of("folder-missing", file=file, folder=str(folder))
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    near = get_close_matches(path.name, names, n=1, cutoff=0.5)
    if near:
        return DataError.of("file-missing-near", file=file, near=str(folder / near[0]))
    return DataError.of("file-missing", file=file, folder=str(folder))


def _parquet(path: Path, file: str) -> tuple[Sequence[Row], list[str]]:
    """Rows and columns of a Parquet file; ``line`` is the row's number from 1."""
    import pyarrow
    import pyarrow.parquet

    try:
        source = pyarrow.parquet.ParquetFile(path)
        columns = named(list(source.schema_arrow.names), file)
        found = (value for batch in source.iter_batches() for value in batch.rename_columns(columns).to_pylist())
        rows = gathered(Row(values, file, number) for number, values in enumerate(found, 1))
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).strip().rstrip(".").splitlines()[0]
        raise DataError.of("parquet-broken", file=file, reason=reason) from None
    if not rows:
        raise DataError.of("file-header-only", file=file, columns=", ".join(columns))
    return rows, columns
