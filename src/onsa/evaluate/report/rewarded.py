"""The section on rewards: what a policy learnt from its own answers, for a reader who has never heard of PPO."""

from __future__ import annotations

from dataclasses import replace

from onsa.evaluate.document import Document, TrainPoint
from onsa.evaluate.history import smooth, thinned
from onsa.evaluate.report.figures import Frame, Label, Series, lines
from onsa.evaluate.report.measured import small
from onsa.evaluate.report.view import Fact, Figure, Samples, Section, Table
from onsa.evaluate.wording import count, short
from onsa.spec.messages import say

PLAIN = ("kl", "entropy", "clip_share", "length", "gap", "value_loss")


def section(document: Document, lang: str) -> Section:
    """Rewards over the steps, how far the policy went and how sure it grew, alarms, and some answers over time."""
    title = say("report.section.rewards", lang)
    points = [point for point in document["history"]["train"] if "reward" in point.get("figures", {})]
    if not points:
        return Section("rewards", title)
    notes = [say("report.rewards.explain", lang)]
    notes += [say(f"report.rewards.alarm-{code}", lang) for code in document.get("alarms", [])]
    figures = [[_rewards(document, points, lang)]]
    curves = [figure for name in PLAIN if (figure := _curve(points, name, lang)) is not None]
    figures += [curves[start : start + 2] for start in range(0, len(curves), 2)]
    return Section("rewards", title, notes=notes, figures=figures, samples=_samples(document, lang))


def _rewards(document: Document, points: list[TrainPoint], lang: str) -> Figure:
    steps = [point["step"] for point in points]
    x, y = thinned(steps, [point["figures"]["reward"] for point in points])
    noisy = len(y) > 12
    series = []
    held = [(one["step"], one["metrics"].get("reward")) for one in document["history"]["evaluations"]]
    known = [(step, value) for step, value in held if value is not None]
    if known:
        words = say("report.rewards.validation", lang)
        at, values = [step for step, _ in known], [value for _, value in known]
        series.append(Series(words, at, values, "tuned", radius=[3.0] * len(known)))
    words = say("report.rewards.train", lang)
    series.append(Series(words, x, smooth(y, max(3, len(y) // 15)) if noisy else y, "base"))
    if noisy:
        series.append(Series("", x, y, "base", style="faint"))
    what = say("report.rewards.reward", lang)
    describe = say("report.learning.describe", lang, what=what, first=steps[0], last=steps[-1])
    label = Label("rewards-reward", what, describe, say("report.learning.step", lang), what)
    return Figure(lines(label, series, Frame()), say("report.rewards.reward-caption", lang), _table(points, lang))


def _curve(points: list[TrainPoint], name: str, lang: str) -> Figure | None:
    known = [(point["step"], point["figures"][name]) for point in points if name in point["figures"]]
    if len(known) < 2 or not any(value for _, value in known):
        return None
    title = say(f"report.rewards.{name}", lang)
    drawn = small(f"rewards-{name}", title, known, "base", lang)
    return replace(drawn, caption=say(f"report.rewards.{name}-caption", lang))


def _table(points: list[TrainPoint], lang: str) -> Table:
    names = list(points[-1]["figures"])
    shown = [points[n] for n in sorted({round(n * (len(points) - 1) / 19) for n in range(20)})]
    rows = [[count(point["step"]), *(short(point["figures"].get(name)) for name in names)] for point in shown]
    return Table.of([say("report.learning.step", lang), *(_name(name, lang) for name in names)], rows)


def _name(name: str, lang: str) -> str:
    """A figure in the reader's language; a reward of the user's keeps its name."""
    return say(f"report.rewards.{name}", lang) if name in (*PLAIN, "reward", "ended") else name


def _samples(document: Document, lang: str) -> list[Samples]:
    """What held-out prompts were answered at each evaluation."""
    found: dict[str, list[Fact]] = {}
    for one in document["history"]["evaluations"]:
        name = say("report.rewards.at-step", lang, step=one["step"])
        for prompt, answer in one.get("said", {}).items():
            found.setdefault(prompt, []).append(Fact(name, answer or say("report.answers.empty", lang)))
    return [Samples(prompt, said) for prompt, said in found.items()]
