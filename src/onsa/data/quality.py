"""Quality: what is worth knowing about rows before time is spent on training with them.

Every function here is pure: rows and the task's reading of them in, problems out, each with counts and up to three
places. Only what makes training pointless is an error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from onsa.data.dataset import place
from onsa.data.rules import Rules
from onsa.data.split import SIDES, normal
from onsa.data.table import Row
from onsa.spec.component import Form
from onsa.spec.errors import Level, Problem
from onsa.spec.messages import say

IMBALANCE = 20  # the largest class to the smallest, from which it is worth a warning
FEW = 5  # rows of a class with which it can hardly be learnt
NEAR_EMPTY = 2  # letters or digits in a text that says next to nothing

Read = Callable[[Row], str]


def examine(sides: Mapping[str, Sequence[Row]], task: Rules) -> list[Problem]:
    """Every problem of the rows of a data set by side (see :func:`onsa.data.dataset.load_rows`), errors first."""
    every = [row for side in SIDES for row in sides.get(side, [])]
    problems = unusable(every, task)
    usable = {side: [row for row in sides.get(side, []) if task.problem_of(row) is None] for side in SIDES}
    rows = [row for side in SIDES for row in usable[side]]
    problems += near_empty(rows, task.inputs)
    for side in SIDES:
        problems += duplicates(usable[side], task.inputs, task.answer)
    problems += conflicts(rows, task.inputs, task.answer)
    for side in ("validation", "test"):
        problems += shared(usable["train"], usable[side], side, task.inputs)
    problems += shared(usable["validation"], usable["test"], "test", task.inputs)
    if task.provides is Form.LABELLED:
        problems += balance(usable["train"], task.answer)
    order = list(Level)
    return sorted(problems, key=lambda problem: order.index(problem.level))


def unusable(rows: Sequence[Row], task: Rules) -> list[Problem]:
    """Rows that the task cannot use, by reason; an error where no other rows are left."""
    found: dict[str, tuple[dict[str, Any], list[Row]]] = {}
    for row in rows:
        problem = task.problem_of(row)
        if problem is not None:
            code, values = problem
            words = {"reason": say(code, **values), "remedy": say(f"{code}.fix", **values)}
            found.setdefault(code, (words, []))[1].append(row)
    none_left = sum(len(bad) for _, bad in found.values()) == len(rows)
    level = Level.ERROR if none_left else Level.WARNING
    return [_problem("rows-unusable", level, bad, total=len(rows), **words) for words, bad in found.values()]


def near_empty(rows: Iterable[Row], inputs: Read) -> list[Problem]:
    """Rows whose input is a letter or a few signs."""
    found = [row for row in rows if sum(map(str.isalnum, inputs(row))) < NEAR_EMPTY]
    return [_problem("rows-near-empty", Level.NOTE, found)] if found else []


def duplicates(rows: Iterable[Row], inputs: Read, answer: Read) -> list[Problem]:
    """Rows that repeat an earlier one: to the letter, or but for case, width and spaces."""
    exact: list[Row] = []
    alike: list[Row] = []
    seen: set[tuple[str, str]] = set()
    seen_normal: set[tuple[str, str]] = set()
    for row in rows:
        key = (inputs(row), answer(row))
        normal_key = (normal(key[0]), normal(key[1]))
        if key in seen:
            exact.append(row)
        elif normal_key in seen_normal:
            alike.append(row)
        seen.add(key)
        seen_normal.add(normal_key)
    problems = [_problem("rows-duplicate", Level.WARNING, exact)] if exact else []
    return [*problems, _problem("rows-alike", Level.NOTE, alike)] if alike else problems


def conflicts(rows: Iterable[Row], inputs: Read, answer: Read) -> list[Problem]:
    """Rows of equal (normalised) inputs with unlike answers."""
    by_input: dict[str, list[tuple[str, Row]]] = {}
    for row in rows:
        by_input.setdefault(normal(inputs(row)), []).append((normal(answer(row)), row))
    clashes = [pairs for pairs in by_input.values() if len({given for given, _ in pairs}) > 1]
    if not clashes:
        return []
    # One row of each answer, so that the places shown do differ.
    found = [row for pairs in clashes for row in dict(pairs).values()]
    count = sum(map(len, clashes))
    return [_problem("rows-conflicting", Level.WARNING, found, count=count, inputs=len(clashes))]


def shared(rows: Iterable[Row], others: Iterable[Row], side: str, inputs: Read) -> list[Problem]:
    """Rows whose (normalised) inputs stand in the given ``side`` as well, where they would be scored."""
    known = {normal(inputs(row)) for row in others}
    found = [row for row in rows if normal(inputs(row)) in known]
    return [_problem("rows-shared", Level.WARNING, found, side=side)] if found else []


def balance(rows: Iterable[Row], answer: Read) -> list[Problem]:
    """Classes that are alone, rare, or far outnumbered."""
    first: dict[str, Row] = {}
    counts: Counter[str] = Counter()
    for row in rows:
        counts[answer(row)] += 1
        first.setdefault(answer(row), row)
    if not counts:
        return []
    (largest, most), (smallest, least) = counts.most_common()[0], counts.most_common()[-1]
    if len(counts) == 1:
        return [_problem("class-single", Level.ERROR, [first[largest]], count=most, name=largest)]
    problems = []
    rare = [name for name, count in counts.items() if count < FEW]
    if rare:
        names = ", ".join(f"{name} ({counts[name]})" for name in rare[:5])
        rows_of = [first[name] for name in rare]
        problems.append(_problem("classes-rare", Level.WARNING, rows_of, count=len(rare), names=names, few=FEW))
    if most > IMBALANCE * least:
        values = {"largest": largest, "most": most, "smallest": smallest, "least": least}
        problems.append(_problem("classes-unbalanced", Level.WARNING, [first[smallest]], count=len(counts), **values))
    return problems


def _problem(code: str, level: Level, rows: Sequence[Row], count: int | None = None, **values: object) -> Problem:
    examples = ", ".join(place(row) for row in rows[:3])
    counted = {"count": len(rows) if count is None else count, "examples": examples}
    return Problem(code, {**counted, **values}, rows[0].file, level=level)
