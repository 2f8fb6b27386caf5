"""What every schedule keeps, and what it shares with transformers' own.

One difference is meant: transformers' first step has a rate of zero, and moves nothing. Here the warm-up's first step
is ``1 / (rise + 1)``, so step ``s`` of a warm-up over ``rise`` steps is transformers' step ``s + 1`` over ``rise + 1``;
after the warm-up both agree to float order. Schedules with a rise of their own are held against torch's instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from onsa.optim.schedules.base import Schedule
from onsa.spec import registry

KINDS = list(registry.kinds("schedule"))
every_kind = pytest.mark.parametrize("kind", KINDS)
# Kinds whose warm-up is their own rise: what it is at a step of it.
OWN_RISE: dict[str, Callable[[int, int], float]] = {
    "one-cycle": lambda step, rise: 1 - (1 - 1 / 25) * (1 + math.cos(math.pi * step / rise)) / 2,  # §3, cosine form
    "slanted-triangular": lambda step, rise: (1 + step / rise * 31) / 32,  # eq. 3
}
USUAL_WARMUP = {"one-cycle": 0.3}
# Transformers' counterparts: (optimizer, warm-up steps, all steps) to a scheduler; None where it has none, and the kind
# is held against torch's or its paper's formula below.
THEIRS: dict[str, Callable[[Any, int, int], Any] | None] = {
    "linear": transformers.get_linear_schedule_with_warmup,
    "cosine": transformers.get_cosine_schedule_with_warmup,
    "cosine-restarts": lambda optimizer, rise, total: transformers.get_cosine_with_hard_restarts_schedule_with_warmup(
        optimizer, rise, total, num_cycles=3
    ),
    "constant": lambda optimizer, rise, total: transformers.get_constant_schedule_with_warmup(optimizer, rise),
    "inverse-sqrt": lambda optimizer, rise, total: transformers.get_inverse_sqrt_schedule(
        optimizer, rise, timescale=max(1, round(0.1 * (total - rise)))
    ),
    "one-cycle": None,
    "plateau": None,
    "slanted-triangular": None,
}


def schedule(kind: str, **settings: Any) -> Schedule:
    return cast(Schedule, registry.load("schedule", kind).model_validate(settings))


def theirs(kind: str, rise: int, total: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    make = THEIRS[kind]
    assert make is not None
    scheduler, rates = make(optimizer, rise, total), []
    for _ in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@every_kind
@given(warmup=st.one_of(st.floats(0, 0.99), st.integers(1, 300)), total=st.integers(1, 300), data=st.data())
@settings(max_examples=60, deadline=None)
def test_the_factor_is_a_share_and_a_pure_function(kind: str, warmup: float, total: int, data: Any) -> None:
    found, step = schedule(kind, warmup=warmup), data.draw(st.integers(0, total - 1))
    factor = found.factor(step, total)
    assert 0 <= factor <= 1 and factor > 0, "a step that moves nothing is a step wasted"
    other = schedule(kind, warmup=warmup)
    [other.factor(s, total) for s in range(total)]
    assert other.factor(step, total) == factor


@every_kind
@pytest.mark.parametrize(("warmup", "rise"), [(0.0, 0), (0.1, 10), (0.25, 25), (7, 7), (1, 1)])
def test_the_warm_up_rises_in_a_line(kind: str, warmup: float, rise: int) -> None:
    found = schedule(kind, warmup=warmup)
    at = OWN_RISE.get(kind, lambda step, rise: (step + 1) / (rise + 1))
    assert [found.factor(step, 100) for step in range(rise)] == pytest.approx([at(step, rise) for step in range(rise)])
    assert found.factor(rise, 100) == found.after_warmup(0, 100 - rise, ()) == 1


@every_kind
@pytest.mark.parametrize(("rise", "total"), [(0, 10), (5, 40), (1, 2)])
def test_it_agrees_with_transformers(kind: str, rise: int, total: int) -> None:
    assert kind in THEIRS, "name transformers' counterpart here, or None"
    if THEIRS[kind] is None:
        pytest.skip("transformers has no such schedule")
    ours = [schedule(kind, warmup=rise or 0.0).factor(step, total) for step in range(total)]
    assert ours[rise:] == pytest.approx(theirs(kind, rise, total)[rise:], abs=1e-12)
    assert ours[:rise] == pytest.approx(theirs(kind, rise + 1, total + 1)[1 : rise + 1], abs=1e-12)


def test_a_cosine_ends_at_its_floor() -> None:
    found = schedule("cosine", floor=0.25)
    assert found.after_warmup(8, 8, ()) == pytest.approx(0.25) and found.after_warmup(4, 8, ()) == pytest.approx(0.625)


@pytest.mark.parametrize("kind", KINDS)
def test_a_named_kind_warms_up_as_the_usual_one(kind: str) -> None:
    assert schedule(kind).warmup == USUAL_WARMUP.get(kind, 0.1)


@pytest.mark.parametrize(("rise", "total"), [(10, 40), (1, 12), (29, 31)])
def test_one_cycle_agrees_with_torchs(rise: int, total: int) -> None:
    """Torch counts the peak itself to the rise: its share of ``rise + 1`` steps has the peak where ours has it."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    settings: dict[str, Any] = {"div_factor": 10, "final_div_factor": 50, "cycle_momentum": False}
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1.0, total_steps=total, pct_start=(rise + 1) / total, anneal_strategy="cos", **settings
    )
    rates = []
    for _ in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(rates) < total:
            scheduler.step()
    found = schedule("one-cycle", warmup=rise, div=10, final=500)
    assert [found.factor(step, total) for step in range(total)] == pytest.approx(rates, abs=1e-9)


def test_slanted_triangular_is_its_formula() -> None:
    """Howard and Ruder 2018, eq. 3, with T = 100 and cut_frac = 0.1."""
    total, cut_frac, ratio = 100, 0.1, 32
    cut = math.floor(total * cut_frac)
    found = schedule("slanted-triangular", warmup=cut_frac, ratio=ratio)
    for t in range(total):
        p = t / cut if t < cut else 1 - (t - cut) / (cut * (1 / cut_frac - 1))
        assert found.factor(t, total) == pytest.approx((1 + p * (ratio - 1)) / ratio)


@given(
    seen=st.lists(st.floats(-2, 2), max_size=40),
    patience=st.integers(0, 4),
    threshold=st.sampled_from([0.0, 0.05]),
    floor=st.sampled_from([0.0, 0.2]),
)
@settings(max_examples=100, deadline=None)
def test_plateau_agrees_with_torchs(seen: list[float], patience: int, threshold: float, floor: float) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=patience, threshold=threshold, threshold_mode="abs", min_lr=floor, eps=0
    )
    found = schedule("plateau", shrink=0.5, patience=patience, threshold=threshold, floor=floor, warmup=0)
    for count, value in enumerate(seen, 1):
        scheduler.step(value)
        assert found.factor(50, 100, seen[:count]) == pytest.approx(optimizer.param_groups[0]["lr"])


def test_only_a_schedule_that_watches_looks_at_what_was_seen() -> None:
    falls, stands = [1 - n / 10 for n in range(10)], [1.0] * 10
    differ = {kind for kind in KINDS if schedule(kind).factor(90, 100, falls) != schedule(kind).factor(90, 100, stands)}
    assert differ == {kind for kind in KINDS if schedule(kind).watches} == {"plateau"}
