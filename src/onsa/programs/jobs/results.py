"""The files that a job leaves: its metrics step by step, the recipe that it ran, and its report."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from onsa.programs.history import read_history
from onsa.programs.report import REPORT
from onsa.programs.train import RECIPE

COLUMNS = ("step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy")
METRICS_FILE = "step_metrics.csv"


def step_metrics(folder: Path) -> str:
    """A run's steps as CSV; a cell is empty where there is no such number."""
    told = read_history(folder)
    evaluated = {entry["step"]: entry["metrics"] for entry in told.evaluations}
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for step in told.steps:
        seen = evaluated.get(step["step"], {})
        trained = step.get("metrics", {}).get("token_accuracy")
        cells = (step["loss"], trained, seen.get("loss"), seen.get("token_accuracy"))
        writer.writerow([step["step"], *("" if cell is None else f"{cell:.6g}" for cell in cells)])
    return out.getvalue()


def results(folder: Path) -> Iterator[tuple[str, bytes]]:
    """The name and the bytes of each file that a finished run's job leaves."""
    yield METRICS_FILE, step_metrics(folder).encode()
    for name in (RECIPE, REPORT):
        yield name, (folder / name).read_bytes()
