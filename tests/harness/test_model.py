"""The lm-eval class equals `hf` without thoughts and the oracle with thoughts, in any batch."""

from __future__ import annotations

import oracle
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from matrix import crossed
from tiny import tiny_model
from tiny_lm import (
    CONTEXTS,
    CONTINUATIONS,
    GREEDY,
    REFINED,
    assert_close,
    latentref,
    pairs,
    requests,
    save,
)

from lm_eval_latentref.checkpoints.manifest import Manifest, write_manifest
from lm_eval_latentref.harness.model import LatentRefLM
from lm_eval_latentref.latent import token_reasoner
from lm_eval_latentref.latent.config import RefinementConfig


def test_a_token_is_left_out_of_the_arguments_that_results_show(folders):
    given = {"pretrained": folders["marked"], "token": "abc", "latent_steps": 2}
    lm = LatentRefLM.create_from_arg_obj(given, {"device": "cpu", "batch_size": 4})
    assert lm.get_model_info()["model_args"] == {**given, "token": "***"}


def oracle_scores(lm, config, models, continuations=CONTINUATIONS):
    tokenizer = lm.tokenizer
    markers = (*lm.reasoner.markers.opening, *lm.reasoner.markers.closing)
    wanted = []
    for context in CONTEXTS:
        ids = tokenizer.encode(context) or [tokenizer.bos_token_id]
        prefix = oracle.prefix_embeds(ids, config, markers, *models)
        for text in continuations:
            tokens = tokenizer.encode(text, add_special_tokens=False)
            wanted.append(oracle.log_likelihood(prefix, tokens, models[0]))
    return wanted


@pytest.fixture(scope="module")
def hf(folders):
    return HFLM(folders["plain"], device="cpu", dtype="float32", batch_size=4)


@pytest.mark.parametrize("name", ["plain", "marked"])
def test_no_thought_and_no_marker_is_hf_on_log_likelihoods(folders, hf, name):
    lm = latentref(folders, name, latent_markers="none")
    assert_close(lm.loglikelihood(pairs()), hf.loglikelihood(pairs()))


def test_no_thought_and_no_marker_is_hf_where_contexts_are_cut(folders):
    instances = requests([("word " * 40, k) for k in CONTINUATIONS] + [("word " * 12, "a b c d")])
    lm = latentref(folders, "plain", max_length=24)
    hf = HFLM(folders["plain"], device="cpu", dtype="float32", max_length=24, truncation=True)
    assert_close(lm.loglikelihood(instances), hf.loglikelihood(instances))


@pytest.mark.parametrize("settings", [{}, REFINED])
def test_rolling_log_likelihoods_are_hfs_whatever_is_thought(folders, hf, settings):
    instances = requests([(text,) for text in ("First, add the two.", "word " * 90)])
    lm = latentref(folders, "plain", **{k: v for k, v in settings.items() if "search" not in k})
    assert lm.loglikelihood_rolling(instances) == pytest.approx(
        hf.loglikelihood_rolling(instances), abs=1e-4
    )


@pytest.mark.parametrize("extra", [{}, {"repetition_penalty": 1.3}, {"until": ["a", "\n"]}])
def test_no_thought_and_no_marker_is_hf_on_generated_text(folders, hf, extra):
    instances = requests([(context, {**GREEDY, **extra}) for context in CONTEXTS[:-1]])
    assert latentref(folders, "plain").generate_until(instances) == hf.generate_until(instances)


def test_markers_without_thoughts_stand_side_by_side(folders):
    lm = latentref(folders)
    assert_close(
        lm.loglikelihood(pairs()), oracle_scores(lm, RefinementConfig(), [tiny_model("gpt2", 0)])
    )


@pytest.mark.parametrize("gradient", ["detached", "through"])
def test_refined_log_likelihoods_equal_the_oracle_from_text(folders, gradient):
    settings = {**REFINED, "search_gradient": gradient}
    lm = latentref(folders, **settings)
    models = [tiny_model("gpt2", seed) for seed in range(3)]
    assert_close(lm.loglikelihood(pairs()), oracle_scores(lm, RefinementConfig(**settings), models))


@pytest.mark.parametrize("batch_size", [1, 3, 64, "auto"])
def test_batch_size_and_order_of_requests_change_nothing(folders, batch_size):
    instances = pairs()
    order = torch.randperm(len(instances), generator=torch.Generator().manual_seed(0)).tolist()
    first = latentref(folders, **REFINED, batch_size=1).loglikelihood(instances)
    many = latentref(folders, **REFINED, batch_size=batch_size).loglikelihood(
        [instances[i] for i in order]
    )
    assert_close(many, [first[i] for i in order])


@pytest.mark.parametrize("markers", ["auto", "none"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_greedy_text_equals_the_oracle(folders, markers, batch_size):
    lm = latentref(folders, **REFINED, latent_markers=markers, batch_size=batch_size)
    ids = lm.reasoner.markers and (*lm.reasoner.markers.opening, *lm.reasoner.markers.closing)
    models = [tiny_model("gpt2", seed) for seed in range(3)]
    wanted = []
    for context in CONTEXTS:
        tokens = lm.tokenizer.encode(context) or [lm.tokenizer.bos_token_id]
        prefix = oracle.prefix_embeds(tokens, RefinementConfig(**REFINED), ids, *models)
        eos_id = lm.tokenizer.eos_token_id
        new = oracle.greedy_tokens(prefix, models[0], num_tokens=12, eos_id=eos_id)
        wanted.append(lm.tokenizer.decode(new, skip_special_tokens=True))
    instances = requests([(context, GREEDY) for context in CONTEXTS])
    assert lm.generate_until(instances) == wanted


@pytest.mark.parametrize("kind", ["static", "dynamic"])
def test_a_kind_of_cache_in_the_generation_config_changes_nothing(folders, kind):
    lm = latentref(folders, **REFINED)
    instances = requests([(context, GREEDY) for context in CONTEXTS])
    wanted = lm.generate_until(instances)
    lm.model.generation_config.cache_implementation = kind
    assert lm.generate_until(instances) == wanted


def test_stop_strings_end_text_and_are_left_out(folders):
    lm = latentref(folders, **REFINED)
    (text,) = lm.generate_until(requests([(CONTEXTS[0], GREEDY)]))
    stop = text[4:6]
    (stopped,) = lm.generate_until(requests([(CONTEXTS[0], {**GREEDY, "until": [stop]})]))
    assert stopped == text[: text.index(stop)]


def test_max_gen_toks_counts_text_tokens_only(folders):
    lm = latentref(folders, **REFINED)
    models = [tiny_model("gpt2", seed) for seed in range(3)]
    markers = (*lm.reasoner.markers.opening, *lm.reasoner.markers.closing)
    prefix = oracle.prefix_embeds(
        lm.tokenizer.encode(CONTEXTS[0]), RefinementConfig(**REFINED), markers, *models
    )
    for num in (1, 5):
        tokens = oracle.greedy_tokens(prefix, models[0], num_tokens=num, eos_id=-1)
        (text,) = lm.generate_until(requests([(CONTEXTS[0], {**GREEDY, "max_gen_toks": num})]))
        assert text == lm.tokenizer.decode(tokens, skip_special_tokens=True)


def test_sampling_draws_and_a_seed_repeats_it(folders):
    lm = latentref(folders, **REFINED)
    sampled = {**GREEDY, "do_sample": True, "temperature": 1.5}

    def draw():
        torch.manual_seed(7)
        return lm.generate_until(requests([(context, sampled) for context in CONTEXTS[:2]]))

    greedy = lm.generate_until(requests([(context, GREEDY) for context in CONTEXTS[:2]]))
    assert draw() == draw()
    assert draw() != greedy


def small_device(monkeypatch, where, name, num_rows):
    """Make `where.name` run out of memory on more than two rows; return the refused sizes."""
    work, refused = getattr(where, name), []

    def limited(*args, **kwargs):
        if num_rows(*args) > 2:
            refused.append(num_rows(*args))
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return work(*args, **kwargs)

    monkeypatch.setattr(where, name, limited)
    return refused


@pytest.mark.parametrize(
    ("phase", "batch_size"),
    crossed(["think", "score", "decode"], [8, "auto", "auto:3"], every=3),
)
def test_running_out_of_memory_halves_batches_and_changes_nothing(
    folders, phase, batch_size, monkeypatch
):
    lm = latentref(folders, **REFINED, batch_size=batch_size)
    texts = requests([(context, GREEDY) for context in CONTEXTS])
    wanted = lm.loglikelihood(pairs()), lm.generate_until(texts)
    if phase == "think":
        refused = small_device(
            monkeypatch, lm.reasoner, "think_in_groups", lambda contexts, *_: len(contexts)
        )
    elif phase == "score":
        refused = small_device(
            monkeypatch, token_reasoner, "score", lambda thoughts, _: len(thoughts.thoughts_BTD)
        )
    else:
        refused = small_device(monkeypatch, HFLM, "_model_generate", lambda _, ids, *__: len(ids))
    actual = lm.loglikelihood(pairs()), lm.generate_until(texts)
    assert_close(actual[0], wanted[0])
    assert actual[1] == wanted[1]
    assert refused


@pytest.mark.parametrize(("batch_size", "sizes"), [(4, [4]), ("auto", [8, 4])])
def test_whole_texts_halve_too_and_what_they_read_is_counted(
    folders, batch_size, sizes, monkeypatch
):
    lm = latentref(folders, **REFINED, batch_size=batch_size)
    texts = [text for text in CONTEXTS if text] * 2
    wanted = lm.loglikelihood_rolling(requests([(text,) for text in texts]))
    encoded = lm.reasoner.accounting.report()["tokens_encoded"]
    # The prefix token is read and the last token is not.
    assert encoded == sum(len(lm.tok_encode(text)) for text in texts)
    refused = small_device(monkeypatch, lm, "_model_call", len)
    actual = lm.loglikelihood_rolling(requests([(text,) for text in texts]))
    assert actual == pytest.approx(wanted, abs=1e-4)
    assert refused == sizes


def test_the_rank_is_the_global_one_whatever_the_machine(folders, monkeypatch):
    class SecondOfTwoMachines:
        num_processes, process_index, local_process_index = 4, 3, 1
        device, is_local_main_process = torch.device("cpu"), False

        def __init__(self, **kwargs):
            pass

        def unwrap_model(self, model):
            return model

    monkeypatch.setattr("lm_eval.models.huggingface.Accelerator", SecondOfTwoMachines)
    lm = latentref(folders, latent_steps=1)
    assert (lm.rank, lm.world_size) == (3, 4)


def test_every_context_is_encoded_once_and_read_by_every_model(folders, monkeypatch):
    lm = latentref(folders, **REFINED, batch_size=2)
    seen = []
    think = lm.reasoner.think_in_groups
    monkeypatch.setattr(
        lm.reasoner,
        "think_in_groups",
        lambda rows, *more: seen.extend(rows) or think(rows, *more),
    )
    lm.loglikelihood(list(reversed(pairs())))
    assert len(seen) == len(set(seen)) == len(CONTEXTS)


def test_no_forward_pass_has_more_rows_than_the_batch_size(folders, monkeypatch):
    lm = latentref(folders, **REFINED, batch_size=3)
    rows = []
    for network in lm.reasoner.networks():
        decoder = network._decoder
        decoder.register_forward_pre_hook(
            lambda module, args, kwargs: rows.append(
                len(args[0] if kwargs.get("inputs_embeds") is None else kwargs["inputs_embeds"])
            ),
            with_kwargs=True,
        )
    lm.loglikelihood(pairs())
    lm.generate_until(requests([(context, GREEDY) for context in CONTEXTS]))
    assert max(rows) == 3


@pytest.mark.parametrize("latent_steps", [0, 3])
def test_contexts_of_one_document_share_one_cut(folders, latent_steps, caplog):
    lm = latentref(folders, latent_steps=latent_steps, max_length=20)
    instances = requests([("word " * 40, "### yes"), ("word " * 40, " halve it")])
    ids = lm.tokenizer.encode("word " * 40)
    longest = max(
        len(lm.tokenizer.encode(text, add_special_tokens=False))
        for text in ("### yes", " halve it")
    )
    room = 20 + 1 - 2 - latent_steps - longest
    models = [tiny_model("gpt2", 0)]
    config = RefinementConfig(latent_steps=latent_steps)
    markers = (*lm.reasoner.markers.opening, *lm.reasoner.markers.closing)
    prefix = oracle.prefix_embeds(ids[-room:], config, markers, *models)
    wanted = [
        oracle.log_likelihood(
            prefix, lm.tokenizer.encode(text, add_special_tokens=False), models[0]
        )
        for text in ("### yes", " halve it")
    ]
    assert_close(lm.loglikelihood(instances), wanted)
    assert len([r for r in caplog.records if "is cut from the left" in r.message]) == 1


def test_continuations_of_different_lengths_fill_the_window_to_its_last_column(folders):
    lm = latentref(folders, latent_steps=1, max_length=256)
    few, many = [("w " * 300, text) for text in ("a", "no")], ["no " * n for n in range(3, 7)]
    instances = requests([*few, *(("v " * 300, text) for text in many)])
    alone = latentref(folders, latent_steps=1, max_length=256, batch_size=1)
    assert_close(lm.loglikelihood(instances), alone.loglikelihood(instances))


def test_three_models_and_settings_stand_in_the_model_info(folders):
    info = latentref(folders, **REFINED).get_model_info()["latentref"]
    assert {name: info[name] for name in REFINED} == REFINED
    prints = {info[name]["fingerprint"] for name in ("backbone", "strong", "weak")}
    assert len(prints) == 3


def test_settings_of_the_start_line(folders):
    line = latentref(folders, **REFINED).reasoner.describe()
    for part in ("latent_steps=3", "memory_rate=0.4", "3*d/2", "markers on", "cpu", "float32"):
        assert part in line
    for name in ("marked", "strong", "weak"):
        assert folders[name] in line


@pytest.mark.parametrize("writes_steps", [True, None])
def test_scoring_choices_of_a_set_that_still_writes_steps_says_so(writes_steps, tmp_path, caplog):
    folder = save(tmp_path, seed=0, markers=True)
    write_manifest(folder, Manifest(latent_steps=1, writes_steps=writes_steps))
    with caplog.at_level("WARNING", logger="lm_eval_latentref"):
        latentref({"marked": folder}).loglikelihood(requests([("x", "a"), ("x", "b")]))
    lines = [record.message for record in caplog.records if "to write reasoning" in record.message]
    assert len(lines) == bool(writes_steps)
