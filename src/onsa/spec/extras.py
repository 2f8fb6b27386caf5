"""Extras: heavy libraries that only some recipes need, imported where they are used."""

from __future__ import annotations

import logging
from importlib import import_module
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


def hush(module: str) -> None:
    """Let a library log errors only: what it can do without, or casts by itself, is no matter of the user's."""
    logging.getLogger(module).setLevel(logging.ERROR)
