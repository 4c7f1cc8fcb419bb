"""The figures in results/*/FINDINGS.md agree with the committed results.

Every figure that such a page quotes must be in its folder.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from findings import PAGE, figures, unsupported

RESULTS = Path(__file__).parents[2] / "results"

pytestmark = pytest.mark.skipif(not RESULTS.is_dir(), reason="results are not in the sdist")


@pytest.mark.parametrize(
    "page", sorted(RESULTS.glob(f"*/{PAGE}")), ids=lambda page: page.parent.name
)
def test_every_quoted_figure_is_in_the_folder(page):
    assert unsupported(page.parent) == []


def test_a_figure_has_its_unit_and_is_looked_up_as_it_is_rounded(tmp_path):
    (tmp_path / "results.json").write_text('{"accuracy": 0.38251, "change": -0.0123}', "utf-8")
    said = "1. Right: 38 % or 38.25 %, 1.2 points lost ([x](y/7.7), T=6.5), -1.23 to 38.3 points."
    (tmp_path / PAGE).write_text(said, "utf-8")
    assert [str(each) for each in figures(said)] == [
        *("38 %", "38.25 %", "1.2 points", "-1.23 points", "38.3 points")
    ]
    assert unsupported(tmp_path) == []


@pytest.mark.parametrize(
    "said", ["38.26 %", "39 %", "38.25 nats", "+1.23 points", "+1.2 [-1.2, 2] %"]
)
def test_a_figure_that_is_in_no_other_file_is_reported(said, tmp_path):
    (tmp_path / "results.json").write_text('{"accuracy": 0.38251, "change": -0.0123}', "utf-8")
    (tmp_path / PAGE).write_text(f"1. It is {said}.", "utf-8")
    assert unsupported(tmp_path)
