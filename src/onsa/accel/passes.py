"""The order of the passes, in one list."""

from __future__ import annotations

from onsa.accel import (
    adapted_products,
    attention,
    chunked_head,
    frozen_boundary,
    fused_optimizer,
    kernels,
    like_lengths,
    packing,
    recompute,
    shared_prefix,
    supervised_head,
)
from onsa.spec.errors import RecipeError, unknown
from onsa.spec.sections import Accel

ROWS = (like_lengths, supervised_head, fused_optimizer)
NETWORK = (frozen_boundary, adapted_products, kernels, shared_prefix, packing, attention, chunked_head)
MEMORY = (recompute,)
PASSES = (*ROWS, *NETWORK, *MEMORY)


def check_names(accel: Accel) -> None:
    """
    Raises:
        RecipeError: ``accel.skip`` names a pass that does not exist.
    """
    names = [speed_pass.NAME for speed_pass in PASSES]
    problems = [unknown("pass-unknown", name, names, key="accel.skip") for name in accel.skip if name not in names]
    if problems:
        raise RecipeError(problems)
