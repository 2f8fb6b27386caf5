"""Learning rates as figures: of every group of parameters over a run, and the loss over a sweep of rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from onsa.evaluate.document import History
from onsa.evaluate.history import thinned
from onsa.evaluate.report.figures import Frame, Label, Plot, Series, axes, lines
from onsa.evaluate.report.svg import Drawing, fit, width_of
from onsa.evaluate.report.view import Figure, Table
from onsa.evaluate.wording import count, rate_words, short
from onsa.spec.messages import language, say

NAMED = 9  # groups that are named beside the figure; of more, those at the ends and the middle block
SHADES = 8  # colours of the ramp from the input to the output, as page.css has them
APART = 10.0  # times between the highest rates from which the axis goes in powers of ten
LOWEST = 50.0  # times below the smallest group's highest rate, where that axis ends
ROW = 15.0  # pixels a name takes


def by_group(history: History, lang: str) -> Figure | None:
    """The rate of every group over the steps, or nothing where there is one group."""
    told = [(point["step"], point["rates"]) for point in history["train"] if point.get("rates")]
    labels = sorted({label for _, rates in told for label in rates}, key=_place)
    highest = {label: max(rates.get(label, 0.0) for _, rates in told) for label in labels}
    labels = [label for label in labels if highest[label] > 0]
    if len(labels) < 2 or len(told) < 2:
        return None
    steps = [step for step, _ in told]
    series = []
    for label, colour in zip(labels, _colours(labels), strict=True):
        x, y = thinned(steps, [rates.get(label, 0.0) for _, rates in told])
        style = "dash" if label.endswith(", B") else ""
        series.append(Series(_name(label, highest[label], lang), x, y, colour, style=style))
    title = say("report.learning.rates", lang)
    describe = say("report.learning.rates-describe", lang, groups=len(labels), first=steps[0], last=steps[-1])
    what = Label("learning-rates", title, describe, say("report.learning.step", lang))
    shown = [told[n] for n in sorted({round(n * (len(told) - 1) / 19) for n in range(20)})]
    rows = [[count(step), *(short(rates.get(name, 0.0)) for name in labels)] for step, rates in shown]
    table = Table.of([what.x, *(group_name(name, lang) for name in labels)], rows)
    svg = _drawn(what, series, [highest[name] for name in labels])
    return Figure(svg, say("report.learning.rates-caption", lang), table, title)


def group_name(label: str, lang: str | None = None) -> str:
    """A group's label in the reader's language."""
    place, _, matrix = label.partition(", ")
    word, _, number = place.partition(" ")
    name = say(f"report.group.{word}", lang, number=number)
    return say("report.group-b", lang, name=name) if matrix else name


def _name(label: str, highest: float, lang: str) -> str:
    return f"{group_name(label, lang)} · {rate_words(highest)}"


def _place(label: str) -> tuple[int, int, bool]:
    """Groups from the input to the output; what is new comes last, and B after A."""
    word, _, number = label.partition(",")[0].partition(" ")
    return ("base", "embeddings", "block", "top", "new").index(word), int(number or 0), label.endswith(", B")


def _colours(labels: Sequence[str]) -> list[str]:
    """A ramp over the depth; a colour of its own for what is new."""
    depths = list(dict.fromkeys(_place(label)[:2] for label in labels if not label.startswith("new")))
    last = max(1, len(depths) - 1)
    return [
        "c2" if label.startswith("new") else f"r{round(depths.index(_place(label)[:2]) / last * (SHADES - 1))}"
        for label in labels
    ]


def _drawn(label: Label, series: Sequence[Series], highest: Sequence[float]) -> Markup:
    """Lines with their names on the right, each at the height of its highest rate."""
    named = _named(len(series))
    margin = max(width_of(series[n].name) for n in named) + 40
    powers = "y" if max(highest) > APART * min(highest) else ""
    frame = Frame(height=max(280, ROW * len(named) + 90), powers=powers, margin=margin)
    drawing = Drawing(frame.width, frame.height)
    least = min(y for one in series for y in one.y if y > 0)
    low = max(least / 1.5, min(highest) / LOWEST) if powers else 0.0
    bounds = (series[0].x[0], max(series[0].x[-1], series[0].x[0] + 1)), (low, max(highest) * (1.5 if powers else 1.06))
    plot = axes(drawing, label, bounds, 12.0, frame)
    for one in series:
        for track in _tracks(one, low):
            points = [(plot.x(x), plot.y(y)) for x, y in track]
            drawing.path(points, f"line thin s-{one.colour} {one.style}".rstrip())
            if track[0][0] > one.x[0]:  # it thaws here
                x, y = points[0]
                drawing.line(x, y - 5, x, y + 5, f"line s-{one.colour}")
    _names(plot, [(series[n], highest[n]) for n in named])
    return drawing.markup(label.name, label.title, label.description)


def _tracks(one: Series, low: float) -> list[list[tuple[float, float]]]:
    """The pieces of a line where its group trains, and that lie above the axis."""
    tracks: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(one.x, one.y, strict=True):
        if y >= low and y > 0:
            tracks[-1].append((x, y))
        elif tracks[-1]:
            tracks.append([])
    return [track for track in tracks if len(track) > 1]


def _named(groups: int) -> list[int]:
    """Which groups are named: all, or the ends, their neighbours and the middle."""
    if groups <= NAMED:
        return list(range(groups))
    return sorted({0, 1, groups // 2, groups - 3, groups - 2, groups - 1})


def _names(plot: Plot, named: Sequence[tuple[Series, float]]) -> None:
    """Names with leaders to the height of their highest rate, spread where they would meet."""
    rising = sorted(named, key=lambda entry: entry[1])  # from the bottom up
    heights: list[float] = []
    for _, rate in rising:
        heights.append(min(plot.y(rate), heights[-1] - ROW if heights else plot.bottom))
    for n in range(len(heights) - 1, -1, -1):  # what was pushed over the top comes down again
        ceiling = plot.top if n == len(heights) - 1 else heights[n + 1] + ROW
        heights[n] = max(heights[n], ceiling)
    for (one, rate), y in zip(rising, heights, strict=True):
        peak = one.x[max(range(len(one.y)), key=lambda n: one.y[n])]
        plot.drawing.line(plot.x(peak), plot.y(rate), plot.right, plot.y(rate), f"faint dash s-{one.colour}")
        leader = [(plot.right, plot.y(rate)), (plot.right + 12, y), (plot.right + 20, y)]
        plot.drawing.path(leader, f"s-{one.colour}")
        plot.drawing.text((plot.right + 25, y + 4), fit(one.name, plot.drawing.width - plot.right - 25), "f-ink")


def sweep_page(model: str, found: Mapping[str, Any], lang: str | None = None) -> str:
    """A range test as one self-contained HTML page: the loss over the rate, and what it suggests.

    Args:
        found: ``rates``, ``losses`` and ``smooth`` of each step, the rates ``steepest``, ``tenth`` and ``suggestion``,
            and the overrides in ``set``.
    """
    lang = lang or language()
    here = files(__package__)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((here / "sweep.html.j2").read_text(encoding="utf-8"))
    return template.render(
        lang=lang,
        css=Markup((here / "page.css").read_text(encoding="utf-8")),
        title=say("report.sweep.title", lang, model=model),
        sentence=say("report.sweep.sentence", lang, rate=rate_words(found["suggestion"])),
        setting=" ".join(f"--set {override}" for override in found["set"]),
        svg=_sweep(found, lang),
        caption=say("report.sweep.caption", lang),
    )


def _sweep(found: Mapping[str, Any], lang: str) -> Markup:
    rates, smooth, losses = found["rates"], found["smooth"], found["losses"]
    least = smooth.index(min(smooth))
    low, high = min(losses[: least + 1]), max(smooth[: least + 1])
    low, high = low - 0.06 * (high - low), high + 0.3 * (high - low)  # above, the loss runs away
    end = next((n + 1 for n in range(least, len(rates)) if smooth[n] > high), len(rates))

    def line(code: str, values: Sequence[float], colour: str, style: str = "") -> Series:
        inside = [min(max(value, low), high) for value in values[:end]]
        return Series(say(f"report.sweep.{code}", lang), rates[:end], inside, colour, style=style)

    def dot(code: str, rate: float, colour: str) -> Series:
        at = min(range(len(rates)), key=lambda n: abs(rates[n] / rate - 1))
        words = say(f"report.sweep.{code}", lang, rate=rate_words(rate))
        return Series(words, [rates[at]], [smooth[at]], colour, False, [5.0])

    series = [
        dot("steepest", found["steepest"], "c2"),
        dot("tenth", found["tenth"], "c3"),
        line("smooth", smooth, "tuned"),
        line("loss", losses, "base", "faint"),
    ]
    words = say("report.sweep.suggested", lang, rate=rate_words(found["suggestion"]))
    frame = Frame(x=(rates[0], rates[-1]), y=(low, high), mark=(found["suggestion"], words), powers="x")
    describe = say("report.sweep.describe", lang, low=rate_words(rates[0]), high=rate_words(rates[-1]))
    what = say("report.learning.loss", lang)
    label = Label("sweep", what, describe, say("report.learning.rate", lang), what)
    return lines(label, series, frame)
