"""New: look at a data file and write a commented recipe for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from onsa.data.profile import Profile
from onsa.data.profiling import profile
from onsa.data.read import read
from onsa.data.table import Table
from onsa.models.heads import Head
from onsa.programs.resolve import recognise
from onsa.spec.errors import RecipeError
from onsa.spec.messages import say
from onsa.spec.sections import Data

BASES = {Head.ROWS: "minilm-l6", Head.TOKENS: "smollm2-135m"}
ADAPTATIONS = {Head.ROWS: "full", Head.TOKENS: "lora"}


@dataclass(frozen=True)
class Proposal:
    """A recipe's text with its comments, the same as plain values, and what was seen in the data."""

    text: str
    values: dict[str, Any]
    table: Table
    profile: Profile


def propose(path: str, beside: Path) -> Proposal:
    """A recipe for a data file, to be written into the folder ``beside``.

    Raises:
        DataError: the file cannot be read, or no task recognises its columns.
    """
    table = read(Data(path=path))
    seen = profile(table)
    kind, match = recognise(seen, path)
    task = kind()
    reasons = [say(code, **values) for code, values in match.reasons]
    base = BASES[task.head]
    values: dict[str, Any] = {
        "model": base,
        "data": {"path": _relative(path, beside), "columns": match.columns},
        "task": task.kind,
        "adaptation": ADAPTATIONS[task.head],
        "seed": 7,
    }
    comments = {
        "model": [say(f"new-model-{task.head.value}", base=base)],
        "data": [_found(table, seen)],
        "task": reasons,
        "adaptation": [say(f"new-adaptation-{ADAPTATIONS[task.head]}")],
        "seed": [say("new-seed")],
    }
    if seen.language not in (None, "en"):
        comments["model"].append(say("new-model-language", language=seen.language))
    lines = [f"# {say('new-head')}"]
    for key, value in values.items():
        lines += [f"# {comment}" for comment in comments[key]]
        lines.append(yaml.safe_dump({key: value}, sort_keys=False, allow_unicode=True).rstrip())
    return Proposal("\n".join(lines) + "\n", values, table, seen)


def write_recipe(proposal: Proposal, to: Path, force: bool = False) -> None:
    """Write a proposed recipe.

    Raises:
        RecipeError: the file is there already and ``force`` is not given, or it cannot be written.
    """
    if to.exists() and not force:
        raise RecipeError.of("recipe-exists", file=str(to))
    try:
        to.write_text(proposal.text, encoding="utf-8")
    except OSError as error:
        raise RecipeError.of("recipe-unwritable", file=str(to), reason=error.strerror) from None


def _found(table: Table, seen: Profile) -> str:
    kind = ", ".join(str(part) for part in (table.format, table.encoding) if part)
    return say("new-data", rows=seen.rows, columns=len(seen.columns), format=kind, language=seen.language or "?")


def _relative(path: str, beside: Path) -> str:
    target = Path(path)
    if not target.exists():
        return path  # a hub id
    try:
        return target.resolve().relative_to(beside.resolve()).as_posix()
    except ValueError:
        return str(target.resolve())
