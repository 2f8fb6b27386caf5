"""Predict: a run answers texts, rows of a file, or a conversation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from onsa.data.read import read_file
from onsa.data.table import Row, Table
from onsa.models.heads import Head
from onsa.programs.adapters import STACK, adapters, is_stack
from onsa.serve.adapters import Adapter, Answering, Question, open_adapters
from onsa.serve.predictor import Predictor, load_run
from onsa.serve.prompter import Given
from onsa.spec.errors import DataError, StoreError, unknown
from onsa.spec.recipe import Recipe, parse_recipe
from onsa.spec.sections import Data
from onsa.store.run import Run
from onsa.store.runs import Store
from onsa.tasks.base import Task, text_of


def open_run(ref: str | Run) -> tuple[Run, Recipe]:
    """A run by its reference, and its resolved recipe.

    Raises:
        StoreError: there is no such run, or more than one.
    """
    if isinstance(ref, str):
        with Store() as store:
            ref = store.find(ref)
    return ref, parse_recipe(ref.recipe)


def load(ref: str | Run, tuned: bool = True) -> Predictor:
    """The tuned model of a run (``onsa.load``), or its base.

    Raises:
        StoreError: no such run, no model in it, or a base that cannot answer.
    """
    run, recipe = open_run(ref)
    if not tuned and cast(Task, recipe.task).head is Head.ROWS:
        raise StoreError.of("base-without-head", file=str(run.folder), task=cast(Task, recipe.task).kind)
    return load_run(run.folder, recipe, tuned)


def predict(
    ref: str, texts: Sequence[str], source: Path | None, base: bool, more: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
    """Answers to texts and to the rows of a file, each with its row number.

    Args:
        more: further adapters over the run's base, which answer as well; ``A+B`` is a stack. A row whose column
            ``adapter`` names one of them is answered by that one only.

    Raises:
        DataError: neither texts nor a file are given, the file lacks a column that the task reads, or a row
            cannot be answered.
        StoreError: no such run, or one that cannot be composed with the others.
    """
    if not texts and source is None:
        raise DataError.of("nothing-to-answer")
    if more or is_stack(ref):
        if base:
            raise StoreError.of("base-with-adapters")
        yield from _several([ref, *more], texts, source)
        return
    run, recipe = open_run(ref)
    rows: list[Given] = list(texts)
    if source is not None:
        rows += as_rows(read_file(source, Data(path=str(source))), recipe)
    predictor = load(run, not base)
    for index, answer in enumerate(predictor.stream(rows)):
        yield {"row": index, **answer}


def _several(refs: Sequence[str], texts: Sequence[str], source: Path | None) -> Iterator[dict[str, Any]]:
    """Answers of several adapters, by row and then in the order in which the adapters were named."""
    named = adapters(refs)
    found = list({adapter.name: adapter for adapter in named.values()}.values())
    asked = [Question(adapter.name, number, text) for number, text in enumerate(texts, 1) for adapter in found]
    if source is not None:
        table = read_file(source, Data(path=str(source)))
        names = [_meant(row, named) for row in table.rows]
        wanted = {adapter.name for meant in names for adapter in (meant or found)}
        rows = {adapter.name: as_rows(table, adapter.recipe) for adapter in found if adapter.name in wanted}
        for index, meant in enumerate(names):
            number = len(texts) + index + 1
            asked += [Question(adapter.name, number, rows[adapter.name][index]) for adapter in meant or found]
    for question, answer in zip(asked, open_adapters(found).answer(asked), strict=True):
        yield {"row": question.number - 1, "adapter": question.adapter, **answer}


def _meant(row: Row, named: Mapping[str, Adapter]) -> list[Adapter]:
    """The adapter that a row of a file names: as on the command line, or by the beginning of an id; or none."""
    value = text_of(row.values.get("adapter")).strip()
    if not value:
        return []
    fitting = {adapter.name: adapter for ref, adapter in named.items() if ref == value or adapter.name == value}
    fitting = fitting or {a.name: a for a in named.values() if _begins(a.name, value)}
    if len(fitting) != 1:
        problem = unknown("row-adapter-unknown", value, [adapter.name for adapter in named.values()])
        raise DataError(replace(problem, file=row.file, line=row.line))
    return list(fitting.values())


def _begins(name: str, value: str) -> bool:
    """Whether a value means an adapter by the beginning of its name; a stack only where it is one itself."""
    return bool(value) and name.startswith(value) and (STACK in value or STACK not in name)


def as_rows(table: Table, recipe: Recipe) -> list[Row]:
    """The rows of a file by role; the columns that hold answers may be missing, or others of the task's own names."""
    task = cast(Task, recipe.task)
    answers, columns = task.answers, recipe.data.columns or {}
    if not any(columns.get(role) in table.columns for role in answers):
        columns = columns | {role: role for role in answers & task.roles.keys() if role in table.columns}
    missing = [name for role, name in columns.items() if name not in table.columns and role not in answers]
    if missing:
        names = ", ".join(table.columns)
        raise DataError.of("predict-column-missing", file=table.file, column=missing[0], columns=names)
    present = [role for role, name in columns.items() if name in table.columns and role != "label"]
    return [replace(row, values={role: row.values.get(columns[role]) for role in present}) for row in table.rows]


@dataclass(frozen=True)
class Turn:
    """One exchange."""

    tuned: str
    base: str | None


@dataclass
class Conversation:
    """A talk with a tuned model, and with its base beside where that was asked for; each keeps its own history.

    adapters: those that may answer, by name; ``adapter`` is the one that does.
    """

    tuned: Predictor
    base: Predictor | None = None
    adapters: Answering | None = None
    adapter: str | None = None
    _histories: tuple[list[dict[str, str]], list[dict[str, str]]] = field(default_factory=lambda: ([], []))

    def say(self, text: str) -> Turn:
        """Say something, and hear the answers."""
        answers: list[str | None] = []
        for predictor, history in zip((self.tuned, self.base), self._histories, strict=True):
            if predictor is None:
                answers.append(None)
                continue
            history.append({"role": "user", "content": text})
            answers.append(predictor.chat(history))
            history.append({"role": "assistant", "content": answers[-1] or ""})
        return Turn(answers[0] or "", answers[1])

    def switch(self, name: str) -> None:
        """Let another adapter go on with the conversation.

        Raises:
            StoreError: there is none of that name among those that may answer.
        """
        known = self.adapters.adapters if self.adapters else {}
        fitting = [name] if name in known else [one for one in known if _begins(one, name)]
        if self.adapters is None or len(fitting) != 1:
            raise StoreError(unknown("adapter-unknown", name, known))
        self.adapter = fitting[0]
        self.tuned = self.adapters.predictor(self.adapter)


def conversation(ref: str, base: bool, more: Sequence[str] = ()) -> Conversation:
    """A conversation with a run; ``more`` are adapters over its base that may take its place.

    Raises:
        StoreError: a run's task is not chat, or the runs cannot be composed.
    """
    if more or is_stack(ref):
        named = adapters([ref, *more])
        for adapter in named.values():
            _chats(adapter.name, adapter.recipe)
        found = list({adapter.name: adapter for adapter in named.values()}.values())
        several, first = open_adapters(found), found[0]
        beside = load_run(first.folders[0], first.recipe, tuned=False) if base else None
        return Conversation(several.predictor(first.name), beside, several, first.name)
    run, recipe = open_run(ref)
    _chats(run.id, recipe)
    return Conversation(load(run), load(run, tuned=False) if base else None)


def _chats(name: str, recipe: Recipe) -> None:
    task = cast(Task, recipe.task)
    if not task.talks:
        raise StoreError.of("run-not-chat", file=name, task=task.kind)
