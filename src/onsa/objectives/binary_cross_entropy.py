"""Binary cross-entropy: each label on its own, several labels a row."""

from __future__ import annotations

from typing import ClassVar

from torch.nn import functional

from onsa.models.batch import Batch
from onsa.models.policy import Models
from onsa.objectives.base import Loss, Objective
from onsa.spec.component import Form
from onsa.spec.sections import Share


class BinaryCrossEntropy(Objective):
    """Negative log-likelihood of each label being given or not, averaged over the labels of a row.

    label_smoothing: share of each target that goes to given and not given alike (Szegedy et al. 2016, section 7).
    """

    kind: ClassVar[str] = "binary-cross-entropy"
    reads: ClassVar[frozenset[Form]] = frozenset({Form.MULTILABELLED})
    label_smoothing: Share = 0.0

    def __call__(self, models: Models, batch: Batch) -> Loss:
        logit_RC = models.policy.classes(batch)
        target_RC, weight_R = batch.target_M.to(logit_RC.device), batch.weight_M.to(logit_RC.device)
        target_RC = target_RC * (1 - self.label_smoothing) + self.label_smoothing / 2
        loss_R = functional.binary_cross_entropy_with_logits(logit_RC, target_RC, reduction="none").mean(1)
        return Loss((weight_R * loss_R).sum(), weight_R.sum())
