"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output; logs on standard error.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="AXIS.KEY=VALUE", help="Override the recipe.")]
RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe.yaml.")]
RunRef = Annotated[str, typer.Argument(metavar="RUN", help="An id, a unique prefix of one, a folder, or 'latest'.")]
MoreAdapters = Annotated[
    list[str] | None,
    typer.Option("--adapter", metavar="RUN", help="A further adapter over the same base, or a stack: A+B; repeatable."),
]
