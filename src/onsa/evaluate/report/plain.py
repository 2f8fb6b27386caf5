"""Sections of facts and texts: what was asked, mistakes, answers, costs, warnings, recipe, provenance."""

from __future__ import annotations

from onsa.evaluate.document import Document, baseline_name
from onsa.evaluate.report.view import Fact, Section, Side, Wrong
from onsa.evaluate.wording import count, duration, reasons, share, short, storage
from onsa.spec.messages import say


def asked(document: Document, lang: str) -> Section:
    """The run's choices, after every default was filled in."""
    was = document["asked"]
    rate, epochs, longest = was.get("learning_rate"), was["epochs"], was.get("max_length")
    values = {
        "task": was["task"],
        "model": was["model"],
        "data": was["data"],
        "language": was["language"],
        "adaptation": was["adaptation"],
        "objective": was["objective"],
        "optimizer": was.get("optimizer"),
        "schedule": was.get("schedule"),
        "learning-rate": None if rate is None else short(rate),
        "epochs": None if epochs is None else f"{epochs:g}",
        "max-length": None if longest is None else count(longest),
        "precision": was.get("precision"),
        "seed": str(was["seed"]),
        "baseline": baseline_name(document, lang),
        "judge": say("report.asked.judged", lang, **judged) if (judged := document.get("judged")) else None,
    }
    facts = [Fact(say(f"report.asked.{name}", lang), value) for name, value in values.items() if value]
    return Section("asked", say("report.section.asked", lang), facts=facts)


def mistakes(document: Document, lang: str) -> Section:
    """Rows the tuned model got most wrong."""

    def sure(probability: float | None) -> str:
        return "" if probability is None else say("report.errors.probability", lang, share=f"{probability:.0%}")

    found = [
        Wrong(one["text"], one["expected"], one["predicted"], sure(one["probability"]), one["place"])
        for one in document["errors"]
    ]
    return Section(
        "errors", say("report.section.errors", lang), notes=[say("report.errors.caption", lang)], mistakes=found
    )


def answers(document: Document, lang: str) -> Section:
    """Held-out prompts with the expected answer and those of base and tuned."""
    sides = [Side(one["prompt"], one["expected"], one["base"], one["tuned"]) for one in document["answers"]]
    return Section(
        "answers", say("report.section.answers", lang), notes=[say("report.answers.caption", lang)], answers=sides
    )


def costs(document: Document, lang: str) -> Section:
    """Rows, tokens, parameters, time, memory and disk."""
    spent = document["figures"]
    rows = " / ".join(count(spent["rows"].get(side, 0)) for side in ("train", "validation", "test"))
    part = share(spent["trainable_parameters"], spent["parameters"])
    remark = say("report.costs.trainable-share", lang, share=part, all=count(spent["parameters"]))
    values = {
        "rows": (rows, ""),
        "tokens": (count(spent["tokens"]), ""),
        "trainable": (count(spent["trainable_parameters"]), remark),
        "time": (duration(spent["seconds"], lang), ""),
        "speed": (count(spent["tokens_per_s"]), ""),
    }
    for name, size in (("memory", spent["peak_memory_bytes"]), ("adapter", spent["adapter_bytes"])):
        if size is not None:
            values[name] = (storage(size, lang), "")
    facts = [Fact(say(f"report.costs.{name}", lang), value, more) for name, (value, more) in values.items()]
    return Section("costs", say("report.section.costs", lang), facts=facts, style="facts large")


def warnings(document: Document, lang: str) -> Section:
    return Section("warnings", say("report.section.warnings", lang), notes=document["warnings"])


def recipe(document: Document, lang: str) -> Section:
    return Section("recipe", say("report.section.recipe", lang), code=document["recipe"].strip())


def provenance(document: Document, lang: str) -> Section:
    """What is needed to tell this run from any other: identities, hashes and versions."""
    run, data = document["run"], document["data"]
    model, versions = document["model"], document["versions"]
    values = {
        "run": run["id"],
        "state": run["state"],
        "created": run["created"],
        "data-file": data["file"],
        "data-hash": data["sha256"],
        "removed": reasons(data["removed"], lang) or say("report.none", lang),
        "model-hash": model["sha256"],
        "licence": model["licence"] or say("report.unknown", lang),
        "versions": " · ".join(f"{name} {value}" for name, value in versions.items() if name != "platform"),
        "platform": versions["platform"],
    }
    facts = [Fact(say(f"report.provenance.{name}", lang), value) for name, value in values.items()]
    return Section("provenance", say("report.section.provenance", lang), facts=facts, style="list")
