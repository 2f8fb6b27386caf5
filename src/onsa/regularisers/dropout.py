"""Dropout (Srivastava et al. 2014), put into a network that has none."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn

from onsa.models.blocks import blocks, outputs
from onsa.models.policy import Policy
from onsa.regularisers.base import Regulariser, drops
from onsa.spec.errors import RecipeError
from onsa.spec.sections import Share

PART = "regulariser_dropout"


class Dropout(Regulariser):
    """Dropout on what each block's attention and feed-forward part add to the stream, as in the first Transformer
    (Vaswani et al. 2017, section 5.4). Most decoders of today come without any.

    rate: share of values that is set to zero; 0 leaves the network as it is.
    """

    kind: ClassVar[str] = "dropout"
    rate: Share = 0.1

    def attach(self, network: nn.Module) -> None:
        if self.rate == 0:
            return
        places = _places(network)
        if not places:
            raise RecipeError.of("dropout-without-blocks", key="regulariser")
        own = max((drops(part) for _, block in blocks(network) for part in _beside_adapters(block)), default=0.0)
        if own > 0:
            raise RecipeError.of("dropout-there", key="regulariser", rate=f"{own:g}")
        for module in places:
            # A part of the module, so that it is in the module's mode.
            module.add_module(PART, nn.Dropout(self.rate))
            module.register_forward_hook(partial(_dropped, module.get_submodule(PART)))

    def check(self, policy: Policy, new: frozenset[str]) -> None:
        if self.rate > 0 and not any(module.training for module in _places(policy.network)):
            raise RecipeError.of("regulariser-asleep", key="regulariser", regulariser=self.kind)


def _dropped(dropout: nn.Module, module: nn.Module, given: Any, result: Any) -> Any:
    if isinstance(result, Tensor):
        return dropout(result)
    first, *rest = result  # experts may tell beside their result how it was mixed
    return dropout(first), *rest


def _places(network: nn.Module) -> list[nn.Module]:
    """The modules whose results are dropped: a block's outputs, each with the adapter that may be around it."""
    found = []
    for _, block in blocks(network):
        ends = outputs(block)
        names = (*ends.attentions, *([] if ends.feed_forward is None else [ends.feed_forward]))
        found += [_adapted(block, name) for name in names]
    return found


def _adapted(block: nn.Module, name: str) -> nn.Module:
    """The product that a module is, or is the adapter of."""
    parts = name.split(".")
    path = [block.get_submodule(".".join(parts[: place + 1])) for place in range(len(parts))]
    return next((module for module in path if _holds_weight(module)), path[-1])


def _beside_adapters(block: nn.Module) -> list[nn.Module]:
    """The modules of a block but those inside a product: these are an adapter's, whose dropout is another thing."""
    products = [module for module in block.modules() if _holds_weight(module)]
    inside = {id(part) for module in products for part in module.modules() if part is not module}
    return [module for module in block.modules() if id(module) not in inside]


def _holds_weight(module: nn.Module) -> bool:
    return getattr(module, "weight", None) is not None
