"""Golden files: changes beyond rounding are detected and named, and so are changed versions."""

from __future__ import annotations

import json

import pytest
from lm_eval_files import digest, write_run

from lm_eval_latentref.cli import main
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.evaluation.check import check
from lm_eval_latentref.evaluation.gate import update_golden
from lm_eval_latentref.evaluation.golden import TOLERANCE, answers

NUM = 5
ENVIRONMENT = "PyTorch version: 2.13.0+cpu\nCPU:\nModel name:                  A fast one\n"


@pytest.fixture
def scored(tmp_path):
    """A run of a task with two candidates a document; `change` edits its samples."""

    def run(name, change=None, **options):
        options = {"pretty_env_info": ENVIRONMENT, **options}
        write_run(tmp_path / name, {"t": {"acc": [1.0] * NUM}}, **options)
        if change:
            edit(tmp_path / name, change)
        return tmp_path / name

    return run


@pytest.fixture
def written(tmp_path):
    """A run of a task that generates one text a document."""

    def run(name, text="### a", **settings):
        def generated(sample):
            sample["arguments"] = {"gen_args_0": {"arg_0": "q", "arg_1": {"until": [], **settings}}}
            sample["resps"], sample["filtered_resps"] = [[text]], ["a"]

        write_run(tmp_path / name, {"t": {"exact_match": [1.0] * NUM}}, candidates=1)
        edit(tmp_path / name, generated)
        return tmp_path / name

    return run


def edit(folder, change):
    (path,) = folder.glob("samples_*.jsonl")
    samples = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for sample in samples:
        change(sample)
    text = "".join(json.dumps(sample) + "\n" for sample in samples)
    path.write_text(text, encoding="utf-8")


def moved(by, *, document=2, candidate=1):
    """Moves one log-likelihood, which changes no answer."""

    def change(sample):
        if sample["doc_id"] == document:
            answer = sample["resps"][candidate][0]
            answer[0] = str(float(answer[0]) + by)

    return change


@pytest.fixture
def golden(scored, tmp_path):
    path = tmp_path / "golden.json"
    assert main(["check", str(scored("first")), "--write_golden", str(path)]) == 0
    return path


@pytest.mark.parametrize(
    ("by", "verdict"),
    [(0.0, "pass"), (0.5 * TOLERANCE, "pass"), (2.0 * TOLERANCE, "fail"), (-0.01, "fail")],
)
def test_a_log_likelihood_may_move_by_the_tolerance(scored, golden, by, verdict):
    (result,) = check(scored("new", moved(by)), golden=golden).results
    assert (result.task, result.metric, result.verdict) == ("t", "golden", verdict)
    if verdict == "fail":
        assert "of 1 of 5 documents differ" in result.reason
        assert f"most at document 2: {abs(by):.2g}" in result.reason
        assert "the file was made with" not in result.reason


def test_a_mismatch_names_changed_versions_and_processors(scored, golden):
    environment = ENVIRONMENT.replace("2.13.0", "2.14.0").replace("fast", "slow")
    options = {"pretty_env_info": environment, "transformers_version": "5.25.0"}
    assert check(scored("same", **options), golden=golden).verdict == "pass"
    (result,) = check(scored("new", moved(1.0), **options), golden=golden).results
    for change in (
        "torch 2.13.0+cpu, now 2.14.0+cpu",
        "transformers 5.24.0, now 5.25.0",
        "cpu A fast one, now A slow one",
    ):
        assert change in result.reason
    assert "lm-eval" not in result.reason


def test_greedy_texts_must_be_equal(written, tmp_path):
    update_golden(written("first"), tmp_path / "golden.json")
    assert check(written("same"), golden=tmp_path / "golden.json").verdict == "pass"
    (result,) = check(written("new", "### b"), golden=tmp_path / "golden.json").results
    assert result.verdict == "fail"
    assert "5 of 5 texts differ; document 0 reads ('### b',), not ('### a',)" in result.reason


def test_a_text_that_was_sampled_is_no_golden_one(written, tmp_path):
    with pytest.raises(LatentRefError, match="document 0: its text was sampled"):
        update_golden(written("first", do_sample=True), tmp_path / "golden.json")


def test_a_number_that_a_model_wrote_is_a_text(written, tmp_path):
    update_golden(written("first", "-12.5"), tmp_path / "golden.json")
    assert check(written("new", "-12.50001"), golden=tmp_path / "golden.json").verdict == "fail"


def other_document(sample):
    sample["doc_hash"] = digest(f"another {sample['doc_id']}")


def fewer_candidates(sample):
    sample["resps"].pop()


@pytest.mark.parametrize(
    ("change", "reason"),
    [(other_document, "document 0 is not the same"), (fewer_candidates, "document 0: inf")],
)
def test_other_documents_and_requests_are_named(scored, golden, change, reason):
    (result,) = check(scored("new", change), golden=golden).results
    assert result.verdict == "fail"
    assert reason in result.reason


def test_a_task_that_is_missing_or_cut_fails(golden, tmp_path):
    write_run(tmp_path / "other", {"u": {"acc": [1.0] * NUM}})
    write_run(tmp_path / "cut", {"t": {"acc": [1.0] * 3}})
    for name, reason in (("other", "no samples of this task"), ("cut", "3 documents, not the 5")):
        (result,) = check(tmp_path / name, golden=golden).results
        assert result.verdict == "fail"
        assert reason in result.reason


def test_a_second_run_measures_the_tolerance(scored, tmp_path, capsys):
    path = tmp_path / "golden.json"
    words = ["--golden", str(path), "--write_golden", "--baseline", str(scored("b", moved(0.001)))]
    assert main(["check", str(scored("a")), *words]) == 0
    assert "by 0.002 nats" in capsys.readouterr().err
    assert check(scored("new", moved(0.0019)), golden=path).verdict == "pass"
    assert check(scored("far", moved(0.0021)), golden=path).verdict == "fail"


def test_a_second_run_of_another_model_is_refused(written, tmp_path):
    with pytest.raises(LatentRefError, match="two runs of one model should agree"):
        update_golden(written("a"), tmp_path / "g.json", again=written("b", "### b"))
    assert not (tmp_path / "g.json").exists()


@pytest.mark.parametrize("value", ["nan", "-inf", "no number"])
def test_a_golden_file_accepts_only_finite_numbers(scored, golden, value):
    def change(sample):
        sample["resps"][0][0][0] = value

    folder = scored("new", change)
    with pytest.raises(LatentRefError, match="document 0"):
        check(folder, golden=golden)


def test_a_file_has_a_line_for_each_document(golden):
    lines = golden.read_text(encoding="utf-8").splitlines()
    assert sum(line.startswith('"') and "doc_hash" in line for line in lines) == NUM
    assert json.loads(golden.read_text())["made_with"]["torch"] == "2.13.0+cpu"


def test_whole_texts_have_one_log_likelihood(scored):
    def rolling(sample):
        sample["arguments"] = {"gen_args_0": {"arg_0": "a text"}}
        sample["resps"] = [["-12.5"]]

    folder = scored("new", rolling)
    (path,) = folder.glob("samples_*.jsonl")
    assert answers({"t": path})["t"][0].log_likelihoods == (-12.5,)


def test_a_baseline_and_a_golden_file_are_judged_together(scored, golden):
    report = check(scored("new", moved(1.0)), baseline=scored("old"), golden=golden)
    assert [result.verdict for result in report.results] == ["pass", "fail"]
    assert report.verdict == "fail"
