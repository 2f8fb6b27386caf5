"""The grader of source in a recipe: it computes, and can do nothing else, however it tries."""

from __future__ import annotations

import time
from typing import Any

import pytest

from onsa.rewards.base import Sample
from onsa.rewards.python import Python
from onsa.spec import sandbox
from onsa.spec.errors import RecipeError
from onsa.spec.sandbox import Sandbox, SandboxError

pytestmark = pytest.mark.skipif(not sandbox.possible(), reason="needs Linux on x86-64 or ARM")
SAMPLE: dict[str, Any] = {"output_text": "4", "output_json": 4}


def tried(body: str) -> float:
    """What a function with this body gives."""
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    made = Sandbox(f"def grade(sample, item):\n{lines}\n")
    try:
        return made.call(SAMPLE, {"answer": "4"})
    finally:
        made.close()


def test_it_computes_on_answer_and_row() -> None:
    assert tried("return float(sample['output_text'] == item['answer'])") == 1.0
    assert tried("import math, re, json, statistics\nreturn math.sqrt(sample['output_json'])") == 2.0
    assert tried("return __import__('difflib').SequenceMatcher(None, 'ab', 'ab').ratio()") == 1.0


@pytest.mark.parametrize(
    "body",
    [
        "return len(open('/etc/passwd').read())",
        "import os\nreturn os.open('/tmp/made', os.O_CREAT | os.O_WRONLY)",
        "import os\nreturn len(os.listdir('/'))",
        "import os\nos.stat('/etc/passwd')\nreturn 1",
        "import os\nos.fork()\nreturn 1",
        "import os\nos.execv('/bin/true', ['true'])",
        "import os\nos.kill(1, 9)\nreturn 1",
        "import os\nos.kill(os.getpid(), 0)\nreturn 1",
        "import subprocess\nsubprocess.run(['true'])\nreturn 1",
        "import socket\nreturn 1",
        "import threading\nthreading.Thread(target=print).start()\nreturn 1",
        "import ctypes\nreturn 1.0 if ctypes.CDLL(None).socket(2, 1, 0) >= 0 else None",
        "import ctypes\nreturn 1.0 if ctypes.CDLL(None).open(b'/etc/passwd', 0) >= 0 else None",
        "import ctypes\nreturn 1.0 if ctypes.CDLL(None).syscall(57) >= 0 else None",
        "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))\nreturn 1",
    ],
)
def test_it_reaches_no_file_network_or_process(body: str) -> None:
    with pytest.raises(SandboxError):
        tried(body)


def test_memory_is_bounded() -> None:
    with pytest.raises(SandboxError, match="MemoryError"):
        tried("return len(bytearray(2 << 30))")


def test_time_is_bounded_and_the_next_answer_is_graded(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Sandbox("def grade(sample, item):\n    while item['slow']:\n        pass\n    return 1\n")
    monkeypatch.setattr(sandbox, "ANSWER_S", 1.0)
    began = time.monotonic()
    with pytest.raises(SandboxError, match="longer than 1 s"):
        made.call(SAMPLE, {"slow": True})
    assert time.monotonic() - began < 10
    monkeypatch.undo()
    assert made.call(SAMPLE, {"slow": False}) == 1.0
    made.close()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return 1 / 0", "ZeroDivisionError"),
        ("return 'much'", "no number"),
        ("return True", "no number"),
        ("import sys\nsys.exit()", "SystemExit"),
        ("import os\nos._exit(0)", "ended"),
        ("import os\nos.write(1, b'nonsense\\n')\nreturn 1", "ended"),
        ("import os\nos.write(1, b'[1]\\n')\nreturn 1", "ended|no number"),
    ],
)
def test_what_goes_wrong_is_said(body: str, said: str) -> None:
    with pytest.raises(SandboxError, match=said):
        tried(body)


def test_what_it_prints_is_not_taken_for_an_answer() -> None:
    assert tried("print('{\"value\": 7}')\nreturn 2") == 2.0


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def grade(sample, item) return 1", "SyntaxError"),
        ("x = 1", "no function grade"),
        ("open('/etc/passwd')", "PermissionError"),
        ("#" * (sandbox.SOURCE_BYTES + 1), "longer"),
    ],
)
def test_a_source_that_cannot_be_used_is_refused_at_once(source: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        Python(source=source).open(None)  # type: ignore[arg-type]


def test_where_it_cannot_be_held_it_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "possible", lambda: False)
    with pytest.raises(RecipeError, match="safely"):
        Python(source="def grade(sample, item): return 1").open(None)  # type: ignore[arg-type]


def test_as_a_reward() -> None:
    reward = Python(source="def grade(sample, item):\n    return len(sample['output_text']) + item['more']\n")
    samples = [Sample((), "", {"more": 1}, answer, 1, True) for answer in ("a", "abc")]
    assert list(reward.open(None)(samples)) == [2.0, 4.0]  # type: ignore[arg-type]
