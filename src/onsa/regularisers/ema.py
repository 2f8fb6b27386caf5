"""EMA: an exponential moving average of the weights is deployed in their place (Polyak and Juditsky 1992)."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from onsa.regularisers.base import Regulariser


class Ema(Regulariser):
    """``average ← d · average + (1 - d) · weights`` after every step; the average is what is measured and saved.

    The decay warms up: behind step n, counted from 0, it is ``d = min(decay, (1 + n) / (10 + n))``, so that the first
    weights, which are the base's, are soon forgotten.

    decay: what the average keeps of itself at each step; 0 deploys the weights as they are.
    """

    kind: ClassVar[str] = "ema"
    copies: ClassVar[int] = 1
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.99

    def share(self, step: int, total: int) -> float:
        return 1 - min(self.decay, (1 + step) / (10 + step))
