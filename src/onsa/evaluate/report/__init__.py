"""The report: one HTML page that needs nothing but itself, made from a run's document."""

from __future__ import annotations

from onsa.evaluate.document import Document, verdict
from onsa.evaluate.report import answered, measured, plain, rewarded
from onsa.evaluate.report.page import Head, day, gain, outcome, page
from onsa.evaluate.report.view import Section
from onsa.evaluate.wording import duration
from onsa.spec.messages import language, say


def render(document: Document, lang: str | None = None) -> str:
    """The report of a run as one self-contained HTML page.

    Args:
        lang: ``en`` or ``ja``; the interface's language where not given.
    """
    lang = lang or language()
    run, asked = document["run"], document["asked"]
    head = Head(
        title=say("report.title", lang, model=asked["model"], task=asked["task"]),
        under=f"{run['id']} · {day(run['created'])} · {duration(run['seconds'], lang)}",
        outcome=outcome(document),
        sentence=verdict(document, lang),
        gain=gain(document),
        gained=say("report.verdict.gain", lang),
    )
    return page(head, _sections(document, lang), document["versions"]["onsa"], lang)


def _sections(document: Document, lang: str) -> list[Section]:
    before = (plain.asked, measured.comparison, rewarded.section, measured.learning)
    after = (plain.mistakes, plain.answers, plain.costs, plain.warnings, plain.recipe, plain.provenance)
    made = [make(document, lang) for make in before]
    made += answered.sections(document, lang)
    return made + [make(document, lang) for make in after]
