"""Speed of a step that learns from rewards: answers drawn, graded and learnt from, against TRL's GRPOTrainer.

Run as ``python -m benchmarks.speed_rewards``; ``--quick`` takes one turn. Prints a table, then one JSON line with the
same figures. A time is never asserted.

Both sides start from SmolLM2 with LoRA (rank 8), answer the same prompts in the same order, eight times each at
temperature 1, up to 48 tokens, and grade by the same pattern. Each measurement is a process of its own, and the sides
take turns. What is compared is the tokens of answers that are drawn and learnt from in a second, since chance gives
each side answers of its own: the median step but the first, and of the turns the median. The peers are TRL as it comes,
and TRL with bf16 and without gradient checkpointing; the faster one counts. Onsa without its shared prefix stands
beside.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

PATTERN = "[aeiou]{2}"  # that earns 1
SIDES = ("ours", "ours-unshared", "trl-default", "trl-plain")
PROMPTS, GROUP, LONGEST, STEPS, BETA, GOAL = 4, 8, 48, 4, 0.04, 3.0


def ours(folder: Path, skip: tuple[str, ...]) -> tuple[list[float], list[int]]:
    """Seconds and answers' tokens of each step."""
    import onsa.programs.rollouts as rollouts
    from benchmarks.rl import write
    from onsa.engine.batches import micro_batches
    from onsa.models.load import quiet
    from onsa.programs.forecast import build, work
    from onsa.programs.prepare import prepare
    from onsa.sources.base import Cursor
    from onsa.spec.recipe import parse_recipe

    reward = {"kind": "regex", "pattern": PATTERN}
    recipe = {
        "model": "smollm2-135m",
        "data": str(write(folder / "prompts.jsonl")),
        "task": "prompt",
        "adaptation": {"kind": "lora", "rank": 8},
        "objective": {"kind": "grpo", "beta": BETA},
        "source": {"kind": "rollouts", "group": GROUP, "max_new_tokens": LONGEST, "reward": reward},
        "optimizer": {"kind": "adamw", "lr": 1e-5},
        "train": {"batch_rows": PROMPTS, "max_steps": STEPS},
        "accel": {"skip": list(skip)},
    }
    with quiet():
        built = build(prepare(parse_recipe(recipe)))
        prepared = built.prepared
        session: Any = prepared.engine.open(work(built))
    given = rollouts.feed(prepared, session, rollouts.graders(prepared))
    seconds, tokens, started = [], [], time.perf_counter()
    for examples, _ in prepared.source.steps(given, Cursor()):
        session.forward_backward(micro_batches(examples, prepared.plan, 1), prepared.recipe.objective)
        session.step()
        seconds.append(time.perf_counter() - started)
        tokens.append(sum(example.supervised for example in examples))
        started = time.perf_counter()
    return seconds, tokens


def theirs(folder: Path, plain: bool) -> tuple[list[float], list[int]]:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
    from trl import GRPOConfig, GRPOTrainer

    from benchmarks.rl import write
    from benchmarks.speed_peers import Clock
    from onsa.models.fetch import locate
    from onsa.spec.sections import Model

    base = locate(Model(name="smollm2-135m")).folder
    rows = [json.loads(line) for line in write(folder / "prompts.jsonl").read_text().splitlines()]
    data = Dataset.from_list([{"prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows])
    tokens: list[int] = []

    def grade(completions: list[Any], completion_ids: list[list[int]], **_: Any) -> list[float]:
        tokens.append(sum(map(len, completion_ids)))
        return [float(re.search(PATTERN, completion[0]["content"]) is not None) for completion in completions]

    more = {"bf16": True, "gradient_checkpointing": False} if plain else {}
    config = GRPOConfig(
        output_dir=str(folder / "out"),
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        per_device_train_batch_size=PROMPTS * GROUP,
        num_generations=GROUP,
        max_completion_length=LONGEST,
        max_steps=STEPS,
        learning_rate=1e-5,
        beta=BETA,
        shuffle_dataset=False,
        loss_type="grpo",
        **more,
    )
    clock = Clock(time.time())
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        reward_funcs=grade,
        args=config,
        train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(base),
        peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[clock],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return clock.step_s, tokens


def measured(side: str) -> dict[str, Any]:
    """One side's steps in a process of its own."""
    said = subprocess.run(
        [sys.executable, "-m", "benchmarks.speed_rewards", "--side", side], capture_output=True, text=True, check=False
    )
    if said.returncode:
        raise RuntimeError(said.stderr[-2000:])
    found: dict[str, Any] = json.loads(said.stdout.splitlines()[-1])
    return found


def alone(side: str) -> dict[str, Any]:
    with TemporaryDirectory() as folder:
        if side.startswith("ours"):
            seconds, tokens = ours(Path(folder), ("shared-prefix",) if side == "ours-unshared" else ())
        else:
            seconds, tokens = theirs(Path(folder), plain=side == "trl-plain")
    rates = [count / spent for count, spent in zip(tokens[1:], seconds[1:], strict=False)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return {"side": side, "rate": median(rates), "seconds": seconds, "tokens": tokens, "gigabytes": peak}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one turn")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(alone(args.side)))
        return 0
    turns: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for _ in range(1 if args.quick else 3):
        for side in SIDES:
            turns[side].append(measured(side))
            print(f"{side}: {turns[side][-1]['rate']:.1f} tokens a second", file=sys.stderr, flush=True)
    rates = {side: median(turn["rate"] for turn in found) for side, found in turns.items()}
    peers = {side: rate for side, rate in rates.items() if side.startswith("trl")}
    peer = max(peers, key=peers.__getitem__)
    print(f"{'side':<16} {'tokens a second':>16} {'ours over it':>14} {'memory, GB':>12}")
    for side, rate in rates.items():
        memory = median(turn["gigabytes"] for turn in turns[side])
        print(f"{side:<16} {rate:>16.1f} {rates['ours'] / rate:>14.2f} {memory:>12.2f}")
    ratio = rates["ours"] / peers[peer]
    print(f"against {peer}: {ratio:.2f} (goal {GOAL:g}, {'met' if ratio >= GOAL else 'missed'})")
    print(json.dumps({"benchmark": "speed_rewards", "quick": args.quick, "ratio": ratio, "peer": peer, "turns": turns}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
