"""Stacked adapters: many LoRAs over one base answer a batch, each row by its own.

``y = x Wᵀ + b + (x Aᵀ) Bᵀ`` (Hu et al. 2021, eq. 3, with its scale in B), the first product of all rows together and
the others of rows in groups by their adapter (Chen et al. 2023, Punica; Sheng et al. 2023, S-LoRA). A row is multiplied
with its own adapter alone, so those of its neighbours cannot reach it.

Shape legend: R rows, T tokens of each, I width of the input, O of the output, P adapters in a stack, r the largest rank
of them (less is padded with zeros), U adapters of a batch, G the most rows that one of them has, M = U · G, N rows with
an adapter.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from onsa.adaptations.base import whole_adapter
from onsa.models.lowering import base_network
from onsa.serve.adapters import Adapter, obstacles, settings
from onsa.serve.predictor import MODEL

BASE = 0  # the place of no adapter
MOST_RANK = 64  # every place in a stack takes as much as the largest
NAME = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
Factors = tuple[Tensor, Tensor]  # ``a_rI`` and ``b_rO``


@dataclass(frozen=True)
class Groups:
    """Rows of a batch by their adapter.

    stack_U: the indices of adapters in a stack; ``used`` those that have rows.
    alone: one adapter answers every row.
    row_M: the rows of each adapter behind each other, filled up with any.
    from_N, to_N: where each row with an adapter lies among these, and in the batch.
    """

    stack_U: tuple[int, ...]
    used: frozenset[int]
    alone: bool
    row_M: Tensor
    from_N: Tensor
    to_N: Tensor


class Asked:
    """What adapters the next forward is for; all stacked layers of a network look at the same."""

    groups: Groups | None = None


class Stacked(nn.Module):
    """A linear layer with the factors of many adapters, ``a_PrI`` and ``b_PrO``."""

    def __init__(self, base: nn.Linear, asked: Asked, dtype: torch.dtype) -> None:
        super().__init__()
        self.base = base
        self.adapts: set[int] = set()
        self._asked = asked
        self._a = torch.zeros(0, 0, base.in_features, dtype=dtype, device=base.weight.device)
        self._b = torch.zeros(0, 0, base.out_features, dtype=dtype, device=base.weight.device)
        self._picked: tuple[tuple[int, ...], Factors] | None = None

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    def put(self, index: int, factors: Factors) -> None:
        """Take up an adapter."""
        a_rI, b_rO = factors
        self.stretch(index + 1, len(a_rI))
        for stack, factor in ((self._a, a_rI), (self._b, b_rO)):
            stack[index] = 0
            stack[index, : len(factor)] = factor
        self.adapts.add(index)
        self._picked = None

    def clear(self, index: int) -> None:
        """Forget an adapter."""
        if index in self.adapts:
            self._a[index], self._b[index] = 0, 0
            self.adapts.discard(index)
            self._picked = None

    def stretch(self, places: int, rank: int = 0) -> None:
        """Make room."""
        held, width = self._a.shape[:2]
        shape = (max(places, held), max(rank, width))
        if shape != (held, width):
            a, b = (stack.new_zeros(*shape, stack.shape[2]) for stack in (self._a, self._b))
            a[:held, :width], b[:held, :width] = self._a, self._b
            self._a, self._b, self._picked = a, b, None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        groups = self._asked.groups
        if groups is None or self.adapts.isdisjoint(groups.used):
            return y
        a_UrI, b_UrO = self._factors(groups.stack_U)
        x = x.to(a_UrI.dtype)
        if groups.alone:
            u_Nr = x.reshape(-1, x.shape[-1]) @ a_UrI[0].T
            return y.view(-1, y.shape[-1]).addmm_(u_Nr.to(y.dtype), b_UrO[0].to(y.dtype)).view(y.shape)
        x_UMI = x[groups.row_M].view(len(a_UrI), -1, x.shape[-1])
        update_UMO = torch.bmm(torch.bmm(x_UMI, a_UrI.transpose(1, 2)), b_UrO)
        update_NTO = update_UMO.view(-1, *y.shape[1:])[groups.from_N]
        return y.index_add_(0, groups.to_N, update_NTO.to(y.dtype))

    def _factors(self, stack_U: tuple[int, ...]) -> Factors:
        """The factors of some adapters; copied together once, as long as they stay the same."""
        if stack_U == tuple(range(len(self._a))):
            return self._a, self._b
        if len(stack_U) == 1:
            return self._a[stack_U[0], None], self._b[stack_U[0], None]
        if self._picked is None or self._picked[0] != stack_U:
            self._picked = stack_U, (self._a[list(stack_U)], self._b[list(stack_U)])
        return self._picked[1]


@dataclass
class Resident:
    """An adapter that is held: its index in stacks, and how many rows it answers now."""

    index: int
    rows: int = 0


class Stacks:
    """The adapters of one network, read when they are first asked for.

    Args:
        network: a transformers model without a wrapper; its adapted linear layers are replaced.
        find: gives an adapter by its name, which stands for the same weights ever after.
        most: adapters that stay when no row needs them; the least recently used go first.
        dtype: what factors multiply in.
    """

    def __init__(self, network: nn.Module, find: Callable[[str], Adapter], most: int, dtype: torch.dtype) -> None:
        self._network = base_network(network)
        self._find, self._most, self._dtype = find, most, dtype
        self._asked = Asked()
        self._layers: dict[str, Stacked] = {}
        self._held: OrderedDict[str, Resident] = OrderedDict()
        self._places = 0
        self._last: tuple[tuple[int, ...], Groups | None] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters that are held, the least recently used first."""
        return tuple(self._held)

    @property
    def layers(self) -> int:
        """How many of the network's layers were replaced."""
        return len(self._layers)

    def hold(self, name: str) -> int:
        """The place of an adapter, which stays until it is released as often as it was held.

        Raises:
            ValueError: it cannot be stacked; its model then has to be loaded by itself.
        """
        if name not in self._held:
            self._load(name)
        self._held.move_to_end(name)
        self._held[name].rows += 1
        self._evict()
        return self._held[name].index + 1

    def release(self, name: str) -> None:
        """A row of an adapter has ended."""
        self._held[name].rows -= 1
        self._evict()

    @contextmanager
    def answering(self, place_R: Sequence[int]) -> Iterator[None]:
        """Within, each row of a forward is answered by the adapter of its place; of place 0 by the base."""
        key = (self._places, *place_R)
        if self._last is None or self._last[0] != key:
            self._last = key, grouped(place_R, self._places, self._network.device)
        self._asked.groups = self._last[1]
        try:
            yield
        finally:
            self._asked.groups = None

    def _evict(self) -> None:
        while len(self._held) > self._most:
            name = next((name for name, one in self._held.items() if not one.rows), None)
            if name is None:
                return
            index = self._held.pop(name).index
            for layer in self._layers.values():
                layer.clear(index)

    def _load(self, name: str) -> None:
        adapter = self._find(name)
        check(adapter, self._network)
        factors = read(adapter)
        taken = {one.index for one in self._held.values()}
        index = next(place for place in range(len(taken) + 1) if place not in taken)
        if index >= self._places:
            self._places = max(1, 2 * self._places)
        for layer in factors.keys() - self._layers.keys():
            self._layers[layer] = self._replaced(layer)
        try:
            for layer, stacked in self._layers.items():
                stacked.stretch(self._places)
                if layer in factors:
                    stacked.put(index, factors[layer])
        except BaseException:  # what is half there is nobody's
            for stacked in self._layers.values():
                stacked.clear(index)
            raise
        self._held[name] = Resident(index)

    def _replaced(self, layer: str) -> Stacked:
        owner, _, leaf = layer.rpartition(".")
        stacked = Stacked(self._network.get_submodule(layer), self._asked, self._dtype).eval()
        setattr(self._network.get_submodule(owner), leaf, stacked)
        return stacked


def grouped(place_R: Sequence[int], places: int, device: torch.device) -> Groups | None:
    """Rows by their adapter; nothing where no row has one.

    Args:
        places: those of all adapters. Where most of them have rows, the others get none, instead of being left out:
            nothing has to be copied together.
    """
    rows_of: dict[int, list[int]] = {}
    for row, place in enumerate(place_R):
        if place != BASE:
            rows_of.setdefault(place - 1, []).append(row)
    if not rows_of:
        return None
    used = frozenset(rows_of)
    alone = len(used) == 1 and len(next(iter(rows_of.values()))) == len(place_R)
    stack_U = tuple(range(places)) if len(used) > 1 and places < 2 * len(used) else tuple(sorted(used))
    most = max(map(len, rows_of.values()))
    row_M, from_N, to_N = [], [], []
    for place, index in enumerate(stack_U):
        rows = rows_of.get(index, [])
        row_M += [*rows, *([0] * (most - len(rows)))]
        from_N += [place * most + number for number in range(len(rows))]
        to_N += rows
    indices = (torch.tensor(one, device=device) for one in (row_M, from_N, to_N))
    return Groups(stack_U, used, alone, *indices)


def check(adapter: Adapter, network: nn.Module) -> None:
    """Whether an adapter can be stacked over a network; reads none of its factors.

    Raises:
        ValueError: it is not LoRA in its plain form, on linear layers alone, of this network.
    """
    from safetensors import safe_open

    base = base_network(network)
    for folder in adapter.folders:
        found = obstacles(folder, adapter.recipe)
        if found:
            raise ValueError(f"The adapter {adapter.name} is not LoRA in its plain form: {', '.join(found)}.")
        with safe_open(whole_adapter(folder / MODEL), "pt") as file:
            for key in file.keys():  # noqa: SIM118
                named = NAME.fullmatch(key)
                if named is not None:
                    _check_layer(base, named[1], named[2], tuple(file.get_slice(key).get_shape()))
                elif not _copied(base, key, file.get_tensor(key)):
                    raise ValueError(f"The adapter {adapter.name} holds {key}, which is no factor of a linear layer.")


def _copied(base: Any, key: str, value: Tensor) -> bool:
    """Whether it is but a copy of what the base has. PEFT saves such of embeddings and the output layer."""
    try:
        own = base.get_parameter(key.removeprefix("base_model.model.").replace(".base_layer.", "."))
    except AttributeError:
        return False
    return own.shape == value.shape and torch.equal(own.cpu(), value.to(own.dtype))


def _check_layer(base: Any, name: str, factor: str, shape: tuple[int, ...]) -> None:
    try:
        module = base.get_submodule(name)
    except AttributeError:
        raise ValueError(f"The base has no layer {name}, which the adapter adapts.") from None
    linear = module.base if isinstance(module, Stacked) else module
    if not isinstance(linear, nn.Linear):
        raise ValueError(f"{name} is no linear layer, of which adapters are stacked, but {type(linear).__name__}.")
    rank = shape[0] if factor == "A" else shape[1]
    if rank > MOST_RANK:
        raise ValueError(f"{name} is adapted with rank {rank}; {MOST_RANK} is the most in a stack.")
    width, given = (linear.in_features, shape[1]) if factor == "A" else (linear.out_features, shape[0])
    if width != given:
        raise ValueError(f"The adapter is for a {name} of width {given}, and the base's has {width}.")


def read(adapter: Adapter) -> dict[str, Factors]:
    """The factors of an adapter by the layer that they adapt, in fp32, each B with its scale; of a stack their sum.

    Raises:
        ValueError: some are not finite.
    """
    parts = [_read(folder) for folder in adapter.folders]
    layers = dict.fromkeys(layer for part in parts for layer in part)
    factors = {}
    for layer in layers:
        pairs = [part[layer] for part in parts if layer in part]
        factors[layer] = (torch.cat([a_rI for a_rI, _ in pairs]), torch.cat([b_rO for _, b_rO in pairs]))
        if not all(bool(factor.isfinite().all()) for factor in factors[layer]):
            raise ValueError(f"The adapter {adapter.name} holds numbers that are not finite, at {layer}.")
    return factors


def _read(folder: Path) -> dict[str, Factors]:
    from peft.utils.other import get_pattern_key
    from safetensors.torch import load_file

    config = settings(folder)
    alphas: Mapping[str, float] = config.get("alpha_pattern") or {}
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, tensor in load_file(whole_adapter(folder / MODEL)).items():
        named = NAME.fullmatch(key)
        if named is not None:
            pairs.setdefault(named[1], {})[named[2]] = tensor.float()
    factors = {}
    for layer, pair in pairs.items():
        rank = len(pair["A"])
        alpha = alphas.get(get_pattern_key(list(alphas), layer), config["lora_alpha"])
        scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        factors[layer] = pair["A"], pair["B"].T * scale
    return factors
