"""Studies of kept epochs: the same epoch of several seeds, with the models of its training."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import yaml
from studies import as_markdown, ask, folders, study, work
from tables import squeezed

from lm_eval_latentref.checkpoints.manifest import read_manifest, write_manifest
from lm_eval_latentref.checkpoints.packaged import PACKAGED_MODELS
from lm_eval_latentref.cli import main
from lm_eval_latentref.cli.parser import parser
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.evaluation import study as study_module
from lm_eval_latentref.evaluation.overview import overview_json, overview_page
from lm_eval_latentref.evaluation.statistics import interval_over_seeds
from lm_eval_latentref.evaluation.study import run_studies
from lm_eval_latentref.evaluation.study_report import study_json
from lm_eval_latentref.evaluation.study_sets import SetPlace, distinct_names

__all__ = ["ask", "folders", "study", "work"]

EPOCH = "coconut-4-1"


def training(root, seed):
    """A folder as `latentref train` leaves it, with kept epochs, made of the packaged set."""
    packaged = PACKAGED_MODELS / "graph-small"
    shutil.copytree(packaged / "control", root)
    for part in ("strong", "weak", "no_cot"):
        shutil.copytree(packaged / part, root / part)
    backbone = shutil.ignore_patterns("control", "cot", "no_cot", "strong", "weak", "demo.json")
    for epoch in (EPOCH, "pause-4-1"):
        shutil.copytree(packaged, root / "epochs" / epoch, ignore=backbone)
        manifest = read_manifest(root / "epochs" / epoch / "latentref.json")
        kept = dataclasses.replace(
            manifest, strong=None, weak=None, memory_rate=None, search_step_size=None
        )
        write_manifest(root / "epochs" / epoch, kept)
    own = dataclasses.replace(read_manifest(root / "latentref.json"), strong="strong", weak="weak")
    write_manifest(root, own)
    (root / "recipe.yaml").write_text(yaml.safe_dump({"seed": seed, "output": str(root)}))
    return str(root / "epochs" / EPOCH)


@pytest.fixture(scope="module")
def epochs(tmp_path_factory):
    root = tmp_path_factory.mktemp("trainings")
    return [training(root / f"s{seed}", seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def of_epochs(epochs, tmp_path_factory):
    (made,) = run_studies(
        epochs,
        tasks=["latentref_graph"],
        work=str(tmp_path_factory.mktemp("work")),
        memory_rates=(0.3,),
        step_sizes=(0.3,),
        recommended=True,
        contrasts={"control": ("../..", ".")},
        checkpoints={"weak-cot": "weak", "finished": "../.."},
        batch_size=12,
        limit=6,
    )
    return made


@pytest.mark.slow
def test_a_kept_epoch_has_the_rows_of_its_training(of_epochs, epochs):
    for trained, folder in zip(of_epochs.sets, epochs, strict=True):
        root = str(Path(folder).parents[1])
        own = {name: row.model_args for name, row in trained.rows.items()}
        others = {
            "No-CoT": f"{root}/no_cot",
            "CoT": f"{root}/strong",
            "pause tokens": f"{root}/epochs/pause-4-1",
            "weak-cot": f"{root}/weak",
            "finished": root,
        }
        refined = ("Coconut", "+ residual", "+ search", "both", "recommended", "control")
        assert list(own) == [*others, *refined]
        assert {name: own[name]["pretrained"] for name in others} == others
        assert {own[name]["pretrained"] for name in refined} == {folder}
        for name in ("+ search", "both"):
            assert (own[name]["strong"], own[name]["weak"]) == (f"{root}/strong", f"{root}/weak")
        assert (own["control"]["strong"], own["control"]["weak"]) == (root, folder)
        assert own["Coconut"].keys().isdisjoint({"strong", "weak"})


@pytest.mark.slow
def test_epochs_of_the_same_name_are_kept_apart(of_epochs):
    first, second = of_epochs.sets
    assert first.heat_map != second.heat_map
    assert (first.recipe["seed"], second.recipe["seed"]) == (0, 1)
    page = as_markdown(of_epochs, command="")
    for trained in of_epochs.sets:
        assert f"## {trained.folder}, training seed {trained.recipe['seed']}" in page


@pytest.mark.slow
def test_a_checkpoint_that_writes_steps_is_not_scored_by_candidates(of_epochs):
    rows = of_epochs.sets[0].rows
    assert {name for name, row in rows.items() if row.scored is None} == {"CoT", "weak-cot"}


@pytest.mark.slow
def test_the_recommended_row_is_the_setting_that_the_sweep_recommends(of_epochs):
    for trained in of_epochs.sets:
        recommended = trained.sweep.choice.recommended.setting
        row = trained.rows["recommended"]
        assert row.setting == recommended.label
        assert row.model_args["memory_rate"] == recommended.memory_rate
        same = [other for other in trained.rows.values() if other.model_args == row.model_args]
        assert len({id(other.run) for other in same}) == 1  # nothing is evaluated twice
    commands = as_markdown(of_epochs, command="").split("## Commands")[1].splitlines()
    repeated = [line for line in commands if line.startswith("latentref run")]
    assert len(repeated) == len(set(repeated))


def test_a_set_without_references_has_no_rows_of_search(tmp_path):
    options = {"work": str(tmp_path), "memory_rates": (0.3,), "limit": 3, "margins": False}
    (made,) = run_studies(["graph-small/control"], tasks=["latentref_graph_mc"], **options)
    assert list(made.sets[0].rows) == ["Coconut", "+ residual"]


@pytest.mark.slow
def test_the_overview_of_several_tasks_leaves_no_row_out(of_epochs):
    content = study_json(of_epochs, command="")
    of_all = {"latentref_graph": content, "latentref_arith": content}
    pages = {task: f"{task}/results.json" for task in of_all}
    page = squeezed(overview_page(of_all, pages, command=""))
    assert page.startswith(f"# s0/epochs/{EPOCH}, s1/epochs/{EPOCH}: 2 tasks")
    accuracy, gains = (page.split(f"## {name}")[1] for name in ("Accuracy", "Gains"))
    head = next(line for line in accuracy.splitlines() if line.startswith("| task |"))
    rows = set(content["mean_over_sets"])
    assert set(head.strip("| ").split(" | ")) >= rows
    refined = {"+ residual", "+ search", "both", "recommended", "control"}
    shown = {name for name in rows if f"| latentref_graph | {name} |" in gains.split("##")[0]}
    assert shown == refined
    assert overview_json(of_all, pages, command="")["pooled"].keys() == {
        trained.folder for trained in of_epochs.sets
    }


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["out/s0", "out/s1"], ["s0", "s1"]),
        (["s0/epochs/e", "s1/epochs/e"], ["s0/epochs/e", "s1/epochs/e"]),
        (["s0/epochs/e", "s1/epochs/e", "s1/epochs/f"], ["s0/epochs/e", "s1/epochs/e", "f"]),
        (["/e", "/a/e"], ["e", "a/e"]),
    ],
)
def test_a_set_is_named_by_as_much_of_its_path_as_makes_it_distinct(given, expected):
    assert distinct_names(given) == expected


def test_the_same_folder_is_refused_however_it_is_spelled(tmp_path):
    with pytest.raises(LatentRefError, match="is given twice"):
        distinct_names([str(tmp_path / "s0"), f"{tmp_path}/other/../s0/"])


def test_only_a_folder_that_a_training_kept_is_an_epoch(epochs, tmp_path):
    assert SetPlace(epochs[0]).epoch == EPOCH
    lone = tmp_path / "epochs" / EPOCH
    shutil.copytree(epochs[0], lone)
    assert SetPlace(str(lone)).epoch is None
    assert SetPlace(str(lone)).root == str(lone)
    assert SetPlace("graph-small").root == "graph-small"


def test_references_in_the_epochs_own_file_take_precedence(epochs, tmp_path):
    folder = training(tmp_path / "s2", 2)
    assert SetPlace(folder).references().keys() == {"strong", "weak"}
    manifest = read_manifest(Path(folder) / "latentref.json")
    write_manifest(folder, dataclasses.replace(manifest, strong="a", weak="b"))
    assert SetPlace(folder).references() == {}


# Over seeds.


def seeds_of(study, seeds):
    """`study` with a set for each seed; row "both" has another accuracy in each."""
    rows = study.sets[0].rows
    runs = [rows[name].run for name in ("CoT", "No-CoT", "both", "Coconut")]
    made = [
        dataclasses.replace(
            study.sets[0],
            folder=f"out/s{number}",
            recipe={"seed": seed},
            rows={**rows, "both": dataclasses.replace(rows["both"], run=runs[number])},
        )
        for number, seed in enumerate(seeds)
    ]
    return dataclasses.replace(study, sets=tuple(made)), runs, rows["Coconut"].run.accuracy


def test_students_interval_over_seeds_is_on_the_page(study):
    made, runs, coconut = seeds_of(study, (0, 1, 2))
    expected = interval_over_seeds([run.accuracy - coconut for run in runs[:3]])
    mean = study_json(made, command="")["mean_over_sets"]["both"]
    assert mean["over_seeds"] == dataclasses.asdict(expected)
    assert mean["over_seeds"]["mean"] == pytest.approx(mean["against_coconut"]["mean"])
    low, high = (f"{100 * value:+.2f}" for value in (expected.low, expected.high))
    means = as_markdown(made, command="").split("## Mean over the training seeds")[1]
    (line,) = [line for line in means.split("##")[0].splitlines() if line.startswith("| both")]
    assert f"[{low}, {high}] |" in line


@pytest.mark.parametrize(
    ("seeds", "heading"), [((0, 1), "training seeds"), ((0, 1, 1), "sets"), ((0, 0, 1, 2), "sets")]
)
def test_few_or_equal_seeds_have_no_interval(study, seeds, heading):
    made, *_ = seeds_of(study, seeds)
    means = study_json(made, command="")["mean_over_sets"]
    assert {mean["over_seeds"] and 1 for mean in means.values()} == {None}
    page = as_markdown(made, command="").split(f"## Mean over the {heading}\n")[1]
    assert " | - | " in page.split("##")[0]


def test_different_epochs_are_not_seeds(study):
    made, *_ = seeds_of(study, (0, 1, 2))
    epochs = [dataclasses.replace(each, epoch=each.folder) for each in made.sets]
    mixed = dataclasses.replace(made, sets=tuple(epochs))
    assert study_json(mixed, command="")["mean_over_sets"]["both"]["over_seeds"] is None


# The command line.


def test_a_row_is_given_as_name_and_checkpoint(epochs, tmp_path, capsys):
    words = ["study", *epochs, "--task", "latentref_graph", "-o", str(tmp_path / "page")]
    args = parser().parse_args([*words, "--row", "weak-cot=weak", "--row", "x=../.."])
    assert dict(args.row) == {"weak-cot": "weak", "x": "../.."}
    for wrong in ("weak", "=weak", "weak="):
        with pytest.raises(LatentRefError, match="NAME=CHECKPOINT"):
            parser().parse_args([*words, "--row", wrong])
    for taken in ("recommended", "both"):
        assert main([*words, "--work", str(tmp_path / "work"), "--row", f"{taken}=weak"]) == 2
        assert "that no other row has" in capsys.readouterr().err


def test_options_of_further_rows_reach_the_study(epochs, tmp_path, monkeypatch):
    class Asked(Exception):
        pass

    def run_studies(folders, **options):
        raise Asked(options)

    monkeypatch.setattr(study_module, "run_studies", run_studies)
    words = ["study", *epochs, "--task", "latentref_graph", "-o", str(tmp_path / "page")]
    words += ["--recommended", "--row", "weak-cot=weak", "--contrast", "control=../..,."]
    with pytest.raises(Asked) as error:
        main(words)
    (options,) = error.value.args
    assert options["recommended"]
    assert options["checkpoints"] == {"weak-cot": "weak"}
    assert options["contrasts"] == {"control": ("../..", ".")}
