"""Sections of figures for every task: base against tuned, and the learning curves."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from onsa.evaluate.document import Compared, Document, History, Range
from onsa.evaluate.history import overfitting, smooth, thinned, train_losses, validation_losses
from onsa.evaluate.report import rates
from onsa.evaluate.report.figures import Frame, Label, Series, intervals, lines
from onsa.evaluate.report.svg import width_of
from onsa.evaluate.report.view import Cell, Figure, Section, Table
from onsa.evaluate.wording import count, decimals, fixed, metric_name, short, signed
from onsa.spec.messages import say

# Such metrics never share a scale with others.
OPEN_SCALE = frozenset({"loss", "perplexity", "margin", "mae", "mse", "rmse"})
SMALL = Frame(width=344, height=190)


def comparison(document: Document, lang: str) -> Section:
    """Every metric of base and tuned with intervals: those between 0 and 1 on one scale, each other on its own."""
    entries = [entry for entry in document["comparisons"] if entry["tuned"]["value"] is not None]
    first = document["verdict"]["metric"]
    entries.sort(key=lambda entry: entry["metric"] != first)
    shares = [entry for entry in entries if _is_share(entry)]
    groups = [shares] if shares else []
    groups += [[entry] for entry in entries if entry not in shares]
    groups.sort(key=lambda group: group[0]["metric"] != first)
    words = (say("report.base", lang), say("report.tuned", lang), say("report.verdict.gain", lang))
    gutter = min(max((width_of(metric_name(one["metric"], lang), 13) for one in entries), default=0.0) + 24, 200)
    figures = []
    for place, group in enumerate(groups):
        names = [metric_name(entry["metric"], lang) for entry in group]
        describe = say("report.compare.describe", lang, metrics=", ".join(names))
        label = Label(f"compare-{place}", say("report.section.comparison", lang), describe)
        last = place == len(groups) - 1 and any(entry["difference"] for entry in entries)
        caption = say("report.compare.caption", lang) if last else ""
        table = _comparison_table(group, lang)
        figures.append([Figure(intervals(label, group, names, words, gutter), caption, table)])
    note = say("report.legend-interval", lang, rows=count(document["verdict"]["rows"]))
    return Section("comparison", say("report.section.comparison", lang), notes=[note], figures=figures)


def _is_share(entry: Compared) -> bool:
    ends = [part[end] for part in (entry["base"], entry["tuned"]) if part for end in ("low", "high")]
    return entry["metric"] not in OPEN_SCALE and all(end is None or -0.001 <= end <= 1.001 for end in ends)


def _comparison_table(entries: Sequence[Compared], lang: str) -> Table:
    def spread(part: Range | None, places: int, plus: bool = False) -> str:
        if part is None:
            return "–"
        write = partial(signed if plus else fixed, places=places)
        return f"{write(part['value'])}  ({write(part['low'])} – {write(part['high'])})"

    rows = []
    for entry in entries:
        scale = entry["difference"] or entry["tuned"]
        places = decimals(scale["low"], scale["high"])
        name = metric_name(entry["metric"], lang)
        if entry["lower_is_better"]:
            name += f" ({say('report.compare.lower', lang)})"
        says = {True: "better", False: "worse", None: "open"}[entry["better"]]
        tone = {True: "good", False: "bad", None: ""}[entry["better"]]
        rows.append(
            [
                Cell(name),
                Cell(spread(entry["base"], places)),
                Cell(spread(entry["tuned"], places)),
                Cell(spread(entry["difference"], places, plus=True)),
                Cell(say(f"report.compare.{says}", lang) if entry["difference"] else "–", tone=tone),
            ]
        )
    head = [say(f"report.{code}", lang) for code in ("compare.metric", "base", "tuned", "compare.difference")]
    return Table([*head, say("report.compare.says", lang)], rows)


def learning(document: Document, lang: str) -> Section:
    """Loss of train and validation with the best checkpoint and overfitting, then small ones, and the rate of every
    group where there are several."""
    history = document["history"]
    rewarded = any("reward" in point.get("figures", {}) for point in history["train"])  # its loss says nothing
    losses = not rewarded and (train_losses(history) or validation_losses(history))
    figures = [[_losses(history, lang)]] if losses else []
    small = [_validation_metric(history, document["verdict"]["metric"], lang)]
    grouped = rates.by_group(history, lang)
    single = [] if grouped else [("rate", "lr")]
    for name, field in (*single, ("norm", "grad_norm"), ("speed", "tokens_per_s")):
        small.append(_of_steps(history, name, field, lang))
    drawn = [figure for figure in small if figure is not None]
    if drawn:
        figures.append(drawn)
    if grouped:
        figures.append([grouped])
    return Section("learning", say("report.section.learning", lang), notes=_learned(history, lang), figures=figures)


def _learned(history: History, lang: str) -> list[str]:
    """What the curves say, in words: where overfitting began, and which checkpoint was kept."""
    since, best = overfitting(history), history["best_step"]
    if since is not None:
        code = "overfit-note-open" if best is None else "overfit-note"
        return [say(f"report.learning.{code}", lang, step=since, best=best)]
    notes = []
    if best is not None and history["best_metric"]:
        metric = metric_name(history["best_metric"], lang)
        notes.append(say("report.learning.best-note", lang, step=best, metric=metric))
    if len(validation_losses(history)) > 2:
        notes.append(say("report.learning.no-overfit-note", lang))
    return notes


def _losses(history: History, lang: str) -> Figure:
    series, train, validation = [], train_losses(history), validation_losses(history)
    if validation:
        steps, losses = [step for step, _ in validation], [loss for _, loss in validation]
        words = say("report.learning.validation", lang)
        series.append(Series(words, steps, losses, "tuned", radius=[3.0] * len(steps)))
    if train:
        x, y = thinned([step for step, _ in train], [loss for _, loss in train])
        noisy = len(y) > 12
        words = say("report.learning.train-smooth" if noisy else "report.learning.train", lang)
        series.append(Series(words, x, smooth(y, max(3, len(y) // 15)) if noisy else y, "base"))
        if noisy:
            series.append(Series("", x, y, "base", style="faint"))
    best, worse = history["best_step"], overfitting(history)
    frame = Frame(
        mark=None if best is None else (best, say("report.learning.best", lang, step=best)),
        band=None if worse is None else (worse, say("report.learning.overfit", lang)),
    )
    what, ends = say("report.learning.loss", lang), [step for step, _ in (*train, *validation)]
    describe = say("report.learning.describe", lang, what=what, first=min(ends), last=max(ends))
    label = Label("learning-loss", what, describe, say("report.learning.step", lang), what)
    return Figure(lines(label, series, frame), table=_evaluations(history, lang))


def _evaluations(history: History, lang: str) -> Table:
    """Train loss as the mean since the evaluation before, and every validation metric."""
    names = list(dict.fromkeys(name for entry in history["evaluations"] for name in entry["metrics"]))
    head = [say(f"report.learning.{code}", lang) for code in ("step", "epoch", "train")]
    rows, before = [], 0
    for entry in history["evaluations"]:
        losses = [loss for step, loss in train_losses(history) if before < step <= entry["step"]]
        mean = short(sum(losses) / len(losses)) if losses else "–"
        metrics = [short(entry["metrics"].get(name)) for name in names]
        best = f" ({say('report.learning.best-short', lang)})" if entry["step"] == history["best_step"] else ""
        rows.append([f"{count(entry['step'])}{best}", f"{entry['epoch']:.2f}", mean, *metrics])
        before = entry["step"]
    return Table.of([*head, *(metric_name(name, lang) for name in names)], rows)


def _validation_metric(history: History, metric: str, lang: str) -> Figure | None:
    if metric == "loss":
        return None
    found = [(entry["step"], entry["metrics"].get(metric)) for entry in history["evaluations"]]
    known = [(step, value) for step, value in found if value is not None]
    if len(known) < 2:
        return None
    title = say("report.learning.on-validation", lang, metric=metric_name(metric, lang))
    return small("learning-metric", title, known, "tuned", lang)


def _of_steps(history: History, name: str, field: str, lang: str) -> Figure | None:
    found = [(point["step"], point[field]) for point in history["train"]]  # type: ignore[literal-required]
    known = [(step, value) for step, value in found if value is not None]
    if len(known) < 2:
        return None
    return small(f"learning-{name}", say(f"report.learning.{name}", lang), known, "base", lang)


def small(name: str, title: str, points: list[tuple[int, float]], colour: str, lang: str) -> Figure:
    """A small figure of one curve over the steps."""
    x, y = thinned([step for step, _ in points], [value for _, value in points], 120)
    describe = say("report.learning.describe", lang, what=title, first=points[0][0], last=points[-1][0])
    label = Label(name, title, describe, say("report.learning.step", lang))
    dots = [2.5] * len(x) if colour == "tuned" else ()
    shown = [points[n] for n in sorted({round(n * (len(points) - 1) / 19) for n in range(20)})]
    table = Table.of([label.x, title], [[count(step), short(value)] for step, value in shown])
    return Figure(lines(label, [Series("", x, y, colour, radius=dots)], SMALL), table=table, title=title)
