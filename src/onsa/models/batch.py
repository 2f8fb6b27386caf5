"""Example and Batch: the one ragged layout in which every text model is fed.

Shape legend: R rows of a batch, N tokens of all rows in one line, M predictions asked for, T tokens of one row, A
answers of all rows.

Where one row ends is data (``length_R``), not shape. Padding or packing is decided below the objectives, by the policy.
For token tasks a prediction is a token: ``predict_M`` says at which of the N positions it is made. For row tasks there
is one prediction a row, M equals R, and ``predict_M`` is ``None``.

A row may hold several answers to one prompt: the prompt's tokens stand there once, and each answer's behind. An answer
sees the prompt and itself; its first token is predicted at the prompt's last. Row tasks then make one prediction an
answer, and M equals A.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from onsa.models.answers import Answers


@dataclass(frozen=True, slots=True)
class Example:
    """One encoded row.

    token_T: token ids, int32.
    weight_T: how much the prediction *of* each token counts, float32 (token tasks; ``None`` for row tasks).
    target: a class, a vector of 0 and 1, or a number (row tasks), or the rank of each answer, 0 the best (rows with
        several); ``None`` for other token tasks.
    row: the row's index in its split's list of rows.
    cut: tokens that ``max_length`` took away.
    type_T: which of a pair's two texts each token is of, 0 or 1, int32 (``None`` where there is no pair).
    part_P: tokens of the prompt and of each answer, of a row that holds answers apart.
    companion: the same prompt with another row's answer, where an objective asks for that.
    told: figures of each token, by name, of answers that a policy gave (:mod:`onsa.objectives.base`).
    graded: what each answer was graded with, by name; ``reward`` is the sum.
    """

    token_T: npt.NDArray[np.int32]
    weight_T: npt.NDArray[np.float32] | None = None
    target: Any = None
    row: int = -1
    cut: int = 0
    type_T: npt.NDArray[np.int32] | None = None
    part_P: tuple[int, ...] | None = None
    companion: Example | None = None
    told: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    graded: dict[str, npt.NDArray[np.float64]] = field(default_factory=dict)

    @property
    def path(self) -> int:
        """Tokens of the longest text that the row stands for: its prompt with an answer, or all of it."""
        return len(self.token_T) if self.part_P is None else self.part_P[0] + max(self.part_P[1:])

    def telling(self, **told: npt.NDArray[Any]) -> Example:
        """The same row, with more that is told of its tokens."""
        return replace(self, told={**self.told, **{name: one.astype(np.float32) for name, one in told.items()}})

    def spread(self, value_A: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """A figure of each answer on each of its tokens, ``value_T``; 0 on the prompt's."""
        assert self.part_P is not None
        return np.repeat([0.0, *value_A], self.part_P)

    def answers(self) -> list[slice]:
        """Where each answer's tokens are."""
        assert self.part_P is not None
        return [slice(start, end) for start, end in pairwise(np.cumsum(self.part_P).tolist())]

    @property
    def supervised(self) -> int:
        """How many predictions this row trains."""
        return 1 if self.weight_T is None else int(np.count_nonzero(self.weight_T[1:]))


@dataclass(frozen=True, eq=False)
class Sizes:
    """Figures of some examples, an entry each: tokens, predictions that train, tokens that were cut off, the row."""

    length_R: npt.NDArray[np.int64]
    supervised_R: npt.NDArray[np.int64]
    cut_R: npt.NDArray[np.int64]
    row_R: npt.NDArray[np.int64]


def sizes(examples: Sequence[Example]) -> Sizes:
    """The figures of some examples; those that lie on a disk have them at hand, as ``sizes``."""
    known: Sizes | None = getattr(examples, "sizes", None)
    if known is not None:
        return known
    figures = [(len(one.token_T), one.supervised, one.cut, one.row) for one in examples]
    return Sizes(*np.asarray(figures, np.int64).reshape(-1, 4).T)


@dataclass(frozen=True)
class Batch:
    """Rows that go through a model together: see the module's legend."""

    token_N: Tensor
    length_R: tuple[int, ...]
    predict_M: Tensor | None
    target_M: Tensor
    weight_M: Tensor
    row_R: tuple[int, ...]
    type_N: Tensor | None = None
    answers: Answers | None = None
    companion: Batch | None = None
    told: dict[str, Tensor] = field(default_factory=dict)

    @property
    def segment_M(self) -> Tensor:
        """The row, counted from 0 within the batch, that each prediction belongs to."""
        if self.predict_M is None:
            row_R = torch.arange(len(self.length_R))
            return row_R.repeat_interleave(torch.tensor(self.counts())).to(self.target_M.device)
        ends_R = torch.tensor(self.length_R, device=self.target_M.device).cumsum(0)
        return torch.searchsorted(ends_R, self.predict_M, right=True)

    def counts(self) -> list[int]:
        """How many answers each row holds; 1 where they are not told apart."""
        return [1] * len(self.length_R) if self.answers is None else list(self.answers.count_R)

    def rows(self) -> list[tuple[npt.NDArray[Any], npt.NDArray[Any] | None]]:
        """Each row's tokens, and their types where there are pairs."""
        ends = np.cumsum(self.length_R)[:-1]
        tokens = np.split(self.token_N.cpu().numpy(), ends)
        types = [None] * len(tokens) if self.type_N is None else np.split(self.type_N.cpu().numpy(), ends)
        return list(zip(tokens, types, strict=True))

    def halves(self) -> tuple[Batch, Batch]:
        """The first and the second half of the rows; there are two at least."""
        rows = len(self.length_R)
        return self._taken(0, rows // 2), self._taken(rows // 2, rows)

    def _taken(self, first: int, last: int) -> Batch:
        """The rows from ``first`` to before ``last``."""
        start, end = sum(self.length_R[:first]), sum(self.length_R[:last])
        if self.predict_M is not None:
            asked = slice(int((self.predict_M < start).sum()), int((self.predict_M < end).sum()))
        else:
            asked = slice(sum(self.counts()[:first]), sum(self.counts()[:last]))
        return Batch(
            token_N=self.token_N[start:end],
            length_R=self.length_R[first:last],
            predict_M=None if self.predict_M is None else self.predict_M[asked] - start,
            target_M=self.target_M[asked],
            weight_M=self.weight_M[asked],
            row_R=self.row_R[first:last],
            type_N=None if self.type_N is None else self.type_N[start:end],
            answers=None if self.answers is None else self.answers.taken(first, last),
            companion=None if self.companion is None else self.companion._taken(first, last),
            told={name: value_M[asked] for name, value_M in self.told.items()},
        )

    def unfolded(self) -> Batch:
        """The same predictions, in the same order, over rows of one text each: an answer behind a prompt of its own."""
        if self.answers is None:
            return self
        answers, place_N = self.answers, torch.from_numpy(self.answers.place_S()).to(self.token_N.device)
        return replace(
            self,
            token_N=self.token_N[place_N],
            length_R=tuple(map(sum, zip(answers.prompt_A, answers.length_A, strict=True))),
            predict_M=None if self.predict_M is None else answers.before_M(),
            row_R=tuple(np.repeat(self.row_R, self.counts()).tolist()),
            type_N=None if self.type_N is None else self.type_N[place_N],
            answers=None,
            companion=None,
        )

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        if self.token_N.device == device:
            return self
        moved: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor | Answers | Batch)
        }
        told = {name: value_M.to(device) for name, value_M in self.told.items()}
        return replace(self, **moved, told=told)


def collate(examples: Sequence[Example]) -> Batch:
    """Lay examples of one task end to end."""
    token_N = torch.from_numpy(np.concatenate([example.token_T for example in examples])).long()
    length_R = tuple(len(example.token_T) for example in examples)
    row_R = tuple(example.row for example in examples)
    type_N = _types(examples)
    if examples[0].weight_T is None:
        given = [np.ravel(e.target) if e.part_P else [0 if e.target is None else e.target] for e in examples]
        target_M = torch.as_tensor(np.concatenate(given))
        if target_M.is_floating_point():
            target_M = target_M.float()
        batch = Batch(token_N, length_R, None, target_M, torch.ones(len(target_M)), row_R, type_N)
    else:
        weight_N = torch.from_numpy(np.concatenate([_predicted(example) for example in examples]))
        asked_M = weight_N.nonzero().squeeze(1)
        told = {name: _joined(examples, name)[asked_M] for name in examples[0].told}
        batch = Batch(token_N, length_R, asked_M - 1, token_N[asked_M], weight_N[asked_M], row_R, type_N, told=told)
    if examples[0].part_P is not None:
        batch = _answering(batch, examples)
    companions = [example.companion for example in examples if example.companion is not None]
    return replace(batch, companion=collate(companions)) if companions else batch


def _answering(batch: Batch, examples: Sequence[Example]) -> Batch:
    """A batch of rows that hold answers, with their parts told apart."""
    part_RP = tuple(example.part_P or () for example in examples)
    starts, start = [], 0  # of each answer, among all tokens, and where its prompt ends
    for parts in part_RP:
        ends = start + np.cumsum(parts)
        starts += [(int(begun), start + parts[0]) for begun in ends[:-1]]
        start = int(ends[-1])
    start_A2 = torch.tensor(starts)
    rank_A = torch.cat([torch.as_tensor(np.asarray(example.target, np.float32)) for example in examples])
    if batch.predict_M is None:
        answer_M, offset_M = torch.arange(len(rank_A)), torch.zeros(len(rank_A), dtype=torch.long)
        return replace(batch, answers=Answers(part_RP, rank_A, answer_M, offset_M))
    asked_M = batch.predict_M + 1
    answer_M = torch.searchsorted(start_A2[:, 0].contiguous(), asked_M, right=True) - 1
    offset_M = asked_M - start_A2[answer_M, 0]
    predict_M = torch.where(offset_M == 0, start_A2[answer_M, 1] - 1, batch.predict_M)
    return replace(batch, predict_M=predict_M, answers=Answers(part_RP, rank_A, answer_M, offset_M))


class Made(Sequence[Example]):
    """The base of examples that are made when they are asked for."""

    @abstractmethod
    def at(self, index: int) -> Example:
        """The example of an index from 0."""

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self.at(place) for place in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self.at(index % len(self))


def texts(example: Example) -> list[Example]:
    """The texts that a row stands for: itself, or its prompt with each of its answers."""
    if example.part_P is None:
        return [example]
    prompt, ends = example.part_P[0], np.cumsum(example.part_P)
    found = []
    for start, end in pairwise(ends.tolist()):
        place_T = np.r_[:prompt, start:end]
        weight_T = None if example.weight_T is None else example.weight_T[place_T]
        type_T = None if example.type_T is None else example.type_T[place_T]
        found.append(Example(example.token_T[place_T], weight_T, 0, example.row, type_T=type_T))
    return found


def _joined(examples: Sequence[Example], name: str) -> Tensor:
    """A figure of all tokens."""
    return torch.from_numpy(np.concatenate([example.told[name] for example in examples]))


def _types(examples: Sequence[Example]) -> Tensor | None:
    """Token types of all rows, 0 in those without a pair; ``None`` where no row has one."""
    if all(example.type_T is None for example in examples):
        return None
    types = [np.zeros_like(example.token_T) if example.type_T is None else example.type_T for example in examples]
    return torch.from_numpy(np.concatenate(types)).long()


def _predicted(example: Example) -> npt.NDArray[np.float32]:
    """Weights of a row with the first token's set to zero: nothing stands before it to predict it from."""
    assert example.weight_T is not None
    weight_T = example.weight_T.astype(np.float32, copy=True)
    weight_T[:1] = 0
    return weight_T
