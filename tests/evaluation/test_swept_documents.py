"""Documents of a sweep: of a split to choose settings on, and none that was trained on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from lm_eval.tasks import TaskManager
from sweeps import TASK, tasks
from tiny import tiny_model, tiny_tokenizer
from training_helpers import small_recipe

from lm_eval_latentref.benchmarks import published
from lm_eval_latentref.benchmarks.graph import generate
from lm_eval_latentref.checkpoints.convert import convert
from lm_eval_latentref.checkpoints.manifest import Manifest, read_manifest, write_manifest
from lm_eval_latentref.checkpoints.questions import QUESTIONS_NAME, hash_questions
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.evaluation.dev_tasks import load_task
from lm_eval_latentref.evaluation.sweep import sweep
from lm_eval_latentref.training.trainer import train

__all__ = ["tasks"]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("riddles_test", "evaluated on its test split"),
        ("riddles_train", "evaluated on its train split"),
        ("latentref_prosqa_generated_mc", "evaluated on its test split"),
        ("latentref_mc_dev", "is a group"),
        ("no_such_task", "there is no such task"),
    ],
)
def test_tasks_that_settings_are_not_chosen_on_are_refused(task, message, tasks, monkeypatch):
    monkeypatch.setenv(published.DATA_VARIABLE, "/no/such/folder")
    if task == "latentref_mc_dev":
        monkeypatch.setattr(
            TaskManager, "load", lambda self, names: {"tasks": {"latentref_aqua_mc_dev": None}}
        )
    with pytest.raises(LatentRefError, match=message) as error:
        load_task(task, tuning=True, include_path=tasks)
    assert "\n" not in str(error.value)


def test_documents_that_were_trained_on_are_refused(tmp_path):
    trained = tmp_path / "trained"
    tiny_model("gpt2").save_pretrained(trained)
    tiny_tokenizer().save_pretrained(trained)
    write_manifest(trained, Manifest(trained_on=["prosqa_generated validation"]))
    with pytest.raises(LatentRefError, match="trained on its documents"):
        sweep(
            {"pretrained": str(trained)},
            task="latentref_prosqa_generated_mc_dev",
            output=str(tmp_path),
            latent_steps=(2,),
        )


@pytest.fixture(scope="module")
def trained_on_dev_problems(tmp_path_factory):
    """A set trained on a file with three problems of the dev task among others."""
    folder = tmp_path_factory.mktemp("leak")
    rows = [*generate(20, split="train"), *generate(3, split="validation")]
    train_file = folder / "train.json"
    train_file.write_text(json.dumps(rows))
    validation = folder / "validation.json"
    validation.write_text(json.dumps(list(generate(4, seed=9, split="validation"))))
    files = {"train": str(train_file), "validation": str(validation), "task": {}}
    options = {"num_train": None, "check_overlap": False, "cot_epochs": 2, "weak_epoch": 1}
    return train(small_recipe(folder / "out", **files, **options))


def sweep_graph(model_args, output, **options):
    return sweep(
        {**model_args, "device": "cpu"},
        task="latentref_graph_mc_dev",
        output=str(output),
        memory_rates=(0.0,),
        step_sizes=(0.0,),
        **options,
    )


def test_problems_of_a_training_file_are_recognised_in_any_dev_task(
    trained_on_dev_problems, tmp_path
):
    assert read_manifest(trained_on_dev_problems / "latentref.json").trained_on == ["train.json"]
    converted = convert(out=tmp_path / "converted", pretrained=str(trained_on_dev_problems))
    for name in (trained_on_dev_problems, converted):
        with pytest.raises(LatentRefError, match="trained on 3 of its 40 documents") as error:
            sweep_graph({"pretrained": str(name)}, tmp_path)
        assert "\n" not in str(error.value)
        question = next(generate(1, split="validation"))["question"]
        assert repr(question[:60]) in str(error.value)
    borrowed = {"pretrained": str(tmp_path / "none"), "weak": str(trained_on_dev_problems / "weak")}
    shutil.copytree(trained_on_dev_problems, borrowed["pretrained"])
    write_manifest(tmp_path / "none", Manifest(latent_steps=2))
    with pytest.raises(LatentRefError, match="trained on 3 of its 40 documents"):
        sweep_graph({**borrowed, "strong": borrowed["weak"]}, tmp_path)


def test_a_sweep_accepts_untrained_problems_and_sets_without_a_record(
    trained_on_dev_problems, tmp_path
):
    other = {"metadata": {"num_documents": 5, "generator_seed": 1}}
    pretrained = {"pretrained": str(trained_on_dev_problems)}
    assert len(sweep_graph(pretrained, tmp_path, **other).task.documents) == 5
    shutil.copytree(trained_on_dev_problems, tmp_path / "set")
    write_manifest(tmp_path / "set", Manifest(latent_steps=2))
    swept = sweep_graph({"pretrained": str(tmp_path / "set")}, tmp_path, limit=5)
    assert len(swept.task.documents) == 5


def test_a_question_is_recognised_within_a_longer_prompt(tasks):
    path = Path(tasks) / "worded_dev.yaml"
    task = yaml.safe_load((Path(tasks) / f"{TASK}.yaml").read_text(encoding="utf-8"))
    worded = {**task, "task": "worded_dev", "doc_to_text": "Here is a riddle. {{question}}"}
    path.write_text(yaml.safe_dump(worded), encoding="utf-8")
    for question, num_seen in (("tom is 0. WHAT is Tom", 1), ("What is Tom?", 0)):
        seen = hash_questions([question, "another"])
        if num_seen:
            with pytest.raises(LatentRefError, match="trained on 1 of its 12 documents"):
                load_task("worded_dev", tuning=True, include_path=tasks, trained_questions=seen)
        else:
            load_task("worded_dev", tuning=True, include_path=tasks, trained_questions=seen)
    path.unlink()


def test_a_record_of_questions_that_is_lost_is_named(trained_on_dev_problems, tmp_path):
    shutil.copytree(trained_on_dev_problems, tmp_path / "set")
    for content in (None, b"no hashes"):
        (tmp_path / "set" / QUESTIONS_NAME).unlink(missing_ok=True)
        if content:
            (tmp_path / "set" / QUESTIONS_NAME).write_bytes(content)
        with pytest.raises(LatentRefError, match=r"cannot be read.*restore the file") as error:
            sweep_graph({"pretrained": str(tmp_path / "set")}, tmp_path)
        assert "\n" not in str(error.value)


def test_generated_validation_sets_can_be_chosen_by_metadata():
    task = load_task(
        "latentref_prosqa_generated_mc_dev",
        tuning=True,
        metadata={"num_documents": 7, "generator_seed": 2},
        limit=5,
    )
    assert len(task.documents) == 5
    assert len(task.requests) == 10
    assert task.splits == {
        "prosqa_generated validation": {"origin": "generated", "rows": 7, "seed": 2}
    }
