"""SIGKILL at any moment, saving included: a run goes on and ends with the very bytes of one that was never killed."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import time
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import trainee
from trainee import Moment

import tiny
from onsa.models.load import quiet
from onsa.models.lowering import BY_ENDS
from onsa.programs.forecast import build
from onsa.programs.prepare import prepare
from onsa.spec.recipe import parse_recipe
from onsa.store.atomic import sha256_file

SEED = 20
RANDOM_KILLS = 5  # a model, beside those in SAVING
FORKS = get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "onsa.programs.train",
        "onsa.adaptations.lora",
        "onsa.optim.optimizers.adamw",
        "onsa.sources.dataset",
        "onsa.sources.rollouts",
        "onsa.objectives.ppo",
        "onsa.tasks.chat",
        "onsa.tasks.text_classification",
        "peft",
        "transformers.models.bert.modeling_bert",
        "transformers.models.llama.modeling_llama",
    ]
)
DRAFT = "*/checkpoints/.draft-step-*"
# Each line is one run, killed at these moments one after the other. Python opens the tensors of a checkpoint twice, to
# hash and to flush them; progress.json thrice, since it also writes that; the manifest, which it does not hash, twice.
SAVING = (
    [Moment("open", f"{DRAFT}/trainable.safetensors", 5, halve=True)],
    [Moment("open", f"{DRAFT}/optimizer.safetensors", 3, halve=True), Moment("os.rename", "*/.events.jsonl.*.tmp")],
    [Moment("open", f"{DRAFT}/progress.json", 8, halve=True)],
    [Moment("open", f"{DRAFT}/manifest.json", 2, halve=True), Moment("os.rename", "*/.draft-step-0000006")],
    [Moment("os.rename", DRAFT, 4)],
    [Moment("open", "*/checkpoints", 1), Moment("open", "*/checkpoints", 3)],  # renamed, and nobody told
    [Moment("os.remove", "optimizer.safetensors", 2)],  # in the midst of removing an old checkpoint
    [Moment("open", "*/.draft-model/*.safetensors", 1, halve=True), Moment("os.rename", "*/.draft-model")],
    [Moment("os.rename", "*/.metrics.json.*.tmp"), Moment("os.rename", "*/.report.html.*.tmp")],
    [Moment("os.mkdir", "*/runs/????????")],
)
"""The moments of saving at which runs are killed."""


STATES = "*/cache/states/.*.tmp"
KEEPING = (
    [Moment("open", f"{STATES}/states.bin", 2, halve=True), Moment("open", f"{STATES}/about.json")],
    [Moment("os.rename", STATES), Moment("os.rename", "*/.draft-step-0000006")],
    [Moment("open", "*/cache/states/[!.]*/about.json", 2, halve=True)],
)
"""The moments of keeping what lies below the boundary; the last one damages it, so that it is made anew."""


@dataclass(frozen=True)
class Child:
    """What became of a process: was it killed, and how long it trained after its run had been opened."""

    killed: bool
    seconds: float


def child(recipe: dict[str, Any], home: Path, moment: Moment | float | None) -> Child:
    """Train in a new process, which dies by itself at a moment, or is killed after some seconds."""
    hears, says = FORKS.Pipe(duplex=False)
    given = moment if isinstance(moment, Moment) else None
    process = FORKS.Process(target=trainee.train, args=(recipe, str(home), says, given))
    process.start()
    says.close()
    try:
        opened = hears.recv()
    except EOFError:
        opened = False
    started = time.monotonic()
    process.join(moment if opened and isinstance(moment, float) else None)
    process.kill()
    process.join()
    assert process.exitcode in (0, -9), f"the process failed on its own: {process.exitcode}"
    return Child(process.exitcode == -9, time.monotonic() - started)


def outcome(home: Path) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """Hashes of the final weights, and everything that the run told but the time it took."""
    (run,) = (home / "runs").iterdir()
    weights = {path.name: sha256_file(path) for path in sorted((run / "model").glob("*.safetensors"))}
    told = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert weights and (run / "report.html").exists()
    return weights, [{name: value for name, value in event.items() if name != "seconds"} for event in told]


def alike(home: Path, other: Path) -> Path:
    """Another home in which what was measured of the machine is known: measured again, it might be chosen otherwise."""
    measured = home / "cache" / "attention.json"
    if measured.exists():
        (other / "cache").mkdir(parents=True)
        shutil.copy(measured, other / "cache")
    return other


def killed(recipe: dict[str, Any], home: Path, kills: list[Moment | float]) -> tuple[Any, int]:
    """The outcome of a run that was killed so, and gone on with, and how often the parent came too late."""
    missed = 0
    for kill in kills:
        while not child(recipe, home, kill).killed:
            assert isinstance(kill, float), f"never came: {kill}"
            missed, kill, home = missed + 1, kill / 2, alike(home, home.with_name(f"{home.name}+"))
    assert not child(recipe, home, None).killed
    return outcome(home), missed


def bert(folder: Path) -> dict[str, Any]:
    """Every weight of a tiny BERT, with dropout."""
    data = tiny.write_csv(folder / "topics.csv")
    return {"model": str(tiny.make_bert(folder / "bert")), "data": str(data), "adaptation": "full"}


def llama(folder: Path) -> dict[str, Any]:
    """LoRA, with dropout, on a tiny Llama."""
    data = tiny.write_chat(folder / "chat.jsonl")
    adaptation = {"kind": "lora", "dropout": 0.1}
    return {"model": str(tiny.make_llama(folder / "llama")), "data": str(data), "adaptation": adaptation}


def upper(folder: Path) -> dict[str, Any]:
    """The last block of a tiny Llama, above what is kept of the rows."""
    return llama(folder) | {"adaptation": {"kind": "last-layers", "blocks": 1}, "accel": "auto"}


def lined(folder: Path) -> dict[str, Any]:
    """LoRA on a tiny Llama, rows in lines."""
    return llama(folder) | {"accel": "auto"}


def learner(folder: Path) -> dict[str, Any]:
    """PPO on a tiny Llama: each round of answers is learnt from in four steps, and a checkpoint falls between them."""
    prompts = [{"prompt": text} for text, _ in tiny.questions()[:60]]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    reward = {"kind": "regex", "pattern": "[a-m]"}
    rollouts = {"kind": "rollouts", "group": 2, "prompts": 16, "passes": 2, "max_new_tokens": 6, "reward": reward}
    recipe = {"model": str(tiny.make_llama(folder / "llama")), "data": str(folder / "prompts.jsonl")}
    return recipe | {"source": rollouts, "objective": {"kind": "ppo", "target_kl": 0.1}}


ANSWERING = (
    [Moment("open", f"{DRAFT}/answers.safetensors", 4, halve=True)],
    [Moment("open", f"{DRAFT}/answers.json", 5, halve=True), Moment("os.rename", "*/.draft-step-0000015")],
)
"""The moments of keeping the answers that are being learnt from."""


# Half of the moments of saving a model; the other model has the other half.
MOMENTS = {bert: SAVING[::2], llama: SAVING[1::2], upper: KEEPING, lined: (), learner: ANSWERING}


def attends_fast_in_lines(recipe: dict[str, Any], home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home to which it is known that this machine attends in no time along lines: rows are packed there."""
    monkeypatch.setenv("ONSA_HOME", str(home))
    with quiet():
        prepared = prepare(parse_recipe(recipe))
        build(prepared)
        measured = home / "cache" / "attention.json"
        known = json.loads(measured.read_text())
        measured.write_text(json.dumps({key: {**times, **dict.fromkeys(BY_ENDS, 0.0)} for key, times in known.items()}))
        assert build(prepared).prepared.plan.layout == "packed"


@pytest.mark.parametrize("base", MOMENTS)
def test_a_killed_run_ends_as_if_it_had_not_been(base: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = base(tmp_path) | {
        "train": {"batch_rows": 8, "epochs": 3, "save_steps": 3, "eval_steps": 5},
        "engine": {"kind": "local", "device": "cpu", "threads": 1},
        "evaluate": {"bootstrap": 100, "baseline": False, "answers": 0},
    }
    started = time.monotonic()
    if base is lined:
        attends_fast_in_lines(recipe, tmp_path / "whole", monkeypatch)
    assert not child(recipe, tmp_path / "whole", None).killed
    whole = outcome(tmp_path / "whole")
    again = child(
        recipe, alike(tmp_path / "whole", tmp_path / "again"), None
    )  # for the time it takes, and to see that two runs are alike
    assert outcome(tmp_path / "again") == whole
    draw = random.Random(f"{SEED} {base.__name__}")
    plans: list[list[Moment | float]] = [*map(list, MOMENTS[base])]  # the rest come at times drawn at random
    plans += [[draw.uniform(0, again.seconds)] for _ in range(RANDOM_KILLS)]
    same, missed = 0, 0
    for number, kills in enumerate(plans):
        found, late = killed(recipe, alike(tmp_path / "whole", tmp_path / f"killed-{number}"), kills)
        print(f"{base.__name__} {number}: {'same' if found == whole else 'OTHER'} after {kills}, late {late}")
        same, missed = same + (found == whole), missed + late
    weights = hashlib.sha256(json.dumps(whole[0]).encode()).hexdigest()[:12]
    seconds = time.monotonic() - started
    print(f"seed {SEED}: {same} of {len(plans)} runs as {weights}; {missed} kills late; {seconds:.0f} s")
    assert same == len(plans)
