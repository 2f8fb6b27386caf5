"""The report: one HTML page that needs nothing but itself, made from a run's document."""

from __future__ import annotations

from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from onsa.evaluate.document import Document, headline, verdict
from onsa.evaluate.report import answered, measured, plain, rewarded
from onsa.evaluate.report.view import Section
from onsa.evaluate.wording import decimals, duration, signed
from onsa.spec.messages import language, say


def render(document: Document, lang: str | None = None) -> str:
    """The report of a run as one self-contained HTML page.

    Args:
        lang: ``en`` or ``ja``; the interface's language where not given.
    """
    lang = lang or language()
    here = files(__package__)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((here / "page.html.j2").read_text(encoding="utf-8"))
    run, asked = document["run"], document["asked"]
    return template.render(
        document=document,
        lang=lang,
        t=lambda code, **values: say(code, lang, **values),
        css=Markup((here / "page.css").read_text(encoding="utf-8")),
        title=say("report.title", lang, model=asked["model"], task=asked["task"]),
        under=f"{run['id']} · {_day(run['created'])} · {duration(run['seconds'], lang)}",
        outcome=_outcome(document),
        sentence=verdict(document, lang),
        gain=_gain(document),
        sections=[section for section in _sections(document, lang) if not section.empty],
    )


def _sections(document: Document, lang: str) -> list[Section]:
    before = (plain.asked, measured.comparison, rewarded.section, measured.learning)
    after = (plain.mistakes, plain.answers, plain.costs, plain.warnings, plain.recipe, plain.provenance)
    made = [make(document, lang) for make in before]
    made += answered.sections(document, lang)
    return made + [make(document, lang) for make in after]


def _outcome(document: Document) -> str:
    """The verdict's code: how its box is titled and coloured."""
    entry = headline(document)
    if entry is None or entry["tuned"]["value"] is None:
        return "unmeasured"
    if entry["difference"] is None:
        return "alone"
    return {True: "paid", False: "harmed", None: "open"}[entry["better"]]


def _gain(document: Document) -> str:
    """The headline difference as a number to be seen from afar."""
    entry = headline(document)
    if entry is None or entry["difference"] is None:
        return ""
    spread = entry["difference"]
    return signed(spread["value"], decimals(spread["low"], spread["high"]))


def _day(created: str) -> str:
    """The date and the minute of an ISO 8601 time."""
    return created[:16].replace("T", " ")
