"""Every adaptation has a page that names its keys, and whose recipes are recipes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from onsa.adaptations.base import Adaptation
from onsa.spec import registry
from onsa.spec.recipe import parse_recipe

PAGES = Path(__file__).parents[2] / "docs" / "adaptations"


def test_every_page_is_of_a_kind() -> None:
    assert {page.stem for page in PAGES.glob("*.md")} == set(registry.kinds("adaptation"))


@pytest.mark.parametrize("kind", list(registry.kinds("adaptation")))
def test_the_page_tells_of_every_key(kind: str) -> None:
    page = (PAGES / f"{kind}.md").read_text(encoding="utf-8")
    own = set(registry.load("adaptation", kind).model_fields) - set(Adaptation.model_fields)
    assert not [name for name in own if not re.search(rf"^\|[^|]*`{name}`", page, re.MULTILINE)]
    recipes = [parse_recipe(yaml.safe_load(block)) for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)]
    assert recipes and all(recipe.adaptation and recipe.adaptation.kind == kind for recipe in recipes)
