"""Checkpoints: whole or not there, checked when read, and never the best one thrown away."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors import SafetensorError

from onsa.engine import checkpoint
from onsa.engine.checkpoint import Progress
from onsa.sources.base import Cursor
from onsa.spec.errors import MachineError
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


def test_any_gain_is_the_best_and_the_delta_says_what_is_stale() -> None:
    at = Progress()
    for step, value, lower, delta, found in [
        (1, 1.0, True, 0.1, (1.0, 1, 0)),
        (2, 0.95, True, 0.1, (0.95, 2, 1)),
        (3, 0.96, True, 0.1, (0.95, 2, 2)),
        (4, 0.8, True, 0.1, (0.8, 4, 0)),
        (5, 0.9, False, 0.0, (0.9, 5, 0)),
        (6, float("nan"), False, 0.0, (0.9, 5, 1)),
        (7, float("inf"), False, 0.0, (0.9, 5, 2)),
    ]:
        at = replace(at, cursor=Cursor(step)).seen(value, lower, delta)
        assert (at.best, at.best_step, at.stale) == found


FULL = OSError(errno.ENOSPC, "No space left on device")
FULL_RUST = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("fault", [FULL, FULL_RUST], ids=["python", "rust"])
def test_a_disk_that_fills_is_said_and_nothing_is_left(fault: Exception, tmp_path: Path) -> None:
    sound = write(tmp_path, 1)

    def fill(folder: Path) -> None:
        (folder / "weights").write_bytes(b"half")
        raise fault

    with pytest.raises(MachineError) as caught:
        checkpoint.write(tmp_path, Progress(Cursor(2)), fill)
    assert caught.value.problems[0].code == "disk-full"
    assert list(tmp_path.iterdir()) == [sound]


def test_any_other_fault_of_saving_stays_what_it_is(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        raise SafetensorError("invalid header")

    with pytest.raises(SafetensorError, match="invalid header"):
        checkpoint.write(tmp_path, Progress(Cursor(2)), fail)
