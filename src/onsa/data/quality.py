"""Quality: what is worth knowing about rows before time is spent on training with them.

Every function here is pure: surveys of rows in, problems out, each with counts and up to three places. Only what makes
training pointless is an error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice

import numpy as np

from onsa.data.rules import Rules
from onsa.data.split import SIDES, Units
from onsa.data.survey import Flags, Survey
from onsa.data.table import Row, place
from onsa.spec.component import Form
from onsa.spec.errors import Level, Problem
from onsa.spec.messages import say

IMBALANCE = 20  # the largest class to the smallest, from which it is worth a warning
FEW = 5  # rows of a class with which it can hardly be learnt
EXAMPLES = 3  # places that are shown
COMPARED = (Form.RANKED, Form.PREFERRED, Form.JUDGED)  # several answers to one input are what these are about


def examine(sides: Mapping[str, Survey], task: Rules) -> list[Problem]:
    """Every problem of the rows of a data set by side (see :func:`onsa.data.dataset.load_rows`), errors first."""
    surveys = [sides[side] for side in SIDES if side in sides]
    problems = unusable(surveys)
    usable = {side: found.where(found.usable_R) for side, found in sides.items()}
    surveys = [usable[side] for side in SIDES if side in usable]
    problems += near_empty(surveys)
    for found in surveys:
        problems += duplicates(found)
    if task.provides not in COMPARED:
        problems += conflicts(surveys)
    for side, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        if side in usable and other in usable:
            problems += shared(usable[side], usable[other], other)
    if task.provides is Form.LABELLED:
        problems += balance(usable["train"])
    order = list(Level)
    return sorted(problems, key=lambda problem: order.index(problem.level))


def unusable(surveys: Sequence[Survey]) -> list[Problem]:
    """Rows that the task cannot use, by reason; an error where no other rows are left."""
    reasons = {code: values for found in reversed(surveys) for code, values in found.reasons}
    total = sum(len(found.rows) for found in surveys)
    level = Level.WARNING if any(found.usable_R.any() for found in surveys) else Level.ERROR
    problems = []
    for code in dict.fromkeys(code for found in surveys for code, _ in found.reasons):
        words = {"reason": say(code, **reasons[code]), "remedy": say(f"{code}.fix", **reasons[code])}
        masks = [_is(found, code) for found in surveys]
        problems += _hits("rows-unusable", level, surveys, masks, total=total, **words)
    return problems


def _is(found: Survey, code: str) -> Flags:
    """Which rows cannot be used for this reason."""
    return np.isin(found.reason_R, [number for number, (own, _) in enumerate(found.reasons) if own == code])


def near_empty(surveys: Sequence[Survey]) -> list[Problem]:
    """Rows whose input is a letter or a few signs."""
    return _hits("rows-near-empty", Level.NOTE, surveys, [found.bare_R for found in surveys])


def duplicates(found: Survey) -> list[Problem]:
    """Rows that repeat an earlier one: to the letter, or but for case, width and spaces."""
    exact_R = _repeats(found.exact_R)
    alike_R = _repeats(found.pair_R) & ~exact_R
    return [
        *_hits("rows-duplicate", Level.WARNING, [found], [exact_R]),
        *_hits("rows-alike", Level.NOTE, [found], [alike_R]),
    ]


def conflicts(surveys: Sequence[Survey]) -> list[Problem]:
    """Rows of equal (normalised) inputs with unlike answers."""
    input_R = np.concatenate([found.input_R for found in surveys])
    apart_R = ~_repeats(np.concatenate([found.pair_R for found in surveys]))  # the first row of each pair
    input_U, pairs_U = np.unique(input_R[apart_R], return_counts=True)
    clashing_U = input_U[pairs_U > 1]
    if not len(clashing_U):
        return []
    clash_R = np.isin(input_R, clashing_U)
    # One row of each answer to the input that clashes first, and to the next, so that the places shown do differ.
    _, first_U, back_R = np.unique(input_R, return_index=True, return_inverse=True)
    shown = np.flatnonzero(clash_R & apart_R)
    shown = shown[np.lexsort((shown, first_U[back_R[shown]]))][:EXAMPLES]
    starts = np.cumsum([0, *(len(found.rows) for found in surveys)])
    rows = []
    for index in shown:
        part = int(np.searchsorted(starts, index, side="right")) - 1
        rows.append(surveys[part].rows[int(index - starts[part])])
    return [_problem("rows-conflicting", Level.WARNING, rows, int(clash_R.sum()), inputs=len(clashing_U))]


def shared(found: Survey, others: Survey, side: str) -> list[Problem]:
    """Rows whose (normalised) inputs stand in the given ``side`` as well, where they would be scored."""
    return _hits("rows-shared", Level.WARNING, [found], [np.isin(found.input_R, others.input_R)], side=side)


def balance(found: Survey) -> list[Problem]:
    """Classes that are alone, rare, or far outnumbered."""
    label_U, first_U, count_U = np.unique(found.label_R, return_index=True, return_counts=True)
    if not len(label_U):
        return []
    seen = sorted(zip(first_U.tolist(), label_U.tolist(), count_U.tolist(), strict=True))
    first = {found.names[label]: at for at, label, _ in seen}
    counts = Counter({found.names[label]: count for _, label, count in seen})
    (largest, most), (smallest, least) = counts.most_common()[0], counts.most_common()[-1]
    if len(counts) == 1:
        return [_problem("class-single", Level.ERROR, [found.rows[first[largest]]], most, name=largest)]
    problems = []
    rare = [name for name, count in counts.items() if count < FEW]
    if rare:
        names = ", ".join(f"{name} ({counts[name]})" for name in rare[:5])
        rows = [found.rows[first[name]] for name in rare[:EXAMPLES]]
        problems.append(_problem("classes-rare", Level.WARNING, rows, len(rare), names=names, few=FEW))
    if most > IMBALANCE * least:
        values = {"largest": largest, "most": most, "smallest": smallest, "least": least}
        rows = [found.rows[first[smallest]]]
        problems.append(_problem("classes-unbalanced", Level.WARNING, rows, len(counts), **values))
    return problems


def _repeats(value_R: Units) -> Flags:
    """Which of some values have come before."""
    again_R = np.ones(len(value_R), np.bool_)
    again_R[np.unique(value_R, return_index=True)[1]] = False
    return again_R


def _hits(
    code: str, level: Level, surveys: Sequence[Survey], masks: Sequence[Flags], **values: object
) -> list[Problem]:
    """The problem that some rows have, if there are any."""
    count = sum(int(hit_R.sum()) for hit_R in masks)
    places = ((found, index) for found, hit_R in zip(surveys, masks, strict=True) for index in np.flatnonzero(hit_R))
    rows = [found.rows[int(index)] for found, index in islice(places, EXAMPLES)]
    return [_problem(code, level, rows, count, **values)] if count else []


def _problem(code: str, level: Level, rows: Sequence[Row], count: int, **values: object) -> Problem:
    counted = {"count": count, "examples": ", ".join(place(row) for row in rows)}
    return Problem(code, {**counted, **values}, rows[0].file, level=level)
