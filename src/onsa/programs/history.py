"""History: the events of a run on disk, one JSON line each, and what they add up to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from onsa.engine.events import Evaluated, Stepped
from onsa.evaluate.document import Evaluation, History, TrainPoint
from onsa.store.atomic import write_text

EVENTS = "events.jsonl"


class Journal:
    """Writes steps and evaluations to ``events.jsonl``; lines from the step on where a run goes on are told again."""

    def __init__(self, folder: Path, step: int) -> None:
        self.path = folder / EVENTS
        kept = [line for line in _lines(self.path) if line["step"] < step]
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = self.path.open("a", buffering=1)

    def write(self, event: Stepped | Evaluated) -> None:
        kind = "step" if isinstance(event, Stepped) else "evaluation"
        self._file.write(json.dumps({"event": kind, **asdict(event)}) + "\n")

    def close(self) -> None:
        self._file.close()


@dataclass
class Told:
    """What the events of a run say in sum. ``parameters`` and ``trainable`` are counted by the caller."""

    parameters: int = 0
    trainable: int = 0
    steps: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Time spent in steps, pauses left out."""
        return float(sum(step["seconds"] for step in self.steps))

    @property
    def tokens(self) -> int:
        return int(sum(step["tokens"] for step in self.steps))

    def history(self, metric: str) -> History:
        """The learning curves."""
        best = [evaluation["step"] for evaluation in self.evaluations if evaluation["best"]]
        return History(
            train=[
                TrainPoint(
                    step=step["step"],
                    loss=step["loss"],
                    lr=step["lr"],
                    rates=step.get("rates", {}),
                    figures=step.get("metrics", {}),
                    tokens_per_s=step["tokens"] / step["seconds"] if step["seconds"] else None,
                    grad_norm=step["grad_norm"],
                )
                for step in self.steps
            ],
            evaluations=[
                Evaluation(step=e["step"], epoch=e["epoch"] + 1, metrics=e["metrics"], said=e.get("said", {}))
                for e in self.evaluations
            ],
            best_step=best[-1] if best else None,
            best_metric=metric,
        )


def read_history(folder: Path) -> Told:
    """The events of a run's folder."""
    told = Told()
    for line in _lines(folder / EVENTS):
        (told.steps if line["event"] == "step" else told.evaluations).append(line)
    return told


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:  # the last line of a process that was killed while it wrote
            return
