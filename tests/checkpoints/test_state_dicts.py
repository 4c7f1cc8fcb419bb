"""Raw state dicts: they equal the same weights in a folder, and anything else is an error."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from tiny_checkpoints import (
    END,
    LATENT,
    MARKER_ROWS,
    PLAIN_ROWS,
    START,
    base,
    coconut_state,
    failing,
    fresh_model,
    grown,
    load,
    logits,
    plan_of,
    save_folder,
    save_raw,
)

from lm_eval_latentref.checkpoints.opening import load_tokenizer
from lm_eval_latentref.checkpoints.vocabulary import set_rows
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.protocol import marker_ids

__all__ = ["base"]

IDS = (3, START, 7, END, LATENT)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("kind", ["coconut", "parallel", "unwrapped", "safetensors", "legacy"])
def test_a_coconut_file_equals_the_same_weights_from_a_folder(tmp_path, family, kind):
    base = save_folder(fresh_model(family), tmp_path / "base")
    model = grown(fresh_model(family, seed=5))
    folder = save_folder(model, tmp_path / "folder", markers=True)
    path = tmp_path / ("file.safetensors" if kind == "safetensors" else "checkpoint_41")
    state = coconut_state(model)
    if kind == "unwrapped":
        state = model.state_dict()
    if kind == "parallel":
        state = {f"module.{name}": tensor for name, tensor in state.items()}
    if kind == "safetensors":
        save_file({name: tensor.clone() for name, tensor in state.items()}, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind != "legacy")
    from_file, from_folder = load(pretrained=base, weights=str(path)), load(pretrained=folder)
    assert torch.equal(logits(from_file.backbone, IDS), logits(from_folder.backbone, IDS))
    assert torch.equal(logits(from_file.backbone, IDS), logits(model, IDS))
    assert from_file.tokenizer.get_vocab() == from_folder.tokenizer.get_vocab()
    assert marker_ids(from_file.tokenizer, "auto") == (START, END)


def ends(model):
    return model.get_input_embeddings(), model.get_output_embeddings()


@pytest.mark.parametrize(("family", "tied"), [("gpt2", True), ("llama", False)])
def test_new_rows_are_the_mean_of_the_old_and_a_tied_embedding_is_not_drawn_anew(family, tied):
    model = fresh_model(family)
    old = [layer.weight.clone() for layer in ends(model)]
    generator = torch.get_rng_state()
    set_rows(model, PLAIN_ROWS + 3)
    if tied:
        assert torch.equal(torch.get_rng_state(), generator)
    layers = ends(model)
    for layer, old_VD in zip(layers, old, strict=True):
        mean_3D = old_VD.mean(0, keepdim=True).expand(3, -1)
        assert torch.equal(layer.weight, torch.cat([old_VD, mean_3D]))
    assert (layers[0].weight is layers[1].weight) == tied
    assert layers[0].num_embeddings == layers[1].out_features == model.config.vocab_size


def test_a_cot_file_keeps_the_base_vocabulary(base, tmp_path):
    model = fresh_model(seed=5)
    path = save_raw(model.state_dict(), tmp_path / "checkpoint_25")
    loaded = load(pretrained=base, weights=path)
    assert torch.equal(logits(loaded.backbone), logits(model))
    assert marker_ids(loaded.tokenizer, "auto") is None
    assert len(loaded.tokenizer) == PLAIN_ROWS


def test_a_padded_base_is_cut_to_the_rows_of_a_coconut_file(tmp_path):
    base = save_folder(fresh_model("llama", rows=PLAIN_ROWS + 40), tmp_path / "base")
    model = grown(fresh_model("llama", seed=5))
    loaded = load(
        pretrained=base, weights=save_raw(coconut_state(model), tmp_path / "checkpoint_41")
    )
    assert logits(loaded.backbone, IDS).shape[1] == MARKER_ROWS
    assert torch.equal(logits(loaded.backbone, IDS), logits(model, IDS))


def test_references_are_laid_over_the_base_of_the_backbone(base, tmp_path):
    models = {name: fresh_model(seed=seed) for name, seed in (("strong", 6), ("weak", 7))}
    files = {name: save_raw(model.state_dict(), tmp_path / name) for name, model in models.items()}
    coconut = save_raw(coconut_state(grown(fresh_model(seed=5))), tmp_path / "checkpoint_41")
    loaded = load(pretrained=base, weights=coconut, **files)
    assert torch.equal(logits(loaded.strong), logits(models["strong"]))
    assert torch.equal(logits(loaded.weak), logits(models["weak"]))
    assert loaded.strong.borrowed_ids == {START, END, LATENT}
    assert loaded.backbone.borrowed_ids == set()


def test_a_reference_file_with_marker_rows_borrows_nothing(base, tmp_path):
    files = [
        save_raw(coconut_state(grown(fresh_model(seed=seed))), tmp_path / f"checkpoint_{seed}")
        for seed in (5, 6, 7)
    ]
    loaded = load(pretrained=base, weights=files[0], strong=files[1], weak=files[2])
    assert loaded.strong.borrowed_ids == loaded.weak.borrowed_ids == set()


def test_masks_and_frequencies_of_older_releases_are_recognised(tmp_path):
    model = fresh_model()
    base = save_folder(model, tmp_path / "base")
    mask = torch.ones(1, 1, 64, 64, dtype=torch.bool).tril()
    extra = {
        "transformer.h.0.attn.bias": mask,
        "transformer.h.0.attn.masked_bias": torch.tensor(-1e4),
    }
    path = save_raw({**model.state_dict(), **extra}, tmp_path / "checkpoint_25")
    assert torch.equal(logits(load(pretrained=base, weights=path).backbone), logits(model))
    extra["transformer.h.0.attn.bias"] = ~mask
    path = save_raw({**model.state_dict(), **extra}, tmp_path / "checkpoint_26")
    assert "unknown key 'transformer.h.0.attn.bias'" in failing(load, pretrained=base, weights=path)


def test_rotary_frequencies_must_be_those_of_the_base(tmp_path):
    model = fresh_model("llama")
    base = save_folder(model, tmp_path / "base")
    key, frequencies = (
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        model.model.rotary_emb.inv_freq,
    )
    path = save_raw({**model.state_dict(), key: frequencies}, tmp_path / "checkpoint_1")
    assert torch.equal(logits(load(pretrained=base, weights=path).backbone), logits(model))
    path = save_raw({**model.state_dict(), key: 2 * frequencies}, tmp_path / "checkpoint_2")
    assert "unknown key" in failing(load, pretrained=base, weights=path)


def test_a_tied_output_layer_may_be_absent(base, tmp_path):
    model = fresh_model(seed=5)
    state = {
        name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"
    }
    loaded = load(pretrained=base, weights=save_raw(state, tmp_path / "checkpoint_1"))
    assert torch.equal(logits(loaded.backbone), logits(model))


def damaged(kind):
    state = coconut_state(grown(fresh_model(seed=5)))
    key = "base_causallm.transformer.h.0.ln_1.weight"
    if kind == "missing":
        del state[key]
    elif kind == "unknown":
        state["base_causallm.transformer.h.7.ln_1.weight"] = state[key]
    elif kind == "beside":
        state["optimizer.step"] = state[key]
    elif kind == "shape":
        state[key] = torch.zeros(5)
    elif kind == "copy":
        state["embedding.weight"] = state["embedding.weight"] + 1
    elif kind == "tied":
        state["base_causallm.lm_head.weight"] = state["base_causallm.lm_head.weight"] + 1
    elif kind == "no tensor":
        state[key] = 3
    return state


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("missing", "key 'transformer.h.0.ln_1.weight' is missing"),
        ("unknown", "unknown key 'transformer.h.7.ln_1.weight'"),
        ("beside", "unknown key 'optimizer.step'"),
        ("shape", "'transformer.h.0.ln_1.weight' has shape (5,), not (16,)"),
        ("copy", "embedding.weight differs from base_causallm.transformer.wte.weight"),
        ("tied", "'transformer.wte.weight' differs from 'lm_head.weight'"),
        ("no tensor", "'base_causallm.transformer.h.0.ln_1.weight' is int, not a tensor"),
    ],
)
def test_a_key_that_does_not_fit_is_named(base, tmp_path, kind, said):
    message = failing(
        load, pretrained=base, weights=save_raw(damaged(kind), tmp_path / "checkpoint_1")
    )
    assert said in message
    assert "checkpoint_1" in message


def test_another_architecture_is_an_error(base, tmp_path):
    path = save_raw(fresh_model("llama").state_dict(), tmp_path / "checkpoint_1")
    assert "does not fit the base model's architecture (GPT2Config)" in failing(
        load, pretrained=base, weights=path
    )


@pytest.mark.parametrize("rows", [PLAIN_ROWS - 1, PLAIN_ROWS + 1, PLAIN_ROWS + 4])
def test_another_number_of_rows_is_an_error(base, tmp_path, rows):
    path = save_raw(fresh_model(rows=rows).state_dict(), tmp_path / "checkpoint_1")
    assert f"has {rows} embedding rows" in failing(load, pretrained=base, weights=path)


def test_a_coconut_file_without_marker_rows_is_an_error(base, tmp_path):
    path = save_raw(coconut_state(fresh_model()), tmp_path / "checkpoint_1")
    assert f"it must have {MARKER_ROWS}" in failing(load, pretrained=base, weights=path)


class Payload:
    """The code that a crafted pickle would run."""

    def __reduce__(self):
        return (print, ("ran",))


def test_pickled_code_is_never_run(base, tmp_path, capsys):
    path = save_raw({"a": Payload()}, tmp_path / "checkpoint_1")
    assert "never loaded" in failing(load, pretrained=base, weights=path)
    assert "ran" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["checkpoint_1", "model.safetensors"])
def test_truncated_files_and_garbage_are_errors(base, tmp_path, name):
    path = tmp_path / name
    state = fresh_model().state_dict()
    if name == "checkpoint_1":
        torch.save(state, path)
    else:
        save_file({key: tensor.clone() for key, tensor in state.items()}, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "truncated" in failing(load, pretrained=base, weights=path)
    path.write_bytes(b"not a checkpoint")
    assert name in failing(load, pretrained=base, weights=path)
    path.write_bytes(b"")
    assert name in failing(load, pretrained=base, weights=path)


def test_a_file_on_the_hub_is_fetched_alone(base, tmp_path, monkeypatch):
    path = save_raw(fresh_model(seed=5).state_dict(), tmp_path / "checkpoint_25")
    requests = []

    def fetch(repo, filename, *, revision, dry_run=False, **options):
        if dry_run:
            requests.append((repo, filename, revision))
            return SimpleNamespace(commit_hash="a" * 40)
        assert revision == "a" * 40
        return path

    monkeypatch.setattr("lm_eval_latentref.checkpoints.sources.hf_hub_download", fetch)
    plan = plan_of(pretrained=base, strong="someone/runs:cot/checkpoint_25", weights=path)
    assert plan.strong.weights == path
    plan_of(pretrained=base, weights="someone/runs@abc:cot/checkpoint_25")
    assert requests == [
        ("someone/runs", "cot/checkpoint_25", None),
        ("someone/runs", "cot/checkpoint_25", "abc"),
    ]
    assert len(load_tokenizer(plan.backbone)) == PLAIN_ROWS


@pytest.mark.parametrize("weights", ["nothing-here", "./nothing/here"])
def test_a_missing_file_is_named(base, weights):
    with pytest.raises(LatentRefError, match=re.escape(f"weights={weights} does not exist")):
        plan_of(pretrained=base, weights=weights)


def test_a_folder_without_weights_is_no_raw_state_dict(base, tmp_path):
    with pytest.raises(LatentRefError, match="is a folder"):
        plan_of(pretrained=base, weights=str(tmp_path))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda key: f"_orig_mod.{key}",
        lambda key: f"module._orig_mod.{key}",
        lambda key: key.replace(".h.", "._fsdp_wrapped_module.h."),
        lambda key: key.replace(".mlp.", "._fsdp_wrapped_module._checkpoint_wrapped_module.mlp."),
    ],
)
def test_names_that_training_wrapped_are_read_as_those_of_the_model(base, tmp_path, wrap):
    model = fresh_model(seed=5)
    state = {wrap(key): value for key, value in model.state_dict().items()}
    loaded = load(pretrained=base, weights=save_raw(state, tmp_path / "wrapped"))
    assert torch.equal(logits(loaded.backbone), logits(model))


def test_a_tensor_with_and_without_a_wrapper_is_an_error(base, tmp_path):
    state = fresh_model().state_dict()
    key = next(iter(state))
    path = save_raw({**state, f"_orig_mod.{key}": state[key]}, tmp_path / "twice")
    with pytest.raises(LatentRefError, match="twice"):
        load(pretrained=base, weights=path)
