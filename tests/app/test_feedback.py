"""``onsa feedback`` as a person uses it: rank, stop and go on; have a judge do the same; learn from what was said."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

import tiny
from app.conftest import Onsa
from onsa.programs.feedback import Agreement, Verdict, agreement, bench, verdicts
from onsa.programs.prepare import prepare
from onsa.programs.train import finish
from onsa.spec.errors import DataError, RecipeError, StoreError
from onsa.spec.recipe import parse_recipe
from onsa.store.run import Run
from several import tuned


@pytest.fixture
def talker(tiny_llama: Path, chat_jsonl: Path) -> Run:
    return tuned(tiny_llama, chat_jsonl, 1)


def typed(keys: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{key}\n" for key in keys)))


def lines(path: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def reward(base: Path, data: Path) -> Run:
    train = {"max_steps": 2, "batch_rows": 8, "precision": "fp32"}
    return finish(parse_recipe({"model": str(base), "data": str(data), "objective": "reward", "train": train}))


def test_ranking_goes_on_where_it_stopped(talker: Run, onsa: Onsa, monkeypatch: pytest.MonkeyPatch) -> None:
    typed("1x2s0q", monkeypatch)
    said = onsa("feedback", "rank", talker.id, "--json")
    assert said.code == 0 and (said.document["ranked"], said.document["total"]) == (3, 3)
    kept = lines(said.document["file"])
    assert [line["tie"] for line in kept] == [False, False, True] and {line["by"] for line in kept} == {"person"}
    assert all(line["chosen"] != line["rejected"] and line["prompt"][-1]["role"] == "user" for line in kept)
    typed("22", monkeypatch)
    said = onsa("feedback", "rank", talker.id, "--rows", "2", "--json")
    assert (said.document["ranked"], said.document["total"]) == (2, 5)
    again = lines(said.document["file"])
    assert again[:3] == kept and len({json.dumps(line["prompt"]) for line in again}) == 5
    typed("", monkeypatch)
    said = onsa("feedback", "rank", talker.id)
    assert said.code == 0 and "0 ranked now, 5 in all" in " ".join(said.out.split())


def test_a_prompt_is_no_markup(talker: Run, onsa: Onsa, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [{"role": "user", "content": "what is [/] and [bold]rain like"}]
    path = tmp_path / "asked.jsonl"
    path.write_text(json.dumps({"messages": asked}) + "\n")
    typed("1", monkeypatch)
    said = onsa("feedback", "rank", talker.id, "--input", path)
    assert said.code == 0 and "what is [/] and [bold]rain like" in said.out


def test_what_people_say_can_be_learnt_from(
    talker: Run, tiny_llama: Path, onsa: Onsa, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed("12" * 6, monkeypatch)
    path = onsa("feedback", "rank", talker.id, "--rows", "12", "--json").document["file"]
    prepared = prepare(parse_recipe({"model": str(tiny_llama), "data": path}))
    assert (prepared.task.kind, prepared.recipe.objective.kind) == ("preference", "dpo")  # type: ignore[union-attr]
    assert sum(len(rows) for rows in prepared.dataset.sides.values()) == 12


def test_answers_are_the_same_for_all_who_rank(talker: Run) -> None:
    first, again = ([*bench(talker).candidates()][:4] for _ in range(2))
    assert [one.answers for one in first] == [one.answers for one in again]
    other = [*bench(talker, seed=8).candidates()][:4]
    assert [one.answers for one in first] != [one.answers for one in other]
    assert not set(_held_out(talker)) & {one.text for one in bench(talker).candidates()}


def _held_out(run: Run) -> list[str]:
    prepared = prepare(parse_recipe(run.recipe))
    return [prepared.task.inputs(row) for row in prepared.dataset.test]


@pytest.mark.parametrize("kind", ["reward", "chat"])
def test_a_judge_says_the_same_in_both_orders_and_is_held_against_people(
    kind: str, talker: Run, tiny_llama: Path, tmp_path: Path, onsa: Onsa, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed("1212", monkeypatch)
    people = onsa("feedback", "rank", talker.id, "--rows", "4", "--json").document["file"]
    judge = reward(tiny_llama, tiny.write_pairs(tmp_path / "pairs.jsonl")) if kind == "reward" else talker
    said = onsa("feedback", "judge", talker.id, "--judge", judge.id, "--rows", "6", "--json").document
    assert said["verdicts"] == 6 and said["people"]["count"] == 4 and 0 <= said["people"]["agree"] <= 1
    assert (said["bias"] is None) == (kind == "reward")
    kept = lines(said["file"])
    ranked = {json.dumps(line["prompt"]) for line in lines(people)}
    assert {json.dumps(line["prompt"]) for line in kept[:4]} == ranked, "what people have ranked comes first"
    for line in kept:
        notes = line["notes"]
        if kind == "reward":
            better, worse = sorted(notes["scores"], reverse=True)
            assert better >= worse and 0 <= notes["first"] <= 1
        else:
            there, back = notes["a_in_both_orders"]
            assert notes["first"] == pytest.approx((there + 1 - back) / 2)
    again = onsa("feedback", "judge", talker.id, "--judge", judge.id, "--rows", "3", "--json").document
    assert again["verdicts"] == 9 and lines(again["file"])[:6] == kept, "it goes on with other prompts"


def test_a_constitution_is_what_a_judge_reads(talker: Run, tmp_path: Path, onsa: Onsa) -> None:
    found = []
    for text in ("prefer rain", "prefer bread and soup and nothing else"):
        (tmp_path / "rules.txt").write_text(text)
        (talker.folder / "feedback" / f"judge-{talker.id}.jsonl").unlink(missing_ok=True)
        order = ("--judge", talker.id, "--constitution", str(tmp_path / "rules.txt"), "--rows", "2", "--json")
        found.append(
            [line["notes"]["first"] for line in lines(onsa("feedback", "judge", talker.id, *order).document["file"])]
        )
    assert found[0] != found[1]


def test_agreement_is_share_and_kappa() -> None:
    def said(chosen: str, rejected: str, prompt: str = "a", tie: bool = False) -> Verdict:
        return Verdict([{"role": "user", "content": prompt}], chosen, rejected, tie, "x")

    mine = [said("1", "2", "p"), said("1", "2", "q"), said("2", "1", "r"), said("2", "1", "s"), said("1", "2", "t")]
    theirs = [
        said("1", "2", "p"),
        said("2", "1", "q"),
        said("2", "1", "r"),
        said("2", "1", "s"),
        said("1", "2", "t", True),
    ]
    found = agreement(mine, theirs)
    assert (found.count, found.share) == (4, 0.75) and found.kappa == pytest.approx(0.5)
    assert agreement(mine, [said("1", "3", "p")]) == Agreement(0, None, None)


def test_mistakes_are_told(
    talker: Run, tiny_bert: Path, tiny_llama: Path, topics_csv: Path, chat_jsonl: Path, tmp_path: Path
) -> None:
    classifier = finish(
        parse_recipe({"model": str(tiny_bert), "data": str(topics_csv), "train": {"max_steps": 1, "batch_rows": 8}})
    )
    with pytest.raises(StoreError, match="chat"):
        bench(classifier)
    with pytest.raises(RecipeError, match="prompt"):
        bench(tuned(tiny_llama, chat_jsonl, 1, adaptation="prompt"))
    path = tmp_path / "people.jsonl"
    path.write_text('{"prompt": []}\n')
    with pytest.raises(DataError, match=r"people.jsonl"):
        verdicts(path)
    from onsa.programs.judge import open_judge, read_constitution

    with pytest.raises(StoreError, match=classifier.id):
        open_judge(classifier.id)
    with pytest.raises(RecipeError, match="constitution"):
        read_constitution(tmp_path / "none.txt")
    scorer = reward(tiny_llama, tiny.write_pairs(tmp_path / "pairs.jsonl"))
    with pytest.raises(RecipeError, match="constitution"):
        open_judge(scorer.id, "be brief")
