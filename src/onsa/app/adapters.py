"""The commands over several adapters: list, merge, fold."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onsa.app.options import Json, RunRef

adapters_app = typer.Typer(help="Several adapters over one base: list, merge, fold.", invoke_without_command=True)


@adapters_app.callback()
def adapters(context: typer.Context, json: Json = False) -> None:
    """Finished adapters, by base."""
    if context.invoked_subcommand is not None:
        return
    from onsa.app.console import emit, out
    from onsa.app.show_adapters import show_families
    from onsa.programs.adapters import document, families

    found = [document(family) for family in families()]
    if json:
        emit(found)
    else:
        show_families(out(), found)


@adapters_app.command("merge")
def merge(
    runs: Annotated[list[str], typer.Argument(metavar="RUN RUN…", help="Two runs or more, over one base.")],
    method: Annotated[str, typer.Option("--method", help="linear, svd, ties, dare-linear, …, or cat.")],
    weight: Annotated[list[float] | None, typer.Option("--weight", help="One for each run, in their order.")] = None,
    density: Annotated[float | None, typer.Option("--density", help="The share of each update that is kept.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="The new run's id.")] = None,
    json: Json = False,
) -> None:
    """Make one adapter of several, and measure it on each one's held-out rows."""
    from onsa.app.console import emit, err, out
    from onsa.app.show_adapters import show_merge
    from onsa.programs.merge import Way
    from onsa.programs.merge import merge as run_merge

    made = run_merge(runs, Way(method, tuple(weight or ()), density), name, err().print)
    if json:
        emit({"run": made.run.id, "folder": str(made.run.folder), **made.proof})
    else:
        show_merge(out(), made)


@adapters_app.command("fold")
def fold(
    run: RunRef,
    to: Annotated[Path, typer.Option("--out", help="A new folder for the whole model.")],
    json: Json = False,
) -> None:
    """Fold an adapter into its base: a whole transformers model, held against the two apart."""
    from onsa.app.console import emit, out
    from onsa.app.show_adapters import show_fold
    from onsa.programs.fold import fold as run_fold

    folded = run_fold(run, to)
    if json:
        emit(folded.document())
    else:
        show_fold(out(), folded)
