"""The one catalogue of messages: everything a user reads, in English and Japanese.

``en/`` and ``ja/`` hold the same files with the same codes and the same ``{placeholders}``, a file an area. A problem
is a table with a ``what`` and a ``fix``; any other message is a string. The language is ``ONSA_LANG`` (``en`` or
``ja``), else that of the locale, else English.
"""

from __future__ import annotations

import os
import tomllib
from functools import cache
from importlib.resources import files
from typing import Any

LANGUAGES = ("en", "ja")


def language() -> str:
    """The language of the interface: ``ONSA_LANG``, then the locale's, then English."""
    for variable in ("ONSA_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        chosen = os.environ.get(variable, "").lower()[:2]
        if chosen in LANGUAGES:
            return chosen
    return "en"


@cache
def catalogue(lang: str) -> dict[str, str]:
    """Every message of one language by its code; a table's ``what`` stands under the table's own name."""
    flat: dict[str, str] = {}

    def walk(prefix: str, node: dict[str, Any]) -> None:
        for name, value in node.items():
            code = prefix if name == "what" else f"{prefix}.{name}".lstrip(".")
            if isinstance(value, dict):
                walk(code, value)
            else:
                flat[code] = value

    for area in (files(__package__) / lang).iterdir():
        walk("", tomllib.loads(area.read_text(encoding="utf-8")))
    return flat


def say(code: str, lang: str | None = None, /, **values: Any) -> str:
    """The message of this code in the interface's language, with its placeholders filled in.

    Raises:
        KeyError: no such message, or a placeholder without a value (both are faults of the caller, and tested).
    """
    return catalogue(lang or language())[code].format(**values)
