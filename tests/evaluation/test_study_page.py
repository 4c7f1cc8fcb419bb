"""Pages of a study: its numbers, trainings and commands, and several tasks beside each other."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
from studies import as_markdown, ask, folders, study, work
from tables import squeezed

from lm_eval_latentref.benchmarks.documents import tasks_path
from lm_eval_latentref.cli import main
from lm_eval_latentref.evaluation import overview
from lm_eval_latentref.evaluation.dev_tasks import load_task
from lm_eval_latentref.evaluation.overview import REPORTED, overview_page, pooled
from lm_eval_latentref.evaluation.statistics import McNemar
from lm_eval_latentref.evaluation.study_page import CHANCE, study_page
from lm_eval_latentref.evaluation.study_report import (
    save_study,
    study_json,
)
from lm_eval_latentref.training.log import TrainingLog
from lm_eval_latentref.training.schedule import Epoch

__all__ = ["ask", "folders", "study", "work"]


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


def test_training_and_its_command_are_on_the_page_if_the_folder_has_them(study):
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
def test_ties_and_the_power_of_the_test_are_on_the_page(study, changed, said):
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


def test_several_tasks_have_an_overview_and_a_page_each(folders, tmp_path, capsys):
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


@pytest.mark.parametrize("name", ["graph", "arith", "prosqa_generated"])
def test_chance_is_one_in_the_number_of_candidates(name):
    small = {"num_documents": 20}
    task = load_task(f"latentref_{name}_mc_dev", metadata=small)
    assert {len(document.requests) for document in task.documents} == {
        round(1 / CHANCE[f"latentref_{name}"][0])
    }


def test_every_task_with_candidates_has_its_chance_on_the_page():
    scored = tasks_path().glob("latentref_*_mc.yaml")
    assert {path.stem.removesuffix("_mc") for path in scored} <= CHANCE.keys()


def test_the_papers_gain_is_that_of_its_table():
    mathqa = REPORTED["latentref_mathqa"].accuracy
    assert mathqa["both"] - mathqa["Coconut"] == pytest.approx(1.95)
