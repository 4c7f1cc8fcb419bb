"""Builds dataclasses from the values in files and command lines; reports mistakes in one line.

    from_mapping(Recipe, {"output": "out", "train": "graph", "seed": "3"}, where="graph.yaml")
    from_mapping(Manifest, {"latent_steps": 6}, where="out/latentref.json", reads_text=False)

It checks names and types; the dataclass checks ranges.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from lm_eval_latentref.errors import LatentRefError

T = TypeVar("T")


def from_mapping(
    cls: type[T],
    values: Mapping[str, Any],
    where: str = "",
    *,
    domains: Mapping[str, str] | None = None,
    reads_text: bool = True,
) -> T:
    """An instance of the dataclass `cls` with these `values`, converted to the fields' types.

    Args:
        where: the file or other source of the values, for messages.
        domains: for each field, a description of the allowed values for messages; default: its
            type.
        reads_text: whether text is converted: "6" to 6, "a,b" to two names. A command line gives
            text only, and YAML reads 1e-3 as text.

    Raises:
        LatentRefError: an unknown key (the message names the nearest), a missing key, or a value of
            another type. A bool is not an integer; NaN and infinity are not numbers.
    """
    prefix = f"{where}: " if where else ""
    hints = typing.get_type_hints(cls)
    for name in values:
        if name not in hints:
            near = difflib.get_close_matches(str(name), hints, n=1)
            advice = f"did you mean {near[0]}?" if near else f"the keys are {', '.join(hints)}"
            raise LatentRefError(f"{prefix}unknown key {name!r}; {advice}")
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        has_default = (field.default, field.default_factory) != (dataclasses.MISSING,) * 2
        if not has_default and values.get(field.name) is None:
            raise LatentRefError(f"{prefix}{field.name} is missing; give a value for {field.name}")
    converted = {}
    for name, value in values.items():
        kinds = _kinds(hints[name])
        try:
            converted[name] = _converted(value, kinds, reads_text)
        except (TypeError, ValueError, OverflowError):
            domain = (domains or {}).get(name) or " or ".join(
                _CONVERTERS[kind][1] for kind in kinds if kind is not type(None)
            )
            raise LatentRefError(f"{prefix}{name}={shown(value)}: it must be {domain}") from None
    try:
        return cls(**converted)
    except LatentRefError as error:
        raise LatentRefError(f"{prefix}{error}") from error


def _kinds(hint: Any) -> list[Any]:
    """The plain types that an annotation allows; for `tuple[str, ...] | None`, tuple and None."""
    union = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return [kind if kind in _CONVERTERS else typing.get_origin(kind) or kind for kind in union]


def _converted(value: Any, kinds: list[Any], reads_text: bool) -> Any:
    if value is None and type(None) in kinds:
        return None
    for kind in kinds:
        if kind is not type(None):
            try:
                return _CONVERTERS[kind][0](value, reads_text)
            except (TypeError, ValueError, OverflowError):
                continue
    raise ValueError


def shown(value: object) -> str:
    """The repr of `value` for a message, cut to 80 characters."""
    try:
        text = repr(value)
    except ValueError:  # Python does not print integers of more than 4,300 digits
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:80]}..."


def _as_int(value: Any, reads_text: bool) -> int:
    if type(value) is int:
        return value
    number = _as_float(value, reads_text)
    if number != int(number):
        raise ValueError
    return int(number)


def _as_float(value: Any, reads_text: bool) -> float:
    if isinstance(value, bool) or not (reads_text or isinstance(value, (int, float))):
        raise TypeError
    number = value if isinstance(value, float) else float(value)
    if not math.isfinite(number):
        raise ValueError
    return number


def _as_bool(value: Any, reads_text: bool) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _as_str(value: Any, reads_text: bool) -> str:
    # A folder called 2024 is a number in YAML and on lm-eval's command line.
    if not isinstance(value, (str, int, float) if reads_text else str) or isinstance(value, bool):
        raise TypeError
    return str(value)


def _as_dict(value: Any, reads_text: bool) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise TypeError
    return value


def _as_names(value: Any, reads_text: bool) -> tuple[str, ...]:
    names = value.split(",") if reads_text and isinstance(value, str) else value
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise TypeError
    return tuple(names)


def _as_ids(value: Any, reads_text: bool) -> list[int]:
    if not isinstance(value, list) or not all(type(item) is int and item >= 0 for item in value):
        raise TypeError
    return value


_CONVERTERS: dict[Any, tuple[Callable[[Any, bool], Any], str]] = {
    int: (_as_int, "an integer"),
    float: (_as_float, "a finite number"),
    bool: (_as_bool, "true or false"),
    str: (_as_str, "text"),
    dict: (_as_dict, "KEY: VALUE pairs"),
    list: (lambda value, reads_text: list(_as_names(value, reads_text)), "a list of names"),
    tuple: (_as_names, "a list of names"),
    list[int]: (_as_ids, "a list of token ids"),
}
