"""Recipes from YAML files, with KEY=VALUE overrides: strictly, every mistake named in one line.

    recipe = load_recipe("RECIPE.yaml", ["seed=1", "learning_rate=3e-4", "task.num_symbols=10"])

A recipe that stands in the package is found by its bare name. Deliberately knows no more of the
values than their types.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval_latentref.checkpoints.files import read_yaml
from lm_eval_latentref.checkpoints.packaged import PACKAGED_MODELS
from lm_eval_latentref.errors import LatentRefError
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
    hints = typing.get_type_hints(Recipe)
    for name in values:
        if name not in hints:
            near = difflib.get_close_matches(name, hints, n=1)
            advice = f"did you mean {near[0]}?" if near else f"the keys are {', '.join(hints)}"
            raise LatentRefError(f"{where}: unknown key {name!r}; {advice}")
    for name in ("output", "train"):
        if values.get(name) is None:
            raise LatentRefError(f"{where}: {name} is missing; add it, or give {name}=VALUE")
    return Recipe(**{name: _converted(name, value, hints[name]) for name, value in values.items()})


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


def _converted(name: str, value: Any, hint: Any) -> Any:
    """`value` as the type of its field. YAML reads 1e-3 as a string, so strings may be numbers."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in kinds:
        return None
    kind = next(kind for kind in kinds if kind is not type(None))
    origin = typing.get_origin(kind) or kind
    convert, wanted = _CONVERTERS[origin]
    try:
        return convert(value)
    except (TypeError, ValueError, OverflowError):
        raise LatentRefError(f"{name}={value!r}: it must be {wanted}") from None


def _as_int(value: Any) -> int:
    if isinstance(value, bool) or float(value) != int(float(value)):
        raise ValueError
    return int(float(value))


def _as_float(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError
    return float(value)


def _as_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise ValueError


def _as_str(value: Any) -> str:
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return str(value)
    raise ValueError


def _as_dict(value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    raise ValueError


def _as_names(value: Any) -> tuple[str, ...]:
    names = value.split(",") if isinstance(value, str) else value
    return tuple(map(_as_str, names))


_CONVERTERS: dict[Any, tuple[Callable[[Any], Any], str]] = {
    int: (_as_int, "an integer"),
    float: (_as_float, "a number"),
    bool: (_as_bool, "true or false"),
    str: (_as_str, "a string"),
    dict: (_as_dict, "KEY: VALUE pairs"),
    tuple: (_as_names, "a list of names"),
}
