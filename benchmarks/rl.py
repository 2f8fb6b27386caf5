"""RL: does a policy learn a rule that can be checked, from its own answers and a number for each?

Run as ``python -m benchmarks.rl``; ``--quick`` takes a few steps of one seed and asserts nothing, ``--keep FOLDER``
keeps the runs with their reports there. Prints a table, then one JSON line with the same figures, and exits with 1
where a run ends below its goal.

The task: a sentence says who lives where; the answer is to be a JSON object with exactly the keys ``name`` and ``city``
and the values of the sentence. The best policy is known, and answers each prompt right. SmolLM2 with LoRA learns it by
GRPO and by PPO, three seeds each. Stated are the share of held-out prompts whose likeliest answer is right, before and
after, with intervals; steps, minutes, and how far the policy went from its reference.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from benchmarks.preferences import metric, spread
from onsa.evaluate.document import read_document
from onsa.models.load import quiet
from onsa.programs.history import read_history
from onsa.programs.report import METRICS
from onsa.programs.train import finish
from onsa.spec.recipe import parse_recipe

GOAL, MINUTES, SEEDS = 0.8, 30.0, (7, 8, 9)
NAMES = (
    "Ann Ben Cara Dan Eva Finn Gina Hugo Ida Jon Kim Leo Mia Ned Ola Pia Rex Sue Tom Uma Vic Wes Zoe Amy Bob Dot Eli"
)
CITIES = "Paris Rome Oslo Kyoto Lima Cairo Delhi Berlin Madrid Lagos Quito Dublin"
TEXT = {"type": "string"}
SHAPE = {
    "type": "object",
    "properties": {"name": TEXT, "city": TEXT},
    "required": ["name", "city"],
    "additionalProperties": False,
}
REWARDS: list[dict[str, Any]] = [
    {
        "kind": "json-schema",
        "shape": SHAPE,
        "values": {"name": "{{ item.name }}", "city": "{{ item.city }}"},
        "parses": 0.1,
        "shaped": 0.4,
    },
    {
        "kind": "string-check",
        "name": "success",
        "weight": 0,
        "input": "{{ sample.output_json | tojson }}",
        "reference": "{{ {'city': item.city, 'name': item.name} | tojson }}",
    },
]
METHODS: dict[str, dict[str, Any]] = {
    "grpo": {
        "objective": {"kind": "grpo", "beta": 0.02},
        "source": {"group": 8},
        "train": {"batch_rows": 8, "max_steps": 24},
    },
    "ppo": {
        "objective": {"kind": "ppo", "beta": 0.02},
        "source": {"group": 4, "prompts": 16, "passes": 2},
        "train": {"batch_rows": 8, "max_steps": 40},
    },
}


def write(path: Path) -> Path:
    """Prompts with what is right."""
    dice, rows = random.Random(0), []
    for name in NAMES.split():
        for city in CITIES.split():
            text = f"{name} is {dice.randint(18, 80)} years old and lives in {city}."
            prompt = f'Text: {text}\nFill in the JSON: {{"name": "", "city": ""}}'
            rows.append({"prompt": prompt, "name": name, "city": city})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def run(method: str, seed: int, data: Path, quick: bool) -> dict[str, Any]:
    settings = METHODS[method]
    source = {"kind": "rollouts", "max_new_tokens": 32, "temperature": 0.8, "reward": REWARDS, **settings["source"]}
    recipe = {
        "model": "smollm2-135m",
        "data": {"path": str(data), "split": "6:1:3"},
        "adaptation": "lora",
        "objective": settings["objective"],
        "source": source,
        "optimizer": {"kind": "adamw", "lr": 3e-4},
        "train": {**settings["train"], "epochs": 3, "eval_steps": 8, **({"max_steps": 2} if quick else {})},
        "seed": seed,
    }
    started = time.monotonic()
    with quiet():
        found = finish(parse_recipe(recipe))
    document, told = read_document(found.folder / METRICS), read_history(found.folder)
    return {
        "method": method,
        "seed": seed,
        "run": found.id,
        "minutes": (time.monotonic() - started) / 60,
        "steps": len(told.steps),
        "success": metric(document, "success"),
        "reward": metric(document, "reward"),
        "kl": [step["metrics"]["kl"] for step in told.steps],
        "entropy": [step["metrics"]["entropy"] for step in told.steps],
    }


def line(*cells: str) -> None:
    print("{:<8} {:>5} {:>22} {:>22} {:>6} {:>8} {:>10} {:>16}".format(*cells), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few steps of one seed")
    parser.add_argument("--only", choices=list(METHODS), help="one method")
    parser.add_argument("--keep", type=Path, help="a folder for the runs")
    args = parser.parse_args()
    rows = []
    line("method", "seed", "right before", "right after", "steps", "minutes", "KL, last", "entropy")
    with nullcontext(args.keep) if args.keep else TemporaryDirectory() as folder:
        Path(folder).mkdir(exist_ok=True, parents=True)
        os.environ["ONSA_HOME"] = str(Path(folder) / "home")
        data = write(Path(folder) / "prompts.jsonl")
        for method in [args.only] if args.only else METHODS:
            for seed in SEEDS[:1] if args.quick else SEEDS:
                row = run(method, seed, data, args.quick)
                rows.append(row)
                entropy = f"{row['entropy'][0]:.2f} to {row['entropy'][-1]:.2f}"
                before, after = (spread(row["success"], side) for side in ("base", "tuned"))
                figures = (f"{row['minutes']:.1f}", f"{row['kl'][-1]:.3f}", entropy)
                line(method, str(seed), before, after, str(row["steps"]), *figures)
    held = [row["success"]["tuned"]["value"] >= GOAL for row in rows]
    print(json.dumps({"benchmark": "rl", "quick": args.quick, "goal": GOAL, "met": held, "runs": rows}))
    return 0 if args.quick or all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
