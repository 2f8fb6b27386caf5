"""KTO: answers that are good or bad each for itself, weighed as people weigh gains and losses."""

from __future__ import annotations

from functools import partial
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from onsa.models.batch import Batch
from onsa.models.policy import Models
from onsa.objectives.base import Loss, LossOf, Objective, Role, answers_of, counts, log_ratios
from onsa.spec.component import Form


class Kto(Objective):
    """``λ · (1 - σ(β (ratio - z)))`` of a good answer, ``λ · (1 - σ(β (z - ratio)))`` of a bad one (Ethayarajh et al.
    2024, eq. 7 and 8), where ``ratio`` is how much likelier the policy makes an answer than the reference does, and
    ``z`` is how far the policy has moved at all: the mean ratio, over a step's rows, of prompts with another row's
    answer, and 0 at least. Of a pair the better answer is good, the other bad.

    beta: how closely the policy keeps to the reference.
    good, bad: weights (λ) of good and of bad answers.
    """

    kind: ClassVar[str] = "kto"
    reads: ClassVar[frozenset[Form]] = frozenset({Form.JUDGED, Form.PREFERRED})
    uses: ClassVar[frozenset[Role]] = frozenset({Role.REFERENCE})
    companions: ClassVar[bool] = True
    beta: Annotated[float, Field(gt=0)] = 0.1
    good: Annotated[float, Field(ge=0)] = 1.0
    bad: Annotated[float, Field(ge=0)] = 1.0

    def foresee(self, models: Models, batch: Batch) -> tuple[Tensor, Tensor]:
        """The sum over a batch's companions of their ratios, and how many there are."""
        if batch.companion is None:
            return torch.zeros(()), torch.zeros(())
        ratio_A = log_ratios(models, batch.companion)
        counts_A = counts(batch.companion).to(ratio_A.device)
        return (ratio_A * counts_A).sum(), counts_A.sum()

    def knowing(self, mean: float) -> LossOf:
        return partial(self._against, moved=max(0.0, mean))

    def __call__(self, models: Models, batch: Batch) -> Loss:
        return self._against(models, batch, 0.0)

    def _against(self, models: Models, batch: Batch, moved: float) -> Loss:
        ratio_A = log_ratios(models, batch)
        good_A, counts_A = (answers_of(batch).rank_A == 0).to(ratio_A.device), counts(batch).to(ratio_A.device)
        ahead_A = self.beta * torch.where(good_A, ratio_A - moved, moved - ratio_A)
        weight_A = torch.where(good_A, self.good, self.bad) * counts_A
        metrics = {"moved": moved * counts_A.sum(), "ahead": (counts_A * (ahead_A.detach() > 0)).sum()}
        return Loss((weight_A * (1 - ahead_A.sigmoid())).sum(), counts_A.sum(), metrics)
