"""L2-SP: its formula in numpy, and where it has nothing to pull."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import trial
from onsa.spec.errors import RecipeError

ALPHA, BETA = 2.0, 0.5


def test_the_penalty_is_that_of_the_formula(attempt: Any) -> None:
    given = {"kind": "l2-sp", "strength": ALPHA, "strength_new": BETA}
    prepared = attempt("rows", regulariser=[given], adaptation="full")
    session: Any = trial.opened(prepared)
    start = {name: value.double().numpy() for name, value in trial.trained(session).items()}
    at, new = None, session.work.new
    assert new and set(new) < set(start)
    for _ in range(3):
        now = {name: value.double().numpy() for name, value in trial.trained(session).items()}
        kept = sum(np.square(now[name] - start[name]).sum() for name in start if name not in new)
        made = sum(np.square(now[name]).sum() for name in new)
        (said,), at = trial.advance(prepared, session, 1, at)
        assert said["metrics"]["penalty"] == pytest.approx(ALPHA / 2 * kept + BETA / 2 * made, rel=1e-5)
    assert kept > 0


def test_the_gradient_is_a_pull(attempt: Any) -> None:
    """A step of plain gradient descent with L2-SP is one without it, less the pull times the rate."""
    ends = []
    for strength in (0.0, 100.0):
        prepared = attempt(
            "rows",
            regulariser=[{"kind": "l2-sp", "strength": strength, "strength_new": 0.0}],
            adaptation="full",
            optimizer={"kind": "sgd", "lr": 1e-3, "lr_new": 1e-3, "weight_decay": 0, "momentum": 0},
            schedule={"kind": "constant", "warmup": 0},
            train={"clip": None},
        )
        session: Any = trial.opened(prepared)
        name = next(name for name in session.trainable if "layer.0" in name and name.endswith("weight"))
        session.trainable[name].data += 0.1
        start = session.trainable[name].detach().clone()
        trial.advance(prepared, session, 1)
        ends.append((start, session.trainable[name].detach()))
    moved = [end - start for start, end in ends]
    assert np.allclose((moved[1] - moved[0]).numpy(), -1e-3 * 100.0 * 0.1, rtol=1e-3)


@pytest.mark.parametrize("adaptation", ["lora", "head"])
def test_without_weights_to_pull_it_is_refused(adaptation: str, attempt: Any) -> None:
    with pytest.raises(RecipeError) as caught:
        trial.opened(attempt("rows", regulariser=["l2-sp"], adaptation=adaptation))
    assert [problem.code for problem in caught.value.problems] == ["l2-sp-without-base"]
