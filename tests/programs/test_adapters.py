"""Merging equals PEFT's own, is measured on each parent's rows, and folding changes nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import tiny
from onsa.adaptations.lora import Lora
from onsa.app.show_adapters import show_fold
from onsa.evaluate.document import read_document
from onsa.models.load import quiet
from onsa.programs.adapters import adapters, families
from onsa.programs.fold import fold
from onsa.programs.merge import METHODS, Way, merge, merged_network, settled
from onsa.programs.predict import predict
from onsa.serve.predictor import load_run
from onsa.spec.errors import Level, MachineError, OnsaError, RecipeError, StoreError
from onsa.spec.recipe import parse_recipe
from onsa.store.atomic import write_text
from onsa.store.run import Run, State
from onsa.store.runs import Store
from several import tuned

WEIGHTS = (0.7, 0.4)
SEED = 5  # of what DARE drops


def weights_of(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.folder / "model" / "adapter_model.safetensors")


def plainly_merged(base: Path, runs: list[Run], method: str, **more: Any) -> dict[str, torch.Tensor]:
    """The weights of PEFT's own merge of the same folders, by their names in a file."""
    network = AutoModelForCausalLM.from_pretrained(base)
    with quiet():
        model: Any = PeftModel.from_pretrained(network, runs[0].folder / "model", adapter_name="a")
        model.load_adapter(runs[1].folder / "model", adapter_name="b")
        torch.manual_seed(SEED)
        model.add_weighted_adapter(["a", "b"], list(WEIGHTS), "m", combination_type=method, **more)
    return {name.replace(".m.", "."): value for name, value in model.state_dict().items() if ".m." in name}


@pytest.fixture(scope="module")
def home_of_pair(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """A home with two runs."""
    folder = tmp_path_factory.mktemp("pair")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONSA_HOME", str(folder / "home"))
        for seed in (1, 2):
            tuned(tiny_llama, tiny.write_chat(folder / "chat.jsonl"), seed)
    return folder / "home"


@pytest.fixture
def pair(home_of_pair: Path, monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """Two runs that no test changes; merges of them stay."""
    monkeypatch.setenv("ONSA_HOME", str(home_of_pair))
    with Store() as store:
        return [run for run in reversed(store.list()) if "merge" not in run.summary]


@pytest.mark.parametrize(
    ("method", "density"),
    [
        ("linear", None),
        ("svd", None),
        ("ties", 0.4),
        ("magnitude-prune", 0.5),
        ("dare-linear", 0.6),
        ("dare-ties-svd", 0.6),
    ],
)
def test_a_merge_is_pefts_own(method: str, density: float | None, tiny_llama: Path, pair: list[Run]) -> None:
    made = merge([run.id for run in pair], Way(method, WEIGHTS, density, seed=SEED)).run
    more = {"svd_full_matrices": False} if method.endswith("svd") else {}
    expected = plainly_merged(tiny_llama, pair, method.replace("-", "_"), density=density, **more)
    found = weights_of(made)
    assert found.keys() == expected.keys() and len(found) == 28
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert not torch.equal(next(iter(found.values())), next(iter(weights_of(pair[0]).values())))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_its_seed_and_its_result(method: str, pair: list[Run]) -> None:
    run, other = pair
    recipe = parse_recipe(run.recipe)
    way = settled(Way(method), [run, other])

    def factors(way: Way) -> torch.Tensor:
        network = merged_network([run.folder, other.folder], way, recipe)
        found = [p.detach().flatten() for name, p in network.named_parameters() if ".default." in name]
        return torch.cat(found)

    same = torch.equal(factors(way), factors(way))
    assert same and way.weights == ((1.0, 1.0) if "ties" in method else (0.5, 0.5))
    assert (way.seed is not None) == method.startswith("dare")
    assert (way.density is None) == (method in ("linear", "svd", "cat"))
    if way.seed is not None:
        assert not torch.equal(factors(way), factors(replace(way, seed=way.seed + 1)))


def test_a_sum_of_scaled_updates_is_exact(tiny_llama: Path, chat_jsonl: Path) -> None:
    """Of unlike ranks, and where a scale is divided by the root of the rank."""
    runs = [tuned(tiny_llama, chat_jsonl, 1), tuned(tiny_llama, chat_jsonl, 2, adaptation={"kind": "lora", "rank": 2})]
    config = runs[0].folder / "model" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "use_rslora": True}))
    made = merge([run.id for run in runs], Way("cat", WEIGHTS)).run
    assert made.recipe["adaptation"]["rank"] == made.recipe["adaptation"]["alpha"] == 6
    place = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    update = [weights_of(run)[place.format("B")] @ weights_of(run)[place.format("A")] for run in (*runs, made)]
    expected = WEIGHTS[0] * (8 / 4**0.5) * update[0] + WEIGHTS[1] * (4 / 2) * update[1]
    torch.testing.assert_close(update[2], expected, rtol=0, atol=1e-6)
    kept = json.loads((made.folder / "model" / "adapter_config.json").read_text())
    assert kept["r"] == kept["lora_alpha"] == 6 and not kept["use_rslora"]


def test_each_matrix_that_any_adapter_has_is_merged(tiny_llama: Path, chat_jsonl: Path) -> None:
    kinds: list[dict[str, Any]] = [
        {"targets": "all-linear", "exclude": ["q_proj"]},
        {"targets": r".*layers\.1\..*(q_proj|k_proj)"},
    ]
    runs = [tuned(tiny_llama, chat_jsonl, 1, adaptation={"kind": "lora", "rank": 4, **kind}) for kind in kinds]
    for method in ("linear", "cat"):
        made = weights_of(merge([run.id for run in runs], Way(method, WEIGHTS)).run)
        assert made.keys() == weights_of(runs[0]).keys() | weights_of(runs[1]).keys()
        place = "base_model.model.model.layers.1.self_attn.{}_proj.lora_{}.weight"
        only, both = (made[place.format(name, "B")] @ made[place.format(name, "A")] for name in "qk")
        first, second = ([w[place.format(n, "B")] @ w[place.format(n, "A")] for n in "qk"] for w in _padded(runs))
        torch.testing.assert_close(only, WEIGHTS[1] * 2 * second[0], rtol=0, atol=1e-6)
        if method == "cat":
            expected = WEIGHTS[0] * 2 * first[1] + WEIGHTS[1] * 2 * second[1]
            torch.testing.assert_close(both, expected, rtol=0, atol=1e-6)


def _padded(runs: list[Run]) -> list[dict[str, torch.Tensor]]:
    """Weights by name, those of the second run also where the first has none."""
    second = weights_of(runs[1])
    return [{**second, **weights_of(runs[0])}, second]


def test_adapters_that_train_other_modules_as_a_whole_are_refused(tiny_llama: Path, chat_jsonl: Path) -> None:
    one = tuned(tiny_llama, chat_jsonl, 1)
    other = tuned(tiny_llama, chat_jsonl, 2, adaptation={"kind": "lora", "rank": 4, "unfreeze": ["*.norm.weight"]})
    with pytest.raises(StoreError, match=r"norm\."):
        merge([one.id, other.id], Way("linear"))
    assert len(list(predict(one.id, ["rain"], None, False, [other.id]))) == 2


def test_heads_are_averaged(tiny_bert: Path, topics_csv: Path) -> None:
    runs = [tuned(tiny_bert, topics_csv, seed) for seed in (1, 2)]
    made = merge([run.id for run in runs], Way("linear", WEIGHTS)).run
    name = "base_model.model.classifier.weight"
    expected = sum(weights_of(run)[name] * (weight / sum(WEIGHTS)) for run, weight in zip(runs, WEIGHTS, strict=True))
    assert isinstance(expected, torch.Tensor)
    torch.testing.assert_close(weights_of(made)[name], expected, rtol=0, atol=1e-7)
    with pytest.raises(RecipeError, match="do not fit 2 adapters"):
        settled(Way("linear", (1.0, -1.0)), runs)


def test_a_merge_is_a_run_with_its_proof(
    tiny_llama: Path, chat_jsonl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = tmp_path / "more.jsonl"
    prompts.write_text("".join(json.dumps({"text": f"{text} {topic}"}) + "\n" for text, topic in tiny.questions()))
    measured: dict[str, Any] = {"evaluate": {"baseline": True}}
    one = tuned(tiny_llama, chat_jsonl, 1, **measured)
    other = tuned(tiny_llama, prompts, 2, task="text-generation", **measured)
    written: list[Path] = []

    def counted(path: Path, text: str) -> None:
        written.append(path)
        write_text(path, text)

    monkeypatch.setattr("onsa.evaluate.document.write_text", counted)
    made = merge([one.id, other.id], Way("linear"), "both")
    assert [path.name for path in written] == ["metrics.json"], "once"
    run, proof = made.run, made.proof
    assert run.id == "both" and run.state is State.FINISHED and run.adaptation == "lora"
    assert proof == json.loads((run.folder / "merge.json").read_text())
    document = read_document(run.folder / "metrics.json")
    for parent, side in zip((one, other), proof["parents"], strict=True):
        before = read_document(parent.folder / "metrics.json")
        assert side["task"] == parent.task
        assert (side["run"], side["weight"], side["metric"]) == (parent.id, 0.5, "loss") and side["rows"] > 0
        for entry, told in zip(side["comparisons"], before["comparisons"], strict=True):
            assert entry["base"]["value"] == pytest.approx(told["tuned"]["value"], abs=1e-6)
            assert side["base"][entry["metric"]]["value"] == pytest.approx(told["base"]["value"], abs=1e-6)
            gain = entry["tuned"]["value"] - entry["base"]["value"]
            assert entry["difference"]["value"] == pytest.approx(gain) and gain != 0
    first = proof["parents"][0]["comparisons"][0]
    assert document["comparisons"][0]["tuned"] == first["tuned"]
    assert (run.folder / "report.html").stat().st_size > 1000
    with Store() as store:
        assert {(link.child, link.parent, link.relation) for link in store.lineage(run)} == {
            ("both", one.id, "merged"),
            ("both", other.id, "merged"),
        }
        assert store.find("latest").id == "both"
    told: list[str] = []
    again = merge([one.id, other.id], Way("linear"), "other", told.append)
    assert again.run.id == "both" and again.proof == proof and "under the name both" in told[-1]
    assert list(predict("both", ["rain"], None, False))
    (family,) = families()
    assert [run.id for run in family.runs] == ["both", other.id, one.id]
    deeper = merge(["both", one.id], Way("cat")).run
    with Store() as store:
        assert len(store.lineage(deeper)) == 4


def interrupted(*given: object) -> None:
    raise KeyboardInterrupt


def test_an_interrupted_merge_goes_on_under_its_name(
    tiny_llama: Path, chat_jsonl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [tuned(tiny_llama, chat_jsonl, seed).id for seed in (1, 2)]
    with monkeypatch.context() as patch:
        patch.setattr("onsa.programs.merge.measure", interrupted)
        with pytest.raises(KeyboardInterrupt):
            merge(runs, Way("linear"), "both")
    made = merge(runs, Way("linear"), "both").run
    assert (made.id, made.state) == ("both", State.FINISHED)
    with pytest.raises(StoreError, match="a run 'both' already"):
        merge(runs, Way("svd"), "both")


def test_a_base_or_data_that_have_changed_are_refused(tiny_llama: Path, chat_jsonl: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_llama, tmp_path / "base"))
    one, other = (tuned(base, chat_jsonl, seed).id for seed in (1, 2))
    kept = (base / "model.safetensors").read_bytes()
    weights = load_file(base / "model.safetensors")
    save_file({name: weight + 0.01 for name, weight in weights.items()}, base / "model.safetensors", {"format": "pt"})
    asks: list[Callable[[], object]] = [
        lambda: merge([one, other], Way("linear")),
        lambda: fold(one, tmp_path / "whole"),
        lambda: adapters([f"{one}+{other}"]),
        lambda: list(predict(one, ["rain"], None, False, [other])),
    ]
    for ask in asks:
        with pytest.raises(StoreError) as caught:
            ask()
        assert caught.value.problems[0].code == "run-base-changed"
    (base / "model.safetensors").write_bytes(kept)
    chat_jsonl.write_text("".join(chat_jsonl.read_text().splitlines(keepends=True)[:-3]))
    with pytest.raises(StoreError) as caught:
        merge([one, other], Way("linear"))
    assert caught.value.problems[0].code == "run-data-changed"
    with Store() as store:
        assert len(store.list()) == 2
    assert not (tmp_path / "whole").exists()


@pytest.fixture
def refused(tiny_llama: Path, tiny_bert: Path, chat_jsonl: Path, topics_csv: Path, tmp_path: Path) -> dict[str, str]:
    """Runs that do not fit each other, by what they are."""
    fewer = tmp_path / "fewer.csv"
    lines = topics_csv.read_text().splitlines()
    fewer.write_text("\n".join(line for line in lines if not line.endswith("music")) + "\n")
    wide = {"adaptation": {"kind": "lora", "rank": 8}}
    return {
        "chat": tuned(tiny_llama, chat_jsonl, 1).id,
        "chat2": tuned(tiny_llama, chat_jsonl, 2).id,
        "wide": tuned(tiny_llama, chat_jsonl, 3, **wide).id,
        "whole": tuned(tiny_llama, chat_jsonl, 4, adaptation="full").id,
        "topics": tuned(tiny_bert, topics_csv, 1).id,
        "fewer": tuned(tiny_bert, fewer, 2).id,
    }


def test_what_does_not_fit_is_refused(refused: dict[str, str]) -> None:
    pair = ["chat", "chat2"]
    cases: list[tuple[list[str], Way, str | None, str]] = [
        (["chat"], Way("linear"), None, "merge-of-one"),
        (["chat", "chat"], Way("linear"), None, "merge-of-one"),
        (pair, Way("tie"), None, "merge-method-unknown"),
        (pair, Way("linear", (1.0,)), None, "merge-weights"),
        (pair, Way("linear", (1.0, 0.0)), None, "merge-weights"),
        (pair, Way("linear", (1.0, float("nan"))), None, "merge-weights"),
        (pair, Way("linear", density=0.5), None, "merge-density"),
        (pair, Way("ties", density=1.5), None, "merge-density"),
        *((pair, Way("linear"), name, "run-name-unusable") for name in ("Not a name", "latest", "-both", "")),
        (pair, Way("linear"), refused["chat"], "run-name-taken"),
        (["chat", "wide"], Way("linear"), None, "merge-ranks-differ"),
        (["chat", "whole"], Way("linear"), None, "run-not-adapter"),
        (["chat", "topics"], Way("linear"), None, "adapters-bases-differ"),
        (["topics", "fewer"], Way("linear"), None, "adapters-heads-differ"),
    ]
    with Store() as store:
        before = len(store.list())
    for names, way, name, code in cases:
        with pytest.raises(OnsaError) as caught:
            merge([refused[one] for one in names], way, name)
        assert [problem.code for problem in caught.value.problems] == [code], code
        assert caught.value.problems[0].what and caught.value.problems[0].fix
    with Store() as store:
        assert len(store.list()) == before, "what is refused leaves nothing behind"
    with pytest.raises(RecipeError, match="ranks 4, 8") as ranks:
        merge([refused["chat"], refused["wide"]], Way("ties"))
    assert "--method ties-svd" in ranks.value.problems[0].fix
    with pytest.raises(StoreError, match="their heads cannot become one"):
        adapters([f"{refused['topics']}+{refused['fewer']}"])


def test_only_plain_lora_is_added_up(refused: dict[str, str]) -> None:
    with Store() as store:
        run = store.get(refused["chat"])
    config = run.folder / "model" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "use_dora": True}))
    with pytest.raises(StoreError, match="use_dora"):
        merge([refused["chat"], refused["chat2"]], Way("linear"))
    with pytest.raises(StoreError, match="use_dora"):
        adapters([f"{refused['chat']}+{refused['chat2']}"])


@pytest.mark.parametrize("head", ["rows", "tokens"])
def test_a_folded_model_opens_plainly_and_says_the_same(
    head: str, tiny_bert: Path, tiny_llama: Path, topics_csv: Path, chat_jsonl: Path, tmp_path: Path
) -> None:
    base, data = (tiny_bert, topics_csv) if head == "rows" else (tiny_llama, chat_jsonl)
    run = tuned(base, data, 1, train={"precision": "bf16"})
    folded = fold(run.id, tmp_path / "deep" / "whole")
    assert 0 <= folded.apart <= 1e-5 and folded.rows > 0 and folded.logits > folded.rows
    assert [entry["difference"]["value"] for entry in folded.comparisons] == pytest.approx(
        [0.0] * len(folded.comparisons), abs=1e-4
    )
    auto = AutoModelForSequenceClassification if head == "rows" else AutoModelForCausalLM
    plain = auto.from_pretrained(folded.folder)
    recipe = parse_recipe(run.recipe)
    train = recipe.train.model_copy(update={"precision": "fp32"})
    apart = load_run(run.folder, recipe.model_copy(update={"train": train})).policy.network
    token_1T = torch.tensor([[2, 5, 9, 14, 3]])
    with torch.inference_mode():
        mine, theirs = plain(input_ids=token_1T).logits, apart(input_ids=token_1T).logits
        bare = load_run(run.folder, recipe, tuned=False).policy.network(input_ids=token_1T).logits
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)
    assert (theirs - bare).abs().max() > 1e-3
    if head == "rows":
        assert tuple(plain.config.id2label.values()) == ("food", "music", "weather")
    with pytest.raises(StoreError, match="something here already"):
        fold(run.id, folded.folder)


def test_what_cannot_be_folded_is_refused(
    tiny_llama: Path, chat_jsonl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tuned(tiny_llama, chat_jsonl, 1, adaptation="full")
    with pytest.raises(StoreError, match="whole already"):
        fold(whole.id, tmp_path / "whole")
    run = tuned(tiny_llama, chat_jsonl, 1)
    monkeypatch.setattr(Lora, "merges", False)
    with pytest.raises(StoreError, match="cannot be folded"):
        fold(run.id, tmp_path / "whole")
    assert not (tmp_path / "whole").exists()


def test_any_new_or_empty_folder_can_be_folded_into(
    pair: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, linked = tmp_path / "here", tmp_path / "linked"
    here.mkdir()
    (tmp_path / "empty").mkdir()
    linked.symlink_to(tmp_path / "empty")
    monkeypatch.chdir(here)
    for place, folder in ((Path(), here), (linked, tmp_path / "empty")):
        folded = fold(pair[0].id, place)
        assert folded.holds and not folded.problems and 0 < folded.limit <= 1e-3
        assert folded.folder == folder.resolve() and AutoModelForCausalLM.from_pretrained(folder) is not None
        assert not any(path.name.startswith(".") for path in folder.iterdir())
    assert Path.cwd() == here.resolve() and linked.is_symlink()
    monkeypatch.setattr("onsa.programs.fold.load_run", lambda *given: pytest.fail("the work has begun"))
    (tmp_path / "file").touch()
    with pytest.raises(MachineError, match="cannot be written"):
        fold(pair[0].id, tmp_path / "file" / "whole")


def test_a_fold_that_fails_leaves_nothing(pair: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr("transformers.PreTrainedTokenizerFast.save_pretrained", interrupted)
    for place in ("empty", "whole"):
        with pytest.raises(KeyboardInterrupt):
            fold(pair[0].id, tmp_path / place)
    assert [path.name for path in tmp_path.iterdir() if "home" not in path.name] == ["empty"]
    assert not list((tmp_path / "empty").iterdir())


@pytest.mark.parametrize("lang", ["en", "ja"])
def test_a_fold_that_does_not_hold_is_told(
    lang: str, pair: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ONSA_LANG", lang)
    merge = Lora.merge

    def wrongly(self: Lora, network: torch.nn.Module) -> torch.nn.Module:
        whole = merge(self, network)
        with torch.no_grad():
            whole.get_parameter("model.layers.0.self_attn.v_proj.weight").mul_(1.5)
        return whole

    monkeypatch.setattr(Lora, "merge", wrongly)
    folded = fold(pair[0].id, tmp_path / "whole")
    assert not folded.holds and folded.document()["holds"] is False
    (problem,) = folded.problems
    assert (problem.code, problem.level) == ("fold-unlike", Level.WARNING)
    show_fold(Console(width=400, markup=False), folded)
    assert problem.what in capsys.readouterr().out
