"""SFT: supervised fine-tuning, the negative log-likelihood of the tokens that count."""

from __future__ import annotations

from typing import ClassVar

from onsa.models.batch import Batch
from onsa.models.policy import Models
from onsa.objectives.base import Loss, Objective
from onsa.spec.component import Form
from onsa.spec.sections import Share


class Sft(Objective):
    """``-Σ weight · log p(token | tokens before it)``, divided by ``Σ weight`` over the whole step.

    label_smoothing: share of each target that goes to all tokens alike (Szegedy et al. 2016, section 7).
    """

    kind: ClassVar[str] = "sft"
    reads: ClassVar[frozenset[Form]] = frozenset({Form.TOKENS})
    label_smoothing: Share = 0.0

    def __call__(self, models: Models, batch: Batch) -> Loss:
        logprob_M, best_M = models.policy.told(batch, self.label_smoothing)
        weight_M = batch.weight_M.to(logprob_M.device)
        return Loss(-(weight_M * logprob_M).sum(), weight_M.sum(), {"token_accuracy": (weight_M * best_M).sum()})
