"""Clients as others wrote them, against a running service, each in an environment of its own.

Run as ``make clients``; names of clients choose some. Every client does what its users do with it: files and jobs where
it has them, a chat, a stream, an embedding, a score. Prints a line for each, and exits with 1 where one failed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.served import service, share_models  # noqa: E402

HERE = ROOT / ".venv" / "clients"
SCRIPTS = Path(__file__).parent / "scripts"
# What is installed for each, and the script that is run with it.
PYTHON = {
    "openai": (["openai==3.57.0"], "with_openai.py"),
    "openai-2": (["openai==2.34.0"], "with_openai.py"),
    "litellm": (["litellm"], "with_litellm.py"),
    "llm": (["llm"], "with_llm.py"),
    "langchain": (["langchain-openai"], "with_langchain.py"),
    "lm-eval": (["lm-eval[api]", "transformers", "datasets"], "with_lm_eval.py"),
}
NODE = "node"


def python(name: str) -> list[str]:
    """The command of a client in Python, installed where it is missing."""
    needed, script = PYTHON[name]
    folder = HERE / name
    if not (folder / ".ready").exists():
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([folder / "bin" / "pip", "install", "-q", *needed], check=True, stderr=subprocess.DEVNULL)
        (folder / ".ready").touch()
    return [str(folder / "bin" / "python"), str(SCRIPTS / script)]


def node() -> list[str]:
    """The command of the client for Node."""
    folder = HERE / NODE
    if not (folder / "node_modules" / "openai").exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "install", "--silent", "openai@6"], cwd=folder, check=True)
    shutil.copy(SCRIPTS / "with_node.mjs", folder)
    return ["node", str(folder / "with_node.mjs")]


def main(arguments: list[str]) -> int:
    wanted, failed = arguments or [*PYTHON, NODE], 0
    with TemporaryDirectory() as folder:
        share_models(Path(folder))
        with service(Path(folder)) as (client, _):
            environ = {
                **os.environ,
                "OPENAI_BASE_URL": str(client.base_url).rstrip("/"),
                "OPENAI_API_KEY": client.api_key,
                "TOKENIZER": str((Path(folder) / "models" / "smollm2-135m").resolve()),
                "PATH": os.pathsep.join([str(HERE), os.environ["PATH"]]),
                "HF_HUB_OFFLINE": "1",
            }
            for name in wanted:
                command = node() if name == NODE else python(name)
                place = Path(folder) / name
                place.mkdir()
                ran = subprocess.run(
                    command, env=environ, cwd=place, capture_output=True, text=True, check=False, timeout=900
                )
                print(f"{name:<12} {'passed' if ran.returncode == 0 else 'FAILED'}  {_last(ran.stdout)}", flush=True)
                if ran.returncode:
                    print(ran.stdout[-2000:], ran.stderr[-3000:])
                    failed += 1
    return int(failed > 0)


def _last(said: str) -> str:
    return said.strip().splitlines()[-1] if said.strip() else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
