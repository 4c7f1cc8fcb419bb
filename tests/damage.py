"""Damages any content: cut, overwritten, with bytes put in, or with a value of it replaced."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import yaml
from hypothesis import strategies as st

NASTY: list[Any] = [
    *(None, True, -1, 0, 1.5, 10**30, 10**400, "", "\x1b[31m", "\ud800", "a\nb", "x" * 5000),
    *([], {}, [None], [[]], {"": {}}, float("nan"), float("inf"), -0.0, "../..", "/", "."),
]

Damage = Callable[[bytes], bytes]


def _cut(at: float) -> Damage:
    return lambda content: content[: int(at * len(content))]


def _overwrite(at: float, piece: bytes) -> Damage:
    def damage(content: bytes) -> bytes:
        place = int(at * len(content))
        return content[:place] + piece + content[place + len(piece) :]

    return damage


def _insert(at: float, piece: bytes) -> Damage:
    return lambda content: (
        content[: int(at * len(content))] + piece + content[int(at * len(content)) :]
    )


def _replace_value(number: int, nasty: int) -> Damage:
    """One value of a JSON or YAML file, of a line of JSON lines, becomes another."""

    def damage(content: bytes) -> bytes:
        text = content.decode("utf-8", "replace")
        lines = text.splitlines(keepends=True)
        for candidate in (text, lines[number % len(lines)] if lines else ""):
            for parse, dump in ((json.loads, json.dumps), (yaml.safe_load, yaml.safe_dump)):
                try:
                    value = parse(candidate)
                except (ValueError, yaml.YAMLError):
                    continue
                if isinstance(value, dict | list) and value:
                    changed = dump(_changed(value, number, NASTY[nasty]))
                    return text.replace(candidate, changed, 1).encode("utf-8", "surrogatepass")
        return content[::-1]

    return damage


def _changed(value: Any, number: int, nasty: Any) -> Any:
    """`value` with its entry `number`, or one within that, replaced or removed."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key, deeper = keys[number % len(keys)], number // len(keys)
    inner = value[key]
    if isinstance(inner, dict | list) and inner and deeper % 3:
        return _with(value, key, _changed(inner, deeper, nasty))
    if deeper % 7 == 6 and isinstance(value, dict):
        return {other: value[other] for other in keys if other != key}
    return _with(value, key, nasty)


def _with(value: Any, key: Any, new: Any) -> Any:
    if isinstance(value, dict):
        return {**value, key: new}
    return [*value[:key], new, *value[key + 1 :]]


PLACES = st.floats(0, 1, exclude_max=True)

PIECES = st.one_of(
    st.binary(min_size=1, max_size=8),
    st.sampled_from([b"\xff", b"\x00" * 64, b"[" * 5000, b"{" * 5000, b"9" * 400, b"NaN"]),
)

DAMAGES: st.SearchStrategy[Damage] = st.one_of(
    st.builds(_cut, PLACES),
    st.builds(_overwrite, PLACES, PIECES),
    st.builds(_insert, PLACES, PIECES),
    st.builds(_replace_value, st.integers(0, 10_000), st.integers(0, len(NASTY) - 1)),
)
