"""States: hidden states of rows on disk, mapped into memory, each found by the content of its row.

A folder of states holds ``states.bin`` (the values of all rows end to end), ``rows.npy`` (a digest a row, in order),
``ends.npy`` (where each row ends) and ``about.json`` (what kind of values, and a checksum). It is written whole and
then renamed into place, so there is never a part of one; its name is the key of all that its values depend on.

Shape legend: R rows of a batch, T the longest row's places, N places of all rows, D width.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from onsa.store.atomic import explained, publish
from onsa.store.cache import draft, make_room, root, size

KIND = "states"
DIGEST_BYTES = 16
VALUES, ROWS, ENDS, ABOUT = "states.bin", "rows.npy", "ends.npy", "about.json"


@dataclass(frozen=True)
class States:
    """States of some rows.

    value_ND: all of them, mapped from the file.
    places: by digest of a row, where its states begin and end.
    single: whether a row has one state, not one a token.
    dtype: of the values when they were computed, which they are handed out in.
    """

    value_ND: Tensor
    places: dict[bytes, tuple[int, int]]
    single: bool
    dtype: torch.dtype

    def __contains__(self, row: bytes) -> bool:
        return row in self.places

    def padded(self, rows: Sequence[bytes]) -> Tensor:
        """The states of some rows, ``state_RTD`` with zeros behind each row's end, or ``state_RD`` of single ones."""
        places = [self.places[row] for row in rows]
        if self.single:
            return self.value_ND[[start for start, _ in places]].to(self.dtype)
        longest = max(end - start for start, end in places)
        state_RTD = torch.zeros(len(rows), longest, self.value_ND.shape[1], dtype=self.dtype)
        for index, (start, end) in enumerate(places):
            state_RTD[index, : end - start] = self.value_ND[start:end]
        return state_RTD


def digest(token_T: npt.NDArray[Any], type_T: npt.NDArray[Any] | None) -> bytes:
    """What a row is known by: its tokens, and their types where it has any."""
    found = hashlib.blake2b(token_T.astype("<i4").tobytes(), digest_size=DIGEST_BYTES)
    if type_T is not None and type_T.any():
        found.update(b"types" + type_T.astype("<i4").tobytes())
    return found.digest()


def opened(key: str) -> States | None:
    """The states of a key, if they are there and whole; such as are not are removed."""
    folder = _folder(key)
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        rows, ends = np.load(folder / ROWS), np.load(folder / ENDS)
        held, given = getattr(torch, about["held"]), getattr(torch, about["given"])
        values = int(ends[-1]) * about["width"]
        if (folder / VALUES).stat().st_size != values * held.itemsize or _checksum(folder) != about["checksum"]:
            raise ValueError("not the bytes that were written")
    except (OSError, ValueError, KeyError, AttributeError, IndexError):
        shutil.rmtree(folder, ignore_errors=True)
        return None
    os.utime(folder)  # what is not used goes first
    value_ND = torch.from_file(str(folder / VALUES), shared=False, size=values, dtype=held).view(-1, about["width"])
    starts = np.concatenate([[0], ends[:-1]])
    places = {row.tobytes(): (int(start), int(end)) for row, start, end in zip(rows, starts, ends, strict=True)}
    return States(value_ND, places, about["single"], given)


class Writing:
    """Writes the states of a key row by row, beside, and puts them in place in the end.

    Args:
        single: a row has one state, not one a token.
        half: hold the values as fp16.

    Raises:
        MachineError: the disk is full, or the folder may not be written.
    """

    def __init__(self, key: str, single: bool, half: bool) -> None:
        self.key, self.single, self.half = key, single, half
        self.rows: list[bytes] = []
        self.ends: list[int] = []
        self.width, self.dtype = 0, torch.float32
        with explained(root(KIND), 0):
            self.draft = draft(KIND, key)
            self.file = (self.draft / VALUES).open("wb")

    def add(self, row: bytes, state_TD: Tensor) -> None:
        """One more row."""
        self.width, self.dtype = state_TD.shape[-1], state_TD.dtype
        held = (state_TD.half() if self.half else state_TD).cpu().contiguous()
        with explained(self.draft.parent, held.nbytes):
            self.file.write(held.view(torch.uint8).numpy().tobytes())
        self.rows.append(row)
        self.ends.append((self.ends[-1] if self.ends else 0) + len(state_TD))

    def done(self, budget: int) -> States:
        """Put all of it in place; of other states the oldest go, where all together would take more than the budget."""
        self.file.close()
        held = torch.float16 if self.half else self.dtype
        with explained(self.draft.parent, 0):
            np.save(self.draft / ROWS, np.frombuffer(b"".join(self.rows), np.uint8).reshape(-1, DIGEST_BYTES))
            np.save(self.draft / ENDS, np.asarray(self.ends, np.int64))
            about = {"held": _name(held), "given": _name(self.dtype), "width": self.width, "single": self.single}
            (self.draft / ABOUT).write_text(json.dumps({**about, "checksum": _checksum(self.draft)}), encoding="utf-8")
            make_room(KIND, budget - size(self.draft))
            try:
                publish(self.draft, _folder(self.key))
            except FileExistsError:  # another run has written the same meanwhile
                self.abandon()
        found = opened(self.key)
        assert found is not None, "what was just written is whole"
        return found

    def abandon(self) -> None:
        """Leave nothing behind."""
        self.file.close()
        shutil.rmtree(self.draft, ignore_errors=True)


def _folder(key: str) -> Path:
    return root(KIND) / key


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _checksum(folder: Path) -> str:
    found = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for name in (VALUES, ROWS, ENDS):
        with (folder / name).open("rb") as file:
            while part := file.read(1 << 22):
                found.update(part)
    return found.hexdigest()
