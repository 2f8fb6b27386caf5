"""Graders that come with a job: only what is harmless, and only models that the project may ask."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from onsa.app import trying
from onsa.app.trying import BusyError, Trying
from onsa.programs.grading import ERRORS
from onsa.programs.jobs.graders import Named, reward_of, speakers
from onsa.programs.jobs.recipe import job_recipe
from onsa.spec.errors import DataError, OnsaError, RecipeError
from onsa.store.aliases import Aliases
from onsa.store.database import Database
from onsa.store.job import Order, Status, model_name
from onsa.store.jobs import Jobs
from onsa.store.keys import Keys

CHECK = {
    "type": "string_check",
    "name": "same",
    "operation": "eq",
    "input": "{{ sample.output_text }}",
    "reference": "4",
}
ASKED = {"type": "score_model", "name": "judge", "model": "smollm2-135m", "input": [{"role": "user", "content": "?"}]}


@pytest.fixture
def database() -> Iterator[Database]:
    with Database() as opened:
        yield opened


def finished(database: Database, project: str) -> str:
    """The name of a model that a project has tuned."""
    jobs = Jobs(database)
    job = jobs.create(project, Order("smollm2-135m", "file-x", {"type": "supervised"}, 7))
    lease = jobs.take(job, Status.RUNNING)
    assert lease is not None
    jobs.end(lease, Status.SUCCEEDED, fine_tuned_model=model_name(job), folder=f"runs/{job.id}")
    return model_name(job)


def nobody(name: str) -> str:
    raise AssertionError(name)


@pytest.mark.parametrize("kind", ["function", "judge", "model", "regex", "json_schema", "nonsense"])
@pytest.mark.parametrize("field", ["type", "kind"])
def test_kinds_that_are_not_taken(kind: str, field: str) -> None:
    wrong = {**CHECK, field: kind}
    with pytest.raises(RecipeError, match="is no grader that a job takes"):
        reward_of(wrong, nobody)
    with pytest.raises(RecipeError, match="is no grader that a job takes") as raised:
        reward_of({"type": "multi", "graders": {"inner": wrong}, "calculate_output": "inner"}, nobody)
    assert raised.value.problems[0].key == "grader.graders.inner.type"


def test_models_are_those_of_the_project(database: Database) -> None:
    mine, other = Keys(database).project("mine"), Keys(database).project("other")
    name, foreign = finished(database, mine), finished(database, other)
    Aliases(database).set(mine, "gpt-4o", {name: 1.0})
    named = speakers(database, mine, "key")
    run = reward_of({**ASKED, "model": name}, named)["model"]
    assert run.startswith("ftjob-") and reward_of({**ASKED, "model": "gpt-4o"}, named)["model"] == run
    assert reward_of(ASKED, named)["model"] == "smollm2-135m"
    for strange in (foreign, "latest", run, "x@https://example.com/v1", "/etc/passwd"):
        with pytest.raises(DataError, match="no model"):
            reward_of({**ASKED, "model": strange}, named)


def test_fields_that_change_nothing_are_left_out() -> None:
    parts = [{"type": "input_text", "text": "How good "}, "is it?"]
    given = {
        **ASKED,
        "input": [{"type": "message", "role": "user", "content": parts}],
        "sampling_params": {"temperature": 0.5, "seed": 3, "max_completions_tokens": 9},
    }
    made = reward_of(given, lambda name: name)
    assert made["input"] == [{"role": "user", "content": "How good is it?"}]
    assert made["sampling_params"] == {"max_completions_tokens": 9}
    assert "image_tag" not in reward_of({"type": "python", "source": "x", "image_tag": "1"}, nobody)


@pytest.mark.parametrize(
    "recipe",
    [
        {"evaluate": {"judge": "x@https://example.com"}},
        {"adaptation": {"kind": "peft", "tuner": "vera"}},
        {"adaptation": {"kind": "prefix"}},
        {"data": "/etc/passwd"},
    ],
)
def test_sections_that_a_job_may_not_set(recipe: dict[str, Any], tmp_path: Path) -> None:
    named: Named = nobody
    order = Order("smollm2-135m", "file-x", {"type": "supervised", "supervised": {"recipe": recipe}}, 7)
    with pytest.raises(RecipeError, match="A job cannot"):
        job_recipe(order, "smollm2-135m", tmp_path / "rows.jsonl", None, named)


@pytest.fixture(scope="module")
def tried() -> Iterator[Trying]:
    made = Trying()
    yield made
    made.close()


def asked(grader: dict[str, Any], said: str = "4") -> dict[str, Any]:
    return {"grader": grader, "reward": reward_of(grader, nobody), "item": {}, "model_sample": said}


def test_what_a_grader_gives(tried: Trying) -> None:
    both = {"type": "multi", "name": "both", "graders": {"same": CHECK}, "calculate_output": "2 * same"}
    found = tried.ask(asked(both))
    assert found["reward"] == 2 and found["sub_rewards"] == {"same": 1.0}
    assert set(found["metadata"]["errors"]) == set(ERRORS) and not any(found["metadata"]["errors"].values())
    broken = tried.ask(asked({"type": "python", "name": "p", "source": "def grade(sample, item):\n    return 1 / 0"}))
    assert broken["metadata"]["errors"]["python_grader_runtime_error"] is True
    assert "ZeroDivisionError" in broken["metadata"]["errors"]["python_grader_runtime_error_details"]
    wrong = tried.ask({"reward": {"type": "string_check", "operation": "nonsense"}})
    assert wrong["refused"]["param"].startswith("source.reward")


def test_what_takes_too_long_is_ended(tried: Trying, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tried.ask(asked(CHECK))["reward"] == 1  # it is there
    monkeypatch.setattr(trying, "LONGEST_S", 1.0)
    with pytest.raises(DataError, match="took more than 1 seconds"):
        tried.ask(asked({**CHECK, "reference": "{{ 9999999**9999999 }}"}))
    monkeypatch.undo()
    assert tried.ask(asked(CHECK))["reward"] == 1  # anew


def test_few_may_wait(tried: Trying, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tried, "_waiting", trying.MOST_WAITING)
    with pytest.raises(BusyError):
        tried.ask(asked(CHECK))


def test_problems_are_the_users(database: Database) -> None:
    with pytest.raises(OnsaError):
        reward_of({}, nobody)
