"""Example and Batch: the one ragged layout in which every text model is fed.

Shape legend: R rows of a batch, N tokens of all rows in one line, M predictions asked for, T tokens of one row.

Where one row ends is data (``length_R``), not shape. Padding or packing is decided below the objectives, by the policy.
For token tasks a prediction is a token: ``predict_M`` says at which of the N positions it is made. For row tasks there
is one prediction a row, M equals R, and ``predict_M`` is ``None``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Example:
    """One encoded row.

    token_T: token ids, int32.
    weight_T: how much the prediction *of* each token counts, float32 (token tasks; ``None`` for row tasks).
    target: a class, a vector of 0 and 1, or a number (row tasks; ``None`` for token tasks).
    row: the row's index in its split's list of rows.
    cut: tokens that ``max_length`` took away.
    type_T: which of a pair's two texts each token is of, 0 or 1, int32 (``None`` where there is no pair).
    """

    token_T: npt.NDArray[np.int32]
    weight_T: npt.NDArray[np.float32] | None = None
    target: Any = None
    row: int = -1
    cut: int = 0
    type_T: npt.NDArray[np.int32] | None = None

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

    @property
    def segment_M(self) -> Tensor:
        """The row, counted from 0 within the batch, that each prediction belongs to."""
        if self.predict_M is None:
            return torch.arange(len(self.length_R), device=self.target_M.device)
        ends_R = torch.tensor(self.length_R, device=self.target_M.device).cumsum(0)
        return torch.searchsorted(ends_R, self.predict_M, right=True)

    def rows(self) -> list[tuple[npt.NDArray[Any], npt.NDArray[Any] | None]]:
        """Each row's tokens, and their types where there are pairs."""
        ends = np.cumsum(self.length_R)[:-1]
        tokens = np.split(self.token_N.cpu().numpy(), ends)
        types = [None] * len(tokens) if self.type_N is None else np.split(self.type_N.cpu().numpy(), ends)
        return list(zip(tokens, types, strict=True))

    def halves(self) -> tuple[Batch, Batch]:
        """The first and the second half of the rows; there are two at least."""
        cut = len(self.length_R) // 2
        tokens = sum(self.length_R[:cut])
        asked = cut if self.predict_M is None else int((self.predict_M < tokens).sum())
        parts = []
        for rows, places, predictions in (
            (slice(None, cut), slice(None, tokens), slice(None, asked)),
            (slice(cut, None), slice(tokens, None), slice(asked, None)),
        ):
            predict_M = None if self.predict_M is None else self.predict_M[predictions] - (places.start or 0)
            parts.append(
                Batch(
                    token_N=self.token_N[places],
                    length_R=self.length_R[rows],
                    predict_M=predict_M,
                    target_M=self.target_M[predictions],
                    weight_M=self.weight_M[predictions],
                    row_R=self.row_R[rows],
                    type_N=None if self.type_N is None else self.type_N[places],
                )
            )
        return parts[0], parts[1]

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        if self.token_N.device == device:
            return self
        tensors: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **tensors)


def collate(examples: Sequence[Example]) -> Batch:
    """Lay examples of one task end to end."""
    token_N = torch.from_numpy(np.concatenate([example.token_T for example in examples])).long()
    length_R = tuple(len(example.token_T) for example in examples)
    row_R = tuple(example.row for example in examples)
    if examples[0].weight_T is None:
        target_M = torch.as_tensor(np.asarray([example.target for example in examples]))
        if target_M.is_floating_point():
            target_M = target_M.float()
        return Batch(token_N, length_R, None, target_M, torch.ones(len(examples)), row_R, _types(examples))
    weight_N = torch.from_numpy(np.concatenate([_predicted(example) for example in examples]))
    asked_M = weight_N.nonzero().squeeze(1)
    return Batch(token_N, length_R, asked_M - 1, token_N[asked_M], weight_N[asked_M], row_R)


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
