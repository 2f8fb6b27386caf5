"""The command for three stages in one: imitate, learn a grade, practise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onsa.app.options import Json, Overrides

if TYPE_CHECKING:
    from onsa.spec.rlhf import Rlhf

Stages = Annotated[Path | None, typer.Argument(metavar="STAGES", help="A YAML file of the three stages.")]


def rlhf(
    stages: Stages = None,
    overrides: Overrides = None,
    demo: Annotated[bool, typer.Option("--demo", help="In place of a file, an example on embedded data.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="A few steps a stage, to see how it goes.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Run all stages anew.")] = False,
    json: Json = False,
) -> None:
    """Tune by preferences in three stages: imitation, a grader, practice (PPO). Ctrl-C pauses; the same goes on."""
    from onsa.app.console import emit, err, out
    from onsa.app.following import follow
    from onsa.programs.rlhf import Began, check_rlhf
    from onsa.programs.rlhf import quick as quickly
    from onsa.programs.rlhf import rlhf as begin
    from onsa.spec.messages import say

    tell = err().print
    with _given(stages, overrides or [], demo) as given:
        given = quickly(given) if quick else given
        check_rlhf(given, tell)
    for step in begin(given, fresh, tell):
        if isinstance(step, Began):
            tell(say("rlhf-stage", stage=say(f"staged.{step.stage}")))
            if follow(step.events, err()) is None:
                if json:
                    emit({"state": "paused"})
                raise typer.Exit(130)
        elif json:
            emit(step.document())
        else:
            out().print(f"{step.verdict}\n{step.report}", soft_wrap=True)


@contextmanager
def _given(stages: Path | None, overrides: list[str], demo: bool) -> Iterator[Rlhf]:
    """The stages of a file, or the example; what turns out to be wrong with a file names it and the line.

    Raises:
        RecipeError: neither is asked for, or both are.
    """
    from onsa.app.console import err
    from onsa.programs.demo import rlhf_demo
    from onsa.spec.errors import RecipeError
    from onsa.spec.recipe import placed
    from onsa.spec.rlhf import read_rlhf

    if (stages is None) is not demo or (demo and overrides):
        raise RecipeError.of("rlhf-one-of")
    if stages is None:
        yield rlhf_demo(err().print)
        return
    read = read_rlhf(stages, overrides)
    with placed(stages, overrides):
        yield read
