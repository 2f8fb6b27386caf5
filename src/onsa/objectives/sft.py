"""SFT: supervised fine-tuning, the negative log-likelihood of the tokens that count."""

from __future__ import annotations

from typing import ClassVar

from onsa.models.batch import Batch
from onsa.models.policy import Models
from onsa.objectives.base import Loss, Objective
from onsa.spec.component import Form


class Sft(Objective):
    """``-Σ weight · log p(token | tokens before it)``, divided by ``Σ weight`` over the whole step."""

    kind: ClassVar[str] = "sft"
    reads: ClassVar[Form] = Form.TOKENS

    def __call__(self, models: Models, batch: Batch) -> Loss:
        logprob_M = models.policy.logprobs(batch)
        weight_M = batch.weight_M.to(logprob_M.device)
        return Loss(-(weight_M * logprob_M).sum(), weight_M.sum())
