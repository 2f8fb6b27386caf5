"""The report of three stages, for a reader who has never heard of them."""

from __future__ import annotations

from collections.abc import Mapping

from markupsafe import Markup

from onsa.evaluate.document import Compared, Document, Range
from onsa.evaluate.report import rewarded
from onsa.evaluate.report.page import Head, day, page
from onsa.evaluate.report.view import Fact, Samples, Section
from onsa.evaluate.wording import count, duration, fixed
from onsa.spec.messages import language, say

IMITATED, GRADED, PRACTISED = "sft", "reward", "ppo"


def render_stages(told: Mapping[str, tuple[Document, str]], lang: str | None = None) -> str:
    """The stages of a model as one page.

    Args:
        told: of the stages ``sft``, ``reward`` and ``ppo`` the document, and where its own report is.
        lang: ``en`` or ``ja``; the interface's language where not given.
    """
    lang = lang or language()
    documents = {name: document for name, (document, _) in told.items()}
    last = documents[PRACTISED]
    won = _entry(last, "win_rate")
    spent = sum(one["run"]["seconds"] for one in documents.values())
    head = Head(
        title=say("staged.title", lang, model=documents[IMITATED]["asked"]["model"]),
        under=f"{day(last['run']['created'])} · {duration(spent, lang)}",
        outcome=_outcome(won),
        sentence=staged_verdict(last, lang),
        gain="" if won is None else f"{won['tuned']['value']:.0%}",
        gained=say("staged.gained", lang),
    )
    sections = [_story(documents, lang)]
    sections += [_stage(name, *told[name], lang) for name in (IMITATED, GRADED, PRACTISED)]
    sections += [rewarded.section(last, lang), _answers(documents, lang)]
    return page(head, sections, last["versions"]["onsa"], lang)


def _outcome(won: Compared | None) -> str:
    """How the verdict is coloured: by whether the judge prefers what came of it, on held-out prompts."""
    if won is None or won["tuned"]["low"] is None or won["tuned"]["high"] is None:
        return "unmeasured"
    return "paid" if won["tuned"]["low"] > 0.5 else "harmed" if won["tuned"]["high"] < 0.5 else "open"


def staged_verdict(last: Document, lang: str | None = None) -> str:
    """What came of the stages, in a sentence.

    Args:
        last: of the last one.
    """
    won = _entry(last, "win_rate")
    outcome = _outcome(won)
    if won is None or outcome == "unmeasured":
        return say("staged.verdict-unmeasured", lang)
    prompts = last["judged"]["prompts"] if "judged" in last else 0
    return say(f"staged.verdict-{outcome}", lang, prompts=prompts, **_spread(won["tuned"], share=True))


def _story(documents: Mapping[str, Document], lang: str) -> Section:
    """What the three stages are, in order."""
    rows = {name: count(document["figures"]["rows"].get("train", 0)) for name, document in documents.items()}
    notes = [say(f"staged.story-{name}", lang, rows=rows[name]) for name in (IMITATED, GRADED, PRACTISED)]
    facts = [Fact(say("staged.rows", lang, stage=say(f"staged.{name}", lang)), rows[name]) for name in documents]
    return Section("story", say("staged.story", lang), notes=notes, facts=facts)


def _stage(name: str, document: Document, link: str, lang: str) -> Section:
    """A stage's own measure before and after, in words, and where its report is."""
    metric = document["verdict"]["metric"]
    entry = _entry(document, metric)
    notes = []
    if entry is not None:
        after = _spread(entry["tuned"])
        values = {"low": after["low"], "high": after["high"], "after": after["value"]}
        values["rows"] = count(document["verdict"]["rows"])
        notes.append(say(f"staged.measured-{name}", lang, **values))
        if entry["base"] is not None:
            notes.append(say(f"staged.before-{name}", lang, before=_spread(entry["base"])["value"]))
    facts = [
        Fact(say("report.costs.time", lang), duration(document["run"]["seconds"], lang)),
        Fact(say("staged.report", lang), Markup('<a href="{}">{}</a>').format(link, document["run"]["id"])),
    ]
    return Section(name, say(f"staged.{name}", lang), notes=notes, facts=facts)


def _answers(documents: Mapping[str, Document], lang: str) -> Section:
    """Held-out prompts with what base, imitator and the last model answer."""
    practised = {one["prompt"]: one for one in documents[PRACTISED]["answers"]}
    samples = []
    for first in documents[IMITATED]["answers"]:
        last = practised.get(first["prompt"])
        said = [("base", first["base"]), (IMITATED, first["tuned"]), (PRACTISED, last["tuned"] if last else None)]
        told = [
            Fact(say(f"staged.said-{name}", lang), text or say("report.answers.empty", lang))
            for name, text in said
            if text is not None
        ]
        samples.append(Samples(first["prompt"], told))
    return Section("answers", say("staged.answers", lang), samples=samples)


def _entry(document: Document, metric: str) -> Compared | None:
    return next((entry for entry in document["comparisons"] if entry["metric"] == metric), None)


def _spread(part: Range, share: bool = False) -> dict[str, str]:
    """A value and the ends of its interval, in words."""
    return {
        name: "–" if value is None else f"{value:.0%}" if share else fixed(value, 2)
        for name, value in (("value", part["value"]), ("low", part["low"]), ("high", part["high"]))
    }
