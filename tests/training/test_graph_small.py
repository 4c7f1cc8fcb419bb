"""The packaged set graph-small: it loads by name, is small, and is unchanged to 1e-4."""

from __future__ import annotations

import copy
import json

import pytest
from golden_graph_small import GOLDEN, ROWS, TOLERANCE, differences, measure
from golden_noise import bounds
from tiny_checkpoints import plan_of

from lm_eval_latentref.benchmarks.graph import generate
from lm_eval_latentref.checkpoints.manifest import read_manifest
from lm_eval_latentref.checkpoints.packaged import PACKAGED_MODELS, packaged_models

FOLDER = PACKAGED_MODELS / "graph-small"
FIRST = ("no_cot", "coconut", "refined")
"""The rows that the fast tests compare."""


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    return measure(tmp_path_factory.mktemp("runs"), FIRST)


@pytest.fixture(scope="module")
def golden():
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


def test_it_answers_as_in_the_golden_file(measured, golden):
    assert differences(measured, {name: golden[name] for name in FIRST}) == []


@pytest.mark.slow
def test_it_answers_as_in_the_golden_file_with_other_gradients_and_references(golden, tmp_path):
    others = [name for name in golden if name not in FIRST]
    assert differences(measure(tmp_path, others), {name: golden[name] for name in others}) == []


def test_every_row_is_in_the_golden_file(golden):
    assert golden.keys() == ROWS.keys()


def test_thoughts_answer_what_no_cot_can_only_guess(measured):
    gold = [row["answer"] for row in generate(25, split="test")]

    def num_right(row):
        pairs = zip(measured[row]["answers"], gold, strict=True)
        return sum(answer.strip() == right for answer, right in pairs)

    assert num_right("no_cot") <= 17 < 18 <= num_right("coconut") < 25


def test_refinement_moves_every_row_of_log_likelihoods(golden):
    rows = ("coconut", "refined", "refined_through", "control")
    rows_N = zip(*(golden[name]["log_likelihoods"] for name in rows), strict=True)
    assert all(len({tuple(row) for row in actual}) == len(rows) for actual in rows_N)


@pytest.mark.parametrize("by", [2 * TOLERANCE, -2 * TOLERANCE, float("nan")])
def test_a_changed_log_likelihood_is_detected(golden, by):
    moved = copy.deepcopy(golden)
    moved["refined"]["log_likelihoods"][3][1] += by
    assert len(differences(moved, golden)) == 1
    assert len(differences(golden, moved)) == 1


def test_rounding_changes_no_row_by_half_the_tolerance():
    allowed = bounds("graph_small", at_least=TOLERANCE)
    assert set(allowed) == {"coconut", "refined", "refined_through", "control"}
    assert set(allowed.values()) == {TOLERANCE}


def test_a_changed_answer_and_a_missing_problem_are_detected(golden):
    changed = copy.deepcopy(golden)
    changed["coconut"]["answers"][0] += "x"
    changed["no_cot"]["answers"].pop()
    assert len(differences(changed, golden)) == 2


def test_noise_below_the_tolerance_passes(golden):
    moved = copy.deepcopy(golden)
    moved["refined"]["log_likelihoods"][3][1] += TOLERANCE / 2
    assert differences(moved, golden) == []


def test_it_loads_by_name_with_its_references():
    assert "graph-small" in packaged_models()
    plan = plan_of(pretrained="graph-small")
    assert plan.strong is not None
    assert plan.weak is not None
    assert plan.settings["latent_steps"] == 8
    assert plan_of(pretrained="graph-small/no_cot").settings["latent_steps"] == 0


def test_it_contains_only_six_small_models():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    weights = [path for path in files if path.suffix == ".safetensors"]
    assert {str(path.parent.relative_to(FOLDER)) for path in weights} == {
        *(".", "strong", "weak", "control", "no_cot", "cot")
    }
    assert sum(path.stat().st_size for path in weights) <= 12e6
    assert read_manifest(FOLDER / "latentref.json").trained_on == ["graph train"]
