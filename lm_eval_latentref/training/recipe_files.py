"""Recipes from YAML files, with KEY=VALUE overrides: strictly, every mistake named in one line.

    recipe = load_recipe("RECIPE.yaml", ["seed=1", "learning_rate=3e-4", "task.num_symbols=10"])

A recipe that stands in the package is found by its bare name. Deliberately knows no more of the
values than their types.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval_latentref.checkpoints.files import read_yaml
from lm_eval_latentref.checkpoints.packaged import PACKAGED_MODELS
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.mapping import from_mapping
from lm_eval_latentref.training.recipe import Recipe

RECIPES = Path(__file__).parent / "recipes"


def load_recipe(path: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in the YAML file `path`, or of that name in the package, with KEY=VALUE overrides.

    Keys of the dictionaries are written with a dot: `config.hidden_size=64`. Raises LatentRefError
    that names the file or override and what is allowed.
    """
    values = parse_overrides(overrides, read_yaml(_find(path)))
    return parse_recipe(values, where=path)


def parse_overrides(
    overrides: Sequence[str], values: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """`values` with KEY=VALUE `overrides`, whose values are read as YAML."""
    changed = dict(values or {})
    for override in overrides:
        _override(changed, override)
    return changed


def parse_recipe(values: Mapping[str, Any], *, where: str = "the recipe") -> Recipe:
    """The recipe of `values`, whose strings may be numbers as a command line gives them."""
    return from_mapping(Recipe, values, where)


def _find(path: str) -> Path:
    for candidate in (
        *(Path(path), RECIPES / path, RECIPES / f"{path}.yaml"),
        PACKAGED_MODELS / path,  # such as hops-small/recipe.yaml
    ):
        if candidate.is_file():
            return candidate
    own = sorted(file.stem for file in RECIPES.glob("*.yaml"))
    raise LatentRefError(
        f"{path}: no such recipe; give a YAML file or one of the package's: {', '.join(own)}"
    )


def _override(values: dict[str, Any], override: str) -> None:
    import yaml

    name, equals, text = override.partition("=")
    if not equals or not name:
        raise LatentRefError(f"{override!r} is no override; write KEY=VALUE, e.g. seed=1")
    try:
        value = yaml.safe_load(text)
    except Exception:  # whatever is no YAML is a text
        value = text
    *parents, last = name.split(".")
    inner = values
    for parent in parents:
        if not isinstance(inner.get(parent) or {}, dict):
            raise LatentRefError(f"{override!r}: {parent} has no keys of its own; write {parent}=")
        inner[parent] = dict(inner.get(parent) or {})
        inner = inner[parent]
    inner[last] = value
