"""The training records of a folder, and the command that repeats the training."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil

import pytest
from training_helpers import metrics, small_recipe, write_json

from lm_eval_latentref.checkpoints import packaged
from lm_eval_latentref.checkpoints.manifest import read_manifest
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.training import recipe as recipes
from lm_eval_latentref.training.log import read_training, retrain_command
from lm_eval_latentref.training.recipe import load_recipe
from lm_eval_latentref.training.trainer import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("log") / "out"
    return train(small_recipe(folder, weak_epoch=1, max_latent_stage=1))


def test_seconds_are_summed_by_phase_and_the_references_are_those_on_disk(trained):
    log = read_training(str(trained))
    lines = metrics(trained)
    assert list(log.seconds) == ["cot", "coconut"]
    for phase, seconds in log.seconds.items():
        own = [line for line in lines if line["phase"] == phase]
        assert seconds == sum(line["seconds"] + line["validation_seconds"] for line in own)
    assert list(log.losses) == ["cot", "coconut stage 1", "coconut stage 2"]
    assert [x for actual in log.losses.values() for x in actual] == [each["loss"] for each in lines]
    assert list(log.accuracies) == list(log.losses)
    assert [x for actual in log.accuracies.values() for x in actual] == [
        each["validation_accuracy"] for each in lines
    ]
    for role in ("weak", "strong"):
        epoch = log.references[role]
        assert read_manifest(trained / role / "latentref.json").epoch == epoch.number
        (line,) = (
            each for each in lines if each["phase"] == "cot" and each["epoch"] == epoch.number
        )
        assert epoch.accuracy == line["validation_accuracy"]
        assert epoch.num_problems == line["validation_problems"] == 20
    assert log.references["weak"].number == 1


def test_without_recorded_epochs_the_references_are_chosen_again(trained, tmp_path):
    folder = tmp_path / "old"
    shutil.copytree(trained, folder)
    for role in ("weak", "strong"):
        values = json.loads((folder / role / "latentref.json").read_text())
        del values["epoch"]
        (folder / role / "latentref.json").write_text(json.dumps(values))
    assert read_training(str(folder)) == read_training(str(trained))


def test_without_manifests_of_references_they_are_chosen_again(trained, tmp_path):
    folder = tmp_path / "silent"
    shutil.copytree(trained, folder)
    for role in ("weak", "strong"):
        (folder / role / "latentref.json").unlink()
    assert read_training(str(folder)) == read_training(str(trained))


def test_a_packaged_set_is_named_without_its_folder_and_trained_elsewhere(
    trained, tmp_path, monkeypatch
):
    for module in (packaged, recipes):
        monkeypatch.setattr(module, "PACKAGED_MODELS", tmp_path)
    shutil.copytree(trained, tmp_path / "ours")
    command = retrain_command(str(tmp_path / "ours"))
    assert command == "latentref train ours/recipe.yaml output=out/ours-again"
    _, _, name, *overrides = shlex.split(command)
    assert load_recipe(name, overrides).output == "out/ours-again"


def test_a_training_of_one_baseline_alone_has_no_references_and_needs_no_data(tmp_path):
    folder = train(small_recipe(tmp_path / "out", phases=["no_cot"], no_cot_epochs=2))
    (folder / "recipe.yaml").write_text("train: not-at-hand.json\n")
    actual = read_training(str(folder))
    assert actual.references == {}
    assert len(actual.losses["no_cot"]) == 2


def test_a_folder_without_metrics_has_no_log_and_damaged_files_are_named(tmp_path):
    assert read_training(str(tmp_path)) is None
    assert retrain_command(str(tmp_path)) is None
    for content in ("no json\n", "{}\n", "[1]\n"):
        (tmp_path / "metrics.jsonl").write_text(content)
        with pytest.raises(LatentRefError, match=r"metrics\.jsonl.*is not a file") as error:
            read_training(str(tmp_path))
        assert "\n" not in str(error.value)


def test_it_has_the_problems_of_each_source_and_how_many_were_held_out(trained, tmp_path):
    assert read_training(str(trained)).data == {}  # generated, and kept apart by the generator
    path = write_json(tmp_path / "train.json", ["one", "two", "held"])
    changes = {"train": [path], "task": {}, "check_overlap": False, "weak_epoch": 1}
    changes["validation"] = write_json(tmp_path / "valid.json", ["held"])
    folder = train(small_recipe(tmp_path / "out", **changes))
    assert read_training(str(folder)).data == {path: {"problems": 2, "removed": 1}}
    for content in ("no json", '{"a": 1}', "[]"):
        (folder / "training_data.yaml").write_text(content)
        with pytest.raises(LatentRefError, match=r"data\.yaml.*(is not a file|must hold)") as error:
            read_training(str(folder))
        assert "\n" not in str(error.value)


def test_the_retrain_command_names_the_folders_own_recipe(trained, tmp_path):
    command = retrain_command(str(trained))
    program, train_word, path, *overrides = shlex.split(command)
    assert (program, train_word, path) == ("latentref", "train", f"{trained}/recipe.yaml")
    again = load_recipe(path, overrides)
    assert again == dataclasses.replace(load_recipe(path), output=f"{trained}-again")
    (tmp_path / "recipe.yaml").write_text("of_another_release: 1\n")
    assert retrain_command(str(tmp_path)) is None
