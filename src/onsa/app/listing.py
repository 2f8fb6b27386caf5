"""Lists of runs and of bases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onsa.app.console import table
from onsa.evaluate.wording import metric_name
from onsa.spec.messages import say
from onsa.store.run import Run

if TYPE_CHECKING:
    from rich.console import Console

    from onsa.programs.methods import Measured


def run_document(run: Run) -> dict[str, Any]:
    """A run as plain JSON values."""
    return {
        "id": run.id,
        "state": run.state.value,
        "task": run.task,
        "model": run.model,
        "data": run.data,
        "adaptation": run.adaptation,
        "created": run.created.isoformat(),
        "folder": str(run.folder),
        "summary": run.summary,
        "error": run.error,
    }


def run_table(found: Sequence[Run]) -> Any:
    """Runs, the newest first."""
    names = ["id", *(say(f"runs-{name}") for name in ("state", "task", "model", "data", "result", "created"))]
    rows = [
        (
            run.id,
            say(f"state-{run.state.value}"),
            run.task,
            run.model,
            Path(run.data).name,
            result(run.summary),
            run.created.astimezone().strftime("%Y-%m-%d %H:%M"),
        )
        for run in found
    ]
    return table(names, rows)


def result(summary: Mapping[str, Any]) -> str:
    """The headline metric of a run, of its base and tuned, where it has one."""
    if summary.get("tuned") is None:
        return ""
    base = f"{summary['base']:.3f} → " if summary.get("base") is not None else ""
    return f"{metric_name(summary['metric'])} {base}{summary['tuned']:.3f}"


def show_methods(console: Console, measured: Measured) -> None:
    """The tables of all methods, the best first."""
    from onsa.programs.methods import BRIEF, caption, cells

    console.print(say("methods-measured", date=measured["date"], command=measured["command"]), soft_wrap=True)
    for setting in measured["settings"]:
        console.print(f"\n{caption(setting)}", soft_wrap=True)
        heading, rows = cells(setting, BRIEF)
        console.print(table(heading, rows, right=tuple(range(2, len(heading)))))
    console.print(say("methods-note"), soft_wrap=True)


def model_documents() -> list[dict[str, Any]]:
    """The catalogue as plain JSON values, with the memory to tune by adaptation."""
    from dataclasses import asdict

    from onsa.models.catalog import catalog, memory_to_tune

    return [
        {**asdict(entry), "memory": {"full": memory_to_tune(entry, "full"), "lora": memory_to_tune(entry, "lora")}}
        for entry in catalog().values()
    ]


def model_table() -> Any:
    """The catalogue: size, licence, languages, tasks, context and memory to tune."""
    names = [say(f"models-{name}") for name in ("name", "size", "licence", "languages", "tasks", "context", "memory")]
    rows = [
        (
            entry["name"],
            f"{entry['parameters'] / 1e6:.1f} M",
            entry["licence"],
            " ".join(entry["languages"]),
            " ".join(entry["tasks"]),
            entry["context"],
            ", ".join(f"{kind} {size / 1e9:.1f} GB" for kind, size in entry["memory"].items()),
        )
        for entry in model_documents()
    ]
    return table(names, rows, right=(1, 5))
