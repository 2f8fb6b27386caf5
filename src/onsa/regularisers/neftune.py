"""NEFTune: noise on the input embeddings (Jain et al. 2023, algorithm 1).

Shape legend: R rows, T the longest row's tokens, D width of the embeddings.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from onsa.models.lowering import base_network
from onsa.models.policy import Policy
from onsa.regularisers.base import Regulariser
from onsa.spec.errors import RecipeError


class Neftune(Regulariser):
    """``embedding + alpha / √(L · D) · ε`` in training, with ε uniform in [-1, 1], L the tokens of the row (padding
    not counted) and D the width.

    alpha: scale of the noise; the paper tries 5, 10 and 15, and 0 adds none.
    """

    kind: ClassVar[str] = "neftune"
    alpha: Annotated[float, Field(ge=0)] = 5.0

    def attach(self, network: nn.Module) -> None:
        if self.alpha == 0:
            return
        if _has_soft_prompt(network):
            raise RecipeError.of("neftune-soft-prompt", key="regulariser")
        inner = base_network(network)
        noise = _Noise(self.alpha)
        inner.get_submodule(inner.base_model_prefix).register_forward_pre_hook(noise.look, with_kwargs=True)
        inner.get_input_embeddings().register_forward_hook(noise.add)

    def check(self, policy: Policy, new: frozenset[str]) -> None:
        if self.alpha > 0 and not base_network(policy.network).get_input_embeddings().training:
            raise RecipeError.of("regulariser-asleep", key="regulariser", regulariser=self.kind)


class _Noise:
    """Two hooks: the network's inputs tell how long each row is, and the embeddings then get their noise."""

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha
        self.length_RT: Tensor | None = None

    def look(self, module: nn.Module, given: Any, inputs: dict[str, Any]) -> None:
        mask_RT, position_RT = inputs.get("attention_mask"), inputs.get("position_ids")
        if isinstance(mask_RT, Tensor) and mask_RT.ndim == 2:
            self.length_RT = mask_RT.sum(1, keepdim=True).clamp_min(1)
        elif position_RT is not None:  # rows one after the other in a line: each begins at position 0
            row_N = (position_RT == 0).flatten().cumsum(0)
            self.length_RT = row_N.bincount()[row_N].view_as(position_RT)
        else:
            self.length_RT = None

    def add(self, module: nn.Module, given: Any, embedding_RTD: Tensor) -> Tensor:
        if not module.training:
            return embedding_RTD
        length_RT = torch.tensor(embedding_RTD.shape[1]) if self.length_RT is None else self.length_RT
        scale_RT = self.alpha / (length_RT * embedding_RTD.shape[-1]).sqrt()
        noise_RTD = torch.rand_like(embedding_RTD) * 2 - 1
        return embedding_RTD + scale_RT.unsqueeze(-1) * noise_RTD


def _has_soft_prompt(network: nn.Module) -> bool:
    from peft import PeftModel

    return isinstance(network, PeftModel) and bool(network.active_peft_config.is_prompt_learning)
