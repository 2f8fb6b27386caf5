"""Products by half of their rows: the same numbers, and only where it was once measured that they are faster."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from onsa.models import halves

ROWS = (3, halves.LEAST - 1, halves.LEAST, halves.LEAST + 61)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("biased", [False, True])
def test_halves_are_the_whole(rows: int, biased: bool) -> None:
    x_NI, w_IO, to_NO = torch.randn(rows, 24), torch.randn(24, 16), torch.randn(rows, 16)
    bias_O = torch.randn(16) if biased else None
    for pays in (False, True):
        found = halves.product(x_NI, w_IO, {(24, 16): pays}, bias_O)
        torch.testing.assert_close(found, x_NI @ w_IO + (0.0 if bias_O is None else bias_O), rtol=1e-6, atol=1e-5)
        onto = to_NO.clone()
        halves.add_product(onto, x_NI, w_IO, {(24, 16): pays})
        torch.testing.assert_close(onto, to_NO + x_NI @ w_IO, rtol=1e-6, atol=1e-5)


def test_only_what_is_faster_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    spent = {"4 8": {"whole": 1.0, "halves": 0.99}, "8 4": {"whole": 1.2, "halves": 1.0}}
    monkeypatch.setattr(halves, "remembered", lambda what, of, *how: spent[of[:3]])
    assert halves.measured([(8, 4), (4, 8), (8, 4)], torch.float32) == {(4, 8): False, (8, 4): True}


def test_both_are_measured_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONSA_HOME", str(tmp_path))
    assert set(halves.measured([(8, 8)], torch.float32)) == {(8, 8)}
    assert '"whole"' in (tmp_path / "cache" / "halves.json").read_text(encoding="utf-8")
