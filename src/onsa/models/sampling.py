"""Sampling: answers drawn from a policy, many at once, each a function of its own seed.

A prompt goes through the network once, and its keys and values are shared by all answers to it. What stands beside an
answer while it is drawn changes it by no more than the rounding of sums.

Shape legend: R prompts, B answers that are drawn now, T tokens of a prompt, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onsa.models.attention import FUSED, PRODUCTS, use, used
from onsa.models.lowering import base_network, soft_prompt
from onsa.models.policy import Policy
from onsa.models.products import resting

AT_ONCE = 64  # answers that are drawn beside each other


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn.

    most: tokens of an answer.
    temperature: logits are divided by it; at 0 the likeliest token is taken.
    top_p: the likeliest tokens that have this probability together are drawn from (Holtzman et al. 2020).
    stops: tokens with which an answer ends; they belong to it.
    """

    most: int
    temperature: float = 1.0
    top_p: float = 1.0
    stops: tuple[int, ...] = ()


@dataclass(frozen=True)
class Answer:
    """Drawn tokens, with the log-probability of each at the sampling's temperature; ``ended`` with a stop token."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    ended: bool


@torch.inference_mode()
def sample(
    policy: Policy, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]], sampling: Sampling
) -> list[list[Answer]]:
    """Answers to prompts: to each as many as it has seeds.

    Raises:
        ValueError: a soft prompt stands in front of every row.
    """
    network = policy.network
    if soft_prompt(network, 1) is not None:
        raise ValueError("nothing is drawn behind a soft prompt")
    network.eval()
    found: list[list[Answer]] = [[] for _ in prompts]
    with policy.autocast(), _attending(network), resting(network):
        for part in _parts(prompts, seeds):
            drawn = _drawn(policy, [prompts[row] for row in part], [seeds[row] for row in part], sampling)
            for row, answers in zip(part, drawn, strict=True):
                found[row] = answers
    return found


def _parts(prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Prompts that are answered together: of like length, and with not too many answers."""
    part: list[int] = []
    for row in sorted(range(len(prompts)), key=lambda row: (len(prompts[row]), row)):
        if part and sum(len(seeds[other]) for other in part) + len(seeds[row]) > AT_ONCE:
            yield part
            part = []
        part.append(row)
    if part:
        yield part


@contextmanager
def _attending(network: Any) -> Iterator[None]:
    """Puts back how the network attends: with its mask here, since prompts are padded on the left."""
    before = used(network)
    try:
        yield
    finally:
        use(network, before)


def _drawn(
    policy: Policy, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]], sampling: Sampling
) -> list[list[Answer]]:
    """Answers to some prompts, all drawn beside each other."""
    counts = [len(each) for each in seeds]
    use(policy.network, FUSED)
    logit_BV, cache, mask_BT = _opened(policy, prompts, counts)
    if policy.device.type == "cpu":  # of one token a row, the fused kernel takes five times as long in bf16
        use(policy.network, PRODUCTS)
    dice = np.asarray([np.random.Generator(np.random.Philox(seed)).random(sampling.most) for s in seeds for seed in s])
    length_B = mask_BT.sum(1)
    alive = torch.arange(len(dice), device=mask_BT.device)
    stops = torch.tensor(sampling.stops or (-1,), device=mask_BT.device)
    tokens: list[list[int]] = [[] for _ in dice]
    logprobs: list[list[float]] = [[] for _ in dice]
    ended = [False] * len(dice)
    for step in range(sampling.most):
        chance_B = torch.from_numpy(dice[alive.cpu().numpy(), step]).to(logit_BV.device)
        token_B, logprob_B = _token(logit_BV, chance_B, sampling)
        stopped_B = torch.isin(token_B, stops)
        for place, token, logprob, stop in zip(
            alive.tolist(), token_B.tolist(), logprob_B.tolist(), stopped_B.tolist(), strict=True
        ):
            tokens[place].append(token)
            logprobs[place].append(logprob)
            ended[place] = stop
        if step + 1 == sampling.most or bool(stopped_B.all()):
            break
        if bool(stopped_B.any()):  # what has ended takes no more time
            kept = (~stopped_B).nonzero().squeeze(1)
            cache.batch_select_indices(kept)
            alive, token_B, mask_BT, length_B = (one[kept] for one in (alive, token_B, mask_BT, length_B))
        mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(mask_BT), 1)], 1)
        given = {"attention_mask": mask_BT, "position_ids": (length_B + step)[:, None]}
        logit_BV = _asked(policy, token_B[:, None], cache, given)
    answers = iter(Answer(tuple(one), tuple(two), stop) for one, two, stop in zip(tokens, logprobs, ended, strict=True))
    return [[next(answers) for _ in range(count)] for count in counts]


def _opened(policy: Policy, prompts: Sequence[Sequence[int]], counts: Sequence[int]) -> tuple[Tensor, Any, Tensor]:
    """The logits behind each prompt, its keys and values, and its mask, all once for each answer to it."""
    from transformers import DynamicCache

    longest = max(map(len, prompts))
    token_RT = torch.full((len(prompts), longest), policy.pad_id)
    mask_RT = torch.zeros((len(prompts), longest), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        token_RT[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask_RT[row, longest - len(prompt) :] = 1
    token_RT, mask_RT = token_RT.to(policy.device), mask_RT.to(policy.device)
    cache = DynamicCache()
    given = {"attention_mask": mask_RT, "position_ids": (mask_RT.cumsum(1) - 1).clamp_min(0)}
    logit_RV = _asked(policy, token_RT, cache, given)
    row_B = torch.repeat_interleave(torch.arange(len(prompts)), torch.tensor(counts)).to(policy.device)
    cache.batch_select_indices(row_B)
    return logit_RV[row_B], cache, mask_RT[row_B]


def _asked(policy: Policy, token_BT: Tensor, cache: Any, given: dict[str, Tensor]) -> Tensor:
    """The logits behind the last of some tokens, fp32; the cache takes up their keys and values."""
    last = (
        {"logits_to_keep": 1}
        if "logits_to_keep" in signature(type(base_network(policy.network)).forward).parameters
        else {}
    )
    said = policy.network(input_ids=token_BT, past_key_values=cache, use_cache=True, **given, **last)
    logit_BV: Tensor = said.logits[:, -1]
    return logit_BV.float()


def _token(logit_BV: Tensor, chance_B: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """The token of each answer that a number between 0 and 1 falls on, and its log-probability."""
    if sampling.temperature == 0:
        logprob_BV = logit_BV.log_softmax(1)
        token_B = logprob_BV.argmax(1)
    else:
        logprob_BV = (logit_BV / sampling.temperature).log_softmax(1)
        chance_BV, order_BV = logprob_BV.exp().double(), None
        if sampling.top_p < 1:
            chance_BV, order_BV = chance_BV.sort(1, descending=True)
            chance_BV *= chance_BV.cumsum(1) - chance_BV < sampling.top_p
        below_BV = chance_BV.cumsum(1)
        place_B1 = torch.searchsorted(below_BV, chance_B[:, None] * below_BV[:, -1:], right=True)
        place_B1 = place_B1.clamp_max(logit_BV.shape[1] - 1)
        token_B = (place_B1 if order_BV is None else order_BV.gather(1, place_B1))[:, 0]
    return token_B, logprob_BV.gather(1, token_B[:, None])[:, 0]
