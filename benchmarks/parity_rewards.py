"""Parity of what learns from rewards: loss and gradient of one batch of drawn answers against TRL's own, in fp32.

Run as ``python -m benchmarks.parity_rewards``. Prints a table, then one JSON line with the same figures, and exits with
1 where one is out of tolerance.

LoRA on SmolLM2, whose B is drawn at random, answers four prompts, four times each, through Onsa's own desk; then what
trains is moved a little, so that new and old likelihoods differ. TRL's ``_compute_loss`` is asked about the same
tokens, masks, old and reference log-probabilities, and about advantages that are computed here again from the rewards,
by the formulas of its trainers. Onsa goes its ordinary way, with its passes and without them.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from benchmarks.parity_preferences import Found, Result, answered, apart, judged, policy, settings, told
from benchmarks.rl import write
from onsa.engine.batches import micro_batches
from onsa.models.batch import Example
from onsa.models.load import quiet
from onsa.programs.forecast import build, work
from onsa.programs.prepare import Prepared, prepare
from onsa.programs.rollouts import feed, graders
from onsa.sources.base import Cursor
from onsa.spec.recipe import parse_recipe

# Relative. Advantages of a group cancel each other, and what rounding leaves of the likelihoods (logits of all tokens
# at once, or of those that count) counts ten times and more. On the ordinary path gradients are less than 2e-5 apart.
TOLERATED = (5e-5, 2e-4)
PROMPTS, GROUP, LONGEST, BETA = 4, 4, 16, 0.04


@dataclass(frozen=True)
class Case:
    """An objective with its settings, TRL's trainer with its own, and the advantages that TRL would compute."""

    name: str
    objective: dict[str, Any]
    trainer: type
    config: Callable[..., Any]
    advantages: Callable[[Tensor, Tensor], Tensor]  # of rewards and divergences, both by group


def recipe(folder: Path, case: Case, accel: str) -> Any:
    reward = [{"kind": "length", "least": 60, "unit": "characters"}, {"kind": "regex", "pattern": "[aeiou]{2}"}]
    source = {"kind": "rollouts", "group": GROUP, "passes": 2, "max_new_tokens": LONGEST, "reward": reward}
    return parse_recipe(
        {
            "model": "smollm2-135m",
            "data": str(write(folder / "prompts.jsonl")),
            "task": {"kind": "prompt"},
            "adaptation": {"kind": "lora", "rank": 4},
            "objective": case.objective,
            "source": source,
            "engine": {"kind": "local", "device": "cpu"},
            "train": {"batch_rows": PROMPTS, "precision": "fp32", "max_steps": 2},
            "accel": accel,
        }
    )


def moved(network: Any, seed: int, scale: float, only: str = "") -> None:
    """Move what trains by noise."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.requires_grad and only in name:
                parameter.add_(scale * torch.randn(parameter.shape, generator=noise))


def ours(prepared: Prepared, folder: Path, examples: list[Example] | None) -> tuple[Found, list[Example]]:
    """Loss and gradient of a step from some answers; without them, from those that the policy draws."""
    built = build(prepared)
    moved(built.network, 5, 0.02, "lora_B")
    with closing(prepared.engine.open(work(built))) as session:
        if examples is None:
            given = feed(prepared, session, graders(prepared))
            examples, _ = next(iter(prepared.source.steps(given, Cursor())))
        moved(session.network(), 6, 0.002)
        prepared.adaptation.save(session.network(), prepared.tokenizer, folder / "initial")
        batches = micro_batches(examples, built.prepared.plan, 1)
        loss, gradient = session.gradient(batches, prepared.recipe.objective)
    return (loss, torch.cat([gradient[name].flatten() for name in sorted(gradient)])), examples


def theirs(case: Case, prepared: Prepared, folder: Path, examples: list[Example]) -> Found:
    few = Dataset.from_list([{"prompt": "hello"}] * 16)
    shared = {**settings(folder), "per_device_train_batch_size": PROMPTS * GROUP, "num_generations": GROUP}
    shared.pop("max_length")
    config = case.config(**shared, max_completion_length=LONGEST, beta=BETA)
    trainer = case.trainer(
        model=policy(prepared, folder),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=config,
        train_dataset=few,
        processing_class=prepared.tokenizer,
    )
    trainer.model.eval()
    return told(trainer.model, trainer._compute_loss(trainer.model, inputs(case, examples)))


def inputs(case: Case, examples: list[Example]) -> dict[str, Tensor]:
    """A batch as TRL's trainers lay it out: prompts padded on the left, answers on the right."""
    prompts, answers, old, reference = [], [], [], []
    for example in examples:
        prompt, given = answered(example)
        for answer, tokens in zip(example.answers(), given, strict=True):
            prompts.append(torch.tensor(prompt[::-1]))
            answers.append(torch.tensor(tokens))
            old.append(torch.from_numpy(example.told["old"][answer]))
            reference.append(torch.from_numpy(example.told["reference"][answer]))
    prompt_ids = pad_sequence(prompts, batch_first=True, padding_value=-1).flip(1)
    completion_ids = pad_sequence(answers, batch_first=True, padding_value=-1)
    mask = (completion_ids >= 0).long()
    old_BT, reference_BT = pad_sequence(old, batch_first=True), pad_sequence(reference, batch_first=True)
    reward_RG = torch.stack([torch.from_numpy(example.graded["reward"]) for example in examples]).float()
    divergence_RG = ((old_BT - reference_BT) * mask).sum(1).view_as(reward_RG)
    return {
        "prompt_ids": prompt_ids.clamp_min(0),
        "prompt_mask": (prompt_ids >= 0).long(),
        "completion_ids": completion_ids.clamp_min(0),
        "completion_mask": mask,
        "old_per_token_logps": old_BT,
        "old_logps": (old_BT * mask).sum(1),
        "ref_per_token_logps": reference_BT,
        "advantages": case.advantages(reward_RG, divergence_RG).flatten(),
    }


def in_spread(reward_RG: Tensor, _: Tensor) -> Tensor:
    return (reward_RG - reward_RG.mean(1, keepdim=True)) / (reward_RG.std(1, keepdim=True) + 1e-4)


def plain(reward_RG: Tensor, _: Tensor) -> Tensor:
    return reward_RG - reward_RG.mean(1, keepdim=True)


def left_out(reward_RG: Tensor, divergence_RG: Tensor) -> Tensor:
    reward_RG = reward_RG - BETA * divergence_RG
    return reward_RG - (reward_RG.sum(1, keepdim=True) - reward_RG) / (GROUP - 1)


def grpo(**more: Any) -> Callable[..., Any]:
    # The divergence as in the paper; TRL's default weighs it by the ratio.
    return lambda **given: GRPOConfig(**{"loss_type": "grpo", "use_bias_correction_kl": False, **more, **given})


CASES = (
    Case("grpo", {"kind": "grpo", "beta": BETA}, GRPOTrainer, grpo(), in_spread),
    Case(
        "dr-grpo",
        {"kind": "dr-grpo", "beta": BETA, "longest": LONGEST},
        GRPOTrainer,
        grpo(loss_type="dr_grpo", scale_rewards="none"),
        plain,
    ),
    Case(
        "gspo",
        {"kind": "gspo", "beta": BETA},
        GRPOTrainer,
        grpo(importance_sampling_level="sequence", epsilon=3e-4, epsilon_high=4e-4),
        in_spread,
    ),
    Case("rloo", {"kind": "rloo", "beta": BETA}, RLOOTrainer, RLOOConfig, left_out),
)


def measured() -> Iterator[Result]:
    with TemporaryDirectory() as temporary, quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in CASES:
            wanted: Found | None = None
            examples: list[Example] | None = None
            own: list[Found] = []
            for accel in ("off", "auto"):
                folder = Path(temporary) / f"{case.name}-{accel}"
                folder.mkdir()
                prepared = prepare(recipe(folder, case, accel))
                found, examples = ours(prepared, folder, examples)
                wanted = wanted or theirs(case, prepared, folder, examples)
                own.append(found)
                yield Result(
                    f"{case.name}, accel {accel}", case.trainer.__name__, *differences(found, wanted, examples)
                )
            yield Result(f"{case.name}, on and off", "itself", *differences(*own, examples or []), TOLERATED)


def differences(found: Found, wanted: Found, examples: list[Example]) -> tuple[float, float]:
    """Of two losses, relative to the size of their terms, since advantages add up to nothing; of two gradients."""
    size = float(np.mean([np.abs(row.told["advantage"][row.part_P[0] :]).mean() for row in examples]))
    return abs(found[0] - wanted[0]) / size, apart(found, wanted)[1]


if __name__ == "__main__":
    sys.exit(judged("parity_rewards", __doc__.splitlines()[0], measured()))
