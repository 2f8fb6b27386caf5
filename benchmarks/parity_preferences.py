"""Parity of what learns from preferences: loss and gradient of one batch against TRL's own trainers, in fp32.

Run as ``python -m benchmarks.parity_preferences``. Prints a table, then one JSON line with the same figures, and exits
with 1 where one is out of tolerance.

Both sides have the same weights: LoRA on SmolLM2 whose B is drawn at random, since a policy that is its reference tells
nothing; of a reward model a head drawn at random as well. The batch is laid out by TRL's own collator from Onsa's
tokens, and TRL's own ``compute_loss`` (``get_batch_loss_metrics`` where that is all there is) is asked, with the
reference that it makes itself. Onsa goes its ordinary way, with its passes and without them.

ORPO, CPO and SimPO learn the better answer as a mean over tokens. TRL takes it over all rows of a batch, Onsa row by
row, as the papers do: TRL is asked about a single pair. TRL's ORPO learns the prompt as well; that part of its loss is
made of its own log-probabilities of the answer here.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

if find_spec("trl") is None:
    print('parity_preferences needs TRL: pip install -c constraints.txt -e ".[bench]"', file=sys.stderr)
    sys.exit(2)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch
from datasets import Dataset, disable_progress_bars
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, RewardConfig, RewardTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from benchmarks.pairs import size, write
from onsa.engine.batches import micro_batches
from onsa.models.batch import Example
from onsa.models.load import quiet
from onsa.programs.demo import constructed
from onsa.programs.forecast import build, work
from onsa.programs.prepare import Prepared, prepare
from onsa.sources.base import Cursor
from onsa.spec.recipe import parse_recipe

# Relative. Sums in another order leave gradients of such losses, which are differences, up to 2e-5 apart in fp32: as
# far as Onsa's own two ways, with its passes and without them, which are held against each other here as well.
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 3e-5
ROWS, RANK = 4, 4
Found = tuple[float, Tensor]  # a mean loss, and its gradient in one line


@dataclass(frozen=True)
class Result:
    """The relative differences of one comparison."""

    case: str
    against: str
    loss: float
    gradient: float
    tolerated: tuple[float, float] = (LOSS_TOLERANCE, GRADIENT_TOLERANCE)

    @property
    def holds(self) -> bool:
        loss, gradient = self.tolerated
        return self.loss <= loss and self.gradient <= gradient


@dataclass(frozen=True)
class Case:
    """An objective with its settings, on so many rows, and how TRL says the same."""

    name: str
    objective: dict[str, Any]
    theirs: Callable[[Prepared, Path, list[Example]], Found]
    against: str
    rows: int = ROWS


def recipe(folder: Path, case: Case, accel: str) -> Any:
    path = folder / "pairs.jsonl"
    if not path.exists():
        write(path, sorted(constructed(), key=size)[:60])
    return parse_recipe(
        {
            "model": "smollm2-135m",
            "data": str(path),
            "task": {"kind": "preference"},
            "adaptation": {"kind": "lora", "rank": RANK},
            "objective": case.objective,
            "source": {"kind": "dataset", "shuffle": False},
            "engine": {"kind": "local", "device": "cpu"},
            "train": {"batch_rows": case.rows, "precision": "fp32", "max_steps": 1},
            "accel": accel,
        }
    )


def ours(prepared: Prepared, folder: Path) -> tuple[Found, list[Example]]:
    """Loss and gradient of the first step; the weights lie in ``folder / "initial"`` then."""
    built = build(prepared)
    noise = torch.Generator().manual_seed(5)
    for name, parameter in built.network.named_parameters():
        if parameter.requires_grad and "lora_A" not in name:
            with torch.no_grad():
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=noise))
    prepared.adaptation.save(built.network, prepared.tokenizer, folder / "initial")
    examples, _ = next(iter(prepared.source.steps(prepared.feed, Cursor())))
    with closing(prepared.engine.open(work(built))) as session:
        batches = micro_batches(examples, built.prepared.plan, 1)
        loss, gradient = session.gradient(batches, prepared.recipe.objective)
    return (loss, torch.cat([gradient[name].flatten() for name in sorted(gradient)])), examples


def answered(example: Example) -> tuple[list[int], list[list[int]]]:
    """A row's prompt and its answers, in tokens."""
    tokens, answers, start = example.token_T.tolist(), [], example.part_P[0]
    for length in example.part_P[1:]:
        answers.append(tokens[start : start + length])
        start += length
    return tokens[: example.part_P[0]], answers


def policy(prepared: Prepared, folder: Path, scores: bool = False) -> Any:
    if scores:
        base = AutoModelForSequenceClassification.from_pretrained(
            prepared.base.folder, num_labels=1, dtype=torch.float32
        )
        base.config.pad_token_id = prepared.tokenizer.pad_token_id
    else:
        base = AutoModelForCausalLM.from_pretrained(prepared.base.folder, dtype=torch.float32)
    return PeftModel.from_pretrained(base, folder / "initial", is_trainable=True)


def settings(folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder / "reference"),
        "per_device_train_batch_size": ROWS,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "max_length": None,
    }


def told(model: Any, loss: Tensor) -> Found:
    loss.backward()
    named = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return float(loss.detach()), torch.cat([named[name].flatten() for name in sorted(named)])


def against_base(trainer: Any) -> Any:
    """The trainer with the base as its reference: of an adapter that is loaded it takes a copy of that."""
    trainer.model.delete_adapter("ref")
    trainer.model.eval()
    return trainer


def words(folder: Path) -> Dataset:
    """A few rows in words, of which a trainer can be made."""
    rows = [json.loads(line) for line in (folder.parent / "pairs.jsonl").read_text().splitlines()[: 2 * ROWS]]
    return Dataset.from_list(rows)


def dpo(**more: Any) -> Callable[[Prepared, Path, list[Example]], Found]:
    def theirs(prepared: Prepared, folder: Path, examples: list[Example]) -> Found:
        trainer = DPOTrainer(
            model=policy(prepared, folder),
            args=DPOConfig(**settings(folder), **more),
            train_dataset=words(folder),
            processing_class=prepared.tokenizer,
        )
        rows = []
        for prompt, (chosen, rejected) in map(answered, examples):
            rows.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected})
        against_base(trainer)
        return told(trainer.model, trainer.compute_loss(trainer.model, trainer.data_collator(rows)))

    return theirs


def kto(prepared: Prepared, folder: Path, examples: list[Example]) -> Found:
    rows = []
    for example in examples:
        prompt, (chosen, rejected) = answered(example)
        _, (other,) = answered(example.companion)
        for answer, label in ((chosen, True), (rejected, False)):
            rows.append({"prompt_ids": prompt, "completion_ids": answer, "KL_completion_ids": other, "label": label})
    few = words(folder)
    trainer = KTOTrainer(
        model=policy(prepared, folder),
        args=KTOConfig(**settings(folder), train_sampling_strategy="sequential"),
        train_dataset=few,
        processing_class=prepared.tokenizer,
    )
    against_base(trainer)
    return told(trainer.model, trainer.compute_loss(trainer.model, trainer.data_collator(rows)))


def reward(**more: Any) -> Callable[[Prepared, Path, list[Example]], Found]:
    def theirs(prepared: Prepared, folder: Path, examples: list[Example]) -> Found:
        trainer = RewardTrainer(
            model=policy(prepared, folder, scores=True),
            args=RewardConfig(**settings(folder), **more),
            train_dataset=words(folder),
            processing_class=prepared.tokenizer,
        )
        rows = []
        for prompt, (chosen, rejected) in map(answered, examples):
            rows.append({"chosen_ids": prompt + chosen, "rejected_ids": prompt + rejected})
        trainer.model.eval()
        return told(trainer.model, trainer.compute_loss(trainer.model, trainer.data_collator(rows)))

    return theirs


def without_reference(kind: type, config: type, **more: Any) -> Callable[[Prepared, Path, list[Example]], Found]:
    def theirs(prepared: Prepared, folder: Path, examples: list[Example]) -> Found:
        trainer = kind(
            model=policy(prepared, folder),
            args=config(**{**settings(folder), "max_length": 512}, **more),
            train_dataset=words(folder),
            processing_class=prepared.tokenizer,
        )
        row: dict[str, Any] = {}
        prompt, answers = answered(examples[0])
        for name, answer in zip(("chosen", "rejected"), answers, strict=True):
            row[f"{name}_input_ids"] = prompt + answer
            row[f"{name}_attention_mask"] = [1] * len(prompt + answer)
            row[f"{name}_labels"] = [-100] * len(prompt) + answer
        row |= {"prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt), "prompt": ""}
        batch = trainer.data_collator([row])
        trainer.model.eval()
        if kind is CPOTrainer:
            loss, _ = trainer.get_batch_loss_metrics(trainer.model, batch, train_eval="train")
        else:  # its own learns the prompt as well
            chosen, rejected, *_ = trainer.concatenated_forward(trainer.model, batch)
            loss = -chosen.mean() - trainer.odds_ratio_loss(chosen, rejected)[0].mean()
        return told(trainer.model, loss)

    return theirs


CASES: Sequence[Case] = (
    Case("reward", {"kind": "reward"}, reward(), "RewardTrainer"),
    Case(
        "reward, centred", {"kind": "reward", "centre": 0.01}, reward(center_rewards_coefficient=0.01), "RewardTrainer"
    ),
    Case("dpo", {"kind": "dpo"}, dpo(beta=0.1), "DPOTrainer"),
    Case("dpo, hinge", {"kind": "dpo", "loss": "hinge"}, dpo(beta=0.1, loss_type=["hinge"]), "DPOTrainer"),
    Case("ipo", {"kind": "ipo", "beta": 0.1}, dpo(beta=0.1, loss_type=["ipo"]), "DPOTrainer"),
    Case("kto", {"kind": "kto"}, kto, "KTOTrainer"),
    Case("cpo", {"kind": "cpo"}, without_reference(CPOTrainer, CPOConfig, beta=0.1), "CPOTrainer", 1),
    Case(
        "simpo",
        {"kind": "simpo", "beta": 2.0, "gamma": 1.0},
        without_reference(CPOTrainer, CPOConfig, loss_type="simpo", beta=2.0, simpo_gamma=1.0, cpo_alpha=0.0),
        "CPOTrainer",
        1,
    ),
    Case("orpo", {"kind": "orpo"}, without_reference(ORPOTrainer, ORPOConfig, beta=0.1), "ORPOTrainer", 1),
)


def measured() -> Iterator[Result]:
    with TemporaryDirectory() as temporary, quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in CASES:
            wanted: Found | None = None
            own: list[Found] = []
            for accel in ("off", "auto"):
                folder = Path(temporary) / f"{case.name}-{accel}"
                prepared = prepare(recipe(Path(temporary), case, accel))
                found, examples = ours(prepared, folder)
                wanted = wanted or case.theirs(prepared, folder, examples)
                own.append(found)
                yield Result(f"{case.name}, accel {accel}", case.against, *apart(found, wanted))
            yield Result(f"{case.name}, on and off", "itself", *apart(*own))


def apart(found: Found, wanted: Found) -> tuple[float, float]:
    """The relative differences of two losses and of two gradients."""
    (loss, gradient), (other, there) = found, wanted
    return abs(loss - other) / abs(other), float((gradient - there).norm() / there.norm())


def judged(name: str, about: str, results: Iterator[Result]) -> int:
    """Print what was measured as it comes, then all of it as one JSON line; 1 where one is out of tolerance, else 0."""
    argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=about).parse_args()
    disable_progress_bars()
    found = []
    print(f"{'case':<28} {'against TRL':<14} {'loss':>8} {'gradient':>9}")
    for result in results:
        found.append(result)
        mark = "" if result.holds else "  OUT OF TOLERANCE"
        print(f"{result.case:<28} {result.against:<14} {result.loss:>8.1e} {result.gradient:>9.1e}{mark}", flush=True)
    holds = all(result.holds for result in found)
    print(json.dumps({"benchmark": name, "holds": holds, "results": [asdict(result) for result in found]}))
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(judged("parity_preferences", __doc__.splitlines()[0], measured()))
