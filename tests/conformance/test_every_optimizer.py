"""What every optimizer keeps: torch's own steps, vectors free of decay, and a rate of its own for what is new."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import pytest
import torch
from torch import nn

from onsa.optim.optimizers.base import Optimizer
from onsa.spec import registry

every_kind = pytest.mark.parametrize("kind", list(registry.kinds("optimizer")))
NEW = frozenset({"head.weight", "head.bias"})
# Torch's counterpart of each kind with its defaults as they are documented here.
TORCHS: dict[str, Callable[[Iterable[Any]], torch.optim.Optimizer]] = {
    "adamw": lambda groups: torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8, foreach=False),
}


class Toy(nn.Module):
    """A line, a norm, and a head that the base did not have."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body, self.norm, self.head = nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 1)

    def loss(self) -> torch.Tensor:
        x = torch.linspace(-1, 1, 32).reshape(8, 4)
        y: torch.Tensor = self.head(self.norm(self.body(x)).tanh())[:, 0] - x.sum(1)
        return y.square().sum()


def built(kind: str, toy: Toy, fused: bool = False, **settings: Any) -> torch.optim.Optimizer:
    values = {"lr": 1e-2, "lr_new": 1e-1, "weight_decay": 0.1, **settings}
    found = cast(Optimizer, registry.load("optimizer", kind).model_validate(values))
    return found.build(found.groups(toy, NEW, by_block=False), fused)


def walk(toy: Toy, optimizer: torch.optim.Optimizer, steps: int = 5) -> dict[str, torch.Tensor]:
    for _ in range(steps):
        optimizer.zero_grad()
        toy.loss().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return {name: p.detach().clone() for name, p in toy.named_parameters()}


@every_kind
def test_steps_are_torchs_own(kind: str) -> None:
    assert kind in TORCHS, "write torch's counterpart here"
    mine, other = Toy(), Toy()
    found = walk(mine, built(kind, mine))
    wanted = walk(
        other,
        TORCHS[kind](
            [
                {"params": [other.body.weight], "lr": 1e-2, "weight_decay": 0.1},
                {"params": [other.body.bias, *other.norm.parameters()], "lr": 1e-2, "weight_decay": 0.0},
                {"params": [other.head.weight], "lr": 1e-1, "weight_decay": 0.1},
                {"params": [other.head.bias], "lr": 1e-1, "weight_decay": 0.0},
            ]
        ),
    )
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-7)


@every_kind
def test_vectors_do_not_decay(kind: str) -> None:
    toy = Toy()
    names = {id(p): name for name, p in toy.named_parameters()}
    decayed = {names[id(p)] for g in built(kind, toy).param_groups if g["weight_decay"] for p in g["params"]}
    assert decayed == {"body.weight", "head.weight"}


@every_kind
def test_what_is_new_has_a_rate_of_its_own(kind: str) -> None:
    def rates(**settings: Any) -> dict[str, float]:
        toy = Toy()
        names = {id(p): name for name, p in toy.named_parameters()}
        groups = built(kind, toy, **settings).param_groups
        assert all(group["lr"] == group["base_lr"] for group in groups)
        return {names[id(p)]: group["lr"] for group in groups for p in group["params"]}

    named = {name for name, _ in Toy().named_parameters()}
    assert rates() == {name: 1e-1 if name in NEW else 1e-2 for name in named}
    assert rates(lr_new=None) == dict.fromkeys(named, 1e-2)


@every_kind
def test_what_is_frozen_is_left_out(kind: str) -> None:
    toy = Toy()
    toy.body.requires_grad_(False)
    held = {id(p) for group in built(kind, toy).param_groups for p in group["params"]}
    assert held == {id(p) for p in toy.parameters() if p.requires_grad}


@every_kind
def test_the_fused_step_is_the_same_step(kind: str) -> None:
    one, two = Toy(), Toy()
    plain, fused = walk(one, built(kind, one)), walk(two, built(kind, two, fused=True))
    for name, value in plain.items():
        torch.testing.assert_close(fused[name], value, rtol=1e-5, atol=1e-7)
