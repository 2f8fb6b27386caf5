"""Survey: what one look at rows tells of each, as arrays, so that very many rows need not be in memory together.

Texts are kept as units (:func:`onsa.data.split.unit`): eight bytes of a hash. That two unlike texts among a million are
taken for one has a probability of 3e-8.

Shape legend: R rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from onsa.data.rows import Part
from onsa.data.rules import Rules
from onsa.data.split import Units, normal, unit
from onsa.spec.component import Form

NEAR_EMPTY = 2  # letters or digits in a text that says next to nothing
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Survey:
    """What is known of some rows.

    reasons: why a row cannot be used, as a message code with the values of the first such row.
    reason_R: the index of a row's reason, or -1; what follows is known of rows without one only.
    input_R: the input, normalised; ``pair_R`` is input and answer, ``exact_R`` the same to the letter.
    bare_R: whether the input says next to nothing.
    names, label_R: the answers of a task with labels, and the index of each row's.
    """

    rows: Part
    reasons: tuple[tuple[str, dict[str, Any]], ...]
    reason_R: npt.NDArray[np.int64]
    input_R: Units
    pair_R: Units
    exact_R: Units
    bare_R: Flags
    names: tuple[str, ...]
    label_R: npt.NDArray[np.int64]

    @property
    def usable_R(self) -> Flags:
        """The rows without a reason."""
        return self.reason_R < 0

    def where(self, keep_R: Flags) -> Survey:
        """What is known of those rows for which it is said so."""
        return replace(
            self,
            rows=self.rows.where(keep_R),
            reason_R=self.reason_R[keep_R],
            input_R=self.input_R[keep_R],
            pair_R=self.pair_R[keep_R],
            exact_R=self.exact_R[keep_R],
            bare_R=self.bare_R[keep_R],
            label_R=self.label_R[keep_R],
        )


def survey(rows: Part, task: Rules) -> Survey:
    """One look at rows, as a task reads them."""
    reasons: dict[str, tuple[int, dict[str, Any]]] = {}
    names: dict[str, int] = {}
    reason_R, label_R = np.full(len(rows), -1), np.zeros(len(rows), np.int64)
    input_R, pair_R, exact_R = (np.zeros(len(rows), np.uint64) for _ in range(3))
    bare_R = np.zeros(len(rows), np.bool_)
    labelled = task.provides is Form.LABELLED
    for index, row in enumerate(rows):
        problem = task.problem_of(row)
        if problem is not None:
            reason_R[index] = reasons.setdefault(problem[0], (len(reasons), problem[1]))[0]
            continue
        given, answer = task.inputs(row), task.answer(row)
        plain = normal(given)
        input_R[index] = unit(plain)
        pair_R[index] = unit(f"{plain}\0{normal(answer)}")
        exact_R[index] = unit(f"{given}\0{answer}")
        bare_R[index] = len(list(islice(filter(str.isalnum, given), NEAR_EMPTY))) < NEAR_EMPTY
        if labelled:
            label_R[index] = names.setdefault(answer, len(names))
    listed = tuple((code, values) for code, (_, values) in reasons.items())
    return Survey(rows, listed, reason_R, input_R, pair_R, exact_R, bare_R, tuple(names), label_R)
