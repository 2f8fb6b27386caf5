"""Safetensors on disk, read without torch: which files hold the weights, whether they are whole, and their hash."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from onsa.spec.errors import ModelError
from onsa.store.atomic import sha256_file, sha256_files, write_text
from onsa.store.home import home

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold a model's weights: one, or the shards that the index names.

    Raises:
        ModelError: there are none (pickles are refused by name), or a shard is missing.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        names = sorted(set(read_json(folder / INDEX).get("weight_map", {}).values()))
        for name in names:
            if not (folder / name).is_file():
                raise ModelError.of("weights-incomplete", file=str(folder), missing=name)
        if names:
            return [folder / name for name in names]
    raise _missing(folder, SINGLE)


def whole_file(folder: Path, name: str) -> Path:
    """A safetensors file that a folder has to have, once it is sure that it is whole.

    Raises:
        ModelError: it is not there (pickles are refused by name), cut off or no safetensors.
    """
    if not (folder / name).is_file():
        raise _missing(folder, name)
    list(_tensors(folder / name))
    return folder / name


def _missing(folder: Path, wanted: str) -> ModelError:
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        return ModelError.of("weights-pickled", file=str(folder), found=", ".join(pickles[:3]))
    return ModelError.of("weights-missing", file=str(folder), wanted=wanted)


def parameters(folder: Path) -> int:
    """How many numbers a model's weights are, from the headers alone; whole-number buffers do not count.

    Raises:
        ModelError: a file is cut off or no safetensors.
    """
    return sum(
        math.prod(shape)
        for file in weight_files(folder)
        for dtype, shape in _tensors(file)
        if dtype.startswith(("F", "BF"))
    )


def weights_hash(folder: Path) -> str:
    """One SHA-256 over a model's safetensors files. A file unchanged in size and time is not read again.

    Raises:
        ModelError: there are no such files.
    """
    place = home() / "cache" / "weights.json"
    known = _known(place)
    hashes, fresh = {}, {}
    for file in weight_files(folder):
        status = file.stat()
        key, stamp = str(file.resolve()), [status.st_size, status.st_mtime_ns]
        size_time_hash = known.get(key, [])
        if size_time_hash[:2] != stamp:
            size_time_hash = fresh[key] = [*stamp, sha256_file(file)]
        hashes[file.name] = str(size_time_hash[2])
    if fresh:
        kept = {key: value for key, value in (_known(place) | fresh).items() if os.path.exists(key)}
        write_text(place, json.dumps(kept, indent=1))
    return sha256_files(hashes)


def read_json(file: Path) -> dict[str, Any]:
    """The mapping in a JSON file of a model.

    Raises:
        ModelError: it cannot be read, or is something else.
    """
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError.of("model-json-unreadable", file=str(file), reason=str(error)) from None
    if not isinstance(document, dict):
        raise ModelError.of("model-json-unreadable", file=str(file), reason=type(document).__name__)
    return document


def _known(place: Path) -> dict[str, list[Any]]:
    """The cache of hashes; one that cannot be read is an empty one."""
    try:
        known = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _tensors(file: Path) -> Iterator[tuple[str, list[int]]]:
    """Type and shape of each tensor, from the header, once it is sure that the file holds all of them."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "np") as opened:
            parts = [opened.get_slice(name) for name in opened.keys()]  # noqa: SIM118
            found = [(part.get_dtype(), part.get_shape()) for part in parts]
    except (OSError, SafetensorError):
        raise ModelError.of("weights-damaged", file=str(file)) from None
    yield from found
