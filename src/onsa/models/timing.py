"""Timing: which of several ways to compute the same is fastest on this machine, measured once and written down.

What is written down stays: a run that goes on chooses as it began, so that it comes to the same bytes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection

import torch

from onsa.store.atomic import write_text
from onsa.store.home import home

Job = Callable[[], object]


def remembered(what: str, of: str, ways: Collection[str], job: Callable[[str], Job], repeats: int) -> dict[str, float]:
    """Seconds of every way, from ``cache/<what>.json`` where they are known, else measured: the least of some.

    Args:
        of: what is computed, and in what type.
        job: what is done once by a way.
        repeats: how often all of them are done, in turns, since a machine is not as fast at all times.
    """
    key = f"{of} {torch.get_num_threads()} {torch.__version__}"
    path = home() / "cache" / f"{what}.json"
    known: dict[str, dict[str, float]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if set(known.get(key, ())) != set(ways):
        jobs = {way: job(way) for way in ways}
        spent: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(repeats):
            for way, once in jobs.items():
                started = time.perf_counter()
                once()
                spent[way].append(time.perf_counter() - started)
        known[key] = {way: min(times) for way, times in spent.items()}
        write_text(path, json.dumps(known, indent=1))
    return known[key]
