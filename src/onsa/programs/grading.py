"""Grading: one answer given to a grader, in the words of OpenAI's reinforcement method."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any, cast

from onsa.programs.rollouts import Runs
from onsa.rewards.base import Reward, Sample
from onsa.spec import axes
from onsa.spec.errors import OnsaError, RecipeError

ERRORS = (
    *("formula_parse_error", "invalid_variable_error", "model_grader_parse_error", "model_grader_refusal_error"),
    *("model_grader_server_error", "other_error", "python_grader_runtime_error", "python_grader_server_error"),
    *("sample_parse_error", "truncated_observation_error", "unresponsive_reward_error"),
)


def validate(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Look a grader over.

    Raises:
        RecipeError: it is none, or a field of it is wrong.
    """
    _reward(asked["grader"])
    return {}


def grade(asked: Mapping[str, Any]) -> dict[str, Any]:
    """What a grader gives an answer; what goes wrong on the way is told in its place.

    Raises:
        RecipeError: the grader is none, or a field of it is wrong.
    """
    reward, began = _reward(asked["grader"]), time.monotonic()
    errors: dict[str, Any] = dict.fromkeys(ERRORS, False)
    value, said = 0.0, asked["model_sample"]
    sample = Sample(
        prompt=(), text="", item=asked["item"] or {}, answer=said, tokens=len(said.split()), ended=True, place=("", 0)
    )
    try:
        value = float(reward.open(Runs())([sample])[0])
    except OnsaError as error:
        errors |= {"other_error": True, "model_grader_server_error_details": str(error)}
    except Exception as error:  # a grader's template or function is the user's own
        errors |= {"invalid_variable_error": True, "python_grader_runtime_error_details": str(error)}
    value = value if math.isfinite(value) else 0.0
    metadata = {
        "name": asked["grader"].get("name") or reward.label,
        "type": asked["grader"].get("type") or reward.kind,
        "errors": errors,
        "execution_time": time.monotonic() - began,
        "scores": {reward.label: value},
        "token_usage": None,
        "sampled_model_name": None,
    }
    return {"reward": value, "metadata": metadata, "sub_rewards": {}, "model_grader_token_usage_per_model": {}}


def _reward(said: Mapping[str, Any]) -> Reward:
    made, problems = axes.components("reward", [dict(said)])
    if problems:
        raise RecipeError(problems)
    return cast(Reward, made[0])
