"""Decoding: one token of each row through a network of the usual build, in fewer steps than its library takes.

With one token a row, much of a small network's forward on a CPU is no arithmetic: the weights stream through the
caches and drive out what Python needs for each of the many modules. Here the layers are a list that one loop goes
through, and matrices that read the same input are one product. The build is that of Llama (Touvron et al. 2023) and its
kin: norms by the root mean square, attention with rotary positions, a gated block, each added to what came in. Networks
are known by the code that their library has for them; whoever uses this compares, all the same, what both ways say.

Shape legend: R rows, W width, I width of the input, O of the output, H heads of queries, K heads of keys and values,
D width of a head, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from onsa.models import few_rows
from onsa.models.attention import products
from onsa.models.lowering import base_network

BUILDS = ("llama", "mistral", "qwen2", "qwen3")  # transformers' names of families that are computed alike
READS, GATES = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")


@dataclass
class Product:
    """Linear layers that read the same input, ``y_RO`` of all of them beside each other.

    weight_OI: of all of them, where they are plain; each then holds its part of it.
    """

    owner: nn.Module
    names: tuple[str, ...]
    modules: Sequence[Any] = ()
    weight_OI: Tensor | None = None
    bias_O: Tensor | None = None
    pays: few_rows.Pays = ()

    def lay(self) -> None:
        """Look at the layers anew: some may have been replaced."""
        self.modules = [getattr(self.owner, name) for name in self.names]
        plain = all(type(module) is nn.Linear and not _hooked(module) for module in self.modules)
        alike = len({(module.weight.dtype, module.bias is None) for module in self.modules}) == 1 if plain else False
        if not alike:
            self.weight_OI = self.bias_O = None
        elif self.weight_OI is None:
            self._join()

    def _join(self) -> None:
        biases = [module.bias for module in self.modules if module.bias is not None]
        self.bias_O = torch.cat(biases) if biases else None
        if len(self.modules) == 1:
            self.weight_OI = self.modules[0].weight
            return
        self.weight_OI = torch.cat([module.weight for module in self.modules])
        parts = torch.split(self.weight_OI, [len(module.weight) for module in self.modules])
        for module, part_OI in zip(self.modules, parts, strict=True):
            module.weight.data = part_OI  # so that nothing is held twice

    def __call__(self, x_RI: Tensor) -> Tensor:
        if self.weight_OI is not None:
            return few_rows.product(x_RI, self.weight_OI, self.bias_O, self.pays)
        found = [module(x_RI[:, None])[:, 0] for module in self.modules]  # of adapters, by rows
        return found[0] if len(found) == 1 else torch.cat(found, 1)


@dataclass(frozen=True)
class Layer:
    """A layer: two norms with their ``eps``, and what is multiplied.

    place: the layer's number; ``kind`` is transformers' name of what it attends to.
    norms: of each head's query and key, where there are any.
    """

    place: int
    kind: str
    heads: tuple[int, int]
    scale: float
    first: tuple[Tensor, float]
    reads: Product
    norms: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] | None
    writes: Product
    second: tuple[Tensor, float]
    gates: Product
    act: Callable[[Tensor], Tensor]
    down: Product

    @property
    def products(self) -> tuple[Product, ...]:
        return self.reads, self.writes, self.gates, self.down


class Decoding:
    """What a network says next.

    Args:
        network: a transformers model on a CPU, in evaluation mode.

    Raises:
        ValueError: it is of another build.
    """

    def __init__(self, network: nn.Module) -> None:
        base: Any = base_network(network)
        if type(base).__module__ not in {f"transformers.models.{name}.modeling_{name}" for name in BUILDS}:
            raise ValueError(f"{type(base).__name__} is of another build")
        inner = base.model
        parts = [part for layer in inner.layers for part in (layer, layer.self_attn, layer.mlp, *_norms(layer))]
        strange = [part for part in (base, inner, inner.norm, inner.rotary_emb, *parts) if not _own(part, type(base))]
        if strange or len(set(map(id, inner.layers))) < len(inner.layers):
            raise ValueError("layers were changed, or stand in it twice")
        if base.device.type != "cpu":
            raise ValueError("not on a CPU")
        self._embed, self._rotary = inner.embed_tokens, inner.rotary_emb
        self._base, self._norm = base, _norm(inner.norm)
        kinds = getattr(base.config, "layer_types", None) or [""] * len(inner.layers)
        heads = base.config.num_attention_heads, base.config.num_key_value_heads
        self._layers = [_layer(layer, kind, heads) for layer, kind in zip(inner.layers, kinds, strict=True)]
        self.lay()

    def lay(self) -> None:
        """Look at the layers anew, where modules of the network were replaced."""
        self._output = self._base.get_output_embeddings()
        products = [product for layer in self._layers for product in layer.products]
        for product in products:
            product.lay()
        joint = [product for product in products if product.weight_OI is not None]
        found = few_rows.measured([product.weight_OI for product in joint if product.weight_OI is not None])
        for product, pays in zip(joint, found, strict=True):
            product.pays = pays

    def __call__(
        self, input_ids: Tensor, past_key_values: Any, position_ids: Tensor, attention_mask: Any, **named: Any
    ) -> Tensor:
        """Logits of one token of each row, ``logit_R1V``; takes what transformers' networks take."""
        hidden_RW = self._embed(input_ids)[:, 0]
        cos_R1D, sin_R1D = self._rotary(hidden_RW[:, None], position_ids)
        low_R1h, high_R1h = sin_R1D.chunk(2, 2)
        turn = cos_R1D[:, None], torch.cat([-low_R1h, high_R1h], 2)[:, None]
        for layer in self._layers:
            mask = attention_mask[layer.kind] if isinstance(attention_mask, dict) else attention_mask
            x_RW = _normed(hidden_RW, layer.first)
            hidden_RW = hidden_RW + _attended(layer, x_RW, turn, past_key_values, mask)
            gate_RI, up_RI = layer.gates(_normed(hidden_RW, layer.second)).chunk(2, 1)
            hidden_RW = hidden_RW + layer.down(layer.act(gate_RI) * up_RI)
        logit_R1V: Tensor = self._output(_normed(hidden_RW, self._norm)[:, None])
        return logit_R1V


def short_way(network: nn.Module) -> Decoding | None:
    """The short way through a network, where it is of a build that has one."""
    try:
        return Decoding(network)
    except ValueError:
        return None


def _attended(layer: Layer, x_RW: Tensor, turn: tuple[Tensor, Tensor], slots: Any, mask_R11C: Tensor) -> Tensor:
    heads, shared = layer.heads
    all_RH1D = layer.reads(x_RW).view(len(x_RW), heads + 2 * shared, 1, -1)
    head_RH1D, value_RK1D = torch.split(all_RH1D, [heads + shared, shared], 1)
    if layer.norms is not None:
        parts = zip(layer.norms, torch.split(head_RH1D, [heads, shared], 1), strict=True)
        head_RH1D = torch.cat([norm(part) for norm, part in parts], 1)
    cos_R11D, sin_R11D = turn
    head_RH1D = head_RH1D * cos_R11D + head_RH1D.roll(head_RH1D.shape[3] // 2, 3) * sin_R11D
    query_RH1D, key_RK1D = torch.split(head_RH1D, [heads, shared], 1)
    key_RKCD, value_RKCD = slots.update(key_RK1D, value_RK1D, layer.place)
    mixed_R1HD, _ = products(None, query_RH1D, key_RKCD, value_RKCD, mask_R11C, scaling=layer.scale)
    return layer.writes(mixed_R1HD.reshape(len(x_RW), -1))


def _normed(x_RW: Tensor, norm: tuple[Tensor, float]) -> Tensor:
    weight_W, eps = norm
    return functional.rms_norm(x_RW, weight_W.shape, weight_W, eps)


def _layer(layer: Any, kind: str, heads: tuple[int, int]) -> Layer:
    attention, block = layer.self_attn, layer.mlp
    norms = (attention.q_norm, attention.k_norm) if hasattr(attention, "q_norm") else None
    return Layer(
        attention.layer_idx,
        kind,
        heads,
        attention.scaling,
        _norm(layer.input_layernorm),
        Product(attention, READS),
        norms,
        Product(attention, ("o_proj",)),
        _norm(layer.post_attention_layernorm),
        Product(block, GATES),
        block.act_fn,
        Product(block, ("down_proj",)),
    )


def _norms(layer: Any) -> list[nn.Module]:
    return [part for name, part in layer.named_modules() if name.rpartition(".")[2].endswith("norm")]


def _norm(module: Any) -> tuple[Tensor, float]:
    return module.weight, float(module.variance_epsilon)


def _own(module: nn.Module, of: type) -> bool:
    """Whether a module is computed by the code that its library has for a network of some class."""
    return type(module).__module__ == of.__module__ and "forward" not in vars(module) and not _hooked(module)


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)
