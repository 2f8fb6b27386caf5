"""Drawing: the next token of each of many answers, from its logits, its seed and what it has said.

Shape legend: R rows, V vocabulary, T tokens of a prompt, k the likeliest tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from onsa.serve.asks import Ask, Said, Top

GREEDY = 1e-5  # a temperature below which the likeliest token is taken
NOT_FINITE = "The logits are not finite."
LIKELIEST = 256  # tokens among which the likeliest that have a probability together are first looked for


class Draw:
    """The state of one answer's draws. A token is found by the inverse of the distribution function."""

    def __init__(self, ask: Ask) -> None:
        self.ask = ask
        self.times: dict[int, int] = {}
        self._dice = np.random.Generator(np.random.Philox(ask.seed))

    @property
    def greedy(self) -> bool:
        return self.ask.temperature < GREEDY

    @property
    def shifts(self) -> bool:
        """Whether logits are changed before a token is drawn."""
        ask = self.ask
        penalised = bool(self.times) and bool(ask.frequency_penalty or ask.presence_penalty)
        return penalised or bool(ask.logit_bias) or ask.allowed is not None

    def shift(self, logit_V: Tensor) -> None:
        """Add biases, take off penalties, and leave out what may not be said, in place."""
        ask = self.ask
        shifts = dict(ask.logit_bias)
        for token, times in self.times.items():
            shifts[token] = shifts.get(token, 0.0) - times * ask.frequency_penalty - ask.presence_penalty
        if shifts:
            token_k = torch.tensor(list(shifts), device=logit_V.device)
            logit_V[token_k] += torch.tensor(list(shifts.values()), device=logit_V.device)
        if ask.allowed is not None:
            logit_V.masked_fill_(~_allowed(ask.allowed.mask(), logit_V), -torch.inf)

    def chance(self) -> float:
        """The number between 0 and 1 that decides about the next token."""
        return float(self._dice.random())

    def took(self, token: int) -> None:
        """A token was drawn."""
        self.times[token] = self.times.get(token, 0) + 1
        if self.ask.allowed is not None:
            self.ask.allowed.take(token)


def _allowed(mask: np.ndarray, logit_V: Tensor) -> Tensor:
    """Which tokens may be said, as truth values."""
    if mask.dtype != np.bool_:
        mask = np.unpackbits(mask, bitorder="little").astype(np.bool_)
    mask_V = torch.zeros(len(logit_V), dtype=torch.bool)
    known = min(len(mask), len(logit_V))
    mask_V[:known] = torch.tensor(mask[:known])
    return mask_V.to(logit_V.device)


@dataclass(frozen=True)
class Fault:
    """Why a row has no next token."""

    message: str


def draw(logit_RV: Tensor, draws: Sequence[Draw]) -> list[Said | Fault]:
    """The next token of each row; a row that fails does not touch the others.

    Args:
        logit_RV: fp32.
    """
    norm_R = logit_RV.logsumexp(1)
    faults = {row: Fault(NOT_FINITE) for row in _rows(~norm_R.isfinite())}
    chosen_RV = logit_RV
    shifted = [row for row, one in enumerate(draws) if one.shifts and row not in faults]
    if shifted:
        chosen_RV = logit_RV.clone()
        for row in shifted:
            try:
                draws[row].shift(chosen_RV[row])
            except Exception as error:  # what may be said is not this module's code
                faults[row] = Fault(f"{type(error).__name__}: {error}")
        best_R = chosen_RV.amax(1)
        empty = {row: Fault("No token may be said.") for row in _rows(best_R == -torch.inf)}
        faults = {row: Fault(NOT_FINITE) for row in _rows(~best_R.isfinite())} | empty | faults
    token_R = chosen_RV.argmax(1)
    drawn = [row for row, one in enumerate(draws) if not one.greedy and row not in faults]
    if drawn:
        token_R[drawn] = _drawn(chosen_RV[drawn], [draws[row] for row in drawn])
    logprob_R = logit_RV.gather(1, token_R[:, None])[:, 0] - norm_R
    tops = _tops(logit_RV, norm_R, [one.ask.alternatives for one in draws])
    said = zip(token_R.tolist(), logprob_R.tolist(), tops, strict=True)
    found: list[Said | Fault] = []
    for row, (token, logprob, top) in enumerate(said):
        found.append(faults.get(row) or _took(draws[row], Said(token, logprob, top)))
    return found


def _took(one: Draw, said: Said) -> Said | Fault:
    try:
        one.took(said.token)
    except Exception as error:
        return Fault(f"{type(error).__name__}: {error}")
    return said


def _rows(mask_R: Tensor) -> list[int]:
    found: list[int] = mask_R.nonzero()[:, 0].tolist()
    return found


def _drawn(logit_RV: Tensor, draws: Sequence[Draw]) -> Tensor:
    """A token of each row by its own number between 0 and 1, ``token_R``."""
    temperature_R = torch.tensor([one.ask.temperature for one in draws], device=logit_RV.device)
    chance_RV = ((logit_RV - logit_RV.amax(1, keepdim=True)) / temperature_R[:, None]).softmax(1)
    cut = [row for row, one in enumerate(draws) if one.ask.top_p < 1]
    if cut:
        top_p_R = torch.tensor([draws[row].ask.top_p for row in cut], dtype=torch.float64, device=logit_RV.device)
        part_RV = chance_RV[cut]
        chance_RV[cut] = part_RV.masked_fill(part_RV < _least(part_RV, top_p_R, LIKELIEST)[:, None], 0)
    below_RV = chance_RV.cumsum(1, dtype=torch.float64)
    dice_R1 = torch.tensor([[one.chance()] for one in draws], dtype=torch.float64, device=logit_RV.device)
    whole_R1 = below_RV[:, -1:]
    # Never the whole itself, behind which there is no token.
    dice_R1 = torch.minimum(dice_R1 * whole_R1, torch.nextafter(whole_R1, torch.zeros_like(whole_R1)))
    return torch.searchsorted(below_RV, dice_R1, right=True)[:, 0]


def _least(chance_RV: Tensor, top_p_R: Tensor, likeliest: int) -> Tensor:
    """The least probability among each row's likeliest tokens that have ``top_p`` together."""
    likeliest = min(likeliest, chance_RV.shape[1])
    chance_Rk = chance_RV.topk(likeliest, 1).values
    below_Rk = chance_Rk.cumsum(1, dtype=torch.float64) - chance_Rk
    count_R = (below_Rk < top_p_R[:, None]).sum(1)
    least_R = chance_Rk.gather(1, (count_R - 1)[:, None])[:, 0]
    more = _rows(count_R == likeliest) if likeliest < chance_RV.shape[1] else []
    if more:
        least_R[more] = _least(chance_RV[more], top_p_R[more], 8 * likeliest)
    return least_R


def _tops(logit_RV: Tensor, norm_R: Tensor, counts: Sequence[int]) -> list[Top]:
    """The likeliest tokens of each row, as many as are asked for."""
    tops: list[Top] = [()] * len(counts)
    asked = [row for row, count in enumerate(counts) if count]
    if not asked:
        return tops
    most = min(max(counts), logit_RV.shape[1])
    logit_Rk, token_Rk = logit_RV[asked].topk(most, 1)
    logprob_Rk = logit_Rk - norm_R[asked, None]
    for row, tokens, logprobs in zip(asked, token_Rk.tolist(), logprob_Rk.tolist(), strict=True):
        tops[row] = tuple(zip(tokens, logprobs, strict=True))[: counts[row]]
    return tops


def scored(logit_TV: Tensor, tokens: Sequence[int], alternatives: int) -> tuple[list[float], list[Top]]:
    """The log-probability of the token that follows each place, and the likeliest tokens there.

    Args:
        logit_TV: fp32; of these as many are looked at as there are tokens.
    """
    logit_TV = logit_TV[: len(tokens)]
    norm_T = logit_TV.logsumexp(1)
    token_T = torch.tensor(tokens, dtype=torch.long, device=logit_TV.device)
    logprob_T = logit_TV.gather(1, token_T[:, None])[:, 0] - norm_T
    return logprob_T.tolist(), _tops(logit_TV, norm_T, [alternatives] * len(tokens))
