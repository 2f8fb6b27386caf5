"""Strata: a network by depth, and how far down training reaches now.

Depths are those of :func:`onsa.models.blocks.depths`: 0 is what comes before the blocks, then block by block, and the
greatest is what comes after the last one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from onsa.models.blocks import blocks, depths


@dataclass(frozen=True)
class Strata:
    """What a network is made of, each part with its depth.

    blocks: the repeated layers, from the input up.
    others: the parts beside them; one without parameters (a dropout) is at the bottom where it is held before the
        blocks, else at the top.
    parameters: all of them.
    top: the greatest depth.
    """

    blocks: tuple[nn.Module, ...]
    others: tuple[tuple[nn.Module, int], ...]
    parameters: tuple[tuple[nn.Parameter, int], ...]
    top: int

    @staticmethod
    def of(network: nn.Module) -> Strata:
        """The strata of a network as it is now."""
        depth, top = depths(network)
        known = {name: depth(name) for name, _ in network.named_parameters()}  # a shared weight has one name
        members = blocks(network)
        above = {part for name, _ in members for part in _around(name)}
        inside = {id(module) for _, module in members}
        others: list[tuple[nn.Module, int]] = []
        begun = False
        for name, module in network.named_modules():
            begun = begun or id(module) in inside
            if name in above or id(module) in inside or name.rpartition(".")[0] not in above:
                continue
            held = [known[path] for inner, _ in module.named_parameters() if (path := f"{name}.{inner}") in known]
            others.append((module, min(held, default=top if begun else 0)))
        return Strata(
            tuple(module for _, module in members),
            tuple(others),
            tuple((parameter, known[name]) for name, parameter in network.named_parameters()),
            top,
        )

    @property
    def lowest(self) -> int:
        """The depth of the lowest parameter that trains now."""
        return min(depth for parameter, depth in self.parameters if parameter.requires_grad)

    def rest(self) -> None:
        """Where whole blocks lie below all that trains, put them, and what is under them, in the mode of use: nothing
        that happens there can be learnt from."""
        lowest = self.lowest
        if lowest < 2:
            return
        for block in self.blocks[: lowest - 1]:
            block.eval()
        for part, depth in self.others:
            if depth < lowest:
                part.eval()


def _around(name: str) -> Iterator[str]:
    """The paths of all modules around a module."""
    while name:
        name = name.rpartition(".")[0]
        yield name
