"""Preference: which of several answers to a prompt is the better one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from onsa.data import preferences
from onsa.data.compare import PROMPTS, Comparison, Messages, check_comparison, to_comparison
from onsa.data.convert import transcript
from onsa.data.profile import Look, Profile
from onsa.data.table import Row
from onsa.models.answers import Answers, in_order
from onsa.models.batch import Batch, Example
from onsa.models.heads import Head
from onsa.models.policy import Policy
from onsa.models.templates import render, turn_end
from onsa.spec.component import Form
from onsa.spec.errors import DataError, Problem
from onsa.tasks.base import Floats, Match, Outcome, TokenTask

CHOSEN = ("chosen", "preferred_output", "preferred_completion", "preferred", "better", "win")
REJECTED = ("rejected", "non_preferred_output", "non_preferred_completion", "dispreferred", "worse", "lose")
COMPLETIONS = ("completion", "response", "answer", "output")
LABELS = ("label", "desirable", "thumbs", "rating")
RANKINGS = ("answers", "ranking", "responses", "completions")


class Preference(TokenTask):
    """Answers to one prompt, compared. The model gives each a score, or its own likelihoods are the scores.

    by: ``score``, of a head of its own (a reward model), or ``likelihood``; follows from the objective if not given.
    single: rows have one answer each, which is good or bad; follows from the data if not given.
    system: a system message for prompts that have none.
    """

    kind: ClassVar[str] = "preference"
    objectives: ClassVar[tuple[str, ...]] = ("dpo", "reward", "kto", "ipo", "orpo", "simpo", "cpo")
    roles: ClassVar[dict[str, bool]] = {
        "prompt": False,
        "chosen": False,
        "rejected": False,
        "tie": False,
        "answers": False,
        "ranks": False,
        "completion": False,
        "label": False,
        "system": False,
        "tools": False,
    }
    answers: ClassVar[frozenset[str]] = frozenset(
        {"chosen", "rejected", "tie", "answers", "ranks", "completion", "label"}
    )

    by: Literal["score", "likelihood"] | None = None
    single: bool | None = None
    system: str | None = None

    @property
    def head(self) -> Head:
        return Head.ROWS if self.by == "score" else Head.TOKENS

    @property
    def provides(self) -> Form:
        if self.single:
            return Form.JUDGED
        return Form.RANKED if self.by == "score" else Form.PREFERRED

    @property
    def headline(self) -> str:
        return "auc" if self.single else "accuracy"

    @property
    def measures(self) -> tuple[str, ...]:
        return ("loss", "auc") if self.single else ("loss", "accuracy", "margin", "brier")

    @property
    def outputs(self) -> tuple[str, ...]:
        return ("score",) if self.by == "score" else ()

    @property
    def hf_problem(self) -> str | None:
        return "regression" if self.by == "score" else None

    @classmethod
    def recognise(cls, profile: Profile) -> Match | None:
        prompt = profile.named(*PROMPTS)
        beside = {role: column.name for role in ("system", "tools") if (column := profile.named(role))}
        first = {"prompt": prompt.name, **beside} if prompt else beside
        chosen, rejected = profile.named(*CHOSEN), profile.named(*REJECTED)
        if chosen and rejected:
            columns = {**first, "chosen": chosen.name, "rejected": rejected.name}
            if (tie := profile.named("tie")) is not None:
                columns["tie"] = tie.name
            return Match(columns, 1.0, [("why-preference", {"chosen": chosen.name, "rejected": rejected.name})])
        answers = profile.named(*RANKINGS)
        if prompt and answers and answers.look in (Look.LABELS, Look.OTHER):
            columns = {**first, "answers": answers.name}
            if (ranks := profile.named("ranks", "rank")) is not None:
                columns["ranks"] = ranks.name
            return Match(columns, 0.9, [("why-ranking", {"answers": answers.name})])
        completion, label = profile.named(*COMPLETIONS), profile.named(*LABELS)
        if prompt and completion and label and label.look is Look.CATEGORY and label.distinct == 2:
            columns = {**first, "completion": completion.name, "label": label.name}
            return Match(columns, 0.95, [("why-judged", {"answer": completion.name, "label": label.name})])
        return None

    def fit(self, rows: Sequence[Row]) -> Preference:
        if self.single is not None:
            return self
        return self.model_copy(update={"single": bool(rows) and "completion" in rows[0].values})

    def suited(self, reads: frozenset[Form]) -> Preference:
        usual = "score" if Form.RANKED in reads else "likelihood"
        return self.model_copy(update={"by": self.by or usual})

    def problem_of(self, row: Row) -> tuple[str, dict[str, Any]] | None:
        if self.single is not None and self.single != ("completion" in row.values):
            return ("row-compares" if self.single else "row-single"), {}
        return check_comparison(row.values)

    def unanswerable(self, row: Row) -> tuple[str, dict[str, Any]] | None:
        fault = check_comparison(row.values, answered=False)
        if fault is None and self.by == "score" and not self.comparison(row, answered=False).answers:
            return "answer-missing", {"role": "completion"}
        return fault

    def worth_knowing(self, sides: Mapping[str, Iterable[Row]]) -> list[Problem]:
        return preferences.examine(sides, self.comparison)

    def comparison(self, row: Row, answered: bool = True) -> Comparison:
        """The row as a prompt, its answers and their ranks."""
        system = {"system": self.system} if self.system and not row.values.get("system") else {}
        return to_comparison({**row.values, **system}, answered)

    def inputs(self, row: Row) -> str:
        return _text(self.comparison(row, answered=False).prompt)

    def answer(self, row: Row) -> str:
        found = self.comparison(row)
        ranked = sorted(zip(found.ranks, map(_text, found.answers), strict=True))
        return "\n\n".join(f"{rank:g}. {text}" for rank, text in ranked)

    def ends(self, row: Row) -> tuple[str, str]:
        """The best and the worst of a row's answers, as texts."""
        found = self.comparison(row)
        order = sorted(range(len(found.ranks)), key=found.ranks.__getitem__)
        return _text(found.answers[order[0]]), _text(found.answers[order[-1]])

    def from_text(self, text: str) -> dict[str, Any]:
        return {"prompt": text}

    @property
    def talks(self) -> bool:
        return self.head is Head.TOKENS

    def from_messages(self, messages: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {"prompt": list(messages)}

    def encode(self, row: Row, tokenizer: Any, max_length: int) -> Example:
        """The prompt's tokens once, then those of each answer with the end of its turn.

        An answer and its prompt have at most ``max_length`` tokens: answers longer than half of it are cut to what the
        prompt leaves, but for that half, and the prompt keeps its end.

        Raises:
            DataError: the template refuses the prompt, or changes it when the answer comes.
        """
        return self.encoded(self.comparison(row, answered=False), tokenizer, max_length, (row.file, row.line))

    def encoded(self, found: Comparison, tokenizer: Any, max_length: int, place: tuple[str, int] = ("", 0)) -> Example:
        """As :meth:`encode`, of a comparison that comes from nowhere, or from a file and a line."""
        prompt, answers = self._apart(found, tokenizer, place)
        room = max(max_length - len(prompt), max_length // 2)
        kept = [answer[:room] for answer in answers]
        start = prompt[-(max_length - max(map(len, kept))) :]
        cut = len(prompt) - len(start) + sum(map(len, answers)) - sum(map(len, kept))
        types = [kind for part in (start, *kept) for _, kind in part]
        weight_T = np.concatenate([np.zeros(len(start), np.float32), np.ones(sum(map(len, kept)), np.float32)])
        return Example(
            np.asarray([token for part in (start, *kept) for token, _ in part], np.int32),
            None if self.by == "score" else weight_T,
            np.asarray(found.ranks, np.float32),
            cut=cut,
            type_T=np.asarray(types, np.int32) if any(types) else None,
            part_P=(len(start), *map(len, kept)),
        )

    def prompt_messages(self, row: Row) -> list[dict[str, Any]]:
        return self.comparison(row, answered=False).prompt

    def prompt(self, row: Row, tokenizer: Any) -> list[int]:
        found = self.comparison(row, answered=False)
        if not tokenizer.chat_template:
            return list(tokenizer(_text(found.prompt))["input_ids"])
        text = render(tokenizer, found.prompt, found.tools, (row.file, row.line), add_generation_prompt=True)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    def stop_ids(self, tokenizer: Any) -> frozenset[int]:
        return super().stop_ids(tokenizer) | (turn_end(tokenizer) if tokenizer.chat_template else frozenset())

    def described(self, logit_RC: Tensor, examples: Sequence[Example]) -> list[dict[str, Any]]:
        """The ``score`` of a single answer; of several all ``scores``, and which one is the ``better``, from 0."""
        counts = [len(example.part_P or (0, 0)) - 1 for example in examples]
        scored = [score_A.tolist() for score_A in torch.split(logit_RC[:, 0], counts)]
        return [
            {"score": found[0]}
            if len(found) == 1
            else {"scores": found, "better": max(range(len(found)), key=found.__getitem__)}
            for found in scored
        ]

    def outcome(self, policy: Policy, batch: Batch) -> Outcome:
        assert batch.answers is not None, "rows of this task hold answers"
        if self.by == "score":
            return self.valued(batch, policy.classes(batch)[:, 0])
        return self.valued(batch, batch.answers.summed(policy.logprobs(batch)))

    def valued(self, batch: Batch, value_A: Tensor) -> Outcome:
        """What values of answers, scores or log-likelihoods, say of each row.

        That is its mean over pairs: is the better answer ahead, by how much, and how surely. A preference has the
        probability ``σ(difference)``.
        """
        answers, value_A = batch.answers, value_A.double().cpu()
        assert answers is not None, "rows of this task hold answers"
        if self.single:
            return _judged(batch, answers, value_A)
        pairs = answers.pairs()
        margin_P = value_A[pairs.first_P] - value_A[pairs.second_P]
        right_P = in_order(pairs.win_P, margin_P).double()
        loss_P = -pairs.win_P * functional.logsigmoid(margin_P) - (1 - pairs.win_P) * functional.logsigmoid(-margin_P)
        columns = torch.stack([loss_P, right_P, margin_P, (margin_P.sigmoid() - pairs.win_P).square()], 1)
        found = torch.zeros(len(batch.row_R), len(columns[0]), dtype=torch.float64)
        found.index_add_(0, pairs.row_P, pairs.weight_P.double()[:, None] * columns)
        told_RC = found.numpy()
        return Outcome(np.asarray(batch.row_R), told_RC[:, 0].copy(), np.ones(len(told_RC)), told_RC)

    def metrics(self, outcome: Outcome) -> dict[str, float]:
        assert outcome.output_RC is not None
        if self.single:
            good_R, mean_R = outcome.output_RC.T
            loss = float(outcome.loss_R.sum() / max(outcome.weight_R.sum(), 1))
            return {"loss": loss, "auc": _area(good_R > 0, mean_R)}
        means: Floats = outcome.output_RC.mean(0)
        return dict(zip(self.measures, map(float, means), strict=True))

    def _apart(
        self, found: Comparison, tokenizer: Any, place: tuple[str, int]
    ) -> tuple[list[tuple[int, int]], list[list[tuple[int, int]]]]:
        """Tokens, each with its type, of the prompt and of each answer."""
        if not tokenizer.chat_template:
            return _beside(found, tokenizer)
        before = render(tokenizer, found.prompt, found.tools, place, add_generation_prompt=True)

        def encoded(text: str) -> list[tuple[int, int]]:
            return [(token, 0) for token in tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]]

        answers = []
        for answer in found.answers:
            through = render(tokenizer, [*found.prompt, *answer], found.tools, place)
            if not through.startswith(before):
                raise DataError.of("template-rewrites", file=place[0], line=place[1], turn=len(found.prompt) + 1)
            answers.append(encoded(through[len(before) :].rstrip()))  # the last newline is the template's
        return encoded(before), answers


def _judged(batch: Batch, answers: Answers, logprob_A: Tensor) -> Outcome:
    """Of rows with one answer each: is it good, and the mean log-probability of its tokens; the loss is good ones'."""
    length_A = np.asarray(answers.length_A, np.float64)
    good_A, logprob = (answers.rank_A == 0).double().numpy(), logprob_A.numpy()
    told_RC = np.stack([good_A, logprob / length_A], 1)
    return Outcome(np.asarray(batch.row_R), -good_A * logprob, good_A * length_A, told_RC)


def _area(good_R: npt.NDArray[np.bool_], value_R: Floats) -> float:
    """How likely a good answer has a higher value than a bad one: the area under the ROC curve; 1/2 if one is alone."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(good_R, value_R)) if 0 < good_R.sum() < len(good_R) else 0.5


def _beside(found: Comparison, tokenizer: Any) -> tuple[list[tuple[int, int]], list[list[tuple[int, int]]]]:
    """As pairs of texts, in the form that the tokenizer has for those, of a base that knows no conversations."""
    prompts, answers = [], []
    for answer in found.answers:
        encoded = tokenizer(_text(found.prompt), _text(answer), verbose=False)
        types = encoded.get("token_type_ids") or [0] * len(encoded["input_ids"])
        tokens = list(zip(encoded["input_ids"], types, strict=True))
        begins = encoded.sequence_ids(0).index(1)
        end = tokenizer.eos_token_id
        closed = tokenizer.sep_token_id is not None or end is None or tokens[-1][0] == end
        prompts.append(tokens[:begins])
        answers.append(tokens[begins:] if closed else [*tokens[begins:], (end, 0)])
    return prompts[0], answers


def _text(messages: Messages) -> str:
    """What is said; with more than one message, who says it as well."""
    if len(messages) == 1:
        return str(messages[0].get("content") or "")
    return transcript(messages)
