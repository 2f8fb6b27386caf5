"""Policy: a network as objectives see it. They ask for log-probabilities or classes; how a batch is laid out for the
network, where logits are computed and in what precision is decided here, from the plan.

Shape legend: R rows, T the longest row's tokens, N tokens in one line, M predictions, C classes, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from onsa.models.batch import Batch

Logits = Literal["every-token", "supervised"]


@dataclass(frozen=True)
class Policy:
    """A network with its lowering decisions.

    network: a transformers model, perhaps inside the wrapper of an adaptation.
    logits: compute the vocabulary's logits at every token, or only where a prediction is asked for.
    """

    network: Any
    pad_id: int
    device: torch.device
    precision: str = "fp32"
    logits: Logits = "every-token"

    def logprobs(self, batch: Batch) -> Tensor:
        """The log-probability of each asked-for token, ``logprob_M``, fp32."""
        assert batch.predict_M is not None
        batch = batch.to(self.device)
        block = self._padded(batch)
        where_M = block.flat_N[batch.predict_M]
        with self._autocast():
            if self.logits == "supervised":
                inner = base_network(self.network)
                hidden_RTD = inner.get_submodule(inner.base_model_prefix)(**block.inputs).last_hidden_state
                logit_MV = inner.get_output_embeddings()(hidden_RTD.flatten(0, 1)[where_M])
            else:
                logit_MV = self.network(**block.inputs).logits.flatten(0, 1)[where_M]
        return -functional.cross_entropy(logit_MV.float(), batch.target_M, reduction="none")

    def classes(self, batch: Batch) -> Tensor:
        """The output of a row head, ``logit_RC``, fp32."""
        block = self._padded(batch.to(self.device))
        with self._autocast():
            logit_RC: Tensor = self.network(**block.inputs).logits
        return logit_RC.float()

    def embed(self, batch: Batch) -> Tensor:
        """The mean of each row's last hidden states, ``embedding_RD``, fp32: what a base knows without a head."""
        block = self._padded(batch.to(self.device))
        inner = base_network(self.network)
        with self._autocast():
            hidden_RTD = inner.get_submodule(inner.base_model_prefix)(**block.inputs).last_hidden_state.float()
        mask_RT1 = block.inputs["attention_mask"].unsqueeze(-1)
        embedding_RD: Tensor = (hidden_RTD * mask_RT1).sum(1) / mask_RT1.sum(1)
        return embedding_RD

    @torch.inference_mode()
    def generate(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, stop_ids: Sequence[int]
    ) -> list[list[int]]:
        """Greedy continuations of some prompts, each without its stop token. Rows are padded on the left."""
        longest = max(map(len, prompts))
        token_RT = torch.full((len(prompts), longest), self.pad_id)
        mask_RT = torch.zeros_like(token_RT)
        for row, prompt in enumerate(prompts):
            token_RT[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask_RT[row, longest - len(prompt) :] = 1
        self.network.eval()
        with self._autocast():
            out_RT = self.network.generate(
                input_ids=token_RT.to(self.device),
                attention_mask=mask_RT.to(self.device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=list(stop_ids) or None,
                pad_token_id=self.pad_id,
            )
        stops = set(stop_ids)
        answers = []
        for row in out_RT[:, longest:].tolist():
            end = next((place for place, token in enumerate(row) if token in stops), len(row))
            answers.append(row[:end])
        return answers

    def _padded(self, batch: Batch) -> _Block:
        length_R = torch.tensor(batch.length_R, device=batch.token_N.device)
        mask_RT = torch.arange(int(max(batch.length_R)), device=length_R.device) < length_R[:, None]
        token_RT = torch.full(mask_RT.shape, self.pad_id, device=length_R.device)
        token_RT[mask_RT] = batch.token_N
        inputs = {"input_ids": token_RT, "attention_mask": mask_RT.long()}
        # A tokenizer may tell a pair's texts apart for a network that does not: RoBERTa knows one type, a decoder none.
        if batch.type_N is not None and getattr(base_network(self.network).config, "type_vocab_size", 0) > 1:
            inputs["token_type_ids"] = torch.zeros_like(token_RT)
            inputs["token_type_ids"][mask_RT] = batch.type_N
        return _Block(inputs, mask_RT.flatten().nonzero().squeeze(1))

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")


@dataclass(frozen=True)
class Models:
    """The models that an objective may ask, by role."""

    policy: Policy


@dataclass(frozen=True)
class _Block:
    """A batch as a padded block: the network's inputs, and where each of the N tokens lies in it when flattened."""

    inputs: dict[str, Any]
    flat_N: Tensor


def base_network(network: nn.Module) -> Any:
    """The transformers model inside a network that an adaptation may have wrapped."""
    unwrap = getattr(network, "get_base_model", None)
    return unwrap() if unwrap else network
