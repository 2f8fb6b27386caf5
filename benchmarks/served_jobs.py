"""Jobs over the service, from an upload to an answer: supervised, DPO, and reinforcement with graders, on SmolLM2.

Run as ``python -m benchmarks.served_jobs``. Prints a table, then one JSON line with the same figures, and exits with 1
where a job did not succeed, its model did not answer, or the same order with the same seed gave other losses.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from openai import OpenAI

from benchmarks.served import ENDS, service, share_models

BASE = "smollm2-135m"
SUMS = [(f"Add {a} and {b}.", f"It is {a + b}.") for a in range(1, 7) for b in range(1, 7)]
SOURCE = "def grade(sample, item):\n    return float(item['answer'] in sample['output_text'])\n"
GRADERS = {
    "type": "multi",
    "name": "both",
    "graders": {
        "right": {"type": "python", "name": "right", "source": SOURCE},
        "form": {
            "type": "string_check",
            "name": "form",
            "input": "{{ sample.output_text }}",
            "reference": "It is",
            "operation": "like",
        },
    },
    "calculate_output": "right + form / 2",
}


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def assistant(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


ORDERS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "supervised": (
        [{"messages": [*user(ask), *assistant(said)]} for ask, said in SUMS],
        {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 8}}},
    ),
    "dpo": (
        [
            {
                "input": {"messages": user(ask)},
                "preferred_output": assistant(said),
                "non_preferred_output": assistant("I cannot say."),
            }
            for ask, said in SUMS
        ],
        {"type": "dpo", "dpo": {"hyperparameters": {"n_epochs": 1, "batch_size": 8, "beta": 0.1}}},
    ),
    "reinforcement": (
        [{"messages": user(ask), "answer": said.split()[-1].rstrip(".")} for ask, said in SUMS],
        {
            "type": "reinforcement",
            "reinforcement": {
                "grader": GRADERS,
                "hyperparameters": {"n_epochs": 1, "batch_size": 4, "compute_multiplier": 0.5},
                "recipe": {"train": {"max_steps": 4}},
            },
        },
    ),
}


def done(client: OpenAI, name: str, rows: Sequence[dict[str, Any]], method: dict[str, Any]) -> dict[str, Any]:
    """A job to its end, its losses, and an answer of its model."""
    began = time.monotonic()
    content = "\n".join(map(json.dumps, rows)).encode()
    file = client.files.create(file=(f"{name}.jsonl", content), purpose="fine-tune")
    given: Any = {"model": BASE, "training_file": file.id, "method": method, "seed": 11, "suffix": name}
    job = client.fine_tuning.jobs.create(**given)
    while (found := client.fine_tuning.jobs.retrieve(job.id)).status not in ENDS:
        time.sleep(1)
    told: dict[str, Any] = {"status": found.status, "seconds": round(time.monotonic() - began, 1)}
    if found.status != "succeeded" or found.fine_tuned_model is None:
        return {**told, "error": found.error.message if found.error else None}
    result = next(one for one in found.result_files if client.files.retrieve(one).filename == "step_metrics.csv")
    lines = client.files.content(result).read().decode().splitlines()[1:]
    said = client.chat.completions.create(
        model=found.fine_tuned_model,
        messages=user("Add 2 and 3."),  # type: ignore[arg-type]
        max_tokens=12,
        temperature=0,
    )
    losses = [float(line.split(",")[1]) for line in lines]
    return {**told, "model": found.fine_tuned_model, "losses": losses, "said": said.choices[0].message.content}


def main() -> int:
    with TemporaryDirectory() as folder:
        share_models(Path(folder))
        with service(Path(folder)) as (client, _):
            found = {name: done(client, name, *order) for name, order in ORDERS.items()}
            found["supervised again"] = done(client, "supervised", *ORDERS["supervised"])
    print(f"{'job':<18} {'status':<10} {'seconds':>8}  {'losses':<34} answer")
    for name, one in found.items():
        losses = " ".join(f"{loss:.3f}" for loss in one.get("losses", ())[:5])
        print(
            f"{name:<18} {one['status']:<10} {one['seconds']:>8}  {losses:<34} {one.get('said') or one.get('error')!r}"
        )
    same = found["supervised"].get("losses") == found["supervised again"].get("losses")
    print(f"the same seed gives the same losses: {same}")
    print(json.dumps({"benchmark": "served_jobs", "same": same, "jobs": found}))
    return int(not same or not all(one.get("said") for one in found.values()))


if __name__ == "__main__":
    sys.exit(main())
