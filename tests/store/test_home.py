"""Home and atomic files: there whole or not at all, and clear words where they cannot be."""

import errno
import os
from pathlib import Path

import pytest

from onsa.spec.errors import MachineError
from onsa.store import atomic
from onsa.store.home import home


def test_home_is_made_with_its_folders(onsa_home: Path) -> None:
    assert home() == onsa_home
    assert {folder.name for folder in onsa_home.iterdir()} == {"runs", "models", "cache"}


def test_home_defaults_to_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONSA_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert home() == tmp_path / ".onsa"


def test_home_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ONSA_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(MachineError, match=r"file/home cannot be written .* set ONSA_HOME"):
        home()


def test_home_without_permission_is_named(onsa_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda place, _: Path(place).name != "models")
    with pytest.raises(MachineError, match=r"home/models cannot be written \(Permission denied\)"):
        home()


def test_write_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    atomic.write_text(path, "old")
    atomic.write_text(path, "新しい")
    assert path.read_text(encoding="utf-8") == "新しい"
    assert list(tmp_path.glob(".*")) == []


def test_write_that_fails_keeps_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    atomic.write_bytes(path, b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MachineError, match=r"is full: 2\.0 MB needed"):
        atomic.write_bytes(path, b"x" * 2_000_000)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.glob(".*.tmp")) == []


def test_publish_renames_a_whole_folder(tmp_path: Path) -> None:
    (tmp_path / "tmp/inner").mkdir(parents=True)
    (tmp_path / "tmp/inner/file").write_bytes(b"content")
    atomic.publish(tmp_path / "tmp", tmp_path / "final")
    assert (tmp_path / "final/inner/file").read_bytes() == b"content"
    assert not (tmp_path / "tmp").exists()


def test_publish_never_replaces(tmp_path: Path) -> None:
    for name in ("tmp", "final"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    with pytest.raises(FileExistsError):
        atomic.publish(tmp_path / "tmp", tmp_path / "final")
    assert (tmp_path / "tmp/file").read_text() == "tmp"
    assert (tmp_path / "final/file").read_text() == "final"


def test_space(tmp_path: Path) -> None:
    assert atomic.free_bytes(tmp_path / "not/there/yet") > 0
    atomic.ensure_space(tmp_path, 1)
    with pytest.raises(MachineError, match=r"1,000,000,000,000\.0 MB needed, .* MB free"):
        atomic.ensure_space(tmp_path, 10**18)


def test_hashes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert atomic.sha256_file(tmp_path / "file").startswith("ba7816bf8f01cfea")
    assert atomic.sha256_files({"a": "1", "b": "2"}) == atomic.sha256_files({"b": "2", "a": "1"})
    assert atomic.sha256_files({"a": "1", "b": "2"}) != atomic.sha256_files({"a": "2", "b": "1"})
