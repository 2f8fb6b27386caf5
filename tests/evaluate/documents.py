"""Made-up documents that look like those of real runs: one a kind of task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from onsa.evaluate import curves, mistakes
from onsa.evaluate.bootstrap import paired_all
from onsa.evaluate.document import Answer, Document, Verdict, compared
from onsa.tasks.base import Outcome

LABELS = ["card arrival", "refund", "lost card", "exchange rate", "login"]
HOSTILE = "<script>alert('x')</script> & \"quoted\" <b>bold</b>"
FALLING = frozenset({"loss", "perplexity", "brier", "mae", "rmse"})


def document(task: str, outcomes: tuple[Outcome, Outcome], metrics: Callable[[Outcome], dict[str, float]]) -> Document:
    """Everything that does not depend on the task."""
    base, tuned = outcomes
    found = paired_all(metrics, base, tuned, 200, 7, FALLING)
    first = next(iter(found))
    return Document(
        format=1,
        run={"id": "2f9c41d07be3", "created": "2025-11-03T09:12:44+09:00", "seconds": 192.4, "state": "done"},
        asked={
            "task": task,
            "model": "minilm-l6",
            "data": "support.csv",
            "language": "en",
            "adaptation": "lora (rank 8)",
            "objective": "cross-entropy",
            "optimizer": "adamw",
            "schedule": "linear",
            "learning_rate": 5e-4,
            "epochs": 6.0,
            "max_length": 128,
            "precision": "fp32",
            "seed": 7,
        },
        baseline="probe",
        verdict=Verdict(metric=first, better=found[first].better, rows=len(base.row_R)),
        comparisons=[compared(name, one, name in FALLING) for name, one in found.items()],
        history=history(),
        errors=[],
        answers=[],
        figures={
            "rows": {"train": 1200, "validation": 150, "test": len(base.row_R)},
            "tokens": 412_806,
            "parameters": 22_713_221,
            "trainable_parameters": 149_765,
            "seconds": 192.4,
            "tokens_per_s": 2145.6,
            "peak_memory_bytes": 812_345_678,
            "adapter_bytes": 612_345,
        },
        data={"file": "support.csv", "sha256": "9b" * 32, "removed": {"row-empty": 3, "row-duplicate": 12}},
        model={
            "base": "sentence-transformers/all-MiniLM-L6-v2",
            "packaged": None,
            "sha256": "4e" * 32,
            "licence": "Apache-2.0",
            "saved_as": "peft",
        },
        versions={
            "python": "3.11.2",
            "torch": "2.9.0",
            "transformers": "4.57.1",
            "peft": "0.18.0",
            "onsa": "0.1.0",
            "platform": "Linux x86_64",
        },
        recipe="model: {name: minilm-l6}\ndata: {path: support.csv}\n"
        f"task: {{kind: text-classification, labels: [{', '.join(LABELS)}]}}\nseed: 7\n",
        warnings=["Class 'login' has 9 training rows; its scores are uncertain."],
    )


def history(overfits: bool = True) -> Any:
    """A run of 180 steps whose validation loss turns up after step 90."""
    rng = np.random.default_rng(3)
    steps = np.arange(1, 181)
    falling = 1.6 * np.exp(-steps / 35) + 0.05 + rng.normal(0, 0.04, 180) * np.exp(-steps / 120)
    train = [
        {
            "step": int(step),
            "loss": float(max(loss, 0.01)),
            "lr": float(5e-4 * min(step / 18, (181 - step) / 163)),
            "tokens_per_s": float(2100 + rng.normal(0, 60)),
            "grad_norm": float(1.8 * np.exp(-step / 80) + rng.gamma(2, 0.1)),
        }
        for step, loss in zip(steps, falling, strict=True)
    ]
    evaluations = []
    for step in range(15, 181, 15):
        loss = 1.5 * np.exp(-step / 32) + 0.27 + (max(0, step - 90) * 0.0019 if overfits else 0)
        accuracy = 0.92 - 0.5 * np.exp(-step / 25)
        evaluations.append(
            {"step": step, "epoch": step / 30, "metrics": {"loss": float(loss), "accuracy": float(accuracy)}}
        )
    return {"train": train, "evaluations": evaluations, "best_step": 105, "best_metric": "loss"}


def softmax(logit_RC: Any) -> Any:
    power_RC = np.exp(logit_RC - logit_RC.max(1, keepdims=True))
    return power_RC / power_RC.sum(1, keepdims=True)


def class_outcomes(classes: int = 5, rows: int = 150, seed: int = 1) -> tuple[Outcome, Outcome]:
    rng = np.random.default_rng(seed)
    target_R = rng.integers(0, classes, rows)
    noise_RC = rng.normal(0, 1, (rows, classes))
    made = []
    for strength in (2.1, 3.1):
        probability_RC = softmax((noise_RC + strength * np.eye(classes)[target_R]) * 1.6)
        loss_R = -np.log(probability_RC[np.arange(rows), target_R])
        made.append(Outcome(np.arange(rows), loss_R, np.ones(rows), probability_RC, target_R))
    return made[0], made[1]


def class_metrics(outcome: Outcome) -> dict[str, float]:
    assert outcome.output_RC is not None and outcome.target_R is not None
    right_R = outcome.output_RC.argmax(1) == outcome.target_R
    sure_R = outcome.output_RC[np.arange(len(right_R)), outcome.target_R]
    return {
        "accuracy": float(right_R.mean()),
        "f1_macro": float(0.99 * right_R.mean() - 0.01),
        "brier": float(((1 - sure_R) ** 2).mean()),
        "loss": float(outcome.loss_R.sum() / outcome.weight_R.sum()),
    }


def classification(labels: list[str] | None = None, rows: int = 150) -> Document:
    labels = labels or LABELS
    base, tuned = class_outcomes(len(labels), rows)
    made = document("text-classification", (base, tuned), class_metrics)
    made["classification"] = curves.classification(base, tuned, labels)
    texts = [
        HOSTILE,
        "My card still has not arrived and it has been two weeks now.",
        "The rate in the app was not the one I was charged, please give back the difference.",
        "海外でカードを使ったら、表示と違うレートで請求されました。",
    ]

    def look(row: int) -> tuple[str, str]:
        return texts[row % len(texts)], f"support.csv:{row + 2}"

    made["errors"] = mistakes.labelled(tuned, labels, look)
    return made


def multilabel() -> Document:
    rng = np.random.default_rng(5)
    target_RC = (rng.random((120, 4)) < 0.35).astype(np.int64)
    noise_RC = rng.normal(0, 1, target_RC.shape)
    outcomes = []
    for strength in (1.5, 3.5):
        output_RC = 1 / (1 + np.exp(-(noise_RC + strength * (target_RC - 0.5))))
        outcomes.append(Outcome(np.arange(120), np.ones(120), np.ones(120), output_RC, target_RC))

    def metrics(outcome: Outcome) -> dict[str, float]:
        assert outcome.output_RC is not None and outcome.target_R is not None
        return {"subset_accuracy": float(((outcome.output_RC > 0.5) == outcome.target_R).all(1).mean())}

    labels = LABELS[:4]
    made = document("multi-label-classification", (outcomes[0], outcomes[1]), metrics)
    made["multilabel"] = curves.multilabel(outcomes[0], outcomes[1], labels)
    made["errors"] = mistakes.multilabelled(outcomes[1], labels, lambda row: (HOSTILE, f"tags.jsonl:{row}"))
    return made


def regression() -> Document:
    rng = np.random.default_rng(6)
    target_R = rng.uniform(1, 5, 300)
    outcomes = []
    for spread in (0.9, 0.4):
        output_RC = (target_R + rng.normal(0.1, spread, 300))[:, None]
        loss_R = (output_RC[:, 0] - target_R) ** 2
        outcomes.append(Outcome(np.arange(300), loss_R, np.ones(300), output_RC, target_R))

    def metrics(outcome: Outcome) -> dict[str, float]:
        return {"rmse": float(np.sqrt(outcome.loss_R.mean()))}

    made = document("text-regression", (outcomes[0], outcomes[1]), metrics)
    made["regression"] = curves.regression(outcomes[0], outcomes[1])
    made["errors"] = mistakes.scored(outcomes[1], lambda row: (HOSTILE, f"stars.csv:{row}"))
    return made


def chat() -> Document:
    rng = np.random.default_rng(8)
    weight_R = rng.integers(8, 40, 80).astype(np.float64)
    losses = [weight_R * (2.4 + rng.normal(0, 0.4, 80)), weight_R * (1.5 + rng.normal(0, 0.4, 80))]
    outcomes = [Outcome(np.arange(80), loss_R, weight_R) for loss_R in losses]

    def metrics(outcome: Outcome) -> dict[str, float]:
        loss = float(outcome.loss_R.sum() / outcome.weight_R.sum())
        return {"loss": loss, "perplexity": float(np.exp(loss))}

    made = document("chat", (outcomes[0], outcomes[1]), metrics)
    made["baseline"] = "untuned"
    made["asked"]["model"] = "smollm2-135m"
    made["answers"] = [
        Answer(
            prompt="How do I return an item that arrived broken?",
            expected="I am sorry it arrived broken. Send us a photo within 14 days and we will send a new one.",
            base="You can return an item that arrived broken. You can return an item that arrived broken. You can",
            tuned="I am sorry to hear that. Please send a photo within 14 days and we will replace it free of charge.",
        ),
        Answer(
            prompt="返品の送料は誰が負担しますか。",
            expected="不良品の場合は当店が負担いたします。",
            base="",
            tuned="不良品の場合、送料は当店が負担いたします。お客様のご都合による返品の場合はご負担ください。",
        ),
        Answer(prompt=HOSTILE, expected="I cannot help with that.", base=HOSTILE, tuned="I cannot help\n\nwith that."),
    ]
    return made


def rewarded() -> Document:
    """A policy that learnt from rewards, with everything that such a run tells, and every alarm."""
    rng = np.random.default_rng(9)
    outcomes = [Outcome(np.arange(60), np.zeros(60), np.zeros(60), rng.random((60, 1)) * top) for top in (0.4, 1.0)]

    def metrics(outcome: Outcome) -> dict[str, float]:
        assert outcome.output_RC is not None
        return {"reward": float(outcome.output_RC.mean())}

    made = document("prompt", (outcomes[0], outcomes[1]), metrics)
    made["baseline"] = "untuned"
    names = ("reward", "ended", "length", "mine", "clip_share", "kl", "entropy", "gap", "value_loss")
    for point in made["history"]["train"]:
        point["figures"] = {name: float(rng.random()) for name in names}
    for entry in made["history"]["evaluations"]:
        entry["metrics"] = {"reward": float(rng.random())}
        entry["said"] = {"How do I return an item?": "Send us a photo.", HOSTILE: HOSTILE, "返品は?": ""}
    made["alarms"] = ["entropy", "runaway", "hacking"]
    return made


def everyone() -> dict[str, Document]:
    found = {"classification": classification(), "multilabel": multilabel(), "regression": regression(), "chat": chat()}
    found["rewarded"] = rewarded()
    assert all(isinstance(one, dict) for one in found.values())
    return found
