"""Tokenised: encoded rows on disk, mapped into memory, so that the next run over the same rows need not encode them.

A folder of them holds the arrays of :class:`onsa.models.batch.Example`, all rows end to end, and a manifest with a
checksum of each. Its name is the key of all that encoding depends on: the rows, the task with its settings, the
tokenizer with its template, the length and the versions. It is written whole and then renamed into place; one that is
damaged is made anew.

Shape legend: R rows, N tokens of all rows in one line.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onsa.data.dataset import fingerprint
from onsa.data.table import Row
from onsa.engine.batches import encode
from onsa.models.batch import Example, Made, Sizes
from onsa.models.load import tokenizer_hash
from onsa.store.atomic import explained, publish, sha256_file
from onsa.store.cache import draft, make_room, root, size
from onsa.tasks.base import Task

FEWEST = 2_000  # rows for which a place on disk pays
PARALLEL, PART = 20_000, 1_000  # rows from which several processes encode; rows that one takes at once
KIND, MANIFEST = "tokens", "manifest.json"
PARTS = ("part_R.npy", "part_P.npy", "rank_A.npy")
KEPT_BYTES = 20_000_000_000  # of all folders together; those used longest ago go first
Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Tokenised(Made):
    """Examples that are read from the disk when they are asked for.

    ends_R: where each row ends among the tokens; ``token_N`` and the others are mapped from files.
    parts: of rows that hold answers: where each row's parts end, the tokens of each part, and the answers' ranks.
    """

    token_N: Array
    ends_R: Array
    row_R: Array
    cut_R: Array
    weight_N: Array | None
    type_N: Array | None
    target_R: Array | None
    parts: tuple[Array, ...] | None = None

    @cached_property
    def sizes(self) -> Sizes:
        """As :func:`onsa.models.batch.sizes`; the weights are gone through a part at a time."""
        length_R = np.diff(self.ends_R, prepend=0)
        supervised_R = np.ones(len(self), np.int64)
        if self.weight_N is not None:
            starts_R = self.ends_R - length_R
            for first in range(0, len(self), PART):
                rows = slice(first, first + PART)
                start, end = int(starts_R[first]), int(self.ends_R[rows][-1])
                trains_N = np.asarray(self.weight_N[start:end]) != 0
                trains_N[starts_R[rows] - start] = False  # nothing predicts a row's first token
                supervised_R[rows] = np.add.reduceat(trains_N, starts_R[rows] - start, dtype=np.int64)
        return Sizes(length_R, supervised_R, self.cut_R, self.row_R)

    def __len__(self) -> int:
        return len(self.ends_R)

    def at(self, index: int) -> Example:
        part = slice(int(self.ends_R[index - 1]) if index else 0, int(self.ends_R[index]))
        target, part_P = None if self.target_R is None else self.target_R[index], None
        if self.parts is not None:
            ends_R, length_P, rank_A = self.parts
            first, last = int(ends_R[index - 1]) if index else 0, int(ends_R[index])
            part_P = tuple(length_P[first:last].tolist())
            target = np.asarray(rank_A[first - index : last - index - 1])  # a row has one part more than answers
        return Example(
            token_T=self.token_N[part],
            weight_T=None if self.weight_N is None else self.weight_N[part],
            target=target.item() if isinstance(target, np.generic) else target,
            row=int(self.row_R[index]),
            cut=int(self.cut_R[index]),
            type_T=None if self.type_N is None else self.type_N[part],
            part_P=part_P,
        )


def tokenised(task: Task, rows: Sequence[Row], tokenizer: Any, max_length: int) -> Sequence[Example]:
    """As :func:`onsa.engine.batches.encode`, kept on disk where there are many rows.

    Raises:
        MachineError: the disk is full, or the folder may not be written.
    """
    if len(rows) < FEWEST:
        return encode(task, rows, tokenizer, max_length)
    facts = (task.model_dump(mode="json"), task.kind, tokenizer_hash(tokenizer), max_length, fingerprint({"": rows}))
    versions = [version(name) for name in ("onsa", "transformers", "tokenizers")]
    key = hashlib.sha256(json.dumps([facts, versions], sort_keys=True).encode()).hexdigest()
    folder = root(KIND) / key
    found = _opened(folder)
    if found is None:
        _write(folder, _encoded(task, rows, tokenizer, max_length))
        found = _opened(folder)
    assert found is not None, "what was just written is whole"
    return found


def _encoded(task: Task, rows: Sequence[Row], tokenizer: Any, max_length: int) -> Iterator[Example]:
    """All examples in order, from several processes where there are very many rows."""
    work = partial(_part, task, rows, tokenizer, max_length)
    starts = range(0, len(rows), PART)
    cores = os.cpu_count() or 1
    if len(rows) < PARALLEL or cores == 1 or "fork" not in multiprocessing.get_all_start_methods():
        for start in starts:
            yield from work(start)
        return
    global _shared  # forked processes find it there, so that rows need not be sent to them
    _shared = work
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads, which encode nothing here
            with multiprocessing.get_context("fork").Pool(cores) as pool:
                for part in pool.imap(_from_shared, starts):
                    yield from part
    finally:
        _shared = None


_shared: partial[list[Example]] | None = None


def _from_shared(start: int) -> list[Example]:
    assert _shared is not None
    return _shared(start)


def _part(task: Task, rows: Sequence[Row], tokenizer: Any, max_length: int, start: int) -> list[Example]:
    found = encode(task, rows[start : start + PART], tokenizer, max_length)
    return [replace(example, row=example.row + start) for example in found]


def _write(final: Path, examples: Iterable[Example]) -> None:
    ends, rows, cuts, targets = [0], [], [], []
    parts: list[tuple[int, ...]] = []
    ranks: list[Array] = []
    with explained(final.parent, 0):
        beside = draft(KIND, final.name)
        try:
            with (
                (beside / "token_N.bin").open("wb") as tokens,
                (beside / "weight_N.bin").open("wb") as weights,
                (beside / "type_N.bin").open("wb") as types,
            ):
                for example in examples:
                    tokens.write(example.token_T.astype("<i4").tobytes())
                    zeros = np.zeros(len(example.token_T))
                    weights.write(b"" if example.weight_T is None else example.weight_T.astype("<f4").tobytes())
                    types.write((zeros if example.type_T is None else example.type_T).astype("<i1").tobytes())
                    ends.append(ends[-1] + len(example.token_T))
                    rows.append(example.row)
                    cuts.append(example.cut)
                    if example.part_P is not None:
                        parts.append(example.part_P)
                        ranks.append(example.target)
                    elif example.weight_T is None:
                        targets.append(example.target)
            np.save(beside / "row_R.npy", np.asarray([ends[1:], rows, cuts], np.int64))
            if targets:
                np.save(beside / "target_R.npy", np.asarray(targets))
            if parts:
                counts = np.cumsum([len(part_P) for part_P in parts])
                for name, values in zip(PARTS, (counts, np.concatenate(parts), np.concatenate(ranks)), strict=True):
                    np.save(beside / name, values)
            hashes = {path.name: sha256_file(path) for path in sorted(beside.iterdir())}
            (beside / MANIFEST).write_text(json.dumps(hashes), encoding="utf-8")
            make_room(KIND, KEPT_BYTES - size(beside))
            publish(beside, final)
        except FileExistsError:  # another run has written the same meanwhile
            shutil.rmtree(beside, ignore_errors=True)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise


def _opened(folder: Path) -> Tokenised | None:
    """What a folder holds, if it is there and whole; one that is not is removed."""
    try:
        hashes: dict[str, str] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if any(sha256_file(folder / name) != found for name, found in hashes.items()):
            raise ValueError("not the bytes that were written")
        ends_R, row_R, cut_R = np.load(folder / "row_R.npy")
    except (OSError, ValueError):
        shutil.rmtree(folder, ignore_errors=True)
        return None
    os.utime(folder)
    type_N = _mapped(folder / "type_N.bin", "<i1")
    weighed, labelled = (folder / "weight_N.bin").stat().st_size > 0, "target_R.npy" in hashes
    return Tokenised(
        token_N=_mapped(folder / "token_N.bin", "<i4"),
        ends_R=ends_R,
        row_R=row_R,
        cut_R=cut_R,
        weight_N=_mapped(folder / "weight_N.bin", "<f4") if weighed else None,
        type_N=type_N if type_N.any() else None,
        target_R=np.load(folder / "target_R.npy", mmap_mode="r") if labelled else None,
        parts=tuple(np.load(folder / name, mmap_mode="r") for name in PARTS) if PARTS[0] in hashes else None,
    )


def _mapped(path: Path, dtype: str) -> Array:
    """A file's values; of an empty one, which cannot be mapped, none."""
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.zeros(0, dtype)
