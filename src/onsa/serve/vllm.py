"""vLLM as the engine that answers: each network is a process of vLLM's own, behind a socket that has no name outside
this machine and that this user alone can open.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from onsa.adaptations.base import Adaptation, whole_adapter
from onsa.models.fetch import Located, locate
from onsa.models.load import load_tokenizer, quiet
from onsa.serve.adapters import Adapter, obstacles, settings
from onsa.serve.predictor import MODEL
from onsa.serve.remote import BASE, Remote
from onsa.serve.residents import Resident, resident
from onsa.serve.stacked import MOST_RANK as RANK
from onsa.serve.stacked import NAME
from onsa.spec.errors import MachineError, ModelError
from onsa.spec.extras import program
from onsa.spec.recipe import Recipe

COMMAND = "vllm"
SHARE = 0.9  # of a GPU's memory, for all networks together
BATCH_ADAPTERS, KEPT_ADAPTERS = 8, 32  # that answer in one batch, and that stay in memory
READY_S = 1800.0
POLL_S = 0.2
LEAVE_S = 30.0
ARITHMETIC = {"fp32": "float32", "bf16": "bfloat16"}
# Grammars by llguidance, in which JSON has no spaces, as with Onsa's own engine.
GRAMMARS = {"backend": "guidance", "disable_any_whitespace": True}
ENVIRONMENT = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}


class Vllm:
    """Opens networks as processes of vLLM's.

    Args:
        networks: that share a GPU's memory, in equal parts.

    Raises:
        MachineError: vLLM is not installed.
    """

    def __init__(self, networks: int) -> None:
        self._command = program(COMMAND, "--engine vllm")
        self._share = SHARE / networks

    def base(self, recipe: Recipe) -> Resident:
        """A base, over which adapters answer."""
        return self._opened(recipe, locate(recipe.model))

    def alone(self, folder: Path, recipe: Recipe) -> Resident:
        """A model that was tuned as a whole.

        Raises:
            ModelError: it is an adapter that vLLM cannot take.
        """
        adaptation = cast(Adaptation, recipe.adaptation)
        if adaptation.adapter:
            raise ModelError.of("vllm-adapter", key="model", method=adaptation.kind, rank=RANK)
        saved = str(folder / MODEL)
        return self._opened(recipe, locate(recipe.model.model_copy(update={"name": saved})))

    def _opened(self, recipe: Recipe, start: Located) -> Resident:
        if recipe.model.quantize is not None:
            raise ModelError.of("vllm-quantised", key="model", value=recipe.model.quantize)
        tokenizer = load_tokenizer(start.folder, recipe.model)
        process = Server(self._serving(recipe, start))
        adapters: dict[str, Adapter] = {}
        answers = Remote(
            process,
            process.context,
            start.config.get("vocab_size", len(tokenizer)),
            lambda name: adapters[name].folders[0] / MODEL,
        )
        return resident(answers, tokenizer, _generation(start.folder), recipe, check, adapters)

    def _serving(self, recipe: Recipe, start: Located) -> list[str]:
        command = [self._command, "serve", str(start.folder), "--served-model-name", BASE]
        command += ["--dtype", ARITHMETIC[recipe.train.precision or "fp32"]]
        command += ["--max-model-len", "auto", "--gpu-memory-utilization", f"{self._share:.3f}"]
        command += ["--enable-lora", "--max-lora-rank", str(RANK), "--max-loras", str(BATCH_ADAPTERS)]
        command += ["--max-cpu-loras", str(KEPT_ADAPTERS), "--structured-outputs-config", json.dumps(GRAMMARS)]
        # Its own defaults, and not what a base's authors think good: a request says what it wants.
        command += ["--generation-config", "vllm", "--enable-prompt-tokens-details"]
        return [*command, *(["--trust-remote-code"] if recipe.model.trust_remote_code else [])]


class Server:
    """A process of vLLM's, which is there once this is made.

    Raises:
        MachineError: it ends before it answers.
    """

    def __init__(self, command: list[str]) -> None:
        self._folder = TemporaryDirectory(prefix="onsa-vllm-")
        self.socket = f"{self._folder.name}/socket"
        self._log = Path(self._folder.name, "log")
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "onsa.store.kept", str(os.getpid()), *command, "--uds", self.socket],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **ENVIRONMENT},
                start_new_session=True,
            )
        try:
            self.context = self._ready()
        except BaseException:
            self.end()
            raise

    @property
    def alive(self) -> bool:
        """Whether it is there."""
        return self._process.poll() is None

    def end(self) -> None:
        """End it."""
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(LEAVE_S)
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()

    def _ready(self) -> int:
        """Wait until it answers; the tokens that its network looks at."""
        import httpx2

        deadline = time.monotonic() + READY_S
        transport = httpx2.HTTPTransport(uds=self.socket)
        with httpx2.Client(transport=transport, base_url="http://network", timeout=10.0) as client:
            while self.alive and time.monotonic() < deadline:
                with suppress(httpx2.TransportError):
                    if Path(self.socket).exists() and client.get("/health").status_code == 200:
                        return int(client.get("/v1/models").json()["data"][0]["max_model_len"])
                time.sleep(POLL_S)
        raise MachineError.of("vllm-ended", reason=self._last_words())

    def _last_words(self) -> str:
        """What it said of its end: the last line that names an error, or the last at all."""
        lines = [line.strip() for line in self._log.read_text(encoding="utf-8", errors="replace").splitlines()]
        said = [line for line in lines if line]
        errors = [line for line in said if "Error" in line]
        return (errors or said or ["-"])[-1]


def check(adapter: Adapter) -> None:
    """Whether vLLM can take an adapter.

    Raises:
        ValueError: it is not LoRA in its plain form, of linear layers alone, up to a rank.
    """
    from safetensors import safe_open

    (folder,) = adapter.folders
    found = obstacles(folder, adapter.recipe)
    if found:
        raise ValueError(f"The adapter {adapter.name} is not LoRA in its plain form: {', '.join(found)}.")
    said = settings(folder)
    rank = max([said["r"], *(said.get("rank_pattern") or {}).values()])
    if rank > RANK:
        raise ValueError(f"The adapter {adapter.name} has rank {rank}; {RANK} is the most.")
    with safe_open(whole_adapter(folder / MODEL), "pt") as file:
        strange = [key for key in file.keys() if NAME.fullmatch(key) is None]  # noqa: SIM118
    if strange:
        raise ValueError(f"The adapter {adapter.name} holds {strange[0]}, which is no factor of a linear layer.")


def _generation(folder: Path) -> Any:
    """How a base generates: as its authors say, or as follows from its configuration."""
    from transformers import AutoConfig, GenerationConfig

    with quiet():
        try:
            return GenerationConfig.from_pretrained(folder)
        except OSError:
            return GenerationConfig.from_model_config(AutoConfig.from_pretrained(folder))
