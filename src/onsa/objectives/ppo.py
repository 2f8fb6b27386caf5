"""PPO: proximal policy optimisation, with a critic that says what an answer is worth from each token on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from onsa.models.batch import Batch, Example
from onsa.models.policy import Models
from onsa.objectives.base import Floats, Given, Loss, Rewarded, Role, clipped

SMALLEST = 1e-8  # of a variance
STEERING = 0.1  # of the divergence's weight, at the most a fifth as much a rollout (Ziegler et al. 2019, section 2.2)


class Ppo(Rewarded):
    """The clipped ratio of new to old likelihood times a generalised advantage, and a clipped squared error of the
    critic, the mean over all tokens of a step (Schulman et al. 2017, eq. 9; Ouyang et al. 2022, section 3.5).

    beta: weight of the divergence from the reference.
    kl: where that counts: in the ``reward`` of each token, ``log p - log p of the reference``, or in the ``loss`` (k3).
    target_kl: the divergence of an answer, in nats, that ``beta`` is steered to.
    clip: how far from 1 the ratio counts.
    value_clip: how far a value may move from what it was.
    value_weight: of the critic's error.
    gamma, lam: how much later rewards count, and later values against rewards (Schulman et al. 2016, eq. 16).
    whiten: bring the advantages of a rollout to mean 0 and variance 1.
    """

    kind: ClassVar[str] = "ppo"
    uses: ClassVar[frozenset[Role]] = frozenset({Role.REFERENCE, Role.CRITIC})
    beta: Annotated[float, Field(ge=0)] = 0.02
    kl: Literal["reward", "loss"] = "reward"
    target_kl: Annotated[float, Field(gt=0)] | None = None
    clip: Annotated[float, Field(gt=0, lt=1)] = 0.2
    value_clip: Annotated[float, Field(gt=0)] = 0.2
    value_weight: Annotated[float, Field(ge=0)] = 0.1
    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0
    lam: Annotated[float, Field(ge=0, le=1)] = 0.95
    whiten: bool = True

    @model_validator(mode="after")
    def _steerable(self) -> Ppo:
        if self.target_kl is not None and (self.kl == "loss" or not self.beta):
            raise PydanticCustomError("target-kl-idle", "target-kl-idle")
        return self

    @property
    def remembers(self) -> bool:
        return True

    def credit(self, rows: Sequence[Example], beta: float) -> list[Example]:
        found = []
        for row in rows:
            advantage_T, return_T = np.zeros(len(row.token_T)), np.zeros(len(row.token_T))
            for answer, reward in zip(row.answers(), row.graded["reward"], strict=True):
                value_L = row.told["value"][answer].astype(np.float64)
                reward_L = np.zeros(len(value_L))
                if self.beta and self.kl == "reward":
                    reward_L -= beta * (row.told["old"][answer] - row.told["reference"][answer])
                reward_L[-1] += reward
                advantage_T[answer] = gae(reward_L, value_L, self.gamma, self.lam)
                return_T[answer] = advantage_T[answer] + value_L
            found.append(row.telling(**{"advantage": advantage_T, "return": return_T}))
        return whitened(found) if self.whiten else found

    def steered(self, rows: Sequence[Example], beta: float) -> float:
        if self.target_kl is None:
            return beta
        apart = [(row.told["old"] - row.told["reference"])[answer].sum() for row in rows for answer in row.answers()]
        return float(beta * (1 + STEERING * np.clip(np.mean(apart) / self.target_kl - 1, -0.2, 0.2)))

    def __call__(self, models: Models, batch: Batch) -> Loss:
        logprob_M, value_M = models.policy.valued(batch)
        given, critic = Given(batch, logprob_M), Given(batch, value_M)
        weight_M = batch.weight_M.to(logprob_M.device)
        loss_M, cut_M = clipped(given.moved_M.exp(), given.own("advantage"), self.clip, self.clip)
        if self.beta and self.kl == "loss":
            loss_M = loss_M + self.beta * given.kl_M
        before_M, return_M = critic.own("value"), critic.own("return")
        near_M = before_M + (value_M - before_M).clamp(-self.value_clip, self.value_clip)
        error_M = 0.5 * torch.maximum((value_M - return_M).square(), (near_M - return_M).square())
        told = {"clip_share": cut_M, "value_loss": error_M.detach(), **given.watched()}
        metrics = {name: (weight_M * one_M).sum() for name, one_M in told.items()}
        return Loss((weight_M * (loss_M + self.value_weight * error_M)).sum(), weight_M.sum(), metrics)


def gae(reward_L: Floats, value_L: Floats, gamma: float, lam: float) -> Floats:
    """The generalised advantage of each token of an answer, behind whose last nothing comes (Schulman et al. 2016,
    eq. 16)."""
    found_L, later = np.zeros(len(reward_L)), 0.0
    for place in reversed(range(len(reward_L))):
        following = value_L[place + 1] if place + 1 < len(value_L) else 0.0
        later = reward_L[place] + gamma * following - value_L[place] + gamma * lam * later
        found_L[place] = later
    return found_L


def whitened(rows: Sequence[Example]) -> list[Example]:
    """Rows whose advantages have the mean 0 and the variance 1 over all tokens of all answers."""
    every = np.concatenate([row.told["advantage"][row.part_P[0] :] for row in rows if row.part_P])
    mean, spread = every.mean(), np.sqrt(every.var(ddof=1 if len(every) > 1 else 0) + SMALLEST)
    found = []
    for row in rows:
        assert row.part_P is not None
        answers_T = np.arange(len(row.token_T)) >= row.part_P[0]
        found.append(row.telling(advantage=np.where(answers_T, (row.told["advantage"] - mean) / spread, 0.0)))
    return found
