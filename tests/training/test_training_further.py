"""Training continues from a trained adapter: with its weights and the record of its data."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from matrix import crossed
from safetensors.torch import load_file
from tiny import tiny_model, tiny_tokenizer
from training_helpers import metrics, small_recipe

from lm_eval_latentref.checkpoints.convert import convert
from lm_eval_latentref.checkpoints.loading import load
from lm_eval_latentref.checkpoints.manifest import MANIFEST_NAME, read_manifest
from lm_eval_latentref.checkpoints.questions import hash_questions, read_hashes
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.training.trainer import train

LORA = {"r": 2, "target_modules": ["q_proj"]}
WEIGHTS = "adapter_model.safetensors"


def questions_file(path, words):
    rows = [{"question": word, "steps": ["a b", "b c"], "answer": "c"} for word in words]
    path.write_text(json.dumps(rows), encoding="utf-8")
    return str(path)


def adapter_recipe(root, name, words, **changes):
    file = questions_file(root / f"{name}.json", words)
    values = {
        "config": None,
        "pretrained": str(root / "base"),
        "lora": LORA,
        "train": [file],
        "validation": questions_file(root / "valid.json", ["to be held out"]),
        "task": {},
        "check_overlap": False,
        "cot_epochs": 2,
        "strong_epoch": 2,
        "weak_epoch": 1,
        **changes,
    }
    return small_recipe(root / name, **values)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    root = tmp_path_factory.mktemp("further")
    tiny_model("llama").save_pretrained(root / "base")
    tiny_tokenizer(markers=False).save_pretrained(root / "base")
    return train(adapter_recipe(root, "first", ["one", "two"]))


def weights(folder):
    return load_file(folder / WEIGHTS)


@pytest.mark.parametrize(("phase", "start"), [("cot", "strong"), ("coconut", ".")])
def test_it_starts_from_the_weights_of_the_adapter(first, phase, start):
    still = {"learning_rate": 1e-30, "phases": [phase], "weight_decay": 0.0}
    recipe = adapter_recipe(
        first.parent, f"still-{phase}", ["three"], pretrained=str(first / start), **still
    )
    before, after = weights(first / start), weights(train(recipe))
    assert before.keys() == after.keys()
    for name, weight in before.items():
        assert torch.equal(weight, after[name])
    moving = {"phases": [phase], "learning_rate": 1e-2}
    recipe = adapter_recipe(
        first.parent, f"moving-{phase}", ["three"], pretrained=str(first / start), **moving
    )
    after = weights(train(recipe))
    assert any(not torch.equal(weight, after[name]) for name, weight in before.items())


def test_the_curriculum_continues_at_the_given_stage(first):
    last = metrics(first)[-1]
    options = {"phases": ["coconut"], "first_stage": last["stage"], "pretrained": str(first)}
    folder = train(adapter_recipe(first.parent, "last-stage", ["one", "two"], **options))
    stages = [line["stage"] for line in metrics(folder)]
    assert {*stages} == {last["stage"]}
    assert metrics(folder)[0]["loss"] < last["loss"]


def test_earlier_training_data_stays_on_record(first):
    options = {"phases": ["coconut"], "pretrained": str(first)}
    folder = train(adapter_recipe(first.parent, "second", ["three"], **options))
    manifest = read_manifest(folder / MANIFEST_NAME)
    assert manifest.trained_on == ["second.json", "first.json"]
    seen = read_hashes(folder / "trained_questions.npy")
    assert set(seen) == set(hash_questions(["one", "two", "three"]))
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == str(first.parent / "base")
    # The references are those of the set it started from, and the set is whole.
    assert (manifest.strong, manifest.weak) == ("strong", "weak")
    for role in ("strong", "weak"):
        assert (folder / role / WEIGHTS).read_bytes() == (first / role / WEIGHTS).read_bytes()
    assert load(str(folder), search_step_size=1.0).loaded.strong is not None


def test_an_adapter_of_cot_becomes_one_with_thoughts(first):
    options = {"phases": ["coconut"], "pretrained": str(first / "strong")}
    folder = train(adapter_recipe(first.parent, "from-cot", ["three"], **options))
    new = weights(folder).keys() - weights(first / "strong").keys()
    assert new
    assert all("trainable_tokens" in name for name in new)
    assert read_manifest(folder / MANIFEST_NAME).strong is None


@pytest.mark.parametrize("kind", crossed(["bfloat16", "bin"], every=2))
def test_it_may_be_converted_or_pickled(first, tmp_path, kind):
    (tmp_path / "base").symlink_to(first.parent / "base")
    start = convert(out=tmp_path / "start", pretrained=str(first), adapter=True, dtype="bfloat16")
    before = weights(start)
    if kind == "bin":
        (start / WEIGHTS).unlink()
        torch.save(before, start / "adapter_model.bin")
    still = {"phases": ["coconut"], "learning_rate": 1e-30, "weight_decay": 0.0}
    after = weights(
        train(adapter_recipe(tmp_path, "out", ["three"], pretrained=str(start), **still))
    )
    for name, weight in before.items():
        assert torch.equal(weight.float(), after[name])


def test_validation_problems_that_it_was_trained_on_are_logged(first, caplog):
    options = {"phases": ["coconut"], "pretrained": str(first)}
    (first.parent / "held").mkdir()
    seen = questions_file(first.parent / "held" / "valid.json", ["one", "new", "old"])
    train(adapter_recipe(first.parent, "third", ["three"], validation=seen, **options))
    assert "was trained on 1 of the 3 validation problems" in caplog.text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lora": {**LORA, "r": 3}}, r"trained with r=2 in lora, but the recipe has r=3"),
        (
            {"lora": {**LORA, "lora_alpha": 16}},
            "lora_alpha=8 in lora, but the recipe has lora_alpha=16",
        ),
        ({"lora": {**LORA, "target_modules": ["v_proj"]}}, "target_modules=.'q_proj'. in lora"),
        ({"lora": {**LORA, "target_modules": "all-linear"}}, "does not fit lora="),
        ({"phases": ["no_cot"]}, "which no_cot does not use; give phases=coconut"),
        ({"phases": ["cot", "coconut"]}, "or an adapter of CoT such as .*/strong"),
        ({"lora": None}, "but the recipe has no lora"),
    ],
)
def test_an_adapter_that_does_not_fit_is_one_line(first, tmp_path, changes, words):
    options = {"phases": ["coconut"], "pretrained": str(first), **changes}
    with pytest.raises(LatentRefError, match=words) as caught:
        train(adapter_recipe(tmp_path, "unfit", ["three"], **options))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "pissa_niter_4"},
        {"init_lora_weights": "olora"},
        {"bias": "all"},
        {"bias": "lora_only"},
    ],
)
def test_an_adapter_that_would_change_the_shared_base_is_refused_before_anything_is_read(
    tmp_path, options
):
    recipe = adapter_recipe(tmp_path, "out", ["three"], lora={**LORA, **options})
    with pytest.raises(LatentRefError, match="shares with its references; leave out") as caught:
        train(recipe)  # there is no base folder
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [{}, {"init_lora_weights": "gaussian"}, {"use_dora": True}])
def test_options_that_do_not_change_the_base_are_accepted(tmp_path, options):
    recipe = adapter_recipe(tmp_path, "out", ["three"], lora={**LORA, **options})
    with pytest.raises(LatentRefError, match="no such folder"):
        train(recipe)


def test_training_cannot_start_from_an_adapter_that_changes_its_base(first, tmp_path):
    start = shutil.copytree(first / "strong", tmp_path / "start")
    config = json.loads((start / "adapter_config.json").read_text())
    text = json.dumps({**config, "init_lora_weights": "pissa"})
    (start / "adapter_config.json").write_text(text)
    options = {"phases": ["coconut"], "pretrained": str(start)}
    with pytest.raises(LatentRefError, match="run `latentref convert` on it") as caught:
        train(adapter_recipe(tmp_path, "out", ["three"], **options))
    assert "\n" not in str(caught.value)


def test_a_change_of_the_base_that_only_the_model_shows_is_refused_before_training(first, tmp_path):
    lora = {**LORA, "layer_replication": [[0, 2], [1, 2]]}
    changes = {"lora": lora, "pretrained": str(first.parent / "base")}
    with pytest.raises(LatentRefError, match="changes or trains weights of its base") as caught:
        train(adapter_recipe(tmp_path, "out", ["three"], **changes))
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out").glob("metrics.jsonl"))


def test_a_damaged_adapter_is_one_line(first, tmp_path):
    start = tmp_path / "start"
    shutil.copytree(first / "strong", start)
    (start / WEIGHTS).write_bytes(b"damaged")
    options = {"phases": ["coconut"], "pretrained": str(start)}
    with pytest.raises(LatentRefError, match="may be truncated") as caught:
        train(adapter_recipe(tmp_path, "out", ["three"], **options))
    assert "\n" not in str(caught.value)
