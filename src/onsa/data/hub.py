"""Hub data sets: from the cache where they are there, else from the hub where that answers within two seconds."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import Any

from onsa.data.fingerprint import canonical
from onsa.data.rows import gathered
from onsa.data.table import Row, Table
from onsa.models.hub import KNOCK_TIMEOUT_S, reachable
from onsa.spec.errors import DataError, OnsaError
from onsa.spec.sections import Data

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
SIDES = {"train": "train", "validation": "validation", "valid": "validation", "dev": "validation", "val": "validation"}
SIDES["test"] = "test"


def is_hub_id(name: str) -> bool:
    """Whether a name has the form ``owner/name``."""
    return HUB_ID.fullmatch(name) is not None


def read_hub(data: Data) -> dict[str, Table]:
    """The tables of a hub data set by side of its own split; ``train`` is always there (an only split serves as it).

    Class numbers become the class' names, as far as the data set declares them. ``line`` is the row's number from 1.

    Raises:
        DataError: ``hub-unreachable``, ``hub-missing``, ``hub-subset``, ``hub-broken``, ``hub-no-train``,
            ``file-empty``.
    """
    splits = _cached(data)
    if splits is None:
        if not reachable():
            raise DataError.of("hub-unreachable", file=data.path, seconds=KNOCK_TIMEOUT_S)
        splits = _fetched(data)
    sides = {SIDES[name]: rows for name, rows in splits.items() if name in SIDES}
    if "train" not in sides and len(splits) == 1:
        sides = {"train": next(iter(splits.values()))}
    if "train" not in sides:
        raise DataError.of("hub-no-train", file=data.path, names=", ".join(splits))
    return {side: _table(rows, f"{data.path}/{side}") for side, rows in sides.items()}


def _cached(data: Data) -> dict[str, Any] | None:
    """The splits from the cache of ``datasets``, with no network at all; ``None`` where it is not there."""
    from datasets.packaged_modules.cache.cache import Cache
    from datasets.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()  # it warns that it used the cache, which is what was asked
    try:
        name = data.path.rsplit("/", 1)[-1]
        builder = Cache(dataset_name=name, repo_id=data.path, config_name=data.subset, version="auto", hash="auto")
        builder.download_and_prepare()
        return dict(builder.as_dataset())
    except (ValueError, OSError):
        return None
    finally:
        logging.set_verbosity(level)


def _fetched(data: Data) -> dict[str, Any]:
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    try:
        return dict(datasets.load_dataset(data.path, data.subset))
    except DatasetNotFoundError:
        raise DataError.of("hub-missing", file=data.path) from None
    except (ConnectionError, TimeoutError):
        raise DataError.of("hub-unreachable", file=data.path, seconds=KNOCK_TIMEOUT_S) from None
    except Exception as error:  # each hub data set fails in a way of its own
        raise _fault(error, data) from None


def _fault(error: Exception, data: Data) -> OnsaError:
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    if "config" in reason.lower() and isinstance(error, ValueError):
        choices = re.findall(r"'([^']+)'", str(error).partition("[")[2].partition("]")[0])
        return DataError.of("hub-subset", file=data.path, value=data.subset or "-", choices=", ".join(choices) or "-")
    return DataError.of("hub-broken", file=data.path, reason=reason)


def _table(split: Any, file: str) -> Table:
    names = {
        column: feature.names for column, feature in split.features.items() if type(feature).__name__ == "ClassLabel"
    }
    digest = hashlib.sha256()

    def named() -> Iterator[Row]:
        for number, found in enumerate(split, 1):
            values = dict(found)
            for column, classes in names.items():
                place = values[column]  # -1 stands for "not known" in hub data sets
                values[column] = classes[place] if place is not None and place >= 0 else None
            digest.update(canonical(values) + b"\n")
            yield Row(values, file, number)

    rows = gathered(named())
    if not rows:
        raise DataError.of("file-empty", file=file)
    return Table(rows, list(split.column_names), file, "hub", digest.hexdigest())
