"""Few rows: layers say the same either way round, and go each where it was measured to be faster."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from onsa.models import few_rows
from onsa.models.few_rows import COUNTS, turn, turned

ROWS = (1, 2, 3, 4, 15, 16, 31, 32, 33, 70)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every matrix is large, and the other way round is faster for 4 to 15 rows; how many rows went so."""
    seen: list[int] = []

    def told(what: str, of: str, ways: Collection[str], job: Callable[[str], object], repeats: int) -> dict[str, float]:
        for way in ways:
            job(way)()  # type: ignore[operator]
        return {"straight": 1.0, "turned": 0.5 if 4 <= int(of.split()[0]) < 16 else 2.0}

    def counted(x_NI: torch.Tensor, *given: torch.Tensor) -> torch.Tensor:
        seen.append(len(x_NI))
        return turned(x_NI, *given)

    monkeypatch.setattr(few_rows, "LARGE", 1)
    monkeypatch.setattr(few_rows, "remembered", told)
    monkeypatch.setattr(few_rows, "turned", counted)
    return seen


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("dtype", "apart"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_both_ways_say_the_same(dtype: torch.dtype, apart: float, bias: bool) -> None:
    weight_OI, bias_O = torch.randn(48, 80, dtype=dtype), torch.randn(48, dtype=dtype) if bias else None
    for rows in ROWS:
        x_NI = torch.randn(rows, 80, dtype=dtype)
        one, other = functional.linear(x_NI, weight_OI, bias_O), turned(x_NI, weight_OI, bias_O)
        assert other.is_contiguous() and other.dtype == dtype
        torch.testing.assert_close(other, one, rtol=apart, atol=8 * apart)


def test_layers_go_the_faster_way(asked: list[int]) -> None:
    network = nn.Sequential(nn.Linear(80, 48), nn.ReLU(), nn.Linear(48, 80, bias=False))
    given = [torch.randn(rows, 80) for rows in ROWS]
    with torch.inference_mode():
        wanted = [network(x_NI) for x_NI in given]
        turn(network)
        for x_NI, y_NO in zip(given, wanted, strict=True):
            torch.testing.assert_close(network(x_NI), y_NO, rtol=1e-5, atol=1e-5)
        shaped = network(torch.randn(5, 1, 80))
    assert shaped.shape == (5, 1, 80)
    assert asked == [4, 4, 15, 15, 5, 5]


def test_other_layers_stay_as_they_are(asked: list[int]) -> None:
    class Own(nn.Linear):
        pass

    network = nn.Sequential(Own(8, 8), nn.Linear(8, 8, device="meta"), nn.Embedding(8, 8))
    turn(network)
    assert not any("forward" in vars(module) for module in network.modules())


def test_small_matrices_are_not_measured(home: Path) -> None:
    network = nn.Sequential(nn.Linear(64, 64))
    turn(network)
    assert "forward" not in vars(network[0]) and not (home / "cache" / "few-rows.json").exists()


def test_large_ones_are_measured_once(home: Path) -> None:
    network = nn.Sequential(nn.Linear(512, 256))
    turn(network)
    place = home / "cache" / "few-rows.json"
    known = place.read_bytes()
    turn(network)
    assert place.read_bytes() == known
    assert known.count(b"straight") == len(COUNTS)
