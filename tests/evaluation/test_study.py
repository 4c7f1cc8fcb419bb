"""A study: every row of a trained set, run once."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tables import squeezed

from lm_eval_latentref.benchmarks.documents import tasks_path
from lm_eval_latentref.benchmarks.graph import generate
from lm_eval_latentref.checkpoints import sets
from lm_eval_latentref.checkpoints.manifest import read_manifest, write_manifest
from lm_eval_latentref.checkpoints.packaged import PACKAGED_MODELS
from lm_eval_latentref.checkpoints.questions import QUESTIONS_NAME, hash_questions, write_hashes
from lm_eval_latentref.cli import main
from lm_eval_latentref.cli.parser import parser
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.evaluation import overview, runs
from lm_eval_latentref.evaluation.overview import REPORTED, overview_page, pooled
from lm_eval_latentref.evaluation.statistics import McNemar
from lm_eval_latentref.evaluation.study import run_studies, run_study
from lm_eval_latentref.evaluation.study_options import TaskNames
from lm_eval_latentref.evaluation.study_page import study_page
from lm_eval_latentref.evaluation.study_report import (
    mean_difference,
    save_study,
    study_json,
)
from lm_eval_latentref.training.log import TrainingLog
from lm_eval_latentref.training.schedule import Epoch

NUM_PROBLEMS = 12
ROWS = ["No-CoT", "CoT", "Coconut", "+ residual", "+ search", "both"]


def as_markdown(study, *, command):
    return squeezed(study_page(study_json(study, command=command)))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The packaged set twice, as two trainings would leave it."""
    root = tmp_path_factory.mktemp("sets")
    for name in ("first", "second"):
        shutil.copytree(PACKAGED_MODELS / "graph-small", root / name)
    return [str(root / "first"), str(root / "second")]


@pytest.fixture(scope="module")
def ask(folders, tmp_path_factory):
    work = tmp_path_factory.mktemp("work")

    def study():
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
def study(ask):
    return ask()


def test_every_row_is_there_with_the_command_that_repeats_it(study):
    for each in study.sets:
        assert list(each.rows) == ROWS
        for row in each.rows.values():
            given = ",".join(f"{name}={value}" for name, value in row.model_args.items())
            assert f"--model_args {given} --tasks latentref_graph " in row.run.command
            assert len(row.run.values) == NUM_PROBLEMS


def test_without_margins_no_test_candidate_is_scored_and_the_pages_still_stand(folders, tmp_path):
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


def test_the_page_has_the_numbers_of_the_file(study, tmp_path):
    save_study(study, tmp_path, command="latentref study ...")
    page = (tmp_path / "README.md").read_text(encoding="utf-8")
    content = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    for each in content["sets"]:
        for row in each["rows"].values():
            assert row["command"] in page
            assert f"{100 * row['accuracy']:.2f} +- {100 * row['accuracy_stderr']:.2f}" in page
    assert "50.00 %" in page
    assert squeezed(page) == as_markdown(study, command="latentref study ...")
    assert page == study_page(content)


def test_training_and_its_command_are_told_where_the_folder_tells_them(study):
    assert "## Training" not in as_markdown(study, command="")
    log = TrainingLog(
        seconds={"cot": 90.0, "coconut": 240.0},
        losses={"cot": [2.0, 1.25], "coconut stage 1": [0.5]},
        references={"weak": Epoch(3, 20, 80), "strong": Epoch(9, 80, 80)},
        data={"mathqa": {"problems": 90, "removed": 2}},
    )
    apart = TrainingLog(seconds={"no_cot": 30.0}, losses={"no_cot": [3.0]}, references={})
    folder = study.sets[0].folder
    said = dataclasses.replace(
        study.sets[0],
        trainings={folder: log, f"{folder}/no_cot": apart},
        train_commands=["latentref train x", "latentref train x phases=[no_cot]"],
    )
    made = dataclasses.replace(study, sets=(said, study.sets[1]))
    page = as_markdown(made, command="")
    row = "| 1.5 | 4.0 |  | 5.5 | epoch 3, 25.00 % of 80 | epoch 9, 100.00 % of 80 |"
    assert f"| {folder} {row}" in page
    assert f"| {folder}/no_cot |  |  | 0.5 | 0.5 |  |  |" in page
    assert "each epoch: cot 2.000, 1.250; coconut stage 1 0.500." in page
    assert "each epoch: no_cot 3.000." in page
    assert "mathqa 90 (2 more removed)." in page
    assert "latentref train x\nlatentref train x phases" in page.split("## Commands")[1]
    content = study_json(made, command="")["sets"]
    for name in ("seconds", "losses", "data"):
        assert content[0]["trainings"][folder][name] == getattr(log, name)
    assert content[0]["trainings"][folder]["references"]["weak"] == {
        "epoch": 3,
        "accuracy": 0.25,
        "problems": 80,
    }
    assert content[1]["trainings"] == {}


HOSTILE = "<script>x</script>|\x1b[31m ``` `\n# h ![a](b)"


def test_no_text_of_a_folder_is_markup_on_the_page(study):
    """Names, splits, recipe and records of a set that was downloaded may hold any text."""
    log = TrainingLog(
        seconds={HOSTILE: 90.0},
        losses={HOSTILE: [2.0]},
        references={},
        data={HOSTILE: {"problems": 9, "removed": 2}},
    )
    hostile = dataclasses.replace(
        study.sets[0],
        folder=HOSTILE,
        recipe={"pretrained": HOSTILE},
        trained_on=(HOSTILE,),
        trainings={HOSTILE: log},
        train_commands=[HOSTILE],
        weights_file=HOSTILE,
    )
    content = study_json(dataclasses.replace(study, sets=(hostile,)), command=HOSTILE)
    of_all = {"latentref_graph": content, "latentref_graph_mc": content}
    pages = {task: f"{task}/results.json" for task in of_all}
    for text in (study_page(content), overview_page(of_all, pages, command=HOSTILE)):
        assert "\x1b" not in text
        assert "\n# h" not in text
        prose = "".join(re.split("^```.*$", text, flags=re.MULTILINE)[::2])
        prose = re.sub(r"(?<!\\)(`+)(?!`).+?(?<!`)\1(?!`)", "", prose)
        assert "\\<script\\>" in prose
        assert not re.search(r"(?<!\\)(<script|!\[a)", prose)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ((6, 6), "as many change as refinement changes here, at most 100.00 %."),
        ((2, 1), "; refinement changes fewer here, at most 25.00 %."),
    ],
)
def test_ties_and_the_power_of_so_many_problems_are_told(study, changed, said):
    first, second = study.sets
    row = first.rows["both"]
    (answers,) = row.scored.answers.tasks.values()
    tied = {number: dataclasses.replace(each, tied=number < 3) for number, each in answers.items()}
    scored = dataclasses.replace(
        row.scored, answers=dataclasses.replace(row.scored.answers, tasks={"t": tied})
    )
    against = dataclasses.replace(row.against_coconut, test=McNemar(*changed, 1.0))
    made = dataclasses.replace(row, scored=scored, against_coconut=against)
    rows = {**first.rows, "both": made}
    page = as_markdown(
        dataclasses.replace(study, sets=(dataclasses.replace(first, rows=rows), second)), command=""
    )
    common = 100 * scored.commonest_choice
    assert f" | 25.00 | {common:.2f} |" in page.split("by log-likelihood")[1]
    assert said in page


def test_the_margins_too_have_their_commands(study):
    page = as_markdown(study, command="").split("## Commands")[1]
    for each in study_json(study, command="")["sets"]:
        for name, row in each["rows"].items():
            if name != "CoT":  # which answers after its steps only
                assert row["margin_command"] == row["command"].replace("_graph ", "_graph_mc ")
                assert row["margin_command"] in page
            else:
                assert row["margin_command"] is None


def test_the_mean_over_sets_weighs_each_set_the_same(study):
    for name in ROWS:
        runs_of_row = [each.rows[name].run.values for each in study.sets]
        coconut = [each.rows["Coconut"].run.values for each in study.sets]
        expected = np.mean(runs_of_row) - np.mean(coconut)
        assert mean_difference(study, name).mean == pytest.approx(expected)
    assert study_json(study, command="")["mean_over_sets"]["CoT"]["sets"] == 2


def test_a_study_resolves_each_name_once(study, ask, folders, monkeypatch):
    resolved = []
    find = sets._backbone

    def finding(names):
        resolved.append(names.pretrained)
        return find(names)

    monkeypatch.setattr(sets, "_backbone", finding)
    ask()
    parts = ("", "/no_cot", "/strong")  # the set, No-CoT, CoT
    assert sorted(resolved) == sorted(f"{folder}{part}" for folder in folders for part in parts)


def test_nothing_is_run_twice(study, ask, monkeypatch):
    monkeypatch.setattr(runs.Runs, "_run", lambda *_: pytest.fail("run again"))
    again = ask()
    assert [each.rows["both"].run.values for each in again.sets] == [
        each.rows["both"].run.values for each in study.sets
    ]


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


def test_what_is_kept_by_one_name_is_given_once(folders, tmp_path):
    options = {"work": str(tmp_path / "work")}
    twin = tmp_path / Path(folders[0]).name
    with pytest.raises(LatentRefError, match="folder first is given twice"):
        run_studies([folders[0], str(twin)], tasks=["latentref_graph"], **options)
    with pytest.raises(LatentRefError, match="task latentref_graph is given twice"):
        run_studies(folders, tasks=["latentref_graph"] * 2, **options)


def test_no_row_is_measured_on_what_the_set_was_trained_on(folders, tmp_path):
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


def test_several_tasks_stand_on_one_page_beside_their_own(folders, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["study", folders[0], "--work", str(tmp_path / "work"), "-o", str(out)]
    words += ["--task", "latentref_graph", "--task", "latentref_graph_mc", "--limit", "3"]
    words += ["--memory-rates", "0.3", "--step-sizes", "0.3", "--dtype", "float32"]
    assert main(words) == 0
    page = (out / "README.md").read_text(encoding="utf-8")
    assert page.strip() in capsys.readouterr().out
    content = json.loads((out / "results.json").read_text(encoding="utf-8"))
    for task, each in content["tasks"].items():
        own = json.loads((out / each["results"]).read_text(encoding="utf-8"))
        assert own["task"] == task
        assert f"[{task}]({Path(each['results']).parent}/README.md)" in page
        for name, row in own["sets"][0]["rows"].items():
            mean = own["mean_over_sets"][name]
            assert mean["accuracy"] == row["accuracy"]
            assert f"{100 * row['accuracy']:.2f} +- {100 * row['accuracy_stderr']:.2f}" in page
            assert row["peak_memory_bytes"] is None  # on a CPU it would say nothing of this row
            assert "dtype=float32" in row["command"]
        # Candidates compared without the steps are no answer of CoT.
        name = "CoT" if task == "latentref_graph" else "CoT, without its steps"
        assert [row for row in own["sets"][0]["rows"] if "CoT" in row] == ["No-CoT", name]
    assert "arXiv:2506.08552" in page


@pytest.mark.parametrize(
    ("there", "num_tasks"), [("latentref overview 1", 1), ("latentref study 3", 2)]
)
def test_a_page_of_another_kind_is_not_overwritten(folders, tmp_path, capsys, there, num_tasks):
    (tmp_path / "results.json").write_text(json.dumps({"format": there}))
    tasks = ["--task", "latentref_graph", "--task", "latentref_graph_mc"][: 2 * num_tasks]
    words = ["study", folders[0], *tasks, "--work", str(tmp_path / "work"), "-o", str(tmp_path)]
    assert main(words) != 0
    assert "would overwrite" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_rows_that_the_grid_leaves_out_are_left_out_of_every_page(folders, tmp_path, capsys):
    words = ["study", folders[0], "--work", str(tmp_path / "work"), "-o", str(tmp_path / "out")]
    words += ["--task", "latentref_graph", "--task", "latentref_graph_mc", "--limit", "2"]
    assert main([*words, "--memory-rates", "0.3", "--step-sizes", "0"]) == 0
    content = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert list(content["pooled"][folders[0]]) == ["+ residual"]
    page = squeezed(capsys.readouterr().out)
    for task in ("latentref_graph", "latentref_graph_mc"):
        assert f"| {task} | + residual |" in page
        assert f"| {task} | both |" not in page
    assert "| all tasks" not in page  # one benchmark, asked twice


def test_pooling_counts_every_problem_once():
    def study(num, lost, gained):
        test = {"only_first": lost, "only_second": gained}
        row = {"against_coconut": {"test": test}}
        return {"problems": num, "sets": [{"rows": {"both": row}}]}

    actual = pooled({"a": study(10, 1, 3), "b": study(40, 0, 8)}, 0, "both")
    assert actual["problems"] == 50
    assert actual["difference"]["mean"] == pytest.approx(10 / 50)
    assert (actual["test"]["only_first"], actual["test"]["only_second"]) == (1, 11)
    twice = {"latentref_mathqa": study(10, 1, 3), "latentref_mathqa_harness": study(10, 0, 4)}
    assert pooled(twice, 0, "both") == pooled({"latentref_mathqa": study(10, 1, 3)}, 0, "both")
    others = {"latentref_prosqa": study(10, 1, 3), "latentref_prosqa_generated": study(10, 0, 4)}
    assert pooled(others, 0, "both")["problems"] == 20  # which are not the published ones


def test_a_gain_is_exact_only_where_both_of_its_rows_are():
    study = {"mean_over_sets": {"Coconut": {"accuracy": 0.1}}}
    names = ("latentref_mathqa", "latentref_gsm8k")
    mathqa, gsm8k = (
        line
        for line in squeezed(overview._reported(dict.fromkeys(names, study))).splitlines()
        if "| paper |" in line
    )
    assert mathqa.endswith("| +1.95 |")
    assert gsm8k.endswith("| ~+0.60 |")


@pytest.mark.parametrize(
    ("train", "check_overlap", "said"),
    [
        (["mathqa", "graph"], False, True),
        (["graph"], True, False),
        (["mine.json"], True, True),
        (["mine.json"], False, False),
        ([], True, False),
    ],
)
def test_the_page_says_questions_were_left_out_where_training_left_them_out(
    study, train, check_overlap, said
):
    recipe = {"train": train, "check_overlap": check_overlap}
    first = dataclasses.replace(study.sets[0], recipe=recipe, trained_on=("a train",))
    page = as_markdown(dataclasses.replace(study, sets=(first,)), command="")
    assert "Trained on: a train." in page
    assert ("were left out" in page) == said


def test_the_papers_gain_is_that_of_its_table():
    mathqa = REPORTED["latentref_mathqa"].accuracy
    assert mathqa["both"] - mathqa["Coconut"] == pytest.approx(1.95)


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
        batch_size=30,
        limit=30,
        margins=False,
    )


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


def test_a_contrast_of_a_reference_with_itself_changes_nothing(contrasted):
    rows = contrasted.sets[0].rows
    assert rows["same"].run.values == rows["Coconut"].run.values
    tried = contrasted.sets[0].contrast_sweeps["same"].outcomes
    assert len({outcome.margin for outcome in tried}) == 1


def test_contrasts_are_on_the_page_with_all_that_was_tried(contrasted):
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


def test_accuracy_by_steps_adds_up_to_the_rows_accuracy(contrasted):
    content = study_json(contrasted, command="latentref study")
    coconut = content["sets"][0]["rows"]["Coconut"]
    for row in content["sets"][0]["rows"].values():
        parts = row["by_steps"].values()
        assert sum(part["problems"] for part in parts) == 30
        mean = sum(part["problems"] * part["accuracy"] for part in parts) / 30
        assert mean == pytest.approx(row["accuracy"])
        change = sum(part["problems"] * part["against_coconut"] for part in parts) / 30
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
