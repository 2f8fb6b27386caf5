"""The charts of a report: lines, intervals, heat maps and bars, drawn with as little ink as they can be read from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from onsa.evaluate.document import Compared
from onsa.evaluate.report.svg import SIZE, Drawing, fit, power_ticks, power_words, tick_words, ticks, width_of
from onsa.evaluate.wording import decimals, signed

Bounds = tuple[float, float]


@dataclass(frozen=True)
class Label:
    """name: unique on the page; title and description are read out where the figure cannot be seen."""

    name: str
    title: str
    description: str
    x: str = ""
    y: str = ""


@dataclass(frozen=True)
class Series:
    """One line, or dots where ``line`` is off. colour: a CSS variable; style: ``thin``, ``faint`` or ``dash``."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str
    line: bool = True
    radius: Sequence[float] = ()
    style: str = ""


@dataclass(frozen=True)
class Frame:
    """Size and bounds of a chart, and what is marked on it.

    diagonal: a dashed line of equal x and y. mark: a step and its words. band: from a step to the end, and its words.
    powers: the axes (``x``, ``y``) that go in powers of ten. margin: kept free on the right.
    """

    width: float = 720
    height: float = 300
    x: Bounds | None = None
    y: Bounds | None = None
    diagonal: bool = False
    mark: tuple[float, str] | None = None
    band: tuple[float, str] | None = None
    powers: str = ""
    margin: float = 12


@dataclass
class Plot:
    """The area inside the axes, and where a value lies in it."""

    drawing: Drawing
    x_bounds: Bounds
    y_bounds: Bounds
    left: float
    top: float
    right: float
    bottom: float
    powers: str = ""

    def x(self, value: float) -> float:
        return self.left + _share(value, self.x_bounds, "x" in self.powers) * (self.right - self.left)

    def y(self, value: float) -> float:
        return self.bottom - _share(value, self.y_bounds, "y" in self.powers) * (self.bottom - self.top)


def _share(value: float, bounds: Bounds, powers: bool) -> float:
    """Where a value lies between two bounds, from 0 to 1."""
    low, high = bounds
    return math.log(value / low) / math.log(high / low) if powers else (value - low) / (high - low)


def lines(label: Label, series: Sequence[Series], frame: Frame) -> Markup:
    """A chart of lines and dots over two number axes, its legend above; the first series lies on top."""
    drawing = Drawing(frame.width, frame.height)
    top = _legend(drawing, series) + (16.0 if label.y else 0.0)
    drawing.text((0, top - 2), label.y)
    strip = 20.0 if frame.mark or frame.band else 8.0
    x_bounds = frame.x or _bounds([v for one in series for v in one.x], 0.0)
    y_bounds = frame.y or _bounds([v for one in series for v in one.y], 0.06)
    plot = axes(drawing, label, (x_bounds, y_bounds), top + strip, frame)
    if frame.diagonal:
        low, high = max(x_bounds[0], y_bounds[0]), min(x_bounds[1], y_bounds[1])
        drawing.line(plot.x(low), plot.y(low), plot.x(high), plot.y(high), "s-muted dash")
    _marks(plot, frame)
    for one in reversed(series):
        points = [(plot.x(x), plot.y(y)) for x, y in zip(one.x, one.y, strict=True)]
        if one.line and len(points) > 1:
            drawing.path(points, f"line s-{one.colour} {one.style}".rstrip())
        sizes = one.radius or ([3.0] * len(points) if len(points) == 1 else ())
        for (x, y), radius in zip(points, sizes, strict=False):
            drawing.dot(x, y, radius, f"f-{one.colour}")
    return drawing.markup(label.name, label.title, label.description)


def bars(label: Label, edges: Sequence[float], series: Sequence[tuple[Series, bool]], frame: Frame) -> Markup:
    """Histograms over the same edges; each series is filled, or (``False``) drawn as an outline. ``y``: the counts."""
    drawing = Drawing(frame.width, frame.height)
    top = _legend(drawing, [one for one, _ in series]) + 24.0
    drawing.text((0, top - 10), label.y)
    most = max((value for one, _ in series for value in one.y), default=1.0)
    plot = axes(drawing, label, ((edges[0], edges[-1]), (0.0, max(most, 1.0) * 1.05)), top, frame)
    for one, filled in series:
        outline = [(plot.x(edges[0]), plot.bottom)]
        for low, high, value in zip(edges, edges[1:], one.y, strict=False):
            outline += [(plot.x(low), plot.y(value)), (plot.x(high), plot.y(value))]
            if filled:
                place = (plot.x(low) + 0.5, plot.y(value), plot.x(high) - plot.x(low) - 1, plot.bottom - plot.y(value))
                drawing.box(place, f"f-{one.colour}", 0.75)
        if not filled:
            drawing.path([*outline, (plot.x(edges[-1]), plot.bottom)], f"line s-{one.colour}")
    if edges[0] < 0 < edges[-1]:
        drawing.line(plot.x(0), plot.top, plot.x(0), plot.bottom, "s-ink dash")
    return drawing.markup(label.name, label.title, label.description)


def intervals(
    label: Label, entries: Sequence[Compared], names: Sequence[str], words: tuple[str, str, str], gutter: float
) -> Markup:
    """Base and tuned as dots with intervals, a row a metric, and beside them their difference.

    Args:
        entries: metrics that share a scale.
        names: of the entries, in the reader's language.
        words: for base, tuned, and tuned minus base.
        gutter: width kept for the names, so that several plots line up.
    """
    split = any(entry["difference"] is not None for entry in entries)
    row, top = 42.0, 34.0
    drawing = Drawing(720, top + row * len(entries) + 30)
    values = _panel(drawing, _spans(entries, ("base", "tuned")), (gutter, top, 450 if split else 700))
    gain = _panel(drawing, [*_spans(entries, ("difference",)), 0.0], (500, top, 700)) if split else None
    x = values.left
    for name, colour in zip(
        words[:2] if split else words[1:2], ("base", "tuned") if split else ("tuned",), strict=True
    ):
        drawing.dot(x + 4, 13, 4, f"f-{colour}")
        drawing.text((x + 13, 17), name, "f-ink")
        x += width_of(name) + 34
    if gain:
        drawing.text((gain.left, 17), words[2], "f-ink")
        drawing.line(gain.x(0), top - 6, gain.x(0), drawing.height - 26, "s-muted")
    for place, (entry, name) in enumerate(zip(entries, names, strict=True)):
        y = top + row * (place + 0.5)
        drawing.text((0, y + 4), fit(name, gutter - 10, 13), "f-ink big")
        for part, colour, shift in (("base", "base", -6.0), ("tuned", "tuned", 6.0)):
            _whisker(values, entry[part], y + shift, colour)  # type: ignore[literal-required]
        if gain and entry["difference"] is not None:
            spread = entry["difference"]
            colour = {True: "tuned", False: "bad", None: "muted"}[entry["better"]]
            _whisker(gain, spread, y + 4, colour)
            if spread["value"] is not None:
                number = signed(spread["value"], decimals(spread["low"], spread["high"]))
                drawing.text((gain.x(spread["value"]), y - 6), number, f"f-{colour} strong", "middle")
    return drawing.markup(label.name, label.title, label.description)


def heat(label: Label, counts: Sequence[Sequence[int]], labels: Sequence[str]) -> Markup:
    """A confusion matrix: shade is the share of the row; the diagonal in the good colour, mistakes in the bad one."""
    size = len(labels)
    cell = 58.0 if size <= 4 else 46.0 if size <= 8 else 34.0 if size <= 14 else 26.0 if size <= 20 else 20.0
    left = min(max(width_of(name) for name in labels) + 12, 150) + 4
    straight = all(width_of(name) <= cell - 4 for name in labels)
    longest = min(max(width_of(name) for name in labels), 130)
    top = 46.0 if straight else 34 + longest * math.sin(math.radians(42)) + 8
    spill = 0.0 if straight else max(0.0, longest * math.cos(math.radians(42)) - cell / 2)
    across = max(left + cell * size + spill, width_of(label.y + label.x) + 60)
    drawing = Drawing(across + 4, top + cell * size + 4)
    drawing.text((0, 12), f"{label.y} ↓")
    drawing.text((max(left, width_of(label.y) + 30), 12), f"{label.x} →")
    for place, name in enumerate(labels):
        drawing.text((left - 8, top + cell * (place + 0.5) + 4), fit(name, left - 12), "f-ink", "end")
        centre = left + cell * (place + 0.5)
        if straight:
            drawing.text((centre, top - 7), name, "f-ink", "middle")
        else:
            drawing.slanted((centre, top - 7), fit(name, 130), "f-ink")
    for row, values in enumerate(counts):
        total = sum(values)
        for column, value in enumerate(values):
            _cell(drawing, (left + cell * column, top + cell * row, cell), (value, total), row == column)
    return drawing.markup(label.name, label.title, label.description)


def _cell(drawing: Drawing, place: tuple[float, float, float], of: tuple[int, int], right: bool) -> None:
    x, y, cell = place
    value, total = of
    share = value / total if total else 0.0
    drawing.box((x, y, cell - 1, cell - 1), "f-cell")
    if not value:
        return
    drawing.box((x, y, cell - 1, cell - 1), "f-tuned" if right else "f-bad", 0.16 + 0.84 * share)
    number = f"{value:,}" if cell >= 34 or value < 1000 else f"{value / 1000:.0f}k"
    style = "f-on" if share > 0.5 else "f-ink"
    drawing.text((x + cell / 2 - 0.5, y + cell / 2 + 4), number, style if cell >= 26 else f"{style} tiny", "middle")


def _panel(drawing: Drawing, values: Sequence[float], place: tuple[float, float, float]) -> Plot:
    """Vertical hairlines with their numbers below; place: left, top, right."""
    left, top, right = place
    bottom = drawing.height - 26
    plot = Plot(drawing, _bounds(values, 0.08), (0, 1), left, top, right, bottom)
    shown = ticks(*plot.x_bounds, about=max(2, int((right - left) / 60)))
    for value, words in zip(shown, tick_words(shown), strict=True):
        drawing.line(plot.x(value), top - 6, plot.x(value), bottom, "s-grid")
        drawing.text((plot.x(value), bottom + 16), words, "f-muted", "middle")
    return plot


def _whisker(plot: Plot, spread: object, y: float, colour: str) -> None:
    if not isinstance(spread, dict) or spread["value"] is None:
        return
    if spread["low"] is not None and spread["high"] is not None:
        plot.drawing.line(plot.x(spread["low"]), y, plot.x(spread["high"]), y, f"whisker s-{colour}")
    plot.drawing.dot(plot.x(spread["value"]), y, 4.5, f"f-{colour} rim")


def _spans(entries: Sequence[Compared], parts: Sequence[str]) -> list[float]:
    spreads = [entry[part] for entry in entries for part in parts]  # type: ignore[literal-required]
    return [spread[end] for spread in spreads if spread for end in ("low", "value", "high") if spread[end] is not None]


def _bounds(values: Sequence[float], margin: float) -> Bounds:
    """The least and greatest value with a margin; never empty."""
    known = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(known), max(known)
    if low == high:
        low, high = low - (abs(low) or 1) * 0.1, high + (abs(high) or 1) * 0.1
    return low - margin * (high - low), high + margin * (high - low)


def _legend(drawing: Drawing, series: Sequence[Series]) -> float:
    """Names beside short strokes, wrapping at the right edge; returns the height taken."""
    x, y = 0.0, 12.0
    shown = [one for one in series if one.name]
    for one in shown:
        words = fit(one.name, drawing.width - 30)
        if x and x + 26 + width_of(words) > drawing.width:
            x, y = 0.0, y + 18
        if one.line:
            drawing.line(x, y - 4, x + 18, y - 4, f"line s-{one.colour} {one.style}".rstrip())
        else:
            drawing.dot(x + 9, y - 4, 3.5, f"f-{one.colour}")
        drawing.text((x + 24, y), words, "f-ink")
        x += 24 + width_of(words) + 20
    return y + 8 if shown else 2.0


def axes(drawing: Drawing, label: Label, bounds: tuple[Bounds, Bounds], top: float, frame: Frame) -> Plot:
    """Horizontal hairlines with their numbers, a base line with its own, and the name of the x axis."""
    bottom = drawing.height - (38 if label.x else 22)
    rows, words = _ticks(bounds[1], min(6, max(3, int((bottom - top) / 45))), "y" in frame.powers)
    left = max((width_of(word) for word in words), default=0.0) + 10
    plot = Plot(drawing, *bounds, left, top, drawing.width - frame.margin, bottom, frame.powers)
    for value, word in zip(rows, words, strict=True):
        drawing.line(left, plot.y(value), plot.right, plot.y(value), "s-grid")
        drawing.text((left - 8, plot.y(value) + 4), word, "f-muted", "end")
    drawing.line(left, bottom, plot.right, bottom, "s-rule")
    columns, words = _ticks(bounds[0], max(2, int((plot.right - left) / 80)), "x" in frame.powers)
    for value, word in zip(columns, words, strict=True):
        drawing.line(plot.x(value), bottom, plot.x(value), bottom + 4, "s-rule")
        half = width_of(word) / 2
        at = min(max(plot.x(value), half), drawing.width - half)
        drawing.text((at, bottom + 17), word, "f-muted", "middle")
    if label.x:
        drawing.text((plot.right, bottom + 33), label.x, "f-muted", "end")
    return plot


def _ticks(bounds: Bounds, about: int, powers: bool) -> tuple[list[float], list[str]]:
    found = power_ticks(*bounds, about) if powers else ticks(*bounds, about)
    return found, power_words(found) if powers else tick_words(found)


def _marks(plot: Plot, frame: Frame) -> None:
    """The band and the mark, their words in the strip above the plot, on either side where they would meet."""
    drawing, y = plot.drawing, plot.top - 7
    if frame.band:
        x = plot.x(frame.band[0])
        drawing.box((x, plot.top, plot.right - x, plot.bottom - plot.top), "f-warn", 0.13)
        drawing.text((plot.right, y), fit(frame.band[1], plot.right - x), "f-warn strong", "end")
    if frame.mark:
        x = plot.x(frame.mark[0])
        drawing.line(x, plot.top - 2, x, plot.bottom, "s-ink dash")
        half = width_of(frame.mark[1]) / 2
        room = plot.right - (width_of(frame.band[1]) + SIZE if frame.band else 0)
        at = min(max(x, plot.left + half), room - half)
        drawing.text((at, y), frame.mark[1], "f-ink strong", "middle")
