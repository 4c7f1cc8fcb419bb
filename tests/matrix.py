"""The part of a matrix of parameters that the fast tests have; the slow tests have all of it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import pytest


def crossed(*axes: Iterable[Any], every: int) -> list[Any]:
    """All combinations of values, of which those off every `every`-th diagonal are slow.

    If `every` is at most the length of every axis but one, each value is in a fast combination.
    """
    combinations = itertools.product(*(enumerate(axis) for axis in axes))
    return [
        pytest.param(
            *(value for _, value in each),
            marks=[pytest.mark.slow] if sum(place for place, _ in each) % every else [],
        )
        for each in combinations
    ]
