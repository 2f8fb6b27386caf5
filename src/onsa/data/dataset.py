"""Dataset: from what a recipe says about its data to rows by role, cleaned, and dealt to the sides of the split."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from onsa.data.fingerprint import canonical
from onsa.data.hub import SIDES as SIDE_NAMES
from onsa.data.hub import read_hub
from onsa.data.profiling import is_blank, profile
from onsa.data.read import is_hub, read, read_file
from onsa.data.rules import Rules
from onsa.data.split import SIDES, assign, normal
from onsa.data.table import Dataset, Row, Table
from onsa.spec.component import Form
from onsa.spec.errors import DataError, Problem, unknown
from onsa.spec.sections import Data, Split


@dataclass(frozen=True, slots=True)
class _Item:
    """A row by role, with what the split's own columns say about it."""

    row: Row
    group: str | None
    side: str | None

    @property
    def place(self) -> str:
        return place(self.row)


Tables = Mapping[str, Table]


def read_tables(data: Data) -> dict[str, Table]:
    """The tables that a recipe gives, by side; ``train`` always, and first."""
    tables = read_hub(data) if is_hub(data) else {"train": read(data)}
    beside = data if data.format != "hub" else data.model_copy(update={"format": None})
    for side, path in (("validation", data.validation), ("test", data.test)):
        if path is not None:
            tables[side] = read_file(path, beside)
    return {side: tables[side] for side in SIDES if side in tables}


def load_dataset(data: Data, task: Rules, tables: Tables | None = None) -> Dataset:
    """The data set of a recipe; ``tables`` are those of :func:`read_tables`, where they have been read.

    Sides that files, a column or a hub data set give are taken as they are; the others are dealt from the training rows
    by ``data.split``. Rows that the task cannot use are left out, and so are rows whose inputs stand in the test rows
    (or, for training rows, in the validation rows) as well; ``removed`` names them by message code.

    Raises:
        DataError: a file or its rows; a column that is missing; no rows left to train on or to validate with.
    """
    tables = tables or read_tables(data)
    sides = _by_side({side: _items(table, data, task) for side, table in tables.items()})
    removed: dict[str, list[str]] = {}
    for side, items in sides.items():
        sides[side] = _usable(items, task, removed)
    if is_hub(data):  # many hub test sets come without labels: better to deal one than to have none
        sides = {side: items for side, items in sides.items() if items or side == "train"}
    wanted = {side for side, part in zip(SIDES, data.split.ratio, strict=True) if part and side != "test"} | set(sides)
    _deal(sides, data.split, task)
    _unshare(sides, task, removed)
    rows: dict[str, list[Row]] = {side: [item.row for item in sides[side]] for side in SIDES}
    _refuse_empty(rows, wanted, data.path, removed)
    language = data.language or profile(tables["train"]).language
    return Dataset(rows["train"], rows["validation"], rows["test"], fingerprint(rows), language, removed)


def load_rows(data: Data, task: Rules, tables: Tables | None = None) -> dict[str, list[Row]]:
    """All rows by role and by the side that is given for them (all others: ``train``), with nothing left out.

    This is what :func:`onsa.data.quality.examine` looks at.

    Raises:
        DataError: as :func:`load_dataset`, but for sides that are empty.
    """
    sides = _by_side({side: _items(table, data, task) for side, table in (tables or read_tables(data)).items()})
    return {side: [item.row for item in items] for side, items in sides.items()}


def place(row: Row) -> str:
    """Where a row stands, as ``file:line``."""
    return f"{row.file}:{row.line}"


def fingerprint(sides: Mapping[str, Iterable[Row]]) -> str:
    """SHA-256 over the values of all rows, their order and their sides; where the files lie does not count."""
    digest = hashlib.sha256()
    for side, rows in sides.items():
        digest.update(canonical(side) + b"\n")
        for row in rows:
            digest.update(canonical(row.values) + b"\n")
    return digest.hexdigest()


def _items(table: Table, data: Data, task: Rules) -> list[_Item]:
    """The rows of a table by role, with their texts normalised where that is asked for."""
    columns = _columns(table, data.columns, task)
    for key, name in (("data.split.group", data.split.group), ("data.split.column", data.split.column)):
        if name is not None and name not in table.columns:
            raise DataError(_absent(table, name, key))
    items = []
    for row in table.rows:
        values = {role: row.values.get(column) for role, column in columns.items()}
        if data.normalise == "nfkc":
            values = nfkc(values)
        group = None if data.split.group is None else row.values.get(data.split.group)
        side = None if data.split.column is None else row.values.get(data.split.column)
        items.append(
            _Item(
                Row(values, row.file, row.line),
                None if is_blank(group) else str(group),
                None if data.split.column is None else str(side),
            )
        )
    return items


def _columns(table: Table, given: Mapping[str, str] | None, task: Rules) -> dict[str, str]:
    """Role to column; without any given, columns that are called like their role."""
    columns = {role: role for role in task.roles if role in table.columns} if given is None else dict(given)
    problems = []
    for role, column in columns.items():
        if role not in task.roles:
            problems.append(unknown("role-unknown", role, task.roles, key="data.columns"))
        elif column not in table.columns:
            problems.append(_absent(table, column, f"data.columns.{role}"))
    for role, needed in task.roles.items():
        if needed and role not in columns:
            values = {"role": role, "choices": ", ".join(table.columns)}
            problems.append(Problem("role-missing", values, table.file, key="data.columns"))
    if problems:
        raise DataError(problems)
    return columns


def _absent(table: Table, column: str, key: str) -> Problem:
    return replace(unknown("column-missing", column, table.columns, key=key), file=table.file)


def nfkc(value: Any) -> Any:
    """A value with every text in it in Unicode's NFKC form; the keys of mappings stay as they are."""
    if isinstance(value, str):
        return unicodedata.normalize("NFKC", value)
    if isinstance(value, dict):
        return {key: nfkc(inner) for key, inner in value.items()}
    return [nfkc(inner) for inner in value] if isinstance(value, list) else value


def _by_side(tables: Mapping[str, list[_Item]]) -> dict[str, list[_Item]]:
    """Items by the side that their file gives, or the split column in the training file."""
    sides = {side: list(items) for side, items in tables.items() if side != "train"}
    train: list[_Item] = []
    for item in tables["train"]:
        name = "train" if item.side is None else SIDE_NAMES.get(item.side.strip().lower())
        if name is None:
            values = {"value": item.side, "choices": ", ".join(SIDE_NAMES)}
            raise DataError(Problem("split-value", values, item.row.file, item.row.line, "data.split.column"))
        (train if name == "train" else sides.setdefault(name, [])).append(item)
    return {"train": train} | sides


def _usable(items: Iterable[_Item], task: Rules, removed: dict[str, list[str]]) -> list[_Item]:
    kept = []
    for item in items:
        problem = task.problem_of(item.row)
        if problem is None:
            kept.append(item)
        else:
            removed.setdefault(problem[0], []).append(item.place)
    return kept


def _deal(sides: dict[str, list[_Item]], split: Split, task: Rules) -> None:
    """Deal the sides that are not given from the training rows."""
    train, validation, test = split.ratio
    ratio = (train, 0.0 if "validation" in sides else validation, 0.0 if "test" in sides else test)
    items = sides["train"]
    keys = [task.inputs(item.row) for item in items]
    labels = [task.answer(item.row) for item in items] if task.provides is Form.LABELLED else None
    groups = None
    if split.group is not None:  # a row without a group is a group by itself
        groups = [key if item.group is None else item.group for key, item in zip(keys, items, strict=True)]
    dealt = assign(keys, split.model_copy(update={"ratio": ratio}), labels, groups)
    sides["train"] = [item for item, side in zip(items, dealt, strict=True) if side == "train"]
    for name in SIDES[1:]:
        chosen = [item for item, side in zip(items, dealt, strict=True) if side == name]
        sides.setdefault(name, chosen)


def _unshare(sides: dict[str, list[_Item]], task: Rules, removed: dict[str, list[str]]) -> None:
    """Take out of validation what is in test, and out of training what is in either: no score is of known rows."""
    seen: set[str] = set()
    for side in reversed(SIDES):
        keys = [normal(task.inputs(item.row)) for item in sides[side]]
        shared = [item.place for item, key in zip(sides[side], keys, strict=True) if key in seen]
        if shared:
            removed.setdefault("rows-shared", []).extend(shared)
        sides[side] = [item for item, key in zip(sides[side], keys, strict=True) if key not in seen]
        seen.update(keys)


def _refuse_empty(
    rows: Mapping[str, Sequence[Row]], wanted: set[str], file: str, removed: Mapping[str, Sequence[str]]
) -> None:
    """Refuse a side without rows; a test side that only the ratio asks for may be empty."""
    values = {
        "rows": sum(map(len, rows.values())),
        "removed": sum(map(len, removed.values())),
        "causes": ", ".join(removed) or "-",
    }
    problems = [Problem(f"{side}-empty", values, file) for side in SIDES if side in wanted and not rows[side]]
    if problems:
        raise DataError(problems[:1])  # without training rows, the other sides say nothing new
