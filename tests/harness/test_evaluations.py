"""Evaluations in sequence, in parallel or from a cache equal each evaluation alone."""

from __future__ import annotations

import copy
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from threading import Barrier

import lm_eval
import pytest
import torch
from lm_eval.api.model import CachingLM
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from peft import LoraConfig, get_peft_model
from tiny import tiny_model, tiny_tokenizer
from tiny_lm import (
    CONTEXTS,
    GREEDY,
    REFINED,
    assert_close,
    expect_mistake,
    latentref,
    pairs,
    requests,
)
from transformers import AutoModelForCausalLM

from lm_eval_latentref.benchmarks.documents import (
    generated_documents,
    of_evaluations,
    tasks_path,
)
from lm_eval_latentref.harness.model import LatentRefLM
from lm_eval_latentref.latent.config import RefinementConfig

TEXTS = requests([(context, GREEDY) for context in CONTEXTS])
WHOLE = requests([(text,) for text in CONTEXTS if text])
PLAIN = {"latent_steps": 2, "memory_rate": 0.7}


def evaluate(lm):
    """The results of three kinds of tasks, and the counts of their cost."""
    answers = lm.loglikelihood(pairs()), lm.generate_until(TEXTS), lm.loglikelihood_rolling(WHOLE)
    cost = dict(lm.get_model_info()["latentref"]["cost"])
    return answers, {k: v for k, v in cost.items() if k not in ("seconds", "peak_memory_bytes")}


def assert_same(actual, wanted):
    (scores, texts, whole), cost = actual
    (scores_alone, texts_alone, whole_alone), cost_alone = wanted
    assert_close(scores, scores_alone)
    assert texts == texts_alone
    assert whole == pytest.approx(whole_alone, abs=1e-4)
    if cost_alone is not None:
        assert cost == cost_alone


def evaluate_alone(folders, settings):
    return evaluate(latentref(folders, **settings))


@pytest.fixture(scope="module")
def alone(folders):
    """What a fresh process gives for each of the settings; imports are made once for both."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lm_eval_latentref.harness.model", "peft"])
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as fresh:
        return list(fresh.map(evaluate_alone, [folders] * 2, [REFINED, PLAIN]))


def test_two_models_in_a_process_evaluated_twice_give_what_fresh_processes_give(folders, alone):
    refined, plain = latentref(folders, **REFINED), latentref(folders, **PLAIN)
    for _ in range(2):
        assert_same(evaluate(refined), alone[0])
        assert_same(evaluate(plain), alone[1])


def test_two_evaluations_at_once_in_a_process_do_not_mix(folders, alone):
    models = latentref(folders, **REFINED), latentref(folders, **PLAIN)
    with ThreadPoolExecutor(2) as threads:
        for actual, wanted in zip(threads.map(evaluate, models), alone, strict=True):
            assert_same(actual, wanted)


def test_answers_from_a_cache_are_those_of_a_run_without_it(folders, alone, tmp_path):
    wanted, _ = alone[0]
    first = CachingLM(latentref(folders, **REFINED), str(tmp_path / "cache_rank0.db"))
    # Some answers are in the cache already, as after a killed run.
    some = [request for number, request in enumerate(pairs()) if number % 3 == 0]
    (
        first.loglikelihood(some),
        first.generate_until(TEXTS[:2]),
        first.loglikelihood_rolling(WHOLE[1:3]),
    )
    first.dbdict.close()
    for _ in range(2):
        cached = CachingLM(latentref(folders, **REFINED), str(tmp_path / "cache_rank0.db"))
        for _ in range(2):
            assert_same(evaluate(cached), (wanted, None))
        cached.dbdict.close()


def test_a_loaded_model_that_computes_otherwise_has_a_cache_of_its_own(tmp_path):
    """The weights are equal, but another adapter is active, or a hook moves the hidden states."""
    model, file = tiny_model("llama"), str(tmp_path / "cache_rank0.db")
    lora = LoraConfig(target_modules=["q_proj"], init_lora_weights=False, lora_alpha=64)
    adapted = get_peft_model(model, lora, "first")  # in place
    adapted.add_adapter("second", lora)

    def opened():
        lm = LatentRefLM(model, tokenizer=tiny_tokenizer(), device="cpu", latent_steps=1)
        return CachingLM(lm, file)

    adapted.set_adapter("first")
    opened().dbdict.close()
    opened().dbdict.close()
    adapted.set_adapter("second")
    expect_mistake(opened, "--use_cache", "fingerprint")
    adapted.set_adapter("first")
    model.model.norm.register_forward_hook(lambda module, args, states: states * 1.1)
    expect_mistake(opened, "--use_cache", "fingerprint")


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("ends", [{"until": "<never>"}, {"until": "c", "think_end_token": "g"}])
def test_a_text_ends_where_it_would_end_alone(steps, ends):
    """Also at an end of sequence that is not in the generation config, or inside the thinking."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    letters = tokenizer.encode("abcdfghq", add_special_tokens=False)
    tokenizer.add_special_tokens({"eos_token": "q", "pad_token": "q"})
    others = [token for token in range(model.config.vocab_size) if token not in letters]
    # Each text goes through the letters in an order of its own.
    options = {**GREEDY, "suppress_tokens": others, "repetition_penalty": 9.0}
    ends = dict(ends)
    instances = requests(
        [(text, {**options, "until": [ends["until"]]}) for text in CONTEXTS if text]
    )
    del ends["until"]
    alone, together = (
        LatentRefLM(
            model,
            tokenizer=tokenizer,
            device="cpu",
            latent_steps=steps,
            batch_size=batch_size,
            **ends,
        ).generate_until(instances)
        for batch_size in (1, len(instances))
    )
    assert together == alone
    assert len({len(text) for text in alone}) > 1


def test_several_samples_of_a_document_stay_several(folders, tmp_path):
    sampled = {**GREEDY, "do_sample": True, "temperature": 3.0}
    instances = requests([(CONTEXTS[0], sampled)] * 4)
    cached = CachingLM(latentref(folders, **REFINED), str(tmp_path / "cache_rank0.db"))
    for _ in range(2):
        torch.manual_seed(0)
        assert len(set(cached.generate_until(instances))) > 1
    # lm-eval would not see that these are drawn, and give the first answer for all.
    del sampled["do_sample"]
    instances = requests([(CONTEXTS[0], sampled)] * 4)
    expect_mistake(lambda: cached.generate_until(instances), "--use_cache", "do_sample=True")
    assert len(set(latentref(folders, **REFINED).generate_until(instances))) > 1
    cached.dbdict.close()


def test_a_cut_that_depends_on_the_other_choices_is_not_cached(folders, tmp_path):
    instances = requests([("word " * 40, "a"), ("word " * 40, " halve it. First, add")])
    lm = latentref(folders, latent_steps=1, max_length=24)
    lm.loglikelihood(instances)
    cached = CachingLM(lm, str(tmp_path / "cache_rank0.db"))
    expect_mistake(
        lambda: cached.loglikelihood(instances), "task document 0", "--use_cache", "max_length"
    )
    assert len(cached.loglikelihood(instances[:1] * 2)) == 2
    cached.dbdict.close()


def test_other_settings_of_the_same_model_do_not_write_into_its_cache(folders, tmp_path):
    lm = latentref(folders, **REFINED)
    wanted = lm.loglikelihood(pairs())
    cached = CachingLM(lm, str(tmp_path / "cache_rank0.db"))
    assert_close(cached.loglikelihood(pairs()), wanted)
    lm.refine(RefinementConfig(**PLAIN))
    lm.loglikelihood(pairs())
    cached.dbdict.close()
    again = CachingLM(latentref(folders, **REFINED), str(tmp_path / "cache_rank0.db"))
    assert_close(again.loglikelihood(pairs()), wanted)
    again.dbdict.close()


def test_references_of_another_dtype_have_a_cache_of_their_own(folders, tmp_path):
    names = dict(folders)
    for name in ("strong", "weak"):
        half = AutoModelForCausalLM.from_pretrained(folders[name], dtype=torch.bfloat16)
        half.save_pretrained(tmp_path / name)
        names[name] = str(tmp_path / name)
    file = str(tmp_path / "cache_rank0.db")
    as_saved = latentref(names, **REFINED, dtype="auto")
    CachingLM(as_saved, file).dbdict.close()
    in_full = latentref(names, **REFINED, dtype="float32")
    assert as_saved.reasoner.settings() == in_full.reasoner.settings()
    expect_mistake(lambda: CachingLM(in_full, file), "--use_cache", "dtype=auto", "float32")


@pytest.mark.parametrize("name", ["plain", "marked"])
@pytest.mark.parametrize("batch_size", [1, 3, 64, "auto"])
def test_whole_texts_that_end_alike_do_not_take_each_others_numbers(folders, name, batch_size):
    tail = "Every lempus is a gorpus. Tom is a lempus. " * 6
    texts = requests([(tail * number + "end",) for number in (3, 4, 5)])
    alone = latentref(folders, name, latent_steps=2, max_length=64, batch_size=1)
    many = latentref(folders, name, latent_steps=2, max_length=64, batch_size=batch_size)
    assert many.loglikelihood_rolling(texts) == pytest.approx(
        alone.loglikelihood_rolling(texts), abs=1e-3
    )


def test_batches_of_whole_texts_are_sized_by_their_own_work(folders, monkeypatch):
    lm = latentref(folders, "plain", batch_size="auto")
    read = []
    call = HFLM._model_call
    monkeypatch.setattr(
        HFLM, "_model_call", lambda self, ids, *a, **k: read.append(ids.numel()) or call(self, ids)
    )
    lm.loglikelihood_rolling(WHOLE)
    longest = max(len(lm.tok_encode(request.args[0])) for request in WHOLE)
    assert sum(read) <= longest * len(WHOLE)


@pytest.mark.parametrize(
    "extra",
    [
        {"num_beams": 2},
        {"num_beams": 2, "length_penalty": 0.3},
        {"prompt_lookup_num_tokens": 3},
        {"no_repeat_ngram_size": 2},
    ],
)
def test_without_thoughts_and_markers_every_way_to_generate_is_hfs(folders, extra):
    instances = requests([(context, {**GREEDY, **extra}) for context in CONTEXTS[:-1]])
    hf = HFLM(folders["plain"], device="cpu", dtype="float32", batch_size=1)
    lm = latentref(folders, "plain", batch_size=1)
    assert lm.generate_until(instances) == hf.generate_until(instances)


@pytest.mark.parametrize("settings", [{}, {"latent_steps": 2}])
@pytest.mark.parametrize("name", ["plain", "marked"])
def test_a_choice_without_tokens_is_an_error_with_its_document(folders, name, settings):
    lm = latentref(folders, name, **settings)
    for context in ("Is it so? Answer:", ""):
        instances = requests([(context, " no"), (context, "")])
        expect_mistake(
            lambda instances=instances: lm.loglikelihood(instances),
            "task document 0",
            "''",
            "empty",
        )


def test_a_choice_that_merges_into_its_context_is_an_error_too(folders):
    lm = latentref(folders, "plain")
    start, rest = next(
        (word[:cut], word[cut:])
        for word in ("Every", "lempus", "gorpus", "average", "numbers", "First")
        for cut in range(1, len(word))
        if len(lm.tok_encode(word)) <= len(lm.tok_encode(word[:cut]))
    )
    instances = requests([(start, rest)])
    expect_mistake(lambda: lm.loglikelihood(instances), "task document 0", "merges")


def test_a_choice_longer_than_the_model_reads_names_its_document(folders):
    lm = latentref(folders, "plain", max_length=8)
    expect_mistake(
        lambda: lm.loglikelihood(requests([("x", "### yes " * 20)])),
        "task document 0",
        "max_length=8",
    )


@pytest.mark.parametrize("markers", ["auto", "none"])
def test_choices_of_a_model_that_begins_to_reason_are_refused(folders, markers):
    lm = latentref(
        folders, latent_markers=markers, enable_thinking=True, think_end_token="</think>"
    )
    expect_mistake(lambda: lm.loglikelihood(pairs()), "enable_thinking=True", "(task)")


@pytest.mark.parametrize("settings", [{}, {"latent_steps": 2, "memory_rate": 0.5}])
def test_a_model_that_is_loaded_already_gives_what_its_folder_gives(folders, settings, tmp_path):
    model, tokenizer = tiny_model("gpt2", 0), tiny_tokenizer(markers=False)
    lm = LatentRefLM(model, tokenizer=tokenizer, batch_size=4, **settings)
    by_name = latentref(folders, "plain", **settings)
    assert_close(lm.loglikelihood(pairs()), by_name.loglikelihood(pairs()))
    assert lm.generate_until(TEXTS) == by_name.generate_until(TEXTS)
    prints = [lm.reasoner.settings()["backbone"]["fingerprint"]]
    with torch.no_grad():
        model.transformer.wte.weight[0, 0] += 1
    prints.append(lm.reasoner.settings()["backbone"]["fingerprint"])
    model.generation_config.repetition_penalty = 1.5
    prints.append(lm.reasoner.settings()["backbone"]["fingerprint"])
    assert len(set(prints)) == 3


def without_mask(model):
    """`model` with a decoder that attends to padding."""
    decoder = model.model
    decoder.register_forward_pre_hook(
        lambda module, args, kwargs: (args, {**kwargs, "attention_mask": None}), with_kwargs=True
    )
    return model


def changing_rope():
    model = tiny_model("llama")
    config = copy.deepcopy(model.config)
    config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    return type(model)(config).eval()


def adapted(model):
    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM"))


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (lambda: without_mask(tiny_model("llama")), {}, ("LlamaForCausalLM", "fails the check")),
        (changing_rope, {"max_length": 300}, ("llama", "max_length=256")),
        (lambda: adapted(tiny_model("llama")), {}, ("PeftModel", "merge_and_unload")),
    ],
)
def test_a_loaded_model_must_do_what_one_from_a_folder_must(make, options, words):
    call = lambda: LatentRefLM(make(), tokenizer=tiny_tokenizer(), **options)  # noqa: E731
    expect_mistake(call, *words)


def test_each_evaluation_records_its_own_data():
    manager = TaskManager(
        include_path=[str(tasks_path())], include_defaults=False, metadata={"num_documents": 4}
    )
    models = [LatentRefLM(tiny_model("gpt2"), tokenizer=tiny_tokenizer()) for _ in range(2)]

    def data(lm, *tasks):
        results = lm_eval.simple_evaluate(
            lm, tasks=list(tasks), task_manager=manager, limit=1, bootstrap_iters=0
        )
        return sorted(results["config"]["latentref"]["data"])

    # Another model's evaluation in this process, whose data nobody reports.
    lm_eval.simple_evaluate(
        "dummy", tasks=["latentref_graph_mc"], task_manager=manager, limit=1, bootstrap_iters=0
    )
    for lm in models:
        assert data(lm, "latentref_arith_mc_dev") == ["arith validation"]
        assert data(lm, "latentref_graph_mc", "latentref_arith_mc") == ["arith test", "graph test"]
    # Tasks that are not loaded again.
    graph = manager.load(["latentref_graph_mc"])["tasks"]["latentref_graph_mc"]
    for lm in models:
        assert data(lm, graph) == ["graph test"]
    # Nor are they loaded by the thread that evaluates them.
    arith = manager.load(["latentref_arith_mc"])["tasks"]["latentref_arith_mc"]
    with ThreadPoolExecutor(1) as thread:
        assert list(thread.map(data, models, [graph, arith])) == [["graph test"], ["arith test"]]


def test_evaluations_at_once_record_their_own_data():
    both_used = Barrier(2)

    def use_and_report(name):
        with of_evaluations.recording() as splits:
            generated_documents(name, num=2, seed=0)
        of_evaluations.use(splits)
        both_used.wait(timeout=60)
        return of_evaluations.report()

    with ThreadPoolExecutor(2) as threads:
        reports = list(threads.map(use_and_report, ("arith", "graph")))
    assert [list(report) for report in reports] == [["arith test"], ["graph test"]]


def test_a_loaded_model_takes_no_references(folders):
    model = tiny_model("gpt2", 0)
    call = lambda: LatentRefLM(model, tokenizer=tiny_tokenizer(), strong=folders["strong"])  # noqa: E731
    assert len(expect_mistake(call, "GPT2LMHeadModel", "strong")) < 300


@pytest.mark.parametrize("settings", [{}, {"latent_steps": 2}])
@pytest.mark.parametrize("name", ["plain", "marked"])
def test_each_context_is_counted_to_its_last_token(folders, name, settings):
    lm = latentref(folders, name, **settings)
    contexts = [context for context in CONTEXTS if context and context == context.rstrip()]
    instances = requests([(context, text) for context in contexts for text in (" a", " b c")])
    lm.loglikelihood(instances)
    wanted = sum(len(lm.tok_encode(context)) for context in contexts)
    assert lm.reasoner.accounting.report()["tokens_encoded"] == wanted
