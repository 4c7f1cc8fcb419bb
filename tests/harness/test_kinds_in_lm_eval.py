"""Kinds of thoughts in lm-eval: any chat model, samples, prompts of other families."""

from __future__ import annotations

import logging

import lm_eval
import pytest
from lm_eval.tasks import TaskManager
from tiny import tiny_model, tiny_tokenizer
from tiny_lm import CONTEXTS, GREEDY, requests

from lm_eval_latentref.benchmarks.documents import tasks_path
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.harness.model import LatentRefLM

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat")
    tiny_model("llama").save_pretrained(folder)
    tokenizer = tiny_tokenizer(markers=False)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return str(folder)


def latentref(folder, **kwargs):
    defaults = {"device": "cpu", "dtype": "float32", "batch_size": 4, "latent_steps": 3}
    return LatentRefLM(folder, **{**defaults, **kwargs})


def evaluate(task, metadata=None, **kwargs):
    manager = TaskManager(
        include_path=str(tasks_path()),
        include_defaults=False,
        metadata={"num_documents": 6, **(metadata or {})},
    )
    return lm_eval.simple_evaluate(
        model="latentref", tasks=[task], task_manager=manager, bootstrap_iters=0, **kwargs
    )


@pytest.mark.parametrize("task", ["latentref_graph", "latentref_graph_mc"])
def test_any_chat_model_thinks_and_the_samples_say_how_long(chat_model, task):
    results = evaluate(
        task,
        model_args={
            "pretrained": chat_model,
            "dtype": "float32",
            "device": "cpu",
            "latent_kind": "mixture",
            "latent_steps": 4,
            "latent_stop": "high_entropy",
            "stop_entropy": 3.8,
            "stop_patience": 1,
            "latent_markers": "<think>|</think>",
        },
        apply_chat_template=True,
        log_samples=True,
    )
    samples = results["samples"][task]
    assert all(sample["arguments"][0][0].endswith("assistant:") for sample in samples)
    numbers = [sample["arguments"][0][-1]["latent_thoughts"] for sample in samples]
    assert all(len(number) == 1 and 0 <= number[0] <= 4 for number in numbers)
    ours = results["config"]["latentref"]
    assert (ours["latent_kind"], ours["mixture_top_k"]) == ("mixture", 30)
    mean = sum(number[0] for number in numbers) / len(numbers)
    assert ours["cost"]["thoughts_per_context"] == pytest.approx(mean, abs=1e-3)


def text_requests(num_samples):
    """`num_samples` requests for greedy text after each of the first two contexts."""
    arguments = [(context, GREEDY) for context in CONTEXTS[:2] for _ in range(num_samples)]
    made = requests(arguments)
    for number, request in enumerate(made):
        request.doc_id = number // num_samples
    return made


def test_repeats_are_different_samples_whatever_the_batch(chat_model):
    noisy = {"latent_kind": "realigned", "thought_noise": 2.0}
    actual = latentref(chat_model, **noisy).generate_until(text_requests(4))
    assert len(set(actual[:4])) > 1
    assert len(set(actual[4:])) > 1
    for batch_size in (1, 3):
        again = latentref(chat_model, **noisy, batch_size=batch_size).generate_until(
            text_requests(4)
        )
        assert again == actual
    other = latentref(chat_model, **noisy, thought_seed=1).generate_until(text_requests(4))
    assert other != actual


def test_samples_that_would_be_equal_are_warned_of(chat_model, caplog):
    with caplog.at_level(logging.WARNING):
        actual = latentref(chat_model, latent_kind="realigned").generate_until(text_requests(2))
    assert "all samples will be equal" in caplog.text
    assert actual[0] == actual[1]


def test_samples_and_a_response_cache_exclude_each_other(chat_model):
    lm = latentref(chat_model, latent_kind="realigned", thought_noise=1.0)
    lm.cache_hook.dbdict = {}
    with pytest.raises(LatentRefError, match="2 samples of a document"):
        lm.generate_until(text_requests(2))


@pytest.mark.parametrize(
    ("protocol", "is_warned"), [("coconut", True), ("codi", False), ("colar", True)]
)
def test_a_prompt_that_a_checkpoint_was_not_trained_on_is_warned_of(
    chat_model, tmp_path, caplog, protocol, is_warned
):
    import family_files as files
    import torch

    state, _ = files.codi_state(tiny_model("llama"), files.projector(32))
    torch.save(state, tmp_path / "codi.pt")
    with caplog.at_level(logging.WARNING):
        evaluate(
            "latentref_graph",
            {"protocol": protocol},
            model_args={"pretrained": chat_model, "weights": str(tmp_path / "codi.pt")},
            device="cpu",
            limit=1,
        )
    flag = """--metadata '{"protocol": "codi"}'"""
    assert (flag in caplog.text) == is_warned
