"""The service as its user starts it: a tree of processes that are begun anew, and a job from its file to its answer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import psutil
import pytest
from openai import OpenAI

from onsa.store.database import Database
from onsa.store.jobs import Jobs
from onsa.store.records import Page

PAIRS = [(f"Add {a} and {b}", f"The sum is {a + b}.") for a in range(1, 5) for b in range(1, 5)]


def rows(pairs: list[tuple[str, str]]) -> bytes:
    import json

    lines = [[{"role": "user", "content": ask}, {"role": "assistant", "content": said}] for ask, said in pairs]
    return "".join(json.dumps({"messages": messages}) + "\n" for messages in lines).encode()


class Service:
    """``onsa serve`` on a free port."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-c", "from onsa.app.cli import main; main()", "serve", "--port", "0"]
        self.said = (folder / "said.txt").open("w+")
        self.process = subprocess.Popen(command, stdout=self.said, stderr=subprocess.STDOUT, text=True)
        self.secret, self.url = self._word("sk-onsa-"), self._word("http://")
        self.client = OpenAI(base_url=self.url, api_key=self.secret, max_retries=5)

    def _word(self, beginning: str) -> str:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            self.said.seek(0)
            found = [word for word in self.said.read().split() if word.startswith(beginning)]
            if found:
                return found[0].rstrip(";")
            time.sleep(0.05)
        raise AssertionError(f"the service never said {beginning}")

    def children(self, module: str) -> list[psutil.Process]:
        found = psutil.Process(self.process.pid).children()
        living = [child for child in found if child.status() != psutil.STATUS_ZOMBIE]
        return [child for child in living if module in child.cmdline()]

    def well(self) -> bool:
        try:
            with urlopen(self.url.replace("/v1", "/healthz"), timeout=1) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def stop(self) -> None:
        self.client.close()
        self.process.send_signal(signal.SIGINT)
        self.process.wait(60)
        self.said.close()


@pytest.fixture
def service(home: Path, tmp_path: Path) -> Iterator[Service]:
    started = Service(tmp_path)
    yield started
    started.stop()


def wait_for(what: Any, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.1)


def test_a_process_that_is_killed_is_begun_anew(service: Service) -> None:
    wait_for(service.well, 30)
    for module in ("onsa.app.web", "onsa.app.host", "onsa.programs.jobs.supervisor"):
        (before,) = service.children(module)
        time.sleep(1.1)
        before.kill()
        wait_for(lambda module=module, gone=before: service.children(module) not in ([], [gone]), 10)
    wait_for(service.well, 30)


def test_its_processes_end_with_it(service: Service) -> None:
    wait_for(service.well, 30)
    children = psutil.Process(service.process.pid).children()
    assert len(children) == 3
    service.process.kill()
    service.process.wait()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive


@pytest.mark.packaged
def test_a_job_from_its_file_to_its_answer(service: Service) -> None:
    client = service.client
    training = client.files.create(file=("sums.jsonl", rows(PAIRS)), purpose="fine-tune")
    few = client.files.create(file=("few.jsonl", rows(PAIRS[:9])), purpose="fine-tune")
    method: Any = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}}
    given: Any = {"model": "smollm2-135m", "method": method, "seed": 3, "validation_file": few.id}
    made = client.fine_tuning.jobs.create(**given, training_file=training.id)
    short = client.fine_tuning.jobs.create(model="smollm2-135m", training_file=few.id)
    ends = ("succeeded", "failed", "cancelled")
    wait_for(lambda: client.fine_tuning.jobs.retrieve(short.id).status in ends, 600)
    failed = client.fine_tuning.jobs.retrieve(short.id)
    assert (failed.status, failed.error.param) == ("failed", "training_file")  # type: ignore[union-attr]
    assert "9 rows" in failed.error.message  # type: ignore[union-attr]
    wait_for(lambda: client.fine_tuning.jobs.retrieve(made.id).status in ends, 600)
    job = client.fine_tuning.jobs.retrieve(made.id)
    assert (job.status, job.error) == ("succeeded", None)
    tuned = job.fine_tuned_model
    assert tuned is not None
    names = {client.files.retrieve(name).filename for name in job.result_files}
    assert names == {"step_metrics.csv", "recipe.yaml", "report.html"}
    for name in job.result_files:
        assert os.environ["ONSA_HOME"].encode() not in client.files.content(name).read()
    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(made.id))
    for model in ("smollm2-135m", tuned, checkpoints[0].fine_tuned_model_checkpoint):
        asked: Any = {"model": model, "messages": [{"role": "user", "content": "Add 3 and 4"}], "max_tokens": 8}
        answers = {client.chat.completions.create(**asked, temperature=0).choices[0].message.content for _ in range(2)}
        assert len(answers) == 1 and answers.pop()
    with Database() as database:
        found, _ = Jobs(database).page(None, Page())
    assert [job.lease_until for job in found] == [None, None]
