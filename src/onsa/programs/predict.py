"""Predict: a run answers texts, rows of a file, or a conversation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from onsa.data.read import read_file
from onsa.data.table import Row
from onsa.models.heads import Head
from onsa.serve.predictor import Given, Predictor, load_run
from onsa.spec.errors import DataError, StoreError
from onsa.spec.recipe import Recipe, parse_recipe
from onsa.spec.sections import Data
from onsa.store.run import Run
from onsa.store.runs import Store
from onsa.tasks.base import Task
from onsa.tasks.chat import Chat


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


def predict(ref: str, texts: Sequence[str], source: Path | None, base: bool) -> Iterator[dict[str, Any]]:
    """Answers to texts and to the rows of a file, each with its row number.

    Raises:
        DataError: neither texts nor a file are given, the file lacks a column that the task reads, or a row
            cannot be answered.
    """
    if not texts and source is None:
        raise DataError.of("nothing-to-answer")
    run, recipe = open_run(ref)
    rows: list[Given] = list(texts)
    if source is not None:
        rows += _rows(source, recipe)
    predictor = load(run, not base)
    for index, answer in enumerate(predictor.stream(rows)):
        yield {"row": index, **answer}


def _rows(source: Path, recipe: Recipe) -> list[Row]:
    """The rows of a file by role; the column that holds the answers may be missing."""
    table = read_file(source, Data(path=str(source)))
    answers = {"label", "completion"}
    columns = recipe.data.columns or {}
    missing = [name for role, name in columns.items() if name not in table.columns and role not in answers]
    if missing:
        names = ", ".join(table.columns)
        raise DataError.of("predict-column-missing", file=str(source), column=missing[0], columns=names)
    present = [role for role, name in columns.items() if name in table.columns and role != "label"]
    return [replace(row, values={role: row.values.get(columns[role]) for role in present}) for row in table.rows]


@dataclass(frozen=True)
class Turn:
    """One exchange."""

    tuned: str
    base: str | None


@dataclass
class Conversation:
    """A talk with a tuned model, and with its base beside where that was asked for; each keeps its own history."""

    tuned: Predictor
    base: Predictor | None = None
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


def conversation(ref: str, base: bool) -> Conversation:
    """A conversation with a run.

    Raises:
        StoreError: the run's task is not chat.
    """
    run, recipe = open_run(ref)
    if not isinstance(recipe.task, Chat):
        raise StoreError.of("run-not-chat", file=run.id, task=cast(Task, recipe.task).kind)
    return Conversation(load(run), load(run, tuned=False) if base else None)
