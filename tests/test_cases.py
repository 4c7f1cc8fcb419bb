"""The case study: which documents it takes, and that what it shows is what refinement did."""

from __future__ import annotations

import json

import pytest
import torch

from lm_eval_latentref.cli import main
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.reasoner import load
from lm_eval_latentref.refinement import contrastive_step, mix_residual
from lm_eval_latentref.tuning import cases
from lm_eval_latentref.tuning.cases import study_cases
from lm_eval_latentref.tuning.cases_report import as_markdown
from lm_eval_latentref.tuning.grid import Setting
from lm_eval_latentref.tuning.selection import Outcome

SET = "hops-small"
OPTIONS = {"memory_rate": 0.6, "step_size": 0.8}
CONTEXTS = ["c>h a>f h>a f>c ; 5 d\n", "b>c c>b ; 2 b\n"]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    work = str(tmp_path_factory.mktemp("work"))
    return study_cases(SET, task="latentref_hops_mc", work=work, limit=30, num=2, **OPTIONS)


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


def test_a_case_is_a_document_whose_answer_refinement_changed(found):
    assert found.test.only_first > 0
    assert found.cases
    for case in found.cases:
        before, after = case.answer_before == case.gold, case.answer_after == case.gold
        assert (before, after) == ((False, True) if case.helped else (True, False))
        assert (case.margins[0] > 0, case.margins[1] > 0) == (before, after)
        assert len(case.thoughts) == found.setting.latent_steps


def test_a_step_towards_strong_is_one_away_from_weak(tmp_path):
    options = {"memory_rate": 0.0, "step_size": 0.5, "limit": 30, "num": 1}
    found = study_cases(SET, task="latentref_hops_mc", work=str(tmp_path), **options)
    for thought in (one for case in found.cases for one in case.thoughts):
        gained = thought.to_strong[0] - thought.to_strong[1]
        assert gained > thought.to_weak[0] - thought.to_weak[1]


def test_readings_are_likeliest_first(found):
    for thought in found.cases[0].thoughts:
        for reading in (thought.plain, thought.raw, thought.refined):
            values = [p for _, p in reading]
            assert values == sorted(values, reverse=True)
            assert 0 < sum(values) <= 1.0001


def test_free_answers_are_written_and_the_page_has_them(tmp_path, capsys):
    page = tmp_path / "thoughts.md"
    words = ["thoughts", SET, "--task", "latentref_hops", "--limit", "20", "-o", str(page)]
    words += ["--memory-rate", "0.6", "--step-size", "0.8", "--num", "1", "--work", str(tmp_path)]
    assert main(words) == 0
    content = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    (case,) = content["cases"]
    assert (case["answer_before"] == case["gold"]) != case["helped"]
    text = page.read_text(encoding="utf-8")
    assert f"without refinement `{case['answer_before']}`" in text
    assert text.strip() in capsys.readouterr().out


def test_every_case_has_a_table_of_its_thoughts(found):
    page = as_markdown(found, command="latentref thoughts ...")
    assert page.count("## Document") == len(found.cases)
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    assert len(rows) == sum(1 + len(case.thoughts) for case in found.cases)
    assert all(row.count("|") == rows[0].count("|") for row in rows)


def test_what_refines_nothing_is_refused(tmp_path):
    options = {"memory_rate": 0.0, "step_size": 0.0, "limit": 2}
    with pytest.raises(LatentRefError, match="nothing is refined"):
        study_cases(SET, task="latentref_hops_mc", work=str(tmp_path), **options)
