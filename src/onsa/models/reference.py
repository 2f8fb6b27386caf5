"""Reference: the model that a policy began as, which objectives hold it against.

Its log-probabilities of texts that stay the same are computed once and kept on disk, in the files of
:mod:`onsa.models.states`, so that no second model is in memory. Of texts that are made on the way it is asked when they
are there: a network that can be put back to what it began as needs no second model either.

Shape legend: M predictions.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from onsa.models.batch import Batch
from onsa.models.states import DIGEST_BYTES, States


class Reference(ABC):
    """The base of both."""

    @abstractmethod
    def logprobs(self, batch: Batch) -> Tensor:
        """The log-probability of each asked-for token, ``logprob_M``, fp32, without a graph."""


@dataclass(frozen=True)
class Live(Reference):
    """The policy itself, put back to what it began as.

    said: what the policy, as it is, makes of a batch; ``back``: within, it is what it began as.
    """

    said: Callable[[Batch], Tensor]
    back: Callable[[], AbstractContextManager[None]]

    @torch.no_grad()
    def logprobs(self, batch: Batch) -> Tensor:
        with self.back():
            return self.said(batch)


@dataclass(frozen=True)
class Recorded(Reference):
    """The log-probabilities of predictions, by what :func:`asked` knows each text by."""

    kept: States

    def logprobs(self, batch: Batch) -> Tensor:
        places = [self.kept.places[text] for text in asked(batch)]
        parts = [self.kept.value_ND[start:end, 0] for start, end in places]
        return torch.cat(parts).to(batch.token_N.device)


def asked(batch: Batch) -> list[bytes]:
    """What each text of a batch is known by: its tokens, and which of them are predicted."""
    texts = batch.unfolded()
    assert texts.predict_M is not None
    predict_M, segment_M = texts.predict_M.cpu(), texts.segment_M.cpu()
    found, start = [], 0
    for row, (token_T, _) in enumerate(texts.rows()):
        told = hashlib.blake2b(token_T.astype("<i4").tobytes(), digest_size=DIGEST_BYTES)
        told.update((predict_M[segment_M == row] - start).numpy().astype("<i4").tobytes())
        found.append(told.digest())
        start += len(token_T)
    return found
