"""One side of one measurement of :mod:`benchmarks.speed`, in a process of its own.

Run as ``python -m benchmarks.speed_side ORDER`` with a JSON object: ``work``, ``side`` (``ours`` or a peer), ``folder``
(shared by the sides of a work: ours leaves the initial weights there, which the peers load) and ``quick``. Prints one
JSON line: ``rate`` (trained tokens or rows a second), ``losses``, ``peak_bytes``, ``first_step_s`` and ``limit``.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import psutil
import torch
from torch import Tensor, nn

from onsa.models.load import quiet
from onsa.models.precision import has_fast_bf16
from onsa.programs.demo import demos
from onsa.programs.prepare import Prepared, prepare
from onsa.spec.recipe import Recipe, parse_recipe

MIX, MEDIAN, SIGMA, LONGEST = 96, 90, 0.8, 512  # rows of mixed lengths, in tokens
TOKENS_A_WORD = 1.35
CHAT_STEPS, QUICK_CHAT_STEPS, CHAT_ROWS = 10, 4, 8
EPOCHS, TOPIC_ROWS, QUICK_TOPICS = 5, 16, 96
SHORT_ROWS = 2  # of TRL's defaults where bf16 is not in hardware

WORKS: dict[str, dict[str, Any]] = {
    "lora": {"adaptation": {"kind": "lora", "rank": 8}},
    "lora-exact": {
        "adaptation": {"kind": "lora", "rank": 8},
        "source": {"kind": "dataset", "shuffle": False},
        "train": {"precision": "fp32"},
    },
    "full": {"adaptation": "full"},
    "qlora": {"adaptation": {"kind": "lora", "rank": 8}, "quantize": "nf4"},
    "topics-full": {"adaptation": "full"},
    "topics-lora": {"adaptation": {"kind": "lora", "rank": 8}},
    "topics-last-layers": {"adaptation": {"kind": "last-layers", "blocks": 2}},
    "topics-head": {"adaptation": "head"},
}


@dataclass
class Clock:
    """When each step ended, what it trained, and its loss."""

    begun: float = 0.0
    ends: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def step(self, loss: float | None = None) -> None:
        self.ends.append(time.perf_counter())
        if loss is not None:
            self.losses.append(loss)


@dataclass(frozen=True)
class Order:
    work: str
    side: str
    folder: Path
    quick: bool

    @property
    def chat(self) -> bool:
        return not self.work.startswith("topics")


def recipe(order: Order) -> Recipe:
    """The work as a recipe."""
    settings = {**WORKS[order.work]}
    quantize, train = settings.pop("quantize", None), settings.pop("train", {})
    if order.chat:
        steps = QUICK_CHAT_STEPS if order.quick else CHAT_STEPS
        data: dict[str, Any] = {"path": str(_mixed(order.folder)), "split": "1:0:0"}
        train = {"batch_rows": CHAT_ROWS, "epochs": 2, "max_steps": steps, "max_length": LONGEST, **train}
        model: dict[str, Any] = {"name": "smollm2-135m", "quantize": quantize}
    else:
        data = {"path": str(_topics(order)), "columns": {"text": "question", "label": "topic"}, "split": "1:0:0"}
        train = {"batch_rows": TOPIC_ROWS, "epochs": EPOCHS, **train}
        model = {"name": "minilm-l6"}
    optimizer = {"kind": "adamw", "lr": 1e-4, "lr_new": 1e-4, "weight_decay": 0.01}
    values = {"model": model, "data": data, "task": "chat" if order.chat else "text-classification"}
    schedule = {"kind": "linear", "warmup": 0}
    return parse_recipe({**values, "train": train, "optimizer": optimizer, "schedule": schedule, **settings})


def _mixed(folder: Path) -> Path:
    """The support pairs, with rows among them whose lengths are spread log-normally."""
    path = folder / "mixed.jsonl"
    if path.exists():
        return path
    lines = Path(_demo("support")).read_text(encoding="utf-8").splitlines()
    words = " ".join(turn["content"] for line in lines for turn in json.loads(line)["messages"]).split()
    dice = np.random.default_rng(7)
    lengths = np.clip(dice.lognormal(np.log(MEDIAN), SIGMA, MIX), 24, LONGEST - 60) / TOKENS_A_WORD
    rows = []
    for number, length in enumerate(lengths.astype(int)):
        start = int(dice.integers(len(words) - length))
        asked, said = (
            f"Question {number}: {' '.join(words[start : start + 6])}?",
            " ".join(words[start : start + length]),
        )
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
        rows.append(json.dumps({"messages": turns}))
    order = dice.permutation(2 * MIX)
    both = [*rows, *lines[:MIX]]
    path.write_text("\n".join(both[place] for place in order if place < len(both)) + "\n", encoding="utf-8")
    return path


def _topics(order: Order) -> Path:
    source = Path(_demo("topics"))
    if not order.quick:
        return source
    lines = source.read_text(encoding="utf-8").splitlines()
    chosen = np.linspace(1, len(lines) - 1, QUICK_TOPICS).round().astype(int)
    path = order.folder / "topics.csv"
    path.write_text("\n".join([lines[0], *(lines[place] for place in chosen)]) + "\n", encoding="utf-8")
    return path


def _demo(name: str) -> str:
    return next(demo.recipe.data.path for demo in demos() if demo.name == name)


def ours(order: Order, prepared: Prepared) -> Clock:
    """Onsa, over its ordinary way."""
    from onsa.engine import loop
    from onsa.engine.events import Begun, Stepped
    from onsa.programs.forecast import build, work

    clock = Clock()
    with quiet():
        built = build(prepared)
        initial = order.folder / "initial"
        if not initial.exists():
            prepared.adaptation.save(built.network, prepared.tokenizer, initial)
    prepared = built.prepared
    with tempfile.TemporaryDirectory() as folder:
        train = prepared.recipe.train.model_copy(update={"save_steps": None, "eval_steps": None})
        job = loop.Job(
            session=prepared.engine.open(work(built)),
            source=prepared.source,
            feed=type(prepared.feed)(prepared.examples["train"], train, prepared.recipe.seed),
            task=prepared.task,
            objective=prepared.recipe.objective,
            plan=prepared.plan,
            validation=(),
            checkpoints=Path(folder),
        )
        for event in loop.run(job):
            if isinstance(event, Begun):
                clock.begun = time.perf_counter()
            if isinstance(event, Stepped):
                clock.step(event.loss)
    return clock


def peer(order: Order, prepared: Prepared) -> Clock:
    """TRL's or transformers' trainer, with the very settings of the recipe."""
    from benchmarks.speed_peers import classifier, sft

    short = order.side == "trl-default" and not has_fast_bf16("cpu")
    rows = prepared.examples["train"]
    if short:
        rows = sorted(rows, key=lambda example: len(example.token_T))[:SHORT_ROWS]
    clock = Clock()
    run: Callable[..., None] = sft if order.chat else classifier
    run(order.side, prepared, rows, order.folder, clock)
    return clock


def logistic(prepared: Prepared) -> Clock:
    """A logistic regression on the frozen base's sentence embeddings, as SetFit's head."""
    from sklearn.linear_model import LogisticRegression
    from transformers import AutoModel

    rows = prepared.examples["train"]
    network = AutoModel.from_pretrained(prepared.base.folder, dtype=torch.float32).eval()
    clock = Clock(begun=time.perf_counter())
    vectors = [_embedded(network, rows[start : start + 32]) for start in range(0, len(rows), 32)]
    LogisticRegression(max_iter=100).fit(torch.cat(vectors).numpy(), [example.target for example in rows])
    clock.step()
    return clock


@torch.no_grad()
def _embedded(network: nn.Module, rows: Sequence[Any]) -> Tensor:
    tokens = [torch.from_numpy(row.token_T).long() for row in rows]
    token_RT = nn.utils.rnn.pad_sequence(tokens, batch_first=True)
    mask_RT = (nn.utils.rnn.pad_sequence([torch.ones(len(row)) for row in tokens], batch_first=True) > 0).long()
    hidden_RTD = network(input_ids=token_RT, attention_mask=mask_RT).last_hidden_state
    return (hidden_RTD * mask_RT[..., None]).sum(1) / mask_RT.sum(1, keepdim=True)


def limit(prepared: Prepared, trained: int, tokens: int, seconds: float) -> float | None:
    """The model's own operations a second, as a share of one large product's rate here; of chat works only."""
    config = prepared.base.config
    width, inner, blocks = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    shared = width * config["num_key_value_heads"] / config["num_attention_heads"]
    matrices = blocks * (2 * width * width + 2 * width * shared + 3 * width * inner)
    ways = 6 if prepared.adaptation.kind == "full" else 4  # forward, and back to the input (and to the weights)
    done = ways * (matrices * tokens + width * config["vocab_size"] * trained)
    dtype = torch.bfloat16 if prepared.recipe.train.precision == "bf16" else torch.float32
    a, b = torch.randn(2048, 2048, dtype=dtype), torch.randn(2048, 2048, dtype=dtype)
    spent = []
    for _ in range(5):
        started = time.perf_counter()
        a @ b
        spent.append(time.perf_counter() - started)
    return float(done / seconds / (2 * 2048**3 / min(spent)))


def main() -> None:
    given = json.loads(sys.argv[1])
    order = Order(given["work"], given["side"], Path(given["folder"]), given["quick"])
    torch.set_num_threads(os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as home:
        _home(Path(home))
        started = time.perf_counter()
        with quiet():
            prepared = prepare(recipe(order))
        spent = time.perf_counter() - started
        if order.side == "ours":
            clock = ours(order, prepared)
        elif order.side == "logistic":
            clock = logistic(prepared)
        else:
            clock = peer(order, prepared)
    # Peers are given rows that are tokenised already: what that took here is not theirs.
    told = result(order, prepared, clock)
    told["first_step_s"] -= 0.0 if order.side == "ours" else spent
    print(json.dumps(told))


def _home(folder: Path) -> None:
    """A home of its own, so that nothing is kept from another measurement, with the models that are there."""
    from onsa.store.home import home

    real = home()
    for name in ("models", "demo"):
        if (real / name).exists():
            (folder / name).symlink_to(real / name)
    measured = real / "cache" / "attention.json"  # warm, as on a machine that has trained before
    (folder / "cache").mkdir()
    if measured.exists():
        shutil.copy(measured, folder / "cache")
    os.environ["ONSA_HOME"] = str(folder)


def result(order: Order, prepared: Prepared, clock: Clock) -> dict[str, Any]:
    """The figures of a side."""
    rows = prepared.examples["train"]
    short = order.side == "trl-default" and not has_fast_bf16("cpu")
    skipped = 1 if order.chat and not short else 0
    seconds = clock.ends[-1] - (clock.ends[skipped - 1] if skipped else clock.begun)
    share = None
    if not order.chat:
        amount = float(len(rows) * EPOCHS)
    elif short:
        chosen = sorted(rows, key=lambda example: len(example.token_T))[:SHORT_ROWS]
        amount = float(sum(example.supervised for example in chosen))
    else:
        # Sides draw other rows into the same number of steps, so what a step trains is the mean over all rows.
        steps = len(clock.ends) - skipped
        seen = steps * CHAT_ROWS / len(rows)
        amount = seen * sum(example.supervised for example in rows)
        if order.side == "ours":
            share = limit(prepared, int(amount), int(seen * sum(len(e.token_T) for e in rows)), seconds)
    return {
        "rate": amount / seconds,
        "losses": clock.losses,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "first_step_s": time.time() - psutil.Process().create_time() - (time.perf_counter() - clock.ends[0]),
        "limit": share,
    }


if __name__ == "__main__":
    main()
