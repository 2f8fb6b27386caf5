"""The peers of :mod:`benchmarks.speed`, used as their users use them: through their documented options alone.

Run as ``python -m benchmarks.speed_peers ORDER`` with a JSON object: ``work``, ``side``, and the ``folder`` that
:mod:`benchmarks.speed_side` has written to. Prints one JSON line. Nothing of Onsa is loaded here, so that the memory
and the time to begin are the peer's own; each side imports only what it needs.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.utils import logging


class Clock(TrainerCallback):  # type: ignore[misc]  # transformers tells no types here
    """Notes when training begins, what each step took and trained, and the losses that are logged."""

    def __init__(self, started: float) -> None:
        self.started, self.begun = started, False
        self.begin_s = self.last = 0.0
        self.step_s: list[float] = []
        self.trained: list[int] = []
        self.losses: list[float] = []
        self.trainable: int | None = None

    def begin(self) -> None:
        if not self.begun:
            self.begin_s, self.last, self.begun = time.time() - self.started, time.perf_counter(), True

    def step(self) -> None:
        self.step_s.append(time.perf_counter() - self.last)
        self.last += self.step_s[-1]

    def on_train_begin(self, *given: Any, **named: Any) -> None:
        self.begin()

    def on_step_end(self, *given: Any, **named: Any) -> None:
        self.step()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **named: Any) -> None:
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))


def run(trainer: Any, clock: Clock) -> None:
    """Train, counting what each batch trains; batches come in the order of their steps."""
    from transformers import PrinterCallback

    collate = trainer.data_collator
    clock.trainable = sum(value.numel() for value in trainer.model.parameters() if value.requires_grad)

    def counting(rows: list[Any]) -> Any:
        batch = collate(rows)
        if "completion_mask" in batch:
            clock.trained.append(int(batch["completion_mask"].sum()))
            return batch
        labels = batch["labels"]
        asked = labels[:, 1:] if labels.ndim == 2 else labels  # nothing stands before a row's first token
        clock.trained.append(int((asked != -100).sum()))
        return batch

    trainer.data_collator = counting
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(clock)
    trainer.train()


def settings(given: dict[str, Any], out: str, **more: Any) -> dict[str, Any]:
    """What all trainers get; the rest is as they have it."""
    quiet = {"save_strategy": "no", "report_to": "none", "disable_tqdm": True}
    return {"output_dir": out, "use_cpu": True, **quiet, **given["trainer"], **more}


def sft(side: str, given: dict[str, Any], folder: Path, clock: Clock) -> None:
    """TRL's SFTTrainer: as it comes, or with its options for this machine."""
    from datasets import Dataset
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    rows = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
    # The file's order is a random one already. In it, a step has the same rows on both sides.
    options: dict[str, Any] = {"max_length": None, "train_sampling_strategy": "sequential"}
    if side != "trl-default":
        options |= {"bf16": given["bf16"], "gradient_checkpointing": False, "logging_steps": 1}
    if side == "trl-grouped":
        options["train_sampling_strategy"] = "group_by_length"
    if side == "trl-unpadded":
        options["padding_free"] = True
    if side == "trl-packed":
        size = given["trainer"]["per_device_train_batch_size"]
        lengths = [len(row["input_ids"]) for row in rows]
        packs = max(1, round(size * sum(lengths) / len(lengths) / given["longest"]))  # as many tokens a step
        steps = -(-sum(lengths) // (packs * given["longest"]))  # about one epoch
        options |= {"packing": True, "max_length": given["longest"], "per_device_train_batch_size": packs}
        options["max_steps"] = max(2, steps)
    start = given["base"] if given["adapter"] else folder / "initial"
    network: Any = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32, **_quantised(given))
    if given["adapter"]:
        network = PeftModel.from_pretrained(network, folder / "initial", is_trainable=True)
    with tempfile.TemporaryDirectory() as out:
        trainer = SFTTrainer(
            model=network,
            args=SFTConfig(**settings(given, out, **options)),
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(given["base"]),
        )
        run(trainer, clock)


def dpo(side: str, given: dict[str, Any], folder: Path, clock: Clock) -> None:
    """TRL's DPOTrainer: as it comes, or with its options for this machine."""
    from datasets import Dataset
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    rows = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
    options: dict[str, Any] = {"max_length": given["longest"], "train_sampling_strategy": "sequential"}
    if side != "trl-default":
        options |= {"bf16": given["bf16"], "gradient_checkpointing": False, "logging_steps": 1}
    if side == "trl-kept":
        options["precompute_ref_log_probs"] = True
    network: Any = AutoModelForCausalLM.from_pretrained(given["base"], dtype=torch.float32)
    with tempfile.TemporaryDirectory() as out:
        if side == "trl-kept":
            clock.begin()  # the reference, which it computes before the first step, counts
        trainer = DPOTrainer(
            model=PeftModel.from_pretrained(network, folder / "initial", is_trainable=True),
            args=DPOConfig(**settings(given, out, **options)),
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(given["base"]),
        )
        if "ref" in trainer.model.peft_config:  # a copy of the adapter that was loaded; the base is the same, and less
            trainer.model.delete_adapter("ref")
        run(trainer, clock)


def _quantised(given: dict[str, Any]) -> dict[str, Any]:
    if not given["quantised"]:
        return {}
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if given["bf16"] else torch.float32,
    )
    return {"quantization_config": config, "device_map": {"": "cpu"}}


def classifier(given: dict[str, Any], folder: Path, clock: Clock) -> None:
    """transformers' Trainer as it comes, with the same parameters frozen, or with PEFT's LoRA around the model."""
    from datasets import Dataset
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    start = given["base"] if given["adapter"] else folder / "initial"
    network: Any = AutoModelForSequenceClassification.from_pretrained(
        start, num_labels=given["outputs"], dtype=torch.float32
    )
    if given["adapter"]:
        from peft import PeftModel

        network = PeftModel.from_pretrained(network, folder / "initial", is_trainable=True)
    else:
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name in given["trains"])
    rows = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as out:
        trainer = Trainer(
            model=network,
            args=TrainingArguments(**settings(given, out)),
            train_dataset=Dataset.from_list([{name: row[name] for name in ("input_ids", "labels")} for row in rows]),
            data_collator=DataCollatorWithPadding(AutoTokenizer.from_pretrained(given["base"])),
        )
        run(trainer, clock)


def head(side: str, given: dict[str, Any], folder: Path, clock: Clock) -> None:
    """A head on frozen sentence embeddings: SetFit's own, or scikit-learn's logistic regression on what is encoded."""
    rows = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
    texts, labels = [row["text"] for row in rows], [row["labels"] for row in rows]
    model: Any
    if side == "setfit":
        from setfit import SetFitModel  # type: ignore[import-not-found]

        model = SetFitModel.from_pretrained(given["base"])
        encoder = model.model_body
    else:
        from sentence_transformers import SentenceTransformer  # type: ignore[import-not-found]
        from sklearn.linear_model import LogisticRegression

        encoder, model = SentenceTransformer(given["base"]), LogisticRegression()
    begun = time.perf_counter()
    encoder.tokenizer(texts)
    spared = time.perf_counter() - begun
    clock.begin()
    if side == "setfit":
        model.fit(texts, labels, num_epochs=given["epochs"])
    else:
        model.fit(encoder.encode(texts, show_progress_bar=False), labels)
    clock.step()
    clock.step_s = [clock.step_s[0] - spared]
    clock.trained = [len(rows) * given["epochs"]]


def main() -> None:
    order = json.loads(sys.argv[1])
    side, folder = order["side"], Path(order["folder"]) / order["work"]
    given = json.loads((folder / "peer.json").read_text(encoding="utf-8"))
    torch.set_num_threads(given["threads"])
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    clock = Clock(order["started"])
    if order["work"] == "dpo":
        dpo(side, given, folder, clock)
    elif side.startswith("trl"):
        sft(side, given, folder, clock)
    elif side == "trainer":
        classifier(given, folder, clock)
    else:
        head(side, given, folder, clock)
    unit = 1 if sys.platform == "darwin" else 1024
    told = {
        "begin_s": clock.begin_s,
        "step_s": clock.step_s,
        "trained": clock.trained[: len(clock.step_s)],
        "losses": clock.losses,
        **({} if clock.trainable is None else {"trainable": clock.trainable}),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
