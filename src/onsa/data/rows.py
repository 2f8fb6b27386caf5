"""Rows: very many of them lie on the disk, not in memory, and are read back one by one when they are asked for."""

from __future__ import annotations

import os
import pickle
import sys
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain, islice
from typing import Any, overload
from weakref import finalize

import numpy as np
import numpy.typing as npt

from onsa.data.table import Row, Table
from onsa.store.home import home

IN_MEMORY = 20_000  # rows that are kept there
TOGETHER = 512  # rows that are read at once where all are
Numbers = npt.NDArray[np.int64]


def gathered(rows: Iterable[Row]) -> Sequence[Row]:
    """The rows of one file: a list, or where there are very many a file that goes with the process."""
    given = iter(rows)
    first = list(islice(given, IN_MEMORY + 1))
    return first if len(first) <= IN_MEMORY else Spooled(first[0].file, chain(first, given))


class Spooled(Sequence[Row]):
    """Rows of one file in a file without a name, written once."""

    def __init__(self, file: str, rows: Iterable[Row]) -> None:
        self._file = file
        self._place = tempfile.TemporaryFile(dir=home() / "cache")  # noqa: SIM115 (it goes with these rows)
        finalize(self, self._place.close)
        self._ends = array("Q", [0])
        for row in rows:
            written = pickle.dumps((row.values, row.line), pickle.HIGHEST_PROTOCOL)
            self._place.write(written)
            self._ends.append(self._ends[-1] + len(written))
        self._place.flush()

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...

    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        (row,) = self._read(index % len(self), 1)
        return row

    def __iter__(self) -> Iterator[Row]:
        for start in range(0, len(self), TOGETHER):
            yield from self._read(start, min(TOGETHER, len(self) - start))

    def _read(self, start: int, count: int) -> Iterator[Row]:
        begin, end = self._ends[start], self._ends[start + count]
        if sys.platform == "win32":
            self._place.seek(begin)
            content = self._place.read(end - begin)
        else:  # processes that were forked read at their own pace
            content = os.pread(self._place.fileno(), end - begin, begin)
        for index in range(start, start + count):
            part = content[self._ends[index] - begin : self._ends[index + 1] - begin]
            values, line = pickle.loads(part)
            yield Row(values, self._file, line)


@dataclass(frozen=True, eq=False)
class Pool:
    """The rows of some tables one after the other, by role.

    columns: of each table, role to column.
    change: what is done with a row's values when they are read.
    """

    tables: Sequence[Table]
    columns: Sequence[Mapping[str, str]]
    change: Callable[[dict[str, Any]], dict[str, Any]]

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Where each table begins, and where the last ends."""
        return tuple(accumulate((len(table.rows) for table in self.tables), initial=0))

    def part(self, table: int) -> Part:
        """All rows of one table."""
        return Part(self, np.arange(self.starts[table], self.starts[table + 1]))

    def found(self, index: int) -> Row:
        """A row as it stands in its table."""
        table = self._table(index)
        return self.tables[table].rows[index - self.starts[table]]

    def row(self, index: int) -> Row:
        """A row by role."""
        found, columns = self.found(index), self.columns[self._table(index)]
        values = {role: found.values.get(column) for role, column in columns.items()}
        return Row(self.change(values), found.file, found.line)

    def _table(self, index: int) -> int:
        return next(table for table in range(len(self.tables)) if index < self.starts[table + 1])


@dataclass(frozen=True, eq=False)
class Part(Sequence[Row]):
    """Some rows of a pool, by their numbers in it."""

    pool: Pool
    index_R: Numbers

    def __len__(self) -> int:
        return len(self.index_R)

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> Part: ...

    def __getitem__(self, index: int | slice) -> Row | Part:
        if isinstance(index, slice):
            return Part(self.pool, self.index_R[index])
        return self.pool.row(int(self.index_R[index]))

    def where(self, keep_R: npt.NDArray[np.bool_]) -> Part:
        """Those of its rows for which it is said so."""
        return Part(self.pool, self.index_R[keep_R])

    def joined(self, other: Part) -> Part:
        """These rows and then others of the same pool."""
        return Part(self.pool, np.concatenate([self.index_R, other.index_R]))

    def column(self, name: str) -> Iterator[Any]:
        """What stands in a column of the rows' tables."""
        return (self.pool.found(int(index)).values.get(name) for index in self.index_R)

    def settled(self) -> Sequence[Row]:
        """The same rows; a list of them where there are not very many."""
        return list(self) if len(self) <= IN_MEMORY else self
