"""What every schedule keeps, and what it shares with transformers' own.

One difference is meant: transformers' first step has a rate of zero, and moves nothing. Here the warm-up's first step
is ``1 / (rise + 1)``, so step ``s`` of a warm-up over ``rise`` steps is transformers' step ``s + 1`` over ``rise + 1``;
after the warm-up both agree to float order.
"""

from __future__ import annotations

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
# Transformers' counterparts: (optimizer, warm-up steps, all steps) to a scheduler; None where it has none.
THEIRS: dict[str, Callable[[Any, int, int], Any] | None] = {
    "linear": transformers.get_linear_schedule_with_warmup,
    "cosine": transformers.get_cosine_schedule_with_warmup,
    "constant": lambda optimizer, rise, total: transformers.get_constant_schedule_with_warmup(optimizer, rise),
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
    assert [found.factor(step, 100) for step in range(rise)] == pytest.approx(
        [(s + 1) / (rise + 1) for s in range(rise)]
    )
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
    assert schedule(kind).warmup == 0.1
