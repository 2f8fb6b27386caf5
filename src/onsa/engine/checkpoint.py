"""Checkpoints: written beside, synced, renamed, with a manifest of hashes; a broken one is noticed and passed over."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from onsa.engine.events import Evaluated, Stepped
from onsa.sources.base import Cursor
from onsa.store.atomic import explained, publish, sha256_file

MANIFEST = "manifest.json"
PROGRESS = "progress.json"


@dataclass(frozen=True)
class Progress:
    """Where a run stands: its place in the source, the best evaluation so far, and what the last step had to tell."""

    cursor: Cursor = field(default_factory=Cursor)
    best: float | None = None
    best_step: int | None = None
    stale: int = 0
    stepped: Stepped | None = None
    evaluated: Evaluated | None = None

    @property
    def told(self) -> tuple[Stepped | Evaluated, ...]:
        """The last step's events: told again by who goes on from here, since a reader may have died before it heard."""
        return tuple(event for event in (self.stepped, self.evaluated) if event is not None)

    def seen(self, value: float, lower: bool, min_delta: float) -> Progress:
        """The progress after one more evaluation at the cursor's step.

        Whatever is better is the best; ``min_delta`` only says by how much it must be better not to count as stale.
        """
        gain = math.inf if self.best is None else (self.best - value if lower else value - self.best)
        if not math.isfinite(value):
            gain = -math.inf
        seen = replace(self, stale=0 if gain > min_delta else self.stale + 1)
        return replace(seen, best=value, best_step=self.cursor.step) if gain > 0 else seen


def write(root: Path, progress: Progress, save: Callable[[Path], None]) -> Path:
    """Publish a checkpoint under ``root``; ``save`` writes the session's files into the folder it is given.

    Raises:
        MachineError: the disk is full, or the folder may not be written; of this checkpoint nothing is left.
    """
    final = root / f"step-{progress.cursor.step:07d}"
    if final.exists() and verified(final):
        return final
    draft = root / f".draft-{final.name}"
    for left in root.glob(".draft-*"):  # by a process that was killed while it saved
        shutil.rmtree(left)
    shutil.rmtree(final, ignore_errors=True)
    with explained(root, max((_size(folder) for folder in folders(root)), default=0)):
        try:
            draft.mkdir(parents=True)
            save(draft)
            (draft / PROGRESS).write_text(json.dumps(asdict(progress)))
            files = {path.relative_to(draft).as_posix(): sha256_file(path) for path in _files(draft)}
            (draft / MANIFEST).write_text(json.dumps(files, indent=1))
            publish(draft, final)
        except Exception:
            shutil.rmtree(draft, ignore_errors=True)  # its room is needed to write down why the run ended
            raise
    return final


def verified(folder: Path) -> bool:
    """Whether every file of a checkpoint is there with the bytes that its manifest states."""
    try:
        files: dict[str, str] = json.loads((folder / MANIFEST).read_text())
        return bool(files) and all(sha256_file(folder / name) == digest for name, digest in files.items())
    except (OSError, ValueError):
        return False


def folders(root: Path) -> list[Path]:
    """Every checkpoint under a folder, the oldest first, sound or not."""
    return sorted(root.glob("step-*"))


def latest(root: Path) -> tuple[Path | None, list[Path]]:
    """The newest sound checkpoint, and the broken ones that were passed over."""
    broken: list[Path] = []
    for folder in reversed(folders(root)):
        if verified(folder):
            return folder, broken
        broken.append(folder)
    return None, broken


def progress_of(folder: Path) -> Progress:
    """The progress that a checkpoint holds."""
    values: dict[str, Any] = json.loads((folder / PROGRESS).read_text())
    kinds = {"cursor": Cursor, "stepped": Stepped, "evaluated": Evaluated}
    nested = {name: kind(**values[name]) for name, kind in kinds.items() if values[name] is not None}
    return Progress(**{**values, **nested})


def prune(root: Path, keep: int, best_step: int | None) -> None:
    """Remove checkpoints but the newest ``keep`` and the best one."""
    best = f"step-{best_step:07d}" if best_step is not None else None
    for folder in folders(root)[:-keep]:
        if folder.name != best:
            shutil.rmtree(folder)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in _files(folder))
