"""latentref.json: it reads back as it was written; a wrong value is an error that names it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_checkpoints import fresh_model, plan_of, save_folder

from lm_eval_latentref.checkpoints.manifest import (
    MANIFEST_NAME,
    Manifest,
    read_manifest,
    write_manifest,
)
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.config import RefinementConfig

MANIFESTS = st.builds(
    Manifest,
    latent_steps=st.none() | st.integers(0, 100),
    memory_rate=st.none() | st.floats(0, 1),
    search_step_size=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    search_steps=st.none() | st.integers(1, 9),
    search_gradient=st.none() | st.sampled_from(["detached", "through"]),
    latent_markers=st.none() | st.sampled_from(["auto", "none"]),
    strong=st.none() | st.text(),
    weak=st.none() | st.text(),
    base=st.none() | st.text(),
    tuned_on=st.none() | st.text(),
)


@given(MANIFESTS)
def test_what_is_written_is_read_back(tmp_path_factory, manifest):
    folder = tmp_path_factory.mktemp("manifest")
    assert read_manifest(write_manifest(folder, manifest)) == manifest


def test_settings_are_the_refinement_options_that_are_set():
    manifest = Manifest(latent_steps=6, memory_rate=0.0, strong="strong", tuned_on="mathqa dev")
    assert manifest.settings() == {"latent_steps": 6, "memory_rate": 0.0}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"latent_stepps": 6}, "'latent_stepps'; did you mean latent_steps?"),
        ({"latent_steps": "6"}, "latent_steps='6': it must be an integer"),
        ({"trained_on": "graph train"}, "trained_on='graph train'"),
        ({"trained_on": ["graph train", 3]}, "trained_on=['graph train', 3]"),
        ({"search_steps": 10**30}, "at most 10000"),
        ({"latent_steps": True}, "latent_steps=True"),
        ({"latent_steps": -1}, "latent_steps=-1"),
        ({"memory_rate": 1.5}, "memory_rate=1.5"),
        ({"search_gradient": "sideways"}, "search_gradient=sideways"),
        ({"strong": 3}, "strong=3"),
        ({"format_version": 2}, "format_version=2"),
    ],
)
def test_a_wrong_key_is_named_with_its_file(tmp_path, values, said):
    path = tmp_path / MANIFEST_NAME
    path.write_text(json.dumps({"format_version": 1, **values}), encoding="utf-8")
    with pytest.raises(LatentRefError) as error:
        read_manifest(path)
    message = str(error.value)
    assert said in message
    assert str(path) in message
    assert "\n" not in message


@pytest.mark.parametrize("text", ["{", "[]", '"six"', '{"latent_steps": 6}'])
def test_a_file_that_is_no_manifest_is_named(tmp_path, text):
    path = tmp_path / MANIFEST_NAME
    path.write_text(text, encoding="utf-8")
    with pytest.raises(LatentRefError, match=MANIFEST_NAME):
        read_manifest(path)


@pytest.mark.parametrize("kind", ["folder", "loop", "dangling", "empty"])
def test_a_file_that_is_there_but_cannot_be_read_never_switches_refinement_off(tmp_path, kind):
    folder = save_folder(fresh_model(), tmp_path / "set")
    path = tmp_path / "set" / MANIFEST_NAME
    if kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    else:
        path.symlink_to(path if kind == "loop" else tmp_path / "nothing")
    with pytest.raises(LatentRefError, match=MANIFEST_NAME) as error:
        plan_of(pretrained=folder)
    assert "\n" not in str(error.value)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    write_manifest(tmp_path, Manifest(latent_steps=3))

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(LatentRefError, match="disk full"):
        write_manifest(tmp_path, Manifest(latent_steps=4))
    assert read_manifest(tmp_path / MANIFEST_NAME).latent_steps == 3
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST_NAME]


def test_a_step_size_in_units_of_half_d_is_kept_as_it_was_written(tmp_path):
    config = RefinementConfig.parse({"search_step_size": "0.3*d/2"})
    written = Manifest(latent_steps=6, search_step_size=config.search_step_size)
    assert read_manifest(write_manifest(tmp_path, written)).search_step_size == "0.3*d/2"
