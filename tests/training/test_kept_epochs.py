"""Epochs kept as folders, and references taken from the CoT run that a training starts from."""

from __future__ import annotations

import dataclasses
import shutil

import pytest
import torch
from safetensors.torch import load_file
from training_helpers import small_recipe

from lm_eval_latentref.checkpoints.loading import load
from lm_eval_latentref.checkpoints.manifest import read_manifest
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.training.start import Start
from lm_eval_latentref.training.trainer import train

KEPT = ["cot-1", "cot-2", "cot-3"]


def weights(folder):
    return load_file(folder / "model.safetensors")


def same(first, second):
    first, other = weights(first), weights(second)
    return first.keys() == other.keys() and all(
        torch.equal(first[name], other[name]) for name in first
    )


@pytest.fixture(scope="module")
def cot(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept") / "cot"
    named = {"weak_epoch": 1, "strong_epoch": 3}
    return train(small_recipe(folder, phases=["cot"], keep_epochs=KEPT, **named))


@pytest.fixture(scope="module")
def coconut(cot):
    kept = ["coconut-1-1", "coconut-2-1", "coconut-2-2", "pause-1-1"]
    recipe = small_recipe(
        cot.parent / "coconut",
        **{"config": None, "pretrained": str(cot), "phases": ["pause", "coconut"]},
        **{"keep_epochs": kept, "last_stage": 2, "last_stage_epochs": 2},
    )
    return train(recipe)


def test_a_kept_epoch_is_the_model_as_it_was_after_that_epoch(cot):
    assert sorted(folder.name for folder in (cot / "epochs").iterdir()) == KEPT
    assert same(cot / "epochs" / "cot-3", cot / "strong")
    assert same(cot / "epochs" / "cot-1", cot / "weak")
    assert not same(cot / "epochs" / "cot-2", cot / "strong")
    assert read_manifest(cot / "epochs" / "cot-2" / "latentref.json").epoch == 2


def test_a_kept_epoch_thinks_as_its_stage_does(coconut):
    steps = {"coconut-1-1": 1, "coconut-2-2": 2, "pause-1-1": 1}
    for name, num_thoughts in steps.items():
        config = load(str(coconut / "epochs" / name)).config
        assert config.latent_steps == num_thoughts
        assert config.latent_kind == ("pause" if name.startswith("pause") else "continuous")
    assert same(coconut / "epochs" / "coconut-2-2", coconut)


def test_latentref_json_says_which_models_still_write_steps(cot, coconut):
    writes = {name: cot / name for name in ("strong", "weak", ".")}
    writes["inner"] = coconut / "epochs" / "coconut-1-1"
    for folder in writes.values():
        assert read_manifest(folder / "latentref.json").writes_steps is True
    for folder in (coconut, coconut / "epochs" / "coconut-2-1", coconut / "pause"):
        assert read_manifest(folder / "latentref.json").writes_steps is None


def test_coconut_keeps_the_references_of_the_cot_run_it_starts_from(cot, coconut):
    manifest = read_manifest(coconut / "latentref.json")
    assert (manifest.strong, manifest.weak) == ("strong", "weak")
    assert same(coconut / "strong", cot / "strong")
    assert same(coconut / "weak", cot / "weak")


def test_strong_and_weak_can_be_named_by_epoch_after_the_cot_run(cot, tmp_path):
    start = {"config": None, "pretrained": str(cot), "phases": ["coconut"]}
    folder = train(small_recipe(tmp_path / "out", weak_epoch=2, **start))
    assert same(folder / "weak", cot / "epochs" / "cot-2")
    assert same(folder / "strong", cot / "strong")
    with pytest.raises(LatentRefError, match="did not keep epoch 9 of CoT"):
        train(small_recipe(tmp_path / "other", strong_epoch=9, **start))


def test_an_epoch_is_named_only_if_it_is_there(cot, tmp_path):
    """A run without `keep_epochs` has the epochs of its references, and no others."""
    bare = tmp_path / "bare"
    shutil.copytree(cot, bare, ignore=shutil.ignore_patterns("epochs"))
    recipe = small_recipe(tmp_path / "out", pretrained=str(bare), config=None, phases=["coconut"])
    named = dataclasses.replace(recipe, weak_epoch=3, strong_epoch=1)
    assert Start(named).references() == {"strong": bare / "weak", "weak": bare / "strong"}
    with pytest.raises(LatentRefError, match="did not keep epoch 2 of CoT"):
        Start(dataclasses.replace(recipe, weak_epoch=2))


@pytest.mark.parametrize("name", ["cot-4", "coconut-4-1", "coconut-1", "pause-1-1", "cot"])
def test_an_epoch_that_is_not_trained_cannot_be_kept(tmp_path, name):
    with pytest.raises(LatentRefError, match=f"keep_epochs={name}: this recipe does not train"):
        train(small_recipe(tmp_path / "out", keep_epochs=[name]))
