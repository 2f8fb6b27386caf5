"""IA³: learned scales of keys, values and feed-forward units (Liu et al. 2022, section 3.3), through PEFT."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from onsa.adaptations.base import PeftAdapter
from onsa.models.heads import Head
from onsa.models.targets import adaptable, targeted
from onsa.spec.errors import RecipeError


class Ia3(PeftAdapter):
    """Train one factor a unit, from 1, so that step zero equals the base; by far the smallest adapter.

    targets: names of the modules whose output is scaled, or one regular expression over whole paths; keys and values
        if not given, as PEFT knows them for the base.
    feedforward: names of the modules whose input is scaled, or one such expression; those that end a feed-forward part
        if not given.
    """

    kind: ClassVar[str] = "ia3"
    rates: ClassVar[dict[Head, float]] = {Head.ROWS: 1e-2, Head.TOKENS: 1e-2}

    targets: str | tuple[str, ...] | None = None
    feedforward: str | tuple[str, ...] | None = None

    def config(self, network: nn.Module, train: frozenset[str], total: int) -> Any:
        from peft import IA3Config
        from peft.utils.constants import TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING as INPUTS
        from peft.utils.constants import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as ALL

        model = network.config.model_type  # type: ignore[union-attr]  # a transformers model
        if self.targets is None and model not in ALL:
            choices = ", ".join(sorted({place.rpartition(".")[2] for place in adaptable(network, train)}))
            raise RecipeError.of("targets-needed", key="adaptation.targets", model=model, choices=choices)
        inputs = tuple(INPUTS.get(model, ()))
        targets = self.targets if self.targets is not None else tuple(n for n in ALL.get(model, ()) if n not in inputs)
        feedforward = self.feedforward if self.feedforward is not None else inputs
        ends = targeted(network, feedforward, train, "adaptation.feedforward") if feedforward else []
        kept = targeted(network, targets, train, "adaptation.targets")
        return IA3Config(target_modules=[*kept, *ends], feedforward_modules=ends)
