"""Returning: freed memory goes back, and takes a small share of the time."""

from __future__ import annotations

import sys

import psutil
import pytest
import torch

from onsa.engine.returning import SHARE, Returning


def test_it_takes_a_small_share_of_the_time() -> None:
    now = 100.0

    def trim(_: int) -> int:
        nonlocal now
        now += 0.1
        return 1

    returning, total = Returning(trim, lambda: now), 0.0
    for _ in range(1000):
        now += 0.5
        before = now
        returning()
        total += now - before
    assert 0.5 * SHARE < total / (now - 100.0) <= SHARE


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's way")
def test_what_is_freed_goes_back() -> None:
    process = psutil.Process()
    held = [torch.ones(20_000) for _ in range(4_000)]  # 320 MB in pieces that are not mapped one by one
    kept = held[::50]
    full = process.memory_info().rss
    del held
    Returning()()
    assert process.memory_info().rss < full - 200_000_000
    assert len(kept) == 80


def test_where_there_is_no_way_nothing_happens() -> None:
    returning = Returning(None, lambda: 100.0)
    returning()
    assert (returning.ends, returning.spent) == (0.0, 0.0)
