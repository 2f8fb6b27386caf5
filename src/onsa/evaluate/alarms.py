"""Alarms: what goes wrong where a policy learns from rewards, told from its curves (Amodei et al. 2016, section 4;
Gao et al. 2023; Cui et al. 2025).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onsa.evaluate.document import Compared

Figures = Sequence[Mapping[str, float]]  # of each step, by name
FEWEST = 8  # steps from which a beginning and an end can be told apart
LITTLE, SHARE = 0.05, 0.1  # entropy in nats a token, and of its beginning's, below which it has collapsed
FAR = 0.5  # divergence from the reference, in nats a token, from which the policy has run away
RISE = 0.02  # of a reward, in its spread, that counts as one


def alarms(steps: Figures, comparisons: Sequence[Compared] = ()) -> list[str]:
    """The codes of what is wrong.

    ``entropy``: answers to a prompt hardly differ any more, so that nothing more can be learnt from comparing them.
    ``runaway``: the policy has gone far from the model that it began as. ``hacking``: rewards rose, and yet the judge
    prefers the base's answers on held-out prompts.

    Args:
        steps: what steps told, from the first on; those without a reward are none of this module's.
        comparisons: of the finished run, its measured metrics.
    """
    told = [step for step in steps if "reward" in step]
    if len(told) < FEWEST:
        return []
    part = len(told) // 4
    found = []
    entropy, before = _middle(told[-part:], "entropy"), _middle(told[:part], "entropy")
    if entropy is not None and before is not None and entropy < min(LITTLE, SHARE * before):
        found.append("entropy")
    kl = _middle(told[-part:], "kl")
    if kl is not None and kl > FAR:
        found.append("runaway")
    rewards = np.asarray([step["reward"] for step in told])
    rose = rewards[-part:].mean() - rewards[:part].mean() > RISE * max(float(rewards.std()), 1e-6)
    rates = [entry["tuned"]["high"] for entry in comparisons if entry["metric"] == "win_rate"]
    if rose and any(high is not None and high < 0.5 for high in rates):
        found.append("hacking")
    return found


def _middle(steps: Figures, name: str) -> float | None:
    """The median of a figure: single answers may throw a mean far off."""
    known = [step[name] for step in steps if name in step]
    return float(np.median(known)) if known else None
