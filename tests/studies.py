"""A small study of the packaged set, run once for all tests that read it."""

from __future__ import annotations

import shutil

import pytest
from tables import squeezed

from lm_eval_latentref.checkpoints.packaged import PACKAGED_MODELS
from lm_eval_latentref.evaluation.study import run_studies
from lm_eval_latentref.evaluation.study_page import study_page
from lm_eval_latentref.evaluation.study_report import (
    study_json,
)

NUM_PROBLEMS = 12

ROWS = ["No-CoT", "CoT", "Coconut", "+ residual", "+ search", "both"]


def as_markdown(study, *, command):
    return squeezed(study_page(study_json(study, command=command)))


def run_study(folders, *, task, **options):
    """`run_studies` for one task."""
    (study,) = run_studies(folders, tasks=[task], **options)
    return study


@pytest.fixture(scope="module")
def folders(once_a_run):
    """The packaged set twice, as two trainings would leave it."""

    def copies(root):
        for name in ("first", "second"):
            shutil.copytree(PACKAGED_MODELS / "graph-small", root / name)

    root = once_a_run("sets", copies)
    return [str(root / "first"), str(root / "second")]


@pytest.fixture(scope="module")
def ask(folders):
    def study(work):
        return run_study(
            folders,
            task="latentref_graph",
            work=str(work),
            memory_rates=(0.3,),
            step_sizes=(0.3,),
            batch_size=12,
            limit=NUM_PROBLEMS,
        )

    return study


@pytest.fixture(scope="module")
def work(once_a_run, ask, tmp_path_factory):
    """A copy of its own, because a study refuses a folder in which another process works."""
    own = tmp_path_factory.mktemp("work") / "study"
    return shutil.copytree(once_a_run("study", ask), own)


@pytest.fixture(scope="module")
def study(ask, work):
    return ask(work)
