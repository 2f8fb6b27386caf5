"""The model card: a README.md that the Hugging Face hub reads, with the evaluation and its intervals."""

from __future__ import annotations

import json
from typing import Any

import yaml

from onsa.evaluate.document import Compared, Document, Range, baseline_name, headline, verdict
from onsa.evaluate.wording import count, decimals, duration, fixed, metric_name, reasons, share, signed
from onsa.spec.messages import language, say

CLASSES, CAUSAL = "AutoModelForSequenceClassification", "AutoModelForCausalLM"
# The hub's pipeline tag, and the class of transformers that loads such a model.
PIPELINES = {
    "text-classification": ("text-classification", CLASSES),
    "multi-label-classification": ("text-classification", CLASSES),
    "text-regression": ("text-classification", CLASSES),
    "chat": ("text-generation", CAUSAL),
    "text-generation": ("text-generation", CAUSAL),
    "preference": ("text-generation", CAUSAL),
    "token-classification": ("token-classification", "AutoModelForTokenClassification"),
    "question-answering": ("question-answering", "AutoModelForQuestionAnswering"),
    "summarization": ("summarization", "AutoModelForSeq2SeqLM"),
    "translation": ("translation", "AutoModelForSeq2SeqLM"),
}
LICENCES = frozenset(
    {"apache-2.0", "mit", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "gpl-3.0"}
    | {"openrail", "gemma", "llama3", "llama3.1", "llama3.2", "unknown"}
)  # identifiers the hub knows; any other is `other` with a name
MOST_LABELS = 30


def model_card(document: Document, lang: str | None = None) -> str:
    """A run's model card as README.md text: YAML front matter, then sections in the interface's language."""
    lang = lang or language()
    front = yaml.safe_dump(_front(document), sort_keys=False, allow_unicode=True, width=100)
    parts = [
        f"---\n{front}---",
        f"# {say('report.title', lang, model=document['asked']['model'], task=document['asked']['task'])}",
        _what(document, lang),
        _use(document, lang),
        _data(document, lang),
        _evaluation(document, lang),
        _limits(document, lang),
        _how(document, lang),
        _training(document, lang),
    ]
    return "\n\n".join(parts) + "\n"


def _front(document: Document) -> dict[str, Any]:
    """What the hub indexes."""
    asked, model = document["asked"], document["model"]
    licence = (model["licence"] or "unknown").lower()
    front: dict[str, Any] = {
        "base_model": model["base"],
        "base_model_relation": "finetune" if model["saved_as"] == "transformers" else "adapter",
        "library_name": model["saved_as"],
        "pipeline_tag": _pipeline(document)[0],
        "license": licence if licence in LICENCES else "other",
    }
    if front["license"] == "other":
        front["license_name"] = model["licence"]
    if asked["language"]:
        front["language"] = [asked["language"]]
    front["tags"] = list(dict.fromkeys(["onsa", asked["task"], asked["adaptation"].split()[0]]))
    results = [
        {
            "type": entry["metric"],
            "name": metric_name(entry["metric"], "en"),
            "value": round(entry["tuned"]["value"], 6),
        }
        for entry in document["comparisons"]
        if entry["tuned"]["value"] is not None
    ]
    if results:
        pipeline = {"type": front["pipeline_tag"], "name": asked["task"]}
        dataset = {"name": asked["data"], "type": asked["data"], "split": "test"}
        result = {"task": pipeline, "dataset": dataset, "metrics": results}
        front["model-index"] = [{"name": f"{asked['model']}-{asked['task']}", "results": [result]}]
    return front


def _pipeline(document: Document) -> tuple[str, str]:
    task = document["asked"]["task"]
    if _scores(document):
        return "text-classification", CLASSES
    return PIPELINES.get(task, (task, "AutoModel"))


def _scores(document: Document) -> bool:
    """Whether the model gives scores to answers."""
    return document["asked"]["objective"] == "reward"


def _what(document: Document, lang: str) -> str:
    asked = document["asked"]
    base, adaptation = document["model"]["base"], asked["adaptation"]
    said = say("card.tuned-from", lang, base=base, task=asked["task"], adaptation=adaptation)
    return f"{said}\n\n**{verdict(document, lang)}**"


def _use(document: Document, lang: str) -> str:
    asked, figures = document["asked"], document.get("classification") or document.get("multilabel")
    if figures:
        shown = [_quoted(label) for label in figures["labels"][:MOST_LABELS]]
        names = ", ".join(shown) + (", …" if len(figures["labels"]) > MOST_LABELS else "")
        code = "use-classification" if "classification" in document else "use-multilabel"
        text = say(f"card.{code}", lang, labels=names)
    elif "regression" in document:
        text = say("card.use-regression", lang)
    elif _scores(document):
        text = say("card.use-reward", lang)
    elif asked["task"] in ("chat", "preference"):
        text = say("card.use-chat", lang)
    else:
        text = say("card.use-other", lang, task=asked["task"])
    if asked["language"]:
        text += "\n\n" + say("card.use-language", lang, language=asked["language"])
    return f"## {say('card.use', lang)}\n\n{text}"


def _quoted(label: str) -> str:
    """A label as Markdown code; a backtick would end it early."""
    return f"`{label.replace('`', 'ˋ')}`"


def _data(document: Document, lang: str) -> str:
    data = document["data"]
    rows = {side: count(document["figures"]["rows"].get(side, 0)) for side in ("train", "validation", "test")}
    text = say("card.data-line", lang, file=data["file"], sha256=data["sha256"], **rows)
    if gone := reasons(data["removed"], lang):
        text += "\n\n" + say("card.data-removed", lang, removed=gone)
    return f"## {say('card.data', lang)}\n\n{text}"


def _evaluation(document: Document, lang: str) -> str:
    """The table of metrics, each with its interval."""
    if not document["comparisons"]:
        return f"## {say('card.evaluation', lang)}\n\n{verdict(document, lang)}"
    baseline = baseline_name(document, lang) or say("report.none", lang)
    rows = count(document["verdict"]["rows"])
    heads = [say(f"report.{code}", lang) for code in ("compare.metric", "base", "tuned", "compare.difference")]
    table = [f"| {' | '.join(heads)} |", "|---|---|---|---|"]
    table += [f"| {' | '.join(_cells(entry, lang))} |" for entry in document["comparisons"]]
    line = say("card.evaluation-line", lang, rows=rows, baseline=baseline)
    return f"## {say('card.evaluation', lang)}\n\n{line}\n\n" + "\n".join(table)


def _cells(entry: Compared, lang: str) -> list[str]:
    scale = entry["difference"] or entry["tuned"]
    places = decimals(scale["low"], scale["high"])

    def spread(part: Range | None, plus: bool) -> str:
        if part is None:
            return "–"
        write = signed if plus else fixed
        return f"{write(part['value'], places)} ({write(part['low'], places)} – {write(part['high'], places)})"

    name = metric_name(entry["metric"], lang).replace("|", "\\|")
    return [name, spread(entry["base"], False), spread(entry["tuned"], False), spread(entry["difference"], True)]


def _limits(document: Document, lang: str) -> str:
    said = [say("card.limit-sample", lang)]
    entry = headline(document)
    if entry is not None and entry["difference"] is not None and entry["better"] is None:
        said.append(say("card.limit-open", lang))
    figures = document.get("classification") or document.get("multilabel")
    scores = [one for one in figures["per_class"]["tuned"] if one["support"]] if figures else []
    if len(scores) > 1:
        weak = min(scores, key=lambda one: one["f1"])
        values = {"label": _quoted(weak["label"]), "f1": fixed(weak["f1"], 2), "support": count(weak["support"])}
        said.append(say("card.limit-weak", lang, **values))
    if _pipeline(document)[1] == CAUSAL:
        said.append(say("card.limit-answers", lang))
    said.append(say("card.limit-bias", lang))
    return f"## {say('card.limits', lang)}\n\n" + "\n".join(f"- {line}" for line in said)


def _training(document: Document, lang: str) -> str:
    spent, run = document["figures"], document["run"]
    cost = say(
        "card.cost-line",
        lang,
        tokens=count(spent["tokens"]),
        time=duration(spent["seconds"], lang),
        trainable=count(spent["trainable_parameters"]),
        share=share(spent["trainable_parameters"], spent["parameters"]),
    )
    fence = "```" if "```" not in document["recipe"] else "~~~~~~"
    recipe = f"{say('card.recipe-line', lang, id=run['id'])}\n\n{fence}yaml\n{document['recipe'].strip()}\n{fence}"
    versions = ", ".join(f"{name} {value}" for name, value in document["versions"].items())
    return f"## {say('card.training', lang)}\n\n{cost}\n\n{recipe}\n\n{versions}"


def _how(document: Document, lang: str) -> str:
    """Code to use the model, and which base it was tuned from where the hub's may differ."""
    model, parts = document["model"], [f"## {say('card.how', lang)}"]
    if source := model["packaged"]:
        said = say("card.base-packaged", lang, base=model["base"], source=source, sha256=model["sha256"])
        parts.append(f"{said} {say('card.base-quantised', lang)}" if source.endswith(".gguf") else said)
    if model["saved_as"] == "onsa":
        parts.append(say("card.through-onsa", lang, id=document["run"]["id"]))
    return "\n\n".join([*parts, f"```python\n{_code(document)}\n```"])


def _code(document: Document) -> str:
    """Code that loads the model and asks it once: plain peft or transformers from this folder, or Onsa on its run."""
    if document["model"]["saved_as"] == "onsa":
        return f'import onsa\n\nmodel = onsa.load({json.dumps(document["run"]["id"])})\nprint(model.predict(["…"]))'
    base, adapter = document["model"]["base"], document["model"]["saved_as"] == "peft"
    loader = _pipeline(document)[1]
    head = ""
    if loader == CLASSES:
        task = yaml.safe_load(document["recipe"])["task"]  # not the figures, which a run without held-out rows lacks
        head = f", num_labels={len(task.get('labels') or ('score',))}"
    lines = ["import torch", *(["from peft import PeftModel"] if adapter else [])]
    lines += [f"from transformers import {loader}, AutoTokenizer", "", 'folder = "."  # where this card lies']
    lines.append("tokenizer = AutoTokenizer.from_pretrained(folder)")
    if adapter:
        lines.append(f"base = {loader}.from_pretrained({json.dumps(base)}{head})")
        lines.append("model = PeftModel.from_pretrained(base, folder).eval()")
    else:
        lines.append(f"model = {loader}.from_pretrained(folder).eval()")
    return "\n".join([*lines, "", *_asking(document, loader)])


def _asking(document: Document, loader: str) -> list[str]:
    if loader == CAUSAL:
        prompt = ['prompt = tokenizer("…", return_tensors="pt")']
        if document["asked"]["task"] in ("chat", "preference"):
            prompt = [
                'messages = [{"role": "user", "content": "…"}]',
                "prompt = tokenizer.apply_chat_template(",
                '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True',
                ")",
            ]
        return [
            *prompt,
            "with torch.no_grad():",
            "    answer = model.generate(**prompt, max_new_tokens=128, do_sample=False)",
            'print(tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))',
        ]
    if _scores(document):
        return [
            'asked, answer = "…", "…"',
            "if tokenizer.chat_template:",
            '    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]',
            "    text = tokenizer.apply_chat_template(turns, tokenize=False).rstrip()",
            '    inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")',
            "else:",
            '    inputs = tokenizer(asked, answer, return_tensors="pt")',
            "with torch.no_grad():",
            "    print(model(**inputs).logits.item())",
        ]
    ask = ['inputs = tokenizer("…", return_tensors="pt")', "with torch.no_grad():"]
    classes, several = document.get("classification"), document.get("multilabel")
    if classes is not None:
        names = f"labels = {json.dumps(classes['labels'], ensure_ascii=False)}"
        return [names, *ask, "    print(labels[model(**inputs).logits.argmax(-1).item()])"]
    if several is None:
        return [*ask, "    print(model(**inputs))"]
    names = f"labels = {json.dumps(several['labels'], ensure_ascii=False)}"
    chosen = f"[label for label, p in zip(labels, probability, strict=True) if p > {several['threshold']}]"
    return [names, *ask, "    probability = model(**inputs).logits.sigmoid()[0].tolist()", f"print({chosen})"]
