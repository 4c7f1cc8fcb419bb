"""Mistakes in training are errors of one line, if possible before anything is trained."""

from __future__ import annotations

import pytest
from training_helpers import SMALL, metrics, small_recipe, write_json

from lm_eval_latentref.checkpoints.files import holding
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.training.data import load_data, texts
from lm_eval_latentref.training.models import words
from lm_eval_latentref.training.recipe import parse_recipe
from lm_eval_latentref.training.trainer import train


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": "no-such-file.json"}, "no-such-file.json"),
        ({"task": {"node": 3}}, "'node' is not an option"),
        ({"task": {"nodes": 1}}, "nodes=1"),
        ({"learning_rate": float("inf")}, "learning_rate=inf"),
        ({"config": {"model_type": "no-such-type"}}, "no-such-type"),
        ({"config": {"model_type": "mamba", "hidden_size": 16, "num_hidden_layers": 1}}, "state"),
        ({"config": {**SMALL["config"], "max_position_embeddings": 8}}, "max_new_tokens=8"),
    ],
)
def test_a_recipe_that_names_missing_things_is_an_error_of_one_line(tmp_path, changes, message):
    with pytest.raises(LatentRefError, match=message) as caught:
        train(small_recipe(tmp_path / "out", **changes))
    assert "\n" not in str(caught.value)
    assert not metrics(tmp_path / "out")


def test_the_longest_validation_problem_has_the_most_tokens(tmp_path):
    # The one with more characters is a single word.
    path = write_json(tmp_path / "data.json", ["x" * 200, "a b " * 20])
    train_file = write_json(tmp_path / "train.json", ["c"])
    changes = {"train": train_file, "validation": path, "task": {}, "check_overlap": False}
    changes["config"] = {**SMALL["config"], "max_position_embeddings": 40}
    with pytest.raises(LatentRefError, match="max_new_tokens=8"):
        train(small_recipe(tmp_path / "out", **changes))
    assert not metrics(tmp_path / "out")


def test_words_that_only_occur_in_later_epochs_are_named(tmp_path):
    changes = {"task": {"symbols": 20, "min_hops": 2, "max_hops": 2}, "num_train": 4}
    changes["config"] = {**SMALL["config"], "max_position_embeddings": 128}
    recipe = small_recipe(tmp_path / "out", **changes, phases=["no_cot"], num_validation=1)
    data = load_data(recipe)
    known, later = (set(words(texts(data.epoch(number)))) for number in (0, 1))
    unknown = sorted(later - known - set(words(texts(data.validation))))
    train(recipe)  # the first epoch alone has no such words
    longer = small_recipe(
        tmp_path / "longer", **changes, phases=["no_cot"], num_validation=1, no_cot_epochs=2
    )
    with pytest.raises(
        LatentRefError, match=f"lacks {len(unknown)} of the words of epoch 2"
    ) as caught:
        train(longer)
    assert ", ".join(map(repr, unknown[:5])) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unwritable_output_is_an_error_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LatentRefError, match="cannot be written"):
        train(small_recipe(tmp_path / "file" / "out"))


@pytest.mark.parametrize("content", ["[1", "- a list", "\0"])
def test_a_damaged_recipe_in_the_output_is_named_in_one_line(tmp_path, content):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "recipe.yaml").write_text(content)
    with pytest.raises(LatentRefError, match=r"recipe\.yaml") as caught:
        train(small_recipe(tmp_path / "out"))
    assert "\n" not in str(caught.value)


def test_an_output_of_another_recipe_is_refused(tmp_path):
    train(small_recipe(tmp_path / "out", phases=["no_cot"]))
    with pytest.raises(LatentRefError, match=r"another recipe \(learning_rate"):
        train(small_recipe(tmp_path / "out", phases=["no_cot"], learning_rate=1.0))


def test_an_output_left_by_a_failed_start_accepts_the_corrected_recipe(tmp_path):
    with pytest.raises(LatentRefError, match=r"nowhere\.json"):
        train(small_recipe(tmp_path / "out", phases=["no_cot"], validation="nowhere.json"))
    train(small_recipe(tmp_path / "out", phases=["no_cot"]))


def test_a_loss_that_is_not_finite_ends_the_run_with_a_message(tmp_path):
    recipe = small_recipe(tmp_path / "out", phases=["no_cot"], learning_rate=1e30, max_grad_norm=0)
    with pytest.raises(LatentRefError, match="became nan at learning_rate="):
        train(recipe)


def test_an_output_without_a_name_is_refused():
    with pytest.raises(LatentRefError, match="output=''"):
        parse_recipe({**SMALL, "output": ""})


def test_a_folder_that_another_process_trains_in_is_refused_and_left_alone(tmp_path):
    out = tmp_path / "out"
    with (
        holding(out, "latentref train"),
        pytest.raises(LatentRefError, match="in use by latentref train, process"),
    ):
        train(small_recipe(out))
    assert not (out / "recipe.yaml").exists()
