"""Boundary: where training begins in a network, and what reaches it from below, kept for every row.

What lies below the lowest parameter that trains gives the same hidden states each time a row goes through. They are
computed once a row and kept on disk (:mod:`onsa.models.states`); from then on the network begins at the boundary: the
blocks below stand aside, and the last of them hands on what was kept. Embeddings, masks and positions are made as ever.

A *cut* is a place to begin: before a block (by its depth, from 2 on), behind the last block (the greatest depth), or,
one more, behind the whole base model, where only a head follows.

Shape legend: R rows, T the longest row's tokens, N tokens of all rows in one line, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from onsa.models.batch import Batch
from onsa.models.lowering import base_network
from onsa.models.states import States, digest
from onsa.models.strata import Strata

POOLED, HIDDEN = "pooler_output", "last_hidden_state"  # transformers' names of what a base model gives
Taken = dict[int, Any]  # what a forward pass gave at each cut


class Reached(BaseException):
    """Raised in a forward pass when it has given all that is wanted of it: no error, but the end of its work."""


@dataclass(frozen=True)
class Boundary:
    """The states of rows at some cuts of a network, which stand in for what gives them."""

    network: nn.Module
    strata: Strata
    states: Mapping[int, States]

    @contextmanager
    def crossing(self, batch: Batch) -> Iterator[None]:
        """Within, a call of the network with this batch begins at the highest cut that nothing below of which trains.

        A batch with rows that are not kept goes through the whole network.
        """
        now = cut_of(self.network, self.strata)
        cut = max((cut for cut in self.states if now is not None and cut <= now), default=None)
        rows = [] if cut is None else [digest(*row) for row in batch.rows()]
        if cut is None or not all(row in self.states[cut] for row in rows):
            yield
            return
        with standing_in(self.network, self.strata, cut, self.states[cut].padded(rows)):
            yield


def cut_of(network: nn.Module, strata: Strata) -> int | None:
    """The highest cut that nothing below of which trains now; ``None`` where training reaches the first block."""
    inner = base_network(network)
    within = {id(parameter) for parameter in inner.parameters()}
    if any(parameter.requires_grad and id(parameter) not in within for parameter in network.parameters()):
        return None  # a soft prompt, which stands before everything
    if inner.base_model is not inner and not any(p.requires_grad for p in inner.base_model.parameters()):
        return strata.top + 1
    return strata.lowest if strata.lowest >= 2 else None


@contextmanager
def standing_in(network: nn.Module, strata: Strata, cut: int, state: Tensor) -> Iterator[None]:
    """Within, calls of a network begin at a cut, with these states in place of what lies below."""
    below = strata.blocks[: cut - 1]
    if cut > strata.top:
        base = base_network(network).base_model
        replaced: list[tuple[Any, Callable[..., Any]]] = [(base, _as_base(type(base), state))]
    else:
        replaced = [(block, _passed_on) for block in below[:-1]]
        replaced.append((below[-1], lambda *given, **named: state.to(_first(given, named).device)))
    try:
        for module, forward in replaced:
            module.forward = forward
        yield
    finally:
        for module, _ in replaced:
            del module.forward


@contextmanager
def taking(network: nn.Module, strata: Strata, cuts: Sequence[int], taken: Taken) -> Iterator[None]:
    """Within, a call of a network fills ``taken`` at some cuts, and ends with the last of them."""

    def take(cut: int, module: nn.Module, given: Any, result: Any) -> None:
        taken[cut] = result
        if len(taken) == len(cuts):
            raise Reached

    with ExitStack() as stack:
        for cut in cuts:
            module = base_network(network).base_model if cut > strata.top else strata.blocks[cut - 2]
            handle = module.register_forward_hook(lambda *call, cut=cut: take(cut, *call))
            stack.callback(handle.remove)
        with suppress(Reached):
            yield


def crosses(network: nn.Module, strata: Strata, cuts: Sequence[int]) -> str | None:
    """Which of the base model's results its head reads, if a network begun at some cuts gives just what it gives as a
    whole (a few tokens are sent through, in eval mode); ``None`` where it does not."""
    device = next(network.parameters()).device
    token_RT = torch.arange(1, 6, device=device).repeat(2, 1)
    inputs = {"input_ids": token_RT, "attention_mask": torch.ones_like(token_RT)}
    try:
        with torch.no_grad():
            whole = network(**inputs).logits
            taken: Taken = {}
            with taking(network, strata, cuts, taken):
                network(**inputs)
        field = HIDDEN
        for cut in cuts:
            state = taken[cut]
            if cut > strata.top:
                field = _read_field(network, inputs, state)
                state = state[field]
            elif not isinstance(state, Tensor):
                return None
            with torch.no_grad(), standing_in(network, strata, cut, state):
                if not torch.equal(network(**inputs).logits, whole):
                    return None
        return field
    except (RuntimeError, TypeError, ValueError, KeyError, AttributeError, IndexError):
        return None  # a network that is built in another way, and goes through as a whole


def _read_field(network: nn.Module, inputs: dict[str, Tensor], given: Any) -> str:
    """The field of a base model's output that the logits depend on."""
    if given.get(POOLED) is None:
        return HIDDEN
    with torch.enable_grad():
        fields = {name: given[name].detach().clone().requires_grad_() for name in (POOLED, HIDDEN)}
        base = base_network(network).base_model
        base.forward = lambda *_, **__: type(given)(**fields)
        try:
            logits = network(**inputs).logits
        finally:
            del base.forward
        read = torch.autograd.grad(logits.sum(), list(fields.values()), allow_unused=True)
    return HIDDEN if read[1] is not None else POOLED


def _as_base(kind: type, state: Tensor) -> Callable[..., Any]:
    """A base model's forward that gives kept states: one a row as its pooled output, or one a token."""
    from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

    def forward(*given: Any, **named: Any) -> Any:
        state_ = state.to(next(iter(named.values())).device)
        if state_.ndim == 3:
            return BaseModelOutputWithPoolingAndCrossAttentions(last_hidden_state=state_)
        unread = state_.new_zeros(()).expand(len(state_), 1, state_.shape[1])
        return BaseModelOutputWithPoolingAndCrossAttentions(last_hidden_state=unread, pooler_output=state_)

    return forward


def _passed_on(*given: Any, **named: Any) -> Tensor:
    return _first(given, named)


def _first(given: Sequence[Any], named: Mapping[str, Any]) -> Tensor:
    """The hidden states that a block is called with."""
    first: Tensor = given[0] if given else named["hidden_states"]
    return first
