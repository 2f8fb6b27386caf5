"""Rollouts: what is told of a policy's own answers, what they are worth, and what goes wrong where they are graded."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

import tiny
import trial
from onsa.adaptations.base import hushed
from onsa.engine.batches import micro_batches
from onsa.models.batch import Example, collate, texts
from onsa.models.load import load
from onsa.models.policy import Policy
from onsa.objectives.base import Grouped
from onsa.objectives.ppo import Ppo, gae, whitened
from onsa.programs.prepare import Prepared
from onsa.programs.rollouts import feed, graders
from onsa.programs.train import Finished, train
from onsa.sources.base import Cursor
from onsa.spec import registry
from onsa.spec.errors import OnsaError, RecipeError, TrainingError
from onsa.spec.recipe import parse_recipe
from plugins import distribution

LORA = {"kind": "lora", "rank": 2}
REWARD = {"kind": "regex", "pattern": "[a-m]"}


def prompts(folder: Path) -> Path:
    path = folder / "prompts.jsonl"
    rows = [{"prompt": text, "topic": topic} for text, topic in tiny.questions()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def learner(model: Path, folder: Path, objective: Any, **sections: Any) -> Prepared:
    source = {"kind": "rollouts", "group": 4, "max_new_tokens": 6, "reward": REWARD, **sections.pop("source", {})}
    given = {"source": source, "objective": objective, "adaptation": LORA, "optimizer": {"kind": "adamw", "lr": 0.02}}
    return trial.ready(model, prompts(folder), **{**given, **sections})


def learnt(prepared: Prepared, steps: int = 3) -> tuple[Any, list[list[Example]], list[dict[str, float]]]:
    """A session after some steps, the rows of each, and what each came to."""
    session = trial.opened(prepared)
    rows, said = [], []
    given = feed(prepared, session, graders(prepared))
    for examples, _ in islice(prepared.source.steps(given, Cursor()), steps):
        batches = micro_batches(examples, prepared.plan, prepared.recipe.train.accumulate)
        means = session.forward_backward(batches, trial.objective(prepared))
        session.step()
        rows.append(examples)
        said.append(means)
    return session, rows, said


def whole(policy: Policy, row: Example) -> list[list[float]]:
    """The log-probability of each token of a row's answers, each behind a prompt of its own."""
    policy.network.eval()
    with torch.no_grad():
        return [policy.logprobs(collate([text])).tolist() for text in texts(row)]


def told(row: Example, name: str) -> list[list[float]]:
    return [row.told[name][answer].tolist() for answer in row.answers()]


def close(found: list[list[float]], wanted: list[list[float]], tolerance: float = 1e-4) -> bool:
    return all(one == pytest.approx(other, abs=tolerance) for one, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize("adaptation", [LORA, "full"])
def test_what_is_told_is_what_the_models_say(adaptation: Any, tiny_llama: Path, tmp_path: Path) -> None:
    """Before the first step policy and reference are the base; later the reference still is, and the policy is not."""
    source = {"prompts": 8, "passes": 2, "temperature": 0.7}
    objective = {"kind": "grpo", "beta": 0.1}
    prepared = learner(tiny_llama, tmp_path, objective, source=source, adaptation=adaptation)
    _, rows, said = learnt(prepared, 3)
    base = load(prepared.base.folder, prepared.recipe.model, prepared.task.head, (), None, 7).network
    bare = Policy(base, 0, torch.device("cpu"), temperature=0.7)
    assert rows[0][0].told["old"] is not None
    for row in rows[0]:
        assert close(told(row, "old"), whole(bare, row)) and close(told(row, "reference"), whole(bare, row))
        assert close(told(row, "drawn"), told(row, "old"))
    for row in rows[2]:  # of the second round
        assert close(told(row, "reference"), whole(bare, row)) and close(told(row, "drawn"), told(row, "old"))
        assert not close(told(row, "old"), whole(bare, row), 1e-3)
    assert [{row.row for row in step} for step in rows[:2]] == [{row.row for row in rows[0]}] * 2
    assert abs(said[0]["kl"]) < 1e-6 < said[2]["kl"] and said[0]["gap"] < 1e-4
    assert all(row.graded["reward"].min() >= 0 and len(row.graded["reward"]) == 4 for row in rows[0])


def test_steps_do_not_hang_on_micro_batches_or_passes(tiny_llama: Path, tmp_path: Path) -> None:
    """Eight rows at once and one by one, with the speed passes and without, learn alike from the same answers."""
    objective = {"kind": "ppo", "whiten": False}
    prepared = learner(tiny_llama, tmp_path, objective, source={"prompts": 8, "passes": 2}, accel="off")
    _, rows, said = learnt(prepared, 2)
    session = trial.opened(prepared)
    for examples, means in zip(rows, said, strict=True):
        found = session.forward_backward(micro_batches(examples, prepared.plan, 8), trial.objective(prepared))
        session.step()
        assert found == pytest.approx(means, rel=1e-4, abs=1e-6)
    fast = learner(tiny_llama, tmp_path, objective, source={"prompts": 8, "passes": 2}, accel="auto")
    session = trial.opened(fast)
    for examples, means in zip(rows, said, strict=True):
        found = session.forward_backward(micro_batches(examples, fast.plan, 1), trial.objective(fast))
        session.step()
        assert found == pytest.approx(means, rel=1e-3, abs=1e-5)


def test_advantages_of_a_group() -> None:
    reward_A = np.asarray([1.0, 0.0, 0.5, 0.5])
    spread = reward_A.std(ddof=1) + 1e-4
    wanted = {
        "grpo": (reward_A - 0.5) / spread,
        "gspo": (reward_A - 0.5) / spread,
        "dr-grpo": reward_A - 0.5,
        "rloo": reward_A - np.asarray([1 / 3, 2 / 3, 0.5, 0.5]),
    }
    for kind, advantage_A in wanted.items():
        found = cast(Grouped, registry.load("objective", kind)())
        assert found.ahead(reward_A) == pytest.approx(advantage_A)
        assert found.ahead(np.ones(4)) == pytest.approx(np.zeros(4)) and len(found.ahead(np.ones(1))) == 1


def test_generalised_advantages_are_those_of_the_sum() -> None:
    """Against equation 16 of Schulman et al. 2016 as it is written, a sum over all later tokens."""
    dice = np.random.default_rng(3)
    for length in (1, 2, 7):
        reward_L, value_L = dice.normal(size=(2, length))
        following_L = np.r_[value_L[1:], 0.0]
        for gamma, lam in ((1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (1.0, 0.0)):
            error_L = reward_L + gamma * following_L - value_L
            powers_LL = np.triu((gamma * lam) ** np.maximum(np.arange(length)[None] - np.arange(length)[:, None], 0))
            assert gae(reward_L, value_L, gamma, lam) == pytest.approx(powers_LL @ error_L)


def test_credit_is_the_reward_less_the_divergence(tiny_llama: Path, tmp_path: Path) -> None:
    """PPO's advantages and returns of a rollout, computed again answer by answer."""
    objective = {"kind": "ppo", "beta": 0.3, "gamma": 0.9, "lam": 0.8}
    prepared = learner(tiny_llama, tmp_path, objective, source={"prompts": 8, "passes": 1})
    _, rows, _ = learnt(prepared, 3)
    for step in rows:
        plain = []
        for row in step:
            for answer, reward in zip(row.answers(), row.graded["reward"], strict=True):
                value_L = row.told["value"][answer].astype(np.float64)
                reward_L = -0.3 * (row.told["old"][answer] - row.told["reference"][answer]).astype(np.float64)
                reward_L[-1] += reward
                plain.append(gae(reward_L, value_L, 0.9, 0.8))
                assert row.told["return"][answer] == pytest.approx(plain[-1] + value_L, abs=1e-5)
        every = np.concatenate(plain)
        wanted = (every - every.mean()) / np.sqrt(every.var(ddof=1) + 1e-8)
        found = np.concatenate([row.told["advantage"][answer] for row in step for answer in row.answers()])
        assert found == pytest.approx(wanted, abs=1e-4)
        assert found.mean() == pytest.approx(0, abs=1e-5) and found.std(ddof=1) == pytest.approx(1, abs=1e-3)


def test_whitening_leaves_prompts_alone() -> None:
    weight_T = np.asarray([0, 0, 1, 1, 1], np.float32)
    row = Example(np.arange(5, dtype=np.int32), weight_T, part_P=(2, 1, 2))
    (found,) = whitened([row.telling(advantage=np.asarray([0, 0, 1.0, 2.0, 3.0]))])
    assert found.told["advantage"].tolist() == pytest.approx([0, 0, -1, 0, 1])


def test_the_weight_of_the_divergence_is_steered(tiny_llama: Path, tmp_path: Path) -> None:
    """Ziegler et al. 2019, section 2.2: at the most by a fifth of a tenth a rollout."""
    row = Example(np.arange(3, dtype=np.int32), np.asarray([0, 1, 1], np.float32), part_P=(1, 2))
    far = row.telling(old=np.asarray([0, -1.0, -1.0]), reference=np.asarray([0, -2.0, -3.0]))
    near = row.telling(old=np.asarray([0, -1.0, -1.0]), reference=np.asarray([0, -1.0, -1.0]))
    ppo = Ppo(beta=0.5, target_kl=1.0)
    assert ppo.steered([far], 0.5) == pytest.approx(0.5 * 1.02) and ppo.steered([near], 0.5) == pytest.approx(0.49)
    assert ppo.steered([far, near, near], 0.5) == pytest.approx(0.5) and Ppo().steered([far], 0.5) == 0.5
    for idle in ({"kl": "loss"}, {"beta": 0}):
        with pytest.raises(RecipeError) as caught:
            parse_recipe({"model": "m", "data": "d", "objective": {"kind": "ppo", "target_kl": 1.0, **idle}})
        assert caught.value.problems[0].code == "target-kl-idle"


def test_the_critic_stays_behind(tiny_llama: Path, tmp_path: Path) -> None:
    """What is deployed has no value head: PEFT opens it, and it answers."""
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    train_ = {"max_steps": 2}
    prepared = learner(tiny_llama, tmp_path, "ppo", train=train_, evaluate={"bootstrap": 100})
    *_, last = train(prepared.recipe)
    assert isinstance(last, Finished)
    (weights,) = (last.run.folder / "model").glob("*.safetensors")
    assert not any("value_head" in name for name in load_file(weights))
    with hushed():
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), weights.parent)
    assert {entry["metric"] for entry in last.document["comparisons"]} == {"reward", "ended"}
    checkpoint = sorted((last.run.folder / "checkpoints").glob("step-*"))[-1]
    assert any("value_head" in name for name in load_file(checkpoint / "trainable.safetensors"))


FAILING = """
def raises(sample, item):
    if item["topic"] == "food":
        raise KeyError("no such dish")
    return 1.0


def unknown(sample, item):
    return float("nan") if item["topic"] == "food" else 1.0
"""


@pytest.mark.parametrize("entry", ["raises", "unknown"])
def test_a_reward_that_fails_names_the_sample(
    entry: str, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = "[onsa.functions]\nraises = failing:raises\nunknown = failing:unknown\n"
    with distribution(tmp_path / "site", {"failing.py": FAILING}, points, monkeypatch):
        reward = {"kind": "function", "entry": entry}
        prepared = learner(tiny_llama, tmp_path, "grpo", source={"reward": reward})
        with pytest.raises(TrainingError) as caught:
            list(train(prepared.recipe))
    (problem,) = caught.value.problems
    assert problem.code == "reward-fails" and problem.key == "source.reward"
    assert problem.file is not None and problem.file.endswith("prompts.jsonl") and problem.line is not None
    line = Path(problem.file).read_text().splitlines()[problem.line - 1]
    assert json.loads(line)["topic"] == "food"
    assert ("no such dish" if entry == "raises" else "nan") in str(problem)


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"source": "dataset", "task": "prompt"}, "source-makes-none"),
        ({"task": "text-generation", "data": "pairs"}, "source-mismatch"),
        ({"adaptation": "prompt"}, "rollouts-soft-prompt"),
        ({"engine": {"kind": "torchrun", "processes": 2, "device": "cpu"}}, "rollouts-alone"),
        ({"source": {"kind": "rollouts", "reward": REWARD, "max_new_tokens": 1000}}, "answers-over-context"),
        ({"source": {"kind": "rollouts", "reward": []}}, "value-refused"),
        ({"source": {"kind": "rollouts", "reward": {"kind": "regex", "pattern": "("}}}, "pattern-refused"),
        ({"source": {"kind": "rollouts", "reward": {"kind": "json-schema", "shape": {"type": 3}}}}, "schema-refused"),
        ({"source": {"kind": "rollouts", "reward": {"kind": "regexp"}}}, "kind-unknown"),
        ({"objective": "sft"}, "objective-mismatch"),
        ({"train": {"best": "loss"}}, "metric-unknown"),
    ],
)
def test_what_does_not_go_together_is_refused(
    changed: dict[str, Any], code: str, tiny_llama: Path, tmp_path: Path
) -> None:
    source = {"kind": "rollouts", "reward": REWARD}
    values: dict[str, Any] = {"objective": "grpo", "adaptation": LORA, "source": source, **changed}
    path = prompts(tmp_path)
    if values.pop("data", None):
        path = tmp_path / "pairs.jsonl"
        path.write_text("".join(json.dumps({"prompt": a, "completion": b}) + "\n" for a, b in tiny.questions()))
    with pytest.raises(OnsaError) as caught:
        trial.ready(tiny_llama, path, **values)
    assert code in [problem.code for problem in caught.value.problems]
