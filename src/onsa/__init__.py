"""Onsa tunes pretrained models to a task and proves whether the tuning paid.

``onsa.train(recipe)`` yields events, ``onsa.run(recipe)`` returns the finished run, ``onsa.load(run).predict(rows)``
answers. Names are imported when they are first used, so that ``import onsa`` stays fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onsa.programs.check import check as check
    from onsa.programs.predict import load as load
    from onsa.programs.train import finish as run
    from onsa.programs.train import train as train
    from onsa.spec.errors import OnsaError as OnsaError
    from onsa.spec.recipe import Recipe as Recipe
    from onsa.spec.recipe import read_recipe as read_recipe

__version__ = "0.1.0"

_WHERE = {
    "Recipe": ("onsa.spec.recipe", "Recipe"),
    "read_recipe": ("onsa.spec.recipe", "read_recipe"),
    "OnsaError": ("onsa.spec.errors", "OnsaError"),
    "check": ("onsa.programs.check", "check"),
    "train": ("onsa.programs.train", "train"),
    "run": ("onsa.programs.train", "finish"),
    "load": ("onsa.programs.predict", "load"),
}
__all__ = ["OnsaError", "Recipe", "check", "load", "read_recipe", "run", "train"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'onsa' has no attribute {name!r}")
    module, attribute = _WHERE[name]
    return getattr(import_module(module), attribute)
