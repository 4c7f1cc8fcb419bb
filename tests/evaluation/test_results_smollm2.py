"""Properties of results/smollm2-135m that FINDINGS.md relies on, whatever the results.

The figures that FINDINGS.md quotes are looked up by `test_results`.
"""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path

import pytest

from lm_eval_latentref.checkpoints.files import folder_digest
from lm_eval_latentref.checkpoints.packaged import DEFAULT_SET, PACKAGED_MODELS
from lm_eval_latentref.evaluation.study_options import WITHOUT_STEPS

FOLDER = Path(__file__).parents[2] / "results" / "smollm2-135m"
BASELINES = ("No-CoT", "CoT")
REFINED = {"+ residual": "residual", "+ search": "search", "both": "both"}
"""Rows, by the sweep's row that gives their settings."""

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="an sdist has no results")


def read(name):
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def overview():
    return read("results.json")


@pytest.fixture(scope="module")
def studies(overview):
    """The results of each task, by its name."""
    return {task: read(each["results"]) for task, each in overview["tasks"].items()}


def test_it_reports_only_benchmarks_that_were_trained_on(studies):
    for task, study in studies.items():
        name = task.removeprefix("latentref_")
        for each in study["sets"]:
            assert f"{name} train" in each["trained_on"]
            assert not any("test" in source for source in each["trained_on"])


def test_every_row_was_run_on_the_same_problems(studies):
    for study in studies.values():
        for each in study["sets"]:
            rows = {name.removesuffix(WITHOUT_STEPS) for name in each["rows"]}
            assert {*BASELINES, "Coconut", *REFINED} <= rows
            for name, row in each["rows"].items():
                if name == "Coconut":
                    continue
                test = row["against_coconut"]["test"]
                gained = row["accuracy"] - each["rows"]["Coconut"]["accuracy"]
                num_gained = test["only_second"] - test["only_first"]
                assert gained * study["problems"] == pytest.approx(num_gained, abs=1e-6)


def test_settings_were_chosen_on_dev_splits_and_used_as_chosen(studies):
    for study in studies.values():
        assert study["dev_task"].endswith("_dev")
        for each in study["sets"]:
            for name, key in REFINED.items():
                assert each["rows"][name]["setting"] == each["sweep"]["best"][key]
            plain = each["rows"]["Coconut"]["model_args"]
            assert plain["memory_rate"] == plain["search_step_size"] == 0
            assert plain["latent_steps"] > 0


def test_the_measured_set_is_the_packaged_set():
    """A set that is trained again has other results."""
    parts = {"No-CoT": ["no_cot"], "CoT": ["strong"], "both": ["", "strong", "weak"]}
    pages = [path for path in FOLDER.rglob("results.json") if "sets" in read(path)]
    assert pages
    for page in pages:
        (first,) = read(page)["sets"]
        for name, folders in parts.items():
            row = first["rows"].get(name) or first["rows"][f"{name}{WITHOUT_STEPS}"]
            digests = [folder_digest(PACKAGED_MODELS / DEFAULT_SET / part) for part in folders]
            actual = [checkpoint.split("+adapter:")[1] for checkpoint in row["checkpoints"]]
            assert actual == digests, (page, name)


def test_every_page_is_linked_from_the_one_above():
    for path in FOLDER.rglob("*.md"):
        above = path.parent.parent if path.name == "README.md" else path.parent
        page = (above / "README.md").read_text(encoding="utf-8")
        assert f"]({path.relative_to(above).as_posix()})" in page


def test_the_page_of_all_tasks_has_the_figures_of_each(overview, studies):
    for task, study in studies.items():
        said = overview["tasks"][task]
        for name in ("problems", "chance", "majority_answer", "mean_over_sets"):
            assert said[name] == study[name]
    # MathQA's problems are asked in two prompts, and are pooled once.
    once = {task: study for task, study in studies.items() if not task.endswith("_harness")}
    assert len(once) < len(studies)
    for number, by_row in enumerate(overview["pooled"].values()):
        for name, actual in by_row.items():
            tests = [
                study["sets"][number]["rows"][name]["against_coconut"]["test"]
                for study in once.values()
            ]
            assert actual["problems"] == sum(study["problems"] for study in once.values())
            for side in ("only_first", "only_second"):
                assert actual["test"][side] == sum(test[side] for test in tests)


@pytest.mark.parametrize(
    ("page", "helps", "changed", "gain"),
    [
        ("mathqa-float32/mathqa_mc", True, 1, 0.0195),
        ("mathqa-float32/mathqa_harness", False, 3, 0.0195),
        ("strategyqa-float32", True, 2, 0.026),
    ],
)
def test_in_float32_refinement_changes_next_to_nothing(page, helps, changed, gain):
    """`helps`: Coconut's margin is above No-CoT's; `gain`: the paper's."""
    (first,) = read(f"{page}/results.json")["sets"]
    rows = first["rows"]
    assert all(row["model_args"]["dtype"] == "float32" for row in rows.values())
    assert (rows["No-CoT"]["margin_against_coconut"]["margin_difference"]["high"] < 0) == helps
    for name in REFINED:
        against = rows[name]["margin_against_coconut"]["margin_difference"]
        assert max(abs(against["low"]), abs(against["high"])) < 0.002
        assert rows[name]["against_coconut"]["difference"]["high"] < gain
    both = rows["both"]["against_coconut"]["test"]
    assert both["only_first"] + both["only_second"] == changed
    assert first["sweep"]["recommended"] == first["sweep"]["best"]["plain"]


def test_the_case_studies_move_as_their_findings_say():
    pages = [read("thoughts.json"), read("thoughts-strategyqa.json")]
    assert {page["model"]["dtype"] for page in pages} == {"float32"}
    assert {(page["setting"]["memory_rate"], page["setting"]["step_size"]) for page in pages} == {
        (0.7, 1.0)
    }
    cases = [case for page in pages for case in page["cases"]]
    assert {case["helped"] for case in pages[0]["cases"]} == {True, False}
    for case in cases:
        assert max(map(abs, case["margins"])) < 0.02
        first, second, *later = case["thoughts"]
        assert [first["plain"][0][0], second["refined"][0][0]] == ["###", "###"]
        assert not any(thought["plain"][0][0].isalnum() for thought in (second, *later))
    thoughts = [thought for case in cases for thought in case["thoughts"]]
    moves = [
        [after - before for before, after in (thought["to_strong"], thought["to_weak"])]
        for thought in thoughts
    ]
    assert all(from_strong < from_weak for from_strong, from_weak in moves)
    assert len(moves) == 48
    mixed = [move for number, move in enumerate(moves) if number % 6]  # the first one never is
    assert all(min(move) > 0 for move in mixed)


def test_every_page_equals_the_page_made_from_its_json(tmp_path):
    script = FOLDER.parent / "pages.py"
    copy = shutil.copytree(FOLDER, tmp_path / FOLDER.name)
    runpy.run_path(str(script))["main"](copy)
    for page in FOLDER.rglob("*.md"):
        made = copy / page.relative_to(FOLDER)
        assert made.read_text("utf-8") == page.read_text("utf-8"), page
