"""Adapters: several on one base, with trained rows of their own, and keys that do not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny import tiny_tokenizer
from tiny_checkpoints import (
    END,
    LATENT,
    MARKER_ROWS,
    PLAIN_ROWS,
    START,
    base,
    failing,
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

from lm_eval_latentref.checkpoints.manifest import Manifest, write_manifest
from lm_eval_latentref.errors import LatentRefError

__all__ = ["base"]


MARKED = (3, START, 7, END, 9)


def merged(base, adapter, rows=PLAIN_ROWS):
    """The oracle: PEFT's own loading and merging, one adapter on a base of its own."""
    model = AutoModelForCausalLM.from_pretrained(base)
    if rows != PLAIN_ROWS:
        model = grown(model, seed=99)
    return PeftModel.from_pretrained(model, adapter).merge_and_unload().eval()


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
    assert "is an adapter itself" in failing(plan_of, pretrained=path, peft=path)
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
