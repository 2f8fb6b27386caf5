"""Answers: which part of a batch's rows is whose, where rows hold several answers to one prompt, and how these compare.

Shape legend: R rows, A answers of all rows, M predictions asked for, N tokens of all rows in one line, S tokens of all
texts in one line (a text is an answer behind its prompt), P pairs of answers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Pairs:
    """Answers of one row held against each other.

    first_P, second_P: the answers; ``win_P`` is how likely the first is the better one: 1, or 1/2 of a tie.
    weight_P: of each pair, so that a row weighs one (Ouyang et al. 2022, eq. 1).
    row_P: the row, counted from 0 within the batch.
    """

    first_P: Tensor
    second_P: Tensor
    win_P: Tensor
    weight_P: Tensor
    row_P: Tensor


def in_order(win_P: Tensor, margin_P: Tensor) -> Tensor:
    """Of each pair, by how much its first answer is ahead: is it in the right order, 1 or 0; of a tie, 1/2."""
    ahead_P = (margin_P > 0).float() + 0.5 * (margin_P == 0).float()
    return win_P * ahead_P + (1 - win_P) * (1 - ahead_P)


@dataclass(frozen=True)
class Answers:
    """The parts of some rows.

    part_RP: tokens of each row's prompt, and of each of its answers.
    rank_A: of each answer among those of its row, 0 the best; equal ranks are a tie.
    answer_M, offset_M: which answer a prediction belongs to, and which of its tokens is predicted (from 0).
    """

    part_RP: tuple[tuple[int, ...], ...]
    rank_A: Tensor
    answer_M: Tensor
    offset_M: Tensor

    @cached_property
    def count_R(self) -> tuple[int, ...]:
        """How many answers each row has."""
        return tuple(len(parts) - 1 for parts in self.part_RP)

    @cached_property
    def length_A(self) -> tuple[int, ...]:
        """Tokens of each answer."""
        return tuple(length for parts in self.part_RP for length in parts[1:])

    @cached_property
    def prompt_A(self) -> tuple[int, ...]:
        """Tokens of each answer's prompt."""
        return tuple(parts[0] for parts in self.part_RP for _ in parts[1:])

    def summed(self, value_M: Tensor) -> Tensor:
        """The sum of a value over each answer's predictions, ``value_A``."""
        answer_M = self.answer_M.to(value_M.device)
        return value_M.new_zeros(len(self.length_A)).index_add(0, answer_M, value_M)

    def pairs(self) -> Pairs:
        """Every two answers of a row; the better one first."""
        found: list[tuple[int, int, float, float, int]] = []
        rank_A, start = self.rank_A.tolist(), 0
        for row, count in enumerate(self.count_R):
            two = [(i, j) for i in range(start, start + count) for j in range(i + 1, start + count)]
            for one, other in two:
                better, worse = (one, other) if rank_A[one] <= rank_A[other] else (other, one)
                win = 0.5 if rank_A[one] == rank_A[other] else 1.0
                found.append((better, worse, win, 1 / len(two), row))
            start += count
        places = np.asarray(found, np.float64).reshape(-1, 5).T
        first, second, row_P = (torch.from_numpy(places[index].astype(np.int64)) for index in (0, 1, 4))
        win_P, weight_P = (torch.from_numpy(places[index]).float() for index in (2, 3))
        return Pairs(first, second, win_P, weight_P, row_P)

    def place_S(self) -> Places:
        """Of each token of the texts, where it stands among the rows' tokens."""
        found, start = [], 0
        for prompt, *lengths in self.part_RP:
            begun = start + prompt
            for length in lengths:
                found += [np.arange(start, start + prompt), np.arange(begun, begun + length)]
                begun += length
            start = begun
        return np.concatenate(found)

    def paths(self) -> tuple[Places, Places]:
        """Of each of the rows' tokens, its place in its text, and its part of the row: the prompt (0), or an answer."""
        places: list[Places] = []
        parts: list[Places] = []
        for prompt, *lengths in self.part_RP:
            places += [np.arange(prompt), *(np.arange(prompt, prompt + length) for length in lengths)]
            parts += [np.full(length, part) for part, length in enumerate((prompt, *lengths))]
        return np.concatenate(places), np.concatenate(parts)

    def before_M(self) -> Tensor:
        """Where each prediction is made among the texts' tokens."""
        text_A = np.add(self.prompt_A, self.length_A)
        start_A = torch.from_numpy(np.cumsum(text_A) - text_A + np.asarray(self.prompt_A))
        return start_A.to(self.answer_M.device)[self.answer_M] + self.offset_M - 1

    def taken(self, first: int, last: int) -> Answers:
        """The parts of the rows from ``first`` to before ``last``."""
        begin, end = sum(self.count_R[:first]), sum(self.count_R[:last])
        kept = (self.answer_M >= begin) & (self.answer_M < end)
        return Answers(
            self.part_RP[first:last], self.rank_A[begin:end], self.answer_M[kept] - begin, self.offset_M[kept]
        )

    def to(self, device: torch.device) -> Answers:
        """The same on another device."""
        tensors = {name: getattr(self, name).to(device) for name in ("rank_A", "answer_M", "offset_M")}
        return replace(self, **tensors)
