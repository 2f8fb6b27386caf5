"""Task: what an example means, what is predicted, and how it is scored."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from onsa.data.profile import Profile
from onsa.data.table import Row
from onsa.models.batch import Batch, Example
from onsa.models.heads import Head
from onsa.spec.component import Component, Form
from onsa.spec.errors import Problem

if TYPE_CHECKING:
    from onsa.models.policy import Policy

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Match:
    """How well a table fits a task: the columns in their roles, a score in [0, 1], and the reasons (message codes)."""

    columns: dict[str, str]
    score: float
    reasons: list[tuple[str, dict[str, Any]]] = field(default_factory=list)


@dataclass(frozen=True)
class Outcome:
    """What a model made of some rows. R rows, C outputs.

    loss_R, weight_R: summed loss and weight of each row; their quotient of sums is the mean loss.
    output_RC: the model's outputs after the task's link (probabilities, or numbers); ``None`` for token tasks.
    target_R: the right answers as the task encodes them; ``None`` for token tasks.
    right_R: of token tasks, the summed weight of each row's tokens than which none was likelier.
    """

    row_R: npt.NDArray[np.int64]
    loss_R: Floats
    weight_R: Floats
    output_RC: Floats | None = None
    target_R: npt.NDArray[Any] | None = None
    right_R: Floats | None = None

    def take(self, index: npt.NDArray[np.int64]) -> Outcome:
        """The outcome of some of the rows, repeats allowed (a bootstrap resample)."""
        output = None if self.output_RC is None else self.output_RC[index]
        target = None if self.target_R is None else self.target_R[index]
        right = None if self.right_R is None else self.right_R[index]
        return Outcome(self.row_R[index], self.loss_R[index], self.weight_R[index], output, target, right)

    @staticmethod
    def join(parts: list[Outcome]) -> Outcome:
        """Several outcomes as one, in the order of their rows."""
        row_R = np.concatenate([part.row_R for part in parts])
        outputs = [part.output_RC for part in parts if part.output_RC is not None]
        targets = [part.target_R for part in parts if part.target_R is not None]
        rights = [part.right_R for part in parts if part.right_R is not None]
        whole = Outcome(
            row_R,
            np.concatenate([part.loss_R for part in parts]),
            np.concatenate([part.weight_R for part in parts]),
            np.concatenate(outputs) if outputs else None,
            np.concatenate(targets) if targets else None,
            np.concatenate(rights) if rights else None,
        )
        return whole.take(np.argsort(row_R, kind="stable"))


class Examiner(Protocol):
    """Who says how good a model is at some rows: a task itself, or what grades its answers."""

    def outcome(self, policy: Policy, batch: Batch) -> Outcome:
        """What a model makes of a batch."""

    def metrics(self, outcome: Outcome) -> dict[str, float]:
        """Every metric of an outcome, by name."""

    def said(self) -> dict[str, str]:
        """What the first few rows were answered last, by prompt, where rows are answered."""


def text_of(value: Any) -> str:
    """A cell as text; null and NaN are no text."""
    return "" if value is None or value != value else str(value)


class Task(Component):
    """The base of every task. A task's settings are its fields; what depends on the data, ``fit`` writes into them."""

    objectives: ClassVar[tuple[str, ...]]  # kinds of objective that make sense for this task
    roles: ClassVar[dict[str, bool]]  # role of a column: must it be there?
    answers: ClassVar[frozenset[str]] = frozenset({"label", "completion"})  # roles that a row to be answered may lack
    further: ClassVar[bool] = False  # do columns that no role names come along, under their own names?
    lower_is_better: ClassVar[frozenset[str]] = frozenset({"loss", "perplexity", "mae", "rmse", "brier"})

    neutral: ClassVar[frozenset[str]] = frozenset()  # metrics of which neither more nor less is better

    @property
    @abstractmethod
    def head(self) -> Head:
        """What the model's last layer gives."""

    @property
    @abstractmethod
    def provides(self) -> Form:
        """The form of this task's examples."""

    @property
    @abstractmethod
    def headline(self) -> str:
        """The metric that the verdict is about."""

    @property
    @abstractmethod
    def measures(self) -> tuple[str, ...]:
        """The names of all its metrics."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of a row head's outputs; none for token heads."""
        return ()

    @property
    def hf_problem(self) -> str | None:
        """Transformers' ``problem_type`` of a row head."""
        return None

    @classmethod
    @abstractmethod
    def recognise(cls, profile: Profile) -> Match | None:
        """How well a table fits this task, or ``None`` where it does not."""

    @property
    def talks(self) -> bool:
        """Whether a model of this task leads conversations."""
        return False

    def suited(self, reads: frozenset[Form]) -> Task:
        """This task as an objective that reads these forms can learn it."""
        return self

    def fit(self, rows: Sequence[Row]) -> Task:
        """This task with the settings that depend on the data (labels, …) filled in."""
        return self

    @abstractmethod
    def problem_of(self, row: Row) -> tuple[str, dict[str, Any]] | None:
        """Why this row cannot be used, as a message code and its values, or ``None``."""

    def unanswerable(self, row: Row) -> tuple[str, dict[str, Any]] | None:
        """Why a row that waits for its answer cannot be answered, as a message code and its values, or ``None``."""
        return None

    def worth_knowing(self, sides: Mapping[str, Iterable[Row]]) -> list[Problem]:
        """What of the usable rows of each side is of interest to this task alone."""
        return []

    @abstractmethod
    def from_text(self, text: str) -> dict[str, Any]:
        """The values of a row, by role, that stand for one text typed by a person."""

    @abstractmethod
    def inputs(self, row: Row) -> str:
        """The part of a row that is given, as one text: equal inputs never straddle a split."""

    @abstractmethod
    def answer(self, row: Row) -> str:
        """The part of a row that is to be predicted, as one text: equal inputs with unlike answers conflict."""

    @abstractmethod
    def encode(self, row: Row, tokenizer: Any, max_length: int) -> Example:
        """One row as tokens with what is to be predicted."""

    def asked(self, row: Row, tokenizer: Any, max_length: int) -> Example:
        """As :meth:`encode`, of a row that waits for what a row head says to it, whatever answer it may have."""
        return self.encode(row, tokenizer, max_length)

    def described(self, logit_RC: Tensor, examples: Sequence[Example]) -> list[dict[str, Any]]:
        """What a row head says to some examples, in words and numbers: each of its outputs by name."""
        return [dict(zip(self.outputs, logit_C, strict=True)) for logit_C in logit_RC.tolist()]

    @abstractmethod
    def outcome(self, policy: Policy, batch: Batch) -> Outcome:
        """What a model makes of a batch."""

    @abstractmethod
    def metrics(self, outcome: Outcome) -> dict[str, float]:
        """Every metric of an outcome, by name."""

    def said(self) -> dict[str, str]:
        """Rows are not answered in words here."""
        return {}


class TokenTask(Task):
    """The base of tasks in which tokens are predicted from those before them."""

    objectives: ClassVar[tuple[str, ...]] = ("sft",)

    @property
    def head(self) -> Head:
        return Head.TOKENS

    @property
    def provides(self) -> Form:
        return Form.TOKENS

    @property
    def headline(self) -> str:
        return "loss"

    @property
    def measures(self) -> tuple[str, ...]:
        return ("loss", "perplexity", "token_accuracy")

    @abstractmethod
    def prompt(self, row: Row, tokenizer: Any) -> list[int]:
        """The tokens that an answer to this row is generated from."""

    @property
    def last_is_answer(self) -> bool:
        """Whether a conversation that the assistant ends is asked without that, which is the row's answer."""
        return False

    def from_messages(self, messages: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The values of a row, by role, that stand for a conversation, of a task that ``talks``."""
        return {}

    def prompt_messages(self, row: Row) -> list[dict[str, Any]]:
        """What :meth:`prompt` is made of, of a task that ``talks``."""
        return []

    def asks(self, row: Row) -> bool:
        """Whether a row has a prompt apart from its answer, so that a generated answer can be held beside that."""
        return True

    def stop_ids(self, tokenizer: Any) -> frozenset[int]:
        """The tokens with which an answer ends."""
        return frozenset() if tokenizer.eos_token_id is None else frozenset({tokenizer.eos_token_id})

    def outcome(self, policy: Policy, batch: Batch) -> Outcome:
        logprob_M, best_M = policy.told(batch)
        weight_M = batch.weight_M.to(logprob_M.device).double()
        segment_M = batch.segment_M.to(logprob_M.device)

        def summed(value_M: Tensor) -> Floats:
            sum_R = weight_M.new_zeros(len(batch.row_R)).index_add_(0, segment_M, weight_M * value_M)
            return cast(Floats, sum_R.cpu().numpy())

        facts = (summed(-logprob_M.double()), summed(torch.ones_like(weight_M)))
        return Outcome(np.asarray(batch.row_R), *facts, right_R=summed(best_M.double()))

    def metrics(self, outcome: Outcome) -> dict[str, float]:
        loss = float(outcome.loss_R.sum() / outcome.weight_R.sum())
        found = {"loss": loss, "perplexity": float(np.exp(min(loss, 700.0)))}
        if outcome.right_R is not None:
            found["token_accuracy"] = float(outcome.right_R.sum() / outcome.weight_R.sum())
        return found
