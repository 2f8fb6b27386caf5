"""Products: linear layers with a low-rank update, ``x Wᵀ + b + s · (x Aᵀ) Bᵀ``, each computed as one operation.

PEFT's module makes six tensors of the output's size for this and casts in between; here the frozen product is added to
in place, and layers that read the same input (query, key and value; gate and up) share one product with all their A,
one copy of the input for the way back, and one gradient of it. Forward and backward as in Hu et al. 2021, eq. 3:

    u = x Aᵀ,   y = x Wᵀ + b + s · u Bᵀ,   ∂A = s · (∂y B)ᵀ x,   ∂B = s · ∂yᵀ u,   ∂x = ∂y W + s · (∂y B) A

The modules stay PEFT's, with its parameters and files; only how they are computed is replaced.

Shape legend: N tokens, I width of the input, O of an output, r ranks of one layer, S ranks of all layers of a group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from onsa.models.halves import NONE, Halves, add_product, product
from onsa.models.lowering import base_network


@dataclass(frozen=True)
class Layer:
    """One adapted layer: PEFT's module, and the name of its adapter that takes part."""

    module: Any
    name: str
    scale: float

    # Asked for anew each time: a network that is held in parts has other parameters while a part is laid together.
    @property
    def a(self) -> nn.Parameter:
        return cast(nn.Parameter, self.module.lora_A[self.name].weight)

    @property
    def b(self) -> nn.Parameter:
        return cast(nn.Parameter, self.module.lora_B[self.name].weight)

    def weight_OI(self, dtype: torch.dtype) -> Tensor:
        """The frozen matrix, as it multiplies; a quantised one is laid out for the moment."""
        weight = self.module.base_layer.weight
        state = getattr(weight, "quant_state", None)
        if state is None:
            return cast(Tensor, weight.to(dtype))
        from bitsandbytes.functional import dequantize_4bit

        laid_OI: Tensor = dequantize_4bit(weight.data, state).to(dtype)
        return laid_OI

    @property
    def dtype(self) -> torch.dtype:
        """What it multiplies in."""
        base = self.module.base_layer
        quantised = getattr(base.weight, "quant_state", None) is not None
        return base.compute_dtype if quantised else base.weight.dtype  # type: ignore[no-any-return]

    @property
    def plain(self) -> bool:
        """Whether the adapter acts now, and alone."""
        return not (self.module.disable_adapters or self.module.merged)


def layers(network: nn.Module) -> tuple[list[Layer], int]:
    """The adapted layers that can be computed so, and how many adapted layers there are in all."""
    if getattr(network, "peft_config", None) is None:
        return [], 0
    from peft.tuners.lora.layer import LoraLayer

    adapted = [module for module in base_network(network).modules() if isinstance(module, LoraLayer)]
    found = [layer for layer in map(_layer, adapted) if layer is not None]
    return found, len(adapted)


def _layer(module: Any) -> Layer | None:
    """A layer, where it is LoRA's plain form: one adapter, no dropout, no variant, on a linear layer that rests."""
    from peft.tuners.lora.layer import Linear

    base: Any = getattr(module, "base_layer", None)
    low_bit = type(module).__name__ == "Linear4bit" and getattr(base.weight, "quant_state", None) is not None
    if not low_bit and (type(module) is not Linear or type(base) is not nn.Linear):
        return None
    (name, *others) = module.active_adapters
    if others or name not in module.lora_A or name in module.lora_variant:
        return None
    a, b = module.lora_A[name], module.lora_B[name]
    still = isinstance(module.lora_dropout[name], nn.Identity)
    if not still or a.bias is not None or b.bias is not None or any(p.requires_grad for p in base.parameters()):
        return None
    return Layer(module, name, float(module.scaling[name]))


Factors = tuple[Tensor, list[Tensor]]


@dataclass
class Group:
    """Layers that read the same input. The first that is asked answers for all; the others find their answer here."""

    members: Sequence[Layer]
    halves: Halves
    source: Tensor | None = None
    answers: dict[int, Tensor] = field(default_factory=dict)
    held: Factors | None = None

    def __call__(self, index: int, x: Tensor) -> Tensor:
        if self.source is not x or index not in self.answers:
            self.answers = dict(enumerate(self._found(x)))
            self.source = x
        answer = self.answers.pop(index)
        if not self.answers:
            self.source = None
        return answer

    def _found(self, x: Tensor) -> Sequence[Tensor]:
        if self.held is not None:
            outputs, *_ = _products(x, self.members, self.halves, self.held)
            return outputs
        values = [value for layer in self.members for value in (layer.a, layer.b)]
        found: tuple[Tensor, ...] = Adapted.apply(x, self.members, self.halves, *values)  # type: ignore[no-untyped-call]
        return found


_groups: WeakKeyDictionary[nn.Module, list[Group]] = WeakKeyDictionary()  # of networks that are computed so


@contextmanager
def resting(network: nn.Module) -> Iterator[None]:
    """Within, nothing that trains changes, and there is no graph: factors are laid out for products once."""
    groups = _groups.get(network, [])
    for group in groups:
        group.held = _factors(group.members, [(layer.a, layer.b) for layer in group.members])
    try:
        yield
    finally:
        for group in groups:
            group.held = None


def _factors(members: Sequence[Layer], values: Sequence[tuple[Tensor, Tensor]]) -> Factors:
    """All A of a group in one matrix, ``a_SI``, and each B with its scale, ``b_rO``, as they multiply."""
    dtype = members[0].dtype
    a_SI = torch.cat([a_rI for a_rI, _ in values]).to(dtype)
    given = zip(values, members, strict=True)
    return a_SI, [(b_Or.T * layer.scale).to(dtype).contiguous() for (_, b_Or), layer in given]


def _products(
    x: Tensor, members: Sequence[Layer], halves: Halves, factors: Factors
) -> tuple[list[Tensor], Tensor, Tensor]:
    """All outputs of a group, its input ``x_NI`` and that through all A, ``u_NS``."""
    dtype = members[0].dtype
    a_SI, bs = factors
    outputs = []
    with torch.autocast(x.device.type, enabled=False):
        x_NI = x.reshape(-1, x.shape[-1]).to(dtype)
        u_NS = x_NI @ a_SI.T
        for u_Nr, b_rO, layer in zip(torch.split(u_NS, _ranks(bs), 1), bs, members, strict=True):
            bias = layer.module.base_layer.bias
            bias = None if bias is None else bias.to(dtype)
            y_NO = product(x_NI, layer.weight_OI(dtype).T, halves, bias)
            y_NO.addmm_(u_Nr, b_rO)
            outputs.append(y_NO.view(*x.shape[:-1], -1))
    return outputs, x_NI, u_NS


class Adapted(torch.autograd.Function):
    """All outputs of a group, from its input and each layer's A and B."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, members: Sequence[Layer], halves: Halves, *values: Tensor) -> tuple[Tensor, ...]:
        a_SI, bs = _factors(members, list(zip(values[0::2], values[1::2], strict=True)))
        outputs, x_NI, u_NS = _products(x, members, halves, (a_SI, bs))
        ctx.save_for_backward(x_NI, u_NS, a_SI, *bs)
        ctx.members, ctx.halves, ctx.like = members, halves, (x.shape, x.dtype)
        ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        x_NI, u_NS, a_SI, *bs = ctx.saved_tensors
        members: Sequence[Layer] = ctx.members
        shape, dtype = ctx.like
        dx_NI: Tensor | None = None
        dus: list[Tensor] = []
        dbs: list[Tensor | None] = []
        for grad, b_rO, layer, u_Nr in zip(grads, bs, members, torch.split(u_NS, _ranks(bs), 1), strict=True):
            if grad is None:  # nothing follows from this output
                dus.append(torch.zeros_like(u_Nr.T))
                dbs.append(None)
                continue
            dy_NO = grad.reshape(-1, grad.shape[-1]).to(x_NI.dtype)
            # On a CPU a product with few rows takes a third of the time of one with few columns.
            dus.append(b_rO @ dy_NO.T)
            dbs.append(((u_Nr.T @ dy_NO).T * layer.scale).to(layer.b.dtype) if layer.b.requires_grad else None)
            if ctx.needs_input_grad[0]:
                weight_OI = layer.weight_OI(x_NI.dtype)
                if dx_NI is None:
                    dx_NI = product(dy_NO, weight_OI, ctx.halves)
                else:
                    add_product(dx_NI, dy_NO, weight_OI, ctx.halves)
        du_SN = torch.cat(dus)
        da_SI = (du_SN @ x_NI).to(members[0].a.dtype)
        if dx_NI is not None:
            dx_NI = dx_NI.addmm_(du_SN.T, a_SI).to(dtype).view(shape)
        parts = zip(torch.split(da_SI, _ranks(bs)), members, strict=True)
        das = [da_rI if layer.a.requires_grad else None for da_rI, layer in parts]
        return dx_NI, None, None, *(value for pair in zip(das, dbs, strict=True) for value in pair)


def _ranks(bs: Sequence[Tensor]) -> list[int]:
    return [len(b_rO) for b_rO in bs]


def shapes(found: Sequence[Layer]) -> set[tuple[int, int]]:
    """Widths of input and output of the products with frozen matrices, on the way there and back."""
    there = {(layer.module.in_features, layer.module.out_features) for layer in found}
    return there | {(outer, inner) for inner, outer in there}


def fuse(network: nn.Module, halves: Halves = NONE) -> None:
    """Let a network's plain adapted layers be computed so, in groups that a few tokens sent through it show."""
    found, _ = layers(network)
    _groups[network] = [Group(members, halves) for members in _grouped(network, found)]
    for group in _groups[network]:
        for index, layer in enumerate(group.members):
            layer.module.forward = _forward(group, index, layer.module.forward)


def _forward(group: Group, index: int, other: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A module's way through a group; its own where it is asked for something else."""

    def forward(x: Tensor, *given: Any, **named: Any) -> Tensor:
        if given or any(value is not None for value in named.values()) or not group.members[index].plain:
            return other(x, *given, **named)
        return group(index, x)

    return forward


def _grouped(network: nn.Module, found: Sequence[Layer]) -> list[list[Layer]]:
    """Layers in groups of those that were called with one and the same tensor, one after the other."""
    seen: list[tuple[Tensor, Layer]] = []
    device = next(network.parameters()).device
    token_RT = torch.arange(1, 5, device=device).repeat(2, 1)
    with torch.no_grad(), _watched(found, seen), torch.autocast(device.type, torch.bfloat16, enabled=_mixed(found)):
        training = [(module, module.training) for module in network.modules()]
        network.eval()(input_ids=token_RT, attention_mask=torch.ones_like(token_RT))
        for module, mode in training:
            module.training = mode
    groups: list[list[Layer]] = []
    last: Tensor | None = None
    for x, layer in seen:
        if any(layer is one for group in groups for one in group):
            continue  # a layer that is used in several places is in the group of the first
        if x is last and layer.dtype == groups[-1][0].dtype:
            groups[-1].append(layer)
        else:
            groups.append([layer])
        last = x
    return groups


def _mixed(found: Sequence[Layer]) -> bool:
    return any(layer.dtype == torch.bfloat16 for layer in found)


@contextmanager
def _watched(found: Sequence[Layer], seen: list[tuple[Tensor, Layer]]) -> Iterator[None]:
    """Within, calls of layers are written down with their inputs (which are kept, so that each is told by identity)."""
    with ExitStack() as stack:
        for layer in found:

            def see(_: nn.Module, given: tuple[Tensor, ...], layer: Layer = layer) -> None:
                seen.append((given[0], layer))

            stack.callback(layer.module.register_forward_pre_hook(see).remove)
        yield
