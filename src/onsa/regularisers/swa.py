"""SWA: stochastic weight averaging (Izmailov et al. 2018, algorithm 1)."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from onsa.regularisers.base import Regulariser
from onsa.spec.sections import Share


class Swa(Regulariser):
    """The plain mean of the weights at every few steps late in a run; it is what is measured and saved.

    Until averaging starts, the weights are deployed as they are. It pays with a rate that does not fall to zero, such
    as ``schedule: constant``; else the weights hardly differ at the end.

    start: share of the run's steps after which the first weights enter the mean.
    every: steps from one entry to the next.
    """

    kind: ClassVar[str] = "swa"
    copies: ClassVar[int] = 1
    start: Share = 0.75
    every: Annotated[int, Field(ge=1)] = 1

    def share(self, step: int, total: int) -> float:
        since = step - int(self.start * total)
        if since <= 0:
            return 1.0
        return 0.0 if since % self.every else 1 / (since // self.every + 1)
