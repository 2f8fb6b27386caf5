"""Shards: several processes that hold a part of every block each, and lay one together when it is its turn (FSDP: Zhao
et al. 2023; torch's ``fully_shard``).

What lies outside the blocks (embeddings, a head) is whole in every process, so that a policy may call any part of the
network by itself. Optimizers, averages and penalties see what a process holds of a block as a plain parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, distributed, nn

from onsa.engine.among import Sums
from onsa.engine.ranks import Place, Ranks
from onsa.engine.sessions.base import Work
from onsa.models.blocks import blocks
from onsa.models.load import hold_in
from onsa.spec.errors import RecipeError


def check(work: Work) -> None:
    """Make sure that a network can be held in parts.

    Raises:
        RecipeError: it has no blocks, or blocks share a weight, or what trains remembers more than values.
    """
    found = blocks(work.network)
    if not found:
        raise RecipeError.of("shards-without-blocks", key="engine.weights")
    owners: dict[int, str] = {}
    for name, parameter in work.network.named_parameters(remove_duplicate=False):
        owner = next((block for block, _ in found if name.startswith(f"{block}.")), "")
        if owners.setdefault(id(parameter), owner) != owner:
            raise RecipeError.of("shards-shared", key="engine.weights", name=name)
    if work.adaptation.state(work.network):
        raise RecipeError.of("shards-adaptation", key="engine.weights", adaptation=work.adaptation.kind)


class Shards(Ranks):
    """Several processes with a part of every block each; every pass through a network is one of all together."""

    lockstep = True

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        from torch.distributed.device_mesh import init_device_mesh

        self.mesh = init_device_mesh(place.device, (place.count,))
        self.laid: dict[str, Any] = {}  # FSDP's parameters of the blocks that train, by name
        self.shards: dict[str, nn.Parameter] = {}  # this process's part of each, in the same memory

    def settle(self, network: nn.Module, precision: str, device: torch.device) -> None:
        from torch.distributed.fsdp import FSDPModule, fully_shard, share_comm_ctx

        hold_in(network, precision, torch.device("cpu"))
        parts: list[FSDPModule] = []
        for _, block in blocks(network):  # one after the other, so that a device need never hold the whole network
            # None of them is the root of all, which would have to be called as a whole; so each must be told to let go.
            part = fully_shard(block, mesh=self.mesh, reshard_after_forward=True)
            part.set_gradient_divide_factor(1.0)  # a sum; the session divides
            part.set_force_sum_reduction_for_comms(True)
            parts.append(part)
        share_comm_ctx(parts)
        inside = {id(parameter) for _, block in blocks(network) for parameter in block.parameters()}
        for name, parameter in network.named_parameters():
            if id(parameter) not in inside:
                parameter.data = parameter.data.to(device)
            elif parameter.requires_grad:
                self.laid[name] = parameter
                self.shards[name] = nn.Parameter(_local(parameter).detach())
        for name, buffer in network.named_buffers():
            owner, _, leaf = name.rpartition(".")
            network.get_submodule(owner)._buffers[leaf] = buffer.to(device)

    def moved(self, network: nn.Module) -> dict[str, nn.Parameter]:
        return {name: self.shards.get(name, parameter) for name, parameter in super().moved(network).items()}

    def owned(self, name: str) -> bool:
        return name in self.shards

    def together(self, count: Callable[[], Sums], trainable: Mapping[str, nn.Parameter]) -> Sums:
        common = {name: parameter for name, parameter in trainable.items() if not self.owned(name)}
        sums = super().together(count, common)
        for name, parameter in self.laid.items():  # on the way back FSDP has added these up, and kept each its part
            self.shards[name].grad = None if parameter.grad is None else _local(parameter.grad)
            parameter.grad = None
        return sums

    def norm(self, gradients: Mapping[str, Tensor]) -> Tensor:
        parts = [[g for name, g in gradients.items() if self.owned(name) is mine] for mine in (True, False)]
        own, common = (torch.nn.utils.get_total_norm(part).to(self.device) for part in parts)
        square = own.square()
        distributed.all_reduce(square)
        return (square + common.square()).sqrt()

    def added(self, value: float) -> float:
        return float(sum(self._told(value)))

    def whole(self, value: Tensor, name: str = "") -> Tensor:
        if name not in self.laid or value.shape != self.shards[name].shape:
            return full(value)
        from torch.distributed.tensor import DTensor

        like = self.laid[name]
        where = {"shape": like.shape, "stride": like.stride(), "run_check": False}
        return full(DTensor.from_local(value.detach().to(self.device), self.mesh, like.placements, **where))

    def part(self, value: Tensor, name: str) -> Tensor:
        if name not in self.laid or value.shape != self.laid[name].shape:
            return value
        from torch.distributed.tensor import distribute_tensor

        like = self.laid[name]
        return _local(distribute_tensor(value.to(self.device), self.mesh, like.placements, src_data_rank=None))

    def agreed(self, cuts: list[int]) -> list[int]:
        return sorted({cut for told in self._told(cuts) for cut in told})


def full(value: Any) -> Tensor:
    """A tensor, laid together from its parts where it is in parts; all that have one must ask."""
    laid: Tensor = value.full_tensor() if hasattr(value, "full_tensor") else value
    return laid


def _local(laid: Any) -> Tensor:
    """What this process has of a tensor that is in parts."""
    held: Tensor = laid.to_local()
    return held
