"""Parity: the losses of whole training runs against TRL's and transformers' own trainers, in fp32.

Run as ``python -m benchmarks.parity``; ``--quick`` takes fewer steps. Prints a table, then one JSON line with the same
figures, and exits with 1 where one is out of tolerance.

Both sides begin with the same weights (Onsa's initial adapter or head is saved, and loaded by the reference), see the
same rows in the same order, and have the same AdamW, clipping and schedule, without dropout. Onsa goes its ordinary
way: a recipe, ``prepare``, a session and the loop, with its speed passes on and off. The references are used as their
users use them, through their documented options alone:

- TRL's ``SFTTrainer`` gets a PEFT model and a data set that is tokenised already, with the columns ``input_ids`` and
  ``assistant_masks``, of which it makes its labels itself. The masks are given, since SmolLM2's chat template marks no
  assistant's turns (``{% generation %}``), and TRL's prompt and completion columns would train one token more than Onsa
  does: the newline after the end of the turn, which no generation ever reaches.
- transformers' ``Trainer`` gets a data set of ``input_ids`` and ``labels`` and ``DataCollatorWithPadding``.
- Both take ``train_sampling_strategy="sequential"``.

Schedules: over steps counted from 0, the linear and cosine schedules of transformers and of Onsa are the same function
while there is no warm-up, and the comparison has none. With warm-up they differ on purpose: transformers' first step
has a rate of 0 and moves nothing, while Onsa's rise over n steps has the factors 1/(n+1) … n/(n+1), so each counts.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

if find_spec("trl") is None:
    print('parity needs TRL: pip install -c constraints.txt -e ".[bench]"', file=sys.stderr)
    sys.exit(2)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from datasets import Dataset, disable_progress_bars
from peft import PeftModel
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer

from onsa.engine import loop
from onsa.engine.batches import micro_batches
from onsa.engine.events import Stepped
from onsa.models.load import quiet
from onsa.programs.demo import demos
from onsa.programs.forecast import build, work
from onsa.programs.prepare import Prepared, prepare
from onsa.sources.base import Cursor
from onsa.spec.recipe import Recipe, parse_recipe

LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-4, 1e-5
STEPS, QUICK_STEPS = 30, 5
ROWS = 8  # of the step whose gradients are compared


@dataclass(frozen=True)
class Result:
    """The largest relative difference of one comparison, beside what is tolerated."""

    case: str
    against: str
    steps: int
    difference: float
    tolerance: float

    @property
    def holds(self) -> bool:
        return self.difference <= self.tolerance


def chat(folder: Path, **settings: Any) -> Recipe:
    """LoRA on SmolLM2, with the shortest rows of the support data."""
    lines = Path(_demo("support")).read_text(encoding="utf-8").splitlines()
    short = set(sorted(lines, key=len)[:120])
    path = folder / "short.jsonl"
    path.write_text("\n".join(line for line in lines if line in short), encoding="utf-8")
    return _recipe("smollm2-135m", {"path": str(path)}, {"task": "chat", "adaptation": "lora"} | settings, 4, 1e-3)


def topics(folder: Path, **settings: Any) -> Recipe:
    """Every weight of MiniLM, with the topics data."""
    data = {"path": _demo("topics"), "columns": {"text": "question", "label": "topic"}}
    return _recipe("minilm-l6", data, {"task": "text-classification", "adaptation": "full"} | settings, 16, 2e-4)


def _demo(name: str) -> str:
    return next(demo.recipe.data.path for demo in demos() if demo.name == name)


def _recipe(model: str, data: dict[str, Any], settings: dict[str, Any], rows: int, lr: float) -> Recipe:
    base: dict[str, Any] = {"name": model}
    if settings["task"] != "chat":
        base["head_dropout"] = 0.0
    return parse_recipe(
        {
            "model": base,
            "data": data,
            "source": {"kind": "dataset", "shuffle": False},
            "optimizer": {"kind": "adamw", "lr": lr, "lr_new": lr, "weight_decay": 0.01},
            "schedule": {"kind": "linear", "warmup": 0},
            "engine": {"kind": "local", "device": "cpu"},
            "train": {"batch_rows": rows, "epochs": 10, "max_steps": STEPS, "precision": "fp32", "clip": 1.0},
            **settings,
        }
    )


def steady(network: nn.Module) -> nn.Module:
    """The network with every dropout at zero."""
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return network


def ours(prepared: Prepared, folder: Path) -> list[float]:
    """The loss of each step of a run, over the ordinary way; its initial weights lie in ``folder / "initial"`` then."""
    built = build(prepared)
    prepared.adaptation.save(steady(built.network), prepared.tokenizer, folder / "initial")
    job = loop.Job(
        session=prepared.engine.open(work(built)),
        source=prepared.source,
        feed=prepared.feed,
        task=prepared.task,
        objective=prepared.recipe.objective,
        plan=built.prepared.plan,
        validation=(),
        checkpoints=folder / "checkpoints",
    )
    return [event.loss for event in loop.run(job) if isinstance(event, Stepped)]


def same_settings(prepared: Prepared, folder: Path) -> dict[str, Any]:
    """A recipe's settings under the names that transformers' trainers have for them."""
    train, optimizer = prepared.recipe.train, prepared.recipe.optimizer
    return {
        "output_dir": str(folder / "reference"),
        "max_steps": prepared.total,
        "per_device_train_batch_size": train.batch_rows,
        "train_sampling_strategy": "sequential",
        "optim": "adamw_torch",
        "learning_rate": optimizer.lr,
        "weight_decay": optimizer.weight_decay,
        "adam_beta1": optimizer.betas[0],
        "adam_beta2": optimizer.betas[1],
        "adam_epsilon": optimizer.eps,
        "max_grad_norm": train.clip,
        "lr_scheduler_type": prepared.recipe.schedule.kind,
        "warmup_steps": 0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
    }


def trl_sft(prepared: Prepared, folder: Path) -> list[float]:
    """The loss of each step of TRL's SFTTrainer on a PEFT model."""
    base = AutoModelForCausalLM.from_pretrained(prepared.base.folder, dtype=torch.float32)
    rows = [
        {"input_ids": example.token_T.tolist(), "assistant_masks": [int(weight) for weight in example.weight_T]}
        for example in prepared.examples["train"]
    ]
    trainer = SFTTrainer(
        model=PeftModel.from_pretrained(base, folder / "initial", is_trainable=True),
        args=SFTConfig(**same_settings(prepared, folder), max_length=None, packing=False),
        train_dataset=Dataset.from_list(rows),
        processing_class=prepared.tokenizer,
    )
    return _trained(trainer)


def hf_classifier(prepared: Prepared, folder: Path) -> list[float]:
    """The loss of each step of transformers' Trainer on a sequence classifier."""
    network = AutoModelForSequenceClassification.from_pretrained(folder / "initial", dtype=torch.float32)
    rows = [{"input_ids": example.token_T.tolist(), "labels": example.target} for example in prepared.examples["train"]]
    trainer = Trainer(
        model=steady(network),
        args=TrainingArguments(**same_settings(prepared, folder)),
        train_dataset=Dataset.from_list(rows),
        data_collator=DataCollatorWithPadding(prepared.tokenizer),
    )
    return _trained(trainer)


def _trained(trainer: Trainer) -> list[float]:
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


CASES = (
    ("LoRA SFT, smollm2-135m", chat, "TRL SFTTrainer + PEFT", trl_sft),
    ("classification, minilm-l6, full", topics, "transformers Trainer", hf_classifier),
)


def losses(steps: int) -> Iterable[Result]:
    """Each case's losses with the passes on and off, against its reference's."""
    for case, recipe, name, reference in CASES:
        with TemporaryDirectory() as temporary, quiet():
            folder = Path(temporary)
            train = {"max_steps": steps}
            plain = _limited(recipe(folder, accel="off"), train)
            wanted: list[float] = []
            for mode in ("off", "auto"):
                prepared = prepare(plain.model_copy(update={"accel": plain.accel.model_copy(update={"mode": mode})}))
                found = ours(prepared, folder / mode)
                wanted = wanted or reference(prepared, folder / mode)
                yield Result(f"{case}, accel {mode}", name, steps, _apart(found, wanted), LOSS_TOLERANCE)


def _limited(recipe: Recipe, train: dict[str, Any]) -> Recipe:
    return recipe.model_copy(update={"train": recipe.train.model_copy(update=train)})


def _apart(found: list[float], wanted: list[float]) -> float:
    """The largest relative difference of two equally long series."""
    return max(abs(mine - theirs) / abs(theirs) for mine, theirs in zip(found, wanted, strict=True))


def gradients() -> Iterable[Result]:
    """Each case's gradient of eight rows at once, against eight micro-batches of one row."""
    for case, recipe, *_ in CASES:
        with TemporaryDirectory() as temporary, quiet():
            prepared = prepare(_limited(recipe(Path(temporary), accel="off"), {"batch_rows": ROWS}))
            built = build(prepared)
            steady(built.network)
            session = prepared.engine.open(work(built))
            examples, _ = next(iter(prepared.source.steps(prepared.feed, Cursor())))
            once, split = (_gradient(session, prepared, examples, parts) for parts in (1, ROWS))
            difference = float((once - split).norm() / once.norm())
        yield Result(f"{case}, gradient of 8 x 1", "1 x 8", 1, difference, GRADIENT_TOLERANCE)


def _gradient(session: Any, prepared: Prepared, examples: list[Any], parts: int) -> Tensor:
    """The gradient of all trainable values in one line, from so many micro-batches."""
    batches = micro_batches(examples, prepared.plan, parts)
    assert len(batches) == parts
    session.forward_backward(batches, prepared.recipe.objective)
    network = session.models.policy.network
    gradient = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
    network.zero_grad(set_to_none=True)
    return gradient.double()


def main() -> int:
    """Measure, print, and judge."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parity", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_STEPS} steps in place of {STEPS}")
    steps = QUICK_STEPS if parser.parse_args().quick else STEPS
    results = []
    disable_progress_bars()
    print(f"{'case':<52} {'against':<22} {'steps':>5} {'difference':>10} {'tolerated':>9}")
    for measure in (gradients(), losses(steps)):
        for result in measure:
            results.append(result)
            print(
                f"{result.case:<52} {result.against:<22} {result.steps:>5} {result.difference:>10.1e}"
                f" {result.tolerance:>9.0e}{'' if result.holds else '  OUT OF TOLERANCE'}",
                flush=True,
            )
    holds = all(result.holds for result in results)
    print(json.dumps({"benchmark": "parity", "holds": holds, "results": [asdict(result) for result in results]}))
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
