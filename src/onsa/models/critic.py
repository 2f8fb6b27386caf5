"""Critic: a head on a policy's last hidden states that says what an answer is worth from each of its tokens on.

It stands beside the network's own modules while it trains, and does not go with what is deployed.

Shape legend: M predictions, D width.
"""

from __future__ import annotations

from torch import Tensor, nn

from onsa.models.lowering import base_network

HEAD = "value_head"


def attach(network: nn.Module) -> frozenset[str]:
    """Give a network a critic's head, which begins with the value 0 everywhere; returns its parameters' names."""
    head = nn.Linear(int(base_network(network).config.hidden_size), 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    network.add_module(HEAD, head)
    return frozenset(f"{HEAD}.{name}" for name, _ in head.named_parameters())


def detach(network: nn.Module) -> None:
    """Take the critic's head away, where there is one."""
    if HEAD in dict(network.named_children()):
        delattr(network, HEAD)


def values(network: nn.Module, hidden_MD: Tensor) -> Tensor:
    """What the critic gives for some hidden states, ``value_M``, fp32."""
    head = network.get_submodule(HEAD)
    value_M1: Tensor = head(hidden_MD.float())
    return value_M1[:, 0].float()
