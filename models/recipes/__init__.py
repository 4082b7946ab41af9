"""Kinds of networks by name. A new kind is one module here and one line in ``RECIPES``."""

from __future__ import annotations

import difflib

from models.errors import TrainingError
from models.networks.inversionnet import LAYOUTS
from models.recipes.base import Recipe
from models.recipes.centralised import Centralised
from models.recipes.epic import Epic
from models.recipes.federated import Federated

RECIPES: dict[str, Recipe] = {
    recipe.kind: recipe
    for recipe in (
        Epic(),
        *(Centralised(layout) for layout in LAYOUTS),
        Federated(),
    )
}


def recipe_of(kind: str) -> Recipe:
    """The recipe of ``kind``. Raises ``TrainingError`` for an unknown one."""
    if kind not in RECIPES:
        close = difflib.get_close_matches(kind, RECIPES, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise TrainingError(f"train: expected one of {', '.join(RECIPES)}; got {kind!r}{hint}")
    return RECIPES[kind]
