"""Pairs of runs for tests of the gate: what a candidate got right, and how it is written."""

from __future__ import annotations

import pytest
from lm_eval_files import write_run

NUM = 400

RIGHT = [1.0] * 300 + [0.0] * 100

WORSE = [0.0] * 40 + [1.0] * 260 + [0.0] * 100

NOISY = [0.0] * 12 + [1.0] * 300 + [0.0] * 88  # 12 lost, 12 gained


@pytest.fixture
def runs(tmp_path):
    """The folder of a run with the given values, by task."""

    def folder(name, tasks, **options):
        if not isinstance(tasks, dict):
            tasks = {"t": {"acc": tasks}}
        write_run(tmp_path / name, tasks, **options)
        return tmp_path / name

    return folder
