"""Extras: heavy libraries that only some recipes need, imported where they are used."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

from onsa.spec.errors import MachineError


def require(module: str, extra: str, key: str) -> ModuleType:
    """A library of an extra.

    Args:
        key: the recipe's key that needs it.

    Raises:
        MachineError: it is not installed; the message says how to install it.
    """
    hush(module)
    try:
        return import_module(module)
    except ImportError:
        raise MachineError.of("extra-missing", module=module, extra=extra, key=key) from None


def program(name: str, option: str) -> str:
    """The path of a program that an extra brings: beside Python, or where the shell finds it.

    Args:
        option: what needs it.

    Raises:
        MachineError: there is none.
    """
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which(name)
    if found is None:
        raise MachineError.of("program-missing", name=name, option=option)
    return found


def hush(module: str) -> None:
    """Let a library log errors only: what it can do without, or casts by itself, is no matter of the user's."""
    logging.getLogger(module).setLevel(logging.ERROR)
