"""The evidence: its scripts on a tiny model, its committed page, and a cell of the table again."""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from matrix import crossed

from lm_eval_latentref.cli import main
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.evaluation.dev_tasks import load_task
from lm_eval_latentref.evaluation.judge import judge
from lm_eval_latentref.evaluation.settings import Grid, Setting
from lm_eval_latentref.evaluation.statistics import proportion_interval
from lm_eval_latentref.evaluation.sweep import load_model

FOLDER = Path(__file__).parents[2] / "results" / "evidence"
SCRIPTS = ("plan", "task_page", "pictures", "unit", "page")
NUM_AGAIN = 500
TINY = {
    "output": "out",
    "phases": ["no_cot", "cot", "pause", "coconut"],
    "config": {
        "model_type": "llama",
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    },
    "train": "arith",
    "num_train": 400,
    "num_validation": 10,
    "max_new_tokens": 16,
    "last_stage": 3,
    "epochs_per_stage": 1,
    "no_cot_epochs": 1,
    "cot_epochs": 2,
    "strong_epoch": 2,
    "weak_epoch": 1,
    "keep_epochs": ["coconut-2-1", "coconut-3-1", "pause-3-1"],
    "batch_size": 100,
}

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="results are not in the sdist")


@pytest.fixture(scope="module")
def scripts():
    """The scripts as modules, by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield {name: importlib.import_module(name) for name in SCRIPTS}
        for name in SCRIPTS:
            del sys.modules[name]


@pytest.fixture(scope="module")
def tiny_plan(scripts, tmp_path_factory):
    recipe = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(TINY))
    rung = scripts["plan"].Rung(name="coconut-3-1", earlier="coconut-2-1", pause="pause-3-1")
    return scripts["plan"].Plan(
        recipe=str(recipe), task="latentref_arith", rungs=(rung,), chance=1 / 11
    )


@pytest.fixture(scope="module")
def made(scripts, tiny_plan, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unit")
    unit = scripts["unit"].Unit("arith", 0, folder / "work", plan=tiny_plan, limit=12)
    content = unit.run()
    (folder / "arith-0.json").write_text(json.dumps(content))
    return folder, unit, content


@pytest.mark.slow
def test_a_unit_has_every_row_and_continues_without_repeating_work(made, monkeypatch):
    _, unit, content = made
    (rung,) = content["rungs"]
    assert list(rung["rows"]) == [
        *("Coconut", "+ residual", "+ search", "both", "recommended", "control", "self-contrast")
    ]
    assert {len(rung["eta"][name]) for name in ("paper", "control")} == {8}
    assert len(rung["dev"]["paper"]) == 5 * 9
    assert rung["rows"]["Coconut"]["gained"] == rung["rows"]["Coconut"]["lost"] == 0
    monkeypatch.setattr(type(unit), "_written", lambda *_: pytest.fail("done again"))
    monkeypatch.setattr(type(unit), "_rung", lambda *_: pytest.fail("done again"))
    assert unit.run()["rungs"] == content["rungs"]


@pytest.mark.slow
def test_the_page_is_made_of_the_units_that_are_there(made, scripts, tiny_plan, monkeypatch):
    folder, _, content = made
    page = scripts["page"]
    monkeypatch.setitem(scripts["plan"].PLANS, "arith", tiny_plan)
    second = {**content, "seed": 1}
    (folder / "arith-1.json").write_text(json.dumps(second))
    (task,) = scripts["task_page"].read_units(folder)
    text = page.render([task])
    assert "Seeds on this page: arith 0, 1. Planned and not run: arith 2." in text
    row = task.difference("coconut-3-1", "control")
    assert f"{task.accuracy('coconut-3-1', 'control'):.1f} ({page.bounds(row)}" in text
    plain = 100 * content["rungs"][0]["rows"]["Coconut"]["accuracy"]
    assert f"**{plain:.1f}** (by seed {plain:.1f}, {plain:.1f})" in text
    assert row.over_seeds is None  # two seeds are too few
    scripts["pictures"].draw(task, folder / "arith.png")
    assert (folder / "arith.png").stat().st_size > 10_000


@pytest.mark.parametrize(("right", "beats"), [(270, False), (275, True)])
def test_a_backbone_at_chance_has_no_rungs_and_its_training_is_shown(
    right, beats, scripts, tmp_path
):
    written = {"accuracy": right / 500, "by_steps": {"3": {"num": 200}, "4": {"num": 300}}}
    lower = scripts["unit"]._lower_bound(written)
    assert (lower > 0.5) == beats
    assert lower == pytest.approx(proportion_interval([1] * right + [0] * (500 - right)).low)
    if beats:
        return
    bits = np.packbits(np.arange(500) < right).tobytes().hex()
    parts = ("Coconut, finished", "CoT", "No-CoT", "pause, finished")
    unit = {
        "seed": 0,
        "baselines": {part: {**written, "correct": bits} for part in parts},
        "rungs": [],
        "training_seconds": {"cot": 60.0},
        "losses": {"cot": [3.0, 2.0], "coconut stage 1": [1.0]},
        "accuracies": {"cot": [0.4, 0.5], "coconut stage 1": [0.5]},
    }
    page = scripts["page"]
    task = scripts["task_page"].TaskPage("prosqa-letters", [unit])
    assert "The finished Coconut is right on 54.0 % [49.6, 58.3] of the problems" in page.render(
        [*scripts["task_page"].read_units(FOLDER), task]
    )
    scripts["pictures"].draw_training(task, tmp_path / "training.png")
    assert (tmp_path / "training.png").stat().st_size > 10_000


def test_the_interval_over_seeds_is_students(scripts):
    actual = scripts["task_page"].mean([1.0, 2.0, 3.0], [0.3, 0.4, 0.0])
    assert actual.value == 2.0
    assert actual.over_problems == pytest.approx(1.96 * 0.5 / 3)
    assert actual.over_seeds == pytest.approx(4.302653 / math.sqrt(3))


def test_holms_correction_is_over_all_rows_and_rungs(scripts):
    """A row that one test alone calls better is not better among many tests."""

    class Page:
        rungs = ("a", "b")

        def difference(self, rung, name):
            value = {"control": 5.0, "+ search": 2.2}.get(name, 0.0)
            return scripts["task_page"].Mean(value, 1.96, None)

    numbers = scripts["page"].corrected([Page()])
    assert numbers["control"] == [2, 0]
    assert numbers["+ search"] == [0, 0]
    assert Page().difference("a", "+ search").sign == 1


def test_a_gain_is_excluded_only_where_accuracy_leaves_room_for_it(scripts):
    class Page:
        def accuracy(self, rung, name):
            return {"low": 60.0, "wide": 60.0, "ceiling": 99.0}[rung]

        def difference(self, rung, name):
            return scripts["task_page"].Mean(0.0, 3.0 if rung == "wide" else 0.5, None)

    rungs = [(Page(), rung) for rung in ("low", "wide", "ceiling")]
    assert scripts["page"].excluded(rungs, "both", 1.95) == (1, 2)


@pytest.fixture
def committed(scripts):
    return {page.name: page for page in scripts["task_page"].read_units(FOLDER)}


def test_the_same_answers_again_do_not_narrow_an_interval_over_problems(scripts, committed):
    unit, make = committed["graph"].units[0], scripts["task_page"].TaskPage
    _, expected = make("graph", [unit]).baseline("coconut-3-1", "CoT")
    _, actual = make("graph", [unit, {**unit, "seed": 1}]).baseline("coconut-3-1", "CoT")
    assert actual.over_problems == pytest.approx(expected.over_problems)


def test_backbones_that_chance_or_the_ceiling_hides_are_left_out(scripts, committed):
    generated = {name: page for name, page in committed.items() if not page.plan.is_published}
    shown = {
        (name, unit["seed"], rung): committed[name].rung(unit, rung)["rows"]["Coconut"]["accuracy"]
        for name, page in generated.items()
        for unit, rung in page.backbones(1.95)
    }
    assert ("graph", 0, "coconut-4-1") in shown
    assert ("graph", 2, "coconut-3-1") not in shown  # at chance
    assert ("arith", 0, "coconut-3-1") not in shown  # at the ceiling
    assert max(shown.values()) <= 0.9805
    expected = [
        100 * (row["gained"] - row["lost"]) / 5000
        for name, seed, rung in shown
        for unit in committed[name].units
        if unit["seed"] == seed
        for row in [committed[name].rung(unit, rung)["rows"]["both"]]
    ]
    number, span = scripts["page"].of_backbones(generated.values(), "both", 1.95)
    assert number == len(expected)
    assert span == f"{min(expected):+.1f} to {max(expected):+.1f}"


def test_negative_steps_are_counted_with_the_noise_of_validation(scripts, committed):
    page = scripts["task_page"].TaskPage("graph", committed["graph"].units[:1])
    assert page.settings("coconut-4-1", "self-contrast") == "0, -0.3"
    assert page.backwards("self-contrast", "self") == [True, True, True]
    assert page.backwards("+ search", "paper") == []


def test_units_of_other_problems_or_rungs_are_not_averaged(scripts, committed):
    unit, make = committed["arith"].units[0], scripts["task_page"].TaskPage
    fewer = {**unit, "seed": 1, "rungs": [{**rung, "problems": 12} for rung in unit["rungs"]]}
    for other in (fewer, {**unit, "seed": 1, "rungs": unit["rungs"][:1]}):
        with pytest.raises(LatentRefError, match=r"seed 1 has the rungs .* run unit\.py again"):
            make("arith", [unit, other])


def test_a_result_of_a_unit_is_whole_or_absent(scripts, tmp_path, monkeypatch):
    unit = scripts["unit"].Unit("arith", 0, tmp_path)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        unit._kept("row", lambda: {"accuracy": 1.0})
    monkeypatch.undo()
    assert unit._kept("row", lambda: {"accuracy": 0.5}) == {"accuracy": 0.5}


def test_the_committed_page_is_that_of_the_committed_units(scripts):
    page = scripts["page"]
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert text == page.render(scripts["task_page"].read_units(FOLDER))


@pytest.mark.usefixtures("all_problems")
@pytest.mark.parametrize("row", crossed(["recommended", "Coconut"], every=2))
def test_a_cell_of_the_table_is_found_again_on_the_packaged_set(row, scripts, tmp_path):
    unit = json.loads((FOLDER / "graph-0.json").read_text(encoding="utf-8"))
    (rung,) = [each for each in unit["rungs"] if each["name"] == "coconut-4-1"]
    cell = rung["rows"][row]
    setting = Setting(**cell["setting"])
    grid = Grid(latent_steps=(setting.latent_steps,), step_sizes=(setting.step_size,))
    model = load_model({"pretrained": "graph-small", "batch_size": 250, "device": "cpu"}, grid)
    task = load_task("latentref_graph_mc", limit=NUM_AGAIN)
    plain = Setting(latent_steps=setting.latent_steps)
    (actual,) = judge(model, task, [setting], plain=plain, journal=tmp_path / "journal.jsonl")
    error = math.sqrt(cell["accuracy"] * (1 - cell["accuracy"]) / NUM_AGAIN)
    assert abs(actual.accuracy - cell["accuracy"]) < 1.96 * error
    said = scripts["task_page"].bits(cell["correct"], rung["problems"])[:NUM_AGAIN]
    assert np.sum(said != np.array(actual.correct)) <= 1  # a tie may fall the other way elsewhere


def test_a_sweep_judges_the_best_of_each_row_on_a_test_task_by_number_of_steps(tmp_path, capsys):
    metadata = {"num_documents": 40, "generator_options": {"min_hops": 2}}
    words = ["sweep", "--pretrained", "graph-small", "--task", "latentref_graph_mc_dev"]
    words += ["--judge_on", "latentref_graph_mc", "-o", str(tmp_path)]
    words += ["--strong", "graph-small/control", "--weak", "graph-small"]
    words += ["--memory_rates", "0.3", "--step_sizes", "1", "--metadata", json.dumps(metadata)]
    assert main(words) == 0
    judged = json.loads((tmp_path / "sweep.json").read_text(encoding="utf-8"))["judged"]
    assert (judged["task"], judged["documents"]) == ("latentref_graph_mc", 40)
    assert list(judged["rows"]) == ["plain", "residual", "search", "both", "recommended"]
    plain = np.array(judged["rows"]["plain"]["correct"])
    for row in judged["rows"].values():
        correct = np.array(row["correct"])
        assert row["difference"]["mean"] == pytest.approx(np.mean(correct - plain))
        assert row["gained"] == np.sum(correct > plain)
        parts = row["by_steps"].values()
        assert sum(part["num"] for part in parts) == 40
        right = sum(part["num"] * part["accuracy"] for part in parts)
        assert right == pytest.approx(correct.sum())
    out = capsys.readouterr().out
    assert "The best setting of each row on latentref_graph_mc, 40 documents" in out
