"""The commands by which answers are ranked: by a person, and by a judge."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onsa.app.options import Json, RunRef

if TYPE_CHECKING:
    from rich.console import Console

    from onsa.programs.feedback import Bench

feedback_app = typer.Typer(help="Rank a model's answers, and learn from what was said.", no_args_is_help=True)
Source = Annotated[Path | None, typer.Option("--input", help="A file of prompts; else those the run was trained on.")]
Most = Annotated[int, typer.Option("--rows", min=1, help="How many prompts, at most.")]
Seed = Annotated[int, typer.Option("--seed", help="Draws the answers.")]
Temperature = Annotated[float, typer.Option("--temperature", min=0.05, help="How unlike the answers are.")]
KEYS = {"1": "first", "2": "second", "0": "tie"}


@feedback_app.command("rank")
def rank(
    run: RunRef,
    source: Source = None,
    rows: Most = 20,
    seed: Seed = 7,
    temperature: Temperature = 1.0,
    json: Json = False,
) -> None:
    """Say which of two answers is better: 1, 2, 0 for neither; s skips, q stops. Goes on where it stopped."""
    from onsa.app.console import emit, err, out
    from onsa.programs.feedback import bench, known, path_of
    from onsa.spec.messages import say

    opened = bench(run, source, seed, temperature)
    path, console = path_of(opened.run), err() if json else out()
    said = _ranked(opened, console, rows)
    total = len(known(path, opened.predictor.task))  # type: ignore[arg-type]  # a task that talks
    if json:
        emit({"file": str(path), "ranked": said, "total": total})
    else:
        console.print(say("feedback-kept", ranked=said, total=total, file=str(path)))


def _ranked(opened: Bench, console: Console, rows: int) -> int:
    """Ask until the prompts, the asked-for number, or the person's patience are at an end; how many were ranked."""
    from onsa.programs.feedback import Verdict, keep, known, path_of
    from onsa.spec.messages import say

    path, said = path_of(opened.run), 0
    console.print(say("feedback-keys"), style="dim")
    for candidate in opened.candidates(known(path, opened.predictor.task)):  # type: ignore[arg-type]
        console.print(f"\n[bold]{say('feedback-prompt')}[/]")
        console.print(candidate.text, markup=False)
        for number, answer in enumerate(candidate.answers, 1):
            console.print(f"\n[bold]{number}[/]")
            console.print(answer, markup=False)
        key = _key(console)
        if key == "q":
            break
        if key != "s":
            keep(path, Verdict.of(candidate, KEYS[key], "person"))  # type: ignore[arg-type]
            said += 1
        if said == rows:
            break
    return said


def _key(console: Console) -> str:
    """What a person chooses; the end of input is the end of the work."""
    while True:
        try:
            key = console.input("\n[bold]1 2 0 s q >[/] ").strip().lower()
        except (EOFError, KeyboardInterrupt):
            return "q"
        if key in (*KEYS, "s", "q"):
            return key


@feedback_app.command("judge")
def judge(
    run: RunRef,
    by: Annotated[str, typer.Option("--judge", metavar="RUN", help="A reward model, or any model that talks.")],
    constitution: Annotated[Path | None, typer.Option("--constitution", help="A text by which it judges.")] = None,
    source: Source = None,
    rows: Most = 100,
    json: Json = False,
) -> None:
    """Have a model say which of two answers is better, and see how far it says what people say."""
    from onsa.app.console import emit, out
    from onsa.programs.feedback import bench
    from onsa.programs.judge import judge as run_judge
    from onsa.programs.judge import open_judge, read_constitution, told

    text = read_constitution(constitution) if constitution else None
    judging, opened = open_judge(by, text), bench(run, source)
    for _ in run_judge(opened, judging, rows):
        pass
    found = told(opened, judging).document()
    if json:
        emit(found)
    else:
        _show(out(), found)


def _show(console: Console, found: dict[str, Any]) -> None:
    from onsa.spec.messages import say

    console.print(say("judge-kept", verdicts=found["verdicts"], ties=found["ties"], file=found["file"]))
    if found["bias"] is not None:
        console.print(say("judge-bias", bias=f"{found['bias']:+.2f}"))
    people = found["people"]
    if people is None or not people["count"]:
        console.print(say("judge-alone"), style="dim")
        return
    kappa = "–" if people["kappa"] is None else f"{people['kappa']:.2f}"
    console.print(say("judge-agrees", share=f"{people['agree']:.0%}", count=people["count"], kappa=kappa))
