"""Adaptation: which parameters of a network train.

Abstract classes: of all, of whole models, of PEFT's, and among these of soft prompts.
"""

from __future__ import annotations

import json
import warnings
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from onsa.models.blocks import head_modules, untie
from onsa.models.heads import Head
from onsa.models.load import first_line, quiet
from onsa.models.names import matching
from onsa.models.quantize import is_quantised
from onsa.models.weights import read_json, whole_file
from onsa.spec.component import Component
from onsa.spec.errors import ModelError, OnsaError, RecipeError

FILE, CONFIG = "adapter_model.safetensors", "adapter_config.json"  # as PEFT names them
TIES = "ensure_weight_tying"  # PEFT's setting that keeps embeddings and the output layer one weight
RATE_WIDTH = 384  # the width of hidden states at which rates of whole matrices are stated


def whole_adapter(folder: Path) -> Path:
    """The weights of an adapter, once it is sure that PEFT's files are whole; where they are missing, PEFT would read a
    pickle.

    Raises:
        ModelError: they are not there, or damaged.
    """
    read_json(folder / CONFIG)
    return whole_file(folder, FILE)


def narrowed(rate: float, width: int) -> float:
    """A rate of whole matrices at a width: Adam's best falls about as the width rises (Yang et al. 2022, table 3)."""
    return float(f"{rate * min(1.0, RATE_WIDTH / width):.1e}")


class Adaptation(Component):
    """The base of every adaptation.

    ``adapter`` tells whether what is saved lies beside the base (an adapter) or replaces it (a whole model);
    ``saved_as`` names the library that opens it; ``merges`` whether it can be folded into the base's weights;
    ``staged`` whether what trains changes during a run; ``keeps_base`` whether a method that is no adapter trains
    nothing of the base but its head, so that the rest may be quantised. ``rates`` are the learning rates by head that a
    resolved recipe falls back to.

    freeze: patterns of parameter names that never train, such as ``*.layers.0.*``, a module's path, or ``embeddings``.
    unfreeze: patterns of the base's parameters that train in addition; beside PEFT's methods these are whole modules,
        which are then not adapted.
    """

    adapter: ClassVar[bool]
    saved_as: ClassVar[Literal["peft", "transformers", "onsa"]] = "transformers"
    merges: ClassVar[bool] = True
    staged: ClassVar[bool] = False
    keeps_base: ClassVar[bool] = False
    rates: ClassVar[dict[Head, float]]

    freeze: tuple[str, ...] = ()
    unfreeze: tuple[str, ...] = ()

    def apply(self, network: nn.Module, head: Head, new: frozenset[str], total: int) -> nn.Module:
        """The network with every parameter marked that trains at any time; ``requires_grad`` is then the only truth.

        Args:
            new: names of parameters that the base did not have; they always train, unless frozen by name.
            total: optimizer steps of the whole run.

        Raises:
            RecipeError: a setting does not fit this network, or a pattern matches none of its parameters, or changes
                nothing, or leaves nothing that trains.
        """
        more = matching(network, self.unfreeze, "adaptation.unfreeze")
        if more and more <= {*self.chosen(network, head), *new}:
            raise RecipeError.of("unfreeze-idle", key="adaptation.unfreeze", adaptation=self.kind)
        if any(is_quantised(network.get_parameter(name)) for name in more):
            raise RecipeError.of("unfreeze-quantised", key="adaptation.unfreeze")
        adapted = self.adapt(network, head, new | more, total)
        trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
        frozen = matching(adapted, self.freeze, "adaptation.freeze")
        if self.freeze and not trained & frozen:
            raise RecipeError.of("freeze-idle", key="adaptation.freeze", adaptation=self.kind)
        if trained <= frozen:
            raise RecipeError.of("nothing-trains", key="adaptation.freeze", adaptation=self.kind)
        for name, parameter in adapted.named_parameters():
            if name in frozen:
                parameter.requires_grad_(False)
        return adapted

    def chosen(self, network: nn.Module, head: Head) -> Iterable[str]:
        """The names of the base's own parameters that the method trains at any time of a run."""
        return ()

    @abstractmethod
    def adapt(self, network: nn.Module, head: Head, train: frozenset[str], total: int) -> nn.Module:
        """As :meth:`apply`, before anything is frozen by name; ``train`` is what trains beside the method's own."""

    def rate(self, head: Head, width: int) -> float:
        """The learning rate where a recipe names none, for hidden states of a width."""
        return self.rates[head]

    def places(self) -> int:
        """How many tokens of the base's context the method takes for itself."""
        return 0

    def base(self, network: nn.Module) -> AbstractContextManager[None] | None:
        """Within, an adapted network answers as its base did; ``None`` where only one that has not trained yet does."""
        return None

    def train_mode(self, network: nn.Module) -> None:
        """Put the network in the mode of a training step."""
        network.train()

    def before_step(self, network: nn.Module, step: int, total: int) -> None:
        """Called before the gradients of step ``step`` (from 0) of ``total``; where ``staged``, what trains changes."""

    def after_step(self, network: nn.Module, step: int, total: int) -> None:
        """Called when step ``step`` has moved the weights, while its gradients are still there."""

    def penalty(self, network: nn.Module) -> Tensor | None:
        """What the method itself adds to the mean loss of a step."""
        return None

    def state(self, network: nn.Module) -> dict[str, Tensor]:
        """What :meth:`after_step` remembers beside the parameters; goes into checkpoints."""
        return {}

    def restore(self, network: nn.Module, state: dict[str, Tensor]) -> None:
        """Take up what :meth:`state` gave."""

    @abstractmethod
    def save(self, network: nn.Module, tokenizer: Any, folder: Path) -> None:
        """Write what was tuned in the ecosystem's own format: PEFT's files for adapters, transformers' for models."""

    @abstractmethod
    def reload(self, network: nn.Module, folder: Path) -> nn.Module:
        """What ``save`` wrote, on a freshly loaded base; ``requires_grad`` marks what is to be held as it was tuned."""

    def merge(self, network: nn.Module) -> nn.Module:
        """The network with the adaptation folded into its base weights.

        Raises:
            ModelError: the kind is none that ``merges``.
        """
        if not self.merges:
            raise ModelError.of("merge-impossible", adaptation=self.kind)
        return self.fold(network)

    def fold(self, network: nn.Module) -> nn.Module:
        """As :meth:`merge`, of a kind that ``merges``."""
        return network


class WholeModel(Adaptation):
    """The base of methods that train parameters of the base itself; what is saved is a whole model.

    ``unties`` tells whether the head is to train without the input embeddings: an output layer that shares their weight
    then gets a copy of its own.
    """

    adapter: ClassVar[bool] = False
    unties: ClassVar[bool] = False

    def adapt(self, network: nn.Module, head: Head, train: frozenset[str], total: int) -> nn.Module:
        if self.unties:
            untie(network)
        wanted = {*self.chosen(network, head), *train}
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name in wanted)
        return network

    def save(self, network: nn.Module, tokenizer: Any, folder: Path) -> None:
        with quiet():
            network.save_pretrained(folder)  # type: ignore[operator]  # a transformers model
        if {p.dtype for p in network.parameters() if p.is_floating_point()} > {torch.float32}:
            # What was frozen may lie in half precision; what trained must not be opened in it.
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            (folder / "config.json").write_text(json.dumps(config | {"dtype": "float32"}, indent=2), encoding="utf-8")
        tokenizer.save_pretrained(folder)

    def reload(self, network: nn.Module, folder: Path) -> nn.Module:
        for parameter in network.parameters():  # the folder is a whole model, and was loaded as one
            parameter.requires_grad_(not is_quantised(parameter))
        return network


class PeftAdapter(Adaptation):
    """The base of methods that PEFT implements; what is saved are PEFT's files."""

    adapter: ClassVar[bool] = True
    saved_as: ClassVar[Literal["peft", "transformers", "onsa"]] = "peft"

    @abstractmethod
    def config(self, network: nn.Module, train: frozenset[str], total: int) -> Any:
        """PEFT's configuration of the method for this network, without task type and ``modules_to_save``.

        Args:
            train: names of parameters that train themselves, and are not to be adapted.

        Raises:
            RecipeError: a setting does not fit this network.
        """

    def adapt(self, network: nn.Module, head: Head, train: frozenset[str], total: int) -> nn.Module:
        from peft import TaskType, get_peft_model

        with hushed(), self.refusing():
            config = self.config(network, train, total)
        config.task_type = TaskType.SEQ_CLS if head is Head.ROWS else TaskType.CAUSAL_LM
        # PEFT trains and saves a new classification head by itself; what else trains is named to it.
        owners = whole_modules(network, head, train)
        if owners:
            config.modules_to_save = owners
        if tied_owner(network, owners):
            if not any(field.name == TIES for field in fields(config)):
                raise RecipeError.of("unfreeze-unties", key="adaptation.unfreeze", adaptation=self.method())
            setattr(config, TIES, True)
        with hushed(), self.refusing():
            adapted: nn.Module = get_peft_model(network, config)
        return adapted

    def method(self) -> str:
        """What the method is called towards a user."""
        return self.kind

    def rehearse(self, network: nn.Module) -> None:
        """Send a few tokens through and back, so that what a method lacks here shows before the run.

        Raises:
            RecipeError: PEFT or the network cannot do it.
        """
        token_RT = torch.arange(1, 5).repeat(2, 1)
        with torch.random.fork_rng(devices=()), hushed(), self.refusing():
            logits = network.eval()(input_ids=token_RT, attention_mask=torch.ones_like(token_RT)).logits
            logits.float().square().mean().backward()
        network.zero_grad(set_to_none=True)

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Give what PEFT says against a setting or a network, in many types of errors, as one of ours."""
        try:
            yield
        except OnsaError:
            raise
        except Exception as error:
            reason = first_line(error).rstrip(".")
            raise RecipeError.of("peft-refuses", key="adaptation", adaptation=self.method(), reason=reason) from error

    def base(self, network: nn.Module) -> AbstractContextManager[None] | None:
        return _off(network)

    def save(self, network: nn.Module, tokenizer: Any, folder: Path) -> None:
        with hushed():
            network.save_pretrained(folder)  # type: ignore[operator]  # a PEFT model
        tokenizer.save_pretrained(folder)

    def reload(self, network: nn.Module, folder: Path) -> nn.Module:
        """As in the base class.

        Raises:
            ModelError: the files are not there, or damaged.
        """
        from peft import PeftConfig, PeftModel

        whole_adapter(folder)
        with hushed():
            soft = PeftConfig.from_pretrained(folder).is_prompt_learning
            adapted: nn.Module = PeftModel.from_pretrained(network, folder, is_trainable=not soft)
        if soft:  # PEFT keeps the vectors that an encoder gave, not the encoder, and so does not train them on
            for name, parameter in adapted.named_parameters():
                parameter.requires_grad_(name.startswith("prompt_encoder.") or ".modules_to_save." in name)
        return adapted

    def fold(self, network: nn.Module) -> nn.Module:
        try:
            with hushed():
                merged: nn.Module = network.merge_and_unload()  # type: ignore[operator]  # a PEFT model
        except Exception as error:  # not every method of PEFT can, and each says so in its own way
            raise ModelError.of("merge-impossible", adaptation=self.method()) from error
        return merged


class SoftPrompt(PeftAdapter):
    """The base of methods that put trained vectors in front of every row, and leave the network as it is.

    tokens: virtual tokens in front of every row; they take as much of the base's context.
    """

    merges: ClassVar[bool] = False

    tokens: Annotated[int, Field(ge=1)] = 20

    def places(self) -> int:
        return self.tokens

    def adapt(self, network: nn.Module, head: Head, train: frozenset[str], total: int) -> nn.Module:
        adapted = super().adapt(network, head, train, total)
        self.rehearse(adapted)  # not every network takes embeddings, or keys and values
        return adapted


def whole_modules(network: nn.Module, head: Head, train: frozenset[str]) -> list[str]:
    """The modules that PEFT is to train whole, for some parameters to train; none of them lies in another.

    Raises:
        RecipeError: they hold more than these parameters, or what is quantised.
    """
    parts = [name for name, _ in head_modules(network)] if head is Head.ROWS else []
    inside = {name.rpartition(".")[0] for name in train}
    # A row head is one copy, also where it has several layers: of copies within copies PEFT trains none.
    found = {next((part for part in parts if f"{name}.".startswith(f"{part}.")), name) for name in inside}
    owners = sorted(name for name in found if not any(name.startswith(f"{other}.") for other in found))
    for owner in owners:
        held = {f"{owner}.{name}": p for name, p in network.get_submodule(owner).named_parameters()}
        if any(map(is_quantised, held.values())):
            raise RecipeError.of("unfreeze-quantised", key="adaptation.unfreeze")
        if owner not in parts and not held.keys() <= train:
            raise RecipeError.of("unfreeze-partial", key="adaptation.unfreeze", value=owner)
    return owners


def tied_owner(network: Any, owners: Iterable[str]) -> bool:
    """Whether one of some modules is the input embeddings, whose weight the output layer shares."""
    output = network.get_output_embeddings()
    if output is None or output.weight is not network.get_input_embeddings().weight:
        return False
    held = (part for name in owners for part in network.get_submodule(name).modules())
    return any(part is network.get_input_embeddings() for part in held)


@contextmanager
def _off(network: Any) -> Iterator[None]:
    """Within, PEFT's adapter does not act; what trains, which PEFT would mark anew, is marked as before."""
    trains = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    try:
        with network.disable_adapter():
            yield
    finally:
        for parameter, mark in trains:
            parameter.requires_grad_(mark)


@contextmanager
def hushed() -> Iterator[None]:
    """PEFT's advice to programmers, held back: what concerns a user is said in our words."""
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
