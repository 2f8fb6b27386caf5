"""Page: sections under a head, as one HTML page that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.resources import files
from typing import NamedTuple

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from onsa.evaluate.document import Document, headline
from onsa.evaluate.report.view import Section
from onsa.evaluate.wording import decimals, signed
from onsa.spec.messages import say


class Head(NamedTuple):
    """What stands above the sections: title and the line under it, and the verdict with its outcome, and its gain with
    what that is."""

    title: str
    under: str
    outcome: str
    sentence: str
    gain: str
    gained: str


def page(head: Head, sections: Iterable[Section], version: str, lang: str) -> str:
    """The page; sections that have nothing to show are left out."""
    here = files(__package__)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((here / "page.html.j2").read_text(encoding="utf-8"))
    return template.render(
        version=version,
        lang=lang,
        t=lambda code, **values: say(code, lang, **values),
        css=Markup((here / "page.css").read_text(encoding="utf-8")),
        sections=[section for section in sections if not section.empty],
        **head._asdict(),
    )


def outcome(document: Document) -> str:
    """The verdict's code: how its box is titled and coloured."""
    entry = headline(document)
    if entry is None or entry["tuned"]["value"] is None:
        return "unmeasured"
    if entry["difference"] is None:
        return "alone"
    return {True: "paid", False: "harmed", None: "open"}[entry["better"]]


def gain(document: Document) -> str:
    """The headline difference as a number to be seen from afar."""
    entry = headline(document)
    if entry is None or entry["difference"] is None:
        return ""
    spread = entry["difference"]
    return signed(spread["value"], decimals(spread["low"], spread["high"]))


def day(created: str) -> str:
    """The date and the minute of an ISO 8601 time."""
    return created[:16].replace("T", " ")
