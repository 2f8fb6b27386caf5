"""Every key of a recipe does something: each is changed, and the run must show it (or refuse the value).

The keys are found, not listed: those of the sections and of every kind on every axis. The table below says for each
with which value, from which recipe, and by what it shows; a key without an entry fails.
"""

from __future__ import annotations

import json
import shutil
import types
import typing
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
import trial
from onsa.engine.batches import micro_batches
from onsa.engine.events import Evaluated, Saved, Stepped
from onsa.programs.check import check
from onsa.programs.forecast import build
from onsa.programs.prepare import Prepared, prepare
from onsa.programs.rollouts import feed, graders
from onsa.programs.train import Finished, Measuring, train
from onsa.sources.base import Cursor
from onsa.spec import registry
from onsa.spec.component import Section
from onsa.spec.errors import OnsaError
from onsa.spec.recipe import Recipe, parse_recipe
from onsa.spec.sections import Model
from plugins import distribution


def section(annotation: Any) -> type[Section] | None:
    """The section that a field holds, if it holds one."""
    options = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    return next((option for option in options if isinstance(option, type) and issubclass(option, Section)), None)


def leaves(of: type[Section], prefix: str) -> Iterator[str]:
    for name, found in of.model_fields.items():
        inner = section(found.annotation)
        if inner is None:
            yield f"{prefix}{name}"
        else:
            yield from leaves(inner, f"{prefix}{name}.")


def keys() -> Iterator[str]:
    """Every key: ``train.epochs`` of a section, ``adaptation:lora.rank`` of a kind."""
    for name, found in Recipe.model_fields.items():
        if name in registry.AXES:
            yield name
            for kind in registry.kinds(name):
                yield from leaves(registry.load(name, kind), f"{name}:{kind}.")
        else:
            inner = section(found.annotation)
            yield from leaves(inner, f"{name}.") if inner else [name]
    for axis in registry.INNER:
        for kind in registry.kinds(axis):
            yield from leaves(registry.load(axis, kind), f"{axis}:{kind}.")


# What a run shows.

Prepares = Callable[[Prepared], Any]


def rows(p: Prepared) -> Any:
    return {side: [row.values for row in found] for side, found in p.dataset.sides.items()}


def examples(p: Prepared) -> Any:
    def shown(value: Any) -> Any:
        return value.tolist() if hasattr(value, "tolist") else value

    return {
        side: [(shown(e.token_T), shown(e.weight_T), shown(e.target), e.part_P) for e in found]
        for side, found in p.examples.items()
    }


def batches(p: Prepared) -> Any:
    """The rows of each step, in the micro-batches they go through in."""
    steps = p.source.steps(p.feed, Cursor())
    return [[batch.row_R for batch in micro_batches(found, p.plan, p.recipe.train.accumulate)] for found, _ in steps]


def groups(p: Prepared) -> Any:
    session: Any = trial.opened(p)
    return [(g["base_lr"], g["weight_decay"], len(g["params"])) for g in session.optimizer.param_groups]


def losses(p: Prepared) -> Any:
    return [step["loss"] for step in trial.advance(p, trial.opened(p), 4)[0]]


def rolled(p: Prepared) -> Any:
    """What some steps learn from, and what they come to."""
    session, found = trial.opened(p), []
    given = feed(p, session, graders(p))
    for examples, _ in islice(p.source.steps(given, Cursor()), 4):
        batches = micro_batches(examples, p.plan, p.recipe.train.accumulate)
        means = session.forward_backward(batches, trial.objective(p))
        session.step()
        found.append((p.source.told(examples), [example.token_T.tolist() for example in examples], means))
    return found


def run_of(model: str, pairs: str, objective: str, seed: int) -> str:
    """A finished run to judge by."""
    values = {"model": model, "data": pairs, "objective": objective, "train": trial.TRAIN, "seed": seed}
    *_, last = train(parse_recipe({**values, "engine": trial.ENGINE, "optimizer": {"kind": "adamw", "lr": 0.02}}))
    assert isinstance(last, Finished)
    return last.run.id


def graded(recipe: Recipe) -> Any:
    """As :func:`rolled`, by a reward that asks a run: one of a few that are made for it."""
    values = recipe.document()
    pairs = str(Path(recipe.data.path).with_name("preferred.jsonl"))
    for reward in values["source"]["reward"]:
        if "run" in reward:
            objective, _, seed = reward["run"].partition("-")
            reward["run"] = run_of(recipe.model.name, pairs, objective, int(seed))
    return rolled(prepare(parse_recipe(values)))


def heard(p: Prepared) -> Any:
    """As :func:`rolled`, with a model whose words hang on its name, on what it hears, and on how many it may say."""

    def speaker(_: Any, ref: str, most: int) -> Callable[[list[dict[str, str]]], str]:
        return lambda messages: f"0.{len(ref)}{len(messages[0]['content']) % 10}{most}"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onsa.programs.rollouts.Runs.speaker", speaker)
        return rolled(p)


def rates(p: Prepared) -> Any:
    return [step["lr"] for step in trial.advance(p, trial.opened(p), 6)[0]]


def rates_watched(p: Prepared) -> Any:
    """The rates of steps after each of which something a little better is observed."""
    session, found, at = trial.opened(p), [], None
    for value in (1.0, 0.9, 0.8, 0.7):
        (said,), at = trial.advance(p, session, 1, at)
        found.append(said["lr"])
        session.observe(value)
    return found


def trainable(p: Prepared) -> Any:
    return {name: tuple(value.shape) for name, value in trial.trained(trial.opened(p)).items()}


def decisions(p: Prepared) -> Any:
    return [(d.name, d.applied, d.reason) for d in build(p).prepared.plan.decisions]


def measured(p: Prepared) -> Any:
    return p.task.metrics(trial.opened(p).evaluate(p.examples["validation"], p.task))


def deployed(p: Prepared) -> Any:
    """How what is deployed measures after some steps."""
    session = trial.opened(p)
    trial.advance(p, session, 6)
    return p.task.metrics(session.evaluate(p.examples["validation"], p.task))


def threads(p: Prepared) -> Any:
    trial.opened(p)
    return torch.get_num_threads()


def ranks(p: Prepared) -> Any:
    """How many processes there are, of how many threads."""
    session: Any = trial.opened(p)
    session.close()
    return session.place.count, session.place.threads


def held(p: Prepared) -> Any:
    """What kinds of tensors a session's network is made of."""
    session = trial.opened(p)
    found = {type(parameter).__name__ for parameter in trial.network(session).parameters()}
    session.close()
    return found


def language(p: Prepared) -> Any:
    return p.dataset.language


def device(p: Prepared) -> Any:
    return p.plan.device


def events(recipe: Recipe) -> Any:
    """What the loop tells, and which checkpoints are left."""
    told: list[Any] = []
    stream = train(recipe, fresh=True)
    for event in stream:
        if isinstance(event, Stepped | Evaluated | Saved):
            told.append((type(event).__name__, event.step, getattr(event, "best", None)))
        if isinstance(event, Saved):
            folder = event.folder.parent
        if isinstance(event, Measuring):
            told.append(event.stopped_early)
            break
    stream.close()  # type: ignore[attr-defined]
    return told, sorted(path.name for path in folder.iterdir())


def proved(recipe: Recipe) -> Any:
    """The measured document: intervals, the baseline and the answers."""
    *_, last = train(recipe, fresh=True)
    assert isinstance(last, Finished)
    return [last.document["comparisons"], last.document["baseline"], last.document["answers"]]


def judged(recipe: Recipe) -> Any:
    """On how many answers a reward model, which is made for it, has its say."""
    pairs = str(Path(recipe.data.path).with_name("preferred.jsonl"))
    values = {"model": recipe.model.name, "data": pairs, "objective": "reward", "train": trial.TRAIN}
    *_, judge = train(parse_recipe({**values, "engine": trial.ENGINE}))
    assert isinstance(judge, Finished)
    by = recipe.evaluate.model_copy(update={"judge": judge.run.id})
    *_, last = train(recipe.model_copy(update={"evaluate": by}))
    assert isinstance(last, Finished) and "win_rate" in [entry["metric"] for entry in last.document["comparisons"]]
    return last.document["judged"]["prompts"], last.document["judged"]["ties"]


def total(p: Prepared) -> Any:
    return p.total


@dataclass(frozen=True)
class Entry:
    """A key's other value, and by what it shows; ``before`` is laid over the base recipe for both runs.

    of: the base recipe: short texts with topics (``topics``), conversations (``talks``), pairs of answers (``pairs``),
        or prompts that the model itself answers (``prompts``).
    refused: the code with which the other value is refused; else it must run.
    """

    value: Any
    shows: Callable[[Any], Any]
    of: str = "topics"
    before: dict[str, Any] = field(default_factory=dict)
    refused: str | None = None


CUT = {"train.max_length": 8}
STOP = {"train.early_stop": {"patience": 1, "min_delta": 1000.0}, "train.eval_steps": 1, "train.max_steps": 4}
NO_GPU = None if torch.cuda.is_available() else "no-gpu"
RANKS = {"engine": {"kind": "torchrun", "processes": 1, "device": "cpu", "threads": 1}}
LAST = {"accel.mode": "auto", "adaptation": {"kind": "last-layers", "blocks": 1}, "train.max_steps": 24}
COSINE = {"schedule": {"kind": "cosine"}}
STILL = {"schedule": {"kind": "plateau", "threshold": 0.5, "patience": 0, "shrink": 0.1}}
TAGS = {"task": {"kind": "text-classification", "problem": "multi-label"}}
LORA = {"adaptation": {"kind": "lora", "rank": 2, "dropout": 0.1}}
PULL = {"adaptation": "full", "regulariser": "l2-sp", "optimizer.lr": 0.01}
TEXT = {"adaptation": {"kind": "prompt", "init": "text", "text": "is there snow here"}}
LSTM = {"adaptation": {"kind": "p-tuning", "encoder": "lstm"}}
TWICE = {"source:rollouts.passes": 2, "optimizer.lr": 0.05}
PPO_TWICE = {"objective": {"kind": "ppo"}, **TWICE}
DIGITS = {"source:rollouts.max_new_tokens": 1, "reward:json-schema.shape": {"type": "number"}}
LETTER = {"reward:string-check.operation": "ilike", "reward:string-check.reference": "e"}
SCORED = {"reward:model.run": "reward-1"}
TALKED = {"reward:judge.run": "dpo-1"}
TABLE: dict[str, Entry] = {
    "model.name": Entry("@other-bert", losses),
    "model.head_dropout": Entry(0.5, losses),
    "model.quantize": Entry("nf4", losses, before=LORA),
    "model.revision": Entry("second", losses, before={"model.name": "owner/base"}),
    "model.trust_remote_code": Entry(
        False,
        losses,
        before={"model.name": "@own-code", "model.trust_remote_code": True},
        refused="model-unreadable",
    ),
    "data.path": Entry("@other.csv", rows),
    "data.validation": Entry("@other.csv", rows),
    "data.test": Entry("@other.csv", rows),
    "data.format": Entry("json", rows, refused="json-broken"),
    "data.encoding": Entry("latin-1", rows),
    "data.delimiter": Entry("|", rows, refused="column-missing"),
    "data.columns": Entry({"text": "title", "label": "label"}, rows),
    "data.language": Entry("de", language),
    "data.normalise": Entry("nfkc", rows),
    "data.subset": Entry("second", rows, before={"data.path": "owner/rows"}),
    "data.split.ratio": Entry("1:1:1", rows),
    "data.split.stratify": Entry(True, rows),
    "data.split.group": Entry("who", rows),
    "data.split.column": Entry("side", rows),
    "task": Entry("text-generation", examples, "talks", {"data.path": "@pairs.jsonl"}),
    "task:text-classification.problem": Entry("multi-label", examples),
    "task:text-classification.labels": Entry(["weather", "music", "food"], examples),
    "task:text-classification.threshold": Entry(0.1, measured, before=TAGS),
    "task:chat.system": Entry("be brief", examples, "talks"),
    "task:preference.by": Entry("score", examples, "pairs"),
    "task:preference.single": Entry(True, examples, "pairs", refused="rows-unusable"),
    "task:preference.system": Entry("be brief", examples, "pairs"),
    "task:prompt.system": Entry("be brief", examples, "prompts"),
    "adaptation": Entry("lora", trainable),
    "adaptation:*.freeze": Entry(["*.layer.1.*", "classifier"], trainable),
    "adaptation:*.unfreeze": Entry(["embeddings"], trainable),
    "adaptation:full.unfreeze": Entry(["embeddings"], trainable, refused="unfreeze-idle"),
    "adaptation:gradual-unfreeze.unfreeze": Entry(["embeddings"], trainable, refused="unfreeze-idle"),
    "adaptation:head.freeze": Entry(["classifier.bias"], trainable),
    "adaptation:lora.rank": Entry(4, trainable, before=LORA),
    "adaptation:lora.alpha": Entry(64.0, losses, before=LORA),
    "adaptation:lora.dropout": Entry(0.6, losses, before=LORA),
    "adaptation:last-layers.blocks": Entry(1, trainable),
    "adaptation:gradual-unfreeze.share": Entry(0.9, losses),
    "adaptation:bottleneck.variant": Entry("pfeiffer", trainable),
    "adaptation:bottleneck.reduction": Entry(4, trainable),
    "adaptation:bottleneck.activation": Entry("relu", losses),
    "adaptation:bottleneck.dropout": Entry(0.5, losses),
    "adaptation:lora.targets": Entry(["query"], trainable, before=LORA),
    "adaptation:lora.exclude": Entry(["query"], trainable, before=LORA),
    "adaptation:lora.rank_pattern": Entry({"query": 3}, trainable, before=LORA),
    "adaptation:lora.alpha_pattern": Entry({"query": 64.0}, losses, before=LORA),
    "adaptation:lora.rslora": Entry(True, losses, before=LORA),
    "adaptation:lora.dora": Entry(True, trainable, before=LORA),
    "adaptation:lora.init": Entry("pissa", losses, before=LORA),
    "adaptation:ia3.targets": Entry(["query"], trainable),
    "adaptation:ia3.feedforward": Entry([], trainable),
    "adaptation:prefix.tokens": Entry(3, trainable),
    "adaptation:prefix.projection": Entry(8, trainable),
    "adaptation:prefix.init": Entry("random", losses),
    "adaptation:prompt.tokens": Entry(3, trainable),
    "adaptation:prompt.init": Entry("random", losses),
    "adaptation:prompt.text": Entry("tell me about rain", losses, before=TEXT),
    "adaptation:p-tuning.tokens": Entry(3, trainable),
    "adaptation:p-tuning.encoder": Entry("lstm", trainable),
    "adaptation:p-tuning.width": Entry(8, trainable),
    "adaptation:p-tuning.layers": Entry(1, trainable, before=LSTM),
    "adaptation:p-tuning.dropout": Entry(0.5, losses, before=LSTM),
    "adaptation:peft.tuner": Entry("vera", trainable),
    "adaptation:peft.settings": Entry({"init_r": 16}, trainable),
    "objective": Entry("squared-error", losses, refused="objective-mismatch"),
    "objective:cross-entropy.label_smoothing": Entry(0.3, losses),
    "objective:binary-cross-entropy.label_smoothing": Entry(0.3, losses, before=TAGS),
    "objective:sft.label_smoothing": Entry(0.3, losses, "talks"),
    "objective:reward.centre": Entry(0.5, losses, "pairs"),
    "objective:dpo.beta": Entry(0.5, losses, "pairs"),
    "objective:dpo.loss": Entry("hinge", losses, "pairs"),
    "objective:dpo.label_smoothing": Entry(0.3, losses, "pairs"),
    "objective:ipo.beta": Entry(0.5, losses, "pairs"),
    "objective:kto.beta": Entry(0.5, losses, "pairs"),
    "objective:kto.good": Entry(0.5, losses, "pairs"),
    "objective:kto.bad": Entry(0.5, losses, "pairs"),
    "objective:orpo.beta": Entry(0.5, losses, "pairs"),
    "objective:simpo.beta": Entry(0.5, losses, "pairs"),
    "objective:simpo.gamma": Entry(0.5, losses, "pairs"),
    "objective:cpo.beta": Entry(0.5, losses, "pairs"),
    "objective:cpo.alpha": Entry(0.5, losses, "pairs"),
    "objective:cpo.label_smoothing": Entry(0.3, losses, "pairs"),
    "objective:grpo.beta": Entry(0.5, rolled, "prompts"),
    "objective:grpo.clip_low": Entry(1e-6, rolled, "prompts", TWICE),
    "objective:grpo.clip_high": Entry(1e-6, rolled, "prompts", TWICE),
    "objective:dr-grpo.beta": Entry(0.5, rolled, "prompts"),
    "objective:dr-grpo.clip_low": Entry(1e-6, rolled, "prompts", TWICE),
    "objective:dr-grpo.clip_high": Entry(1e-6, rolled, "prompts", TWICE),
    "objective:dr-grpo.longest": Entry(8, rolled, "prompts", TWICE),
    "objective:gspo.beta": Entry(0.5, rolled, "prompts"),
    "objective:gspo.clip_low": Entry(0.5, rolled, "prompts", TWICE),
    "objective:gspo.clip_high": Entry(0.5, rolled, "prompts", TWICE),
    "objective:rloo.beta": Entry(0.5, rolled, "prompts", {"optimizer.lr": 0.02}),
    "objective:rloo.clip_low": Entry(1e-6, rolled, "prompts", TWICE),
    "objective:rloo.clip_high": Entry(1e-6, rolled, "prompts", TWICE),
    "objective:ppo.beta": Entry(0.5, rolled, "prompts", TWICE),
    "objective:ppo.kl": Entry("loss", rolled, "prompts", TWICE),
    "objective:ppo.target_kl": Entry(1e-4, rolled, "prompts", TWICE),
    "objective:ppo.clip": Entry(1e-6, rolled, "prompts", TWICE),
    "objective:ppo.value_clip": Entry(1e-6, rolled, "prompts", TWICE),
    "objective:ppo.value_weight": Entry(2.0, rolled, "prompts"),
    "objective:ppo.gamma": Entry(0.5, rolled, "prompts"),
    "objective:ppo.lam": Entry(0.5, rolled, "prompts", TWICE),
    "objective:ppo.whiten": Entry(False, rolled, "prompts"),
    "regulariser": Entry([{"kind": "neftune"}], losses),
    "regulariser:dropout.rate": Entry(0.5, losses),
    "regulariser:ema.decay": Entry(0.0, deployed),
    "regulariser:l2-sp.strength": Entry(50.0, losses, before=PULL),
    "regulariser:l2-sp.strength_new": Entry(50.0, losses, before=PULL),
    "regulariser:neftune.alpha": Entry(50.0, losses),
    "regulariser:r-drop.strength": Entry(50.0, losses, before={"model.name": "@lively-bert"}),
    "regulariser:swa.start": Entry(0.0, deployed),
    "regulariser:swa.every": Entry(3, deployed, before={"regulariser:swa.start": 0.0}),
    "source": Entry("nonsense", batches, refused="kind-unknown"),
    "source:dataset.shuffle": Entry(False, batches),
    "source:dataset.window": Entry(4, batches),
    "source:rollouts.reward": Entry([{"kind": "regex", "pattern": "e"}], rolled, "prompts"),
    "source:rollouts.group": Entry(2, rolled, "prompts"),
    "source:rollouts.prompts": Entry(4, rolled, "prompts"),
    "source:rollouts.passes": Entry(2, rolled, "prompts"),
    "source:rollouts.max_new_tokens": Entry(5, rolled, "prompts"),
    "source:rollouts.temperature": Entry(0.5, rolled, "prompts"),
    "source:rollouts.top_p": Entry(0.5, rolled, "prompts"),
    "reward:*.weight": Entry(3.0, rolled, "prompts"),
    "reward:*.name": Entry("other", rolled, "prompts"),
    "reward:function.entry": Entry("other", rolled, "prompts"),
    "reward:python.source": Entry("def grade(sample, item):\n    return 1.5\n", rolled, "prompts"),
    "reward:json-schema.shape": Entry({"type": "string"}, rolled, "prompts", DIGITS),
    "reward:json-schema.values": Entry({"a": "b"}, rolled, "prompts", DIGITS),
    "reward:json-schema.weight": Entry(3.0, rolled, "prompts", DIGITS),
    "reward:json-schema.parses": Entry(0.1, rolled, "prompts", {**DIGITS, "reward:json-schema.values": {"a": "b"}}),
    "reward:json-schema.shaped": Entry(0.1, rolled, "prompts", {**DIGITS, "reward:json-schema.values": {"a": "b"}}),
    "reward:judge.run": Entry("dpo-2", graded, "prompts", TALKED),
    "reward:judge.rubric": Entry("be brief", graded, "prompts", TALKED),
    "reward:judge.weight": Entry(3.0, graded, "prompts", TALKED),
    "reward:judge.name": Entry("other", graded, "prompts", TALKED),
    "reward:length.least": Entry(9, rolled, "prompts"),
    "reward:length.weight": Entry(3.0, rolled, "prompts", {"reward:length.least": 9}),
    "reward:length.most": Entry(2, rolled, "prompts"),
    "reward:length.unit": Entry("characters", rolled, "prompts", {"reward:length.most": 3}),
    "reward:model.run": Entry("reward-2", graded, "prompts", SCORED),
    "reward:model.weight": Entry(3.0, graded, "prompts", SCORED),
    "reward:model.name": Entry("other", graded, "prompts", SCORED),
    "reward:multi.graders": Entry({"short": {"kind": "length", "most": 5}}, rolled, "prompts"),
    "reward:multi.calculate_output": Entry("short - 1", rolled, "prompts"),
    "reward:score-model.model": Entry("another", heard, "prompts"),
    "reward:score-model.input": Entry([{"content": "hello"}], heard, "prompts"),
    "reward:score-model.range": Entry([0.0, 0.5], heard, "prompts"),
    "reward:score-model.sampling_params.max_completions_tokens": Entry(1, heard, "prompts"),
    "reward:score-model.weight": Entry(3.0, heard, "prompts"),
    "reward:score-model.name": Entry("other", heard, "prompts"),
    "reward:regex.pattern": Entry("[x-z]", rolled, "prompts"),
    "reward:regex.input": Entry("{{ item.topic }}", rolled, "prompts"),
    "reward:string-check.input": Entry("{{ item.topic }}", rolled, "prompts", LETTER),
    "reward:string-check.weight": Entry(3.0, rolled, "prompts", LETTER),
    "reward:string-check.reference": Entry("a", rolled, "prompts", LETTER),
    "reward:string-check.operation": Entry("ne", rolled, "prompts"),
    "reward:text-similarity.input": Entry("{{ item.topic }}", rolled, "prompts"),
    "reward:text-similarity.reference": Entry("{{ item.topic }}", rolled, "prompts"),
    "reward:text-similarity.evaluation_metric": Entry("rouge_l", rolled, "prompts"),
    "optimizer": Entry("nonsense", groups, refused="kind-unknown"),
    "optimizer:*.lr": Entry(0.01, groups),
    "optimizer:*.lr_new": Entry(0.05, groups),
    "optimizer:*.layer_decay": Entry(0.5, groups),
    "optimizer:*.lora_plus": Entry(16.0, groups, before=LORA),
    "optimizer:*.weight_decay": Entry(0.3, groups),
    "optimizer:adafactor.beta2_decay": Entry(-0.1, losses),
    "optimizer:adafactor.clip_update": Entry(8.0, losses),
    "optimizer:adafactor.least": Entry(0.5, losses),
    "optimizer:adamw.betas": Entry([0.5, 0.6], losses),
    "optimizer:adamw.eps": Entry(0.1, losses),
    "optimizer:adamw-8bit.betas": Entry([0.5, 0.6], losses),
    "optimizer:adamw-8bit.eps": Entry(0.1, losses),
    "optimizer:lion.betas": Entry([0.5, 0.6], losses),
    "optimizer:muon.betas": Entry([0.5, 0.6], losses),
    "optimizer:muon.eps": Entry(0.1, losses),
    "optimizer:muon.momentum": Entry(0.5, losses),
    "optimizer:muon.nesterov": Entry(False, losses),
    "optimizer:schedule-free.betas": Entry([0.5, 0.6], losses),
    "optimizer:schedule-free.eps": Entry(0.1, losses),
    "optimizer:sgd.momentum": Entry(0.5, losses),
    "optimizer:sgd.nesterov": Entry(True, losses),
    "schedule": Entry("cosine", rates),
    "schedule:*.warmup": Entry(0.5, rates),
    "schedule:cosine.floor": Entry(0.5, rates, before=COSINE),
    "schedule:cosine-restarts.cycles": Entry(2, rates),
    "schedule:inverse-sqrt.timescale": Entry(0.5, rates),
    "schedule:one-cycle.div": Entry(5.0, rates),
    "schedule:one-cycle.final": Entry(10.0, rates),
    "schedule:plateau.floor": Entry(0.5, rates_watched, before=STILL),
    "schedule:plateau.patience": Entry(3, rates_watched, before=STILL),
    "schedule:plateau.shrink": Entry(0.9, rates_watched, before=STILL),
    "schedule:plateau.threshold": Entry(0.0, rates_watched, before=STILL),
    "schedule:slanted-triangular.ratio": Entry(2.0, rates),
    "engine": Entry("nonsense", device, refused="kind-unknown"),
    "engine:local.device": Entry("cuda", device, refused=NO_GPU),
    "engine:local.threads": Entry(2, threads),
    "engine:torchrun.processes": Entry(2, ranks, before=RANKS),
    "engine:torchrun.weights": Entry("sharded", held, before=RANKS),
    "engine:torchrun.device": Entry("cuda", device, before=RANKS, refused=NO_GPU),
    "engine:torchrun.threads": Entry(2, ranks, before=RANKS),
    "train.epochs": Entry(4, total, before={"train.max_steps": None}),
    "train.max_steps": Entry(5, total),
    "train.batch_tokens": Entry(40, batches, before={"train.batch_rows": None}),
    "train.batch_rows": Entry(4, batches),
    "train.accumulate": Entry(3, batches),
    "train.max_length": Entry(5, examples),
    "train.precision": Entry("bf16", losses),
    "train.clip": Entry(1e-6, losses),
    "train.eval_steps": Entry(3, events),
    "train.save_steps": Entry(2, events),
    "train.keep": Entry(5, events, before={"train.save_steps": 1}),
    "train.best": Entry("accuracy", events, before={"train.eval_steps": 1, "optimizer.lr": 0.02}),
    "train.early_stop.patience": Entry(2, events, before=STOP),
    "train.early_stop.min_delta": Entry(0.0, events, "talks", {**STOP, "optimizer.lr": 0.003}),
    "evaluate.bootstrap": Entry(200, proved),
    "evaluate.baseline": Entry(False, proved),
    "evaluate.answers": Entry(2, proved, "talks"),
    "evaluate.max_new_tokens": Entry(1, proved, "talks", {"optimizer.lr": 0.02, "train.max_steps": 20}),
    "evaluate.judge": Entry("nonsense", language, "talks", refused="run-none"),
    "evaluate.judged": Entry(1, judged, "talks", {"optimizer.lr": 0.02, "train.max_steps": 20}),
    "accel.mode": Entry("off", decisions, before={"accel.mode": "auto"}),
    "accel.states": Entry("fp16", losses, before=LAST),
    "accel.states_gb": Entry(0.0, decisions, before=LAST),
    "accel.skip": Entry(["fused-optimizer"], decisions, before={"accel.mode": "auto"}),
    "seed": Entry(8, losses),
}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, tiny_llama: Path) -> Path:
    """Bases and files, under the names that the table uses."""
    folder = tmp_path_factory.mktemp("walk")
    trial.still(tiny_bert, folder / "bert")
    trial.still(tiny_llama, folder / "llama")
    shutil.copytree(tiny_bert, folder / "lively-bert")
    other = trial.still(tiny_bert, folder / "other-bert")
    from safetensors.torch import load_file, save_file

    weights = {name: value * 1.5 for name, value in load_file(other / "model.safetensors").items()}
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    lines = ["text,label,title,who,side"]
    for place, (text, topic) in enumerate(tiny.questions()):
        said = "ｆｕｌｌ ｗｉｄｔｈ é" if place % 4 == 0 else "narrow"
        lines.append(f"{text} {said},{topic},{text} again,{place % 9},{('train', 'test', 'validation')[place % 3]}")
    (folder / "topics.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    halves = [lines[0], *(line.replace("narrow", "wide") for line in lines[1:50])]
    (folder / "other.csv").write_text("\n".join(halves) + "\n", encoding="utf-8")
    tiny.write_chat(folder / "talks.jsonl")
    tiny.write_pairs(folder / "preferred.jsonl")
    prompts = [{"prompt": text, "topic": topic} for text, topic in tiny.questions()]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    pairs = [{"prompt": text, "completion": topic} for text, topic in tiny.questions()]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    own_code(trial.still(tiny_bert, folder / "own-code"))
    return folder


OWN = """
from transformers import BertConfig, BertForSequenceClassification


class OwnConfig(BertConfig):
    model_type = "own"


class Own(BertForSequenceClassification):
    config_class = OwnConfig
"""


def own_code(folder: Path) -> None:
    """A base whose architecture is a file beside its weights."""
    (folder / "own.py").write_text(OWN)
    config = json.loads((folder / "config.json").read_text())
    named = {"AutoConfig": "own.OwnConfig", "AutoModelForSequenceClassification": "own.Own"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": named}))


@pytest.fixture
def party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package that offers two functions to grade by."""
    functions = "def count(sample, item):\n    return len(sample['output_text'])\n\n\ndef one(*_):\n    return 1.0\n"
    points = "[onsa.functions]\ncount = counting:count\nother = counting:one\n"
    with distribution(tmp_path / "site", {"counting.py": functions}, points, monkeypatch):
        yield


@pytest.fixture
def hub(shelf: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A hub with two revisions of one base and two subsets of one data set."""
    import datasets
    import huggingface_hub
    import transformers.dynamic_module_utils

    import onsa.data.hub

    bases = {None: shelf / "bert", "second": shelf / "other-bert"}
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, revision=None, **_: bases[revision])

    def load_dataset(path: str, subset: str | None) -> Any:
        found = [{"text": f"{text} {subset}", "label": topic} for text, topic in tiny.questions()]
        return {"train": datasets.Dataset.from_list(found)}

    monkeypatch.setattr(onsa.data.hub, "reachable", lambda *_: True)
    monkeypatch.setattr(onsa.data.hub, "_cached", lambda data: None)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))


def base_of(of: str, shelf: Path) -> dict[str, Any]:
    model = "bert" if of == "topics" else "llama"
    data, kind = {
        "topics": ("topics.csv", "text-classification"),
        "talks": ("talks.jsonl", "chat"),
        "pairs": ("preferred.jsonl", "preference"),
        "prompts": ("prompts.jsonl", "prompt"),
    }[of]
    task = {"kind": kind}
    columns = {"text": "text", "label": "label"} if of == "topics" else None
    rollouts = {"kind": "rollouts", "group": 4, "max_new_tokens": 8, "reward": [{"kind": "regex", "pattern": "[a-m]"}]}
    return {
        **({"source": rollouts} if of == "prompts" else {}),
        "model": {"name": str(shelf / model)},
        "data": {"path": str(shelf / data), "columns": columns},
        "task": task,
        "engine": dict(trial.ENGINE),
        "optimizer": {"kind": "adamw"},
        "train": {**trial.TRAIN, "eval_steps": 2},
        "evaluate": {"bootstrap": 100, "answers": 1, "max_new_tokens": 8},
    }


def kind_of(values: dict[str, Any], axis: str) -> dict[str, Any]:
    """What a recipe says on an axis; of several kinds the first."""
    given = values.get(axis) or {}
    return given if isinstance(given, dict) else given[0]


def lay(values: dict[str, Any], key: str, value: Any, shelf: Path) -> None:
    """Put a value in its place; ``@name`` is a name on the shelf, and a kind's key brings the kind."""
    if isinstance(value, str) and value.startswith("@"):
        value = str(shelf / value[1:])
    axis, colon, rest = key.partition(":")
    if axis in registry.INNER:
        kind, _, name = rest.partition(".")
        outer, _, inner = registry.INNER[axis].partition(".")
        given, *others = values[outer][inner]
        same = given if given.get("kind") == kind else {"kind": kind, **trial.needed(axis, kind)}
        name, _, deeper = name.partition(".")
        values[outer][inner] = [
            {**same, name: {deeper: value} if deeper else value},
            *(others or [{"kind": "length", "least": 3, "name": "beside"}]),
        ]
        return
    if colon:
        kind, _, name = rest.partition(".")
        given = kind_of(values, axis)
        laid = {**(given if given.get("kind") == kind else {"kind": kind}), name: value}
        values[axis] = [laid] if axis in registry.SEVERAL else laid
        return
    *place, name = key.split(".")
    node = values
    for part in place:
        node = node.setdefault(part, {})
    node[name] = {"kind": value} if key in registry.AXES and isinstance(value, str) else value
    if "/" in str(values["data"]["path"]) and not str(values["data"]["path"]).endswith("topics.csv"):
        values["data"].pop("columns", None)


def seen(values: dict[str, Any], entry: Entry) -> Any:
    """What a recipe shows, or by which codes it is refused."""
    try:
        recipe = parse_recipe(deepcopy(values))
        return entry.shows(recipe if entry.shows in (events, proved, judged, graded) else prepare(recipe))
    except OnsaError as error:
        return "refused", [problem.code for problem in error.problems]


def refusals(found: Any) -> set[str]:
    """The codes by which a recipe was refused, if it was."""
    return set(found[1]) if isinstance(found, tuple) and found[0] == "refused" else set()


def entry_name(key: str) -> str:
    """The table's name for a key: its own, or one with ``*`` for the kind where every kind of the axis has it."""
    axis, _, rest = key.partition(":")
    return key if key in TABLE else f"{axis}:*.{rest.partition('.')[2]}"


def test_every_key_has_an_entry() -> None:
    assert {entry_name(key) for key in keys()} == set(TABLE)


@pytest.mark.parametrize("key", sorted(keys()))
def test_every_key_shows(key: str, shelf: Path, hub: None, party: None) -> None:
    entry, before = TABLE[entry_name(key)], torch.get_num_threads()
    values = base_of(entry.of, shelf)
    for name, value in entry.before.items():
        lay(values, name, value, shelf)
    if ":" in key:
        axis, _, rest = key.partition(":")
        kind = rest.partition(".")[0]
        if axis in registry.INNER:
            lay(values, f"{axis}:{kind}.weight", 2.0, shelf)
        elif kind_of(values, axis).get("kind") != kind:
            values[axis] = {"kind": kind}
    changed = deepcopy(values)
    lay(changed, key, entry.value, shelf)
    assert values != changed
    try:
        found = seen(values, entry)
        assert found == seen(values, entry), "what is looked at must not change by itself"
        assert not refusals(found)
        after = seen(changed, entry)
        assert after != found and refusals(after) == ({entry.refused} if entry.refused else set())
    finally:
        torch.set_num_threads(before)


def test_what_a_plan_shows_is_the_resolved_recipe(shelf: Path) -> None:
    """Nothing is left open: what ``None`` stands for is written down wherever it is chosen."""
    checked = check(parse_recipe({"model": str(shelf / "bert"), "data": str(shelf / "topics.csv")}), timing=False)
    document = checked.document()["recipe"]
    assert all(document[axis] for axis in registry.AXES if axis not in registry.SEVERAL | registry.INNER.keys())
    chosen = ("epochs", "max_length", "precision", "eval_steps", "save_steps")
    assert all(document["train"][name] is not None for name in chosen)
    assert document["optimizer"]["lr"] and document["optimizer"]["lr_new"] and document["data"]["columns"]
    assert parse_recipe(document) == checked.prepared.recipe and Model(name="x").revision is None
