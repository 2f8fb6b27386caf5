"""Policy: a network as objectives see it. They ask for log-probabilities or classes; how a batch is laid out for the
network, where logits are computed and in what precision is decided here, from the plan.

Shape legend: R rows, N tokens in one line, M predictions, C classes, V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from onsa.models import critic
from onsa.models.batch import Batch
from onsa.models.boundary import Boundary
from onsa.models.lowering import Block, Layout, base_network, folded, for_row_head, opening, packed, padded
from onsa.models.reference import Reference
from onsa.models.vocabulary import LogProbs

Logits = Literal["every-token", "supervised"]


class Predicted(NamedTuple):
    """Of each asked-for token its log-probability, whether none is likelier, and the place among all that go through
    where it is predicted."""

    logprob_M: Tensor
    best_M: Tensor
    where_M: Tensor


@dataclass(frozen=True)
class Policy:
    """A network with its lowering decisions.

    network: a transformers model, perhaps inside the wrapper of an adaptation.
    logits: compute the vocabulary's logits at every token, or only where a prediction is asked for.
    head_rows: predictions whose logits are there at once, of a plain output layer; ``None`` is all.
    temperature: what logits are divided by before they become probabilities.
    keep: a list that takes up the logits of every prediction that is asked for, in the order of asking.
    adapter_R: of a network that holds several adapters, PEFT's name of the one that answers each row.
    boundary: what is kept of the network's lower part, where it begins in the middle.
    layout: rows beside each other, or (token heads of decoders) behind each other in one line, or folded, with all
        answers to a prompt behind it.
    """

    network: Any
    pad_id: int
    device: torch.device
    precision: str = "fp32"
    logits: Logits = "every-token"
    adapter_R: tuple[str, ...] | None = None
    keep: list[Tensor] | None = None
    layout: Layout = "padded"
    boundary: Boundary | None = None
    head_rows: int | None = None
    temperature: float = 1.0

    def logprobs(self, batch: Batch, smoothing: float = 0.0) -> Tensor:
        """The log-probability of each asked-for token, ``logprob_M``, fp32.

        With smoothing, that share of it is the mean log-probability of all tokens (Szegedy et al. 2016, section 7).
        """
        return self._predicted(batch, smoothing).logprob_M

    def told(self, batch: Batch, smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
        """As :meth:`logprobs`, and whether no token is likelier, ``best_M``."""
        found = self._predicted(batch, smoothing)
        return found.logprob_M, found.best_M

    def valued(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """As :meth:`logprobs`, and what the critic's head gives where each token is predicted, ``value_M``."""
        hidden: list[Tensor] = []
        found = self._predicted(batch, 0.0, hidden)
        return found.logprob_M, critic.values(self.network, hidden[0].flatten(0, 1)[found.where_M])

    def _predicted(self, batch: Batch, smoothing: float, hidden: list[Tensor] | None = None) -> Predicted:
        """What is said of each asked-for token.

        Args:
            hidden: takes up the last hidden states of all places, ``hidden_RTD``.
        """
        batch = batch if self.layout == "folded" else batch.unfolded()
        assert batch.predict_M is not None
        with self.autocast(), self._begun(batch), self._watched(hidden):
            batch = batch.to(self.device)
            block = self._laid(batch)
            where_M = block.flat_N[batch.predict_M]
            if self.logits == "supervised":
                hidden_MD, output = self._hidden(block)[where_M], base_network(self.network).get_output_embeddings()
                if self.head_rows is not None and self.keep is None:
                    settings = (batch.target_M, smoothing, self.head_rows)
                    cooled_MD = self._cooled(hidden_MD)
                    logprob_M, best_M = LogProbs.apply(cooled_MD, output.weight, *settings)  # type: ignore[no-untyped-call]
                    return Predicted(logprob_M, best_M, where_M)
                logit_MV = output(hidden_MD)
            else:
                logit_MV = block.network(**block.inputs).logits.flatten(0, 1)[where_M]
        logit_MV = self._kept(self._cooled(logit_MV.float()))
        logprob_M = -functional.cross_entropy(logit_MV, batch.target_M, reduction="none", label_smoothing=smoothing)
        with torch.no_grad():
            best_M = logit_MV.gather(1, batch.target_M[:, None])[:, 0] >= logit_MV.amax(1)
        return Predicted(logprob_M, best_M, where_M)

    def classes(self, batch: Batch) -> Tensor:
        """The output of a row head, ``logit_RC``, fp32; of rows that hold answers, one of each answer."""
        assert self.layout != "packed", "row heads read whole rows"
        texts = batch.unfolded()
        with self.autocast(), self._begun(texts):
            block = for_row_head(self.network, texts.to(self.device), self.pad_id)
            logit_RC: Tensor = block.network(**block.inputs, **self._mixed(batch.counts())).logits
        return self._kept(logit_RC.float())

    def embed(self, batch: Batch) -> Tensor:
        """The mean of each row's last hidden states, ``embedding_RD``, fp32: what a base knows without a head.

        Of rows that hold answers, that of each answer behind its prompt.
        """
        batch = batch.unfolded().to(self.device)
        with self.autocast():
            block = self._laid(batch)
            hidden_ND = self._hidden(block)[block.flat_N].float()
        return torch.stack([hidden_TD.mean(0) for hidden_TD in torch.split(hidden_ND, list(batch.length_R))])

    @torch.inference_mode()
    def generate(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, stop_ids: Sequence[int]
    ) -> list[list[int]]:
        """Greedy continuations of some prompts, each without its stop token. Rows are padded on the left."""
        self.network.eval()
        with self.autocast():
            block = opening(self.network, prompts, self.pad_id, self.device)
            out_RT = block.network.generate(
                **block.inputs,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=list(stop_ids) or None,
                pad_token_id=self.pad_id,
                **self._mixed([1] * len(prompts)),
            )
        stops = set(stop_ids)
        answers = []
        for row in out_RT[:, int(block.flat_N) :].tolist():
            end = next((place for place, token in enumerate(row) if token in stops), len(row))
            answers.append(row[:end])
        return answers

    def _cooled(self, value: Tensor) -> Tensor:
        return value if self.temperature == 1 else value / self.temperature

    def _kept(self, logit_MC: Tensor) -> Tensor:
        if self.keep is not None:
            self.keep.append(logit_MC)
        return logit_MC

    def _laid(self, batch: Batch) -> Block:
        if self.layout == "packed":
            return packed(self.network, batch)
        if batch.answers is not None:
            return folded(self.network, batch, self.pad_id)
        return padded(self.network, batch, self.pad_id)

    def _hidden(self, block: Block) -> Tensor:
        """The last hidden states, without a head, of all places in one line."""
        hidden_RTD: Tensor = self._inner()(**block.inputs).last_hidden_state
        return hidden_RTD.flatten(0, 1)

    def _inner(self) -> Any:
        """The network without its head."""
        whole = base_network(self.network)
        return whole.get_submodule(whole.base_model_prefix)

    @contextmanager
    def _watched(self, hidden: list[Tensor] | None) -> Iterator[None]:
        """Within, the last hidden states are taken up."""
        if hidden is None:
            yield
            return
        handle = self._inner().register_forward_hook(lambda _, __, said: hidden.append(said.last_hidden_state))
        try:
            yield
        finally:
            handle.remove()

    def _begun(self, batch: Batch) -> AbstractContextManager[None]:
        """Within, the network begins where what is kept of this batch allows."""
        return nullcontext() if self.boundary is None else self.boundary.crossing(batch)

    def _mixed(self, counts: Sequence[int]) -> dict[str, Any]:
        """The adapter that answers each of a row's texts, of which there are so many."""
        if self.adapter_R is None:
            return {}
        return {
            "adapter_names": [name for name, count in zip(self.adapter_R, counts, strict=True) for _ in range(count)]
        }

    def autocast(self) -> torch.autocast:
        """Within, the network computes in the policy's precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")


@dataclass(frozen=True)
class Models:
    """The models that an objective may ask, by role."""

    policy: Policy
    reference: Reference | None = None
