"""Returning: freed memory goes back where a process has grown."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest
import torch

from onsa.engine.returning import GROWN, Returning, give_back


def test_a_process_stays_within_what_a_step_takes() -> None:
    held, given = 1000, []
    returning = Returning(lambda: given.append(held), lambda: held)
    most = 0
    for _ in range(100):
        held += 40
        most = max(most, held)
        returning()
        if given and given[-1] == held:
            held = 960  # so that the next step holds as much as the first
    assert most <= GROWN * 1040 + 40
    assert 10 <= len(given) <= 34, "not at every step: what is given back must be asked for again"


def test_one_that_does_not_grow_keeps_what_it_has() -> None:
    sizes, given = iter([1000, 1100, 900, 1149, 1000, 1150]), []
    returning = Returning(lambda: given.append(True), lambda: next(sizes))
    for _ in range(6):
        returning()
    assert (given, returning.first) == ([], 1000)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's way")
def test_what_is_freed_goes_back() -> None:
    process = psutil.Process()
    held = [torch.ones(20_000) for _ in range(4_000)]  # 320 MB in pieces that are not mapped one by one
    kept = held[::50]
    full = process.memory_info().rss
    del held
    give_back()
    assert process.memory_info().rss < full - 200_000_000
    assert len(kept) == 80


FAULTS = """
import resource, sys, torch
from onsa.engine.returning import keep
if sys.argv[1] == "keep":
    keep()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):  # what lies between pieces settles
    torch.ones(16_000_000)
before = faults()
for _ in range(10):
    torch.ones(16_000_000)
print(faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's way")
def test_what_is_kept_is_not_asked_for_anew() -> None:
    def faults(how: str) -> int:
        ran = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
        return int(ran.stdout)

    assert 20 * faults("keep") < faults("plainly")
