"""Onsa's side of :mod:`benchmarks.speed`, each measurement in a process of its own.

Run as ``python -m benchmarks.speed_side ORDER`` with a JSON object. With ``works`` it writes down what both sides need,
for each a folder with the data file, ``rows.json`` (tokenised), ``peer.json`` (the recipe's settings under the names
that transformers has for them) and ``initial`` weights, and prints facts of the machine. With ``work`` it trains, and
prints one JSON line.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from onsa.engine.batches import micro_batches
from onsa.models.blocks import blocks
from onsa.models.fetch import fetch
from onsa.models.load import quiet
from onsa.models.precision import has_fast_bf16
from onsa.models.quantize import count
from onsa.objectives.base import Objective
from onsa.programs.demo import demos
from onsa.programs.forecast import Built, build, work
from onsa.programs.measure import versions
from onsa.programs.prepare import Prepared, prepare
from onsa.sources.base import Cursor
from onsa.spec.recipe import Recipe, parse_recipe
from onsa.store.home import home

MEDIAN, SIGMA, SHORTEST, LONGEST = 90, 0.8, 40, 512  # lengths of the mixed rows, in tokens
AROUND, TOKENS_A_WORD = 45, 1.35  # what the template and the question take of them
EPOCHS, TOPIC_ROWS, QUICK_TOPICS = 5, 16, 96
LORA = {"kind": "lora", "rank": 8}

WORKS: dict[str, dict[str, Any]] = {
    "lora-default": {"adaptation": LORA},
    "lora": {"adaptation": LORA},
    "lora-exact": {"adaptation": LORA, "train": {"precision": "fp32"}},
    "full-default": {"adaptation": "full"},
    "qlora": {"adaptation": LORA, "model": {"quantize": "nf4"}},
    "dpo": {"adaptation": LORA, "objective": "dpo"},
    "topics-full": {"adaptation": "full"},
    "topics-lora": {"adaptation": LORA},
    "topics-last-layers": {"adaptation": {"kind": "last-layers", "blocks": 2}},
    "topics-head": {"adaptation": "head"},
}


@dataclass(frozen=True)
class Order:
    """A work, and the folder of its own."""

    work: str
    folder: Path
    quick: bool
    threads: int

    @property
    def chat(self) -> bool:
        return not self.work.startswith("topics")

    @property
    def steps(self) -> tuple[int, int]:
        """Steps of a chat work, and the rows of each: few of them where TRL's defaults compute bf16 in software."""
        if self.work.endswith("-default") and not has_fast_bf16("cpu"):
            return (2, 1) if self.quick else (2, 4)
        if self.work == "dpo":  # of which every step counts
            return (2, 2) if self.quick else (4, 8)
        return (3, 3) if self.quick else (12, 8)

    def recipe(self) -> Recipe:
        settings = WORKS[self.work]
        if self.work == "dpo":
            data: dict[str, Any] = {"path": str(self.folder / "pairs.jsonl")}
            train = {"batch_rows": self.steps[1], "epochs": 1, "max_length": LONGEST}
            model, task = "smollm2-135m", "preference"
        elif self.chat:
            data = {"path": str(self.folder / "chat.jsonl")}
            train = {"batch_rows": self.steps[1], "epochs": 1, "max_length": LONGEST}
            model, task = "smollm2-135m", "chat"
        else:
            data = {"path": str(self.folder / "topics.csv"), "columns": {"text": "question", "label": "topic"}}
            train = {"batch_rows": TOPIC_ROWS, "epochs": EPOCHS}
            model, task = "minilm-l6", "text-classification"
        values = {
            "task": task,
            "source": {"kind": "dataset", "shuffle": not self.chat},
            "data": {**data, "split": "1:0:0"},
            "optimizer": {"kind": "adamw", "lr": 1e-4, "lr_new": 1e-4, "weight_decay": 0.01},
            "schedule": {"kind": "linear", "warmup": 0},
            "engine": {"kind": "local", "device": "cpu", "threads": self.threads},
        }
        parts = {"model": {"name": model, **settings.get("model", {})}, "train": {**train, **settings.get("train", {})}}
        return parse_recipe({**settings, **values, **parts})


def lay_out(works: list[str], folder: Path, quick: bool, threads: int) -> dict[str, Any]:
    """Write down what both sides of all works need, in a home that has the models and nothing else."""
    data = {demo.name: Path(demo.recipe.data.path).read_text(encoding="utf-8").splitlines() for demo in demos()}
    for model in ("smollm2-135m", "minilm-l6"):
        fetch(model)
    own = folder / "home"
    own.mkdir()
    (own / "models").symlink_to(home() / "models")
    os.environ["ONSA_HOME"] = str(own)
    for name in works:
        order = Order(name, folder / name, quick, threads)
        order.folder.mkdir()
        _write_data(order, data)
        with quiet():
            prepared = prepare(order.recipe())
            built = build(prepared)
            prepared.adaptation.save(built.network, prepared.tokenizer, order.folder / "initial")
        _write_rows(order, prepared)
        facts = _for_peers(prepared, built, order.threads)
        (order.folder / "peer.json").write_text(json.dumps(facts), encoding="utf-8")
    found = {name: version(name) for name in ("trl", "bitsandbytes", "accelerate", "datasets")}
    abilities = {"fast_bf16": has_fast_bf16("cpu"), "cpu": torch.backends.cpu.get_cpu_capability()}
    return {"versions": {**versions(), **found}, **abilities, "cores": os.cpu_count()}


def _write_data(order: Order, data: dict[str, list[str]]) -> None:
    if order.chat:
        steps, rows = order.steps
        lines, name = mixed(data["support"], steps * rows), "chat.jsonl"
        if order.work == "dpo":
            lines, name = paired(lines), "pairs.jsonl"
        (order.folder / name).write_text("\n".join([*lines, ""]), encoding="utf-8")
        return
    header, *lines = data["topics"]
    if order.quick:
        lines = [lines[place] for place in np.linspace(0, len(lines) - 1, QUICK_TOPICS).round().astype(int)]
    (order.folder / "topics.csv").write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")


def mixed(support: list[str], rows: int) -> list[str]:
    """As many rows: one half support pairs, in the other's answers their words, with log-normal lengths."""
    words = " ".join(turn["content"] for line in support for turn in json.loads(line)["messages"]).split()
    dice = np.random.default_rng(7)
    made = []
    for length in dice.lognormal(np.log(MEDIAN), SIGMA, rows - rows // 2).clip(SHORTEST + AROUND, LONGEST - AROUND):
        size = int((length - AROUND) / TOKENS_A_WORD)
        asked, start = (int(dice.integers(len(words) - most)) for most in (6, size))
        turns = [
            {"role": "user", "content": f"{' '.join(words[asked : asked + 6])}?"},
            {"role": "assistant", "content": " ".join(words[start : start + size])},
        ]
        made.append(json.dumps({"messages": turns}))
    pairs = [support[place] for place in dice.choice(len(support), rows // 2, replace=False)]
    both = [*made, *pairs]
    return [both[place] for place in dice.permutation(rows)]


def paired(lines: list[str]) -> list[str]:
    """Rows with the next one's answer as the worse one."""
    talks = [json.loads(line)["messages"] for line in lines]
    return [
        json.dumps({"prompt": asked[:1], "chosen": asked[1:], "rejected": other[1:]})
        for asked, other in zip(talks, [*talks[1:], talks[0]], strict=True)
    ]


def _write_rows(order: Order, prepared: Prepared) -> None:
    """The training rows as peers take them, in the file's order."""
    examples = prepared.examples["train"]
    rows: list[dict[str, Any]]
    if order.work == "dpo":
        text = (order.folder / "pairs.jsonl").read_text(encoding="utf-8")
        rows = [json.loads(line) for line in text.splitlines()]
    elif order.chat:
        steps, size = order.steps
        assert len(examples) == steps * size, "a row was left out"
        rows = [
            {"input_ids": one.token_T.tolist(), "assistant_masks": [int(weight) for weight in cast(Any, one.weight_T)]}
            for one in examples
        ]
    else:
        texts = [prepared.task.inputs(prepared.dataset.train[one.row]) for one in examples]
        rows = [
            {"input_ids": one.token_T.tolist(), "labels": one.target, "text": text}
            for one, text in zip(examples, texts, strict=True)
        ]
    (order.folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")


def _for_peers(prepared: Prepared, built: Built, threads: int) -> dict[str, Any]:
    recipe, adaptation = prepared.recipe, prepared.adaptation
    train, optimizer = recipe.train, cast(Any, recipe.optimizer)
    return {
        "base": str(prepared.base.folder),
        "adapter": adaptation.adapter,
        "quantised": recipe.model.quantize is not None,
        "outputs": len(prepared.task.outputs),
        "trains": [name for name, parameter in built.network.named_parameters() if parameter.requires_grad],
        "bf16": train.precision == "bf16",
        "longest": train.max_length,
        "epochs": train.epochs,
        "threads": threads,
        "trainer": {
            "max_steps": prepared.total,
            "per_device_train_batch_size": train.batch_rows,
            "learning_rate": optimizer.lr,
            "weight_decay": optimizer.weight_decay,
            "adam_beta1": optimizer.betas[0],
            "adam_beta2": optimizer.betas[1],
            "adam_epsilon": optimizer.eps,
            "max_grad_norm": train.clip,
            "lr_scheduler_type": "linear",
            "warmup_steps": 0,
        },
    }


def train(order: Order, started: float) -> dict[str, Any]:
    """Onsa, as the loop goes, from the recipe to the last step."""
    with quiet():
        prepared = prepare(order.recipe())
        built = build(prepared)
    prepared, network = built.prepared, built.network
    below = min(max(prepared.plan.cuts) - 1, len(blocks(network))) if prepared.plan.cuts else 0
    parts = matrices(built)
    trainable = sum(value.numel() for value in network.parameters() if value.requires_grad)
    session, objective = prepared.engine.open(work(built)), cast(Objective, prepared.recipe.objective)
    begin_s, last = time.time() - started, time.perf_counter()
    step_s, trained, tokens, losses = [], [], [], []
    for examples, _ in prepared.source.steps(prepared.feed, Cursor()):
        batches = micro_batches(examples, prepared.plan, prepared.recipe.train.accumulate)
        losses.append(session.forward_backward(batches, objective)["loss"])
        session.step()
        step_s.append(time.perf_counter() - last)
        last += step_s[-1]
        trained.append(sum(example.supervised for example in examples))
        tokens.append(sum(len(example.token_T) for example in examples))
    first = 1 if order.chat and order.work != "dpo" else 0
    once = sum(len(example.token_T) for example in prepared.examples["train"])
    done = sum(size * ways * (once if place < below else sum(tokens[first:])) for place, (size, ways) in parts)
    if order.chat:
        config = prepared.base.config
        ways = 6 if prepared.adaptation.kind == "full" else 4
        done += ways * config["hidden_size"] * config["vocab_size"] * sum(trained[first:])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    del session, built, network
    gc.collect()  # a network holds itself in cycles, and would be at the peak together with the product
    reached, product = done / sum(step_s[first:]), product_rate(prepared.recipe.train.precision == "bf16")
    return {
        "begin_s": begin_s,
        "step_s": step_s,
        "trained": trained,
        "losses": losses,
        "trainable": trainable,
        "precision": prepared.recipe.train.precision,
        "reached": reached,
        "product": product,
        "limit": reached / product,
        "peak_bytes": peak,
    }


def matrices(built: Built) -> list[tuple[int, tuple[int, int]]]:
    """For each block from below: its place, the values of its matrices, and the operations of each for a token.

    Two are for the way forward, two for the input's gradient where there is something to train below or in it, and two
    for the weights' gradient where they train. Adapters' own operations are not counted.
    """
    found, reached = [], False
    for place, (_, block) in enumerate(blocks(built.network)):
        named = list(block.named_parameters())
        size = sum(count(value) for name, value in named if value.ndim == 2 and "lora_" not in name)
        kinds = {"lora_" in name for name, value in named if value.requires_grad}
        reached = reached or bool(kinds)
        found.append((place, (size, 2 + 2 * reached + 2 * (False in kinds))))
    return found


def product_rate(bf16: bool) -> float:
    """Operations a second of one large product, at its best of some."""
    a, b = (torch.randn(2048, 2048, dtype=torch.bfloat16 if bf16 else torch.float32) for _ in range(2))
    spent = []
    for _ in range(5):
        started = time.perf_counter()
        torch.mm(a, b)
        spent.append(time.perf_counter() - started)
    return float(2 * 2048**3 / min(spent))


def main() -> None:
    given = json.loads(sys.argv[1])
    folder, quick, threads = Path(given["folder"]), given["quick"], given["threads"]
    if "works" in given:
        print(json.dumps(lay_out(given["works"], folder, quick, threads)))
    else:
        order = Order(given["work"], folder / given["work"], quick, threads)
        print(json.dumps(train(order, given["started"])))


if __name__ == "__main__":
    main()
