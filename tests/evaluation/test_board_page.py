"""The committed boards have the summary that the script writes."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BOARD = ROOT / "results" / "board"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("board_make", BOARD / "make.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def test_the_summary_is_the_scripts_output_for_the_boards(script):
    assert (BOARD / "README.md").read_text(encoding="utf-8") == script.page()


def test_each_board_has_the_rows_of_its_set_with_the_commands_that_repeat_them(script):
    for name in script.SUBJECTS:
        rows = json.loads((BOARD / name / "leaderboard.json").read_text(encoding="utf-8"))["rows"]
        assert {"hf", "Coconut", "refined", "No-CoT"} <= {row["name"] for row in rows}
        assert all("latentref run" in row["command"] for row in rows)
