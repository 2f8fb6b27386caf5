"""Blocks: the repeated layers of a network, its head, and where in it a parameter lies.

Nothing is known by architecture: the blocks of an encoder, a decoder or a vision model are the members of its outermost
lists of alike modules, in the order in which the network holds them. Where such a list holds stages that are lists of
blocks themselves (as in Swin), the blocks of all stages are meant.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from onsa.models.lowering import base_network

PRODUCTS = ("Linear", "Conv1D")  # what multiplies by a weight; quantised products are Linear's children


def blocks(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """The blocks with their names, the first being the one nearest to the input; none where nothing repeats."""
    found: list[tuple[str, nn.Module]] = []
    inside: tuple[str, ...] = ()
    for name, module in network.named_modules():
        if name.startswith(inside) or not _repeats(module) or _holds_stages(module):
            continue
        inside = (*inside, f"{name}.")
        found += [(f"{name}.{place}", member) for place, member in module.named_children()]
    return found


def _repeats(module: nn.Module) -> bool:
    """Whether a module is a list of alike members that multiply by weights inside."""
    members = list(module.children())
    alike = isinstance(module, nn.ModuleList | nn.Sequential) and len({type(member) for member in members}) == 1
    return alike and all(any(_products(member)) for member in members)


def _holds_stages(module: nn.Module) -> bool:
    """Whether there are lists inside whose members attend by themselves; lists of experts do not."""
    inner = (part for part in module.modules() if part is not module and _repeats(part))
    return any(all(_attention(name) for name in _first_attention(part)) for part in inner)


def _first_attention(module: nn.Module) -> Iterator[str]:
    """For each member, the name of its first product that belongs to an attention, or nothing."""
    for member in module.children():
        yield next((name for name, _ in _products(member) if _attention(name)), "")


@dataclass(frozen=True)
class Outputs:
    """The names of those modules of a block whose results are added to its stream: one for each attention (a decoder
    that looks at an encoder has two), and one for the feed-forward part."""

    attentions: tuple[str, ...]
    feed_forward: str | None


def outputs(block: nn.Module) -> Outputs:
    """Of each part the last product that is as wide as the stream; of experts, the module that mixes them."""
    wide = width(block)
    last = {_attention(name): name for name, module in _products(block) if _sizes(module)[1] == wide}
    mixers = [name.rpartition(".")[0] for name, _ in block.named_modules() if name.rpartition(".")[2] == "experts"]
    feed_forward = mixers[0] if mixers else last.get("")
    return Outputs(tuple(name for part, name in last.items() if part), feed_forward)


def width(block: nn.Module) -> int:
    """The width of the stream through a block: the size that most of its products read or write."""
    sizes = Counter(size for _, module in _products(block) for size in _sizes(module))
    return sizes.most_common(1)[0][0]


def _products(block: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The matrix products inside a module, quantised or not."""
    for name, module in block.named_modules():
        if name and any(cls.__name__ in PRODUCTS for cls in type(module).__mro__):
            yield name, module


def _sizes(product: Any) -> tuple[int, int]:
    """The widths that a product reads and writes; a Conv1D of transformers tells them by its weight only."""
    if isinstance(product, nn.Linear):
        return product.in_features, product.out_features
    read, written = product.weight.shape
    return read, written


def _attention(name: str) -> str:
    """The path of the attention that a module of a block belongs to, or nothing."""
    parts = name.split(".")
    return next((".".join(parts[: place + 1]) for place, part in enumerate(parts) if "att" in part.lower()), "")


def depths(network: nn.Module) -> tuple[Callable[[str], int], int]:
    """A function from a parameter's name to its depth, and the greatest depth.

    Depth 0 is what comes before the blocks (embeddings), ``i`` block ``i`` counted from 1, and the greatest depth what
    comes after the last block (a final norm, a pooler, a head).
    """
    places = {f"{name}.": depth for depth, (name, _) in enumerate(blocks(network), 1)}
    count, top = len(places), len(places) + 1
    above = head_names(network)
    known: dict[str, int] = {}
    reached = 0
    for name, _ in network.named_parameters():
        here = next((depth for place, depth in places.items() if name.startswith(place)), None)
        if here is not None:
            known[name] = reached = here
        elif name in above or "final" in name:  # some networks hold their final norm before their blocks
            known[name] = top
        else:  # between two blocks it goes with the lower one; a decoder's own embeddings come after the encoder
            known[name] = 0 if "embed" in name else top if reached == count and count else reached
    return known.__getitem__, top


def head_modules(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """The parts of a network that are no part of its base model: a new head, or the layer that gives the vocabulary."""
    inner = base_network(network)
    parts = [child for child in inner.children() if child is not inner.base_model and inner.base_model is not inner]
    ids = {id(part) for part in (*parts, inner.get_output_embeddings())}
    return [(name, module) for name, module in network.named_modules() if id(module) in ids]


def head_names(network: nn.Module) -> frozenset[str]:
    """The names of the head's parameters. Where the output layer shares its weight with the input embeddings, that one
    weight is no parameter of the head's own."""
    own = {name for name, _ in network.named_parameters()}
    parts = head_modules(network)
    return frozenset(own & {f"{part}.{name}" for part, module in parts for name, _ in module.named_parameters()})


def untie(network: nn.Module) -> None:
    """Give the output layer a weight of its own where it shares that of the input embeddings, also once reloaded."""
    inner = base_network(network)
    output = inner.get_output_embeddings()
    if output is None or output.weight is not inner.get_input_embeddings().weight:
        return
    output.weight = nn.Parameter(output.weight.detach().clone())
    for config in {id(part): part for part in (inner.config, inner.config.get_text_config())}.values():
        config.tie_word_embeddings = False
    inner.all_tied_weights_keys = {}
