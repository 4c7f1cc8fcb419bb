"""Recipes are read strictly and overridden key by key; a mistake is an error of one line."""

from __future__ import annotations

import pytest
import yaml

from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.training.learner import BETA1
from lm_eval_latentref.training.recipe import RECIPES, Recipe, load_recipe, parse_recipe
from lm_eval_latentref.training.schedule import stages

MINIMAL = {"output": "out", "train": "graph", "pretrained": "gpt2"}


@pytest.fixture
def recipe_file(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("output: out\ntrain: graph\nconfig: {model_type: gpt2, n_embd: 8}\n")
    return str(path)


def test_overrides_reach_into_dictionaries_and_are_read_as_yaml(recipe_file):
    given = ["config.n_embd=16", "task.max_hops=2", "learning_rate=3e-4", "phases=[no_cot,cot]"]
    recipe = load_recipe(recipe_file, [*given, "max_grad_norm=0", "num_validation=null"])
    assert recipe.config == {"model_type": "gpt2", "n_embd": 16}
    assert recipe.task == {"max_hops": 2}
    assert (recipe.learning_rate, recipe.max_grad_norm) == (3e-4, 0.0)
    assert recipe.phases == ("no_cot", "cot")
    assert recipe.num_validation is None


def test_a_written_recipe_reads_back_the_same(tmp_path):
    recipe = parse_recipe({**MINIMAL, "lora": {"r": 4}, "phases": "cot,coconut", "seed": "3"})
    path = tmp_path / "resolved.yaml"
    path.write_text(yaml.safe_dump(recipe.to_dict()))
    assert load_recipe(str(path)) == recipe


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_the_recipes_of_the_package_are_found_by_name_and_valid(name):
    assert isinstance(load_recipe(name), Recipe)


# What facebookresearch/coconut's files in args/ say, in its names; batches are of 4 GPUs.
PUBLISHED = {
    "gpt2-prosqa": {"c_thought": 1, "epochs_per_stage": 5, "max_latent_stage": 6},
    "gpt2-gsm8k": {"c_thought": 2, "epochs_per_stage": 3, "max_latent_stage": 3},
}
EPOCHS = {"gpt2-prosqa": range(0, 50), "gpt2-gsm8k": range(3, 25)}
"""From `resume` to `num_epochs`."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_schedules_are_reproduced_epoch_by_epoch(name):
    recipe = load_recipe(name)
    for key, value in PUBLISHED[name].items():
        assert getattr(recipe, key) == value
    planned = [stage.number for stage in stages(recipe, "coconut") for _ in range(stage.num_epochs)]
    published = [epoch // recipe.epochs_per_stage for epoch in EPOCHS[name]]
    # Every stage after the last that removes one more step is the same one.
    assert planned == [min(number, recipe.max_latent_stage + 1) for number in published]
    assert recipe.start_from_cot == (EPOCHS[name].start > 0)
    assert (recipe.batch_size, recipe.learning_rate, recipe.weight_decay) == (4 * 32, 1e-4, 0.01)
    assert (recipe.dtype, recipe.precision) == ("float32", "fp32")
    assert (recipe.warmup_steps, recipe.decay, recipe.max_grad_norm) == (0, 0.0, 0.0)
    assert (BETA1, recipe.beta2) == (0.9, 0.999)  # AdamW's own
    assert (recipe.pad_latent_to_max, recipe.uniform_prob) == (True, 0.0)
    assert recipe.reset_optimizer


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rat": 1}, "did you mean learning_rate"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 2.5}, "batch_size=2.5.*integer"),
        ({"batch_size": True}, "batch_size=True.*integer"),
        ({"learning_rate": "fast"}, "learning_rate='fast'.*number"),
        ({"learning_rate": float("inf")}, "learning_rate=inf.*finite number"),
        ({"learning_rate": float("nan")}, "learning_rate=nan.*finite number"),
        ({"batch_size": float("inf")}, "batch_size=inf.*integer"),
        ({"train": ["graph", 3]}, "train=.*list of names"),
        ({"config": {3: "gpt2"}}, "config=.*KEY: VALUE"),
        ({"pad_latent_to_max": "yes"}, "pad_latent_to_max='yes'.*true or false"),
        ({"phases": ["coconut", "cot"]}, "phases=coconut, cot.*order"),
        ({"phases": ["sft"]}, "phases=sft"),
        ({"phases": []}, "phases="),
        ({"config": {"model_type": "gpt2"}}, "give one of them"),
        ({"pretrained": None}, "give one of them"),
        ({"pretrained": None, "config": {"n_embd": 8}}, "model_type"),
        ({"final_norm": 1.0}, "keeps its own"),
        ({"pretrained": None, "config": {"model_type": "gpt2"}, "lora": {"r": 1}}, "lora"),
        ({"dtype": "bfloat16"}, "dtype=bfloat16"),
        ({"precision": "fp16"}, "precision=fp16"),
        ({"uniform_prob": 1.5}, "uniform_prob=1.5"),
        ({"first_stage": 3, "max_latent_stage": 1}, "first_stage=3"),
        ({"last_stage": 9}, "last_stage=9"),
        ({"start_from_cot": False, "phases": ["coconut"]}, "no effect without cot"),
        ({"weak_epoch": 11}, "weak_epoch=11"),
        ({"output": None}, "output is missing"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(values, message):
    with pytest.raises(LatentRefError, match=message) as caught:
        parse_recipe({**MINIMAL, **values})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("override", ["seed", "=1", "output.x=1"])
def test_a_wrong_override_is_named(recipe_file, override):
    with pytest.raises(LatentRefError, match=r"KEY=VALUE|no keys of its own"):
        load_recipe(recipe_file, [override])


@pytest.mark.parametrize("text", ["- a list\n", "a: [1\n", "\0"])
def test_a_file_that_is_not_a_recipe_is_named(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(LatentRefError, match=r"bad\.yaml") as caught:
        load_recipe(str(path))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_an_error_that_lists_the_recipes():
    with pytest.raises(LatentRefError, match="graph-small"):
        load_recipe("no-such-recipe")
