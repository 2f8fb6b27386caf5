"""How results look in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from onsa.app.console import show_problems, table
from onsa.evaluate.document import verdict
from onsa.evaluate.wording import metric_name, rate_words, short, signed
from onsa.programs.forecast import hours, parts
from onsa.programs.report import REPORT
from onsa.spec.messages import say

if TYPE_CHECKING:
    from rich.console import Console

    from onsa.programs.check import Checked
    from onsa.programs.lr_find import Found
    from onsa.programs.new import Proposal
    from onsa.programs.train import Finished

ANSWER_WIDTH = 300


def proposal(console: Console, proposed: Proposal, to: Path) -> None:
    """What was seen in the data, and the recipe that was written."""
    rows = [
        (column.name, say(f"look-{column.look.value}"), column.distinct, " | ".join(column.examples))
        for column in proposed.profile.columns
    ]
    names = [say("show-column"), say("show-look"), say("show-distinct"), say("show-examples")]
    console.print(table(names, rows, right=(2,)))
    console.print()
    console.print(proposed.text)
    console.print(say("new-written", to=to), soft_wrap=True)


def preflight(console: Console, checked: Checked) -> None:
    """Rows, problems, what trains in some rows, and the forecast."""
    from rich.text import Text

    prepared = checked.prepared
    sides = ", ".join(f"{say(f'side-{side}')} {len(rows)}" for side, rows in prepared.dataset.sides.items())
    console.print(say("check-rows", task=prepared.task.kind, sides=sides, language=prepared.dataset.language or "?"))
    show_problems(console, checked.problems)
    if any(trains for pieces in checked.views for _, trains in pieces):
        console.print(say("check-view"))
        for pieces in checked.views:
            line = Text()
            for text, trains in pieces:
                line.append(text, style="green" if trains else "dim")
            console.print(line)
    _forecast(console, checked)


def plan(console: Console, checked: Checked) -> None:
    """The resolved recipe, the passes and the forecast."""
    from rich.syntax import Syntax

    prepared = checked.prepared
    console.print(Syntax(prepared.recipe.dump(), "yaml", background_color="default"))
    choices = [(choice.key, choice.why) for choice in prepared.choices]
    if choices:
        console.print(table([say("plan-chosen"), say("plan-why")], choices))
        console.print()
    decisions = [
        (decision.name, "✓" if decision.applied else "–", decision.why) for decision in prepared.plan.decisions
    ]
    console.print(table([say("plan-pass"), "", say("plan-why")], decisions))
    console.print(say("plan-padding", share=f"{checked.padding:.1%}"))
    console.print()
    _forecast(console, checked)


def rate_found(console: Console, found: Found, plotted: Path) -> None:
    """What a range test suggests, how to take it, and where its plot is."""
    names = [say("lr-find-suggestion"), say("lr-find-steepest"), say("lr-find-tenth"), say("lr-find-steps")]
    row = [rate_words(rate) for rate in (found.suggestion, found.steepest, found.tenth)]
    console.print(table(names, [[*row, len(found.rates)]], right=(0, 1, 2, 3)))
    setting = " ".join(f"--set {override}" for override in found.overrides)
    console.print(say("lr-find-set", setting=setting), soft_wrap=True)
    console.print(say("lr-find-plot", path=plotted), soft_wrap=True)


def finished(console: Console, ended: Finished) -> None:
    """The verdict, base against tuned, answers side by side, and where the report is."""
    document = ended.document
    console.print()
    console.print(verdict(document), style="bold", soft_wrap=True)
    rows = []
    for entry in document["comparisons"]:
        base, tuned, gain = entry["base"], entry["tuned"], entry["difference"]
        rows.append(
            (
                metric_name(entry["metric"]),
                _ranged(base) if base else "–",
                _ranged(tuned),
                f"{signed(gain['value'], 3)}  [{signed(gain['low'], 3)}, {signed(gain['high'], 3)}]" if gain else "–",
            )
        )
    names = [say("show-metric"), say("show-base"), say("show-tuned"), say("show-difference")]
    if rows:
        console.print(table(names, rows, right=(1, 2, 3)))
    for answer in document["answers"]:
        console.print()
        for code, text in (
            ("answer-prompt", answer["prompt"]),
            ("answer-expected", answer["expected"]),
            ("answer-base", answer["base"]),
            ("answer-tuned", answer["tuned"]),
        ):
            if text is not None:
                shown = " ".join(text.split())
                shown = shown if len(shown) <= ANSWER_WIDTH else shown[: ANSWER_WIDTH - 1] + "…"
                console.print(f"{say(code):<9} {shown}", style="bold" if code == "answer-tuned" else "")
    console.print()
    console.print(say("show-report", path=ended.run.folder / REPORT), soft_wrap=True)
    console.print()


def _ranged(entry: object) -> str:
    assert isinstance(entry, dict)
    return f"{short(entry['value'])}  [{short(entry['low'])}, {short(entry['high'])}]"


def _forecast(console: Console, checked: Checked) -> None:
    seen = checked.forecast
    memory = ", ".join(f"{say(code)} {size / 1e9:.2f}" for code, size in parts(seen))
    total, free = f"{seen.memory / 1e9:.1f}", f"{seen.free / 1e9:.1f}"
    console.print(say("forecast-memory", total=total, free=free, parts=memory), soft_wrap=True)
    share = f"{seen.trainable / seen.parameters:.2%}"
    console.print(say("forecast-parameters", trainable=f"{seen.trainable:,}", all=f"{seen.parameters:,}", share=share))
    if seen.seconds is not None:
        rate = f"{seen.tokens_a_second:,.0f}"
        console.print(say("forecast-time", time=hours(seen.seconds), steps=checked.prepared.total, rate=rate))
