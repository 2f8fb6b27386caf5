"""Companions: beside each row its prompt with another row's answer, for objectives that ask what that is worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from onsa.models.batch import Example, Made, sizes


class Companioned(Made):
    """Rows that hold answers, each with the first answer of the next row as its companion's.

    Args:
        max_length: tokens that a companion keeps.
    """

    def __init__(self, examples: Sequence[Example], max_length: int) -> None:
        self.examples, self.max_length = examples, max_length
        self.sizes = sizes(examples)

    def __len__(self) -> int:
        return len(self.examples)

    def at(self, index: int) -> Example:
        own, other = self.examples[index], self.examples[(index + 1) % len(self)]
        assert own.part_P is not None and other.part_P is not None, "rows that hold answers"
        prompt, first = own.part_P[0], other.part_P[0]
        answer_T = other.token_T[first : first + other.part_P[1]][: self.max_length - prompt]
        token_T = np.concatenate([own.token_T[:prompt], answer_T])
        weight_T = (np.arange(len(token_T)) >= prompt).astype(np.float32)
        parts = (prompt, len(answer_T))
        return replace(own, companion=Example(token_T, weight_T, np.zeros(1, np.float32), own.row, part_P=parts))
