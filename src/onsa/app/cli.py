"""The command line: thin. Each command calls the function a Python program would call, and shows what it returns."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onsa.app.adapters import adapters_app
from onsa.app.feedback import feedback_app
from onsa.app.options import Json, MoreAdapters, Overrides, RecipeFile, RunRef
from onsa.app.rlhf import rlhf
from onsa.app.serve import aliases_app, jobs, keys_app, serve, webhooks_app
from onsa.spec.errors import Level, OnsaError, TrainingError

if TYPE_CHECKING:
    from onsa.spec.recipe import Recipe

app = typer.Typer(
    help="Tune a pretrained model to your task, and see whether it paid.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
models_app = typer.Typer(help="The catalogue of bases.", invoke_without_command=True)
app.add_typer(models_app, name="models")
app.add_typer(adapters_app, name="adapters")
app.add_typer(feedback_app, name="feedback")
app.command("rlhf")(rlhf)
app.command("serve")(serve)
app.command("jobs")(jobs)
app.add_typer(keys_app, name="keys")
app.add_typer(webhooks_app, name="webhooks")
app.add_typer(aliases_app, name="aliases")


def main() -> None:
    """Entry point: a user's mistake ends in a message and exit code 2, a run that had to stop in exit code 1."""
    try:
        app()
    except OnsaError as error:
        from onsa.app.console import emit, err, show_problems

        if "--json" in sys.argv:
            emit({"error": type(error).__name__, "problems": [problem.document() for problem in error.problems]})
        show_problems(err(), error.problems)
        sys.exit(1 if isinstance(error, TrainingError) else 2)


@app.command()
def new(
    data: Annotated[str, typer.Argument(help="A CSV, TSV, JSON, JSONL or Parquet file, or a hub data set id.")],
    to: Annotated[Path, typer.Option("--to", help="Where the recipe goes.")] = Path("recipe.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite the recipe if it is there.")] = False,
    json: Json = False,
) -> None:
    """Look at the data and write a commented recipe for it."""
    from onsa.app.console import emit, out
    from onsa.app.show import proposal
    from onsa.programs.new import propose, write_recipe

    proposed = propose(data, to.parent)
    write_recipe(proposed, to, force)
    if json:
        emit({"recipe": str(to), "values": proposed.values, "rows": proposed.profile.rows})
    else:
        proposal(out(), proposed, to)


@app.command()
def check(
    recipe: RecipeFile,
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option("--rows", min=0, help="Rows shown with what trains in them.")] = 3,
    timing: Annotated[bool, typer.Option(help="Time a few real steps for the forecast.")] = True,
    json: Json = False,
) -> None:
    """Preflight: everything that is wrong, at once, before any training time."""
    from onsa.app.console import emit, err, out, show_problems
    from onsa.app.show import preflight
    from onsa.programs.check import check as run_check

    with _recipe(recipe, overrides) as read:
        checked = run_check(read, timing, rows, err().print)
    if not json:
        preflight(out(), checked)
        checked.stop_at_errors()
        return
    emit(checked.document())  # the one document, which also holds what stops a run
    errors = [problem for problem in checked.problems if problem.level is Level.ERROR]
    if errors:
        show_problems(err(), errors)
        raise typer.Exit(2)


@app.command()
def plan(recipe: RecipeFile, overrides: Overrides = None, json: Json = False) -> None:
    """The resolved recipe, what each speed pass decided and why, and the forecast of memory and time."""
    from onsa.app.console import emit, err, out
    from onsa.app.show import plan as show_plan
    from onsa.programs.check import check as run_check

    with _recipe(recipe, overrides) as read:
        checked = run_check(read, timing=True, rows=0, progress=err().print)
    if json:
        emit(checked.document())
    else:
        show_plan(out(), checked)


@app.command("lr-find")
def lr_find(
    recipe: RecipeFile,
    overrides: Overrides = None,
    between: Annotated[tuple[float, float], typer.Option("--range", help="The rates to begin and to end at.")] = (
        1e-7,
        10.0,
    ),
    steps: Annotated[int, typer.Option("--steps", min=20, help="Steps from one to the other.")] = 100,
    to: Annotated[Path | None, typer.Option("--out", help="Where the plot goes.")] = None,
    json: Json = False,
) -> None:
    """Find a learning rate: it grows from step to step on a copy that is thrown away, and the loss is watched."""
    from onsa.app.console import emit, err, out
    from onsa.app.show import rate_found
    from onsa.programs.lr_find import Sweep, place_for_plot, write_plot
    from onsa.programs.lr_find import lr_find as find

    to = to or recipe.with_suffix(".lr-find.html")
    with _recipe(recipe, overrides) as read:
        place_for_plot(to)
        found = find(read, Sweep(*between, steps), err().print)
    plotted = write_plot(found, to)
    if json:
        emit({**found.document(), "plot": str(plotted)})
    else:
        rate_found(out(), found, plotted)


@app.command()
def train(
    recipe: RecipeFile,
    overrides: Overrides = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Run anew, even if this very run is done or begun.")] = False,
    json: Json = False,
) -> None:
    """Train; Ctrl-C pauses, and the same command goes on."""
    from onsa.app.console import emit, err, out
    from onsa.app.following import follow
    from onsa.app.show import finished
    from onsa.programs.train import train as begin

    with _recipe(recipe, overrides) as read:
        ended = follow(begin(read, fresh, err().print), err())
    if ended is None:
        if json:
            emit({"state": "paused"})
        raise typer.Exit(130)
    if json:
        emit({"run": ended.run.id, "folder": str(ended.run.folder), "metrics": ended.document})
    else:
        finished(out(), ended)


@app.command()
def report(run: RunRef = "latest", json: Json = False) -> None:
    """Write a run's report again from its metrics (in the interface's language) and say where it is."""
    from onsa.app.console import emit, out
    from onsa.programs.report import write_report

    written = write_report(run)
    if json:
        emit({"run": written.run.id, "report": str(written.report), "metrics": written.document})
    else:
        out().print(f"{written.verdict}\n{written.report}", soft_wrap=True)


@app.command()
def predict(
    run: RunRef,
    text: Annotated[list[str] | None, typer.Option("--text", help="A text to answer; may be repeated.")] = None,
    source: Annotated[Path | None, typer.Option("--input", help="A file of rows.")] = None,
    base: Annotated[bool, typer.Option("--base", help="Answer with the base instead.")] = False,
    adapter: MoreAdapters = None,
    json: Json = False,
) -> None:
    """Answer texts, or the rows of a file, as JSON lines."""
    from json import dumps

    from onsa.app.console import emit
    from onsa.programs.predict import predict as run_predict

    answers = run_predict(run, text or [], source, base, adapter or [])
    if json:
        emit(list(answers))
        return
    for answer in answers:
        sys.stdout.write(dumps(answer, ensure_ascii=False) + "\n")


@app.command()
def chat(
    run: RunRef = "latest",
    base: Annotated[bool, typer.Option("--base", help="Show the base's answers beside.")] = False,
    message: Annotated[list[str] | None, typer.Option("--message", help="Say this and leave; may be repeated.")] = None,
    adapter: MoreAdapters = None,
    json: Json = False,
) -> None:
    """Talk to a tuned model."""
    from onsa.app.console import emit, err, out
    from onsa.app.talking import talk
    from onsa.programs.predict import conversation

    said = talk(conversation(run, base, adapter or []), err() if json else out(), message, quiet=json)
    if json:
        emit(said)


@app.command()
def runs(
    limit: Annotated[int, typer.Option("--limit", min=1, help="The newest so many.")] = 20, json: Json = False
) -> None:
    """What has run."""
    from onsa.app.console import emit, out
    from onsa.app.listing import run_document, run_table
    from onsa.store.runs import Store

    with Store() as store:
        found = store.list(limit)
    if json:
        emit([run_document(run) for run in found])
    else:
        out().print(run_table(found))


@models_app.callback()
def models(context: typer.Context, json: Json = False) -> None:
    """The catalogue of bases that need no hub."""
    if context.invoked_subcommand is not None:
        return
    from onsa.app.console import emit, out
    from onsa.app.listing import model_documents, model_table

    if json:
        emit(model_documents())
    else:
        out().print(model_table())


@models_app.command("fetch")
def models_fetch(
    names: Annotated[list[str], typer.Argument(metavar="NAME…", help="Names from the catalogue.")], json: Json = False
) -> None:
    """Fetch bases, check their hashes, and convert them once to safetensors."""
    from onsa.app.console import emit, err, out
    from onsa.models.fetch import fetch

    folders = {name: str(fetch(name, progress=err().print)) for name in names}
    if json:
        emit(folders)
    else:
        for name, folder in folders.items():
            out().print(f"{name}  {folder}", soft_wrap=True)


@app.command()
def methods(json: Json = False) -> None:
    """Every way to adapt a base, as measured: quality, cost and forgetting."""
    from onsa.app.console import emit, out
    from onsa.app.listing import show_methods
    from onsa.programs.methods import read_measured

    measured = read_measured()
    if json:
        emit(measured)
    else:
        show_methods(out(), measured)


@app.command()
def demo(json: Json = False) -> None:
    """The main job on embedded weights and data: a classifier and a chat model, each shown against its base."""
    from onsa.app.console import emit, err, out
    from onsa.app.following import follow
    from onsa.app.show import finished
    from onsa.programs.demo import demos
    from onsa.programs.train import train as begin

    results: dict[str, Any] = {}
    for one in demos(err().print):
        ended = follow(begin(one.recipe, progress=err().print), err())
        if ended is None:
            raise typer.Exit(130)
        results[one.name] = {"run": ended.run.id, "folder": str(ended.run.folder), "metrics": ended.document}
        if not json:
            finished(out(), ended)
    if json:
        emit(results)


@contextmanager
def _recipe(path: Path, overrides: list[str] | None) -> Iterator[Recipe]:
    """The recipe of a file; what turns out to be wrong with it names the file and the line."""
    from onsa.spec.recipe import placed, read_recipe

    read = read_recipe(path, overrides or ())
    with placed(path, overrides or ()):
        yield read
