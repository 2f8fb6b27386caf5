"""CSV and its kin: the delimiter, and rows with the line each starts on."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Literal, TextIO

from onsa.data.rows import gathered
from onsa.data.table import Row
from onsa.spec.errors import DataError, Problem

DELIMITERS = (",", "\t", ";", "|")
SHOWN = 10  # problems of one kind that are listed one by one
LOOKED_AT = 100  # records that decide on the delimiter
Opened = Callable[[], TextIO]
Quoting = Literal[0, 3]  # csv.QUOTE_MINIMAL, csv.QUOTE_NONE
LONGEST = 2**31 - 1  # characters of one field; the csv module's own limit is 131,072, shorter than a long document


def read_delimited(
    opened: Opened, file: str, given: str | None, prefer: str = ","
) -> tuple[Sequence[Row], list[str], str]:
    """Rows, column names and the delimiter of a CSV text; every value is a string, ``line`` is where its row starts.

    Args:
        opened: opens the text, anew for each look at it.

    Raises:
        DataError: broken quoting, rows with too many or too few fields, an unusable header, no rows.
    """
    csv.field_size_limit(LONGEST)
    delimiter = _given(given, file) if given else detect_delimiter(opened, prefer)
    try:
        rows, columns = _rows(opened, file, delimiter, csv.QUOTE_MINIMAL)
    except DataError as error:
        if delimiter != "\t":
            raise
        try:  # many TSV files do not quote at all; there a quotation mark is a letter like any other
            rows, columns = _rows(opened, file, delimiter, csv.QUOTE_NONE)
        except DataError:
            raise error from None
    return rows, columns, delimiter


def detect_delimiter(opened: Opened, prefer: str = ",") -> str:
    """The delimiter that splits the header, and the most rows into as many fields as the header has."""

    def fit(delimiter: str) -> tuple[bool, float, int, bool]:
        with opened() as text:
            reader = csv.reader(text, delimiter=delimiter)
            widths = [len(record) for record in islice(filter(None, reader), LOOKED_AT)]
        alike = sum(width == widths[0] for width in widths) / len(widths) if widths else 0.0
        return (widths[:1] > [1] and alike >= 0.5, alike, widths[0] if widths else 0, delimiter == prefer)

    return max(DELIMITERS, key=fit)


def _given(value: str, file: str) -> str:
    delimiter = {"\\t": "\t", "tab": "\t"}.get(value, value)
    if len(delimiter) != 1 or delimiter in '"\r\n':
        raise DataError.of("delimiter-refused", file=file, value=value)
    return delimiter


def _records(text: TextIO, file: str, delimiter: str, quoting: Quoting) -> Iterator[tuple[int, list[str]]]:
    """Each record that is not blank, with the line (from 1) on which it starts."""
    reader = csv.reader(text, delimiter=delimiter, quoting=quoting, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError.of("csv-broken", file=file, line=line, reason=str(error)) from None
        if record:
            yield line, record


def _rows(opened: Opened, file: str, delimiter: str, quoting: Quoting) -> tuple[Sequence[Row], list[str]]:
    ragged: list[Problem] = []
    with opened() as text:
        records = _records(text, file, delimiter, quoting)
        line, header = next(records, (1, []))
        columns = named(header, file, line)

        def sound() -> Iterator[Row]:
            for line, record in records:
                if len(record) == len(columns):
                    yield Row(dict(zip(columns, record, strict=True)), file, line)
                elif len(ragged) < SHOWN:
                    code = "row-too-long" if len(record) > len(columns) else "row-too-short"
                    values = {"fields": len(record), "header": len(columns), "columns": ", ".join(columns)}
                    ragged.append(Problem(code, values, file, line))

        rows = gathered(sound())
    if ragged:
        raise DataError(ragged)
    if not rows:
        raise DataError.of("file-header-only", file=file, line=1, columns=", ".join(columns))
    return rows, columns


def named(header: list[str], file: str, line: int | None = None) -> list[str]:
    """Column names without the spaces around them; a nameless one is called by its place.

    Raises:
        DataError: a name that stands twice.
    """
    names = [name.strip() or f"column_{place}" for place, name in enumerate(header, 1)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError.of("column-twice", file=file, line=line, names=", ".join(twice), columns=", ".join(names))
    return names
