"""What the page template lays out: sections, figures and tables, with every word already in the reader's language."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from markupsafe import Markup


class Cell(NamedTuple):
    """words, a small bar for a share in [0, 1], and a tone (``good``, ``bad``)."""

    words: str
    share: float | None = None
    tone: str = ""


class Fact(NamedTuple):
    """A name, its value, and a smaller remark."""

    name: str
    value: str
    more: str = ""


@dataclass(frozen=True)
class Table:
    """Column names, and rows of cells; the first column is words, the others numbers."""

    head: list[str]
    rows: list[list[Cell]]

    @staticmethod
    def of(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
        """A table of plain words."""
        return Table(list(head), [[Cell(words) for words in row] for row in rows])


@dataclass(frozen=True)
class Figure:
    """A drawing, what to read in it, and the table behind it."""

    svg: Markup
    caption: str = ""
    table: Table | None = None
    title: str = ""


class Wrong(NamedTuple):
    """A mistake; sure: how probable the model held its answer, in words."""

    text: str
    expected: str
    predicted: str
    sure: str
    place: str


class Side(NamedTuple):
    """A prompt with its answers; base is ``None`` where it did not answer."""

    prompt: str
    expected: str
    base: str | None
    tuned: str


class Samples(NamedTuple):
    """A prompt, and what it was answered at one time and another."""

    prompt: str
    said: list[Fact]


@dataclass(frozen=True)
class Section:
    """A part of the page. name: its anchor; figures: rows of figures that stand side by side where there is room."""

    name: str
    title: str
    notes: list[str] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)
    style: str = "facts"
    figures: list[list[Figure]] = field(default_factory=list)
    table: Table | None = None
    mistakes: list[Wrong] = field(default_factory=list)
    answers: list[Side] = field(default_factory=list)
    samples: list[Samples] = field(default_factory=list)
    code: str = ""

    @property
    def empty(self) -> bool:
        """Nothing to show: such a section disappears."""
        shown = (self.facts, self.figures, self.table, self.mistakes, self.answers, self.samples, self.code)
        return not any(shown) and (self.name != "warnings" or not self.notes)
