"""Preferences: what is worth knowing of comparisons before a model learns from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from onsa.data.compare import Comparison, Messages
from onsa.data.split import SIDES, normal, unit
from onsa.data.table import Row, place
from onsa.spec.errors import Level, Problem

EXAMPLES = 3  # places that are shown
BIASED = 0.6  # share of pairs won by the longer answer, from which length may be what is learnt
FEW = 20  # pairs from which such a share means something
Order = tuple[int, int]  # two answers, each by the unit of its text, the better one first


@dataclass
class _Seen:
    """Counts over pairs: those whose answers differ in length, those that the longer one wins, and ties.

    orders: by prompt, in which order two answers have been seen first, and whether their row is one of the shown.
    """

    apart: int = 0
    longer: int = 0
    ties: int = 0
    pairs: int = 0
    orders: dict[tuple[int, int, int], tuple[Order, Row]] = field(default_factory=dict)
    clashes: list[Row] = field(default_factory=list)


def examine(sides: Mapping[str, Iterable[Row]], read: Callable[[Row], Comparison]) -> list[Problem]:
    """What pairs of answers tell: how often the longer one wins, ties, and pairs that are ranked both ways."""
    seen = _Seen()
    for side in SIDES:
        for row in sides.get(side, ()):
            _take(seen, row, read(row))
    problems: list[Problem] = []
    if seen.clashes:
        places = ", ".join(place(row) for row in seen.clashes[: 2 * EXAMPLES])
        values = {"count": len(seen.clashes) // 2, "examples": places}
        problems.append(Problem("pairs-conflicting", values, seen.clashes[0].file, level=Level.WARNING))
    share = seen.longer / seen.apart if seen.apart else 0.5
    if seen.apart >= FEW:
        biased = max(share, 1 - share) >= BIASED
        values = {"share": f"{share:.0%}", "pairs": seen.apart}
        code = "pairs-length-biased" if biased else "pairs-length"
        problems.append(Problem(code, values, level=Level.WARNING if biased else Level.NOTE))
    if seen.ties:
        problems.append(Problem("pairs-tied", {"count": seen.ties, "pairs": seen.pairs}, level=Level.NOTE))
    return problems


def _take(seen: _Seen, row: Row, found: Comparison) -> None:
    prompt = unit(normal(_text(found.prompt)))
    texts = [_text(answer) for answer in found.answers]
    units = [unit(normal(text)) for text in texts]
    if len(texts) == 1:  # a single one is held against a nothing that stands between good and bad
        _held(seen, row, prompt, (units[0], 0) if found.ranks[0] == 0 else (0, units[0]))
    for one in range(len(texts)):
        for other in range(one + 1, len(texts)):
            seen.pairs += 1
            if found.ranks[one] == found.ranks[other]:
                seen.ties += 1
                continue
            better, worse = (one, other) if found.ranks[one] < found.ranks[other] else (other, one)
            seen.apart += len(texts[one]) != len(texts[other])
            seen.longer += len(texts[better]) > len(texts[worse])
            _held(seen, row, prompt, (units[better], units[worse]))


def _held(seen: _Seen, row: Row, prompt: int, order: Order) -> None:
    """Hold an order of two answers against the one that was seen first."""
    key = (prompt, min(order), max(order))
    before, at = seen.orders.setdefault(key, (order, row))
    if before != order:
        seen.clashes += [at, row]


def _text(messages: Messages) -> str:
    return "\n".join(f"{message['role']}: {message.get('content') or ''}" for message in messages)
