"""`latentref convert` writes a model equal to the original, or nothing."""

from __future__ import annotations

import pytest
import torch
from peft.tuners.lora import LoraModel
from tiny import tiny_tokenizer
from tiny_checkpoints import fresh_model, load, logits, save_adapter, save_folder

from lm_eval_latentref.checkpoints.convert import convert
from lm_eval_latentref.checkpoints.state_dicts import read_tensors
from lm_eval_latentref.checkpoints.written import (
    SMALLEST_BOUND,
    log_likelihoods,
    rounding_bound,
    sample_ids,
)
from lm_eval_latentref.errors import LatentRefError


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    """A base whose output layer is its embedding, as a folder."""
    return save_folder(fresh_model("gpt2"), tmp_path_factory.mktemp("tied") / "base")


@pytest.mark.parametrize("where", ["lm_head", "wte"])
def test_an_adapter_on_one_of_two_tied_matrices_is_merged_into_that_one(tied, tmp_path, where):
    adapter = save_adapter(tied, tmp_path / "adapter", seed=1, target_modules=["c_attn", where])
    out = convert(out=tmp_path / "out", pretrained=adapter)
    read, written = load(pretrained=adapter).backbone, load(pretrained=str(out)).backbone
    torch.testing.assert_close(logits(written), logits(read), atol=1e-4, rtol=1e-4)
    assert not written.model.config.tie_word_embeddings


def test_tied_matrices_that_no_adapter_changes_stay_tied(tied, tmp_path):
    adapter = save_adapter(tied, tmp_path / "adapter", seed=1)
    out = convert(out=tmp_path / "out", pretrained=adapter)
    model = load(pretrained=str(out)).backbone.model
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("seed", [1, 2])
def test_rounding_is_accepted_and_a_wrong_merge_is_not(tied, tmp_path, monkeypatch, seed, dtype):
    adapter = save_adapter(tied, tmp_path / "adapter", seed=seed)
    convert(out=tmp_path / "good", pretrained=adapter, dtype=dtype)
    monkeypatch.setattr(LoraModel, "merge_and_unload", LoraModel.unload)
    with pytest.raises(
        LatentRefError, match="the written model differs from the original"
    ) as caught:
        convert(out=tmp_path / "bad", pretrained=adapter, dtype=dtype)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()].count("good") == 1
    assert not list(tmp_path.glob("*bad*"))


def test_adapters_that_stay_adapters_are_compared_too(tied, tmp_path, monkeypatch):
    adapter = save_adapter(tied, tmp_path / "adapter", seed=1)
    names = {"pretrained": adapter, "strong": adapter, "weak": adapter, "adapter": True}
    for dtype in ("auto", "bfloat16"):
        convert(out=tmp_path / dtype, **names, dtype=dtype)
    other = save_adapter(tied, tmp_path / "other", seed=2)
    monkeypatch.setattr(
        "lm_eval_latentref.checkpoints.convert.read_tensors",
        lambda path: read_tensors(f"{other}/adapter_model.safetensors"),
    )
    with pytest.raises(LatentRefError, match="the written model differs from the original"):
        convert(out=tmp_path / "bad", **names, dtype="bfloat16")
    assert not list(tmp_path.glob("*bad*"))


def test_the_bound_is_a_ten_thousandth_in_float32_and_grows_with_the_rounding():
    samples = sample_ids(tiny_tokenizer())
    bounds = [
        rounding_bound(fresh_model(rows=300), samples, dtype)
        for dtype in (torch.float32, torch.float16, torch.bfloat16)
    ]
    assert bounds[0] < SMALLEST_BOUND < bounds[1] < bounds[2]
    rounded = fresh_model(rows=300).bfloat16().float()
    exact_S = log_likelihoods(fresh_model(rows=300), samples)
    assert (log_likelihoods(rounded, samples) - exact_S).abs().max() <= bounds[2]
