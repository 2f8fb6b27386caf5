"""Adaptation: which parameters of a network train. Three abstract classes: of all, of whole models, of PEFT's."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from onsa.models.heads import Head
from onsa.models.load import quiet
from onsa.models.names import matching
from onsa.spec.component import Component
from onsa.spec.errors import RecipeError


class Adaptation(Component):
    """The base of every adaptation.

    ``adapter`` tells whether what is saved lies beside the base (an adapter) or replaces it (a whole model);
    ``saved_as`` names the library that opens it; ``merges`` whether it can be folded into the base's weights;
    ``staged`` whether what trains changes during a run. ``rates`` are the learning rates by head that a resolved
    recipe falls back to.

    freeze: patterns of parameter names that never train, such as ``*.layers.0.*``, a module's path, or ``embeddings``.
    unfreeze: patterns of the base's parameters that train in addition.
    """

    adapter: ClassVar[bool]
    saved_as: ClassVar[Literal["peft", "transformers", "onsa"]] = "transformers"
    merges: ClassVar[bool] = True
    staged: ClassVar[bool] = False
    rates: ClassVar[dict[Head, float]]

    freeze: tuple[str, ...] = ()
    unfreeze: tuple[str, ...] = ()

    def apply(self, network: nn.Module, head: Head, new: frozenset[str], total: int) -> nn.Module:
        """The network with every parameter marked that trains at any time; ``requires_grad`` is then the only truth.

        Args:
            new: names of parameters that the base did not have; they always train, unless frozen by name.
            total: optimizer steps of the whole run.

        Raises:
            RecipeError: a setting does not fit this network, or a pattern matches none of its parameters.
        """
        more = matching(network, self.unfreeze, "adaptation.unfreeze")
        if more and more <= {*self.chosen(network, head), *new}:
            raise RecipeError.of("unfreeze-idle", key="adaptation.unfreeze", adaptation=self.kind)
        adapted = self.adapt(network, head, new | more, total)
        frozen = matching(adapted, self.freeze, "adaptation.freeze")
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

    @abstractmethod
    def merge(self, network: nn.Module) -> nn.Module:
        """The network with the adaptation folded into its base weights; only where the kind ``merges``."""


class WholeModel(Adaptation):
    """The base of methods that train parameters of the base itself; what is saved is a whole model."""

    adapter: ClassVar[bool] = False

    def adapt(self, network: nn.Module, head: Head, train: frozenset[str], total: int) -> nn.Module:
        wanted = {*self.chosen(network, head), *train}
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name in wanted)
        return network

    def save(self, network: nn.Module, tokenizer: Any, folder: Path) -> None:
        with quiet():
            network.save_pretrained(folder)  # type: ignore[operator]  # a transformers model
        tokenizer.save_pretrained(folder)

    def reload(self, network: nn.Module, folder: Path) -> nn.Module:
        return network.requires_grad_(True)  # the folder is a whole model, and was loaded as one

    def merge(self, network: nn.Module) -> nn.Module:
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

        config = self.config(network, train, total)
        config.task_type = TaskType.SEQ_CLS if head is Head.ROWS else TaskType.CAUSAL_LM
        # PEFT trains and saves a new classification head by itself; what else trains is named to it.
        owners = sorted({name.rpartition(".")[0] for name in train})
        if owners:
            config.modules_to_save = owners
        with quiet():
            adapted: nn.Module = get_peft_model(network, config)
        return adapted

    def save(self, network: nn.Module, tokenizer: Any, folder: Path) -> None:
        with quiet():
            network.save_pretrained(folder)  # type: ignore[operator]  # a PEFT model
        tokenizer.save_pretrained(folder)

    def reload(self, network: nn.Module, folder: Path) -> nn.Module:
        from peft import PeftModel

        with quiet():
            adapted: nn.Module = PeftModel.from_pretrained(network, folder, is_trainable=True)
        return adapted

    def merge(self, network: nn.Module) -> nn.Module:
        merged: nn.Module = network.merge_and_unload()  # type: ignore[operator]  # a PEFT model
        return merged
