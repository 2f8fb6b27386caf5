"""OpenAI's package for Python, its asynchronous client, and its command line."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import openai

MODEL = "smollm2-135m"
ROWS = [
    {"messages": [{"role": "user", "content": f"Add {n} and 1"}, {"role": "assistant", "content": str(n + 1)}]}
    for n in range(12)
]


def main() -> None:
    client = openai.OpenAI()
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    with open("rows.jsonl", "rb") as rows:
        file = client.files.create(file=rows, purpose="fine-tune")
    assert client.files.content(file.id).read() == Path("rows.jsonl").read_bytes()
    job = client.fine_tuning.jobs.create(model=MODEL, training_file=file.id, method={"type": "supervised"})
    assert job.id in [one.id for one in client.fine_tuning.jobs.list()]
    assert client.fine_tuning.jobs.list_events(job.id, limit=2).data
    assert client.fine_tuning.jobs.cancel(job.id).id == job.id
    said = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Say hello."}], max_tokens=8, temperature=0
    )
    stream = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Say hello."}], max_tokens=8, temperature=0, stream=True
    )
    whole = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert whole == said.choices[0].message.content
    assert len(client.embeddings.create(model="minilm-l6", input="hello").data[0].embedding) == 384
    asyncio.run(at_once(whole))
    if openai.__version__.startswith("2."):  # later ones have no command line
        by_command()
    print(f"openai {openai.__version__}: {whole!r}")


def by_command() -> None:
    said = said_by("chat.completions.create", "-m", MODEL, "-g", "user", "Hi", "-M", "4")
    assert said.strip() and MODEL in said_by("models.list")


def said_by(*arguments: str) -> str:
    command = [sys.executable, "-m", "openai", "api", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


async def at_once(wanted: str) -> None:
    async with openai.AsyncOpenAI() as client:
        messages = [{"role": "user", "content": "Say hello."}]
        asked = [
            client.chat.completions.create(model=MODEL, messages=messages, max_tokens=8, temperature=0)
            for _ in range(4)
        ]
        said = [one.choices[0].message.content for one in await asyncio.gather(*asked)]
    assert all(said) and wanted


main()
