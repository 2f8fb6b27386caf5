"""Split: which side of train, validation and test a row is on.

A row's side is a function of its own key: the key's SHA-256 is a number in [0, 1), and the ratio cuts that range in
three. So rows that are added later never move the rows that were there, and equal rows are never on two sides. It
depends on no seed: runs with different seeds are scored on the same rows.
"""

from __future__ import annotations

import hashlib
import unicodedata
from typing import Literal

import numpy as np
import numpy.typing as npt

from onsa.spec.sections import Split

Side = Literal["train", "validation", "test"]
SIDES: tuple[Side, ...] = ("train", "validation", "test")
Units = npt.NDArray[np.uint64]


def normal(text: str) -> str:
    """A text as it is compared: NFKC, without case, with single spaces."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).split())


def unit(text: str) -> int:
    """What a text is dealt by: the first eight bytes of its SHA-256."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def assign(unit_R: Units, split: Split, label_R: npt.NDArray[np.int64] | None = None) -> npt.NDArray[np.int64]:
    """The side of each row, as its place in ``SIDES``.

    What is dealt as a whole is a *unit*: all rows of equal normalised key or of equal group. Where ``split.stratify``
    is on, every label's units are dealt in the order of their hashes until each side has its exact share (within one
    unit); a unit with several labels counts with its first. Without labels all units are one stratum.

    Args:
        unit_R: of what each row is about (its inputs, or its group).
    """
    if not split.stratify:
        return _by_position(position(unit_R), split.ratio)
    # In the order of their hashes: np.unique sorts.
    unit_U, first_U, back_R = np.unique(unit_R, return_index=True, return_inverse=True)
    label_U = np.zeros(len(unit_U), np.int64) if label_R is None else label_R[first_U]
    side_U = np.zeros(len(unit_U), np.int64)
    order_U = np.argsort(label_U, kind="stable")
    for stratum in np.split(order_U, np.flatnonzero(np.diff(label_U[order_U])) + 1):
        side_U[stratum] = np.repeat(np.arange(len(SIDES)), _quotas(len(stratum), split.ratio))
    return side_U[back_R]


def position(unit_R: Units) -> npt.NDArray[np.float64]:
    """Where in [0, 1) units fall."""
    return (unit_R >> np.uint64(16)) / 2.0**48  # 48 bits: a float holds them exactly, and never rounds up to 1


def _by_position(at_R: npt.NDArray[np.float64], ratio: tuple[float, float, float]) -> npt.NDArray[np.int64]:
    train, validation, _ = ratio
    total = sum(ratio)
    return (at_R >= train / total).astype(np.int64) + (at_R >= (train + validation) / total)


def _quotas(units: int, ratio: tuple[float, float, float]) -> list[int]:
    """Each side's part of a stratum, by largest remainders: within one unit of exact."""
    exact = [units * part / sum(ratio) for part in ratio]
    counts = [int(share) for share in exact]
    by_remainder = sorted(range(len(ratio)), key=lambda side: counts[side] - exact[side])
    for side in by_remainder[: units - sum(counts)]:
        counts[side] += 1
    return counts
