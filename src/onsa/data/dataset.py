"""Dataset: from what a recipe says about its data to rows by role, cleaned, and dealt to the sides of the split."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from onsa.data.fingerprint import canonical
from onsa.data.hub import SIDES as SIDE_NAMES
from onsa.data.hub import read_hub
from onsa.data.profiling import is_blank, profile
from onsa.data.read import is_hub, read, read_file
from onsa.data.rows import Part, Pool
from onsa.data.rules import Rules
from onsa.data.split import SIDES, assign, normal, unit
from onsa.data.survey import Survey, survey
from onsa.data.table import Dataset, Row, Table
from onsa.spec.component import Form
from onsa.spec.errors import DataError, Problem, unknown
from onsa.spec.sections import Data, Split

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

    Raises:
        DataError: a file or its rows; a column that is missing; what :func:`dealt` raises.
    """
    tables = tables or read_tables(data)
    looked = {side: survey(rows, task) for side, rows in load_rows(data, task, tables).items()}
    sides, removed = dealt(looked, data, task)
    return settled(sides, removed, data.language or profile(tables["train"]).language)


def load_rows(data: Data, task: Rules, tables: Tables | None = None) -> dict[str, Part]:
    """All rows by role and by the side that is given for them (all others: ``train``), with nothing left out.

    Raises:
        DataError: a file or its rows; a column that is missing, or says an unknown side.
    """
    tables = tables or read_tables(data)
    columns = [_columns(table, data.columns, task) for table in tables.values()]
    for table in tables.values():
        for key, name in (("data.split.group", data.split.group), ("data.split.column", data.split.column)):
            if name is not None and name not in table.columns:
                raise DataError(_absent(table, name, key))
    pool = Pool(tuple(tables.values()), columns, nfkc if data.normalise == "nfkc" else dict)
    sides = {side: pool.part(number) for number, side in enumerate(tables)}
    return sides if data.split.column is None else _by_column(sides, data.split.column)


def dealt(sides: Mapping[str, Survey], data: Data, task: Rules) -> tuple[dict[str, Survey], dict[str, int]]:
    """Rows that were looked at, dealt to the three sides, and how many were left out, by message code.

    Sides that files, a column or a hub data set give are taken as they are; the others are dealt from the training rows
    by ``data.split``. Rows that the task cannot use are left out, and so are rows whose inputs stand in the test rows
    (or, for training rows, in the validation rows) as well.

    Raises:
        DataError: no rows left to train on or to validate with.
    """
    removed: Counter[str] = Counter()
    for found in sides.values():
        for number, (code, _) in enumerate(found.reasons):
            removed[code] += int((found.reason_R == number).sum())
    kept = {side: found.where(found.usable_R) for side, found in sides.items()}
    if is_hub(data):  # many hub test sets come without labels: better to deal one than to have none
        kept = {side: found for side, found in kept.items() if len(found.rows) or side == "train"}
    wanted = {side for side, part in zip(SIDES, data.split.ratio, strict=True) if part and side != "test"} | set(kept)
    kept = _unshared(_dealt(kept, data.split, task), removed)
    _refuse_empty(kept, wanted, data.path, removed)
    return kept, dict(+removed)


def settled(sides: Mapping[str, Survey], removed: dict[str, int], language: str | None) -> Dataset:
    """A data set of rows that were dealt."""
    rows: dict[str, Sequence[Row]] = {side: sides[side].rows.settled() for side in SIDES}
    return Dataset(rows["train"], rows["validation"], rows["test"], fingerprint(rows), language, removed)


def fingerprint(sides: Mapping[str, Iterable[Row]]) -> str:
    """SHA-256 over the values of all rows, their order and their sides; where the files lie does not count."""
    digest = hashlib.sha256()
    for side, rows in sides.items():
        digest.update(canonical(side) + b"\n")
        for row in rows:
            digest.update(canonical(row.values) + b"\n")
    return digest.hexdigest()


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
    if task.further:
        taken = {*columns, *columns.values()}
        columns |= {name: name for name in table.columns if name not in taken}
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


def _by_column(sides: Mapping[str, Part], column: str) -> dict[str, Part]:
    """The training rows on the sides that a column says, beside the sides that have files of their own."""
    train = sides["train"]
    code_R = np.zeros(len(train), np.int64)
    for index, value in enumerate(train.column(column)):
        name = SIDE_NAMES.get(str(value).strip().lower())
        if name is None:
            values, row = {"value": str(value), "choices": ", ".join(SIDE_NAMES)}, train[index]
            raise DataError(Problem("split-value", values, row.file, row.line, "data.split.column"))
        code_R[index] = SIDES.index(name)
    found = {}
    for code, name in enumerate(SIDES):
        said = train.where(code_R == code)
        found[name] = said if name == "train" or name not in sides else sides[name].joined(said)
    return {name: rows for name, rows in found.items() if len(rows) or name in sides}


def _dealt(sides: Mapping[str, Survey], split: Split, task: Rules) -> dict[str, Survey]:
    """The sides that are not given, dealt from the training rows."""
    train, validation, test = split.ratio
    ratio = (train, 0.0 if "validation" in sides else validation, 0.0 if "test" in sides else test)
    found = sides["train"]
    unit_R = found.input_R
    if split.group is not None:  # a row without a group is a group by itself
        groups = found.rows.column(split.group)
        pairs = zip(unit_R.tolist(), groups, strict=True)
        units = (own if is_blank(group) else unit(normal(str(group))) for own, group in pairs)
        unit_R = np.fromiter(units, np.uint64, len(unit_R))
    label_R = found.label_R if task.provides is Form.LABELLED else None
    side_R = assign(unit_R, split.model_copy(update={"ratio": ratio}), label_R)
    return {side: found.where(side_R == code) for code, side in enumerate(SIDES)} | {
        side: given for side, given in sides.items() if side != "train"
    }


def _unshared(sides: Mapping[str, Survey], removed: Counter[str]) -> dict[str, Survey]:
    """Without what is in test in validation, nor what is in either in training: no score is of known rows."""
    found: dict[str, Survey] = {}
    seen = np.zeros(0, np.uint64)
    for side in reversed(SIDES):
        shared_R = np.isin(sides[side].input_R, seen)
        removed["rows-shared"] += int(shared_R.sum())
        found[side] = sides[side].where(~shared_R)
        seen = np.concatenate([seen, sides[side].input_R])
    return found


def _refuse_empty(sides: Mapping[str, Survey], wanted: set[str], file: str, removed: Mapping[str, int]) -> None:
    """Refuse a side without rows; a test side that only the ratio asks for may be empty."""
    values = {
        "rows": sum(len(found.rows) for found in sides.values()),
        "removed": sum(removed.values()),
        "causes": ", ".join(code for code, count in removed.items() if count) or "-",
    }
    problems = [Problem(f"{side}-empty", values, file) for side in SIDES if side in wanted and not sides[side].rows]
    if problems:
        raise DataError(problems[:1])  # without training rows, the other sides say nothing new
