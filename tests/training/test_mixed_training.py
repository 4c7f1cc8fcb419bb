"""Training on several sources at once: the rows of each epoch, and MathQA's two prompts."""

from __future__ import annotations

import collections
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from published_rows import folder, mathqa_row  # noqa: F401
from tiny import tiny_tokenizer
from training_helpers import SMALL, metrics, small_recipe, write_json

from lm_eval_latentref.benchmarks import documents
from lm_eval_latentref.benchmarks.rows import harness_example
from lm_eval_latentref.benchmarks.splits import load
from lm_eval_latentref.checkpoints import sources
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.protocol import Example
from lm_eval_latentref.training.curriculum import Row, micro_batches
from lm_eval_latentref.training.data import TrainingData, encode, load_data
from lm_eval_latentref.training.models import _plain_source, build
from lm_eval_latentref.training.trainer import train

tokens = st.integers(1, 9).map(lambda length: (0,) * length)
rows = st.builds(Row, tokens, st.integers(0, 2), tokens)


@given(batch=st.lists(rows, max_size=20), max_columns=st.integers(1, 60))
def test_a_micro_batch_stays_within_its_columns_unless_one_row_is_longer(batch, max_columns):
    groups = list(micro_batches(batch, len(batch) or 1, max_columns))
    assert collections.Counter(itertools.chain(*groups)) == collections.Counter(batch)
    for group in groups:
        (num_thoughts,) = {row.num_thoughts for row in group}
        longest = max(len(row.context) for row in group) + max(len(row.target) for row in group)
        assert len(group) == 1 or len(group) * (longest + num_thoughts) <= max_columns


def mixed_recipe(tmp_path, **changes):
    values = {
        "train": ["mathqa", "mathqa_harness", "strategyqa"],
        "task": None,
        "num_train": 12,
        "num_validation": 6,
        **changes,
    }
    return small_recipe(tmp_path / "out", **values)


def test_every_source_has_its_part_of_an_epoch_and_every_dev_split_of_validation(folder, tmp_path):  # noqa: F811
    recipe = mixed_recipe(tmp_path)
    data = load_data(recipe)
    contexts = [example.context for example in data.epoch(0)]
    harness = [context for context in contexts if context.startswith("Question: what is")]
    strategy = [context for context in contexts if context.startswith("Is the sun")]
    assert (len(contexts), len(harness), len(strategy)) == (36, 12, 12)
    assert data.validation == [*load("mathqa", "dev")[:3], *load("strategyqa", "dev")[:3]]
    assert recipe.trained_on == ["mathqa train", "mathqa_harness train", "strategyqa train"]


def test_each_source_has_its_own_accuracy_in_the_metrics(folder, tmp_path):  # noqa: F811
    config = {**SMALL["config"], "max_position_embeddings": 256}
    options = {"phases": ["cot"], "cot_epochs": 1, "num_validation": 5, "config": config}
    (line,) = metrics(train(mixed_recipe(tmp_path, **options)))
    by_source = line["validation_accuracy_by_source"]
    assert by_source.keys() == {"mathqa", "strategyqa"}
    right = 3 * by_source["mathqa"] + 2 * by_source["strategyqa"]
    assert right == pytest.approx(5 * line["validation_accuracy"])


def test_what_cannot_be_validated_alone_is_refused(folder, tmp_path):  # noqa: F811
    with pytest.raises(LatentRefError, match="no problems to validate on"):
        load_data(mixed_recipe(tmp_path, train=["mathqa_harness"]))


def test_validation_has_no_more_problems_than_asked_for(folder, tmp_path):  # noqa: F811
    data = load_data(mixed_recipe(tmp_path, num_validation=5))
    assert {name: len(actual) for name, actual in data.validation_by_source.items()} == {
        "mathqa": 3,
        "strategyqa": 2,
    }


def test_chance_is_the_most_frequent_answer_of_each_source():
    answers = {"mathqa": "aabcd", "strategyqa": ["yes", "no", "no", "no"]}
    validation = {
        name: [Example("q", (), answer) for answer in given] for name, given in answers.items()
    }
    assert TrainingData(validation, lambda number: []).majority == (2 + 3) / 9


def test_epochs_go_on_through_a_data_set_and_begin_again_at_its_end(folder, tmp_path):  # noqa: F811
    data = load_data(mixed_recipe(tmp_path, train=["strategyqa"], num_train=9))
    seen = [example.question for epoch in range(6) for example in data.epoch(epoch)]
    everything = [example.question for example in load("strategyqa", "train")]
    assert len(everything) == 27
    assert seen == everything * 2


def test_two_prompts_of_one_benchmark_do_not_begin_with_the_same_problems(tmp_path):
    names = [write_json(tmp_path / f"{n}.json", list("abcdef")) for n in ("own", "harness")]
    changes = {"train": names, "num_train": 2, "check_overlap": False}
    validation = write_json(tmp_path / "valid.json", ["x"])
    data = load_data(mixed_recipe(tmp_path, validation=validation, **changes))
    seen = ["".join(each.question for each in data.epoch(number)) for number in range(3)]
    assert seen == ["abde", "cdfa", "efbc"]


def test_mathqa_is_trained_in_the_words_that_its_harness_task_is_asked_in(folder):  # noqa: F811
    document = documents.harness_documents("test")[0]
    example = harness_example(document)
    assert example.context == f"Question: {document['Problem']}\nAnswer:"
    assert example.written_answer == " " + document["choices"][document["gold"]]


def test_both_prompts_of_mathqa_become_ids_with_the_same_steps():
    tokenizer = tiny_tokenizer()
    (problem,) = encode([harness_example(mathqa_row(7))], tokenizer)
    text = tokenizer.decode([*problem.question, *sum(problem.steps, ()), *problem.answer])
    assert text == "Question: what is 7 % of 100 ?\nAnswer:7 % of 100 is 7 .\n 7<|endoftext|>"


def test_a_source_named_twice_is_refused(tmp_path):
    with pytest.raises(LatentRefError, match="each once"):
        mixed_recipe(tmp_path, train=["mathqa", "mathqa"])


def test_the_default_model_is_trained_from_the_installed_weights(monkeypatch):
    at_hand = sources.Source(base="here", gguf_file="model.gguf")
    monkeypatch.setattr("lm_eval_latentref.training.start.default_source", lambda: at_hand)
    assert _plain_source(sources.DEFAULT_MODEL) is at_hand


def test_an_adapter_is_not_trained_on_a_base_without_a_name(tmp_path):
    (tmp_path / "other.gguf").write_bytes(b"")
    values = {"pretrained": str(tmp_path / "other.gguf"), "lora": {"r": 2}, "config": None}
    recipe = small_recipe(tmp_path / "out", **values)
    with pytest.raises(LatentRefError, match="cannot name"):
        build(recipe, words=(), latent=False)
