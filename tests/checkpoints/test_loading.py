"""Folders to models: keys that do not fit, damage, and one vocabulary for three models."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny import tiny_tokenizer
from tiny_checkpoints import (
    END,
    LATENT,
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
)

from lm_eval_latentref.checkpoints.opening import default_loader
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.protocol import marker_ids

__all__ = ["base"]


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


# latentref.json.


def test_models_come_ready_for_inference_and_in_the_wanted_dtype(base):
    loaded = load(pretrained=base)
    assert not loaded.backbone.model.training
    model = default_loader(dtype="bfloat16")(plan_of(pretrained=base).backbone)
    assert model.dtype == torch.bfloat16


def test_the_head_reads_no_strided_slice_of_which_torch_would_copy_it_for_each_row(base):
    model, seen = load(pretrained=base).backbone.model, []
    model.get_output_embeddings().register_forward_hook(
        lambda module, inputs, output: seen.append(inputs[0].is_contiguous())
    )
    model.generate(torch.tensor([[1, 2, 3], [4, 5, 6]]), max_new_tokens=2, do_sample=False)
    assert seen
    assert all(seen)
