"""Kept: the states of a run's rows at a network's boundary, from the disk where they are, else computed and written.

The key of states is a hash of all that their values depend on: the base, the frozen values below the cut, the rows,
precision, device, and the versions of what computes. Rows go through in an order and in blocks that hang on the rows
alone, so the same states come out whoever computes them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from itertools import chain

import torch
from torch import Tensor

from onsa.engine.among import Among
from onsa.engine.batches import evaluation_batches
from onsa.engine.sessions.base import Work
from onsa.models.batch import Batch
from onsa.models.boundary import POOLED, Boundary, Taken, taking
from onsa.models.policy import Policy
from onsa.models.states import States, Writing, digest, opened
from onsa.models.strata import Strata

LAYOUT = 1  # of the states' meaning; another number makes earlier ones useless


@torch.no_grad()
def boundary(policy: Policy, strata: Strata, work: Work, among: Among) -> Boundary:
    """The boundary that a plan asks for, with all its states.

    Those that go through the network at the same time all compute them, and the first one writes them.

    Raises:
        MachineError: the disk is full, or the folder may not be written.
    """
    plan = work.plan
    assert plan.anatomy is not None and plan.anatomy.reads is not None
    reads = plan.anatomy.reads
    rows = {digest(example.token_T, example.type_T): example for example in chain(*work.sides)}
    keys = _keys(policy, strata, work, among, sorted(rows))
    found = {cut: states for cut, key in keys.items() if (states := opened(key)) is not None}
    missing = among.agreed([cut for cut in plan.cuts if cut not in found])
    if missing:
        ordered = [rows[row] for row in sorted(rows, key=lambda row: (len(rows[row].token_T), row))]
        single = {cut: cut > strata.top and reads == POOLED for cut in missing}
        mine = missing if among.rank == 0 or not among.lockstep else []
        writing = {cut: Writing(keys[cut], single[cut], plan.states == "fp16") for cut in mine}
        modes = [(module, module.training) for module in policy.network.modules()]
        try:
            policy.network.eval()
            for batch in evaluation_batches(ordered, replace(plan, blocks="as-drawn")):
                for cut, row, state_TD in _states(policy, strata, batch, missing, reads):
                    if cut in writing:
                        writing[cut].add(row, state_TD)
            found |= {cut: one.done(int(plan.states_gb * 1e9)) for cut, one in writing.items()}
        except BaseException:
            for one in writing.values():
                one.abandon()
            raise
        finally:
            for module, training in modes:
                module.training = training
        among.agreed([])  # when all have come here, all is written
        found |= {cut: _there(keys[cut]) for cut in missing if cut not in writing}
    return Boundary(policy.network, strata, found)


def _states(
    policy: Policy, strata: Strata, batch: Batch, cuts: Sequence[int], reads: str
) -> Iterator[tuple[int, bytes, Tensor]]:
    """What one batch gives at each cut, row by row."""
    taken: Taken = {}
    with taking(policy.network, strata, cuts, taken):
        policy.embed(batch)
    rows = [digest(*row) for row in batch.rows()]
    for cut in cuts:
        given: Tensor = taken[cut][reads] if cut > strata.top else taken[cut]
        for index, (row, length) in enumerate(zip(rows, batch.length_R, strict=True)):
            yield cut, row, given[index : index + 1] if given.ndim == 2 else given[index, :length]


def _there(key: str) -> States:
    """The states of a key, which another process has just written."""
    found = opened(key)
    assert found is not None, "what was just written is whole"
    return found


def _keys(policy: Policy, strata: Strata, work: Work, among: Among, rows: Sequence[bytes]) -> dict[int, str]:
    """The name of the states at each cut: 64 hex digits."""
    computed_by = [version(name) for name in ("onsa", "torch", "transformers")]
    found: dict[int, str] = {}
    for cut in work.plan.cuts:
        facts = (LAYOUT, cut, work.base, work.precision, work.plan.states, policy.device.type, policy.layout)
        named = hashlib.sha256(repr((facts, computed_by, torch.get_num_threads())).encode())
        for parameter, depth in strata.parameters:
            if depth < cut and not parameter.requires_grad:
                held = among.whole(parameter.detach())
                named.update(held.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        named.update(b"".join(rows))
        found[cut] = named.hexdigest()
    return found
