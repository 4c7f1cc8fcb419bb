"""A user's mistake is a LatentRefError of one line: value given, values allowed, next step."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch
import transformers
from lm_eval.api.model import CachingLM
from tiny import tiny_model, tiny_tokenizer
from tiny_lm import CONTEXTS, GREEDY, REFINED, expect_mistake, latentref, pairs, requests

from lm_eval_latentref.checkpoints.loading import load
from lm_eval_latentref.harness.model import LatentRefLM
from lm_eval_latentref.latent.protocol import START_LATENT


def saved_with(folders, tmp_path, *, tokens=(), model=None):
    tokenizer = tiny_tokenizer(markers=False)
    tokenizer.add_tokens(list(tokens))
    tokenizer.save_pretrained(tmp_path)
    (model or tiny_model("gpt2", 0)).save_pretrained(tmp_path)
    return LatentRefLM(str(tmp_path), device="cpu", latent_steps=1)


def test_no_such_checkpoint():
    expect_mistake(lambda: LatentRefLM("./nowhere", device="cpu"), "pretrained=./nowhere", "folder")
    expect_mistake(lambda: LatentRefLM("no-one/nothing", device="cpu"), "no-one/nothing", "hub id")


def test_no_such_reference(folders):
    call = lambda: latentref(folders, strong="./gone", weak=folders["weak"], search_step_size=1)  # noqa: E731
    expect_mistake(call, "strong=./gone", "folder")


def test_a_seq2seq_model(tmp_path):
    config = transformers.T5Config(d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    tiny_tokenizer(markers=False).save_pretrained(tmp_path)
    expect_mistake(
        lambda: LatentRefLM(str(tmp_path), device="cpu"), tmp_path, "seq2seq", "decoder-only"
    )


def test_hidden_sizes_that_differ(folders, tmp_path):
    config = transformers.GPT2Config(vocab_size=300, n_embd=16, n_layer=1, n_head=2)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    tiny_tokenizer(markers=True).save_pretrained(tmp_path)
    call = lambda: latentref(folders, **{**REFINED, "weak": str(tmp_path)})  # noqa: E731
    expect_mistake(call, tmp_path, "16", "32")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("memory_rate", 1.5),
        ("search_step_size", float("nan")),
        ("search_step_size", float("inf")),
        ("latent_steps", -1),
        ("latent_steps", 1.5),
        ("search_steps", 0),
        ("search_gradient", "backwards"),
    ],
)
def test_an_option_outside_its_domain(folders, name, value):
    expect_mistake(lambda: latentref(folders, **{name: value}), f"{name}={value}", "must be")


@pytest.mark.parametrize("given", ["strong", "weak"])
def test_search_with_a_reference_missing(folders, given):
    missing = {"strong": "weak", "weak": "strong"}[given]
    call = lambda: LatentRefLM(  # noqa: E731
        folders["marked"], search_step_size=3, **{given: folders[given]}
    )
    expect_mistake(call, "search_step_size=3", f"{missing} is not given")


def test_an_argument_that_nobody_knows_names_the_nearest(folders):
    expect_mistake(lambda: latentref(folders, latent_step=6), "latent_step=", "latent_steps?")
    expect_mistake(lambda: latentref(folders, memory_rat=0.3), "memory_rat=", "memory_rate?")
    expect_mistake(lambda: latentref(folders, stong="strong"), "stong=", "strong?")


def test_an_argument_that_is_near_none_of_ours_is_for_the_model_to_judge(folders):
    expect_mistake(lambda: latentref(folders, foo=1), "foo")
    expect_mistake(lambda: latentref(folders, attn_implementatoin="eager"), "implementatoin")
    lm = latentref(folders, weights_only=True, resid_pdrop=0.0)
    assert lm.model.config.resid_pdrop == 0.0


def test_arguments_of_from_pretrained_are_known(folders):
    lm = latentref(folders, attn_implementation="eager", use_safetensors=True)
    assert lm.model.config._attn_implementation == "eager"


def test_a_tokenizer_without_an_end_of_sequence_token(folders):
    tokenizer = tiny_tokenizer(markers=True)
    tokenizer.eos_token = tokenizer.pad_token = None
    call = lambda: latentref(folders, tokenizer=tokenizer)  # noqa: E731
    expect_mistake(call, "no end-of-sequence token", "eos_token")


def test_one_marker_without_the_other(folders, tmp_path):
    call = lambda: saved_with(folders, tmp_path, tokens=[START_LATENT])  # noqa: E731
    expect_mistake(call, START_LATENT, "<|end-latent|>", "latent_markers=none")


def test_no_room_for_a_single_context_token(folders):
    lm = latentref(folders, latent_steps=6, max_length=10)
    expect_mistake(lambda: lm.loglikelihood(pairs()), "max_length=10", "latent_steps")
    expect_mistake(
        lambda: lm.generate_until(requests([("x", GREEDY)])), "max_length=10", "max_gen_toks"
    )


def test_no_room_is_said_without_thoughts_too(folders):
    lm = latentref(folders, "plain", max_length=12)
    expect_mistake(
        lambda: lm.generate_until(requests([("x", GREEDY)])), "max_length=12", "max_gen_toks"
    )


def test_beam_search(folders):
    lm = latentref(folders, **REFINED)
    instances = requests([(CONTEXTS[0], {**GREEDY, "num_beams": 4})])
    expect_mistake(lambda: lm.generate_until(instances), "num_beams=4", "do_sample=True")


def test_beam_search_by_the_models_own_generation_config(folders):
    lm = latentref(folders, **REFINED)
    lm.model.generation_config.num_beams = 3
    instances = requests([(CONTEXTS[0], GREEDY)])
    expect_mistake(lambda: lm.generate_until(instances), "num_beams=3", "num_beams=1")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ({"dtype": "float33"}, ["float33"]),
        ({"load_in_4bit": True}, ["load_in_4bit", "quantization_config=BitsAndBytesConfig"]),
        ({"autogptq": True}, ["auto"]),
        ({"batch_size": 0}, ["batch_size=0", "auto"]),
        ({"batch_size": "many"}, ["batch_size=many"]),
        ({"device_map": "nowhere"}, ["nowhere"]),
        ({"strong": 3, "weak": 4, "search_step_size": 1}, ["checkpoint '3'", "folder"]),
    ],
)
def test_a_value_that_others_refuse_is_one_line_too(folders, arguments, parts):
    expect_mistake(lambda: latentref(folders, **arguments), *parts)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ({"foo": 1}, ["foo"]),
        ({"latent_step": 1}, ["latent_steps?"]),
        ({"dtype": "float33"}, ["float33"]),
        ({"memory_rate": 3}, ["memory_rate=3"]),
    ],
)
def test_the_library_says_the_same(folders, arguments, parts):
    expect_mistake(lambda: load(folders["marked"], device="cpu", **arguments), *parts)


def test_no_token_to_write_is_refused_by_the_library(folders):
    reasoner = load(folders["marked"], device="cpu", latent_steps=1)
    expect_mistake(lambda: reasoner.ask("Is it?", max_new_tokens=0), "max_new_tokens=0")


def test_a_cache_filled_under_other_settings(folders, tmp_path):
    path = str(tmp_path / "cache.db")
    instances = requests([(CONTEXTS[0], "### yes")])
    for request in instances:
        request.request_type = "loglikelihood"
    first = latentref(folders, **REFINED)
    cached = CachingLM(first, path)
    answers = cached.loglikelihood(instances)
    cached.dbdict.close()

    again = CachingLM(latentref(folders, **REFINED), path)
    first.reasoner.score = None
    assert again.loglikelihood(instances) == answers
    again.dbdict.close()

    other = latentref(folders, **{**REFINED, "memory_rate": 0.9})
    expect_mistake(lambda: CachingLM(other, path), path, "memory_rate=0.4 (now 0.9)", "delete")


@pytest.mark.parametrize(
    "other", [{"mixed_precision_dtype": "bfloat16"}, {"prefix_token_id": 5}, {"max_length": 99}]
)
def test_a_cache_is_kept_to_all_that_decides_an_answer(folders, tmp_path, other):
    path = str(tmp_path / "cache.db")
    CachingLM(latentref(folders), path).dbdict.close()
    (name,) = other
    shown = name.removesuffix("_id")
    expect_mistake(lambda: CachingLM(latentref(folders, **other), path), path, shown)


def test_a_damaged_file_of_another_rank_is_refused(folders, tmp_path):
    (tmp_path / "cache_rank1.db").write_bytes(b"no database at all" * 100)
    call = lambda: CachingLM(latentref(folders), str(tmp_path / "cache_rank0.db"))  # noqa: E731
    expect_mistake(call, "cache_rank1.db", "damaged", "delete")


def test_a_cache_of_another_model(folders, tmp_path):
    from sqlitedict import SqliteDict

    path = str(tmp_path / "cache.db")
    with SqliteDict(path, autocommit=True) as answers:
        answers["some request"] = 1.0
    expect_mistake(lambda: CachingLM(latentref(folders), path), path, "another model")


def test_thoughts_that_overflow_name_document_step_and_cause(folders):
    instances = [
        SimpleNamespace(args=(context, "### yes"), task_name="mathqa", doc_id=number)
        for number, context in enumerate(CONTEXTS)
    ]
    huge = latentref(folders, **{**REFINED, "search_step_size": 1e38})
    expect_mistake(
        lambda: huge.loglikelihood(instances),
        "mathqa document",
        "thought",
        "lower search_step_size=1e+38",
    )


def test_a_last_thought_that_overflows_stops_generation(folders):
    # Read only together with the end marker, after the thoughts themselves were found finite.
    settings = {**REFINED, "latent_steps": 1, "search_step_size": 1e30}
    lm = latentref(folders, **settings)
    instances = requests([(context, GREEDY) for context in CONTEXTS])
    expect_mistake(
        lambda: lm.generate_until(instances), "task document", "lower search_step_size=1e+30"
    )
    references = {"strong": folders["strong"], "weak": folders["weak"]}
    reasoner = load(folders["marked"], device="cpu", **references, **settings)
    expect_mistake(lambda: reasoner.ask("Is it?", max_new_tokens=4), "lower search_step_size=1e+30")


def test_a_backbone_that_overflows_is_named_as_the_cause(folders, tmp_path):
    model = tiny_model("gpt2", 0)
    with torch.no_grad():
        model.transformer.ln_f.bias[0] = float("inf")
    lm = saved_with(folders, tmp_path, model=model)
    expect_mistake(
        lambda: lm.generate_until(requests([("Tom", GREEDY)])), "task document 0", "thought 1",
        "backbone",
    )  # fmt: skip


def test_warnings_of_what_has_no_effect(folders, caplog):
    with caplog.at_level(logging.WARNING):
        lm = latentref(folders, strong=folders["strong"], weak=folders["weak"])
    assert lm.reasoner.references is None
    assert any("neither loaded nor used" in record.message for record in caplog.records)
    assert any("latent_steps=0" in record.message for record in caplog.records)


@pytest.mark.parametrize("place", ["argument", "latentref.json"])
def test_zero_thoughts_that_were_asked_for_give_no_warning(folders, tmp_path, caplog, place):
    tiny_model("gpt2", 0).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    given = {"latent_steps": 0} if place == "argument" else {}
    if place == "latentref.json":
        (tmp_path / place).write_text('{"format_version": 1, "latent_steps": 0}')
    with caplog.at_level(logging.WARNING):
        LatentRefLM(str(tmp_path), device="cpu", **given)
    assert "latent_steps=0" not in caplog.text


def test_none_is_not_given(folders, tmp_path):
    tiny_model("gpt2", 0).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "latentref.json").write_text('{"format_version": 1, "latent_steps": 2}')
    lm = LatentRefLM(str(tmp_path), device="cpu", latent_steps=None)
    assert lm.reasoner.config.latent_steps == 2


def test_references_without_thoughts_are_not_loaded(folders, caplog):
    with caplog.at_level(logging.WARNING):
        lm = latentref(folders, **{**REFINED, "latent_steps": 0})
    assert lm.reasoner.loaded.strong is None
    assert any("neither loaded nor used" in record.message for record in caplog.records)


@pytest.mark.parametrize("kind", ["mamba", "falcon_h1", "doge"])
def test_layers_whose_state_depends_on_padding_are_refused(folders, tmp_path, kind):
    small = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "mamba_d_ssm": 32}
    state = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8}
    config = {
        "mamba": lambda: transformers.MambaConfig(**small, state_size=4),
        "doge": lambda: transformers.DogeConfig(**small, num_attention_heads=4, keep_window_size=8),
        "falcon_h1": lambda: transformers.FalconH1Config(**small, **heads, **state),
    }[kind]()
    model = transformers.AutoModelForCausalLM.from_config(config)
    expect_mistake(
        lambda: saved_with(folders, tmp_path, model=model), kind, tmp_path, "depend", "padding"
    )


def test_a_question_is_answered_with_as_many_tokens_as_fit(folders):
    reasoner = load(folders["marked"], device="cpu", latent_steps=1, max_length=12)
    num_tokens = len(reasoner.tokenizer.encode("Is it?\n"))
    assert reasoner.room((0,) * num_tokens) == 12 - 3 - num_tokens + 1
    assert isinstance(reasoner.ask("Is it?").text, str)
    expect_mistake(lambda: reasoner.ask("Is it?", max_new_tokens=12), "max_new_tokens=12")
