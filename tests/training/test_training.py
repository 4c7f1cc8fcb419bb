"""The result of a training run, and its schedule."""

from __future__ import annotations

import pytest
import torch
from matrix import crossed
from safetensors.torch import load_file
from tiny import tiny_model, tiny_tokenizer
from training_helpers import SMALL, metrics, small_recipe

from lm_eval_latentref.checkpoints.loading import load
from lm_eval_latentref.checkpoints.manifest import read_manifest
from lm_eval_latentref.cli import main
from lm_eval_latentref.latent.protocol import LATENT as PAUSE
from lm_eval_latentref.latent.protocol import MARKERS as MARKER_TOKENS
from lm_eval_latentref.training.data import load_data, read_examples
from lm_eval_latentref.training.models import build
from lm_eval_latentref.training.recipe import parse_recipe
from lm_eval_latentref.training.schedule import Progress, Stage, learning_rate
from lm_eval_latentref.training.trainer import train

TINY = {
    "llama": {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2},
    "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    recipe = small_recipe(
        tmp_path_factory.mktemp("run") / "out",
        phases=["no_cot", "cot", "pause", "coconut"],
        **{"weak_epoch": 1, "strong_epoch": 3},
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
    question = "a>b b>c d>e e>f ; c f ; a"
    assert isinstance(coconut.ask(question, max_new_tokens=4).text, str)
    assert isinstance(searching.ask(question, max_new_tokens=4).text, str)
    assert pause.ask(question, max_new_tokens=4).thoughts.shape[0] == pause.config.latent_steps


def test_references_use_the_backbones_embeddings_of_markers(trained):
    loaded = load(str(trained[1]), search_step_size=1.0).loaded
    assert len(loaded.strong.borrowed_ids) == 3


def test_validation_accuracy_is_that_of_the_saved_checkpoint(trained):
    recipe, folder = trained
    validation = load_data(recipe).validation
    last = {line["phase"]: line["validation_accuracy"] for line in metrics(folder)}
    for name, phase in ((".", "coconut"), ("pause", "pause"), ("no_cot", "no_cot")):
        reasoner = load(str(folder / name))
        answers = [reasoner.ask(each.question, max_new_tokens=8).answer for each in validation]
        right = sum(a == each.answer for a, each in zip(answers, validation, strict=True))
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


def test_no_temporary_files_are_left_and_repeating_the_command_changes_nothing(trained):
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


@pytest.mark.parametrize("tied", crossed([True, False], every=2))
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
    answers = [reasoner_answer(folder, each) for each in validation]
    right = sum(a == each.answer for a, each in zip(answers, validation, strict=True))
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
        assert {token for token, each in zip(tokens, moved, strict=True) if not each} <= unused


def reasoner_answer(folder, example):
    return load(str(folder)).ask(example.question, max_new_tokens=8).answer


def test_bf16_computes_in_bf16_and_keeps_float32_weights(tmp_path):
    folder = train(small_recipe(tmp_path / "out", precision="bf16", weak_epoch=1, cot_epochs=2))
    weights = load_file(folder / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    other = train(small_recipe(tmp_path / "fp32", weak_epoch=1, cot_epochs=2))
    actual = [line["loss"] for line in metrics(folder)]
    expected = [line["loss"] for line in metrics(other)]
    assert actual != expected
    assert actual == pytest.approx(expected, rel=0.05)


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


def test_spelled_embeddings_are_alike_if_words_have_a_character_in_the_same_place(tmp_path):
    values = {"embedding_std": 0.25, "spelled_embeddings": True}
    recipe = small_recipe(tmp_path / "out", **values, phases=["no_cot"])
    words = [*"abcdefgh", *(f"{up}>{down}" for up in "abcdefgh" for down in "abcdefgh")]
    trainee = build(recipe, words=words, latent=False)
    ids = trainee.tokenizer.get_vocab()
    weight_VD = trainee.model.get_input_embeddings().weight.detach()

    def likeness(first: str, second: str) -> float:
        return torch.cosine_similarity(weight_VD[ids[first]], weight_VD[ids[second]], dim=0).item()

    shared = [likeness(f"a>{x}", f"a>{y}") for x, y in ("bc", "de", "fg")]
    shared += [likeness(f"{x}>a", f"{y}>a") for x, y in ("bc", "de", "fg")]
    other = [likeness(f"{w}>{x}", f"{y}>{z}") for w, x, y, z in ("abcd", "efgh", "abba", "cddc")]
    assert min(shared) > max(other) + 0.1
    assert weight_VD.std().item() == pytest.approx(0.25, rel=0.05)
    assert len({tuple(row.tolist()) for row in weight_VD}) == len(weight_VD)
    again = build(recipe, words=words, latent=False).model.get_input_embeddings().weight
    assert torch.equal(again, weight_VD)


def test_the_result_names_the_split_it_was_trained_on(trained):
    for name in (".", "strong", "pause", "no_cot"):
        assert read_manifest(trained[1] / name / "latentref.json").trained_on == ["graph train"]


def test_generated_problems_are_written_as_training_reads_them(tmp_path):
    for name, options in (("graph", ["nodes=10", "symbols=10"]), ("prosqa_generated", [])):
        for suffix in ("json", "jsonl"):
            path = str(tmp_path / "new" / "folder" / f"{name}.{suffix}")
            assert main(["data", name, *options, "--num", "7", "--seed", "3", "-o", path]) == 0
            assert len(read_examples(path)) == 7
    folder = tmp_path / "new" / "folder"
    assert read_examples(str(folder / "graph.json")) == read_examples(str(folder / "graph.jsonl"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data", "hop", "--num", "1", "-o", "FILE.json"], "'hop': use"),
        (["data", "graph", "size=3", "--num", "1", "-o", "FILE.json"], "'size' is not an option"),
        (["data", "graph", "--num", "1", "-o", f"{__file__}/file.json"], "cannot be written"),
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

    monkeypatch.setattr("lm_eval_latentref.training.trainer.build", noting)
    few = {"cot_epochs": 1, "num_train": 16, "max_latent_stage": 0, "phases": "cot,pause,coconut"}
    for name, start_from_cot in (("from_cot", True), ("anew", False)):
        folder = train(small_recipe(tmp_path / name, **few, start_from_cot=start_from_cot))
        start = folder / "strong" if start_from_cot else None
        assert starts == [None, start, start]
        starts.clear()


def test_the_learning_rate_rises_stays_and_falls():
    recipe = parse_recipe(
        {
            **{"output": "out", "train": "graph", "pretrained": "gpt2", "epochs_per_stage": 4},
            **{"learning_rate": 1.0, "latent_learning_rate": 0.5, "warmup_steps": 3, "decay": 0.25},
        }
    )
    stage = Stage(1, num_epochs=4)
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
