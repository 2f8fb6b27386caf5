"""The peers of :mod:`benchmarks.speed`: TRL's SFTTrainer and transformers' Trainer, used as their users use them."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset, disable_progress_bars
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from onsa.models.batch import Example
from onsa.models.heads import Head
from onsa.models.precision import has_fast_bf16
from onsa.programs.prepare import Prepared

if TYPE_CHECKING:
    from benchmarks.speed_side import Clock

STRATEGIES = {"trl-grouped": "group_by_length", "trl-random": "random", "trl-sequential": "sequential"}


class Watch(TrainerCallback):
    """Tells a clock when training begins and each step ends."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_begin(self, *given: Any, **named: Any) -> None:
        self.clock.begun = time.perf_counter()

    def on_step_end(self, *given: Any, **named: Any) -> None:
        self.clock.step()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **named: Any) -> None:
        if logs and "loss" in logs:
            self.clock.losses.append(float(logs["loss"]))


def common(prepared: Prepared, folder: Path, steps: int, rows: int) -> dict[str, Any]:
    """A recipe's settings under the names that transformers' trainers have for them."""
    train, optimizer = prepared.recipe.train, prepared.recipe.optimizer
    return {
        "output_dir": str(folder),
        "max_steps": steps,
        "per_device_train_batch_size": rows,
        "learning_rate": optimizer.lr,
        "weight_decay": optimizer.weight_decay,
        "max_grad_norm": train.clip,
        "lr_scheduler_type": "linear",
        "warmup_steps": 0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }


def sft(side: str, prepared: Prepared, rows: Sequence[Example], folder: Path, clock: Clock) -> None:
    """TRL's SFTTrainer: its defaults, or the fastest of its options for this machine."""
    from peft import PeftModel
    from transformers import BitsAndBytesConfig
    from trl import SFTConfig, SFTTrainer

    bf16 = has_fast_bf16("cpu") and not side.endswith("sequential")
    options: dict[str, Any] = {}
    steps, batch = prepared.total, prepared.recipe.train.batch_rows or 1
    if side == "trl-default":
        bf16 = True
        steps, batch = (steps, batch) if has_fast_bf16("cpu") else (1, len(rows))
    else:
        options = {
            "bf16": bf16,
            "gradient_checkpointing": False,
            "train_sampling_strategy": STRATEGIES[side],
        }
    adapter = prepared.adaptation.adapter
    start = prepared.base.folder if adapter else folder / "initial"
    quantised: dict[str, Any] = {}
    if prepared.recipe.model.quantize is not None:
        quantised["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16 if bf16 else torch.float32,
            llm_int8_skip_modules=["lm_head"],
        )
        quantised["device_map"] = {"": "cpu"}
    network: Any = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32, **quantised)
    if adapter:
        network = PeftModel.from_pretrained(network, folder / "initial", is_trainable=True)
    data = [
        {"input_ids": example.token_T.tolist(), "assistant_masks": [int(weight) for weight in example.weight_T]}
        for example in rows
    ]
    with tempfile.TemporaryDirectory() as out:
        config = SFTConfig(**common(prepared, Path(out), steps, batch), max_length=None, **options)
        disable_progress_bars()
        trainer = SFTTrainer(
            model=network,
            args=config,
            train_dataset=Dataset.from_list(data),
            processing_class=prepared.tokenizer,
            callbacks=[Watch(clock)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def classifier(side: str, prepared: Prepared, rows: Sequence[Example], folder: Path, clock: Clock) -> None:
    """transformers' Trainer as it comes, with the same parameters frozen, or PEFT's LoRA around the model."""
    adaptation = prepared.adaptation
    labels = len(prepared.task.outputs)
    start = prepared.base.folder if adaptation.adapter else folder / "initial"
    network: Any = AutoModelForSequenceClassification.from_pretrained(start, num_labels=labels, dtype=torch.float32)
    if adaptation.adapter:
        from peft import PeftModel

        network = PeftModel.from_pretrained(network, folder / "initial", is_trainable=True)
    else:
        adaptation.apply(network, Head.ROWS, frozenset({"classifier.weight", "classifier.bias"}), prepared.total)
    data = [{"input_ids": example.token_T.tolist(), "labels": example.target} for example in rows]
    with tempfile.TemporaryDirectory() as out:
        batch = prepared.recipe.train.batch_rows or 1
        disable_progress_bars()
        trainer = Trainer(
            model=network,
            args=TrainingArguments(**common(prepared, Path(out), prepared.total, batch)),
            train_dataset=Dataset.from_list(data),
            data_collator=DataCollatorWithPadding(prepared.tokenizer),
            callbacks=[Watch(clock)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
