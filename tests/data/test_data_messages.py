"""Every message of the data area exists in both languages with the same placeholders, and is used."""

from __future__ import annotations

import re
import string
import tomllib
from importlib.resources import files
from pathlib import Path

import onsa.data


def texts(language: str) -> dict[str, dict[str, str]]:
    return tomllib.loads((files("onsa.spec.messages") / language / "data.toml").read_text(encoding="utf-8"))


def placeholders(text: str) -> set[str]:
    return {field for _, field, _, _ in string.Formatter().parse(text) if field}


def test_both_languages_say_the_same_things() -> None:
    english, japanese = texts("en"), texts("ja")
    assert english.keys() == japanese.keys()
    for code, message in english.items():
        assert message.keys() == {"what", "fix"} == japanese[code].keys(), code
        for part in ("what", "fix"):
            assert placeholders(message[part]) == placeholders(japanese[code][part]), (code, part)


def test_every_message_is_used_and_every_code_has_one() -> None:
    folder = Path(next(iter(onsa.data.__path__)))
    code = "\n".join(path.read_text(encoding="utf-8") for path in folder.glob("*.py"))
    written = set(re.findall(r'"([a-z]+(?:-[a-z]+)+)"', code)) | {"train-empty", "validation-empty", "test-empty"}
    encodings = {"utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-16-be"}
    assert written - encodings == set(texts("en"))
