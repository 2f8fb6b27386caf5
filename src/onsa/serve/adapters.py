"""Several adapters over one base.

Where PEFT can hold them in one network, one forward answers a batch whose rows are for different adapters; where it
cannot, each adapter gets a network of its own, one after the other, with the same result.

Shape legend: R rows, C outputs.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from onsa.adaptations.base import CONFIG, whole_adapter
from onsa.adaptations.lora import Lora
from onsa.models.batch import collate
from onsa.models.fetch import locate
from onsa.models.heads import Head
from onsa.models.load import load, load_tokenizer, quiet, tokenizer_hash
from onsa.models.policy import Policy
from onsa.models.weights import read_json
from onsa.serve.predictor import BATCH_ROWS, MODEL, Predictor, deployed, load_run, predictor
from onsa.serve.prompter import Given, checked
from onsa.spec.recipe import Recipe
from onsa.tasks.base import Task

# What may differ from LoRA's usual settings without changing how an adapter is computed beside others.
HARMLESS = {
    *("base_model_name_or_path", "revision", "peft_version", "auto_mapping", "inference_mode", "task_type"),
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "lora_dropout", "modules_to_save"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "fan_in_fan_out"),
}
DRAWN = (True, False, "gaussian", "orthogonal")  # initialisations that leave the base's weights as they are
MIXING = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)  # modules of which PEFT mixes trained copies
Answer = dict[str, Any]


@dataclass(frozen=True)
class Adapter:
    """What answers under a name: the adapter of one run's folder, or a stack of several.

    recipe: of the (first) run; its task, head and settings are the answers'.
    """

    name: str
    folders: tuple[Path, ...]
    recipe: Recipe


@dataclass(frozen=True)
class Question:
    """A row for one adapter; ``number``, counted from 1, names it to the user."""

    adapter: str
    number: int
    given: Given


def settings(folder: Path) -> dict[str, Any]:
    """PEFT's configuration of a run's adapter.

    Raises:
        ModelError: it cannot be read.
    """
    return read_json(folder / MODEL / CONFIG)


def obstacles(folder: Path, recipe: Recipe) -> list[str]:
    """What keeps a run's adapter from being composed with others: nothing for LoRA in its plain form."""
    from peft import LoraConfig

    if isinstance(recipe.adaptation, Lora) and recipe.adaptation.init == "loftq":
        return ["init: loftq"]  # it makes up for what its base lost, once
    found = settings(folder)
    if found.get("peft_type") != "LORA":
        return [str(found.get("peft_type"))]
    usual = json.loads(json.dumps(LoraConfig().to_dict(), default=str))
    unlike = [name for name, value in found.items() if name not in HARMLESS and value != usual.get(name)]
    return [name for name in unlike if name != "init_lora_weights" or found[name] not in DRAWN]


class Answering(ABC):
    """Several adapters that answer."""

    def __init__(self, adapters: Sequence[Adapter]) -> None:
        self.adapters = {adapter.name: adapter for adapter in adapters}

    @abstractmethod
    def predictor(self, name: str) -> Predictor:
        """One of the adapters; it answers until another is asked for."""

    def answer(self, questions: Sequence[Question]) -> Iterator[Answer]:
        """An answer for each question; all of them are checked before the first is answered.

        Raises:
            DataError: a row that cannot be answered, by its number.
        """
        ready = []
        for question in questions:
            recipe = self.adapters[question.adapter].recipe
            row = checked(cast(Task, recipe.task), recipe.data.normalise, question.given, question.number)
            ready.append(replace(question, given=row))
        yield from self._answered(ready)

    @abstractmethod
    def _answered(self, questions: Sequence[Question]) -> Iterator[Answer]: ...


class Mixed(Answering):
    """Adapters in one network: rows for different adapters go through it together."""

    def __init__(self, adapters: Sequence[Adapter], predictors: dict[str, Predictor], inside: dict[str, str]) -> None:
        """``inside``: PEFT's name of each adapter."""
        super().__init__(adapters)
        self._predictors = predictors
        self._inside = inside
        self._policy = next(iter(predictors.values())).policy

    def predictor(self, name: str) -> Predictor:
        self._policy.network.set_adapter(self._inside[name])
        self._policy.network.requires_grad_(False)  # PEFT marks what is active as to be trained
        return self._predictors[name]

    def _answered(self, questions: Sequence[Question]) -> Iterator[Answer]:
        self._policy.network.eval()
        head = cast(Task, next(iter(self.adapters.values())).recipe.task).head
        batch = self._classified if head is Head.ROWS else self._generated
        for start in range(0, len(questions), BATCH_ROWS):
            yield from batch(questions[start : start + BATCH_ROWS])

    @torch.inference_mode()
    def _classified(self, questions: Sequence[Question]) -> list[Answer]:
        asked = [self._predictors[question.adapter] for question in questions]
        pairs = list(zip(asked, questions, strict=True))
        examples = [one.asked(cast(Any, question.given)) for one, question in pairs]
        batch = collate(examples)
        outputs = torch.split(self._for(questions).classes(batch), batch.counts())
        answered = zip(asked, outputs, examples, strict=True)
        return [one.task.described(logit_AC, [example])[0] for one, logit_AC, example in answered]

    def _generated(self, questions: Sequence[Question]) -> list[Answer]:
        """Rows that end alike (one task, one limit of tokens) are generated together."""
        alike: dict[tuple[int, tuple[int, ...]], list[int]] = {}
        for place, question in enumerate(questions):
            one = self._predictors[question.adapter]
            alike.setdefault((one.max_new_tokens, one.prompter.stops), []).append(place)
        answers: dict[int, Answer] = {}
        for (most, stops), places in alike.items():
            part = [questions[place] for place in places]
            asked = [self._predictors[question.adapter] for question in part]
            prompts = [
                one.prompter.prompts([cast(Any, question.given)])[0] for one, question in zip(asked, part, strict=True)
            ]
            found = self._for(part).generate(prompts, most, stops)
            for place, one, tokens in zip(places, asked, found, strict=True):
                answers[place] = {"text": one.prompter.said(tokens)}
        return [answers[place] for place in range(len(questions))]

    def _for(self, questions: Sequence[Question]) -> Policy:
        return replace(self._policy, adapter_R=tuple(self._inside[question.adapter] for question in questions))


class Apart(Answering):
    """Adapters that no one network can hold: each is loaded when it is its turn, and only one at a time."""

    def __init__(self, adapters: Sequence[Adapter]) -> None:
        super().__init__(adapters)
        self._open: tuple[str, Predictor] | None = None

    def predictor(self, name: str) -> Predictor:
        if self._open is None or self._open[0] != name:
            self._open = None
            adapter = self.adapters[name]
            stacked = len(adapter.folders) > 1
            alone = _composed([adapter]).predictor(name) if stacked else load_run(adapter.folders[0], adapter.recipe)
            self._open = (name, alone)
        return self._open[1]

    def _answered(self, questions: Sequence[Question]) -> Iterator[Answer]:
        answers: dict[int, Answer] = {}
        for name in dict.fromkeys(question.adapter for question in questions):
            places = [place for place, question in enumerate(questions) if question.adapter == name]
            found = self.predictor(name).predict([questions[place].given for place in places])
            answers |= dict(zip(places, found, strict=True))
        return iter([answers[place] for place in range(len(questions))])


def open_adapters(adapters: Sequence[Adapter]) -> Answering:
    """Adapters over one base, in one network where that is possible."""
    if _alike(adapters):
        mixed = _composed(adapters)
        if _mixes(mixed.predictor(adapters[0].name).policy.network):
            return mixed
    return Apart(adapters)


def joined(network: nn.Module, folders: Mapping[str, Path]) -> nn.Module:
    """A network with the adapters of some runs in it, by PEFT's name; ``requires_grad`` marks what was tuned.

    Raises:
        ModelError: files of one are not there, or damaged.
    """
    from peft import PeftModel

    adapted: Any = None
    tuned: set[str] = set()
    with quiet():
        for name, folder in folders.items():
            whole_adapter(folder / MODEL)
            if adapted is None:
                adapted = PeftModel.from_pretrained(network, folder / MODEL, adapter_name=name, is_trainable=True)
            else:
                adapted.load_adapter(folder / MODEL, adapter_name=name, is_trainable=True)
            adapted.set_adapter(name)
            tuned |= {place for place, parameter in adapted.named_parameters() if parameter.requires_grad}
    for place, parameter in adapted.named_parameters():
        parameter.requires_grad_(place in tuned)
    assert isinstance(adapted, nn.Module)
    return adapted


def combine(network: Any, weights: Mapping[str, float], into: str, method: str, density: float | None = None) -> None:
    """Add an adapter made of others, by PEFT's method; trained copies of modules (heads) are averaged by the weights.

    Args:
        network: of :func:`joined`; ``weights``: by PEFT's name of each adapter.
    """
    from peft.utils import ModulesToSaveWrapper

    names = list(weights)
    for name in names:
        # The new adapter takes the first one's settings, and the matrices that any of them adapts, named one by one.
        network.peft_config[name].target_modules = _adapted(network, name)
        for field in ("exclude_modules", "layers_to_transform", "layers_pattern"):
            setattr(network.peft_config[name], field, None)
    network.peft_config[names[0]].use_rslora = False  # its scale is one, also not divided by a root of the rank
    copied = [module for module in network.modules() if isinstance(module, ModulesToSaveWrapper)]
    # PEFT refuses to combine adapters that train copies of the same module, so it sees those of one only.
    network.set_adapter(names[0])
    held = [{name: module.modules_to_save.pop(name) for name in names[1:]} for module in copied]
    with quiet():
        network.add_weighted_adapter(
            names, list(weights.values()), into, combination_type=method, density=density, svd_full_matrices=False
        )
    whole = sum(weights.values())
    for module, copies in zip(copied, held, strict=True):
        module.modules_to_save.update(copies)
        parts = {name: dict(module.modules_to_save[name].named_parameters()) for name in names}
        for place, parameter in module.modules_to_save[into].named_parameters():
            parameter.data = sum(parts[name][place].data * (weight / whole) for name, weight in weights.items())


def _adapted(network: Any, name: str) -> set[str]:
    """The modules that an adapter adapts."""
    from peft.tuners.lora import LoraLayer

    layers = [(place, m) for place, m in network.get_base_model().named_modules() if isinstance(m, LoraLayer)]
    return {place for place, layer in layers if name in layer.lora_A or name in layer.lora_embedding_A}


def _composed(adapters: Sequence[Adapter]) -> Mixed:
    """One network that holds every adapter, and each stack as an adapter of its own: the exact sum of its members'."""
    first = adapters[0].recipe
    task = cast(Task, first.task)
    start = locate(first.model)
    loaded = load(start.folder, first.model, task.head, task.outputs, task.hf_problem, first.seed)
    folders = dict.fromkeys(folder for adapter in adapters for folder in adapter.folders)
    names = {folder: f"run-{place}" for place, folder in enumerate(folders)}  # PEFT takes no dots, and no "lora"
    network = joined(loaded.network, {name: folder for folder, name in names.items()})
    tuned = {place for place, parameter in network.named_parameters() if parameter.requires_grad}
    inside = {}
    for place, adapter in enumerate(adapters):
        inside[adapter.name] = names[adapter.folders[0]]
        if len(adapter.folders) > 1:
            inside[adapter.name] = f"stack-{place}"
            combine(network, {names[folder]: 1.0 for folder in adapter.folders}, f"stack-{place}", "cat")
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in tuned or ".stack-" in name)
    policy = deployed(network, loaded.tokenizer, first)
    answering = {a.name: predictor(policy, loaded.tokenizer, start.context, a.recipe) for a in adapters}
    return Mixed(adapters, answering, inside)


def _alike(adapters: Sequence[Adapter]) -> bool:
    """Whether adapters can share a network: plain LoRA, with one kind of head, precision and tokenizer."""
    recipe_of = {folder: adapter.recipe for adapter in adapters for folder in adapter.folders}
    if any(obstacles(folder, recipe) for folder, recipe in recipe_of.items()):
        return False
    copied = {tuple(sorted(settings(folder).get("modules_to_save") or ())) for folder in recipe_of}
    models = {adapter.recipe.model for adapter in adapters}
    tokenizers = {tokenizer_hash(load_tokenizer(locate(model).folder, model)) for model in models}
    return len(copied) == len(tokenizers) == len({_frame(adapter.recipe) for adapter in adapters}) == 1


def _frame(recipe: Recipe) -> str:
    """What the recipes of adapters in one network have in common, in a form that can be compared."""
    task = cast(Task, recipe.task)
    base = recipe.model.model_dump(mode="json", exclude={"name", "head_dropout"})
    engine = recipe.engine.model_dump(mode="json") if recipe.engine else {}
    return json.dumps([task.head, len(task.outputs), base, engine, recipe.train.precision])


def _mixes(network: nn.Module) -> bool:
    """Whether PEFT can mix the trained copies of modules in a network: not those made of several modules."""
    from peft.utils import ModulesToSaveWrapper

    return all(isinstance(m.original_module, MIXING) for m in network.modules() if isinstance(m, ModulesToSaveWrapper))
