"""Regulariser: what holds a model back from learning its rows by heart.

A kind works at one of four places, and leaves the others as they are: in the network (``attach``), around the objective
(``around``), on top of the mean loss (``penalty``), or on the weights that are deployed (``share``).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from onsa.objectives.base import Objective
from onsa.spec.component import Component


class Regulariser(Component):
    """The base of every regulariser."""

    def attach(self, network: nn.Module) -> None:
        """Put something into the network that acts in training mode only.

        Raises:
            RecipeError: the network has no place for it.
        """

    def around(self, objective: Objective) -> Objective:
        """The objective with more to minimise."""
        return objective

    def penalty(
        self, trainable: Mapping[str, Tensor], start: Mapping[str, Tensor], new: frozenset[str]
    ) -> Tensor | None:
        """What is added to the mean loss of a step.

        Args:
            trainable: what trains, by name; ``start`` is the same before the first step.
            new: names, among those, of parameters that the base did not have.
        """
        return None

    def share(self, step: int, total: int) -> float | None:
        """The share of the weights behind step ``step`` (from 0) in the average that is deployed, in [0, 1].

        ``average ← (1 - share) · average + share · weights``. ``None``: the kind keeps no average.
        """
        return None
