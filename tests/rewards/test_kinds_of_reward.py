"""Rewards: the number that each gives to answers, the templates they fill, and OpenAI's way to write them."""

from __future__ import annotations

from typing import Any, cast

import pytest
from rapidfuzz.distance import Indel

from onsa.rewards.base import Reward, Sample, filled
from onsa.spec import registry
from onsa.spec.errors import RecipeError
from onsa.spec.recipe import parse_recipe

ITEM = {"name": "Ann", "city": "Paris", "answer": "the cat sat on the mat"}
SCHEMA = {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}


def sample(answer: str, place: int = 1, **more: Any) -> Sample:
    fields: dict[str, Any] = {"tokens": len(answer.split()), "ended": True, **more}
    return Sample(({"role": "user", "content": "?"},), "?", ITEM, answer, place=("rows.jsonl", place), **fields)


class Judging:
    """Other models: longer answers are better."""

    def scorer(self, run: str) -> Any:
        return lambda samples: [float(len(one.answer)) for one in samples]

    def speaker(self, ref: str, most: int) -> Any:
        return lambda messages: messages[-1]["content"]

    def judge(self, ref: str, rubric: str | None) -> Any:
        return lambda one, other: (
            0.5 if len(one.answer) == len(other.answer) else float(len(one.answer) > len(other.answer))
        )


def graded(answers: list[str], **settings: Any) -> list[float]:
    kind = settings.pop("kind")
    reward = cast(Reward, registry.load("reward", kind).model_validate(settings))
    return list(reward.open(Judging())([sample(answer) for answer in answers]))


@pytest.mark.parametrize(
    ("settings", "answers", "wanted"),
    [
        ({"kind": "string-check", "reference": "{{ item.name }}"}, ["Ann", "ann", "Ann!"], [1, 0, 0]),
        ({"kind": "string-check", "reference": "Ann", "operation": "ne"}, ["Ann", "Bob"], [0, 1]),
        ({"kind": "string-check", "reference": "Ann", "operation": "like"}, ["I am Ann.", "ann"], [1, 0]),
        ({"kind": "string-check", "reference": "ANN", "operation": "ilike"}, ["I am Ann.", "Bob"], [1, 0]),
        (
            {"kind": "string-check", "input": "{{ sample.output_json.city }}", "reference": "{{ item.city }}"},
            ['{"city": "Paris"}', '{"city": "Rome"}', "Paris"],
            [1, 0, 0],
        ),
        ({"kind": "regex", "pattern": r"^\d+$"}, ["12", "12 apples", ""], [1, 0, 0]),
        ({"kind": "json-schema", "shape": SCHEMA}, ['{"name": "Bob"}', '{"name": 3}', "Bob"], [1, 0.2, 0]),
        (
            {"kind": "json-schema", "shape": SCHEMA, "values": {"name": "{{ item.name }}", "city": "{{ item.city }}"}},
            ['{"name": "Ann", "city": "Paris"}', '{"name": "Ann", "city": "Rome"}', '{"name": "Bob"}', "[1]"],
            [1, 0.75, 0.5, 0.2],
        ),
        (
            {"kind": "length", "least": 2, "most": 4, "unit": "words"},
            ["a", "a b", "a b c d e f", "a " * 20],
            [-0.5, 0, -0.5, -1],
        ),
        ({"kind": "length", "most": 2, "unit": "characters"}, ["ab", "abc"], [0, -0.5]),
        ({"kind": "model", "run": "x"}, ["abc", ""], [3, 0]),
        ({"kind": "judge", "run": "x"}, ["abc", "a"], [1, 0]),
        ({"kind": "judge", "run": "x"}, ["abc", "ab", "a"], [1, 0.5, 0]),
        ({"kind": "judge", "run": "x"}, ["abc"], [0.5]),
        (
            {"kind": "score-model", "model": "x", "input": [{"content": "{{ sample.output_text }}"}], "range": [0, 5]},
            ["I say 3.5 of 5", "-2", "9", "none"],
            [3.5, 0, 5, 0],
        ),
        (
            {
                "kind": "multi",
                "graders": {"a": {"type": "string_check", "reference": "x"}, "b": {"kind": "length", "least": 2}},
                "calculate_output": "max(a, 0.5) - 2 * abs(b)",
            },
            ["x", "y z"],
            [0.0, 0.5],
        ),
    ],
)
def test_the_number_of_an_answer(settings: dict[str, Any], answers: list[str], wanted: list[float]) -> None:
    assert graded(answers, **settings) == pytest.approx(wanted)


def test_likeness_is_that_of_the_libraries() -> None:
    answers = ["the cat sat on the mat", "the cat sat", "no such thing at all"]
    for metric in ("fuzzy_match", "bleu", "gleu", *(f"rouge_{n}" for n in "12345l")):
        found = graded(answers, kind="text-similarity", reference="{{ item.answer }}", evaluation_metric=metric)
        assert found[0] == pytest.approx(1.0) and 1 > found[1] >= found[2] >= 0, metric
    (fuzzy,) = graded(["the cat"], kind="text-similarity", reference="{{ item.answer }}")
    assert fuzzy == pytest.approx(Indel.normalized_similarity("the cat", "the cat sat on the mat"))
    (one,) = graded(["the cat"], kind="text-similarity", reference="the cat sat", evaluation_metric="rouge_1")
    assert one == pytest.approx(2 * 1.0 * (2 / 3) / (1 + 2 / 3)), "F1 of precision 1 and recall 2/3"
    (japanese,) = graded(["猫 は 白い"], kind="text-similarity", reference="猫 は 黒い", evaluation_metric="rouge_1")
    assert japanese == pytest.approx(2 / 3)


@pytest.mark.parametrize("template", ["{{ item.name", "{{ item.__class__.__mro__ }}", "{{ item.name.foo.bar }}"])
def test_a_template_that_cannot_be_filled_is_an_error(template: str) -> None:
    with pytest.raises(ValueError, match="item"):
        filled(template, sample("x"))


def test_openais_graders_are_read() -> None:
    graders = [
        {
            "type": "string_check",
            "name": "exact",
            "input": "{{ sample.output_text }}",
            "operation": "eq",
            "reference": "a",
        },
        {"type": "text_similarity", "name": "near", "input": "a", "reference": "b", "evaluation_metric": "fuzzy_match"},
    ]
    recipe = parse_recipe({"model": "m", "data": "d", "source": {"kind": "rollouts", "reward": graders}})
    found = cast(Any, recipe.source).reward
    assert [(one.kind, one.label) for one in found] == [("string-check", "exact"), ("text-similarity", "near")]


@pytest.mark.parametrize(
    "formula", ["a +", "c", "a ** 2", "().__class__", "__import__('os')", "a if a else b", "min(a, key=b)"]
)
def test_a_formula_is_of_names_and_numbers_alone(formula: str) -> None:
    graders = {"a": {"kind": "length"}, "b": {"kind": "length"}}
    reward = {"kind": "multi", "graders": graders, "calculate_output": formula}
    with pytest.raises(RecipeError) as caught:
        parse_recipe({"model": "m", "data": "d", "source": {"kind": "rollouts", "reward": reward}})
    assert caught.value.problems[0].code == "formula-refused"
