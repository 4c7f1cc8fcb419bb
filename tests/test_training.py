"""Training: its loss against an oracle without caches, its data, and what a run leaves behind."""

from __future__ import annotations

import dataclasses
import json
import logging
import random

import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny import random_ids, tiny_model, tiny_tokenizer
from training_helpers import SMALL, metrics, small_recipe, write_json

from lm_eval_latentref.checkpoints.manifest import read_manifest
from lm_eval_latentref.cli import main
from lm_eval_latentref.config import RefinementConfig
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.networks import Network
from lm_eval_latentref.protocol import LATENT as PAUSE
from lm_eval_latentref.protocol import MARKERS as MARKER_TOKENS
from lm_eval_latentref.protocol import Example
from lm_eval_latentref.reasoner import load
from lm_eval_latentref.thoughts import Markers
from lm_eval_latentref.training import data as training_data
from lm_eval_latentref.training.curriculum import Curriculum, Problem, cot_row
from lm_eval_latentref.training.data import encode, load_data, read_examples, texts
from lm_eval_latentref.training.examples import BadRow, parse_examples, summary
from lm_eval_latentref.training.loop import train
from lm_eval_latentref.training.loss import loss_sum, num_labelled
from lm_eval_latentref.training.models import build
from lm_eval_latentref.training.plan import Progress, Stage, learning_rate
from lm_eval_latentref.training.recipe_files import parse_recipe
from lm_eval_latentref.training.snapshots import Epoch, choose, lower_bound
from lm_eval_latentref.training.word_tokenizer import make_word_tokenizer, words

TINY = {
    "llama": {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2},
    "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2},
}

MARKERS = Markers(start_id=290, end_id=291, pause_id=292)

PROBLEMS = [
    Problem(
        random_ids(4 + 2 * n, seed=n),
        tuple(random_ids(2 + (n + step) % 3, seed=10 * n + step) for step in range(3)),
        random_ids(2 + n % 2, seed=100 + n),
    )
    for n in range(4)
]


def trainable(family):
    # In eval mode: dropout would make any two computations differ.
    return tiny_model(family).double().requires_grad_()


def gradients(model):
    return {
        name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None
    }


def assert_equal_gradients(found, expected):
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        # Thoughts and some families' norms pass through float32, in both.
        assert (found[name] - gradient).norm() <= 1e-6 * gradient.norm(), name


def oracle_loss(row, model, markers):
    """One row, no cache, everything recomputed for each thought."""
    config = RefinementConfig(latent_steps=row.num_thoughts)
    ids = (markers.start_id, markers.end_id) if markers else None
    prefix = oracle.prefix_embeds(row.context, config, ids, model)
    text = oracle.embed(model, row.target[:-1])
    logits = model(inputs_embeds=torch.cat([prefix, text])[None], use_cache=False).logits[0]
    predicted = logits[len(prefix) - 1 :]
    return torch.nn.functional.cross_entropy(predicted, torch.tensor(row.target), reduction="sum")


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_loss_and_gradients_of_every_stage_equal_the_oracle(family, stage):
    curriculum = Curriculum(c_thought=2, max_latent_stage=2)
    rows = [curriculum.row(problem, stage) for problem in PROBLEMS]
    ours, theirs = trainable(family), trainable(family)
    loss = loss_sum(rows, network=Network(ours), markers=MARKERS)
    loss.backward()
    expected = torch.stack([oracle_loss(row, theirs, MARKERS) for row in rows]).sum()
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-7, atol=1e-7)
    assert_equal_gradients(gradients(ours), gradients(theirs))


@pytest.mark.parametrize("markers", [None, MARKERS])
def test_stage_0_equals_cot_training_by_the_models_own_loss(markers):
    rows = [Curriculum().row(problem, 0) for problem in PROBLEMS]
    ours, theirs = trainable("gpt2"), trainable("gpt2")
    (loss_sum(rows, network=Network(ours), markers=markers) / num_labelled(rows)).backward()
    around = [markers.start_id, markers.end_id] if markers else []
    expected = 0.0
    for problem in PROBLEMS:
        row = cot_row(problem)
        before = [*problem.question, *around]
        ids = torch.tensor([[*before, *row.target]])
        labels = torch.tensor([[*[-100] * len(before), *row.target]])
        expected = expected + theirs(input_ids=ids, labels=labels).loss * len(row.target)
    (expected / num_labelled(rows)).backward()
    assert_equal_gradients(gradients(ours), gradients(theirs))


def test_pause_tokens_are_one_pass_over_the_ids_of_the_pause_token():
    row = Curriculum(max_latent_stage=2).row(PROBLEMS[1], 2)
    ours, theirs = trainable("llama"), trainable("llama")
    network = Network(ours)
    loss = loss_sum([row], network=network, markers=MARKERS, latent_kind="pause")
    loss.backward()
    assert network.num_forwards == 1
    before = [*row.context, MARKERS.start_id, *[MARKERS.pause_id] * 2, MARKERS.end_id]
    ids = torch.tensor([[*before, *row.target]])
    labels = torch.tensor([[*[-100] * len(before), *row.target]])
    expected = theirs(input_ids=ids, labels=labels).loss * len(row.target)
    expected.backward()
    torch.testing.assert_close(loss, expected, check_dtype=False)
    assert_equal_gradients(gradients(ours), gradients(theirs))
    assert gradients(ours)["model.embed_tokens.weight"][MARKERS.pause_id].abs().sum() > 0


def test_masks_and_positions_hide_the_padding():
    model, seen = tiny_model("llama"), []
    model.model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True
    )
    rows = [Curriculum().row(problem, 1) for problem in PROBLEMS[:2]]
    loss_sum(rows, network=Network(model), markers=MARKERS)
    context, rest = seen
    # Contexts of 4 and 6 tokens and the start marker, padded on the left ...
    assert context["attention_mask"].int().tolist() == [[0, 0, 1, 1, 1, 1, 1], [1] * 7]
    assert context["position_ids"].tolist() == [[0, 0, 0, 1, 2, 3, 4], list(range(7))]
    # ... then thought, end marker and text: padding there comes after all that is labelled.
    num_text = max(len(row.target) for row in rows) - 1
    assert rest["inputs_embeds"].shape[1] == 2 + num_text
    assert rest["position_ids"][:, 0].tolist() == [5, 7]
    assert rest["attention_mask"][:, 7:].all()


def test_logits_are_made_at_labelled_positions_only():
    model, shapes = tiny_model("gpt2"), []
    model.lm_head.register_forward_pre_hook(
        lambda _, args: shapes.append(args[0].shape[:-1].numel())
    )
    rows = [Curriculum().row(problem, 2) for problem in PROBLEMS]
    loss_sum(rows, network=Network(model), markers=MARKERS)
    assert shapes == [num_labelled(rows)]


# What a run leaves behind.


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    recipe = small_recipe(
        tmp_path_factory.mktemp("run") / "out",
        phases=["no_cot", "cot", "pause", "coconut"],
        **{"chance": 0.0, "weak_epoch": 1, "strong_epoch": 3},
    )
    return recipe, train(recipe)


def test_the_output_folder_and_its_parts_load_by_name(trained):
    recipe, folder = trained
    coconut = load(str(folder))
    assert coconut.config.latent_steps == recipe.curriculum.latent_steps(recipe.final_stage)
    assert coconut.markers is not None
    searching = load(str(folder), search_step_size=1.0)
    assert searching.references is not None
    pause = load(str(folder / "pause"))
    assert pause.config.latent_kind == "pause"
    for name in ("no_cot", "strong", "weak"):
        plain = load(str(folder / name))
        assert not plain.thinks
    question = "a>b b>c c>d d>a ; 1 a"
    assert isinstance(coconut.ask(question, max_new_tokens=4).text, str)
    assert isinstance(searching.ask(question, max_new_tokens=4).text, str)
    assert pause.ask(question, max_new_tokens=4).thoughts.shape[0] == pause.config.latent_steps


def test_the_references_borrow_the_marker_rows_they_never_learnt(trained):
    loaded = load(str(trained[1]), search_step_size=1.0).loaded
    assert len(loaded.strong.borrowed_ids) == 3


def test_validation_accuracy_is_that_of_the_saved_checkpoint(trained):
    recipe, folder = trained
    validation = load_data(recipe).validation
    last = {line["phase"]: line["validation_accuracy"] for line in metrics(folder)}
    for name, phase in ((".", "coconut"), ("pause", "pause"), ("no_cot", "no_cot")):
        reasoner = load(str(folder / name))
        answers = [reasoner.ask(one.question, max_new_tokens=8).answer for one in validation]
        right = sum(a == one.answer for a, one in zip(answers, validation, strict=True))
        assert right / len(validation) == last[phase]


def test_metrics_name_every_epoch_and_its_cost(trained):
    recipe, folder = trained
    lines = metrics(folder)
    assert [line["phase"] for line in lines].count("cot") == recipe.cot_epochs
    assert [line["stage"] for line in lines if line["phase"] == "coconut"] == [1, 2, 3]
    for line in lines:
        assert line["loss"] > 0
        assert line["seconds"] > 0
        assert line["tokens_per_second"] > 0
        assert 0 <= line["validation_accuracy"] <= 1


def test_no_scratch_is_left_and_the_same_command_again_changes_nothing(trained):
    recipe, folder = trained
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    train(recipe)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")} == before


def test_the_loss_falls_and_micro_batches_change_nothing_but_rounding(tmp_path):
    changes = {"phases": ["cot"], "weak_epoch": 1}
    changes["config"] = {**SMALL["config"], "attention_dropout": 0.0}
    whole = train(small_recipe(tmp_path / "whole", **changes))
    parts = train(small_recipe(tmp_path / "parts", micro_batch_size=3, **changes))
    losses = [line["loss"] for line in metrics(whole)]
    assert losses == sorted(losses, reverse=True)
    assert losses == pytest.approx([line["loss"] for line in metrics(parts)], rel=1e-4)


def test_a_stage_ends_early_or_waits_by_its_validation_accuracy(tmp_path):
    rules = {"max_epochs_per_stage": 3, "cot_epochs": 2, "weak_epoch": 1, "strong_epoch": 1}
    soon = train(small_recipe(tmp_path / "soon", advance_accuracy=0.0, **rules))
    assert [line["stage"] for line in metrics(soon)] == [None, 1, 2, 3]
    late = train(small_recipe(tmp_path / "late", advance_accuracy=1.0, **rules))
    assert [line["stage"] for line in metrics(late)] == [None] * 2 + [1] * 3 + [2] * 3 + [3] * 3
    loss = train(small_recipe(tmp_path / "loss", advance_loss=100.0, **rules))
    assert [line["stage"] for line in metrics(loss)] == [None, 1, 2, 3]


@pytest.mark.parametrize("tied", [True, False])
def test_an_adapter_with_marker_rows_loads_as_it_was_trained(tmp_path, tied):
    model, base = tiny_model("llama"), tmp_path / "base"
    model.config.tie_word_embeddings = tied
    if tied:
        model.tie_weights()
    model.save_pretrained(base)
    tiny_tokenizer(markers=False).save_pretrained(base)
    recipe = small_recipe(
        tmp_path / "out",
        config=None,
        pretrained=str(base),
        lora={"r": 2, "target_modules": ["q_proj", "v_proj"]},
        num_train=32,
        weak_epoch=1,
        strong_epoch=2,
        cot_epochs=2,
        num_validation=8,
    )
    folder = train(recipe)
    before = load_file(base / "model.safetensors")
    reasoner = load(str(folder), search_step_size=1.0)
    saved = load_file(folder / "adapter_model.safetensors")
    assert any("trainable_tokens" in name for name in saved)
    assert not any(name.endswith("embed_tokens.weight") for name in saved)
    assert reasoner.markers is not None
    assert len(reasoner.loaded.strong.borrowed_ids) == 3
    for name, weight in load_file(base / "model.safetensors").items():
        assert torch.equal(weight, before[name])
    validation = load_data(recipe).validation
    answers = [reasoner_answer(folder, one) for one in validation]
    right = sum(a == one.answer for a, one in zip(answers, validation, strict=True))
    assert right / len(validation) == metrics(folder)[-1]["validation_accuracy"]


def test_an_adapter_trains_every_marker_row_also_where_the_tokenizer_has_the_markers(tmp_path):
    base = tmp_path / "base"
    tiny_model("llama").save_pretrained(base)
    tiny_tokenizer(markers=True).save_pretrained(base)
    changes = {"config": None, "pretrained": str(base), "phases": ["pause", "coconut"]}
    lora = {"r": 2, "target_modules": ["q_proj"]}
    folder = train(small_recipe(tmp_path / "out", **changes, lora=lora, num_train=16))
    ids = tiny_tokenizer(markers=True).convert_tokens_to_ids(list(MARKER_TOKENS))
    before = load_file(base / "model.safetensors")["model.embed_tokens.weight"][sorted(ids)]
    for name, unused in (("pause", set()), (".", {PAUSE})):
        saved = load_file(folder / name / "adapter_model.safetensors")
        (rows,) = (value for key, value in saved.items() if "trainable_tokens" in key)
        assert rows.shape == before.shape
        moved = (rows != before).any(dim=1).tolist()
        tokens = tiny_tokenizer().convert_ids_to_tokens(sorted(ids))
        assert {token for token, one in zip(tokens, moved, strict=True) if not one} <= unused


def reasoner_answer(folder, example):
    return load(str(folder)).ask(example.question, max_new_tokens=8).answer


def test_bf16_computes_in_bf16_and_keeps_float32_weights(tmp_path):
    folder = train(small_recipe(tmp_path / "out", precision="bf16", weak_epoch=1, cot_epochs=2))
    weights = load_file(folder / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    other = train(small_recipe(tmp_path / "fp32", weak_epoch=1, cot_epochs=2))
    found = [line["loss"] for line in metrics(folder)]
    expected = [line["loss"] for line in metrics(other)]
    assert found != expected
    assert found == pytest.approx(expected, rel=0.05)


def test_a_new_model_starts_with_the_spread_and_the_final_norm_of_its_recipe(tmp_path):
    values = {"embedding_std": 0.25, "final_norm": 0.5}
    recipe = small_recipe(tmp_path / "out", **values, phases=["no_cot"])
    for family in ("llama", "gpt2"):
        other = parse_recipe({**recipe.to_dict(), "config": {"model_type": family, **TINY[family]}})
        trainee = build(other, words=map(str, range(200)), latent=False)
        spread = trainee.model.get_input_embeddings().weight.std().item()
        assert spread == pytest.approx(0.25, rel=0.05)
        decoder = getattr(trainee.model, trainee.model.base_model_prefix)
        norm = decoder.norm if family == "llama" else decoder.ln_f
        assert (norm.weight == 0.5).all()


def test_the_result_names_the_split_it_was_trained_on(trained):
    for name in (".", "strong", "pause", "no_cot"):
        assert read_manifest(trained[1] / name / "latentref.json").trained_on == ["hops train"]


def test_generated_problems_are_written_as_training_reads_them(tmp_path):
    for name, options in (("hops", ["num_symbols=6", "max_hops=5"]), ("prosqa", [])):
        for suffix in ("json", "jsonl"):
            path = str(tmp_path / f"{name}.{suffix}")
            assert main(["data", name, *options, "--num", "7", "--seed", "3", "-o", path]) == 0
            assert len(read_examples(path)) == 7
    assert read_examples(str(tmp_path / "hops.json")) == read_examples(str(tmp_path / "hops.jsonl"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data", "hop", "--num", "1", "-o", "FILE"], "'hop': use"),
        (["data", "hops", "size=3", "--num", "1", "-o", "FILE"], "'size' is no option"),
        (["data", "hops", "--num", "1", "-o", "no/such/folder/file"], "cannot be written"),
        (["train", "no-such-recipe"], "no such recipe"),
    ],
)
def test_the_commands_name_a_mistake_in_one_line(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


# The schedule.


def test_the_curriculum_starts_from_the_best_cot_or_where_cot_started(tmp_path, monkeypatch):
    starts = []

    def noting(recipe, **how):
        starts.append(how["start"])
        return build(recipe, **how)

    monkeypatch.setattr("lm_eval_latentref.training.phase.build", noting)
    few = {"cot_epochs": 1, "num_train": 16, "max_latent_stage": 0, "phases": "cot,pause,coconut"}
    for name, start_from_cot in (("from_cot", True), ("anew", False)):
        folder = train(small_recipe(tmp_path / name, **few, start_from_cot=start_from_cot))
        start = folder / "strong" if start_from_cot else None
        assert starts == [None, start, start]
        starts.clear()


def test_the_learning_rate_rises_stays_and_falls():
    recipe = parse_recipe(
        {
            **{"output": "", "train": "hops", "pretrained": "gpt2", "epochs_per_stage": 4},
            **{"learning_rate": 1.0, "latent_learning_rate": 0.5, "warmup_steps": 3, "decay": 0.25},
        }
    )
    stage = Stage(1, num_epochs=4, max_epochs=4)
    rates = []
    for update in range(40):
        progress = Progress(epoch=update // 10, step=update % 10, num_updates=update)
        rates.append(learning_rate(recipe, "coconut", stage, progress, steps_per_epoch=10))
    assert rates[:4] == [0.125, 0.25, 0.375, 0.5]
    assert set(rates[3:30]) == {0.5}
    assert rates[30:] == sorted(rates[30:], reverse=True)
    assert 0.5 * 0.05 < rates[-1] < 0.5 * 0.2
    waiting = Progress(epoch=9, step=3, num_updates=93)
    late = learning_rate(recipe, "cot", stage, waiting, steps_per_epoch=10)
    assert late == pytest.approx(0.05)


def test_cot_does_not_end_before_the_epochs_that_are_named(tmp_path):
    folder = train(
        small_recipe(tmp_path / "out", advance_accuracy=0.0, phases=["cot"], weak_epoch=2)
    )
    assert len(metrics(folder)) == 2
    assert (folder / "weak" / "config.json").exists()


# What cannot be done is said before anything is trained.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": "no-such-file.json"}, "no-such-file.json"),
        ({"task": {"num_symbol": 3}}, "'num_symbol' is no option"),
        ({"task": {"num_symbols": 2}}, "num_symbols=2"),
        ({"config": {"model_type": "no-such-type"}}, "no-such-type"),
        ({"config": {**SMALL["config"], "max_position_embeddings": 8}}, "max_new_tokens=8"),
        ({"marker_init": "no-such-word", "phases": ["coconut"]}, "marker_init"),
    ],
)
def test_what_a_recipe_names_in_vain_is_said_in_one_line(tmp_path, changes, message):
    with pytest.raises(LatentRefError, match=message) as caught:
        train(small_recipe(tmp_path / "out", **changes))
    assert "\n" not in str(caught.value)
    assert not metrics(tmp_path / "out")


def test_the_longest_validation_problem_is_that_of_the_most_tokens(tmp_path):
    # The one with more characters is a single word.
    path = write_json(tmp_path / "data.json", ["x" * 200, "a b " * 20])
    train_file = write_json(tmp_path / "train.json", ["c"])
    changes = {"train": train_file, "validation": path, "task": {}, "check_overlap": False}
    changes["config"] = {**SMALL["config"], "max_position_embeddings": 40}
    with pytest.raises(LatentRefError, match="max_new_tokens=8"):
        train(small_recipe(tmp_path / "out", **changes))
    assert not metrics(tmp_path / "out")


def test_words_that_only_later_epochs_have_are_named(tmp_path):
    changes = {"task": {"num_symbols": 20, "min_hops": 2, "max_hops": 2}, "num_train": 4}
    changes["config"] = {**SMALL["config"], "max_position_embeddings": 128}
    recipe = small_recipe(tmp_path / "out", **changes, phases=["no_cot"], num_validation=1)
    data = load_data(recipe)
    known, later = (set(words(texts(data.epoch(number)))) for number in (0, 1))
    unknown = sorted(later - known - set(words(texts(data.validation))))
    train(recipe)  # the first epoch alone has no such words
    longer = small_recipe(
        tmp_path / "longer", **changes, phases=["no_cot"], num_validation=1, no_cot_epochs=2
    )
    with pytest.raises(LatentRefError, match=f"epoch 2 has {len(unknown)} words") as caught:
        train(longer)
    assert ", ".join(map(repr, unknown[:5])) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unwritable_output_is_noticed_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LatentRefError, match="cannot be written"):
        train(small_recipe(tmp_path / "file" / "out"))


def test_a_full_disk_is_noticed_before_training(tmp_path, monkeypatch):
    class Usage:
        free = 1000

    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage)
    with pytest.raises(LatentRefError, match="MB free"):
        train(small_recipe(tmp_path / "out"))
    assert not metrics(tmp_path / "out")


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


def test_a_loss_that_is_not_finite_ends_the_run_in_a_message(tmp_path):
    recipe = small_recipe(tmp_path / "out", phases=["no_cot"], learning_rate=1e30, max_grad_norm=0)
    with pytest.raises(LatentRefError, match="became nan at learning_rate="):
        train(recipe)


# The data.


def test_bad_rows_are_counted_and_named_with_file_line_and_rule(tmp_path, caplog):
    good = {"question": "q", "steps": ["s"], "answer": "a"}
    rows = [good, {**good, "answer": ""}, {**good, "steps": "s"}, 7, {**good, "question": 3}, good]
    path = tmp_path / "data.json"
    path.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]")
    assert read_examples(str(path)) == [Example("q", ("s",), "a")] * 2
    assert f"{path}: 4 bad rows left out of 6" in caplog.text
    for part in (
        "answer is not a text: line 3;",
        "steps is not a list of texts: line 4;",
        "it is no JSON object: line 5;",
        "question is not a text: line 6",
    ):
        assert part in caplog.text


def test_every_bad_row_is_named_in_the_output_folder_and_the_log_stays_readable(tmp_path, caplog):
    good = {"question": "q", "steps": ["s"], "answer": "a"}
    places = [*range(2, 40, 2), *range(50, 60)]
    rows = [{**good, "answer": 7} if line in places else good for line in range(1, 70)]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "out").mkdir()
    assert len(read_examples(str(path), report=str(tmp_path / "out"))) == 69 - len(places)
    (record,) = caplog.records
    assert "answer is not a text: lines 2, 4, 6, 8, 10, 12, 14, 16, 18, 20 and 19 more" in (
        record.getMessage()
    )
    assert len(record.getMessage()) < 500
    (listed,) = (tmp_path / "out").iterdir()
    assert str(listed) in record.getMessage()
    expected = [f"{path} line {line}: answer is not a text" for line in places]
    assert listed.read_text().splitlines() == expected


@given(st.lists(st.tuples(st.integers(1, 99), st.sampled_from("ab")), unique_by=lambda row: row[0]))
def test_a_summary_of_few_bad_rows_names_each_of_them(rows):
    found = {}
    for part in filter(None, summary([BadRow(*row) for row in sorted(rows)[:9]]).split("; ")):
        rule, places = part.split(": line")
        for ends in places.removeprefix("s").strip().split(", "):
            first, _, last = ends.partition("-")
            found.update(dict.fromkeys(range(int(first), int(last or first) + 1), rule))
    assert found == dict(sorted(rows)[:9])


def test_a_training_run_leaves_the_list_of_bad_rows_beside_its_result(tmp_path):
    path = write_json(tmp_path / "train.json", ["one", "", "two"])
    files = {"train": path, "validation": path, "task": {}, "check_overlap": False}
    validation = write_json(tmp_path / "validation.json", ["three"])
    recipe = small_recipe(
        tmp_path / "out", **{**files, "validation": validation}, phases=["no_cot"]
    )
    folder = train(recipe)
    (listed,) = folder.glob("bad-rows-*.txt")
    assert listed.read_text() == f"{path} line 1: question is not a text\n"


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_a_byte_order_mark_and_unicode_line_separators_are_read_as_json_has_them(tmp_path, suffix):
    # All that str.splitlines would part a line at, but JSON allows within a string.
    question = "one\u2028two\u2029three\x85four\x7f"
    row = json.dumps({"question": question, "steps": ["s"], "answer": "a"}, ensure_ascii=False)
    bad = json.dumps({"question": question, "steps": 1, "answer": "a"}, ensure_ascii=False)
    text = f"[\n{row},\n{bad},\n{row}\n]" if suffix == "json" else f"\n{row}\n{bad}\r\n{row}\n"
    path = tmp_path / f"data.{suffix}"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_examples(str(path)) == [Example(question, ("s",), "a")] * 2
    _, found = parse_examples(str(path), text)
    assert [row.line for row in found] == [3]


def test_json_lines_are_read_too_and_a_broken_line_is_a_bad_row(tmp_path, caplog):
    good = json.dumps({"question": "q", "steps": [], "answer": "a"})
    path = tmp_path / "data.jsonl"
    path.write_text(f"{good}\n\n{{broken\n{good}\n")
    assert len(read_examples(str(path))) == 2
    assert "line 3" in caplog.text


def test_a_truncated_list_is_an_error_with_its_line(tmp_path):
    path = tmp_path / "data.json"
    path.write_text('[\n{"question": "q", "steps": [], "answer": "a"},\n{"question": ')
    with pytest.raises(LatentRefError, match="line 3"):
        read_examples(str(path))


def test_questions_of_held_out_splits_are_removed_counted_and_logged(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(training_data.data, "held_out_questions", lambda: frozenset({"onetwo"}))
    questions = ["One, two?", "three", "ONE two", "VALIDATION one"]
    train_file = write_json(tmp_path / "train.json", questions)
    recipe = small_recipe(
        tmp_path / "out",
        train=train_file,
        validation=write_json(tmp_path / "validation.json", ["validation one."]),
        task={},
    )
    caplog.set_level(logging.INFO)
    data = load_data(recipe)
    assert [example.question for example in data.epoch(0)] == ["three"]
    assert "1 training examples; 3 removed" in caplog.text


def test_generated_problems_are_fresh_each_epoch_and_the_same_for_the_same_seed(tmp_path):
    data = load_data(small_recipe(tmp_path))
    assert data.epoch(0) == data.epoch(0) != data.epoch(1)
    other = load_data(small_recipe(tmp_path, seed=1))
    assert data.epoch(0) != other.epoch(0)
    assert data.validation == other.validation


def test_generated_problems_that_stand_in_a_validation_file_are_removed_and_counted(
    tmp_path, caplog
):
    plain = load_data(small_recipe(tmp_path / "plain"))
    leaked = plain.epoch(0)[3:5]
    questions = [f" {example.question.upper()}" for example in leaked]
    recipe = small_recipe(
        tmp_path / "out", validation=write_json(tmp_path / "validation.json", questions)
    )
    caplog.set_level(logging.INFO)
    data = load_data(recipe)
    for number in (0, 1):
        held_out = {example.question for example in leaked}
        kept = [example for example in plain.epoch(number) if example.question not in held_out]
        assert data.epoch(number) == data.epoch(number) == kept
    removed = len(plain.epoch(0)) - len(data.epoch(0))
    assert removed >= 2
    assert caplog.text.count(f"hops: {removed} of the 64 problems of epoch 1 removed") == 1
    assert len(data.epoch(1)) == 64 or "problems of epoch 2 removed" in caplog.text


def test_of_mixed_sources_those_that_come_again_each_epoch_are_told_from_generated_ones(tmp_path):
    path = write_json(tmp_path / "train.json", ["one", "two"])
    mixed = small_recipe(tmp_path / "out", train=["hops", path], check_overlap=False)
    data = load_data(mixed)
    assert [example.question for example in data.fixed] == ["one", "two"]
    assert [*data.fixed] == data.epoch(0)[-2:] == data.epoch(1)[-2:]
    assert data.epoch(0)[:-2] != data.epoch(1)[:-2]
    # What comes in a later epoch only is fixed as well: hashed, and known to a new tokenizer.
    few = dataclasses.replace(mixed, num_train=1)
    in_turn = load_data(few)
    assert [in_turn.epoch(number)[-1].question for number in (0, 1)] == ["two", "one"]
    assert in_turn.fixed == data.fixed
    assert "two\n" in set(in_turn.texts)


def test_no_problem_that_is_left_is_said_in_one_line(tmp_path):
    questions = [one.question for one in load_data(small_recipe(tmp_path)).epoch(0)]
    for left, name in ((questions, "train=hops"), ([""], "validation")):
        path = write_json(tmp_path / "validation.json", left)
        with pytest.raises(LatentRefError, match=f"{name}: no usable example is left"):
            load_data(small_recipe(tmp_path, validation=path, num_validation=64)).epoch(0)


def test_a_file_of_problems_with_the_default_seed_is_no_part_of_any_training_stream(tmp_path):
    path = str(tmp_path / "hops.json")
    assert main(["data", "hops", "--num", "300", "-o", path]) == 0
    written = {example.question for example in read_examples(path)}
    for seed in (0, 1):
        recipe = small_recipe(tmp_path, seed=seed, task={}, num_train=300)
        data = load_data(recipe)
        for number in range(3):
            assert not written & {example.question for example in data.epoch(number)}
        same = str(tmp_path / f"{seed}.json")
        number = seed * training_data.EPOCH_SEEDS + 2
        assert main(["data", "hops", "--num", "300", "--seed", str(number), "-o", same]) == 0
        assert read_examples(same) == data.epoch(2)


def test_problems_are_encoded_in_the_text_of_the_protocol():
    example = Example("Is Tom a lempus?", ("Tom is a lempus.", "First, add the two."), "yes")
    tokenizer = tiny_tokenizer()
    (problem,) = encode([example], tokenizer)
    text = tokenizer.decode([*problem.question, *sum(problem.steps, ()), *problem.answer])
    assert text == ("Is Tom a lempus?\nTom is a lempus.\nFirst, add the two.\n### yes<|endoftext|>")


@given(st.lists(st.sampled_from(["a", "b>c", "###", "x.", ",", "\n"]), min_size=1).map(tuple))
def test_text_survives_the_word_tokenizer(parts):
    text = " ".join(parts).replace(" \n", "\n").replace("\n ", "\n")
    tokenizer = make_word_tokenizer(words([text]))
    assert tokenizer.decode(tokenizer.encode(text)) == text


# The snapshots.


def test_strong_is_the_best_epoch_and_weak_the_worst_that_beats_chance():
    epochs = [Epoch(1, 30, 500), Epoch(2, 90, 500), Epoch(3, 300, 500), Epoch(4, 450, 500)]
    assert choose(epochs, chance=0.05) == (2, 4)
    assert choose(epochs, chance=0.5) == (3, 4)
    assert choose(epochs, chance=0.9) == (None, 4)
    assert choose(epochs, chance=0.05, weak_epoch=1, strong_epoch=3) == (1, 3)
    assert choose(epochs[:2], chance=0.05, strong_epoch=3) == (2, None)


@given(
    correct=st.lists(st.integers(0, 100), min_size=2, max_size=8),
    chance=st.floats(0, 1),
)
def test_an_epoch_that_is_not_chosen_is_never_chosen_later(correct, chance):
    epochs = [Epoch(number, right, 100) for number, right in enumerate(correct, start=1)]
    kept: set[int | None] = set()
    for num_epochs in range(1, len(epochs) + 1):
        chosen = set(choose(epochs[:num_epochs], chance=chance))
        assert chosen <= kept | {num_epochs, None}
        kept = chosen


def test_the_lower_bound_is_wilsons():
    # Wilson (1927); values from the usual tables.
    assert lower_bound(50, 100) == pytest.approx(0.4038, abs=1e-4)
    assert lower_bound(0, 100) == pytest.approx(0.0, abs=1e-12)
    assert lower_bound(random.Random(0).randint(1, 99), 100) > 0
