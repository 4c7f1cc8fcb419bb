"""`latentref sweep`: the numbers of separate runs, what it refuses, how it resumes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import lm_eval
import pytest
import yaml
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager
from sweeps import (
    NUM_SETTINGS,
    TASK,
    finished,
    finished_folder,
    folders,
    model_args,
    run,
    stops_after,
    tasks,
)
from tiny_checkpoints import plan_of

from lm_eval_latentref.checkpoints import sets
from lm_eval_latentref.checkpoints.files import holding
from lm_eval_latentref.checkpoints.manifest import Manifest, read_manifest, write_manifest
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.evaluation import sweep_model
from lm_eval_latentref.evaluation.report import sweep_page
from lm_eval_latentref.evaluation.settings import Setting
from lm_eval_latentref.evaluation.sweep import sweep, sweep_json
from lm_eval_latentref.evaluation.sweep_run import SWEPT, Journal, read_journal
from lm_eval_latentref.harness.model import LatentRefLM
from lm_eval_latentref.latent import prefixes
from lm_eval_latentref.latent.reasoner import Reasoner

__all__ = ["finished", "finished_folder", "folders", "stops_after", "tasks"]


def test_work_that_settings_share_is_done_once(finished):
    # Three batches: the context with the first thought for all; two more thoughts, side by side.
    assert finished.cost.forwards["strong"] == 3 * (1 + 2)


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
def test_a_setting_has_the_same_numbers_as_in_lm_eval(setting, finished, folders, tasks):
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


def test_contexts_that_begin_alike_get_the_same_margins_from_one_reading(
    finished, folders, tasks, tmp_path, monkeypatch
):
    monkeypatch.setattr(prefixes, "MIN_TOKENS", 2)
    monkeypatch.setattr(prefixes, "MIN_SAVED", 1)
    branches = []
    branch = prefixes.Trunk.branch
    monkeypatch.setattr(
        prefixes.Trunk, "branch", lambda *args: branches.append(args) or branch(*args)
    )
    again = run(folders, tasks, tmp_path)
    assert branches
    for outcome, wanted in zip(again.outcomes, finished.outcomes, strict=True):
        assert outcome.setting == wanted.setting
        assert outcome.margins == pytest.approx(wanted.margins, abs=1e-4)


@pytest.mark.parametrize("number", [0, 1, 8])
def test_an_interrupted_sweep_continues_where_it_stopped(
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
def test_mistakes_are_errors_before_anything_is_loaded(
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
