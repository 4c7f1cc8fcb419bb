"""Adapters of every kind give the same numbers through lm-eval's class, the library and PEFT."""

from __future__ import annotations

import pytest
import torch
from matrix import crossed
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import CONFIGS, tiny_model, tiny_tokenizer
from tiny_lm import assert_close, pairs

from lm_eval_latentref.checkpoints.loading import load
from lm_eval_latentref.harness.model import LatentRefLM

EMBEDDING = {"gpt2": "wte", "llama": "embed_tokens"}
LAYERS = {"gpt2": ["c_attn"], "llama": ["q_proj", "v_proj"]}
KINDS = {
    "layers": lambda name: {},
    "rows": lambda name: {"trainable_token_indices": {name: [297, 298]}},
    "embedding": lambda name: {"modules_to_save": [name]},
    "embedding and head": lambda name: {"modules_to_save": [name, "lm_head"]},
    "embedding factors": lambda name: {"target_modules": [name]},
}


def save_set(root, family, kind, tied):
    """A base and three adapters on it with random weights, as folders."""
    base = tiny_model(family)
    if not tied:
        config = CONFIGS[family]()
        config.tie_word_embeddings = False
        torch.manual_seed(0)
        base = type(base)(config).eval()
    base.save_pretrained(root / "base")
    tiny_tokenizer().save_pretrained(root / "base")
    for seed, role in enumerate(("backbone", "strong", "weak")):
        torch.manual_seed(seed)
        options = {"target_modules": LAYERS[family], **KINDS[kind](EMBEDDING[family])}
        model = get_peft_model(
            type(base).from_pretrained(root / "base"), LoraConfig(r=2, **options)
        )
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        model.save_pretrained(root / role)


@pytest.mark.parametrize(
    ("family", "kind", "tied"), crossed(["gpt2", "llama"], KINDS, [True, False], every=2)
)
def test_an_adapter_is_what_peft_makes_of_it(tmp_path, family, kind, tied):
    save_set(tmp_path, family, kind, tied)
    base, adapter = str(tmp_path / "base"), str(tmp_path / "backbone")
    lm = LatentRefLM(base, peft=adapter, device="cpu", dtype="float32", latent_markers="none")
    plain = PeftModel.from_pretrained(type(tiny_model(family)).from_pretrained(base), adapter)
    context, continuation = (5, 297, 9), (7, 298)
    with torch.no_grad():
        ids = torch.tensor([[*context, *continuation]])
        log_p = plain.eval()(ids).logits[0, 2:4].log_softmax(-1)
    (((actual, _),),) = lm.reasoner.score([context], [[continuation]], max_rows=1)
    wanted = log_p[range(2), list(continuation)].sum()
    assert actual == pytest.approx(float(wanted), abs=1e-4)


@pytest.mark.parametrize(("family", "kind"), crossed(["gpt2", "llama"], KINDS, every=2))
def test_three_adapters_on_one_base_are_the_same_in_lm_eval_and_in_the_library(
    tmp_path, family, kind
):
    save_set(tmp_path, family, kind, tied=True)
    names = {role: str(tmp_path / role) for role in ("strong", "weak")}
    settings = {"latent_steps": 2, "memory_rate": 0.4, "search_step_size": 48.0}
    where = {"peft": str(tmp_path / "backbone"), "device": "cpu", "dtype": "float32"}
    lm = LatentRefLM(str(tmp_path / "base"), **names, **settings, **where, batch_size=3)
    reasoner = load(str(tmp_path / "base"), **names, **settings, **where)
    actual = lm.loglikelihood(pairs())
    lm.reasoner = reasoner
    assert_close(actual, lm.loglikelihood(pairs()))


@pytest.mark.parametrize(("kind", "dtype"), crossed(KINDS, ["bfloat16", "float32"], every=2))
def test_adapters_compute_in_the_dtype_of_their_base(tmp_path, kind, dtype):
    save_set(tmp_path, "llama", kind, tied=True)
    reasoner = load(str(tmp_path / "base"), peft=str(tmp_path / "backbone"), dtype=dtype)
    factors = [
        weight
        for name, weight in reasoner.loaded.backbone.model.named_parameters()
        if "lora_" in name
    ]
    assert factors
    assert {weight.dtype for weight in factors} == {getattr(torch, dtype)}
    (((actual, _),),) = reasoner.score([(5, 297, 9)], [[(7, 298)]], max_rows=1)
    exact = load(str(tmp_path / "base"), peft=str(tmp_path / "backbone"), dtype="float32")
    (((wanted, _),),) = exact.score([(5, 297, 9)], [[(7, 298)]], max_rows=1)
    assert actual == pytest.approx(wanted, rel=0.05)
