"""What a kind of thought cannot do is refused in one line."""

from __future__ import annotations

import pytest
import torch
from kind_cases import CASES, MAPS, TOKENIZER, D, M, reasoner
from tiny import tiny_model

from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.evaluation.sweep_run import check_comparable
from lm_eval_latentref.latent.config import RefinementConfig
from lm_eval_latentref.latent.loaded import LoadedModel, LoadedSet, ThoughtFiles
from lm_eval_latentref.latent.reasoner import Reasoner
from lm_eval_latentref.latent.selection import find_markers
from lm_eval_latentref.training.models import make_word_tokenizer


def test_a_map_that_lacks_tensors_or_has_another_width_is_named():
    tensors = dict(MAPS["projected"])
    del tensors["linear_2.bias"]
    with pytest.raises(LatentRefError, match=r"missing: linear_2\.bias"):
        make("projected", tensors)
    wide = {**MAPS["projected"], "linear_1.weight": torch.zeros(M, D + 1)}
    with pytest.raises(LatentRefError, match=r"linear_1\.weight of the map has shape"):
        make("projected", wide)


def test_ids_around_the_thoughts_lie_in_the_embedding():
    files = ThoughtFiles(opening=(300,), closing=(5,))
    model = LoadedModel(model=tiny_model("gpt2"), identity={"name": "tiny"}, thought_files=files)
    with pytest.raises(LatentRefError, match="tiny has 300 embedding rows, but a marker"):
        Reasoner(LoadedSet(tokenizer=TOKENIZER, backbone=model), RefinementConfig(latent_steps=2))


def make(name, tensors):
    model = LoadedModel(
        model=tiny_model("gpt2"),
        identity={"name": "tiny"},
        thought_files=ThoughtFiles(tensors=tensors),
    )
    config = RefinementConfig(latent_steps=2, latent_kind=name)
    return Reasoner(LoadedSet(tokenizer=TOKENIZER, backbone=model), config)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thought_noise": 0.1}, "without random numbers"),
        ({"confidence_steps": 2}, "without random numbers"),
    ],
)
def test_settings_are_compared_without_chance(options, message):
    with pytest.raises(LatentRefError, match=message):
        check_comparable(reasoner("gpt2", CASES["realigned"].options, **options))
    for stop in ("steps", "high_entropy"):
        check_comparable(reasoner("gpt2", CASES["realigned"].options, latent_stop=stop))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent_kind": "mixture", "search_step_size": 1.0}, "no direction"),
        ({"latent_kind": "pause", "latent_stop": "end_token"}, "does not read"),
        ({"latent_kind": "continuous", "mixture_top_k": 3}, "does not read"),
        ({"latent_kind": "mixture", "realign": "ridge"}, "does not read"),
        ({"latent_kind": "mixture", "mixture_top_p": 0.0}, r"in \(0, 1\]"),
        ({"latent_kind": "mixture", "mixture_temperature": 0}, "a number > 0"),
        ({"latent_kind": "realigned", "realign": "full"}, "'identity' or 'ridge'"),
        ({"latent_kind": "mixture", "latent_stop": "never"}, "latent_stop=never"),
        ({"latent_kind": "mixture", "latent_stop": "steps+end_token"}, "latent_stop=steps"),
        (
            {"latent_kind": "mixture", "stop_entropy": 0.1},
            "needs a latent_stop with exactly one of",
        ),
        (
            {
                "latent_kind": "mixture",
                "latent_stop": "low_entropy+high_entropy",
                "stop_patience": 2,
            },
            "needs a latent_stop with exactly one of",
        ),
        ({"latent_markers": "think"}, "latent_markers="),
        ({"thought_noise": -1}, "a number >= 0"),
        ({"thought_dropout": 1}, r"in \[0, 1\)"),
        ({"latent_kind": "gaussian", "confidence_steps": 3}, "does not read"),
        ({"confidence_noise": 0}, "a number > 0"),
        ({"latent_kind": "gaussian", "thought_scale": 0}, "a number > 0"),
    ],
)
def test_what_a_kind_cannot_do_is_one_line(options, message):
    with pytest.raises(LatentRefError, match=message) as error:
        RefinementConfig.parse({"latent_steps": 2, **options})
    assert "\n" not in str(error.value)


def test_texts_around_thoughts_are_some_that_the_tokenizer_can_write():
    tokenizer = make_word_tokenizer(["Tom", "think"])
    config = RefinementConfig(latent_steps=2, latent_markers="think|</think>")
    with pytest.raises(LatentRefError, match="the tokenizer has no tokens for '</think>'"):
        find_markers(tokenizer, config)


def test_an_end_token_needs_a_text_that_ends_thoughts():
    with pytest.raises(LatentRefError, match="needs a token that ends the thoughts"):
        reasoner(
            "gpt2",
            {"latent_kind": "mixture", "latent_stop": "end_token"},
            latent_markers="none",
        )


@pytest.mark.parametrize(
    ("given", "texts"),
    [
        ("<think>|</think>", ("<think>", "</think>")),
        ("|</think>", ("", "</think>")),
        ("<|a|>|<|b|>", ("<|a|>", "<|b|>")),
        ("auto", None),
        ("none", None),
    ],
)
def test_marker_texts_are_separated_by_the_middle_bar(given, texts):
    assert RefinementConfig.parse({"latent_markers": given}).marker_texts == texts


def test_auto_is_the_kind_that_would_be_taken():
    assert RefinementConfig.parse({"latent_kind": "auto"}) == RefinementConfig()
