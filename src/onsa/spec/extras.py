"""Extras: heavy libraries that only some recipes need, imported where they are used."""

from __future__ import annotations

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
    try:
        return import_module(module)
    except ImportError:
        raise MachineError.of("extra-missing", module=module, extra=extra, key=key) from None
