"""`latentref sweep`: the numbers of separate runs, what it refuses, how it resumes, its report."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import lm_eval
import numpy as np
import pytest
import yaml
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager
from tiny import tiny_model, tiny_tokenizer
from tiny_checkpoints import plan_of
from training_helpers import small_recipe

from lm_eval_latentref.benchmarks import splits
from lm_eval_latentref.benchmarks.graph import generate
from lm_eval_latentref.checkpoints import sets
from lm_eval_latentref.checkpoints.convert import convert
from lm_eval_latentref.checkpoints.files import holding
from lm_eval_latentref.checkpoints.manifest import Manifest, read_manifest, write_manifest
from lm_eval_latentref.checkpoints.questions import QUESTIONS_NAME, hash_questions
from lm_eval_latentref.cli import main
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.evaluation import sweep_model
from lm_eval_latentref.evaluation.dev_tasks import load_task
from lm_eval_latentref.evaluation.report import sweep_page
from lm_eval_latentref.evaluation.settings import Setting
from lm_eval_latentref.evaluation.sweep import save_sweep, sweep, sweep_json
from lm_eval_latentref.evaluation.sweep_run import SWEPT, Journal, read_journal
from lm_eval_latentref.harness.model import LatentRefLM
from lm_eval_latentref.latent.reasoner import Reasoner
from lm_eval_latentref.training.trainer import train

TASK = "riddles_dev"
SIZES = {"memory_rates": (0.4,), "step_sizes": (1.0,), "latent_steps": (1, 3)}
NUM_SETTINGS = 6  # T=1: plain, search; T=3: plain, residual, search, both


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    for seed, name in enumerate(("backbone", "strong", "weak")):
        tiny_model("gpt2", seed).save_pretrained(root / name)
        tiny_tokenizer().save_pretrained(root / name)
    return root


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A user's own task files: twelve riddles with three candidates each."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [
        {
            "question": f"Tom is {'a lempus and ' * (number % 4)}{number}. What is Tom?\n",
            "choices": [f"### {number + 1}", "### a gorpus", "### no"],
            "gold": number % 3,
        }
        for number in range(12)
    ]
    data = folder / "rows.jsonl"
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    for split in ("validation", "test", "train"):
        task = {
            "task": {"validation": TASK}.get(split, f"riddles_{split}"),
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {split: str(data)}, "cache_dir": str(folder / "c")},
            "test_split" if split == "test" else "validation_split": split,
            "output_type": "multiple_choice",
            "doc_to_text": "question",
            "doc_to_choice": "choices",
            "doc_to_target": "gold",
            "target_delimiter": "",
            "metric_list": [{"metric": "acc"}],
        }
        (folder / f"{task['task']}.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    return str(folder)


def model_args(folders, **others):
    names = {"pretrained": "backbone", "strong": "strong", "weak": "weak"}
    paths = {role: str(folders / name) for role, name in names.items()}
    return {**paths, "dtype": "float32", "device": "cpu", "batch_size": 4, **others}


def run(folders, tasks, output, args=(), **options):
    options = {"task": TASK, "include_path": tasks, **SIZES, **options}
    return sweep(model_args(folders, **dict(args)), output=str(output), **options)


@pytest.fixture(scope="module")
def finished_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sweep")


@pytest.fixture(scope="module")
def finished(folders, tasks, finished_folder):
    return run(folders, tasks, finished_folder)


def test_what_settings_share_is_run_once(finished):
    # Three batches: the context with the first thought for all; two more thoughts for each of two.
    assert finished.cost.forwards["strong"] == 3 * (1 + 2 * 2)


def test_a_sweep_resolves_its_names_once_and_builds_its_task_once(
    folders, tasks, tmp_path, monkeypatch
):
    resolved, built = [], []
    find, build = sets._backbone, ConfigurableTask.__init__

    def finding(names):
        resolved.append(names.pretrained)
        return find(names)

    def building(self, *args, **options):
        built.append(self)
        build(self, *args, **options)

    monkeypatch.setattr(sets, "_backbone", finding)
    monkeypatch.setattr(ConfigurableTask, "__init__", building)
    run(folders, tasks, tmp_path)
    assert resolved == [str(folders / "backbone")]
    assert len(built) == 1


def evaluated(folders, tasks, config):
    """lm-eval's own evaluation of the task under one setting."""
    args = model_args(folders)
    if not config.searches:
        args = {name: value for name, value in args.items() if name not in ("strong", "weak")}
    model = LatentRefLM(**args, **dataclasses.asdict(config))
    manager = TaskManager(include_path=tasks, include_defaults=False)
    return lm_eval.simple_evaluate(
        model=model, tasks=[TASK], task_manager=manager, bootstrap_iters=2
    )


def margin(sample):
    values = [value for value, _ in sample["filtered_resps"]]
    others = [value for place, value in enumerate(values) if place != sample["target"]]
    return values[sample["target"]] - max(others)


@pytest.mark.parametrize(
    "setting",
    [
        Setting(latent_steps=1),
        Setting(latent_steps=3, memory_rate=0.4),
        Setting(latent_steps=3, memory_rate=0.4, step_size=1.0),
    ],
)
def test_a_setting_gets_what_lm_eval_gives_it(setting, finished, folders, tasks):
    wanted = evaluated(folders, tasks, finished.configs[setting])
    samples = sorted(wanted["samples"][TASK], key=lambda sample: sample["doc_id"])
    (outcome,) = (each for each in finished.outcomes if each.setting == setting)
    assert outcome.margins == pytest.approx([margin(sample) for sample in samples], abs=1e-4)
    assert list(outcome.correct) == [sample["acc"] == 1.0 for sample in samples]
    assert outcome.accuracy == wanted["results"][TASK]["acc,none"]
    assert outcome.accuracy_error == pytest.approx(wanted["results"][TASK]["acc_stderr,none"])
    hashes = {each.doc_id: each.doc_hash for each in finished.task.documents}
    assert hashes == {sample["doc_id"]: sample["doc_hash"] for sample in samples}


def outcomes_without_cost(result):
    return {each.setting: (each.correct, each.margins) for each in result.outcomes}


@pytest.fixture
def stops_after(monkeypatch):
    """Makes the process stop, as by Ctrl-C, once so many settings' batches are scored."""
    original = sweep_model.SweepModel.score_under

    def arm(number):
        left = iter(range(number))

        def score_under(self, *args, **kwargs):
            for scored in original(self, *args, **kwargs):
                if next(left, None) is None:
                    raise KeyboardInterrupt
                yield scored

        monkeypatch.setattr(sweep_model.SweepModel, "score_under", score_under)

    return arm


@pytest.mark.parametrize("number", [0, 1, 8])
def test_an_interrupted_sweep_goes_on_where_it_stopped(
    number, finished, folders, tasks, tmp_path, stops_after
):
    stops_after(number)
    with pytest.raises(KeyboardInterrupt):
        run(folders, tasks, tmp_path)
    journal = tmp_path / "sweep.jsonl"
    assert len(read_journal(journal)) == number
    with journal.open("ab") as file:
        file.write(b'{"key": "cut off in the mid')
    stops_after(3 * NUM_SETTINGS - number)
    result = run(folders, tasks, tmp_path)
    assert len(read_journal(journal)) == 3 * NUM_SETTINGS
    assert outcomes_without_cost(result).keys() == outcomes_without_cost(finished).keys()
    for each, other in zip(result.outcomes, finished.outcomes, strict=True):
        assert each.margins == pytest.approx(other.margins, abs=1e-5)
    assert result.choice.recommended.setting == finished.choice.recommended.setting


def test_a_finished_sweep_is_read_and_a_larger_grid_only_adds(
    finished, folders, tasks, tmp_path, stops_after
):
    first = run(folders, tasks, tmp_path)
    stops_after(0)
    again = run(folders, tasks, tmp_path, seed=3)
    assert outcomes_without_cost(again) == outcomes_without_cost(first)
    assert again.cost == first.cost
    stops_after(3 * 2)
    larger = run(folders, tasks, tmp_path, memory_rates=(0.4, 0.8))
    assert len(larger.outcomes) == NUM_SETTINGS + 2


def test_other_checkpoints_and_other_requests_are_never_read_from_the_journal(
    folders, tasks, tmp_path
):
    run(folders, tasks, tmp_path)
    num_lines = len(read_journal(tmp_path / "sweep.jsonl"))
    swapped = {"strong": str(folders / "weak"), "weak": str(folders / "strong")}
    run(folders, tasks, tmp_path, args=swapped)
    lines = read_journal(tmp_path / "sweep.jsonl")
    # Settings without search do not depend on the references.
    assert len(lines) == num_lines + 3 * 3
    run(folders, tasks, tmp_path, limit=4)
    assert len(read_journal(tmp_path / "sweep.jsonl")) == len(lines) + NUM_SETTINGS


def test_a_step_that_overflows_is_left_out_and_named(folders, tasks, tmp_path):
    result = run(folders, tasks, tmp_path, step_sizes=(1.0, 1e38), latent_steps=(3,))
    assert {each.step_size for each in result.overflowed} == {1e38}
    assert set(result.overflowed.values()) == {12}
    assert len(result.outcomes) == 4
    assert "T=3 alpha=0 eta=1e+38*d/2: left out" in sweep_page(sweep_json(result, command=""))
    assert sweep_json(result, command="")["overflowed"]["T=3 alpha=0 eta=1e+38*d/2"] == 12


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
    monkeypatch.setenv(splits.DATA_VARIABLE, "/no/such/folder")
    if task == "latentref_mc_dev":
        monkeypatch.setattr(
            TaskManager, "load", lambda self, names: {"tasks": {"latentref_aqua_mc_dev": None}}
        )
    with pytest.raises(LatentRefError, match=message) as error:
        load_task(task, tuning=True, include_path=tasks)
    assert "\n" not in str(error.value)


def test_documents_that_were_trained_on_are_refused(folders, tmp_path):
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
        with pytest.raises(LatentRefError, match="trained on 3 of its 2000 documents") as error:
            sweep_graph({"pretrained": str(name)}, tmp_path)
        assert "\n" not in str(error.value)
        question = next(generate(1, split="validation"))["question"]
        assert repr(question[:60]) in str(error.value)
    borrowed = {"pretrained": str(tmp_path / "none"), "weak": str(trained_on_dev_problems / "weak")}
    shutil.copytree(trained_on_dev_problems, borrowed["pretrained"])
    write_manifest(tmp_path / "none", Manifest(latent_steps=2))
    with pytest.raises(LatentRefError, match="trained on 3 of its 2000 documents"):
        sweep_graph({**borrowed, "strong": borrowed["weak"]}, tmp_path)


def test_other_problems_than_those_trained_on_and_sets_without_a_record_are_swept(
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
        with pytest.raises(LatentRefError, match=r"cannot be read.*put the file back") as error:
            sweep_graph({"pretrained": str(tmp_path / "set")}, tmp_path)
        assert "\n" not in str(error.value)


def test_free_answers_are_judged_by_their_likelihood_and_by_greedy_decoding(
    folders, tasks, tmp_path
):
    free = yaml.safe_load((Path(tasks) / f"{TASK}.yaml").read_text(encoding="utf-8"))
    del free["doc_to_choice"]
    free |= {
        "task": "free_riddles_dev",
        "output_type": "generate_until",
        "doc_to_target": "{{choices[gold]}}",
        "metric_list": [{"metric": "exact_match"}],
    }
    (tmp_path / "free_riddles_dev.yaml").write_text(yaml.safe_dump(free), encoding="utf-8")
    actual = run(folders, str(tmp_path), tmp_path / "out", task="free_riddles_dev")
    lm = LatentRefLM(**model_args(folders, latent_steps=3, search_step_size=1.0))
    gold = [request.args for request in actual.task.requests]
    ids = [
        (
            tuple(lm.tok_encode(context)),
            (*lm.tok_encode(text, add_special_tokens=False), lm.eot_token_id),
        )
        for context, text in gold
    ]
    for outcome in actual.outcomes:
        reasoner = Reasoner(lm.reasoner.loaded, actual.configs[outcome.setting])
        wanted = [reasoner.score([a], [[b]], max_rows=1)[0][0] for a, b in ids]
        assert outcome.margins == pytest.approx([each.log_likelihood for each in wanted], abs=1e-4)
        assert list(outcome.correct) == [each.is_greedy for each in wanted]
    assert "answers are free" in sweep_page(sweep_json(actual, command=""))
    assert sweep_json(actual, command="")["task"]["free_answers"]


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


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"memory_rate": 0.3}, {}, "a sweep chooses this value"),
        ({}, {"latent_steps": ()}, "without thoughts there is nothing to choose"),
        ({}, {"memory_rates": (1.5,)}, "memory_rate=1.5"),
        ({}, {"search_steps": (0,)}, "search_steps=0"),
        ({"pretrained": "some/model"}, {"write": True}, "is not a local folder"),
    ],
)
def test_mistakes_are_told_before_anything_is_loaded(
    changes, options, message, folders, tasks, tmp_path, monkeypatch
):
    monkeypatch.setattr(sweep_model.SweepModel, "__init__", None)
    with pytest.raises(LatentRefError, match=message):
        run(folders, tasks, tmp_path, args=changes, **options)


def test_the_recommendation_is_written_where_loading_finds_it(folders, tasks, tmp_path):
    folder = tmp_path / "set"
    for name, inside in (("backbone", ""), ("strong", "strong"), ("weak", "weak")):
        target = folder / inside
        target.mkdir(parents=True, exist_ok=True)
        for file in (folders / name).iterdir():
            (target / file.name).write_bytes(file.read_bytes())
    write_manifest(folder, Manifest(latent_steps=2, latent_markers="none"))
    result = sweep(
        {
            "pretrained": str(folder),
            "strong": str(folder / "strong"),
            "weak": str(folder / "weak"),
            "batch_size": 4,
        },
        task=TASK,
        include_path=tasks,
        output=str(tmp_path / "out"),
        memory_rates=(0.3,),
        step_sizes=(4.0,),
        write=True,
    )
    manifest = read_manifest(folder / "latentref.json")
    config = result.configs[result.choice.recommended.setting]
    settings = plan_of(pretrained=str(folder)).settings
    assert settings.items() <= dataclasses.asdict(config).items()
    assert settings.keys() >= {*SWEPT, "search_gradient"}
    assert manifest.latent_markers == "none"
    assert manifest.tuned_on == "riddles_dev, 12 documents"
    expected = ("strong", "weak") if config.searches else (None, None)
    assert (manifest.strong, manifest.weak) == expected


# What is printed and saved.


def test_the_report_says_all_that_is_needed_to_judge_the_sweep(finished, tmp_path):
    save_sweep(finished, tmp_path, command="latentref sweep ...")
    report = json.loads((tmp_path / "sweep.json").read_text(encoding="utf-8"))
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert report["command"] == "latentref sweep ..."
    assert report["seed"] == 0
    assert {"cpu", "threads"} <= report["machine"].keys()
    assert {"torch", "python"} <= report["versions"].keys()
    assert report["model"]["strong"]["fingerprint"] != report["model"]["weak"]["fingerprint"]
    assert len(report["settings"]) == NUM_SETTINGS
    for each in report["settings"]:
        assert (
            len(each["margins"]) == len(each["correct"]) == len(report["task"]["documents"]) == 12
        )
        assert each["margin"] == pytest.approx(np.mean(each["margins"]))
    assert set(report["best"]) == {"plain", "residual", "search", "both"}
    margins = {each["label"]: each["margin"] for each in report["settings"]}
    assert report["best_of_all"] == max(margins, key=margins.get)
    assert [each["setting"] for each in report["rivals"]] != []
    assert {each["setting"] for each in report["rivals"]} == margins.keys() - {
        report["best_of_all"]
    }


def test_the_text_names_both_choices_and_the_smallest_effect(finished):
    text = sweep_page(sweep_json(finished, command=""))
    table = text.split("\n\n")[1].splitlines()
    assert len(table) == 2 + NUM_SETTINGS
    assert sum("best" in line for line in table) == 4
    assert sum("recommended" in line for line in table) == 1
    assert "Best of each row" in text
    assert "Recommended, the simplest setting within noise of the best" in text
    assert f"of {NUM_SETTINGS} settings" in text
    assert "The smallest effect that 12 documents can show" in text


def test_without_matplotlib_the_sweep_is_saved_and_one_sentence_says_what_to_install(
    finished, tmp_path, monkeypatch, caplog
):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    save_sweep(finished, tmp_path, command="")
    assert (tmp_path / "sweep.json").is_file()
    assert not (tmp_path / "sweep.png").exists()
    (record,) = (each for each in caplog.records if each.name.endswith("evaluation.sweep"))
    assert "pip install 'lm-eval-latentref[plots]'" in record.getMessage()


def words(folders, tasks, output):
    return [
        *("sweep", "--pretrained", str(folders / "backbone"), "--strong", str(folders / "strong")),
        *("--weak", str(folders / "weak"), "-a", "dtype=float32", "device=cpu,batch_size=4"),
        *("--task", TASK, "--include_path", tasks, "-o", str(output)),
        *("--latent-steps", "1", "3", "--memory-rates", "0.4", "--step-sizes", "1", "-0.5"),
    ]


def test_the_command_prints_the_table_and_ends_with_one_json_line(folders, tasks, tmp_path, capsys):
    assert main(words(folders, tasks, tmp_path)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[-1])["task"] == TASK
    assert lines[0].startswith("riddles_dev: 12 documents, 9 settings")
    command = json.loads((tmp_path / "sweep.json").read_text(encoding="utf-8"))["command"]
    assert command


def test_the_command_says_how_to_go_on_after_ctrl_c(folders, tasks, tmp_path, capsys, stops_after):
    stops_after(2)
    assert main(words(folders, tasks, tmp_path)) == 130
    assert "the same command continues" in capsys.readouterr().err


def test_metadata_must_be_an_object(folders, tasks, tmp_path, capsys):
    assert main([*words(folders, tasks, tmp_path), "--metadata", "[1]"]) == 2
    assert "must be one JSON object" in capsys.readouterr().err


def test_a_report_that_cannot_be_written_is_told_in_one_line(finished, tmp_path):
    (tmp_path / "sweep.json").mkdir()
    with pytest.raises(LatentRefError, match=r"sweep\.json cannot be written"):
        save_sweep(finished, tmp_path, command="")


def test_a_folder_that_another_process_sweeps_into_is_refused(folders, tasks, tmp_path):
    with (
        holding(tmp_path, "latentref sweep"),
        pytest.raises(LatentRefError, match="in use by latentref sweep, process"),
    ):
        run(folders, tasks, tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"values": [[1.0]]},
        {"values": ["a"]},
        {"requests": 5},
        {"seconds": None},
        {"forwards": ["backbone"]},
    ],
)
@pytest.mark.usefixtures("finished")
def test_a_journal_with_values_of_another_kind_is_named(
    finished_folder, folders, tasks, tmp_path, change
):
    lines = read_journal(finished_folder / "sweep.jsonl")
    with Journal(tmp_path / "sweep.jsonl") as journal:
        journal.add({**lines[0], **change})
    with pytest.raises(LatentRefError, match=r"jsonl cannot be read .*; remove it"):
        run(folders, tasks, tmp_path)
