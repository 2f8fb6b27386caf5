"""A GGUF file as a folder of safetensors, once: from then on it loads in half a second, and trains like any other.

The conversion runs in a process of its own (``python -m onsa.models.from_gguf FILE FOLDER``), which takes its bars, its
notes and its memory with it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from onsa.models.shelf import Progress
from onsa.spec.errors import ModelError
from onsa.spec.messages import say
from onsa.store.atomic import ensure_space

GROWTH = 4  # four to five bits a weight become sixteen
QUANTISATION_MARKS = ("hf_quantizer", "is_quantized", "quantization_method")


def convert(gguf: Path, into: Path, progress: Progress) -> None:
    """Write the model and tokenizer of a GGUF file into a folder, in bf16.

    Raises:
        ModelError: transformers cannot read the file; the message says why.
        MachineError: the disk has no room.
    """
    ensure_space(into, GROWTH * gguf.stat().st_size)
    progress(say("fetch-convert", file=gguf.name))
    ended = subprocess.run(
        [sys.executable, "-m", "onsa.models.from_gguf", str(gguf), str(into)],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},  # the file has all there is to know
    )
    if ended.returncode != 0:
        lines = [line.strip() for line in ended.stderr.splitlines() if line.strip()]
        reason = lines[-1] if lines and ended.returncode > 0 else f"exit {ended.returncode}"
        raise ModelError.of("gguf-unreadable", file=str(gguf), reason=reason)


def _convert_here(gguf: Path, into: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    network = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The weights are plain now; the marks that say otherwise would keep the model from being trained or saved.
    for mark in QUANTISATION_MARKS:
        vars(network).pop(mark, None)
    vars(network.config).pop("quantization_config", None)
    network.to(torch.bfloat16).save_pretrained(into)
    tokenizer.save_pretrained(into)


if __name__ == "__main__":
    _convert_here(Path(sys.argv[1]), Path(sys.argv[2]))
