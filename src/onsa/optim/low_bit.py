"""Optimizers of bitsandbytes, with a state that can be saved as plain tensors and numbers."""

from __future__ import annotations

from typing import Any

import torch

from onsa.spec.extras import require

TABLES = ("qmap1", "qmap2")  # what the bytes stand for: one table that all parameters share


def steppable(name: str, groups: list[dict[str, Any]], **settings: Any) -> torch.optim.Optimizer:
    """The library's optimizer of a name over some groups.

    Raises:
        MachineError: bitsandbytes is not installed.
    """
    library = require("bitsandbytes", "low-bit", "optimizer.kind")
    theirs: type[torch.optim.Optimizer] = getattr(library.optim, name)

    class Plain(theirs):  # type: ignore[misc, valid-type]  # a base that is found when it is needed
        """As the library's, whose own state hides tensors in a nested mapping from a sharding that is not used here."""

        def state_dict(self) -> dict[str, Any]:
            document: dict[str, Any] = torch.optim.Optimizer.state_dict(self)
            states = document["state"].items()
            return {**document, "state": {index: _apart(state) for index, state in states}}

    made: torch.optim.Optimizer = Plain(groups, **settings)
    return made


def _apart(state: dict[str, Any]) -> dict[str, Any]:
    """A state whose tensors share no memory with another's: such cannot be saved."""
    return {name: value.clone() if name in TABLES else value for name, value in state.items()}
