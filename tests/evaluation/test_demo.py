"""The demo of the small set: its rows, its page and its picture."""

from __future__ import annotations

import shutil
import sys

import pytest

from lm_eval_latentref.checkpoints.files import holding
from lm_eval_latentref.cli import main
from lm_eval_latentref.evaluation import demo
from lm_eval_latentref.evaluation.statistics import Interval


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    assert main(["demo", "--output", str(folder), "--limit", "8"]) == 0
    return folder


def test_the_page_has_every_row_with_its_command_and_a_picture(shown):
    page = (shown / "README.md").read_text(encoding="utf-8")
    for name in ("No-CoT", "CoT", demo.PLAIN, demo.REFINED, demo.CONTROL):
        assert f"| {name} |" in page
    assert page.count("$ latentref run --model latentref --model_args pretrained=graph-small") == 5
    assert f"]({demo.PICTURE})" in page
    assert (shown / demo.PICTURE).stat().st_size > 5_000
    assert "on 8 problems of `latentref_graph`" in page


def test_without_matplotlib_the_page_is_written_without_a_picture(shown, monkeypatch, tmp_path):
    again = shutil.copytree(shown, tmp_path / "again")
    (again / demo.PICTURE).unlink()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["demo", "--output", str(again), "--limit", "8"]) == 0
    assert demo.PICTURE not in (again / "README.md").read_text(encoding="utf-8")
    assert not (again / demo.PICTURE).exists()


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(-0.01, 0.03, "not significantly better or worse"), (0.02, 0.03, "better by 2.5 points")],
)
def test_the_conclusion_depends_on_the_intervals(low, high, said):
    rows = [
        demo.Row(name=name, run=None, accuracy=None, difference=Interval(0.025, low, high))
        for name in (demo.REFINED, demo.CONTROL)
    ]
    assert demo.meaning(rows).count(said) == 2


def test_a_second_demo_in_the_same_folder_is_refused_before_anything_runs(tmp_path, capsys):
    with holding(tmp_path, "latentref demo"):
        assert main(["demo", "-o", str(tmp_path), "--limit", "1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "in use by latentref demo, process" in line
