"""`latentref leaderboard` on many samples: memory and page grow with what they must."""

from __future__ import annotations

import json
import subprocess
import sys

import leaderboard as script
import pytest


def measured(*arguments):
    """The record of one run, in a process of its own: peak memory is a process's."""
    command = [sys.executable, script.__file__, *arguments]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.slow
def test_memory_and_page_of_a_real_board_are_within_bounds():
    run = measured("--runs", "4", "--tasks", "4", "--documents", "1000")
    assert 0.03 < run["gigabytes_read"] < 0.06
    assert run["peak_gigabytes"] < 0.5
    assert run["page_megabytes"] < 5


def test_the_page_of_two_hundred_runs_is_small():
    run = measured("--runs", "200", "--tasks", "5", "--documents", "100", "--no_samples")
    assert run["page_megabytes"] < 5
