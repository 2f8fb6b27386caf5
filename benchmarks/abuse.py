"""Abuse: requests that nobody should send; the service may refuse them, and may not break.

Run as ``python -m benchmarks.abuse``; ``--cases`` says how many of each. Prints a table, then one JSON line with the
same figures, and exits with 1 where an answer was a 5xx, or the HTTP API's memory grew beyond its bound.

Schemathesis, in an environment of its own, makes cases from the service's own OpenAPI document. Then as many files are
uploaded whose lines are damaged conversations: cut off, of wrong types, deep, huge, not UTF-8; a job is made of every
hundredth. Last, names and ids are paths that lead out of a folder.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import venv
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx2
import psutil
from openai import OpenAI

from benchmarks.served import service, share_models

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / ".venv" / "abuse"
GROWTH_BYTES = 200 << 20
PATHS = (
    "../../etc/passwd",
    "..%2f..%2fetc%2fpasswd",
    "....//etc/passwd",
    "/etc/passwd",
    "%00",
    "a\\..\\b",
    "~root",
    "con",
)
GOOD: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}


def described(client: OpenAI, cases: int) -> dict[str, Any]:
    """What Schemathesis found."""
    tool = HERE / "bin" / "schemathesis"
    if not tool.exists():
        venv.create(HERE, with_pip=True)
        subprocess.run([HERE / "bin" / "pip", "install", "-q", "schemathesis"], check=True)
    root = str(client.base_url).rstrip("/").removesuffix("/v1")
    operations = httpx2.get(f"{root}/openapi.json").json()["paths"]
    count = sum(len(methods) for methods in operations.values())
    each = -(-cases // count)
    given = ["-c", "not_a_server_error", "--phases", "coverage,fuzzing", "-n", str(each), "--seed", "7"]
    given += ["--workers", "2"]
    header = ["-H", f"Authorization: Bearer {client.api_key}"]
    command = [str(tool), "run", f"{root}/openapi.json", *given, *header, "--no-color", "--request-timeout", "120"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    made = re.search(r"Test cases:\s*\n?\s*([\d,]+) generated", ran.stdout)
    broken = re.findall(r"Server error.*", ran.stdout)
    return {
        "operations": count,
        "cases": int(made[1].replace(",", "")) if made else None,
        "wrong": broken or ([] if ran.returncode == 0 else [ran.stdout[-1500:] + ran.stderr[-500:]]),
    }


def damaged(dice: random.Random) -> bytes:
    """A file of lines, some of them damaged."""
    lines = []
    for _ in range(dice.randint(1, 30)):
        line = json.dumps(GOOD).encode()
        kind = dice.randrange(9)
        if kind == 0:
            line = line[: dice.randrange(len(line))]
        elif kind == 1:
            line = bytes(dice.randrange(256) for _ in range(dice.randint(1, 200)))
        elif kind == 2:
            line = b"[" * dice.randint(1, 3000)
        elif kind == 3:
            line = json.dumps({"messages": dice.choice([None, 3, "x", {}, [None], [[]], [{"role": 1}]])}).encode()
        elif kind == 4:
            line = json.dumps({"messages": [{"role": "user", "content": "x" * dice.randint(1, 100_000)}]}).encode()
        elif kind == 5:
            line = b'{"messages": ' + b"9" * dice.randint(1, 5000) + b"}"
        elif kind == 6:
            line = line.replace(b"user", "ユーザー\u202e\x00".encode()).replace(b"hi", b"\xed\xa0\x80")
        lines.append(line)
    return dice.choice([b"\n", b"\r\n", b"\r", b"\n\n"]).join(lines)


def uploaded(client: OpenAI, web: psutil.Process, cases: int) -> dict[str, Any]:
    """Damaged files, and jobs of some of them."""
    answers, before = Counter[str](), web.memory_info().rss
    key = {"authorization": f"Bearer {client.api_key}"}
    with httpx2.Client(base_url=client.base_url, headers=key, timeout=120) as http:

        def send(number: int) -> str:
            dice = random.Random(number)
            name = dice.choice([*PATHS, "x.jsonl", "x" * 400, "", "\u202e.jsonl"])
            sent = http.post("files", data={"purpose": "fine-tune"}, files={"file": (name, damaged(dice))})
            if number % 100 == 0 and sent.status_code == 200:
                made = http.post("fine_tuning/jobs", json={"model": "smollm2-135m", "training_file": sent.json()["id"]})
                return f"{sent.status_code}, job {made.status_code}"
            return str(sent.status_code)

        with ThreadPoolExecutor(4) as pool:
            answers.update(pool.map(send, range(cases)))
        for path in PATHS:
            for place in (
                "files/{}",
                "files/{}/content",
                "models/{}",
                "fine_tuning/jobs/{}/events",
                "uploads/{}/cancel",
            ):
                got = http.request("POST" if place.endswith("cancel") else "GET", place.format(path))
                answers[f"path {got.status_code}"] += 1
                assert b"root:" not in got.content
    grown = web.memory_info().rss - before
    wrong = [f"{answer}: {count}" for answer, count in answers.items() if re.search(r"\b5\d\d\b", answer)]
    wrong += [f"the memory grew by {grown} bytes"] if grown > GROWTH_BYTES else []
    return {"cases": cases, "answers": dict(answers), "grown_megabytes": round(grown / 1e6, 1), "wrong": wrong}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=5000)
    args = parser.parse_args()
    with TemporaryDirectory() as folder:
        share_models(Path(folder))
        with service(Path(folder)) as (client, process):
            web = next(child for child in process.children() if "onsa.app.web" in child.cmdline())
            found = {"uploaded": uploaded(client, web, args.cases), "described": described(client, args.cases)}
            alive = web.is_running()
    for name, figures in found.items():
        print(f"{name:<10} {json.dumps({key: value for key, value in figures.items() if key != 'wrong'})}")
        for fault in figures["wrong"]:
            print(f"  WRONG {fault}")
    print(json.dumps({"benchmark": "abuse", "same_process": alive, **found}))
    return int(not alive or any(figures["wrong"] for figures in found.values()))


if __name__ == "__main__":
    sys.exit(main())
