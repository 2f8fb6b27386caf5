"""Hub data sets, without a hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from onsa.data import hub
from onsa.data.dataset import load_dataset
from onsa.data.read import read
from onsa.spec.errors import DataError
from onsa.spec.sections import Data

DATA = Data(path="owner/name")


class ClassLabel:
    names = ("bad", "good")


class Rows(list[dict[str, Any]]):
    features = {"text": None, "label": ClassLabel()}  # noqa: RUF012
    column_names = ("text", "label")


def rows(*labels: int | None) -> Rows:
    return Rows({"text": f"text {number}", "label": label} for number, label in enumerate(labels))


def serve(monkeypatch: pytest.MonkeyPatch, **splits: Rows) -> None:
    monkeypatch.setattr(hub, "_cached", lambda data: splits)


def code_of(data: Data = DATA) -> str:
    with pytest.raises(DataError) as caught:
        hub.read_hub(data)
    (problem,) = caught.value.problems
    assert problem.what and problem.fix
    return problem.code


def test_class_numbers_become_names(monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, train=rows(0, 1, None), dev=rows(1, -1))
    tables = hub.read_hub(DATA)
    assert [row.values["label"] for row in tables["train"].rows] == ["bad", "good", None]
    assert [row.values["label"] for row in tables["validation"].rows] == ["good", None]
    assert tables["train"].rows[1].file == "owner/name/train" and tables["train"].rows[1].line == 2
    assert tables["train"].format == "hub" and read(DATA).rows == tables["train"].rows


def test_an_only_split_is_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, everything=rows(0))
    assert list(hub.read_hub(DATA)) == ["train"]


def test_the_sides_of_a_hub_data_set_are_kept(monkeypatch: pytest.MonkeyPatch, task: Any) -> None:
    train = Rows({"text": f"a {number}", "label": number % 2} for number in range(40))
    serve(monkeypatch, train=train, validation=rows(0, 1), test=Rows([{"text": " ", "label": -1}]))
    dataset = load_dataset(DATA, task)
    assert len(dataset.validation) == 2 and dataset.validation[0].file == "owner/name/validation"
    assert dataset.test, "a test side without usable rows is dealt from the training rows"
    assert dataset.test[0].file == "owner/name/train"


def test_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, train=Rows())
    assert code_of() == "file-empty"
    serve(monkeypatch, a=rows(0), b=rows(1))
    assert code_of() == "hub-no-train"


def test_faults_of_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    monkeypatch.setattr(hub, "_cached", lambda data: None)
    monkeypatch.setattr(hub, "reachable", lambda: True)
    for error, code in (
        (DatasetNotFoundError("no"), "hub-missing"),
        (ConnectionError("no"), "hub-unreachable"),
        (
            ValueError("Config name is missing.\nPlease pick one among the available configs: ['en', 'ja']"),
            "hub-subset",
        ),
        (RuntimeError("Dataset scripts are no longer supported"), "hub-broken"),
    ):

        def fail(*args: Any, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(datasets, "load_dataset", fail)
        assert code_of() == code
    monkeypatch.setattr(datasets, "load_dataset", lambda *args: {"train": rows(0)})
    assert len(hub.read_hub(DATA)["train"].rows) == 1


def test_no_network_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_cached", lambda data: None)
    monkeypatch.setattr(hub, "reachable", lambda: False)
    assert code_of() == "hub-unreachable"


def test_the_cache_of_datasets_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(datasets.builder.config, "HF_DATASETS_CACHE", tmp_path)
    assert hub._cached(DATA) is None
    folder = tmp_path / "owner___name" / "default" / "0.0.0" / "abc"
    folder.mkdir(parents=True)
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    with datasets.arrow_writer.ArrowWriter(path=str(folder / "name-train.arrow"), features=features) as writer:
        writer.write({"text": "fine", "label": 1})
        writer.finalize()
    info = datasets.DatasetInfo(features=features, config_name="default", dataset_name="name", version="0.0.0")
    info.splits = datasets.SplitDict(dataset_name="name")
    info.splits.add(datasets.SplitInfo("train", num_examples=1, dataset_name="name"))
    info.write_to_directory(str(folder))
    assert json.loads((folder / "dataset_info.json").read_text())["config_name"] == "default"
    assert [row.values for row in read(DATA).rows] == [{"text": "fine", "label": "good"}]


def test_a_subset_is_named_in_the_fault() -> None:
    fault = hub._fault(ValueError("BuilderConfig 'x' not found. Available: ['en', 'ja']"), DATA)
    assert fault.problems[0].values["choices"] == "en, ja"
