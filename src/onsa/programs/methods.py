"""Methods: the table of every way to adapt a base, as it was measured: what ``onsa methods`` shows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict, cast

from onsa.evaluate.document import Versions
from onsa.evaluate.wording import decimals, fixed, metric_name, signed
from onsa.spec.messages import say

MEASURED = Path(__file__).with_name("methods.json")
FAILED = "methods-failed"
COLUMNS = (
    "method",
    "quality",
    "trainable",
    "share",
    "memory",
    "seconds",
    "saved",
    "general",
    "general-change",
    "unrelated",
    "unrelated-change",
    "rate",
)
BRIEF = ("method", "quality", "share", "memory", "seconds", "general-change", "unrelated-change")  # for 80 characters


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


def cells(setting: Setting, columns: Sequence[str] = COLUMNS) -> tuple[list[str], list[list[str]]]:
    """A table's heading and rows, the best first; columns that have nothing to say are left out."""
    sign = 1 if setting["lower_is_better"] else -1
    order = sorted(setting["methods"], key=lambda row: sign * row["quality"][0] if row["quality"] else float("inf"))
    base = next((row for row in order if row["method"] == "base"), None)
    rows = [_row(row, base) for row in order]
    used = [name for name in columns if any(row.get(name) for row in rows)]
    metric = metric_name(setting["metric"])
    heading = [say(f"methods-{name}", **({"metric": metric} if name == "quality" else {})) for name in used]
    return heading, [[row.get(name, "") for name in used] for row in rows]


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


def _row(row: Method, base: Method | None) -> dict[str, str]:
    """What a row says, by column."""
    if row["refused"]:
        return {"method": row["method"], "quality": say(row["refused"]["code"], **row["refused"]["values"])}
    assert row["quality"] is not None
    value, low, high = row["quality"]
    places = decimals(low, high)
    found = {
        "method": say("methods-base") if row["method"] == "base" else row["method"],
        "quality": f"{fixed(value, places)} [{fixed(low, places)}, {fixed(high, places)}]",
        "trainable": f"{row['trainable']:,}" if row["trainable"] else "",
        "share": f"{row['share']:.2%}" if row["trainable"] else "",
        "memory": f"{row['peak_memory_bytes'] / 1e6:,.0f}" if row["peak_memory_bytes"] else "",
        "seconds": f"{row['seconds_an_epoch']:.1f}" if row["seconds_an_epoch"] is not None else "",
        "saved": f"{row['saved_bytes'] / 1e6:,.2f}" if row["saved_bytes"] else "",
        "rate": f"{row['rate']:.1e}" if row["rate"] is not None else "",
    }
    for name, loss in row["remembered"].items():
        found[name] = fixed(loss, 3)
        if base is not None and base is not row and name in base["remembered"]:
            found[f"{name}-change"] = signed(loss - base["remembered"][name], 3)
    return found
