"""ORPO: the better answer is learnt, and its odds are raised over those of the worse, in one go."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from onsa.models.batch import Batch
from onsa.models.policy import Models
from onsa.objectives.base import Compared, Loss, Objective, a_token, likelihoods, logistic
from onsa.spec.component import Form


class Orpo(Objective):
    """``-mean log p of the better answer's tokens - λ · log σ(log of the odds' ratio)`` (Hong et al. 2024, eq. 6, 7).

    beta: weight of the odds' ratio (the paper's λ).
    """

    kind: ClassVar[str] = "orpo"
    reads: ClassVar[frozenset[Form]] = frozenset({Form.PREFERRED})
    beta: Annotated[float, Field(gt=0)] = 0.1

    def __call__(self, models: Models, batch: Batch) -> Loss:
        mean_A = a_token(batch, likelihoods(models, batch))
        means, pairs = Compared.of(batch, mean_A), Compared.of(batch, log_odds(mean_A))
        return pairs.loss(self.beta * pairs.either(logistic) - means.better_P)


def log_odds(logprob_A: Tensor) -> Tensor:
    """``log p / (1 - p)``, also where ``p`` is next to one (Mächler 2012, eq. 7)."""
    near_A = logprob_A.clamp_max(-torch.finfo(logprob_A.dtype).eps)
    rest_A = torch.where(near_A > -0.693, torch.log(-torch.expm1(near_A)), torch.log1p(-torch.exp(near_A)))
    return near_A - rest_A
