"""Methods: the table of every way to adapt a base, as it was measured: what ``onsa methods`` shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypedDict, cast

from onsa.evaluate.document import Versions
from onsa.evaluate.wording import decimals, fixed, metric_name
from onsa.spec.messages import say

MEASURED = Path(__file__).with_name("methods.json")
FAILED = "methods-failed"
COLUMNS = ("method", "quality", "trainable", "memory", "seconds", "saved", "general", "unrelated", "rate")


class Refusal(TypedDict):
    """Why there are no figures: a message code with its values."""

    code: str
    values: dict[str, Any]


class Method(TypedDict):
    """A row of a table.

    refused: why the method does not fit the base; the other figures are then empty.
    quality: the metric on held-out rows, and its 95 % interval; remembered: losses on what it was not tuned for.
    rate: the best learning rate found, ``factor`` times the usual one.
    """

    method: str
    refused: Refusal | None
    quality: list[float] | None
    trainable: int
    share: float
    peak_memory_bytes: int | None
    seconds_an_epoch: float | None
    saved_bytes: int | None
    remembered: dict[str, float]
    rate: float | None
    factor: float | None


class Setting(TypedDict):
    """A table: one base on one task. rows: by side of the split; seeds: runs behind each row."""

    name: str
    model: str
    metric: str
    lower_is_better: bool
    rows: dict[str, int]
    epochs: int
    precision: str
    seeds: int
    methods: list[Method]


class Measured(TypedDict):
    """All tables, with when, how and with what they were measured."""

    date: str
    command: str
    minutes: float
    versions: Versions
    settings: list[Setting]


def read_measured() -> Measured:
    """The tables that come with this version."""
    return cast(Measured, json.loads(MEASURED.read_text(encoding="utf-8")))


def cells(setting: Setting) -> tuple[list[str], list[list[str]]]:
    """A table's heading and rows, the best first; columns that have nothing to say are left out."""
    sign = 1 if setting["lower_is_better"] else -1
    order = sorted(setting["methods"], key=lambda row: sign * row["quality"][0] if row["quality"] else float("inf"))
    base = next((row for row in order if row["method"] == "base"), None)
    rows = [_row(row, base) for row in order]
    used = [place for place, name in enumerate(COLUMNS) if any(row[place] for row in rows)]
    named = {"metric": metric_name(setting["metric"])}
    heading = [say(f"methods-{COLUMNS[place]}", **(named if COLUMNS[place] == "quality" else {})) for place in used]
    return heading, [[row[place] for place in used] for row in rows]


def caption(setting: Setting) -> str:
    """What a table was measured on."""
    return say(
        "methods-caption",
        model=setting["model"],
        name=setting["name"],
        train=setting["rows"]["train"],
        test=setting["rows"]["test"],
        epochs=setting["epochs"],
        seeds=setting["seeds"],
        precision=setting["precision"],
    )


def _row(row: Method, base: Method | None) -> list[str]:
    if row["refused"]:
        return [row["method"], say(row["refused"]["code"], **row["refused"]["values"]), *[""] * (len(COLUMNS) - 2)]
    assert row["quality"] is not None
    value, low, high = row["quality"]
    places = decimals(low, high)
    name = say("methods-base") if row["method"] == "base" else row["method"]
    quality = f"{fixed(value, places)} [{fixed(low, places)}, {fixed(high, places)}]"
    trains = f"{row['trainable']:,} ({row['share']:.2%})" if row["trainable"] else ""
    memory = f"{row['peak_memory_bytes'] / 1e6:,.0f} MB" if row["peak_memory_bytes"] else ""
    seconds = f"{row['seconds_an_epoch']:.1f}" if row["seconds_an_epoch"] is not None else ""
    saved = f"{row['saved_bytes'] / 1e6:,.2f} MB" if row["saved_bytes"] else ""
    rate = f"{row['rate']:.1e}" if row["rate"] is not None else ""
    return [name, quality, trains, memory, seconds, saved, *_remembered(row, base), rate]


def _remembered(row: Method, base: Method | None) -> list[str]:
    """Losses after tuning, and by how much they differ from the base's."""
    said = []
    for name in ("general", "unrelated"):
        loss = row["remembered"].get(name)
        before = base["remembered"].get(name) if base and base is not row else None
        change = "" if loss is None or before is None else f" ({loss - before:+.3f})"
        said.append("" if loss is None else f"{loss:.3f}{change}")
    return said
