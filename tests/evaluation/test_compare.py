"""`latentref compare`: documents are aligned, and the paired tests are correct."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lm_eval import simple_evaluate
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager
from scipy import stats

from lm_eval_latentref.benchmarks.documents import tasks_path
from lm_eval_latentref.cli import main
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.evaluation.compare import Answer, Answers, compare, read_answers

CHOOSING = "latentref_prosqa_generated_mc_dev"
WRITING = "latentref_prosqa_generated_dev"
NUM_DOCUMENTS = 10


def chosen(request, strength):
    """Log-likelihood by which a model of that strength answers some documents right."""
    right = request.args[1] == request.doc["answer_text"]
    return 1.0 if right == (request.doc_id % 5 < strength) else 0.5 * (request.doc_id % 2)


def logged(folder, strength):
    """A run of lm-eval with logged samples in `folder`, by a model of the given strength."""
    from lm_eval.api.registry import get_model

    class Model(get_model("dummy")):
        def generate_until(self, requests, disable_tqdm=False):
            return [r.doc["answer"] if r.doc_id % 5 < strength else "no" for r in requests]

        def loglikelihood(self, requests, disable_tqdm=False):
            return [(chosen(r, strength), False) for r in requests]

    manager = TaskManager(include_path=str(tasks_path()), include_defaults=False)
    run = simple_evaluate(
        model=Model(),
        tasks=[CHOOSING, WRITING],
        task_manager=manager,
        limit=NUM_DOCUMENTS,
        bootstrap_iters=0,
    )
    tracker = EvaluationTracker(output_path=str(folder))
    samples = run.pop("samples")
    tracker.save_results_aggregated(results=run, samples=samples)
    for task, lines in samples.items():
        tracker.save_results_samples(task_name=task, samples=lines)
    return str(folder)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return logged(root / "weak", 2), logged(root / "strong", 4)


def samples_file(folder, task):
    (path,) = Path(folder).rglob(f"samples_{task}_2*.jsonl")
    return str(path)


def test_logged_samples_are_read_as_lm_eval_judged_them(runs):
    actual = read_answers(samples_file(runs[0], CHOOSING))
    assert actual.metrics == {CHOOSING: "acc"}
    ((task, documents),) = actual.tasks.items()
    assert task == CHOOSING
    assert [documents[k].value for k in range(NUM_DOCUMENTS)] == [
        float(k % 5 < 2) for k in range(NUM_DOCUMENTS)
    ]
    assert all((each.margin > 0) == (each.value == 1.0) for each in documents.values())


@pytest.mark.parametrize(("task", "metric"), [(CHOOSING, "acc"), (WRITING, "exact_match")])
def test_two_runs_differ_by_the_documents_that_only_one_has_right(runs, task, metric):
    first, second = (read_answers(samples_file(run, task)) for run in runs)
    (actual,) = compare(first, second, seed=0)
    assert (actual.metric, actual.num_documents) == (metric, NUM_DOCUMENTS)
    assert (actual.first, actual.second) == (0.4, 0.8)
    assert (actual.test.only_first, actual.test.only_second) == (0, 4)
    assert actual.test.p_value == pytest.approx(stats.binomtest(0, 4).pvalue)
    assert actual.difference.mean == pytest.approx(0.4)
    assert actual.difference.low <= 0.4 <= actual.difference.high
    assert (actual.margin_difference is None) == (task == WRITING)


def test_a_folder_of_several_tasks_is_compared_by_the_metric_of_each(runs):
    actual = {each.task: each for each in compare(*map(read_answers, runs), seed=0)}
    assert {name: each.metric for name, each in actual.items()} == {
        CHOOSING: "acc",
        f"{WRITING} (answer)": "exact_match",
        "all tasks": "exact_match, acc",
    }
    assert actual["all tasks"].test.only_second == 8


def answers(name, values, *, task="t", hashes=None, margins=None, metric="acc"):
    made = {
        number: Answer(
            float(value),
            margins[number] if margins else None,
            hashes[number] if hashes else str(number),
        )
        for number, value in enumerate(values)
    }
    return Answers(name, {task: made}, {task: metric})


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_swapping_the_runs_turns_the_difference_round(pairs):
    first, second = (answers(str(side), [pair[side] for pair in pairs]) for side in (0, 1))
    (there,), (back,) = compare(first, second, seed=1), compare(second, first, seed=1)
    assert there.difference.mean == pytest.approx(-back.difference.mean)
    assert there.difference.low == pytest.approx(-back.difference.high)
    assert there.test.p_value == pytest.approx(back.test.p_value)


def test_several_tasks_are_compared_one_by_one_and_together():
    metrics = {"s": "acc", "t": "acc"}
    first, second = (
        Answers(name, {task: answers(name, values).tasks["t"] for task in metrics}, metrics)
        for name, values in (("a", [0, 1]), ("b", [1, 1]))
    )
    actual = compare(first, second, seed=0)
    assert [each.task for each in actual] == ["s", "t", "all tasks"]
    assert actual[-1].num_documents == 4
    assert actual[-1].test.only_second == 2


def test_documents_that_one_run_lacks_are_left_out_with_a_warning(caplog):
    (actual,) = compare(answers("a", [0, 1, 1]), answers("b", [1, 1]), seed=0)
    assert actual.num_documents == 2
    assert "1 documents that only one run has are left out" in caplog.text


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (answers("b", [1, 1], hashes=["0", "other"]), "document 1 is not the same"),
        (answers("b", [1, 1], task="u"), "no task in common"),
        (answers("b", [1, 1], metric="exact_match"), "judged by"),
        (answers("b", []), "no document in common"),
    ],
)
def test_runs_that_do_not_fit_are_refused(second, message):
    with pytest.raises(LatentRefError, match=message):
        compare(answers("a", [0, 1]), second, seed=0)


SWEEP = {
    "task": {"name": "t", "documents": [0, 4], "hashes": {"0": "x", "4": "y"}},
    "recommended": "T=6 alpha=0 eta=0",
    "best": {"plain": "T=6 alpha=0 eta=0", "both": "T=6 alpha=0.3 eta=1"},
    "settings": [
        {"label": "T=6 alpha=0 eta=0", "correct": [0, 1], "margins": [-1.0, 0.5]},
        {"label": "T=6 alpha=0.3 eta=1", "correct": [1, 1], "margins": [0.25, 1.0]},
    ],
}


@pytest.mark.parametrize(
    ("setting", "margin"),
    [("", -1.0), ("::plain", -1.0), ("::both", 0.25), ("::T=6 alpha=0.3 eta=1", 0.25)],
)
def test_a_sweeps_settings_are_read_by_row_or_label(setting, margin, tmp_path):
    (tmp_path / "sweep.json").write_text(json.dumps(SWEEP), encoding="utf-8")
    for path in (tmp_path, tmp_path / "sweep.json"):
        actual = read_answers(f"{path}{setting}")
        assert actual.tasks["t"][0] == Answer(float(margin > 0), margin, "x")


@pytest.mark.parametrize(
    ("values", "margin", "choice", "tied"),
    [
        (("-1.5", "-0.5", "-2.0"), 1.0, 1, False),
        (("-0.5", "-0.5", "-2.0"), 0.0, 0, True),
        (("-0.5", "-2.0", "-0.5"), -1.5, 0, True),
        (("-0.5", "-2.0", "-2.0"), -1.5, 0, False),
    ],
)
def test_of_equal_candidates_the_first_is_chosen_and_the_tie_is_noted(
    values, margin, choice, tied, tmp_path
):
    sample = {"doc_id": 3, "target": "1", "metrics": ["acc"], "acc": 0.0, "doc_hash": "x"}
    sample["filtered_resps"] = [[value, "False"] for value in values]
    path = tmp_path / "samples_a_task_2026-01-01T11-00-00.5.jsonl"
    path.write_text(json.dumps(sample) + "\n", encoding="utf-8")
    actual = read_answers(str(path)).tasks["a_task"][3]
    assert actual == Answer(0.0, margin, "x", choice, tied)


def test_the_newest_samples_of_a_task_count(tmp_path):
    line = {"doc_id": 0, "filter": "none", "target": "0", "metrics": ["acc"], "filtered_resps": []}
    for time, value in (("2026-01-02T10-00-00.5", 1.0), ("2026-01-01T11-00-00.5", 0.0)):
        path = tmp_path / f"samples_a_task_{time}.jsonl"
        path.write_text(json.dumps({**line, "acc": value}) + "\n", encoding="utf-8")
    assert read_answers(str(tmp_path)).tasks == {"a_task": {0: Answer(1.0, None, None)}}


def test_unreadable_input_is_an_error_of_one_line(tmp_path):
    (tmp_path / "sweep.json").write_text(json.dumps(SWEEP), encoding="utf-8")
    (tmp_path / "other.json").write_text("{}", encoding="utf-8")
    (tmp_path / "samples_bad.jsonl").write_text("{}\n", encoding="utf-8")
    cases = {
        str(tmp_path / "nowhere"): "no samples",
        f"{tmp_path}::residual": "no setting 'residual'",
        str(tmp_path / "other.json"): "cannot be read",
        str(tmp_path / "samples_bad.jsonl"): "line 1: not a logged sample",
    }
    for name, message in cases.items():
        with pytest.raises(LatentRefError, match=message) as error:
            read_answers(name)
        assert "\n" not in str(error.value)


def test_the_command_prints_the_tests_and_ends_with_one_json_line(tmp_path, capsys):
    (tmp_path / "sweep.json").write_text(json.dumps(SWEEP), encoding="utf-8")
    assert main(["compare", f"{tmp_path}::plain", f"{tmp_path}::both"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "t: 2 documents, acc"
    assert any("exact McNemar p = 1.0000" in line for line in lines)
    (actual,) = json.loads(lines[-1])
    assert actual["margin_difference"]["mean"] == pytest.approx(0.875)
