"""Text similarity: how near an answer is to a reference text."""

from __future__ import annotations

from typing import ClassVar, Literal

from onsa.rewards.base import ANSWER, Access, Grader, OneByOne, Sample, filled
from onsa.spec.extras import require

Metric = Literal["fuzzy_match", "bleu", "gleu", "rouge_1", "rouge_2", "rouge_3", "rouge_4", "rouge_5", "rouge_l"]


class TextSimilarity(OneByOne):
    """A measure of likeness between 0 and 1.

    input: what is compared, a template over ``sample`` and ``item``.
    reference: what it is compared with, a template as well.
    evaluation_metric: ``fuzzy_match`` (the share of characters that need no edit), ``bleu`` (Papineni et al. 2002),
        ``gleu`` (Wu et al. 2016), or the F1 of a ROUGE (Lin 2004): ``rouge_1`` to ``rouge_5``, ``rouge_l``.
    """

    kind: ClassVar[str] = "text-similarity"
    input: str = ANSWER
    reference: str
    evaluation_metric: Metric = "fuzzy_match"

    def open(self, access: Access) -> Grader:
        require(_library(self.evaluation_metric), "graders", "source.reward")
        return super().open(access)

    def score(self, sample: Sample) -> float:
        given, wanted = filled(self.input, sample), filled(self.reference, sample)
        if self.evaluation_metric == "fuzzy_match":
            from rapidfuzz.fuzz import ratio

            return float(ratio(given, wanted)) / 100
        if self.evaluation_metric in ("bleu", "gleu"):
            return _overlap(self.evaluation_metric, given.split(), wanted.split())
        from rouge_score.rouge_scorer import RougeScorer
        from rouge_score.tokenizers import Tokenizer

        class Words(Tokenizer):  # type: ignore[misc]  # the library's own knows Latin letters only
            def tokenize(self, text: str) -> list[str]:
                return text.lower().split()

        name = self.evaluation_metric.replace("_l", "L").replace("_", "")
        scorer = RougeScorer([name], tokenizer=Words())
        return float(scorer.score(wanted, given)[name].fmeasure)


def _library(metric: str) -> str:
    if metric == "fuzzy_match":
        return "rapidfuzz"
    return "nltk" if metric in ("bleu", "gleu") else "rouge_score"


def _overlap(metric: str, given: list[str], wanted: list[str]) -> float:
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
    from nltk.translate.gleu_score import sentence_gleu

    if not given or not wanted:
        return 0.0
    if metric == "gleu":
        return float(sentence_gleu([wanted], given))
    return float(sentence_bleu([wanted], given, smoothing_function=SmoothingFunction().method1))
