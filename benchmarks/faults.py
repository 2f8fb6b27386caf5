"""Faults: processes of the service killed or stopped at random moments; no accepted job may be lost or done twice.

Run as ``python -m benchmarks.faults``; ``--kills``, ``--stops`` and ``--races`` say how often. Prints a table, then one
JSON line with the same figures, and exits with 1 where a job did not end once, or not with the weights of one that
nobody disturbed.

A tiny language model is tuned by jobs of the same order, so that all end with the same bytes. While they run, the HTTP
API, the supervisor and the worker are killed (SIGKILL) at random moments, each as often as was said. Then workers are
stopped (SIGSTOP) until their lease has run out and another has the job, and go on (SIGCONT); they look as if they were
on another machine, since the supervisor would kill them on its own. Last, users pause, resume and cancel jobs from
several threads at once.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import openai
import psutil
from openai import OpenAI

from benchmarks.served import ENDS, service

LIVE = ("validating_files", "queued", "running")
STATES = (*LIVE, *ENDS)
BASE, STEPS, SAVE = "tiny", 240, 20
RESTING = (psutil.STATUS_ZOMBIE, psutil.STATUS_STOPPED)
MODULES = {"web": "onsa.app.web", "supervisor": "onsa.programs.jobs.supervisor", "worker": "onsa.programs.jobs.worker"}


def place_base(home: Path) -> None:
    """A tiny chat model that jobs can begin from."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    import tiny
    from onsa.store.database import Database
    from onsa.store.keys import Keys
    from onsa.store.models import Models

    folder = home / "base"
    (folder / "model").mkdir(parents=True)
    tiny.make_llama(folder / "model")
    with Database(f"sqlite:///{home / 'onsa.db'}") as database:
        project = Keys(database).project()
        with database.writing() as connection:
            Models(database).add(connection, project, BASE, BASE, folder.name, str(folder))


def order(client: OpenAI, file: str) -> str:
    train = {"max_steps": STEPS, "save_steps": SAVE, "eval_steps": STEPS, "batch_rows": 4}
    settings = {"hyperparameters": {"n_epochs": 50}, "recipe": {"train": train, "evaluate": {"bootstrap": 100}}}
    given: Any = {"method": {"type": "supervised", "supervised": settings}, "seed": 7}
    return client.fine_tuning.jobs.create(model=BASE, training_file=file, **given).id


def rows() -> bytes:
    sums = [(f"Add {a} and {b}.", f"It is {a + b}.") for a in range(6) for b in range(6)]
    lines = [
        {"messages": [{"role": "user", "content": ask}, {"role": "assistant", "content": said}]} for ask, said in sums
    ]
    return "\n".join(map(json.dumps, lines)).encode()


def weights(home: Path, job: str) -> str:
    """The SHA-256 of what a job made."""
    return hashlib.sha256((home / "runs" / job / "model" / "adapter_model.safetensors").read_bytes()).hexdigest()


def ended(client: OpenAI, job: str, meanwhile: Callable[[], None], limit_s: float = 600) -> str:
    """Wait for a job's end."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        status = client.fine_tuning.jobs.retrieve(job).status
        if status in ENDS:
            return status
        meanwhile()
        time.sleep(0.2)
    return "never"


def running(process: psutil.Process, kind: str) -> psutil.Process | None:
    """A process of a kind that is not stopped."""
    for child in process.children(recursive=True):
        with suppress(psutil.Error):
            if child.status() not in RESTING and MODULES[kind] in child.cmdline():
                return child
    return None


def check(client: OpenAI, home: Path, job: str, status: str, plain: str) -> list[str]:
    """What is wrong with a job that should have succeeded."""
    if status != "succeeded":
        return [f"{job}: {status}, {client.fine_tuning.jobs.retrieve(job).error}"]
    messages = [event.message for event in client.fine_tuning.jobs.list_events(job, limit=1000)]
    wrong = []
    if messages.count("The job has successfully completed") != 1:
        wrong.append(f"{job}: ended {messages.count('The job has successfully completed')} times")
    if weights(home, job) != plain:
        wrong.append(f"{job}: other weights")
    return wrong


def kills(client: OpenAI, home: Path, process: psutil.Process, file: str, times: int, plain: str) -> dict[str, Any]:
    """Kill processes of each kind at random moments of jobs."""
    dice, wrong, done, jobs = random.Random(7), list[str](), Counter[str](), 0
    while min((done[kind] for kind in MODULES), default=0) < times:
        job, due = order(client, file), time.monotonic() + dice.uniform(0, 4)

        def strike() -> None:
            nonlocal due
            if time.monotonic() < due:
                return
            kind = min(MODULES, key=lambda one: (done[one], dice.random()))
            victim = running(process, kind)
            if victim is not None and done[kind] < times:
                with suppress(psutil.Error):
                    victim.kill()
                    done[kind] += 1
            due = time.monotonic() + dice.uniform(0.5, 9)

        wrong += check(client, home, job, ended(client, job, strike), plain)
        jobs += 1
        print(f"{jobs} jobs, killed {dict(done)}, wrong {len(wrong)}", file=sys.stderr, flush=True)
    return {"jobs": jobs, "kills": dict(done), "wrong": wrong}


def sent_away(home: Path, job: str) -> bool:
    """Let a job's worker look as if it were on another machine, where the supervisor cannot kill it."""
    with closing(sqlite3.connect(home / "onsa.db", timeout=1)) as database, database:
        try:
            return database.execute("UPDATE jobs SET host = 'elsewhere' WHERE id = ?", (job,)).rowcount == 1
        except sqlite3.OperationalError:  # it was stopped while it wrote
            return False


def stops(client: OpenAI, home: Path, process: psutil.Process, file: str, times: int, plain: str) -> dict[str, Any]:
    """Stop workers past their lease, and let them go on once another has their job."""
    dice, wrong, jobs, woken = random.Random(8), list[str](), 0, list[psutil.Process]()
    while len(woken) < times:
        job, due, jobs = order(client, file), time.monotonic() + dice.uniform(2, 8), jobs + 1
        victim: psutil.Process | None = None

        def strike(due: float = due, job: str = job) -> None:
            nonlocal victim
            worker = running(process, "worker")
            if worker is None or time.monotonic() < due:
                return
            if victim is None:
                worker.suspend()
                if sent_away(home, job):
                    victim = worker
                else:
                    worker.resume()
            elif victim not in woken:  # this worker is another
                victim.resume()
                woken.append(victim)

        wrong += check(client, home, job, ended(client, job, strike), plain)
        if victim is not None and victim not in woken:
            wrong.append(f"{job}: ended while its worker was stopped")
            victim.resume()
            woken.append(victim)
        wrong += [f"{job}: worker {one.pid} lives on" for one in woken if one.is_running()]
        print(f"{jobs} jobs, woken {len(woken)}, wrong {len(wrong)}", file=sys.stderr, flush=True)
    return {"jobs": jobs, "woken": len(woken), "wrong": wrong}


def reach(client: OpenAI, job: str, state: str) -> None:
    """Wait until a job has come to a state, or past it."""
    while STATES.index(state) > STATES.index(client.fine_tuning.jobs.retrieve(job).status):
        time.sleep(0.05)


def races(client: OpenAI, file: str, times: int) -> dict[str, Any]:
    """Pause, resume and cancel from several threads at once; refusals are conflicts, and every job ends cancelled."""
    dice, wrong, answers = random.Random(9), list[str](), Counter[str]()
    jobs = client.fine_tuning.jobs

    def call(name: str, job: str) -> str:
        try:
            return f"{name}: {getattr(jobs, name)(job).status}"
        except openai.ConflictError:
            return f"{name}: conflict"

    for number in range(0, times, 10):
        job = order(client, file)
        last = "cancel" if number % 3 else "pause"
        names = [dice.choice(("pause", "resume", "pause", "resume", last)) for _ in range(10)]
        reach(client, job, LIVE[number // 10 % len(LIVE)])
        time.sleep(dice.uniform(0, 2))
        with ThreadPoolExecutor(5) as pool:
            answers.update(pool.map(call, names, [job] * len(names)))
        with suppress(openai.ConflictError):
            jobs.cancel(job)
        status = ended(client, job, lambda: None, 120)
        if status not in ("cancelled", "succeeded"):
            wrong.append(f"{job}: {status}")
        messages = [event.message for event in jobs.list_events(job, limit=1000)]
        if messages.count("The job has been cancelled") + messages.count("The job has successfully completed") != 1:
            wrong.append(f"{job}: ended more than once, or never")
    return {"calls": times, "answers": dict(answers), "wrong": wrong}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--stops", type=int, default=10)
    parser.add_argument("--races", type=int, default=300)
    args = parser.parse_args()
    with TemporaryDirectory() as folder:
        home = Path(folder)
        os.environ["ONSA_HOME"] = str(home)
        place_base(home)
        with service(home, OMP_NUM_THREADS="1") as (client, process):
            file = client.files.create(file=("sums.jsonl", rows()), purpose="fine-tune").id
            first = order(client, file)
            assert ended(client, first, lambda: None) == "succeeded", client.fine_tuning.jobs.retrieve(first).error
            plain = weights(home, first)
            found = {
                "killed": kills(client, home, process, file, args.kills, plain),
                "stopped": stops(client, home, process, file, args.stops, plain),
                "raced": races(client, file, args.races),
            }
    for name, figures in found.items():
        print(f"{name:<10} {json.dumps({key: value for key, value in figures.items() if key != 'wrong'})}")
        for fault in figures["wrong"]:
            print(f"  WRONG {fault}")
    print(json.dumps({"benchmark": "faults", **found}))
    return int(any(figures["wrong"] for figures in found.values()))


if __name__ == "__main__":
    sys.exit(main())
