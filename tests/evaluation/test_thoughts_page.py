"""The case study takes the right documents and shows the effect of refinement correctly."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from lm_eval_latentref.checkpoints.files import holding
from lm_eval_latentref.checkpoints.loading import load
from lm_eval_latentref.cli import main
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.evaluation import thoughts as cases
from lm_eval_latentref.evaluation.dev_tasks import load_task
from lm_eval_latentref.evaluation.settings import Outcome, Setting
from lm_eval_latentref.evaluation.thoughts import study_cases
from lm_eval_latentref.evaluation.thoughts_page import thoughts_json, thoughts_page
from lm_eval_latentref.latent.reasoner import Reasoner
from lm_eval_latentref.latent.refinement import contrastive_step, mix_residual

SET = "graph-small"
OPTIONS = {"memory_rate": 0.6, "step_size": 0.8}
CONTEXTS = ["c>h a>f h>k f>m k>b ; m b ; c\n", "b>c c>d ; d a ; b\n"]


@pytest.fixture(scope="module")
def actual(tmp_path_factory):
    work = str(tmp_path_factory.mktemp("work"))
    return study_cases(SET, task="latentref_graph_mc", work=work, limit=30, num=2, **OPTIONS)


def outcome(correct):
    margins = tuple(1.0 for _ in correct)
    return Outcome(setting=Setting(latent_steps=2), correct=tuple(correct), margins=margins)


@pytest.mark.parametrize(
    ("num", "places"), [(2, [1, 0]), (4, [1, 4, 0, 3]), (6, [1, 4, 5, 0, 3]), (1, [1])]
)
def test_the_first_documents_of_each_kind_are_taken(num, places):
    before = outcome([True, False, True, True, False, False])
    after = outcome([False, True, True, False, True, True])
    assert cases._changed(before, after, num) == places


def test_recomputed_thoughts_obey_the_equations():
    config = {"memory_rate": 0.3, "search_step_size": 20.0}
    reasoner = load(SET, device="cpu", dtype="float32", latent_steps=4, **config)
    ids = [tuple(reasoner.tokenizer.encode(text)) for text in CONTEXTS]
    committed_BTD = reasoner.think(ids).thoughts_BTD
    with torch.no_grad():
        raw_BTD = cases.raw_thoughts(reasoner, ids, committed_BTD)
        mixed_BTD = raw_BTD.clone()
        mixed_BTD[:, 1:] = mix_residual(raw_BTD[:, 1:], committed_BTD[:, :-1], memory_rate=0.3)
        strong_BTD, weak_BTD = (
            cases.states_at(network, reasoner, ids, committed_BTD, mixed_BTD)
            for network in (reasoner.references.strong, reasoner.references.weak)
        )
    wanted_BTD = contrastive_step(mixed_BTD, strong_BTD, weak_BTD, step_size=20.0)
    assert torch.allclose(committed_BTD, wanted_BTD, atol=1e-4)


def test_a_case_is_a_document_whose_answer_refinement_changed(actual):
    assert actual.test.only_first > 0
    assert actual.cases
    for case in actual.cases:
        before, after = case.answer_before == case.gold, case.answer_after == case.gold
        assert (before, after) == ((False, True) if case.helped else (True, False))
        assert (case.margins[0] > 0, case.margins[1] > 0) == (before, after)
        assert len(case.thoughts) == actual.setting.latent_steps


@pytest.mark.slow
def test_a_step_towards_strong_is_one_away_from_weak(tmp_path):
    options = {"memory_rate": 0.0, "step_size": 2.0, "limit": 30, "num": 1}
    actual = study_cases(SET, task="latentref_graph_mc", work=str(tmp_path), **options)
    thoughts = [each for case in actual.cases for each in case.thoughts]
    assert thoughts
    for thought in thoughts:
        gained = thought.to_strong[0] - thought.to_strong[1]
        assert gained > thought.to_weak[0] - thought.to_weak[1]


def test_readings_are_likeliest_first(actual):
    for thought in actual.cases[0].thoughts:
        for reading in (thought.plain, thought.raw, thought.refined):
            values = [p for _, p in reading]
            assert values == sorted(values, reverse=True)
            assert 0 < sum(values) <= 1.0001


def test_free_answers_are_written_and_the_page_has_them(tmp_path, capsys):
    page = tmp_path / "thoughts.md"
    words = ["thoughts", SET, "--task", "latentref_graph", "--limit", "20", "-o", str(page)]
    words += ["--memory-rate", "0.6", "--step-size", "0.8", "--num", "1", "--work", str(tmp_path)]
    assert main(words) == 0
    content = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    (case,) = content["cases"]
    assert (case["answer_before"] == case["gold"]) != case["helped"]
    text = page.read_text(encoding="utf-8")
    assert f'without refinement `"{case["answer_before"]}"`' in text
    assert "with its end of sequence" in text
    assert text.strip() in capsys.readouterr().out


def test_every_case_has_a_table_of_its_thoughts(actual):
    page = thoughts_page(thoughts_json(actual, command="latentref thoughts ..."))
    assert page.count("## Document") == len(actual.cases)
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    assert len(rows) == sum(2 + len(case.thoughts) for case in actual.cases)
    assert all(row.count("|") == rows[0].count("|") for row in rows)


def test_answers_are_written_from_the_tokens_that_are_scored(tmp_path, monkeypatch):
    asked = []

    def answer(self, contexts, **options):
        asked.append(contexts)
        return answer_before(self, contexts, **options)

    answer_before = Reasoner.answer
    monkeypatch.setattr(Reasoner, "answer", answer)
    task = load_task("latentref_graph", limit=2)
    # As a task of the user's own, whose contexts end in no newline.
    stripped = [
        dataclasses.replace(each, arguments=(each.args[0].strip(), each.args[1]))
        for each in task.requests
    ]
    changed = dataclasses.replace(task, requests=stripped)
    monkeypatch.setattr(cases, "load_task", lambda *_, **__: changed)
    monkeypatch.setattr(cases, "_changed", lambda *_: [0, 1])
    actual = study_cases(SET, task="latentref_graph", work=str(tmp_path), **OPTIONS)
    tokenizer = load(SET, device="cpu").tokenizer
    wanted = [tuple(tokenizer.encode(case.question)) for case in actual.cases]
    assert asked == [wanted, wanted]
    assert len(wanted) == 2


def test_an_answer_of_several_lines_or_with_backticks_stays_in_its_line(actual):
    case = dataclasses.replace(actual.cases[0], answer_after="one\ntwo `three`")
    page = thoughts_page(thoughts_json(dataclasses.replace(actual, cases=(case,)), command=""))
    (line,) = (each for each in page.splitlines() if each.startswith("Gold "))
    assert line.count("`") == 6
    assert "one\\ntwo" in line


def test_a_page_that_could_not_be_written_is_refused_before_anything_runs(tmp_path, capsys):
    words = ["thoughts", SET, "--task", "latentref_graph_mc", "--work", str(tmp_path / "work")]
    for output in ("page.json", "."):
        assert main([*words, "-o", str(tmp_path / output)]) != 0
        assert "ends in .md" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_second_process_in_the_same_work_folder_is_refused(tmp_path):
    with (
        holding(tmp_path, "latentref thoughts"),
        pytest.raises(LatentRefError, match="in use by latentref thoughts, process"),
    ):
        study_cases(SET, task="latentref_graph_mc", work=str(tmp_path), **OPTIONS)


def test_a_set_without_references_is_refused_in_its_own_words(tmp_path):
    with pytest.raises(LatentRefError, match="lacks a strong or weak reference"):
        study_cases(f"{SET}/no_cot", task="latentref_graph_mc", work=str(tmp_path), **OPTIONS)


@pytest.mark.parametrize(("finite", "named"), [(False, "alpha=0 eta=0"), (True, "smaller step")])
def test_the_setting_that_overflowed_is_named(tmp_path, monkeypatch, finite, named):
    def outcomes(run):
        return [outcome([True])] if finite else [], {}

    monkeypatch.setattr(cases.GridRun, "fill", lambda *_: None)
    monkeypatch.setattr(cases.GridRun, "outcomes", outcomes)
    options = {"task": "latentref_graph_mc", "work": str(tmp_path), "limit": 1, "latent_steps": 2}
    with pytest.raises(LatentRefError, match=named):
        study_cases(SET, **options, **OPTIONS)


def test_settings_without_refinement_are_refused(tmp_path):
    options = {"memory_rate": 0.0, "step_size": 0.0, "limit": 2}
    with pytest.raises(LatentRefError, match="nothing is refined"):
        study_cases(SET, task="latentref_graph_mc", work=str(tmp_path), **options)
