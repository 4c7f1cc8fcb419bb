"""Every argument of transformers' GenerationConfig is allowed or refused after thoughts."""

from __future__ import annotations

import pytest
import torch
import transformers
from tiny import random_ids, tiny_model, tiny_tokenizer
from transformers import GenerationConfig

from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.config import RefinementConfig
from lm_eval_latentref.latent.decoding import ALLOWED, REPLACED, check_decoding
from lm_eval_latentref.latent.loaded import LoadedModel, LoadedSet
from lm_eval_latentref.latent.reasoner import Reasoner

NAMES = sorted(vars(GenerationConfig()))
ON = 7
"""A value that switches anything on."""
_PHI3 = {
    **{"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "bos_token_id": 0, "eos_token_id": 299, "pad_token_id": 0},
}


def own(**values):
    config = GenerationConfig()
    for name, value in values.items():
        setattr(config, name, value)
    return config


def reasoner_of(model):
    backbone = LoadedModel(model=model, identity={"name": "tiny"})
    loaded = LoadedSet(tokenizer=tiny_tokenizer(), backbone=backbone)
    return Reasoner(loaded, RefinementConfig(latent_steps=2))


@pytest.mark.parametrize("name", NAMES)
def test_an_argument_of_a_call_is_allowed_or_refused_with_its_name(name):
    check_decoding(own(), {name: None}, thinks=True)
    if name in ALLOWED:
        check_decoding(own(), {name: ON}, thinks=True)
        return
    with pytest.raises(LatentRefError, match=f"^{name}=7 is not possible") as error:
        check_decoding(own(), {name: ON}, thinks=True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", NAMES)
def test_an_argument_of_the_models_own_is_allowed_replaced_or_refused(name):
    if name in ALLOWED | REPLACED:
        check_decoding(own(**{name: ON}), thinks=True)
        return
    with pytest.raises(LatentRefError, match=f"^{name}=7 .*generation config"):
        check_decoding(own(**{name: ON}), thinks=True)
    # What is given with a call holds in its place.
    check_decoding(own(**{name: ON}), {name: None}, thinks=True)


@pytest.mark.parametrize("name", NAMES)
def test_without_thoughts_and_markers_everything_is_allowed(name):
    assert check_decoding(own(**{name: ON}), {name: ON}, thinks=False) is None


@pytest.mark.parametrize("given", ["assistant_model", "custom_generate", "streamer"])
def test_arguments_of_generate_itself_are_refused_too(given):
    check_decoding(own(), {given: object()}, thinks=False)
    with pytest.raises(LatentRefError, match=given):
        check_decoding(own(), {given: object()}, thinks=True)


@pytest.mark.parametrize("thinks", [True, False])
def test_a_name_that_generate_does_not_know_is_a_mistake(thinks):
    with pytest.raises(LatentRefError, match=r"num_beam= .* did you mean num_beams\?"):
        check_decoding(own(), {"num_beam": 1}, thinks=thinks)


def test_the_library_refuses_what_the_models_own_config_asks_for():
    model = tiny_model("gpt2", 0)
    model.generation_config.prompt_lookup_num_tokens = 3
    reasoner = reasoner_of(model)
    with pytest.raises(LatentRefError, match="prompt_lookup_num_tokens=3"):
        reasoner.answer([(5, 6, 7)], max_new_tokens=4)


def test_a_model_that_reads_columns_again_while_it_generates_gives_no_text():
    """Phi-3 empties its cache at the length where its RoPE may change, even if it does not."""
    config = transformers.Phi3Config(
        **_PHI3, original_max_position_embeddings=20, max_position_embeddings=64
    )
    torch.manual_seed(0)
    reasoner = reasoner_of(transformers.Phi3ForCausalLM(config).eval())
    reasoner.answer([random_ids(14, seed=1)], max_new_tokens=3)
    with pytest.raises(LatentRefError, match=r"reads all 21 columns again.* max_length=20 or less"):
        reasoner.answer([random_ids(14, seed=1)], max_new_tokens=4)
    with pytest.raises(LatentRefError, match="not finite"):
        reasoner.answer([random_ids(17, seed=1)], max_new_tokens=4)


def test_a_penalty_on_repetition_does_not_see_padding():
    model = tiny_model("gpt2", 0)
    model.generation_config.repetition_penalty = 5.0
    reasoner = reasoner_of(model)
    inputs = []
    for contexts in ([(5, 6, 7)], [(5, 6, 7), (9, 8, 7, 6, 5, 4)]):
        ids_BK = reasoner.generation_inputs(contexts, reasoner.think(contexts))["input_ids"]
        inputs.append(set(ids_BK[0].tolist()))
    assert inputs[0] == inputs[1]
