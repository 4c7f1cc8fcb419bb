"""`results` and `samples` read lm-eval's files correctly, and name files that they cannot read."""

from __future__ import annotations

import json

import numpy as np
import pytest
from lm_eval_files import DATE, sample, write_run

from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.evaluation.results import read_results, read_run
from lm_eval_latentref.evaluation.samples import candidates, iterate, read_at, read_samples

VALUES = [1.0, 0.0, 1.0, 1.0]


def only(path):
    results = read_results([path])
    assert results.problems == []
    (run,) = results.runs
    return run


def test_scores_and_samples_are_those_of_the_run(tmp_path):
    write_run(tmp_path, {"t": {"acc": VALUES}}, candidates=4)
    run = only(tmp_path)
    task = run.tasks["t"]
    assert (run.name, run.model, run.seconds) == ("org/model", "hf", 12.5)
    assert run.versions == {"lm-eval": "0.4.13", "transformers": "5.24.0"}
    assert task.scores["acc,none"].value == 0.75
    assert task.columns["none"].values["acc"].tolist() == VALUES
    assert task.chance == 0.25
    assert task.paired("acc,none")


def test_samples_of_several_processes_are_put_in_the_order_of_documents(tmp_path):
    write_run(tmp_path / "one", {"t": {"acc": VALUES}})
    write_run(tmp_path / "two", {"t": {"acc": VALUES}}, order=[0, 2, 1, 3])
    first, two = (only(tmp_path / name).tasks["t"].columns["none"] for name in ("one", "two"))
    assert two.doc_ids.tolist() == [0, 1, 2, 3]
    assert np.array_equal(first.hashes, two.hashes)
    assert np.array_equal(first.values["acc"], two.values["acc"])


@pytest.mark.parametrize("renamed", ["mine.jsonl", "samples_other_2020-01-01T00-00-00.0.jsonl"])
def test_files_are_known_by_their_content(renamed, tmp_path):
    values = {"t": {"acc": VALUES}, "u": {"acc": [0.0, 0.0, 1.0, 1.0]}}
    write_run(tmp_path, values).rename(tmp_path / "people call it this.json")
    (tmp_path / f"samples_u_{DATE}.jsonl").rename(tmp_path / renamed)
    tasks = only(tmp_path).tasks
    assert tasks["u"].columns["none"].values["acc"].tolist() == values["u"]["acc"]
    assert tasks["t"].columns["none"].values["acc"].tolist() == VALUES


def test_runs_that_share_a_folder_keep_their_samples(tmp_path):
    for number, date in enumerate(("2026-01-01T10-00-00.1", "2026-01-02T10-00-00.1")):
        write_run(tmp_path, {"t": {"acc": [1.0, 0.0, float(number), 0.0]}}, date=date)
    runs = read_results([tmp_path]).runs
    read = [run.tasks["t"].columns["none"].values["acc"].tolist() for run in runs]
    assert read == [[1, 0, 0, 0], [1, 0, 1, 0]]


def test_filters_are_columns_of_their_own(tmp_path):
    metrics = {"exact_match,strict": [0.0, 1.0], "exact_match,flexible": [1.0, 1.0]}
    write_run(tmp_path, {"gsm": metrics}, candidates=1)
    task = only(tmp_path).tasks["gsm"]
    assert {name: c.values["exact_match"].tolist() for name, c in task.columns.items()} == {
        "strict": [0.0, 1.0],
        "flexible": [1.0, 1.0],
    }
    assert task.chance is None


def test_a_standard_error_that_is_text_is_read_as_none(tmp_path):
    write_run(tmp_path, {"t": {"acc": VALUES}}, stderr="N/A", log_samples=False)
    task = only(tmp_path).tasks["t"]
    assert task.scores["acc,none"].stderr is None
    assert task.columns == {}


def test_a_pair_of_gold_and_prediction_is_not_paired(tmp_path):
    write_run(tmp_path, {"t": {"acc": VALUES, "f1": [[0, 1], [1, 1], [0, 0], [1, 0]]}})
    task = only(tmp_path).tasks["t"]
    assert "f1,none" in task.scores
    assert task.paired("acc,none")
    assert not task.paired("f1,none")


def test_a_number_that_is_not_the_mean_of_the_documents_is_not_paired(tmp_path):
    file = write_run(tmp_path, {"t": {"perplexity": [-1.0, -2.0]}}, candidates=1)
    content = json.loads(file.read_text())
    content["results"]["t"]["perplexity,none"] = 4.48
    file.write_text(json.dumps(content))
    assert not only(tmp_path).tasks["t"].paired("perplexity,none")


def test_groups_are_no_tasks(tmp_path):
    file = write_run(tmp_path, {"t": {"acc": VALUES}})
    content = json.loads(file.read_text())
    content["results"]["g"] = {"alias": "g", "acc,none": 0.75, "acc_stderr,none": "N/A"}
    content["groups"] = {"g": content["results"]["g"]}
    content["group_subtasks"] = {"g": ["t"], "t": []}
    file.write_text(json.dumps(content))
    run = only(tmp_path)
    assert (list(run.tasks), list(run.groups)) == (["t"], ["g"])


def test_arguments_are_a_mapping_whether_text_or_not(tmp_path):
    config = {"model_args": "pretrained=org/model,dtype=float32"}
    write_run(tmp_path, {"t": {"acc": VALUES}}, config=config)
    assert only(tmp_path).model_args == {"pretrained": "org/model", "dtype": "float32"}


def damaged(folder, kind):
    results = write_run(folder, {"t": {"acc": VALUES}})
    samples = folder / f"samples_t_{DATE}.jsonl"
    content, lines = results.read_bytes(), samples.read_bytes().splitlines(keepends=True)
    changed = {
        "half results": (results, content[: len(content) // 2]),
        "empty results": (results, b""),
        "foreign": (results, b'{"learning_rate": 1}'),
        "deep": (results, b"[" * 100_000),
        "no text": (results, b"\xff\xfe\x00"),
        "infinite": (results, content.replace(b'"acc,none": 0.75', b'"acc,none": Infinity')),
        "half samples": (samples, b"".join(lines)[:-40]),
        "fewer samples": (samples, b"".join(lines[:2])),
        "empty samples": (samples, b""),
        "twice": (samples, b"".join([*lines, lines[0]])),
        "no number": (samples, b"".join(lines).replace(b'"acc": 0.0', b'"acc": NaN')),
        "no whole document": (samples, b"".join(lines).replace(b'"doc_id": 1', b'"doc_id": 1.5')),
    }
    path, data = changed[kind]
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("half results", "incomplete"),
        ("empty results", "is empty"),
        ("foreign", "holds no results of lm-eval"),
        ("deep", "nested too deeply"),
        ("no text", "is not UTF-8"),
        ("infinite", "Infinity is not a JSON number"),
        ("half samples", "line 4: not a logged sample"),
        ("fewer samples", "holds 2 of 4 documents"),
        ("empty samples", "is empty"),
        ("twice", "document 0 occurs twice"),
        ("no number", "acc of document 1 is not a finite number"),
        ("no whole document", "is not an integer"),
    ],
)
def test_unreadable_files_are_named_in_one_line_and_the_others_are_kept(kind, reason, tmp_path):
    path = damaged(tmp_path / "bad", kind)
    write_run(tmp_path / "good", {"t": {"acc": VALUES}})
    results = read_results([tmp_path])
    assert "good" in {run.file.parent.name for run in results.runs}
    named = [str(problem) for problem in results.problems if problem.path == path]
    assert len(named) == 1
    assert reason in named[0]
    assert str(path) in named[0]
    assert "\n" not in named[0]


def test_a_file_that_is_given_twice_is_one_run(tmp_path):
    file = write_run(tmp_path, {"t": {"acc": VALUES}})
    assert len(read_results([tmp_path, file, tmp_path]).runs) == 1


def test_a_results_file_brings_its_samples_and_no_others(tmp_path):
    file = write_run(tmp_path, {"t": {"acc": VALUES}})
    write_run(tmp_path, {"u": {"acc": VALUES}}, date="2026-01-02T10-00-00.000001")
    results = read_results([file])
    assert not results.problems
    (run,) = results.runs
    assert run.tasks["t"].paired("acc,none")


def test_a_path_that_is_not_there_is_named(tmp_path):
    results = read_results([tmp_path / "nowhere"])
    assert "no such file or folder" in str(results.problems[0])
    with pytest.raises(LatentRefError, match="cannot be read"):
        read_run(tmp_path / "nowhere")


def write_lines(path, samples):
    path.write_text("".join(json.dumps(s) + "\n" for s in samples), "utf-8")
    return path


@pytest.mark.parametrize("name", [', "filter": "x", {"doc_id": 7, ', '"filter": "x"}'])
def test_texts_that_look_like_fields_are_texts(name, tmp_path):
    samples = [sample(k, {"acc": float(k)}, text=name + str(k)) for k in range(2)]
    samples[1]["doc"]["filter"] = {"filter": "deep", "doc_id": 9}
    path = write_lines(tmp_path / "s.jsonl", samples)
    column = read_samples(path).columns["none"]
    assert column.doc_ids.tolist() == [0, 1]
    assert column.values["acc"].tolist() == [0.0, 1.0]
    assert read_at(path, column.offsets[::-1]) == samples[::-1]


def test_fields_in_another_order_are_read_all_the_same(tmp_path):
    samples = [sample(k, {"acc": float(k)}) for k in range(3)]
    usual = read_samples(write_lines(tmp_path / "a.jsonl", samples))
    turned = [dict(reversed(each.items())) for each in samples]
    other = read_samples(write_lines(tmp_path / "b.jsonl", turned))
    assert usual.task_hash == other.task_hash
    assert np.array_equal(usual.columns["none"].hashes, other.columns["none"].hashes)
    assert np.array_equal(usual.columns["none"].values["acc"], other.columns["none"].values["acc"])


def test_scores_without_context_are_no_candidates(tmp_path):
    mutual = sample(0, {"acc": 1.0, "acc_mutual_info": 1.0}, candidates=4)
    mutual["filtered_resps"] = [["-3.0", "False"], ["-5.0", "False"], ["-1", "True"], ["-9", "No"]]
    assert candidates(mutual) == ([-3.0, -5.0], 0)
    path = write_lines(tmp_path / "s.jsonl", [mutual])
    assert read_samples(path).columns["none"].num_requests.tolist() == [2]
    assert list(iterate(path)) == [mutual]
