"""A model of a hub: from the local cache where it is there whole, else downloaded, else a quick and clear no."""

from __future__ import annotations

import socket
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from onsa.models.weights import weight_files
from onsa.spec.errors import ModelError

WANTED = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
UNWANTED = ("*/*", "consolidated*")  # other formats and copies of the same weights
KNOCK_TIMEOUT_S = 2.0


def snapshot(name: str, revision: str | None, with_code: bool) -> Path:
    """The folder with a hub model's files.

    Args:
        with_code: also bring the model's own Python files, which ``trust_remote_code`` runs.

    Raises:
        ModelError: no such model, no permission, or the hub cannot be reached (known after a few seconds).
    """
    from huggingface_hub import constants, errors, snapshot_download

    patterns = [*WANTED, "*.py"] if with_code else [*WANTED]

    def download(local: bool) -> Path:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                local_files_only=local,
                allow_patterns=patterns,
                ignore_patterns=[*UNWANTED],
            )
        )

    try:
        folder = download(local=True)
        if _whole(folder):
            return folder
    except errors.LocalEntryNotFoundError:
        pass
    except errors.HFValidationError as error:
        raise ModelError.of("hub-model-name", key="model.name", value=name, reason=_first_line(error)) from None
    if not reachable():
        raise ModelError.of("hub-model-offline", key="model.name", value=name, hub=constants.ENDPOINT)
    try:
        return download(local=False)
    except errors.GatedRepoError:
        raise ModelError.of("hub-model-gated", key="model.name", value=name) from None
    except errors.RepositoryNotFoundError:
        raise ModelError.of("hub-model-missing", key="model.name", value=name) from None
    except errors.RevisionNotFoundError:
        raise ModelError.of("hub-revision-missing", key="model.revision", value=name, revision=revision) from None
    except Exception as error:  # the client passes on what its HTTP library raises
        raise ModelError.of("hub-model-failed", key="model.name", value=name, reason=_first_line(error)) from None


def reachable(timeout_s: float = KNOCK_TIMEOUT_S) -> bool:
    """Whether the hub may be asked (``HF_HUB_OFFLINE`` is not set) and it, or the proxy that leads there, answers."""
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return False
    parts = urlsplit(constants.ENDPOINT)
    proxy = getproxies().get(parts.scheme)
    if proxy and parts.hostname and not proxy_bypass(parts.hostname):
        parts = urlsplit(proxy)
    address = (parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
    answered: list[bool] = []

    def knock() -> None:
        try:
            socket.create_connection(address, timeout_s).close()
            answered.append(True)
        except OSError:
            pass

    # In a thread, since no time-out bounds how long a name is looked up.
    thread = Thread(target=knock, daemon=True)
    thread.start()
    thread.join(timeout_s + 0.5)
    return bool(answered)


def _whole(folder: Path) -> bool:
    """Whether an earlier download, perhaps of a tokenizer alone, brought all of it."""
    try:
        return (folder / "config.json").is_file() and bool(weight_files(folder))
    except ModelError:
        return False


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
