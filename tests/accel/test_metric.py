"""What a run comes to with all speed passes and without them, over seeds: the same, within what a seed makes of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import tiny
import trial
from onsa.programs.forecast import build

SEEDS = (7, 8, 9)
SHARE = 0.05  # of the spread over seeds that passes may make


@pytest.mark.parametrize(
    ("base", "write", "adaptation"),
    [
        ("tiny_bert", tiny.write_csv, "full"),
        ("tiny_llama", tiny.write_chat, "lora"),
        ("tiny_llama", tiny.write_pairs, "lora"),
    ],
)
def test_the_final_metric_stays_within_what_seeds_make(
    base: str, write: Callable[[Path], Path], adaptation: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    network = trial.still(request.getfixturevalue(base), tmp_path / "still")
    data = write(tmp_path / ("rows.csv" if write is tiny.write_csv else "rows.jsonl"))

    def final(seed: int, accel: str) -> float:
        settings = {"adaptation": adaptation, "optimizer": {"kind": "adamw", "lr": 1e-2}, "train": {"max_steps": 24}}
        prepared = trial.ready(network, data, seed=seed, accel=accel, **settings)
        prepared = build(prepared).prepared
        assert any(decision.applied for decision in prepared.plan.decisions) == (accel == "auto")
        session = trial.opened(prepared)
        trial.advance(prepared, session, 24)
        return prepared.task.metrics(session.evaluate(prepared.examples["validation"], prepared.task))["loss"]

    plain = [final(seed, "off") for seed in SEEDS]
    apart = [abs(final(seed, "auto") - value) for seed, value in zip(SEEDS, plain, strict=True)]
    assert max(apart) <= SHARE * (max(plain) - min(plain))
