"""Drawing: the few SVG elements that figures are made of, with text measured well enough not to overlap.

Colours are classes (``s-tuned`` strokes, ``f-tuned`` fills), so that a figure follows the page from light to dark.
"""

from __future__ import annotations

import itertools
import math
import unicodedata
from collections.abc import Sequence
from html import escape

from markupsafe import Markup

from onsa.evaluate.wording import MINUS

SIZE = 12.0  # font size of figures; page.css sets the same


class Drawing:
    """One SVG, in user units that are pixels at its natural width."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self._parts: list[str] = []

    def line(self, x1: float, y1: float, x2: float, y2: float, style: str) -> None:
        self._parts.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{style}"/>')

    def path(self, points: Sequence[tuple[float, float]], style: str) -> None:
        track = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        self._parts.append(f'<path d="M{track}" class="{style}"/>')

    def dot(self, x: float, y: float, radius: float, style: str) -> None:
        self._parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" class="{style}"/>')

    def box(self, place: tuple[float, float, float, float], style: str, opacity: float = 1.0) -> None:
        """place: x, y, width, height."""
        x, y, width, height = place
        faint = "" if opacity == 1 else f' opacity="{opacity:.3f}"'
        self._parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{max(height, 0):.1f}"'
            f' class="{style}"{faint}/>'
        )

    def text(self, at: tuple[float, float], words: str, style: str = "f-muted", anchor: str = "start") -> None:
        self._parts.append(
            f'<text x="{at[0]:.1f}" y="{at[1]:.1f}" class="{style}" text-anchor="{anchor}">{escape(words)}</text>'
        )

    def slanted(self, at: tuple[float, float], words: str, style: str = "f-muted") -> None:
        """Text rising from a point to the upper right."""
        x, y = at
        turn = f'transform="translate({x:.1f} {y:.1f}) rotate(-42)"'
        self._parts.append(f'<text {turn} class="{style}">{escape(words)}</text>')

    def markup(self, name: str, title: str, description: str) -> Markup:
        """The finished SVG. name: unique on its page, for the ids that tie title and description to it."""
        inside = "".join(self._parts)
        return Markup(
            f'<svg viewBox="0 0 {self.width:.0f} {self.height:.0f}" role="img" '
            f'aria-labelledby="{name}-t {name}-d" style="max-width:{self.width:.0f}px;'
            f'min-width:{min(self.width * 0.7, 520):.0f}px">'
            f'<title id="{name}-t">{escape(title)}</title><desc id="{name}-d">{escape(description)}</desc>'
            f"{inside}</svg>"
        )


def width_of(words: str, size: float = SIZE) -> float:
    """About the width of a text: full-width characters are square, others a little over half of that."""
    return size * sum(1.0 if unicodedata.east_asian_width(c) in "WF" else 0.57 for c in words)


def fit(words: str, width: float, size: float = SIZE) -> str:
    """The text, cut with an ellipsis where it would be wider."""
    if width_of(words, size) <= width:
        return words
    while words and width_of(words + "…", size) > width:
        words = words[:-1]
    return words.rstrip() + "…"


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten apart) within the bounds."""
    span = high - low
    if span <= 0 or not math.isfinite(span):
        return [low]
    power = 10.0 ** math.floor(math.log10(span / about))
    step = min((m * power for m in (1, 2, 5, 10)), key=lambda s: abs(math.log(span / s / about)))
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_words(values: Sequence[float]) -> list[str]:
    """Ticks with the same number of decimals; very small or large ones as ``5e−05``."""
    largest = max((abs(value) for value in values), default=0.0)
    if largest and not 1e-2 <= largest < 1e6:
        return ["0" if v == 0 else f"{v:.3g}".replace("e-0", "e-").replace("-", MINUS) for v in values]
    gap = min((b - a for a, b in itertools.pairwise(values)), default=1.0)
    places = max(0, -math.floor(math.log10(gap) + 1e-9)) if gap > 0 else 0
    return [f"{value:,.{places}f}".replace("-", MINUS) for value in values]


def power_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Powers of ten within positive bounds, some left out where there are many; with 2 and 5 times where few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    decades = max(1, round(math.log10(high / low)))
    factors = (1, 2, 5) if 2 * decades <= about else (1,)
    every = -(-decades // about)
    found = [m * 10.0**n for n in range(first, last + 1) if n % every == 0 for m in factors]
    return [value for value in found if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]


def power_words(values: Sequence[float]) -> list[str]:
    """``1e−5``, ``0.01``, ``20``: each by itself."""
    return [
        f"{value:g}"
        if 1e-2 <= value < 1e4
        else f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e").replace("-", MINUS)
        for value in values
    ]
