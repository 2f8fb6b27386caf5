"""Grading: one answer given to a grader, in the words of OpenAI's reinforcement method."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping
from typing import Any, cast

import psutil

from onsa.programs.rollouts import Runs
from onsa.rewards.base import Reward, Sample
from onsa.rewards.multi import Multi
from onsa.spec import axes
from onsa.spec.errors import OnsaError, RecipeError
from onsa.spec.sandbox import SandboxError

MEMORY_BYTES = 8 << 30  # for a model that grades, and what graders make
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
    _reward(asked["reward"])
    return {}


def grade(asked: Mapping[str, Any]) -> dict[str, Any]:
    """What a grader gives an answer; what goes wrong on the way is told in its place.

    Args:
        asked: the ``grader`` as it came, and as a ``reward``; the ``item`` and the answer, ``model_sample``.

    Raises:
        RecipeError: the grader is none, or a field of it is wrong.
    """
    reward, began = _reward(asked["reward"]), time.monotonic()
    errors: dict[str, Any] = dict.fromkeys(ERRORS, False)
    value, said = 0.0, asked["model_sample"]
    sample = Sample(
        prompt=(), text="", item=asked["item"] or {}, answer=said, tokens=len(said.split()), ended=True, place=("", 0)
    )
    inner: dict[str, float] = {}
    try:
        if isinstance(reward, Multi):
            inner = {name: _number(one, sample) for name, one in reward.rewards.items()}
            value = _finite(reward.together(inner))
        else:
            value = _number(reward, sample)
    except (SandboxError, OnsaError) as error:
        errors |= _told(error)
    except Exception:  # a grader's template is the user's own
        errors["invalid_variable_error"] = True
    metadata = {
        "name": asked["grader"].get("name") or reward.label,
        "type": asked["grader"].get("type") or reward.kind,
        "errors": errors,
        "execution_time": time.monotonic() - began,
        "scores": {reward.label: value, **inner},
        "token_usage": None,
        "sampled_model_name": None,
    }
    return {"reward": value, "metadata": metadata, "sub_rewards": inner, "model_grader_token_usage_per_model": {}}


def _number(reward: Reward, sample: Sample) -> float:
    return _finite(float(reward.open(Runs())([sample])[0]))


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0


def _told(error: Exception) -> dict[str, Any]:
    """Which of OpenAI's flags a failure is."""
    code = error.problems[0].code if isinstance(error, OnsaError) else ""
    if isinstance(error, SandboxError) or code == "python-refused":
        return {"python_grader_runtime_error": True, "python_grader_runtime_error_details": str(error)}
    return {"other_error": True, "model_grader_server_error_details": str(error)}


def main() -> int:
    """Grade what comes in lines, a JSON object each, and answer each with a line; with what is wrong, ``refused``."""
    said, sys.stdout = sys.stdout, sys.stderr  # whatever prints
    _bound_memory()
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer = grade(asked) if "model_sample" in asked else validate(asked)
        except OnsaError as error:
            problem = error.problems[0]
            words = {"message": f"{problem.what} {problem.fix}", "param": problem.key, "code": problem.code}
            answer = {"refused": words}
        print(json.dumps(answer), file=said, flush=True)
    return 0


def _bound_memory() -> None:
    try:
        import resource
    except ImportError:  # not on every system
        return
    held = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY_BYTES, held + MEMORY_BYTES))


def _reward(said: Mapping[str, Any]) -> Reward:
    made, problems = axes.components("reward", [dict(said)])
    if problems:
        raise RecipeError(problems)
    return cast(Reward, made[0])


if __name__ == "__main__":
    sys.exit(main())
