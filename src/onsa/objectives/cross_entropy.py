"""Cross-entropy over classes: ``-log softmax(logits)[target]``, one label a row."""

from __future__ import annotations

from typing import ClassVar

from torch.nn import functional

from onsa.models.batch import Batch
from onsa.models.policy import Models
from onsa.objectives.base import Loss, Objective
from onsa.spec.component import Form
from onsa.spec.sections import Share


class CrossEntropy(Objective):
    """Negative log-likelihood of the right class.

    label_smoothing: share of the target that goes to all classes alike (Szegedy et al. 2016, section 7).
    """

    kind: ClassVar[str] = "cross-entropy"
    reads: ClassVar[frozenset[Form]] = frozenset({Form.LABELLED})
    label_smoothing: Share = 0.0

    def __call__(self, models: Models, batch: Batch) -> Loss:
        logit_RC = models.policy.classes(batch)
        target_R, weight_R = batch.target_M.to(logit_RC.device), batch.weight_M.to(logit_RC.device)
        loss_R = functional.cross_entropy(logit_RC, target_R, reduction="none", label_smoothing=self.label_smoothing)
        hit_R = (logit_RC.detach().argmax(1) == target_R).float()
        return Loss((weight_R * loss_R).sum(), weight_R.sum(), {"accuracy": (weight_R * hit_R).sum()})
