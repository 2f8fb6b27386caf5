"""EMA and SWA are torch's own averages of the same weights, and only one average can be deployed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from onsa.engine.sessions.local import Average
from onsa.regularisers.base import Regulariser
from onsa.regularisers.ema import Ema
from onsa.regularisers.swa import Swa
from onsa.spec.errors import RecipeError

STEPS = 12


def averaged(kind: Regulariser, average: Callable[[nn.Module], AveragedModel], enters: Callable[[int], bool]) -> None:
    """Walk some weights about, and compare with torch's average behind every step."""
    torch.manual_seed(0)
    network = nn.Linear(3, 2).double()
    trainable = dict(network.named_parameters())
    mine, theirs = Average(trainable, [kind]), average(network)
    for step in range(STEPS):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter))
        mine.update(trainable, step, STEPS)
        if enters(step):
            theirs.update_parameters(network)
            for name, value in theirs.module.named_parameters():
                torch.testing.assert_close(mine.values[name], value, rtol=1e-12, atol=1e-12)


def test_ema() -> None:
    decay = 0.6
    steps = iter(range(STEPS))

    @torch.no_grad()
    def moved(averages: Any, values: Any, _: Any) -> None:
        n = next(steps)
        torch._foreach_lerp_(averages, values, 1 - min(decay, (1 + n) / (10 + n)))

    def average(network: nn.Module) -> AveragedModel:
        found = AveragedModel(network, multi_avg_fn=moved)
        found.n_averaged.fill_(1)  # torch's first update copies the weights, and the average begins at the base
        return found

    averaged(Ema(decay=decay), average, lambda step: True)


@pytest.mark.parametrize(("start", "every"), [(0.0, 1), (0.5, 1), (0.25, 3)])
def test_swa(start: float, every: int) -> None:
    first = int(start * STEPS)
    averaged(Swa(start=start, every=every), AveragedModel, lambda step: step >= first and (step - first) % every == 0)


def test_swa_deploys_the_weights_themselves_before_it_starts() -> None:
    assert [Swa(start=0.5, every=2).share(step, 8) for step in range(8)] == [1, 1, 1, 1, 1, 0, 1 / 2, 0]


@pytest.mark.parametrize(
    ("given", "optimizer"),
    [(["ema", "swa"], "adamw"), (["ema"], "schedule-free"), (["swa"], "schedule-free")],
)
def test_two_averages_are_refused(given: list[str], optimizer: str, attempt: Any) -> None:
    with pytest.raises(RecipeError) as caught:
        attempt("rows", regulariser=given, optimizer=optimizer)
    (problem,) = caught.value.problems
    assert problem.code == "averages-twice" and given[0] in problem.what


def test_the_same_kind_twice_is_refused(attempt: Any) -> None:
    with pytest.raises(RecipeError) as caught:
        attempt("rows", regulariser=["l2-sp", "l2-sp"], adaptation="full")
    assert [problem.code for problem in caught.value.problems] == ["regulariser-twice"]
