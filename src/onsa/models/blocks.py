"""Blocks: the repeated layers of a network, and where in it a parameter lies.

Nothing is known by architecture: the blocks of an encoder, a decoder or a vision model are the members of its outermost
lists of alike modules, in the order in which the network holds them.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

PRODUCTS = ("Linear", "Conv1D", "Linear4bit", "Linear8bitLt")  # classes of modules that multiply by a weight


def blocks(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """The blocks with their names, the first being the one nearest to the input; none where nothing repeats."""
    found: list[tuple[str, nn.Module]] = []
    inside: tuple[str, ...] = ()
    for name, module in network.named_modules():
        if name.startswith(inside) or not isinstance(module, nn.ModuleList | nn.Sequential):
            continue
        members = list(module.named_children())
        alike = len({type(member) for _, member in members}) == 1
        if alike and all(outputs(member) for _, member in members):
            inside = (*inside, f"{name}.")
            found += [(f"{name}.{place}", member) for place, member in members]
    return found


def outputs(block: nn.Module) -> list[tuple[str, nn.Module]]:
    """The products whose results a block adds to its stream, with their names in it: of each attention the last
    product, and the last of all others (the feed-forward part's)."""
    products = [(name, module) for name, module in block.named_modules() if is_product(module)]
    last: dict[str, tuple[str, nn.Module]] = {}
    for name, module in products:
        parts = name.split(".")
        attention = next((".".join(parts[: place + 1]) for place, part in enumerate(parts) if "att" in part), "")
        last[attention] = (name, module)
    return list(last.values())


def is_product(module: nn.Module) -> bool:
    """Whether a module is a matrix product, quantised or not."""
    return type(module).__name__ in PRODUCTS


def depths(network: nn.Module) -> tuple[Callable[[str], int], int]:
    """A function from a parameter's name to its depth, and the greatest depth.

    Depth 0 is what comes before the blocks (embeddings), ``i`` block ``i`` counted from 1, and the greatest depth what
    comes after the last block (a final norm, a pooler, a head).
    """
    places = {f"{name}.": depth for depth, (name, _) in enumerate(blocks(network), 1)}
    top = len(places) + 1
    known: dict[str, int] = {}
    reached = 0
    for name, _ in network.named_parameters():
        reached_here = next((depth for place, depth in places.items() if name.startswith(place)), 0)
        reached = max(reached, reached_here)
        known[name] = reached_here or (top if reached else 0)
    return known.__getitem__, top
