"""Any method of PEFT by its name there. What tuners there are, and what settings each has, is asked of PEFT."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, get_type_hints

import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from torch import Tensor, nn

from onsa.adaptations.base import PeftAdapter
from onsa.models.heads import Head
from onsa.models.targets import WITH_DATA
from onsa.spec.errors import Problem, RecipeError, unknown

# Settings which PEFT's own losses and trainers read, so that they would do nothing here.
ELSEWHERE = {
    "LORA": ("monteclora_config", "eva_config", "corda_config", "lora_ga_config"),
    "CPT": ("opt_weighted_loss_type", "opt_loss_decay_factor"),
    "SHADOW": ("auxiliary_loss_weight",),
}
NOT_OF_PRODUCTS = ("LN_TUNING",)  # what a tuner of norms is for must not fall back to products
TOKENS = 20  # of soft prompts
SCORES = ("ipt", "exp_avg_ipt", "exp_avg_unc")  # what AdaLoRA's allocator and AdaMSS' layers remember of gradients
KEPT = "rank_pattern"  # which ranks AdaLoRA holds on to
TRAINS = "requires_grad"  # which subspaces AdaMSS still trains


class Peft(PeftAdapter):
    """Train by any method of PEFT that has no kind of its own here: VeRA, LoHa, OFT, AdaLoRA, …

    tuner: PEFT's name of the method, such as ``vera``.
    settings: fields of PEFT's configuration of that method, and their values.
    """

    kind: ClassVar[str] = "peft"
    rates: ClassVar[dict[Head, float]] = {Head.ROWS: 3e-3, Head.TOKENS: 3e-3}

    tuner: str = "adalora"
    settings: dict[str, Any] = Field(default={})

    def method(self) -> str:
        return self.tuner

    def places(self) -> int:
        tokens = self._settings(0).get("num_virtual_tokens")
        return tokens if isinstance(tokens, int) else 0

    def config(self, network: nn.Module, train: frozenset[str], total: int) -> Any:
        from peft import AdaLoraConfig, TaskType
        from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

        name, of = self._method()
        settings = self._settings(total)
        known = {field.name for field in fields(of)}
        if train and "modules_to_save" not in known:
            raise RecipeError.of("peft-leaves-head", key="adaptation.tuner", tuner=self.tuner, names=", ".join(train))
        usual = getattr(PEFT_TYPE_TO_TUNER_MAPPING[name], "target_module_mapping", None)  # only some have targets
        model = network.config.model_type  # type: ignore[union-attr]  # a transformers model
        if usual and model not in usual and name not in NOT_OF_PRODUCTS:
            settings.setdefault("target_modules", "all-linear")
        if "encoder_hidden_size" in known:
            settings.setdefault("encoder_hidden_size", network.get_input_embeddings().embedding_dim)  # type: ignore[operator]
        head = TaskType.CAUSAL_LM if network.get_output_embeddings() is not None else TaskType.SEQ_CLS  # type: ignore[operator]
        config: Any = of(**settings, task_type=head)
        if isinstance(config, AdaLoraConfig) and config.target_r >= config.init_r:  # PEFT would stop in the first step
            values = {"value": config.target_r, "bound": config.init_r}
            raise RecipeError(Problem("value-not-below", values, key="adaptation.settings.target_r"))
        return config

    def adapt(self, network: nn.Module, head: Head, train: frozenset[str], total: int) -> nn.Module:
        adapted = super().adapt(network, head, train, total)
        self.rehearse(adapted)
        return adapted

    def penalty(self, network: nn.Module) -> Tensor | None:
        """AdaLoRA's: how far the factors of its updates are from orthogonal ones (Zhang et al. 2023, eq. 4)."""
        from peft import AdaLoraModel

        if not isinstance(network.base_model, AdaLoraModel):
            return None
        gaps = []
        for name, factor in network.named_parameters():
            if "lora_A." in name or "lora_B." in name:
                product = factor @ factor.T if "lora_A." in name else factor.T @ factor
                gaps.append(torch.linalg.matrix_norm(product - torch.eye(len(product), device=product.device)))
        config: Any = network.active_peft_config
        penalty: Tensor = torch.stack(gaps).mean() * config.orth_reg_weight
        return penalty

    def after_step(self, network: nn.Module, step: int, total: int) -> None:
        """Let AdaLoRA and AdaMSS spread their ranks, which they do while they train."""
        from peft import AdaLoraModel, AdamssModel

        if not isinstance(network.base_model, AdaLoraModel | AdamssModel):
            return
        before = {p: p.requires_grad for p in network.parameters()}
        still = [p for name, p in network.named_parameters() if "lora_" in name and p.grad is None]
        for parameter in still:  # frozen by name, but AdaLoRA reads every gradient
            parameter.grad = torch.zeros_like(parameter)
        with self.refusing():
            network.base_model.update_and_allocate(step + 1)
        for parameter in still:
            parameter.grad = None
        for parameter, trained in before.items():  # AdaMSS switches subspaces off, and must not switch others on
            parameter.requires_grad_(parameter.requires_grad and trained)

    def state(self, network: nn.Module) -> dict[str, Tensor]:
        memories = _memories(network)
        if not memories:
            return {}
        pattern = getattr(network.active_peft_config, KEPT, None) or {}  # AdaLoRA's
        found = {f"{KEPT}/{name}": torch.tensor(ranks) for name, ranks in pattern.items()}
        found |= {f"{TRAINS}/{name}": torch.tensor(p.requires_grad) for name, p in network.named_parameters()}
        for place, memory in memories.items():
            found |= {f"{place}/{key}": value for key, value in memory.items() if value is not None}
        return found

    def restore(self, network: nn.Module, state: dict[str, Tensor]) -> None:
        parts: dict[str, dict[str, Tensor]] = {}
        for key, value in state.items():
            place, _, name = key.partition("/")
            parts.setdefault(place, {})[name] = value
        device = next(network.parameters()).device
        for place, memory in _memories(network).items():
            for name, value in parts.get(place, {}).items():
                memory[name] = value.to(device)
        if KEPT in parts:
            pattern = {name: ranks.tolist() for name, ranks in parts[KEPT].items()}
            network.active_peft_config.rank_pattern = pattern  # type: ignore[union-attr]
        if TRAINS in parts:
            for name, parameter in network.named_parameters():
                parameter.requires_grad_(bool(parts[TRAINS][name]))

    def save(self, network: nn.Module, tokenizer: Any, folder: Path) -> None:
        config: Any = network.active_peft_config
        pattern: Any = getattr(config, KEPT, None)
        inner: Any = network.base_model
        lost = [
            parameter.flatten()[~torch.tensor(pattern.get(name, pattern.get(name.replace(".default", ""))))]
            for name, parameter in (inner.model.named_parameters() if _is_mask(pattern) else ())
            if "lora_E." in name
        ]
        # AdaLoRA's file leaves out the ranks that it has let go of, though they train on until it looks again.
        if any(values.any() for values in lost):
            config.rank_pattern = None
        super().save(network, tokenizer, folder)
        if lost:
            config.rank_pattern = pattern

    def _method(self) -> tuple[str, type]:
        """PEFT's name of the tuner and its configuration."""
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

        of = {kind.value.lower().replace("_", "-"): kind for kind in PEFT_TYPE_TO_CONFIG_MAPPING}
        name = self.tuner.lower().replace("_", "-")
        if name not in of:
            raise RecipeError(unknown("value-unknown", self.tuner, sorted(of), key="adaptation.tuner"))
        return of[name].value, PEFT_TYPE_TO_CONFIG_MAPPING[of[name]]

    def _settings(self, total: int) -> dict[str, Any]:
        """The settings as PEFT's configuration takes them, with those that follow from the run.

        Raises:
            RecipeError: settings that the configuration does not have, or that would do nothing, or of a wrong type.
        """
        from peft import PeftConfig

        name, of = self._method()
        ours = {field.name for field in fields(PeftConfig)} | {"inference_mode", "modules_to_save"}
        known = [field.name for field in fields(of) if field.init and field.name not in ours]
        types = get_type_hints(of)
        problems = []
        for setting, value in self.settings.items():
            key = f"adaptation.settings.{setting}"
            if setting not in known:
                problems.append(unknown("key-unknown", setting, known, key=key))
            elif setting in ELSEWHERE.get(name, ()) or value in WITH_DATA:
                problems.append(Problem("peft-setting-idle", {"value": setting, "tuner": self.tuner}, key=key))
            elif (reason := _misfit(types[setting], value)) is not None:
                problems.append(Problem("value-refused", {"value": value, "reason": reason}, key=key))
        if problems:
            raise RecipeError(problems)
        from_run = {"total_step": max(total, 1), "num_virtual_tokens": TOKENS}
        return {**{setting: value for setting, value in from_run.items() if setting in known}, **self.settings}


def _misfit(wanted: Any, value: Any) -> str | None:
    """Why a value is not of a type; ``None`` if it is."""
    try:
        TypeAdapter(wanted, config=ConfigDict(arbitrary_types_allowed=True)).validate_json(
            json.dumps(value), strict=True
        )
    except ValidationError as error:
        return str(error.errors()[0]["msg"])
    return None


def _is_mask(pattern: Any) -> bool:
    """Whether this is AdaLoRA's pattern: for each module, which of its ranks are held on to."""
    return bool(pattern) and all(isinstance(ranks, list) for ranks in pattern.values())


def _memories(network: nn.Module) -> dict[str, dict[str, Any]]:
    """What AdaLoRA's allocator and AdaMSS' layers remember of gradients, by place; to be read and to be filled."""
    from peft import AdaLoraModel
    from peft.tuners.adamss.layer import AdamssLayer

    if isinstance(network.base_model, AdaLoraModel):
        return {kind: getattr(network.base_model.rankallocator, kind) for kind in SCORES}
    found: dict[str, dict[str, Any]] = {}
    for name, module in network.named_modules():
        if isinstance(module, AdamssLayer):
            for kind in SCORES:
                for side in ("A", "B") if kind != "ipt" else ():
                    for adapter, values in getattr(module, f"{kind}_{side}").items():
                        found[f"{name}.{kind}_{side}.{adapter}"] = _Listed(values)
    return found


class _Listed(dict[str, Any]):
    """A list, read and filled as a mapping from places in it."""

    def __init__(self, values: list[Any]) -> None:
        super().__init__({str(place): value for place, value in enumerate(values)})
        self._values = values

    def __setitem__(self, place: str, value: Any) -> None:
        self._values[int(place)] = value
