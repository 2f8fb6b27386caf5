"""The ``openai`` package's own tests of the routes that are served here, against a running service.

Run as ``make conformance``; further words are handed to pytest. The package's source comes from the package index, at
the version that is pinned, into an environment of its own. Before each test all that it asks for by name is put back
(``seeded.py``). Prints how many cases passed, and each that did not, with the reason where it is one that contradicts
the specification itself; exits with 1 where another fails.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tarfile
import time
import venv
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.request import urlopen

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / ".venv" / "conformance"
TESTS = (
    *("test_files.py", "test_uploads.py", "uploads", "test_models.py", "fine_tuning"),
    *("test_embeddings.py", "test_completions.py", "chat"),
)
NEEDED = ("pytest", "pytest-asyncio", "inline-snapshot", "sqlalchemy", "psutil", "fsspec", "pydantic")
# Parts of a test's name, and why what it asks for is none of the specification's.
CONTRADICTIONS = {
    "test_files.py*test_method_list_with_all_params": "asks for 0 files; the specification says 1 to 10,000",
    "test_uploads.py*test_method_complete_with_all_params": "says that the MD5 of nothing is 'md5'",
    "test_completions.py*all_params_overload_1": "takes no null for the log-probability of a first token",
    "test_embeddings.py*[strict]": "the client asks for base64, and checks for numbers before it decodes them",
    "test_embeddings.py*[aiohttp]": "the same",
}
ANSWER_TOKENS = "8"


def environment() -> tuple[Path, Path]:
    """The interpreter, and the folder of the package's source, made where they are missing."""
    name = f"openai-{version('openai')}"
    python, source = HERE / "bin" / "python", HERE / name
    if not (source / ".ready").exists():
        venv.create(HERE, with_pip=True, clear=True)
        pip = [python, "-m", "pip", "-q", "--disable-pip-version-check"]
        with TemporaryDirectory() as folder:
            wanted = [name.replace("-", "=="), "--no-deps", "--no-binary", "openai", "-d", folder]
            subprocess.run([*pip, "download", *wanted], check=True)
            with tarfile.open(next(Path(folder).glob("*.tar.gz"))) as packed:
                packed.extractall(HERE, filter="data")
        subprocess.run([*pip, "install", f"{source}[aiohttp]", *NEEDED], check=True)
        (source / ".ready").touch()
    return python, source


def main(arguments: list[str]) -> int:
    python, source = environment()
    with TemporaryDirectory(prefix="onsa-") as home:
        shared = Path(os.environ.get("ONSA_HOME") or "~/.onsa").expanduser() / "models"
        shared.mkdir(parents=True, exist_ok=True)
        (Path(home) / "models").symlink_to(shared)
        environ = {**os.environ, "ONSA_HOME": home, "ONSA_LANG": "en"}
        command = [sys.executable, "-c", "from onsa.app.cli import main; main()"]
        serve = [*command, "serve", "--port", "0", "--jobs", "0", "--answer-tokens", ANSWER_TOKENS]
        with (Path(home) / "said.txt").open("w+") as said:
            service = subprocess.Popen(serve, env=environ, stdout=said, stderr=subprocess.STDOUT)
            try:
                url = _address(Path(said.name))
                return _tested(python, source, {**environ, "TEST_API_BASE_URL": url}, arguments)
            finally:
                service.send_signal(signal.SIGINT)
                service.wait()


def _address(said: Path) -> str:
    """Where the service listens, once it is well."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = re.search(r"http://\S+/v1", said.read_text())
        if found:
            try:
                with urlopen(found[0].replace("/v1", "/healthz")):
                    return found[0]
            except OSError:
                pass
        time.sleep(0.1)
    raise SystemExit(f"the service did not start:\n{said.read_text()}")


def _tested(python: Path, source: Path, environ: dict[str, str], arguments: list[str]) -> int:
    path = os.pathsep.join(map(str, (ROOT / "src", ROOT / "tests")))
    plain = ["-o", "addopts=", "-o", "filterwarnings=default", "-p", "clients.plugin", "-q", "--tb=line", "-rf"]
    tests = [f"tests/api_resources/{name}" for name in TESTS]
    command = [python, "-m", "pytest", *plain, *tests, *arguments]
    ran = subprocess.run(
        command, cwd=source, env={**environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    failed = re.findall(r"^FAILED (\S+)", ran.stdout, re.MULTILINE)
    others = []
    for name in failed:
        reason = next((why for part, why in CONTRADICTIONS.items() if _fits(part, name)), None)
        print(f"{name}: {reason or 'FAILED'}")
        others += [] if reason else [name]
    print(ran.stdout.rstrip().splitlines()[-1])
    if others or (not failed and ran.returncode):
        print(ran.stdout[-8000:], ran.stderr[-2000:])
        return 1
    return 0


def _fits(part: str, name: str) -> bool:
    return re.search(re.escape(part).replace(r"\*", ".*"), name) is not None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
