"""Tiny LoRA runs over one base that have learnt different things, for tests of several adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onsa
from onsa.spec.recipe import parse_recipe
from onsa.store.run import Run


def tuned(base: Path, data: Path, seed: int, **more: Any) -> Run:
    """A short run whose weights moved far; the seed makes it unlike others."""
    evaluate = {"bootstrap": 100, "baseline": False, "answers": 0, "max_new_tokens": 6}
    values = {
        "model": str(base),
        "data": {"path": str(data)},
        "adaptation": {"kind": "lora", "rank": 4},
        "optimizer": {"kind": "adamw", "lr": 0.03},
        "train": {"batch_rows": 8, "max_steps": 6, "precision": "fp32", **more.pop("train", {})},
        "engine": {"kind": "local", "device": "cpu", "threads": 1},
        "evaluate": {**evaluate, **more.pop("evaluate", {})},
        "seed": seed,
    }
    return onsa.run(parse_recipe({**values, **more}))
