"""Checkpoints: whole or not there, checked when read, and never the best one thrown away."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onsa.engine import checkpoint
from onsa.engine.checkpoint import Progress
from onsa.sources.base import Cursor
from onsa.store.atomic import sha256_file


def write(root: Path, step: int, best_step: int | None = None) -> Path:
    progress = Progress(Cursor(step, 1, 2), best=0.5, best_step=best_step, stale=1)
    return checkpoint.write(root, progress, lambda folder: save(folder, step))


def save(folder: Path, step: int) -> None:
    (folder / "inner").mkdir()
    (folder / "weights").write_bytes(bytes([step]) * 1000)
    (folder / "inner" / "more").write_text(str(step))


def test_the_manifest_states_every_file(tmp_path: Path) -> None:
    folder = write(tmp_path, 3, 2)
    stated = json.loads((folder / "manifest.json").read_text())
    assert stated == {name: sha256_file(folder / name) for name in ("inner/more", "progress.json", "weights")}
    assert checkpoint.verified(folder) and folder.name == "step-0000003"
    assert checkpoint.progress_of(folder) == Progress(Cursor(3, 1, 2), 0.5, 2, 1)


@pytest.mark.parametrize("damage", ["changed", "cut", "gone", "no manifest", "bad manifest", "empty manifest"])
def test_a_broken_file_is_noticed_and_the_one_before_used(damage: str, tmp_path: Path) -> None:
    sound, broken = write(tmp_path, 1), write(tmp_path, 2)
    weights, manifest = broken / "weights", broken / "manifest.json"
    if damage == "changed":
        weights.write_bytes(bytes([9]) + weights.read_bytes()[1:])
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif damage == "gone":
        weights.unlink()
    elif damage == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text("{" if damage == "bad manifest" else "{}")
    assert checkpoint.latest(tmp_path) == (sound, [broken])
    again = write(tmp_path, 2)  # the step comes round again, and its checkpoint is made anew
    assert checkpoint.latest(tmp_path) == (again, [])


def test_a_sound_checkpoint_is_not_written_twice(tmp_path: Path) -> None:
    folder = write(tmp_path, 1)
    before = (folder / "weights").stat().st_mtime_ns

    def fail(folder: Path) -> None:
        raise AssertionError("written again")

    assert checkpoint.write(tmp_path, checkpoint.progress_of(folder), fail) == folder
    assert (folder / "weights").stat().st_mtime_ns == before


def test_drafts_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    def killed(folder: Path) -> None:
        (folder / "weights").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoint.write(tmp_path, Progress(Cursor(1)), killed)
    assert checkpoint.latest(tmp_path) == (None, []) and checkpoint.folders(tmp_path) == []
    assert [path.name for path in tmp_path.iterdir()] == [".draft-step-0000001"]
    write(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000002"]


def test_pruning_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for step in range(1, 8):
        write(tmp_path, step)
    checkpoint.prune(tmp_path, 2, 3)
    assert [folder.name[-1] for folder in checkpoint.folders(tmp_path)] == ["3", "6", "7"]
    checkpoint.prune(tmp_path, 1, 7)
    assert [folder.name[-1] for folder in checkpoint.folders(tmp_path)] == ["7"]
    checkpoint.prune(tmp_path, 1, None)
    assert [folder.name[-1] for folder in checkpoint.folders(tmp_path)] == ["7"]


def test_nothing_there_is_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path / "nowhere") == (None, [])


def test_an_evaluation_counts_as_better_above_the_delta_only() -> None:
    at = Progress(Cursor(1)).seen(1.0, lower=True, min_delta=0.1)
    assert (at.best, at.best_step, at.stale) == (1.0, 1, 0)
    at = Progress(Cursor(2), at.best, at.best_step, at.stale).seen(0.95, lower=True, min_delta=0.1)
    assert (at.best, at.best_step, at.stale) == (1.0, 1, 1)
    at = Progress(Cursor(3), at.best, at.best_step, at.stale).seen(0.85, lower=True, min_delta=0.1)
    assert (at.best, at.best_step, at.stale) == (0.85, 3, 0)
    at = Progress(Cursor(4), at.best, at.best_step, at.stale).seen(0.9, lower=False, min_delta=0.0)
    assert (at.best, at.best_step, at.stale) == (0.9, 4, 0)
