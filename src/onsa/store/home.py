"""The folder in which Onsa keeps everything: ``ONSA_HOME``, else ``~/.onsa``.

::

    runs/      a folder a run: recipe, checkpoints, reports
    models/    packaged and converted models, ready to load
    cache/     what can be made again
    onsa.db    the store, unless ONSA_DB names another
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from onsa.spec.errors import MachineError

FOLDERS = ("runs", "models", "cache")


def home() -> Path:
    """Onsa's folder, made with its subfolders where they are missing.

    Raises:
        MachineError: the folder cannot be made or written; the message names it.
    """
    folder = Path(os.environ.get("ONSA_HOME") or "~/.onsa").expanduser().absolute()
    try:
        for name in FOLDERS:
            (folder / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError.of("home-unwritable", folder=str(folder), reason=error.strerror or str(error)) from None
    for place in (folder, *(folder / name for name in FOLDERS)):
        if not os.access(place, os.W_OK | os.X_OK):
            raise MachineError.of("home-unwritable", folder=str(place), reason=os.strerror(errno.EACCES))
    return folder
