"""Regulariser: what holds a model back from learning its rows by heart.

A kind works at one of four places, and leaves the others as they are: in the network (``attach``), around the objective
(``around``), on top of the mean loss (``penalty``), or on the weights that are deployed (``share``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from onsa.adaptations.base import Adaptation
from onsa.models.policy import Policy
from onsa.objectives.base import LossOf
from onsa.spec.component import Component, Form
from onsa.spec.errors import Problem


class Regulariser(Component):
    """The base of every regulariser.

    ``copies`` counts further values that it keeps for each one that trains, ``passes`` the forward passes whose values
    a backward pass needs at once.
    """

    copies: ClassVar[int] = 0
    passes: ClassVar[int] = 1

    def refuse(self, provides: Form, adaptation: Adaptation) -> Problem | None:
        """Why it cannot do its work on examples of a form under an adaptation, if so."""
        return None

    def attach(self, network: nn.Module) -> None:
        """Put something into the network that acts in training mode only.

        Raises:
            RecipeError: the network has no place for it.
        """

    def check(self, policy: Policy, new: frozenset[str]) -> None:
        """Called once all are attached, with the network in the mode of a training step.

        Args:
            new: names of parameters that the base did not have.

        Raises:
            RecipeError: with this network it would change nothing.
        """

    def around(self, objective: LossOf) -> LossOf:
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


def drops(module: nn.Module) -> float:
    """The share of values that a module sets to zero in training: some architectures hold it as a number."""
    held = {"p": module.p} if isinstance(module, nn.Dropout) else vars(module)
    rates = [value for name, value in held.items() if isinstance(value, float) and (name == "p" or "drop" in name)]
    return max(rates, default=0.0)
