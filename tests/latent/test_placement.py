"""accelerate places all three models, and results do not depend on the devices."""

from __future__ import annotations

import pytest
import torch
import transformers
from accelerate import dispatch_model
from thought_cases import BOTH, CONTEXTS, CONTINUATIONS, assert_same_scores, models, run
from tiny_lm import REFINED, assert_close, latentref, pairs

from lm_eval_latentref.checkpoints.loading import load
from lm_eval_latentref.latent.networks import Network
from lm_eval_latentref.latent.scoring import score
from lm_eval_latentref.latent.thoughts import Context, References, think

HALF_ON_DISK = {
    "transformer.wte": "cpu",
    "transformer.wpe": "cpu",
    "transformer.h.0": "cpu",
    "transformer.h.1": "disk",
    "transformer.h.2": "disk",
    "transformer.ln_f": "cpu",
    "lm_head": "cpu",
}


def test_weights_on_cpu_and_disk_give_the_same_numbers(folders, tmp_path):
    placed = latentref(
        folders,
        **REFINED,
        device_map=HALF_ON_DISK,
        offload_folder=str(tmp_path),
    )
    for network in placed.reasoner.networks():
        assert network.causal_lm.hf_device_map["transformer.h.1"] == "disk"
    assert_close(
        placed.loglikelihood(pairs()), latentref(folders, **REFINED).loglikelihood(pairs())
    )


def test_references_may_lie_elsewhere_than_the_backbone(tmp_path):
    backbone, strong, weak = models("gpt2")
    strong = dispatch_model(strong, HALF_ON_DISK, offload_dir=tmp_path / "strong")
    weak = dispatch_model(weak, HALF_ON_DISK, offload_dir=tmp_path / "weak")
    assert next(strong.transformer.h[2].parameters()).device.type == "meta"
    with torch.no_grad():
        thoughts = think(
            Context.pad(CONTEXTS),
            backbone=Network(backbone),
            references=References(Network(strong), Network(weak)),
            config=BOTH,
            markers=None,
        )
        actual = score(thoughts, CONTINUATIONS, max_rows=8)
    wanted, _ = run("gpt2", BOTH, markers=False)
    assert_same_scores(actual, wanted)


@pytest.fixture
def loading_calls(monkeypatch):
    """The name, device_map and dtype of every call of from_pretrained."""
    seen = []
    real = transformers.AutoModelForCausalLM.from_pretrained

    def spy(name, *args, **kwargs):
        seen.append((name, kwargs.get("device_map"), kwargs.get("dtype")))
        return real(name, *args, **{**kwargs, "device_map": "cpu", "max_memory": None})

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", spy)
    return seen


def three(folders):
    return [folders[name] for name in ("marked", "strong", "weak")]


def test_parallelize_lets_accelerate_place_each_of_the_three(folders, loading_calls):
    latentref(folders, **REFINED, parallelize=True)
    assert [name for name, *_ in loading_calls] == three(folders)
    assert [device_map for _, device_map, _ in loading_calls] == ["auto"] * 3


def test_a_device_map_applies_to_all_three(folders, loading_calls):
    latentref(folders, **REFINED, device_map="auto")
    assert [device_map for _, device_map, _ in loading_calls] == ["auto"] * 3


def test_references_inherit_device_and_dtype(folders, loading_calls):
    latentref(folders, **REFINED, dtype="bfloat16")
    assert [(str(m), dtype) for _, m, dtype in loading_calls] == [
        ("{'': 'cpu'}", torch.bfloat16)
    ] * 3


def test_the_library_places_all_three_as_given(folders, loading_calls):
    references = {"strong": folders["strong"], "weak": folders["weak"]}
    load(folders["marked"], **references, **REFINED, device_map="auto", dtype="float32")
    assert [(name, device_map) for name, device_map, _ in loading_calls] == [
        (name, "auto") for name in three(folders)
    ]
