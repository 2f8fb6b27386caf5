"""Profiling: what each column of a table looks like, and in which language its text is."""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from onsa.data.convert import check_messages, to_messages
from onsa.data.fingerprint import canonical
from onsa.data.language import detect
from onsa.data.profile import ColumnProfile, Look, Profile
from onsa.data.split import unit
from onsa.data.table import Table

LOOKED_AT = 500  # values of a column that decide on its look
MOST = 0.9  # of the values must agree
SHORT = 60  # characters of a category's or a label's name
CLIP = 80  # characters of an example
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
EMPTY: tuple[Any, ...] = (None, "", [], {})


def profile(table: Table) -> Profile:
    """What the columns of a table look like; its rows are gone through once."""
    seen = [_Seen(name) for name in table.columns]
    for row in table.rows:
        for column in seen:
            column.add(row.values.get(column.name))
    columns = tuple(column.profile() for column in seen)
    return Profile(columns, len(table.rows), _language(table, columns))


class _Seen:
    """What is known of a column as its values go by: the first of them, and eight bytes of a hash of each."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._first: list[Any] = []
        self._units = array("Q")

    def add(self, value: Any) -> None:
        if is_blank(value):
            return
        if len(self._first) < LOOKED_AT:
            self._first.append(value)
        # A number is not the text of that number.
        self._units.append(unit(value if isinstance(value, str) else f"\0{canonical(value)!r}"))

    def profile(self) -> ColumnProfile:
        filled, distinct = len(self._units), len(np.unique(np.asarray(self._units)))
        texts = [as_text(value) for value in self._first]
        mean_length = sum(map(len, texts)) / len(texts) if texts else 0.0
        examples = tuple(text if len(text) <= CLIP else text[: CLIP - 1] + "…" for text in dict.fromkeys(texts))[:3]
        return ColumnProfile(self.name, _look(self._first, filled, distinct), filled, distinct, mean_length, examples)


def is_blank(value: Any) -> bool:
    """Whether a cell holds nothing: null, NaN, an empty list, or nothing but spaces."""
    if isinstance(value, str):
        return not value.strip()
    return value in EMPTY or value != value


def as_text(value: Any) -> str:
    """A cell as text; of a conversation, what is said in it."""
    if isinstance(value, str) and not value.lstrip().startswith("["):
        return value
    if _is_conversation(value):
        return "\n".join(str(message.get("content") or "") for message in to_messages({"messages": value}))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _look(sample: Sequence[Any], filled: int, distinct: int) -> Look:
    if not filled:
        return Look.EMPTY

    def mostly(hits: Iterable[bool]) -> bool:
        return sum(hits) >= MOST * len(sample)

    few = 2 * distinct <= filled and (distinct <= 20 or 5 * distinct <= filled) and distinct <= 1000
    if mostly(map(_is_conversation, sample)):
        return Look.MESSAGES
    if mostly(map(_is_label_list, sample)):
        return Look.LABELS
    if mostly(isinstance(value, bool) for value in sample):
        return Look.CATEGORY
    if all(map(_is_number, sample)):
        # Class numbers and stars: few whole numbers, each of them often.
        whole = all(float(value).is_integer() for value in sample)
        return Look.CATEGORY if whole and distinct <= 20 and 5 * distinct <= filled else Look.NUMBER
    if not mostly(isinstance(value, str | int | float) for value in sample):
        return Look.OTHER
    return Look.CATEGORY if few and mostly(len(str(value)) <= SHORT for value in sample) else Look.TEXT


def _is_number(value: Any) -> bool:
    if isinstance(value, str):
        return NUMBER.fullmatch(value.strip()) is not None
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_label_list(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) and len(name) <= SHORT for name in value)


def _is_conversation(value: Any) -> bool:
    """Whether a value is meant as a conversation, faults within it aside."""
    fault = check_messages(value)
    return fault is None or fault[0] in ("messages-end", "messages-weightless", "messages-no-answer")


def _language(table: Table, columns: Iterable[ColumnProfile]) -> str | None:
    """The language of the longest texts; where these are mixed, that of the texts together."""
    wordy = [column for column in columns if column.look in (Look.TEXT, Look.MESSAGES)]
    wordy.sort(key=lambda column: -column.mean_length)

    def texts(chosen: Sequence[ColumnProfile]) -> Iterable[str]:
        for row in table.rows[:LOOKED_AT]:
            for column in chosen:
                value = row.values.get(column.name)
                if not is_blank(value):
                    yield as_text(value)

    return detect(texts(wordy[:1])) or detect(texts(wordy))
