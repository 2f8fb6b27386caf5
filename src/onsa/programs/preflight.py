"""Preflight on tokens: what only shows once rows are encoded for the base that will read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from onsa.data.table import Dataset, Row, place
from onsa.models.batch import Example, sizes
from onsa.models.heads import Head
from onsa.spec.errors import DataError, Level, Problem
from onsa.spec.recipe import Recipe
from onsa.tasks.base import Task
from onsa.tasks.chat import Chat

EXAMPLES = 3


def template(task: Task, dataset: Dataset, tokenizer: Any, name: str) -> list[Problem]:
    """Whether the base's chat template exists, ends turns, and gives back what was put in."""
    if task.head is not Head.TOKENS:
        return []
    if isinstance(task, Chat) and not tokenizer.chat_template:
        return [Problem("template-missing", {"value": name}, key="model.name")]
    if tokenizer.eos_token_id is None:
        return [Problem("eos-missing", {}, level=Level.WARNING)]
    if not isinstance(task, Chat):
        return []
    found: list[Problem] = []
    row = dataset.train[0]
    try:
        example = task.encode(row, tokenizer, 1_000_000)
    except DataError as error:
        return list(error.problems)
    except Exception as error:  # a template is a program of the model's author: it can raise anything
        return [Problem("template-fails", {"reason": str(error)}, row.file, row.line)]
    found += _tools(task, dataset, tokenizer)
    text = tokenizer.decode(example.token_T)
    lost = [m for m in task.messages(row) if str(m.get("content") or "").strip() not in text]
    if lost:
        found.append(Problem("template-loses", {"role": lost[0]["role"]}, row.file, row.line, level=Level.WARNING))
    ends = [] if example.weight_T is None else example.token_T[example.weight_T > 0].tolist()[-1:]
    if ends and ends[0] not in tokenizer.all_special_ids:
        found.append(Problem("turn-end-missing", {}, row.file, row.line, level=Level.WARNING))
    return found


def _tools(task: Chat, dataset: Dataset, tokenizer: Any) -> list[Problem]:
    """Whether the template shows the tools that rows offer."""
    row = next((row for row in dataset.train if row.values.get("tools")), None)
    if row is None:
        return []
    bare = replace(row, values={**row.values, "tools": None})
    if task.prompt(row, tokenizer) != task.prompt(bare, tokenizer):
        return []
    return [Problem("template-hides-tools", {}, row.file, row.line, level=Level.WARNING)]


def tokens(
    recipe: Recipe, dataset: Dataset, examples: Mapping[str, Sequence[Example]], tokenizer: Any, context: int
) -> list[Problem]:
    """Rows that were cut, rows of which nothing trains, and how much of the text trains."""
    found: list[Problem] = []
    limit = recipe.train.max_length or context
    values: dict[str, Any]
    if limit > context:
        values = {"value": limit, "context": context}
        found.append(Problem("length-over-context", values, key="train.max_length"))
    for side, rows in dataset.sides.items():
        seen = sizes(examples[side])
        masked_R = np.setdiff1d(np.arange(len(rows)), seen.row_R)
        if rows and not len(seen.row_R):
            if all(problem.code != "all-masked" for problem in found):  # one side is enough to say what to change
                values = {"rows": len(rows), "side": side, "length": limit}
                found.append(Problem("all-masked", values, rows[0].file, rows[0].line))
        elif len(masked_R):
            values = {"rows": len(masked_R), "side": side, "places": places(rows, masked_R)}
            found.append(Problem("rows-masked", values, level=Level.WARNING))
        cut_R = seen.row_R[seen.cut_R > 0]
        if len(cut_R):
            values = {
                "rows": len(cut_R),
                "side": side,
                "length": limit,
                "tokens": int(seen.cut_R.sum()),
                "places": places(rows, cut_R),
            }
            found.append(Problem("rows-cut", values, level=Level.WARNING))
    seen = sizes(examples["train"])
    if cast(Task, recipe.task).provides.value == "tokens" and len(seen.row_R):
        total = int(seen.length_R.sum())
        share = f"{seen.supervised_R.sum() / total:.0%}"
        found.append(Problem("tokens-trained", {"share": share, "tokens": total}, level=Level.NOTE))
    return found


def view(example: Example, tokenizer: Any) -> list[tuple[str, bool]]:
    """A row's text in pieces, each with whether it trains: what ``onsa check`` shows in colour.

    Answers stand below each other, each behind its rank.
    """
    if example.part_P is not None:
        prompt, *answers = np.split(example.token_T, np.cumsum(example.part_P)[:-1])
        found = [(tokenizer.decode(prompt), False)]
        for rank, answer in zip(example.target, answers, strict=True):
            found += [(f"\n[{rank:g}] ", False), (tokenizer.decode(answer), True)]
        return found
    if example.weight_T is None:
        return [(tokenizer.decode(example.token_T), False)]
    pieces: list[tuple[list[int], bool]] = []
    for token, weight in zip(example.token_T.tolist(), example.weight_T.tolist(), strict=True):
        if not pieces or pieces[-1][1] != (weight > 0):
            pieces.append(([], weight > 0))
        pieces[-1][0].append(token)
    return [(tokenizer.decode(ids), trains) for ids, trains in pieces]


def places(rows: Sequence[Row], index_R: npt.NDArray[np.int64]) -> str:
    """The first few of some rows by file and line."""
    shown = ", ".join(place(rows[int(index)]) for index in index_R[:EXAMPLES])
    return shown + (", …" if len(index_R) > EXAMPLES else "")
