"""References in latentref.json: never the backbone itself, and no local path in a hub set."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from tiny_checkpoints import fresh_model, plan_of, save_adapter, save_folder

from lm_eval_latentref.checkpoints.questions import hash_questions, write_hashes
from lm_eval_latentref.checkpoints.sources import Folder
from lm_eval_latentref.errors import LatentRefError


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_folder(fresh_model(), tmp_path_factory.mktemp("model") / "model")


def write(folder, strong):
    values = {"format_version": 1, "strong": strong}
    with open(os.path.join(folder, "latentref.json"), "w", encoding="utf-8") as file:
        json.dump(values, file)


def refused(match, **names):
    with pytest.raises(LatentRefError, match=match) as caught:
        plan_of(**names)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("strong", ["", ".", "./", "strong/..", "../set", "ABSOLUTE", "LINK"])
def test_the_backbone_is_no_reference_of_its_own(model, tmp_path, strong):
    folder = shutil.copytree(model, tmp_path / "set")
    (tmp_path / "link").symlink_to(folder)
    places = {"ABSOLUTE": str(folder), "LINK": str(tmp_path / "link")}
    write(folder, places.get(strong, strong))
    refused("is the backbone itself", pretrained=str(folder))


def test_an_adapter_is_no_reference_of_its_own_but_its_base_is_one(model, tmp_path, caplog):
    adapter = save_adapter(model, tmp_path / "adapter", seed=1)
    write(adapter, ".")
    refused("is the backbone itself", pretrained=adapter)
    write(adapter, model)
    assert plan_of(pretrained=adapter).strong.base == model


def test_a_reference_outside_the_folder_is_said_and_one_inside_is_not(model, tmp_path, caplog):
    folder = shutil.copytree(model, tmp_path / "set")
    for place in ("set/strong", "beside"):
        shutil.copytree(model, tmp_path / place)
    write(folder, "strong")
    plan_of(pretrained=str(folder))
    assert "outside" not in caplog.text
    write(folder, "../beside")
    plan_of(pretrained=str(folder))
    assert caplog.text.count("is outside that folder") == 1
    assert str(tmp_path / "beside") in caplog.text


@pytest.fixture
def hub(model, tmp_path, monkeypatch):
    """A hub that has one repository, me/set, with the files of this folder."""
    folder = shutil.copytree(model, tmp_path / "hub")

    def fetch(self, relative):
        path = folder / relative
        return str(path) if self.name == "me/set" and path.is_file() else missing()

    def missing():
        from huggingface_hub.errors import EntryNotFoundError

        raise EntryNotFoundError("no such file")

    monkeypatch.setattr(Folder, "_fetch", fetch)
    return folder


@pytest.mark.parametrize("strong", ["ABSOLUTE", "../other", "a/../../other", "~/other", "here"])
def test_a_set_from_the_hub_names_no_place_on_this_machine(
    model, hub, tmp_path, monkeypatch, strong
):
    shutil.copytree(model, tmp_path / "here")
    monkeypatch.chdir(tmp_path)
    write(hub, model if strong == "ABSOLUTE" else strong)
    refused("not allowed", pretrained="me/set")


@pytest.mark.parametrize("base", ["ABSOLUTE", "../here", "./here", "~/here", "C:\\here"])
def test_an_adapter_from_the_hub_names_no_base_on_this_machine(
    model, hub, tmp_path, monkeypatch, base
):
    (hub / "config.json").unlink()
    save_adapter(model, hub, seed=1)
    shutil.copytree(model, tmp_path / "here")
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    monkeypatch.setenv("HOME", str(tmp_path))
    config = json.loads((hub / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = model if base == "ABSOLUTE" else base
    (hub / "adapter_config.json").write_text(json.dumps(config))
    refused("give the base as pretrained=", pretrained="me/set")


@pytest.mark.parametrize("name", ["ABSOLUTE", "../hashes.npy", "a/../../hashes.npy", "..", ""])
def test_a_set_names_hashes_beside_its_latentref_json_only(model, tmp_path, name):
    folder = shutil.copytree(model, tmp_path / "set")
    write_hashes(tmp_path, hash_questions(["a?"]))
    name = str(tmp_path / "trained_questions.npy") if name == "ABSOLUTE" else name
    values = {"format_version": 1, "trained_questions": name}
    (folder / "latentref.json").write_text(json.dumps(values))
    refused("not the name of a file in this folder", pretrained=str(folder))


@pytest.mark.parametrize("strong", ["", ".", "./"])
def test_a_set_from_the_hub_is_no_reference_of_its_own(hub, strong):
    write(hub, strong)
    refused("is the backbone itself", pretrained="me/set")


def test_a_set_from_the_hub_has_its_references_inside(model, hub):
    shutil.copytree(model, hub / "strong")
    write(hub, "./strong")
    assert plan_of(pretrained="me/set").strong.subfolder == "strong"
