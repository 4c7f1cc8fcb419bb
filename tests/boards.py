"""Runs for tests of the leaderboard: rows that differ by a number of documents."""

from __future__ import annotations

import numpy as np

BASE = (np.random.default_rng(0).random(400) < 0.5).astype(float)


def turned(num, *, to=1.0):
    """`BASE` with the first `num` documents that are not `to` turned to it."""
    values = BASE.copy()
    values[np.flatnonzero(values != to)[:num]] = to
    return values.tolist()


def by_name(board):
    return {row.name: row for row in board.rows}
