"""Split: which side of train, validation and test a row is on.

A row's side is a function of its own key: the key's SHA-256 is a number in [0, 1), and the ratio cuts that range in
three. So rows that are added later never move the rows that were there, and equal rows are never on two sides. It
depends on no seed: runs with different seeds are scored on the same rows.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Literal

from onsa.spec.sections import Split

Side = Literal["train", "validation", "test"]
SIDES: tuple[Side, ...] = ("train", "validation", "test")


def normal(text: str) -> str:
    """A text as it is compared: NFKC, without case, with single spaces."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).split())


def assign(
    keys: Sequence[str], split: Split, labels: Sequence[str] | None = None, groups: Sequence[str] | None = None
) -> list[Side]:
    """The side of each row.

    What is dealt as a whole is a *unit*: all rows of equal normalised key or, with ``groups``, of equal group. Where
    ``split.stratify`` is on, every label's units are dealt in the order of their hashes until each side has its exact
    share (within one unit); a unit with several labels counts with its first. Without labels all units are one stratum.

    keys: what each row is about, as text (its inputs).
    """
    units = [normal(key) for key in (keys if groups is None else groups)]
    at = {unit: position(unit) for unit in units}
    if not split.stratify:
        return [_side(at[unit], split.ratio) for unit in units]
    label_of: dict[str, str] = {}
    for unit, label in zip(units, labels or [""] * len(units), strict=True):
        label_of.setdefault(unit, label)
    strata: dict[str, list[str]] = {}
    for unit in sorted(label_of, key=lambda unit: (at[unit], unit)):
        strata.setdefault(label_of[unit], []).append(unit)
    side_of = _quotas(strata, split.ratio)
    return [side_of[unit] for unit in units]


def position(unit: str) -> float:
    """Where in [0, 1) a unit falls."""
    digest = hashlib.sha256(unit.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48  # 48 bits: a float holds them exactly, and never rounds up to 1


def _side(at: float, ratio: tuple[float, float, float]) -> Side:
    train, validation, _ = ratio
    total = sum(ratio)
    if at < train / total:
        return "train"
    return "validation" if at < (train + validation) / total else "test"


def _quotas(strata: Mapping[str, Sequence[str]], ratio: tuple[float, float, float]) -> dict[str, Side]:
    """Deal each stratum by largest remainders, so that every side's share is within one unit of exact."""
    side_of: dict[str, Side] = {}
    for units in strata.values():
        exact = [len(units) * part / sum(ratio) for part in ratio]
        counts = [int(share) for share in exact]
        by_remainder = sorted(range(3), key=lambda side: counts[side] - exact[side])
        for side in by_remainder[: len(units) - sum(counts)]:
            counts[side] += 1
        dealt = [side for side, count in zip(SIDES, counts, strict=True) for _ in range(count)]
        side_of.update(zip(units, dealt, strict=True))
    return side_of
