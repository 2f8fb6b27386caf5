"""Kept: what a run's rows give in a network that does not change, from the disk where it is, else computed and written:
their states at a boundary, and a reference's log-probabilities.

The key of a file is a hash of all that its values depend on: the base, the values that take part, the rows, precision,
device, and the versions of what computes. Rows go through in an order and in blocks that hang on the rows alone, so
the same values come out whoever computes them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import chain

import torch
from torch import Tensor

from onsa.engine.among import Among
from onsa.engine.batches import evaluation_batches
from onsa.engine.sessions.base import Work
from onsa.models.batch import Batch, Example, collate, texts
from onsa.models.boundary import POOLED, Boundary, Taken, taking
from onsa.models.policy import Policy
from onsa.models.reference import Recorded, asked
from onsa.models.states import States, Writing, digest, opened
from onsa.models.strata import Strata

LAYOUT = 2  # of the values' meaning; another number makes earlier ones useless
REFERENCE = 0  # where a reference stands among cuts
Given = Iterator[tuple[int, bytes, Tensor]]  # at which cut, of which row, its values


@torch.no_grad()
def boundary(policy: Policy, strata: Strata, work: Work, among: Among) -> Boundary:
    """The boundary that a plan asks for, with all its states.

    Raises:
        MachineError: the disk is full, or the folder may not be written.
    """
    plan = work.plan
    assert plan.anatomy is not None and plan.anatomy.reads is not None
    reads = plan.anatomy.reads
    rows = {digest(text.token_T, text.type_T): text for example in chain(*work.sides) for text in texts(example)}
    filing = Filing(policy, work, among, rows)
    below = {cut: [p for p, depth in strata.parameters if depth < cut and not p.requires_grad] for cut in plan.cuts}
    keys = {cut: filing.key((cut, plan.states), below[cut]) for cut in plan.cuts}
    single = frozenset(cut for cut in plan.cuts if cut > strata.top and reads == POOLED)

    def give(batch: Batch, missing: Sequence[int]) -> Given:
        return _states(policy, strata, batch, missing, reads)

    return Boundary(policy.network, strata, filing.found(keys, give, single))


@torch.no_grad()
def reference(policy: Policy, work: Work, among: Among) -> Recorded:
    """What a network that has not trained yet makes of a run's rows; of an adapted one, its base.

    Raises:
        MachineError: the disk is full, or the folder may not be written.
    """
    given = [one for row in chain(*work.sides) for one in (row, row.companion) if one is not None]
    rows = {known: text for one in given for text in texts(one) for known in asked(collate([text]))}
    bare = work.adaptation.base(policy.network)
    takes_part = [p for p in policy.network.parameters() if bare is None or not p.requires_grad]
    filing = Filing(policy, work, among, rows)

    def give(batch: Batch, _: Sequence[int]) -> Given:
        logprob_M, segment_M = policy.logprobs(batch), batch.segment_M
        for index, row in enumerate(asked(batch)):
            yield REFERENCE, row, logprob_M[segment_M.to(logprob_M.device) == index, None]

    with bare or nullcontext():
        return Recorded(filing.found({REFERENCE: filing.key((REFERENCE,), takes_part)}, give)[REFERENCE])


@dataclass(frozen=True)
class Filing:
    """Rows, by what they are known by, whose values are kept: those that a policy gives within some work."""

    policy: Policy
    work: Work
    among: Among
    rows: Mapping[bytes, Example]

    def key(self, facts: tuple[object, ...], takes_part: Iterable[Tensor]) -> str:
        """The name of values: 64 hex digits.

        Args:
            takes_part: all parameters that the values depend on.
        """
        computed_by = [version(name) for name in ("onsa", "torch", "transformers")]
        policy, work = self.policy, self.work
        known = (LAYOUT, *facts, work.base, work.precision, policy.device.type, policy.layout)
        named = hashlib.sha256(repr((known, computed_by, torch.get_num_threads())).encode())
        for parameter in takes_part:
            held = self.among.whole(parameter.detach())
            named.update(held.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        named.update(b"".join(sorted(self.rows)))
        return named.hexdigest()

    def found(
        self, keys: Mapping[int, str], give: Callable[[Batch, Sequence[int]], Given], single: Container[int] = ()
    ) -> dict[int, States]:
        """The values at each cut, computed where they are not there.

        Those that go through the network at the same time all compute them, and the first one writes them.

        Args:
            give: the values of a batch's rows at some cuts.
            single: cuts at which a row has one value, not one a token.
        """
        there = {cut: states for cut, key in keys.items() if (states := opened(key)) is not None}
        missing = self.among.agreed([cut for cut in keys if cut not in there])
        if not missing:
            return there
        plan, network = self.work.plan, self.policy.network
        ordered = [self.rows[row] for row in sorted(self.rows, key=lambda row: (len(self.rows[row].token_T), row))]
        mine = missing if self.among.rank == 0 or not self.among.lockstep else []
        half = plan.states == "fp16"
        writing = {cut: Writing(keys[cut], cut in single, half and cut != REFERENCE) for cut in mine}
        modes = [(module, module.training) for module in network.modules()]
        try:
            network.eval()
            for batch in evaluation_batches(ordered, replace(plan, blocks="as-drawn")):
                for cut, row, value_TD in give(batch, missing):
                    if cut in writing:
                        writing[cut].add(row, value_TD)
            there |= {cut: one.done(int(plan.states_gb * 1e9)) for cut, one in writing.items()}
        except BaseException:
            for one in writing.values():
                one.abandon()
            raise
        finally:
            for module, training in modes:
                module.training = training
        self.among.agreed([])  # when all have come here, all is written
        return there | {cut: _there(keys[cut]) for cut in missing if cut not in writing}


def _states(policy: Policy, strata: Strata, batch: Batch, cuts: Sequence[int], reads: str) -> Given:
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
