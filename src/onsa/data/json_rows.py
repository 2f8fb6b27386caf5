"""JSON and JSON Lines: rows with the line each starts on, and faults with line, column and reason."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TextIO

from onsa.data.rows import gathered
from onsa.data.table import Row
from onsa.spec.errors import DataError, Problem

BLANK = re.compile(r"[ \t\r\n]*")
DATA_KEY = re.compile(r'"data"\s*:\s*(?=\[)')
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
SHOWN = 10  # problems that are listed one by one
DECODER = json.JSONDecoder()


def read_json(text: str, file: str) -> tuple[Sequence[Row], list[str]]:
    """Rows and columns of an array of objects, or of an object whose ``data`` is one.

    Raises:
        DataError: not JSON, not such an array, an element that is no object, no rows.
    """
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(_broken(error, file)) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; thousands of brackets
        raise DataError.of("json-refused", file=file, reason=str(error)) from None
    start = 0
    if isinstance(document, dict):
        document, start = _data(document, text)
    if not isinstance(document, list):
        raise DataError.of("json-not-array", file=file, line=1)
    return _table(_elements(text, start), file)


def read_jsonl(text: TextIO, file: str) -> tuple[Sequence[Row], list[str]]:
    """Rows and columns of a text with one JSON object a line; blank lines are passed over.

    Raises:
        DataError: a line that is not JSON, or no object; no rows.
    """
    lines = enumerate(text, 1)
    return _table(((number, _line(line)) for number, line in lines if line.strip()), file)


def is_jsonl(text: str) -> bool:
    """Whether a text that was called JSON is JSON Lines: a whole object on its first line, and more after it."""
    first, _, rest = text.strip().partition("\n")
    return bool(rest) and isinstance(_line(first), dict)


def _line(line: str) -> Any:
    """The value of one line, or the fault in it."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        return error


def _table(values: Iterable[tuple[int, Any]], file: str) -> tuple[Sequence[Row], list[str]]:
    problems: list[Problem] = []
    columns: dict[str, None] = {}  # a set that keeps its order

    def sound() -> Iterator[Row]:
        for line, value in values:
            problem = _problem(value, file, line)
            if problem is None:
                columns.update(dict.fromkeys(value))
                yield Row(value, file, line)
            elif len(problems) < SHOWN:
                problems.append(problem)

    rows = gathered(sound())
    if problems:
        raise DataError(problems)
    if not rows:
        raise DataError.of("file-empty", file=file)
    return rows, list(columns)


def _problem(value: Any, file: str, line: int) -> Problem | None:
    if isinstance(value, json.JSONDecodeError):
        return _broken(value, file, line)
    if isinstance(value, Exception):
        return Problem("json-refused", {"reason": str(value)}, file, line)
    if not isinstance(value, dict):
        return Problem("row-not-object", {"type": _type(value)}, file, line)
    if not _is_text(value):
        return Problem("text-not-unicode", {}, file, line)
    return None


def _is_text(value: Any) -> bool:
    """Whether all strings are text: half of a surrogate pair, as in ``"\\ud83d"``, is none and cannot be encoded."""
    escaped = json.dumps(value)
    if not SURROGATE.search(escaped):
        return True
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _elements(text: str, start: int) -> Iterator[tuple[int, Any]]:
    """Each element of the (valid) array that begins at or after ``start``, with its line."""
    at = text.index("[", start) + 1
    line, counted = 1, 0
    while text[at := _past_blank(text, at)] != "]":
        line, counted = line + text.count("\n", counted, at), at
        value, at = DECODER.raw_decode(text, at)
        yield line, value
        at = _past_blank(text, at)
        at += text[at] == ","


def _past_blank(text: str, at: int) -> int:
    match = BLANK.match(text, at)
    return match.end() if match else at


def _data(document: dict[str, Any], text: str) -> tuple[Any, int]:
    """The array under ``data``, and where in the text it begins."""
    wanted = document.get("data")
    if isinstance(wanted, list):
        for match in DATA_KEY.finditer(text):  # an inner object may have a "data", too
            if DECODER.raw_decode(text, match.end())[0] == wanted:
                return wanted, match.end()
    return None, 0


def _broken(error: json.JSONDecodeError, file: str, line: int | None = None) -> Problem:
    return Problem("json-broken", {"reason": error.msg, "column": error.colno}, file, line or error.lineno)


def _type(value: Any) -> str:
    names = {list: "array", str: "string", bool: "boolean", int: "number", float: "number", type(None): "null"}
    return names.get(type(value), type(value).__name__)
