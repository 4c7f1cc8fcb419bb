"""`latentref leaderboard` on many samples: memory and page grow with what they must."""

from __future__ import annotations

import json

import leaderboard as script


def measured(capsys, *arguments):
    assert script.main([*arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_memory_and_page_of_a_real_board_are_within_bounds(capsys):
    run = measured(capsys, "--runs", "4", "--tasks", "4", "--documents", "1000")
    assert 0.03 < run["gigabytes_read"] < 0.06
    assert run["peak_gigabytes"] < 0.5
    assert run["page_megabytes"] < 5


def test_the_page_of_two_hundred_runs_is_small(capsys):
    run = measured(capsys, "--runs", "200", "--tasks", "5", "--documents", "100", "--no_samples")
    assert run["page_megabytes"] < 5
