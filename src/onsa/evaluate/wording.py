"""How numbers and names are written in verdicts, reports and cards: no digit that the interval does not support."""

from __future__ import annotations

import math
from collections.abc import Mapping

from onsa.spec.messages import catalogue, language, say

MINUS = "\N{MINUS SIGN}"
MOST_PLACES = 5


def metric_name(metric: str, lang: str | None = None) -> str:
    """A metric's name in the interface's language; a metric unknown to the catalogue keeps its own."""
    found = catalogue(lang or language()).get(f"report.metric.{metric}")
    return found or metric.replace("_", " ")


def reasons(removed: Mapping[str, int], lang: str | None = None) -> str:
    """Rows left out, by the message code of the reason, as one line; empty where none were."""
    words = catalogue(lang or language())
    parts = [(words.get(f"report.removed.{code}", code), rows) for code, rows in removed.items()]
    return "; ".join(f"{name} × {count(rows)}" for name, rows in parts if rows)


def decimals(low: float | None, high: float | None) -> int:
    """Decimal places that show the width of an interval with one to two significant digits, and both its signs.

    An interval that excludes zero must not be written as if it touched it.
    """
    if low is None or high is None:
        return 3
    width = high - low
    places = 3 if width <= 0 else max(0, math.ceil(0.7 - math.log10(width)))
    if low * high > 0:
        while places < MOST_PLACES and min(abs(round(low, places)), abs(round(high, places))) == 0:
            places += 1
    return min(places, MOST_PLACES)


def fixed(value: float | None, places: int) -> str:
    """``0.92``; a value that is not known is a dash."""
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{value:,.{places}f}"
    return text.removeprefix("-") if float(text.replace(",", "")) == 0 else text.replace("-", MINUS)


def signed(value: float | None, places: int) -> str:
    """``+0.09`` or ``−0.09``."""
    text = fixed(value, places)
    return f"+{text}" if value is not None and text[0] not in f"{MINUS}–" and float(text.replace(",", "")) else text


def short(value: float | None) -> str:
    """About four significant digits: ``0.0823``, ``12.4``, ``5e-05``."""
    if value is None or not math.isfinite(value):
        return "–"
    if value != 0 and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.3g}".replace("e-0", "e-").replace("e+0", "e").replace("-", MINUS)
    places = 3 if value == 0 else max(0, 3 - math.floor(math.log10(abs(value))) - (abs(value) < 1))
    return fixed(value, min(places, 4))


def rate_words(rate: float) -> str:
    """``2.0e−4``: learning rates of all sizes in one form."""
    return f"{rate:.1e}".replace("e-0", "e-").replace("e+0", "e").replace("-", MINUS)


def count(value: float) -> str:
    """``1,234,567``."""
    return f"{value:,.0f}"


def share(part: float, whole: float) -> str:
    """``0.66 %``: with two significant digits under one per cent."""
    percent = 100 * part / whole if whole else 0.0
    return f"{percent:.1f} %" if percent >= 1 or percent == 0 else f"{percent:.2g} %"


def storage(size: int, lang: str | None = None) -> str:
    """Bytes in the unit that reads best, powers of 1024."""
    value, unit = float(size), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    number = f"{value:.0f}" if unit == "B" or value >= 100 else f"{value:.1f}"
    return say("report.unit.storage", lang, number=number, unit=unit)


def duration(seconds: float, lang: str | None = None) -> str:
    """``2 h 5 min``, ``3 min 12 s`` or ``4.2 s``."""
    if seconds < 60:
        return say("report.unit.seconds", lang, seconds=f"{seconds:.1f}")
    whole = round(seconds)
    if whole < 3600:
        return say("report.unit.minutes", lang, minutes=whole // 60, seconds=whole % 60)
    return say("report.unit.hours", lang, hours=whole // 3600, minutes=whole % 3600 // 60)
