"""Optimizer: how weights move, given their gradients."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from onsa.models.blocks import depths
from onsa.models.names import plain
from onsa.spec.component import Component
from onsa.spec.errors import RecipeError

LORA_B = ("lora_B.", "lora_embedding_B.")
SOFT_PROMPT = "prompt_encoder."  # where PEFT keeps what stands in front of every row
NEW = "new"  # the label of what the base does not have
Beta = Annotated[float, Field(ge=0, lt=1)]


class Optimizer(Component):
    """The base of every optimizer.

    lr: the learning rate; found from the adaptation where not given.
    lr_new: the rate of parameters that the base does not have, such as a new head; where not given, ``lr`` for language
        models, and at least 1e-3 (times what the kind's rates are of AdamW's) for row heads.
    layer_decay: each block's rate is this share of that of the block above it (Howard and Ruder 2018, section 3.2).
    lora_plus: the rate of LoRA's B matrices, as a multiple of the rate of its A matrices (Hayou et al. 2024).
    weight_decay: decay of matrices; biases, norms, other vectors (IA³'s factors, a matrix of one row) and soft prompts
        are exempt.

    ``state_bytes`` is what is kept beside each value that trains, at most; ``times`` turns a usual rate, which is one
    of AdamW's, into one of this kind; ``schedule`` is the schedule where a recipe names none; ``hidden_apart`` tells
    whether matrices of the blocks form groups of their own; ``valuewise`` whether each value moves by its own gradient
    and its own state alone, so that a part of a matrix moves as it would in the whole.
    """

    state_bytes: ClassVar[int] = 8
    times: ClassVar[float] = 1.0
    schedule: ClassVar[str] = "linear"
    hidden_apart: ClassVar[bool] = False
    valuewise: ClassVar[bool] = True

    lr: Annotated[float, Field(gt=0)] | None = None
    lr_new: Annotated[float, Field(gt=0)] | None = None
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    lora_plus: Annotated[float, Field(gt=0)] | None = None
    weight_decay: Annotated[float, Field(ge=0)] = 0.01

    @abstractmethod
    def build(self, groups: list[dict[str, Any]], fused: bool) -> torch.optim.Optimizer:
        """The optimizer over some :meth:`groups`.

        Args:
            fused: use torch's fused step, which differs from the plain one in float order only.
        """

    def deployed(self, optimizer: torch.optim.Optimizer) -> dict[nn.Parameter, Tensor]:
        """The values to measure and to save, of parameters for which they are not those that train."""
        return {}

    def groups(self, network: nn.Module, new: frozenset[str], by_block: bool) -> list[dict[str, Any]]:
        """Trainable parameters by label, rate and decay, in the network's order.

        Each group has ``params``, ``weight_decay``, ``lr``, the ``base_lr`` that a schedule multiplies, a ``label`` for
        readers, and ``hidden``: matrices of the blocks, where the kind wants them apart.

        Args:
            new: names of parameters that the base did not have.
            by_block: a group of its own for each block, where what trains changes block by block.

        Raises:
            RecipeError: ``lora_plus`` is given where no LoRA trains.
        """
        found: dict[tuple[str, float, float, bool], list[nn.Parameter]] = {}
        rate_of = self._rates(network, new, by_block)
        depth, top = depths(network)
        trainable = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
        if self.lora_plus is not None and not any(part in name for name, _ in trainable for part in LORA_B):
            raise RecipeError.of("lora-plus-unfit", key="optimizer.lora_plus")
        for name, parameter in trainable:
            label, rate = rate_of(name)
            matrix = parameter.ndim >= 2 and (label == NEW or _is_matrix(name, parameter))
            hidden = self.hidden_apart and matrix and parameter.ndim == 2 and 0 < depth(name) < top
            found.setdefault((label, rate, self.weight_decay if matrix else 0.0, hidden), []).append(parameter)
        return [
            {"params": parameters, "lr": rate, "base_lr": rate, "weight_decay": decay, "label": label, "hidden": hidden}
            for (label, rate, decay, hidden), parameters in found.items()
        ]

    def _rates(self, network: nn.Module, new: frozenset[str], by_block: bool) -> Callable[[str], tuple[str, float]]:
        """The label and the rate of a parameter, by its name."""
        assert self.lr is not None, "a resolved recipe has a learning rate"
        rate, rate_new = self.lr, self.lr_new
        names = plain(network)  # an adaptation may wrap a module, but keeps its name
        depth, top = depths(network)

        def of(name: str) -> tuple[str, float]:
            if names[name] in new:
                return NEW, rate if rate_new is None else rate_new
            label, found = "base", rate
            if (by_block or self.layer_decay != 1.0) and not name.startswith(SOFT_PROMPT):
                at = depth(name)
                label = "embeddings" if at == 0 else "top" if at == top else f"block {at}"
                found = rate * self.layer_decay ** (top - at)
            if self.lora_plus is not None and any(part in name for part in LORA_B):
                label, found = f"{label}, B", found * self.lora_plus
            return label, found

        return of


def _is_matrix(name: str, parameter: Tensor) -> bool:
    """Whether more than one dimension counts anything, and it is no soft prompt, whose rows are inputs."""
    return sum(size > 1 for size in parameter.shape) > 1 and not name.startswith(SOFT_PROMPT)
