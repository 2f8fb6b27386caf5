"""Forecast: what `onsa plan` says of time and memory beforehand, against what then happens.

Run as ``python -m benchmarks.forecast``; ``--only NAME`` takes one recipe. Prints a table, then one JSON line with the
same figures. Plan and run have a process of their own each, of two threads. Time is that of all optimizer steps; memory
is the most that the process held, measuring included, which the demo's few held-out rows hardly add to.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["ONSA_LANG"] = "en"

from onsa.models.fetch import fetch
from onsa.models.load import quiet
from onsa.programs.check import check
from onsa.programs.demo import demos
from onsa.programs.measure import versions
from onsa.programs.train import Finished, train
from onsa.spec.recipe import parse_recipe
from onsa.store.home import home

THREADS, BAND = 2, 0.25
RECIPES: dict[str, dict[str, Any]] = {
    "topics, full": {"data": "topics", "adaptation": "full", "train": {"epochs": 2}},
    "topics, head": {"data": "topics", "adaptation": "head", "train": {"epochs": 20}},
    "support, LoRA": {"data": "support", "adaptation": "lora", "train": {"max_steps": 30}},
    "support, full": {"data": "support", "adaptation": "full", "train": {"max_steps": 15}},
    "support, LoRA on nf4": {
        "data": "support",
        "adaptation": "lora",
        "model": {"name": "smollm2-135m", "quantize": "nf4"},
        "train": {"max_steps": 15},
    },
}


def recipe(name: str) -> Any:
    """A recipe of the demo's data."""
    settings = RECIPES[name]
    demo = next(demo.recipe for demo in demos() if demo.name == settings["data"])
    values = {
        "model": demo.model.model_dump(exclude_none=True),
        **settings,
        "task": demo.task,
        "data": demo.data.model_dump(exclude_none=True),
        "engine": {"kind": "local", "device": "cpu", "threads": THREADS},
        "evaluate": {"baseline": False, "answers": 0, "bootstrap": 100},
    }
    return parse_recipe({key: value for key, value in values.items() if value is not None})


def planned(name: str, folder: str) -> tuple[float, int]:
    """Seconds and bytes as they are forecast."""
    os.environ["ONSA_HOME"] = folder
    with quiet():
        seen = check(recipe(name), rows=0).forecast
    assert seen.seconds is not None
    return seen.seconds, seen.memory


def happened(name: str, folder: str) -> tuple[float, int]:
    """Seconds and bytes as they turn out."""
    os.environ["ONSA_HOME"] = folder
    with quiet():
        *_, last = train(recipe(name), fresh=True)
    assert isinstance(last, Finished)
    figures = last.document["figures"]
    return figures["seconds"], figures["peak_memory_bytes"]


def alone(function: Any, *given: Any) -> Any:
    """What a function gives in a new process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *given).result()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.forecast", description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=list(RECIPES), help="a recipe by its name; may be repeated")
    names = parser.parse_args().only or list(RECIPES)
    for model in ("minilm-l6", "smollm2-135m"):
        fetch(model)
    started, rows = datetime.now(UTC), []
    print(f"{'recipe':<22} {'s planned':>10} {'s':>8} {'ratio':>6} {'MB planned':>11} {'MB':>7} {'ratio':>6}")
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            for shared in ("models", "demo"):
                (Path(folder) / shared).symlink_to(home() / shared)
            (seconds, memory), (spent, peak) = (alone(function, name, folder) for function in (planned, happened))
        ratios = (seconds / spent, memory / peak)
        rows.append({"recipe": name, "seconds": [seconds, spent], "bytes": [memory, peak], "ratios": ratios})
        print(
            f"{name:<22} {seconds:>10.1f} {spent:>8.1f} {ratios[0]:>6.2f} "
            f"{memory / 1e6:>11,.0f} {peak / 1e6:>7,.0f} {ratios[1]:>6.2f}",
            flush=True,
        )
    within = all(abs(ratio - 1) <= BAND for row in rows for ratio in row["ratios"])
    told = {"date": started.date().isoformat(), "versions": dict(versions()), "within": within, "rows": rows}
    print(json.dumps({"benchmark": "forecast", **told}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
