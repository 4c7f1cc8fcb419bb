"""A study: every row of a trained set, run once."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from studies import (
    NUM_PROBLEMS,
    ROWS,
    as_markdown,
    ask,
    folders,
    run_study,
    study,
    work,
)

from lm_eval_latentref.benchmarks.documents import tasks_path
from lm_eval_latentref.benchmarks.graph import generate
from lm_eval_latentref.checkpoints import sets
from lm_eval_latentref.checkpoints.manifest import read_manifest, write_manifest
from lm_eval_latentref.checkpoints.questions import QUESTIONS_NAME, hash_questions, write_hashes
from lm_eval_latentref.cli.parser import parser
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.evaluation import runs
from lm_eval_latentref.evaluation import study as study_module
from lm_eval_latentref.evaluation.overview import REPORTED
from lm_eval_latentref.evaluation.study import run_studies
from lm_eval_latentref.evaluation.study_options import TaskNames
from lm_eval_latentref.evaluation.study_report import (
    mean_difference,
    study_json,
)

__all__ = ["ask", "folders", "study", "work"]


def test_every_row_is_there_with_the_command_that_repeats_it(study):
    for each in study.sets:
        assert list(each.rows) == ROWS
        for row in each.rows.values():
            given = ",".join(f"{name}={value}" for name, value in row.model_args.items())
            assert f"--model_args {given} --tasks latentref_graph " in row.run.command
            assert len(row.run.values) == NUM_PROBLEMS


def test_each_run_records_the_data_of_its_own_task(study, work):
    files = list(work.rglob("results_*.json"))
    assert len(files) == 2 * 11  # CoT is not scored
    for file in files:
        config = json.loads(file.read_text(encoding="utf-8"))["config"]
        assert list(config["latentref"]["data"]) == ["graph test"]


def test_without_margins_no_test_candidate_is_scored_and_the_pages_are_written(folders, tmp_path):
    bare = run_study(
        folders[:1],
        task="latentref_graph",
        work=str(tmp_path),
        memory_rates=(0.3,),
        step_sizes=(0.3,),
        batch_size=12,
        limit=NUM_PROBLEMS,
        margins=False,
    )
    assert all(row.scored is None for row in bare.sets[0].rows.values())
    assert not list(tmp_path.rglob("latentref_graph_mc"))
    assert "| both |" in as_markdown(bare, command="latentref study")
    json.dumps(study_json(bare, command="latentref study"))


def test_settings_are_those_of_the_sweep_whatever_latentref_json_recommends(study):
    rows = study.sets[0].rows
    names = ("memory_rate", "search_step_size")
    used = {name: tuple(rows[name].model_args[key] for key in names) for name in ROWS[2:]}
    size = 0.3 * 64
    assert used == {
        "Coconut": (0.0, 0.0),
        "+ residual": (0.3, 0.0),
        "+ search": (0.0, pytest.approx(size)),
        "both": (0.3, pytest.approx(size)),
    }


def test_thoughts_are_not_counted_as_generated_tokens(study):
    rows = study.sets[0].rows
    assert rows["CoT"].run.tokens_per_document == 8  # three steps, each with a newline, "###", one
    assert rows["Coconut"].run.tokens_per_document == 2


def test_the_majority_answer_is_counted_on_the_test_problems(study):
    answers = [row["answer"] for row in generate(NUM_PROBLEMS, split="test")]
    expected = max(map(answers.count, answers)) / NUM_PROBLEMS
    assert study.sets[0].rows["Coconut"].run.majority == expected


def test_the_mean_over_sets_weighs_each_set_the_same(study):
    for name in ROWS:
        runs_of_row = [each.rows[name].run.values for each in study.sets]
        coconut = [each.rows["Coconut"].run.values for each in study.sets]
        expected = np.mean(runs_of_row) - np.mean(coconut)
        assert mean_difference(study, name).mean == pytest.approx(expected)
    assert study_json(study, command="")["mean_over_sets"]["CoT"]["sets"] == 2


def test_a_study_resolves_each_name_once(study, ask, work, folders, monkeypatch):
    resolved = []
    find = sets._backbone

    def finding(names):
        resolved.append(names.pretrained)
        return find(names)

    monkeypatch.setattr(sets, "_backbone", finding)
    ask(work)
    parts = ("", "/no_cot", "/strong")  # the set, No-CoT, CoT
    assert sorted(resolved) == sorted(f"{folder}{part}" for folder in folders for part in parts)


def test_nothing_is_run_twice(study, ask, work, monkeypatch):
    monkeypatch.setattr(runs.Runs, "_run", lambda *_: pytest.fail("run again"))
    again = ask(work)
    assert [each.rows["both"].run.values for each in again.sets] == [
        each.rows["both"].run.values for each in study.sets
    ]


@pytest.mark.slow
def test_neighbouring_rows_share_a_loaded_model_and_get_its_numbers(folders, tmp_path, monkeypatch):
    loaded = []

    class Counting(runs.LatentRefLM):
        def __init__(self, **args):
            loaded.append(args)
            super().__init__(**args)

    monkeypatch.setattr(runs, "LatentRefLM", Counting)
    together = runs.Runs(batch_size=4, limit=3)
    rows = [{"memory_rate": rate, "search_step_size": size} for size in (0, 9) for rate in (0, 0.6)]
    for number, options in enumerate(rows):
        args = {"pretrained": folders[0], **options}
        for task in ("latentref_graph", "latentref_graph_mc"):
            ours = together.evaluate(args, task=task, folder=tmp_path / f"{number}" / task)
            alone = runs.evaluate(
                args, task=task, folder=tmp_path / f"{number}" / f"{task}-alone", limit=3
            )
            assert ours.margins == pytest.approx(alone.margins, abs=1e-4)
            assert ours.values == alone.values
            for name in ("thought_steps", "tokens_generated"):
                assert ours.cost[name] == alone.cost[name]
    # Ours: without references, and with them; the others: once for each run.
    assert len(loaded) == 2 + 8


def test_other_weights_under_the_same_name_are_run_again(folders, study, monkeypatch, tmp_path):
    copy = tmp_path / "set"
    shutil.copytree(folders[0], copy)
    options = {"task": "latentref_graph", "folder": tmp_path / "run", "limit": 2}
    args = {"pretrained": str(copy / "strong")}
    runs.evaluate(args, **options)
    shutil.copy(copy / "weak" / "model.safetensors", copy / "strong" / "model.safetensors")
    monkeypatch.setattr(runs.Runs, "_run", lambda *_: pytest.fail("run again"))
    with pytest.raises(pytest.fail.Exception, match="run again"):
        runs.evaluate(args, **options)


def test_another_release_or_other_data_are_run_again(folders, tmp_path, monkeypatch):
    options = {"task": "latentref_graph", "folder": tmp_path / "run", "limit": 1}
    args = {"pretrained": str(Path(folders[0]) / "strong")}
    runs.evaluate(args, **options)
    content = json.loads((tmp_path / "run" / "done.json").read_text())
    assert list(content["data"]) == ["graph test"]
    monkeypatch.setattr(runs, "load_split", lambda name, split: SimpleNamespace(content_hash="b"))

    def evaluate(**changes):
        (tmp_path / "run" / "done.json").write_text(json.dumps({**content, **changes}))
        monkeypatch.setattr(runs.shutil, "rmtree", lambda *_, **__: pytest.fail("run again"))
        runs.evaluate(args, **options)

    evaluate()
    evaluate(data={"mathqa test": {"sha256": "b"}})
    evaluate(data={})
    made_with = content["made_with"]
    other = {**made_with, "versions": {**made_with["versions"], runs.PACKAGE: "0.0.1"}}
    for changes in ({"data": {"mathqa test": {"sha256": "a"}}}, {"made_with": other}):
        with pytest.raises(pytest.fail.Exception, match="run again"):
            evaluate(**changes)


def test_a_folder_or_task_that_is_given_twice_is_refused(folders, tmp_path):
    options = {"work": str(tmp_path / "work")}
    with pytest.raises(LatentRefError, match="first is given twice"):
        run_studies([folders[0], f"{folders[0]}/."], tasks=["latentref_graph"], **options)
    with pytest.raises(LatentRefError, match="task latentref_graph is given twice"):
        run_studies(folders, tasks=["latentref_graph"] * 2, **options)


def test_a_set_is_not_evaluated_on_its_training_data(folders, tmp_path):
    copy = tmp_path / "set"
    shutil.copytree(folders[0], copy)
    manifest = read_manifest(copy / "latentref.json")
    options = {"task": "latentref_graph", "work": str(tmp_path / "work"), "limit": 2}
    write_manifest(copy, dataclasses.replace(manifest, trained_on=["graph test"]))
    with pytest.raises(LatentRefError, match=r"trained on its documents \(graph test\)"):
        run_study([str(copy)], **options)
    (row,) = generate(1, split="test")
    write_hashes(copy, hash_questions([row["question"]]))
    write_manifest(copy, dataclasses.replace(manifest, trained_questions=QUESTIONS_NAME))
    with pytest.raises(LatentRefError, match="trained on 1 of its 2 documents"):
        run_study([str(copy)], **options)
    assert not list((tmp_path / "work").rglob("*.json*"))


def test_a_folder_without_a_set_is_named(tmp_path):
    with pytest.raises(LatentRefError, match=r"no latentref\.json"):
        run_study([str(tmp_path)], task="latentref_graph", work=str(tmp_path / "work"))


@pytest.mark.parametrize("name", ["aqua", "gsm8k", "mathqa", "prosqa", "strategyqa"])
def test_every_benchmark_has_a_dev_task_to_choose_settings_on(name):
    task = TaskNames(f"latentref_{name}")
    assert (task.scored is None) == (name == "gsm8k")
    assert (tasks_path() / f"{task.dev}.yaml").is_file()
    assert f"latentref_{name}" in REPORTED


def test_a_task_without_a_dev_split_is_refused(folders, tmp_path):
    with pytest.raises(LatentRefError, match="latentref_graph_dev_dev, which does not exist"):
        run_study(folders, task="latentref_graph_dev", work=str(tmp_path))


# Rows with references of their own.


@pytest.fixture(scope="module")
def contrasted(folders, tmp_path_factory):
    return run_study(
        folders[:1],
        task="latentref_graph",
        work=str(tmp_path_factory.mktemp("contrasted")),
        memory_rates=(0.3,),
        step_sizes=(-0.3, 0.3),
        contrasts={"control": ("control", "."), "same": ("weak", "weak")},
        batch_size=12,
        limit=NUM_PROBLEMS,
        margins=False,
    )


@pytest.mark.slow
def test_a_contrast_is_a_row_of_search_with_its_own_references(contrasted, folders):
    (trained,) = contrasted.sets
    assert list(trained.rows) == [*ROWS, "control", "same"]
    args = trained.rows["control"].model_args
    assert (args["strong"], args["weak"]) == (f"{folders[0]}/control", folders[0])
    assert args["memory_rate"] == 0
    assert args["search_step_size"]
    tried = trained.contrast_sweeps["control"].outcomes
    assert {outcome.setting.memory_rate for outcome in tried} == {0}
    assert len(tried) == 3


@pytest.mark.slow
def test_a_contrast_of_a_reference_with_itself_changes_nothing(contrasted):
    rows = contrasted.sets[0].rows
    assert rows["same"].run.values == rows["Coconut"].run.values
    tried = contrasted.sets[0].contrast_sweeps["same"].outcomes
    assert len({outcome.margin for outcome in tried}) == 1


@pytest.mark.slow
def test_contrasts_are_on_the_page_with_all_tried_settings(contrasted):
    page = as_markdown(contrasted, command="latentref study")
    assert "| control |" in page
    assert ", control:\n" in page


@pytest.mark.parametrize("name", ["strong", "both", "sweep", "a/b", "", "a,b"])
def test_a_contrast_has_a_name_of_its_own(folders, tmp_path, name):
    with pytest.raises(LatentRefError, match="give it a name"):
        run_study(
            folders[:1],
            task="latentref_graph",
            work=str(tmp_path),
            contrasts={name: ("strong", "weak")},
        )


@pytest.mark.parametrize(
    "rows", [{"contrasts": {"c": ("nosuch", ".")}}, {"checkpoints": {"c": "nosuch"}}]
)
def test_a_missing_checkpoint_is_refused_before_anything_runs(folders, tmp_path, monkeypatch, rows):
    monkeypatch.setattr(study_module._SetStudy, "all_tasks", lambda _: pytest.fail("it runs"))
    with pytest.raises(LatentRefError, match="no checkpoint 'nosuch'"):
        run_study(folders[:1], task="latentref_graph", work=str(tmp_path), **rows)


@pytest.mark.slow
def test_accuracy_by_steps_adds_up_to_the_rows_accuracy(contrasted):
    content = study_json(contrasted, command="latentref study")
    coconut = content["sets"][0]["rows"]["Coconut"]
    for row in content["sets"][0]["rows"].values():
        parts = row["by_steps"].values()
        assert sum(part["problems"] for part in parts) == NUM_PROBLEMS
        mean = sum(part["problems"] * part["accuracy"] for part in parts) / NUM_PROBLEMS
        assert mean == pytest.approx(row["accuracy"])
        change = sum(part["problems"] * part["against_coconut"] for part in parts) / NUM_PROBLEMS
        assert change == pytest.approx(row["accuracy"] - coconut["accuracy"])


def test_a_contrast_is_given_as_name_strong_and_weak():
    words = ["study", "out/graph", "--task", "latentref_graph", "-o", "page"]
    args = parser().parse_args(
        [*words, "--contrast", "control=control,.", "--contrast", "s=.,weak"]
    )
    assert dict(args.contrast) == {"control": ("control", "."), "s": (".", "weak")}
    for wrong in ("control", "control=a", "=a,b", "control=,b"):
        with pytest.raises(LatentRefError, match="NAME=STRONG,WEAK"):
            parser().parse_args([*words, "--contrast", wrong])
