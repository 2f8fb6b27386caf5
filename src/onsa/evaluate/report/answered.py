"""Sections of figures that depend on what is predicted: classes, labels or numbers."""

from __future__ import annotations

import itertools

import numpy as np

from onsa.evaluate.document import (
    Calibration,
    Classification,
    ClassScores,
    Curve,
    Document,
    Multilabel,
    Pair,
    Regression,
)
from onsa.evaluate.report.figures import Frame, Label, Series, bars, heat, lines
from onsa.evaluate.report.view import Cell, Figure, Section, Table
from onsa.evaluate.wording import count, fixed, short, signed
from onsa.spec.messages import say

COLOURS = 6  # curves told apart by colour; with more classes only the weakest are
WEAKEST = 3
MOST_CLASSES = 30  # a larger confusion matrix cannot be read


def sections(document: Document, lang: str) -> list[Section]:
    """The sections of whatever this document's task predicts."""
    found: list[Section] = []
    if classes := document.get("classification"):
        found += [_confusion(classes, lang), _per_class(classes["per_class"], "classes", lang)]
        found += _probabilities(classes, lang)
    if labels := document.get("multilabel"):
        found += [_per_label(labels, lang), *_probabilities(labels, lang)]
    if numbers := document.get("regression"):
        found.append(_regression(numbers, lang))
    return found


def _confusion(classes: Classification, lang: str) -> Section:
    pair, labels = classes["confusion"], classes["labels"]
    tuned = np.asarray(pair["tuned"])
    keep, notes = np.arange(len(labels)), [say("report.confusion.caption", lang)]
    if len(labels) > MOST_CLASSES:
        wrong = tuned.sum(0) + tuned.sum(1) - 2 * np.diag(tuned)
        keep = np.sort(np.argsort(-wrong, kind="stable")[:MOST_CLASSES])
        notes.append(say("report.confusion.cut", lang, shown=MOST_CLASSES, all=len(labels)))
    shown = [labels[place] for place in keep]
    figures = []
    for name, counts in (("tuned", pair["tuned"]), ("base", pair["base"])):
        if counts is None:
            continue
        matrix = np.asarray(counts)
        words = {"right": int(np.trace(matrix)), "rows": int(matrix.sum())}
        describe = say("report.confusion.describe", lang, classes=len(labels), **words)
        axes = [say(f"report.confusion.{axis}", lang) for axis in ("predicted", "right")]
        title = say(f"report.{name}", lang)
        part: list[list[int]] = matrix[np.ix_(keep, keep)].tolist()
        svg = heat(Label(f"confusion-{name}", title, describe, *axes), part, shown)
        rows = [[label, *map(count, row)] for label, row in zip(shown, part, strict=True)]
        corner = f"{axes[1]} ↓  {axes[0]} →"
        figures.append(Figure(svg, table=Table.of([corner, *shown], rows), title=title))
    beside = [figures] if len(labels) <= 6 else [[figure] for figure in figures]
    return Section("confusion", say("report.section.confusion", lang), notes=notes, figures=beside)


def _per_class(pair: Pair[list[ClassScores]], name: str, lang: str) -> Section:
    first = "label" if name == "classes" else "one-label"
    codes = [first, "precision", "recall", "f1", *(["f1-base", "change"] if pair["base"] else []), "support"]
    return Section(
        name,
        say(f"report.section.{name}", lang),
        table=Table([say(f"report.class.{code}", lang) for code in codes], _score_rows(pair)),
    )


def _score_rows(pair: Pair[list[ClassScores]]) -> list[list[Cell]]:
    before = {scores["label"]: scores["f1"] for scores in pair["base"] or []}
    rows = []
    for scores in pair["tuned"]:
        row = [Cell(scores["label"]), Cell(fixed(scores["precision"], 2)), Cell(fixed(scores["recall"], 2))]
        row.append(Cell(fixed(scores["f1"], 2), share=scores["f1"]))
        if pair["base"] is not None:
            base = before.get(scores["label"])
            change = None if base is None else scores["f1"] - base
            tone = "" if change is None or abs(change) < 0.005 else "good" if change > 0 else "bad"
            row += [Cell(fixed(base, 2)), Cell(signed(change, 2), tone=tone)]
        rows.append([*row, Cell(count(scores["support"]))])
    return rows


def _per_label(labels: Multilabel, lang: str) -> Section:
    """Scores a label, and behind them how each label was right and wrong."""
    section = _per_class(labels["per_class"], "labels", lang)
    assert section.table is not None
    codes = ("right-yes", "wrong-yes", "wrong-no", "right-no")
    head = [*section.table.head, *(say(f"report.class.{code}", lang) for code in codes)]
    rows = [
        [*row, *(Cell(count(value)) for value in counts)]
        for row, counts in zip(section.table.rows, labels["counts"]["tuned"], strict=True)
    ]
    return Section(section.name, section.title, table=Table(head, rows))


def _probabilities(figures: Classification | Multilabel, lang: str) -> list[Section]:
    return [
        _curves(figures["roc"], "roc", lang),
        _curves(figures["pr"], "pr", lang),
        _calibration(figures["calibration"], lang),
    ]


def _curves(pair: Pair[list[Curve]], name: str, lang: str) -> Section:
    title, curves = say(f"report.section.{name}", lang), pair["tuned"]
    if not curves:
        return Section(name, title)
    area = say(f"report.curve.area-{name}", lang)
    describe = say("report.curve.describe", lang, what=title, curves=len(curves), area=fixed(curves[0]["area"], 3))
    axes = ("false-rate", "true-rate") if name == "roc" else ("recall", "precision")
    label = Label(name, title, describe, *(say(f"report.curve.{axis}", lang) for axis in axes))
    frame = Frame(width=560, height=520, x=(0.0, 1.0), y=(0.0, 1.02), diagonal=name == "roc")
    svg = lines(label, _curve_series(pair, lang), frame)
    rates = (0.01, 0.05, 0.1) if name == "roc" else (0.5, 0.8, 0.95)
    code = "report.curve.at-false" if name == "roc" else "report.curve.at-recall"
    head = [say("report.class.label", lang), area, *(say(code, lang, rate=f"{rate:.0%}") for rate in rates)]
    rows = [
        [
            curve["label"] or say("report.curve.macro", lang),
            fixed(curve["area"], 3),
            *(f"{float(np.interp(rate, curve['x'], curve['y'])):.0%}" for rate in rates),
        ]
        for curve in curves
    ]
    figure = Figure(svg, say(f"report.curve.{name}-caption", lang), Table.of(head, rows))
    return Section(name, title, figures=[[figure]])


def _curve_series(pair: Pair[list[Curve]], lang: str) -> list[Series]:
    """Few classes each in a colour; of many, the weakest in a colour and the others grey. The macro average on top."""
    curves = [curve for curve in pair["tuned"] if curve["label"] is not None]
    coloured = curves
    if len(curves) > COLOURS:
        coloured = sorted(curves, key=lambda curve: curve["area"])[:WEAKEST]
    series, others = [], [curve for curve in curves if curve not in coloured]
    if (macro := _macro(pair["tuned"])) is not None and len(curves) > 1:
        words = f"{say('report.curve.macro', lang)} {macro['area']:.3f}"
        series.append(Series(words, macro["x"], macro["y"], "ink"))
    for place, curve in enumerate(coloured):
        words = f"{curve['label']} {curve['area']:.3f}"
        series.append(Series(words, curve["x"], curve["y"], f"c{place + 1}", style="thin" if len(curves) > 2 else ""))
    if (before := _macro(pair["base"] or [])) is not None:
        words = f"{say('report.curve.base-macro', lang)} {before['area']:.3f}"
        series.append(Series(words, before["x"], before["y"], "base", style="dash"))
    for place, curve in enumerate(others):
        words = "" if place else say("report.curve.others", lang)
        series.append(Series(words, curve["x"], curve["y"], "rule", style="thin"))
    return series


def _macro(curves: list[Curve]) -> Curve | None:
    return next((curve for curve in curves if curve["label"] is None), curves[0] if len(curves) == 1 else None)


def _calibration(pair: Pair[Calibration], lang: str) -> Section:
    title, rows = say("report.section.calibration", lang), []
    series: list[Series] = []
    for name, found in (("base", pair["base"]), ("tuned", pair["tuned"])):
        if found is None or not found["bins"]:
            continue
        most = max(one["rows"] for one in found["bins"])
        model = say(f"report.{name}", lang)
        words = say("report.calibration.ece", lang, model=model, ece=fixed(found["ece"], 3))
        x, y = [one["confidence"] for one in found["bins"]], [one["accuracy"] for one in found["bins"]]
        radius = [1.5 + 6.5 * (one["rows"] / most) ** 0.5 for one in found["bins"]]
        series = [Series(words, x, y, name, line=False, radius=radius), Series("", x, y, name, style="faint"), *series]
        rows += [
            [
                f"{model}, {one['low']:.1f} – {one['high']:.1f}",
                fixed(one["confidence"], 3),
                fixed(one["accuracy"], 3),
                count(one["rows"]),
            ]
            for one in found["bins"]
        ]
    describe = say("report.calibration.describe", lang, ece=fixed(pair["tuned"]["ece"], 3))
    axes = [say(f"report.calibration.{axis}", lang) for axis in ("confidence", "accuracy")]
    frame = Frame(width=560, height=480, x=(0.0, 1.0), y=(0.0, 1.02), diagonal=True)
    svg = lines(Label("calibration", title, describe, *axes), series, frame)
    head = [say("report.calibration.bin", lang), *axes, say("report.calibration.rows", lang)]
    return Section(
        "calibration", title, figures=[[Figure(svg, say("report.calibration.caption", lang), Table.of(head, rows))]]
    )


def _regression(numbers: Regression, lang: str) -> Section:
    """Predicted against right numbers, and the histogram of residuals."""

    def words(code: str) -> str:
        return say(f"report.regression.{code}", lang)

    dots, heights, points = [], [], numbers["scatter"]["tuned"]
    for name, pairs, histogram in (
        ("base", numbers["scatter"]["base"], numbers["residuals"]["base"]),
        ("tuned", points, numbers["residuals"]["tuned"]),
    ):
        if pairs is None or histogram is None:
            continue
        x, y, model = [right for right, _ in pairs], [said for _, said in pairs], say(f"report.{name}", lang)
        dots.append(Series(model, x, y, name, line=False, radius=[3.0] * len(x)))
        heights.append((Series(model, (), [float(n) for n in histogram["counts"]], name), name == "tuned"))
    edges = numbers["residuals"]["tuned"]["edges"]
    title = say("report.section.regression", lang)
    describe = say("report.regression.describe-scatter", lang, rows=len(points))
    scatter = Label("scatter", title, describe, words("target"), words("predicted"))
    frame = Frame(width=560, height=480, diagonal=True)
    rows = [[short(right), short(said)] for right, said in points[:: max(1, len(points) // 40)]]
    first = Figure(
        lines(scatter, dots[::-1], frame),
        words("scatter-caption"),
        Table.of([words("target"), words("predicted")], rows),
    )
    residuals = Label(
        "residuals", words("residuals"), words("describe-residuals"), words("residual"), words("residuals")
    )
    head = [words("from"), words("to"), *(one.name for one, _ in heights)]
    behind = [
        [short(low), short(high), *(count(one.y[place]) for one, _ in heights)]
        for place, (low, high) in enumerate(itertools.pairwise(edges))
    ]
    svg = bars(residuals, edges, heights[::-1], Frame(width=560, height=240))
    second = Figure(svg, words("residual-caption"), Table.of(head, behind))
    return Section("regression", title, figures=[[first], [second]])
