"""Every family's layout is loaded as the right model and kind of thoughts, or refused."""

from __future__ import annotations

import logging

import family_files as files
import naive_kinds as naive
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_tokenizer
from tiny_checkpoints import MARKER_ROWS, PLAIN_ROWS, save_folder

from lm_eval_latentref.checkpoints.convert import convert
from lm_eval_latentref.checkpoints.loading import load
from lm_eval_latentref.checkpoints.manifest import Manifest, read_manifest, write_manifest
from lm_eval_latentref.errors import LatentRefError

CONTEXTS = [(5, 9, 31, 7), (12, 3), (40, 41, 42, 43, 44, 45)]
CONTINUATIONS = [[(8, 21, 6), (17,)]] * len(CONTEXTS)
SIZE = 16
V = PLAIN_ROWS


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    return files.save_bases(tmp_path_factory.mktemp("bases"))


def scores_of(reasoner):
    return [
        [score.log_likelihood for score in row]
        for row in reasoner.score(CONTEXTS, CONTINUATIONS, max_rows=4)
    ]


def naive_scores(model, vector, *, cap, opening, closing, num_text_ids=None):
    scores = []
    with torch.no_grad():
        for context, continuations in zip(CONTEXTS, CONTINUATIONS, strict=True):
            columns, _ = naive.think(
                model, context, vector, cap=cap, opening=opening, closing=closing
            )
            row = []
            for continuation in continuations:
                total = 0.0
                for position, token in enumerate(continuation):
                    text = naive.embed(model, continuation[:position])
                    _, logits = naive.read(model, [*columns, *text])
                    total += float(torch.log_softmax(logits[:num_text_ids], 0)[token])
                row.append(total)
            scores.append(row)
    return scores


def assert_equal(actual, expected):
    for row, expected_row in zip(actual, expected, strict=True):
        assert row == pytest.approx(expected_row, abs=1e-4)


def save_codi(layout, family, model, layers, folder):
    """Saves a CODI checkpoint in a given layout; returns the argument weights= and the model."""
    prefix = "coconut." if layout == "shards" else "codi."
    state, merged = files.codi_state(model, layers, prefix=prefix)
    if layout == "shards":
        return files.save_shards({**state, **files.training_only(model)}, folder), merged
    folder.mkdir()
    if layout == "bin":
        torch.save(state, folder / "pytorch_model.bin")
        return folder, merged
    name = "model.safetensors" if layout == "one file" else "model-00001-of-00001.safetensors"
    if model.config.tie_word_embeddings:
        state.pop("codi.base_model.model.lm_head.weight")
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, folder / name)
    return (folder if layout == "one shard" else folder / name), merged


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("layout", ["one file", "one shard", "shards", "bin"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_codi_is_read_from_its_files_alone(bases, tmp_path, caplog, family, layout, norm):
    models, paths = bases
    layers = files.projector(SIZE, norm=norm)
    weights, merged = save_codi(layout, family, models[family], layers, tmp_path / "codi")
    with caplog.at_level(logging.INFO):
        reasoner = load(paths[family], weights=str(weights), dtype="float32")
    first = caplog.records[0].getMessage()
    assert "latent_kind=projected" in first
    assert "prj.*" in first
    assert ("decoder.*" in caplog.text) == (layout == "shards")
    assert reasoner.config.latent_steps == 6
    expected = naive_scores(
        merged,
        naive.projected(layers),
        cap=6,
        opening=(V + 1,),
        closing=(V + 2,),
        num_text_ids=V + 2,
    )
    assert_equal(scores_of(reasoner), expected)


def test_text_after_codis_thoughts_has_no_marker_in_it(bases, tmp_path):
    models, paths = bases
    layers = files.projector(SIZE)
    state, _ = files.codi_state(models["llama"], layers)
    # The end marker would be by far the likeliest token.
    state["codi.base_model.model.lm_head.weight"][V + 2] *= 1000
    torch.save(state, tmp_path / "codi.pt")
    reasoner = load(paths["llama"], weights=str(tmp_path / "codi.pt"))
    ((_, thoughts),) = reasoner.think_in_groups(CONTEXTS)
    with torch.no_grad():
        assert int(reasoner._write(CONTEXTS, thoughts, [0, 1, 2], 4).max()) < V + 2


def test_an_end_token_that_is_never_written_ends_no_thoughts(bases, tmp_path):
    models, paths = bases
    state, _ = files.codi_state(models["llama"], files.projector(SIZE))
    torch.save(state, tmp_path / "codi.pt")
    with pytest.raises(LatentRefError, match=f"never writes the id {V + 2}"):
        load(paths["llama"], weights=str(tmp_path / "codi.pt"), latent_stop="end_token")


def test_asking_uses_the_prompt_and_the_answer_of_the_family(bases, tmp_path, monkeypatch):
    models, paths = bases
    state, _ = files.codi_state(models["gpt2"], files.projector(SIZE))
    torch.save(state, tmp_path / "codi.pt")
    reasoner = load(paths["gpt2"], weights=str(tmp_path / "codi.pt"))
    asked = []
    think = reasoner.think_in_groups
    monkeypatch.setattr(reasoner, "think_in_groups", lambda ids: asked.extend(ids) or think(ids))
    monkeypatch.setattr(reasoner.tokenizer, "batch_decode", lambda *_, **__: ["The answer is: 18."])
    assert reasoner.ask(" Is  Tom 18?\n", max_new_tokens=2).answer == "18"
    assert reasoner.tokenizer.decode(asked[0]) == "Is Tom 18?"


def test_the_adapters_alpha_is_an_argument(bases, tmp_path):
    models, paths = bases
    state, merged = files.codi_state(models["gpt2"], files.projector(SIZE))
    torch.save(state, tmp_path / "codi.pt")
    loaded = load(paths["gpt2"], weights=str(tmp_path / "codi.pt"), lora_alpha=64, dtype="float32")
    weight = loaded.backbone.causal_lm.transformer.h[0].attn.c_attn.weight
    base = models["gpt2"].transformer.h[0].attn.c_attn.weight
    expected = base + 2 * (merged.transformer.h[0].attn.c_attn.weight - base)
    torch.testing.assert_close(weight, expected)
    recording = save_folder(models["gpt2"], tmp_path / "recording")
    write_manifest(recording, Manifest(lora_alpha=64))
    recorded = load(str(recording), weights=str(tmp_path / "codi.pt"), dtype="float32")
    assert torch.equal(recorded.backbone.causal_lm.transformer.h[0].attn.c_attn.weight, weight)
    with pytest.raises(LatentRefError, match="lora_alpha=0: it must be"):
        load(paths["gpt2"], weights=str(tmp_path / "codi.pt"), lora_alpha=0)
    with pytest.raises(LatentRefError, match="lora_alpha=16 is for the adapters"):
        load(paths["gpt2"], lora_alpha=16)


def save_codi_port(bases, folder):
    layers = files.projector(SIZE)
    merged = files.resized(bases[0]["gpt2"], 3)
    extra = files.keys_of(layers, files.CODI_PORT)
    files.save_port(merged, extra, folder, projector=True, projector_hidden_size=12)
    tiny_tokenizer(markers=True).save_pretrained(folder)
    return merged, layers


def test_a_port_of_codi_is_a_folder_whose_tokenizer_has_the_markers(bases, tmp_path, caplog):
    merged, layers = save_codi_port(bases, tmp_path / "port")
    with caplog.at_level(logging.INFO):
        reasoner = load(str(tmp_path / "port"))
    assert "unknown to its architecture" not in caplog.text
    expected = naive_scores(merged, naive.projected(layers), cap=6, opening=(V,), closing=(V + 1,))
    assert_equal(scores_of(reasoner), expected)


COLAR = {"thought_scale": 0.5, "thought_temperature": 0, "latent_stop": "steps", "latent_steps": 3}


@pytest.mark.parametrize("layout", ["lightning", "port"])
def test_colar_is_an_adapter_and_a_head_on_its_base(bases, tmp_path, caplog, layout):
    models, paths = bases
    layers = files.policy(SIZE)
    if layout == "lightning":
        merged = files.colar_checkpoint(models["llama"], layers, tmp_path / "colar.ckpt")
        names = {"pretrained": paths["llama"], "weights": str(tmp_path / "colar.ckpt")}
    else:
        merged, folder = models["llama"], tmp_path / "port"
        files.save_port(merged, files.keys_of(layers, files.COLAR_PORT), folder)
        tiny_tokenizer(markers=False).save_pretrained(folder)
        names = {"pretrained": str(folder)}
    with caplog.at_level(logging.INFO):
        reasoner = load(**names, **COLAR)
    assert "latent_kind=gaussian" in caplog.records[0].getMessage()
    mark = tuple(tiny_tokenizer(markers=False).encode("###", add_special_tokens=False))
    expected = naive_scores(
        merged, naive.gaussian(layers, scale=0.5), cap=3, opening=mark, closing=mark
    )
    assert_equal(scores_of(reasoner), expected)


def test_colars_scale_comes_from_the_name_of_the_base(bases, tmp_path):
    models, paths = bases
    files.colar_checkpoint(models["llama"], files.policy(SIZE), tmp_path / "colar.ckpt")
    weights = str(tmp_path / "colar.ckpt")
    named = save_folder(models["llama"], tmp_path / "Llama-3.2-1B")
    assert load(named, weights=weights).config.thought_scale == 0.018
    assert load(named, weights=weights).config.latent_steps == 64
    with pytest.raises(LatentRefError, match=r"0\.018"):
        load(paths["llama"], weights=weights)
    with pytest.raises(LatentRefError, match="latent_steps=0"):
        load(named, weights=weights, latent_steps=0)


@pytest.mark.parametrize("layout", ["SIM-CoT", "bin folder"])
def test_coconut_files_with_more_in_them_are_read(bases, tmp_path, caplog, layout):
    models, paths = bases
    grown = files.resized(models["gpt2"], 3)
    state = files.coconut_keys(grown)
    if layout == "SIM-CoT":
        other = {f"expainable_llm.{k}": v for k, v in models["gpt2"].state_dict().items()}
        path = tmp_path / "checkpoint_28"
        torch.save({**state, **other}, path)
        options, steps = {}, 10
    else:
        path = tmp_path / "checkpoint4"
        path.mkdir()
        torch.save(state, path / "pytorch_model.bin")
        options, steps = {"latent_steps": 4}, 4
    with caplog.at_level(logging.INFO):
        reasoner = load(paths["gpt2"], weights=str(path), **options)
    assert ("expainable_llm.*" in caplog.text) == (layout == "SIM-CoT")
    assert reasoner.config.latent_steps == steps
    expected = naive_scores(
        grown, naive.continuous(grown), cap=steps, opening=(V,), closing=(V + 1,)
    )
    assert_equal(scores_of(reasoner), expected)


def save_pause(bases, path):
    grown = files.resized(bases[0]["gpt2"], 3)
    row = torch.linspace(-1, 1, SIZE)
    torch.save({**files.coconut_keys(grown), "pause_embedding": row}, path)
    return grown, row


def test_a_learnt_pause_row_is_fed_at_every_thought(bases, tmp_path):
    grown, row = save_pause(bases, tmp_path / "checkpoint_best")
    weights = str(tmp_path / "checkpoint_best")
    reasoner = load(bases[1]["gpt2"], weights=weights, latent_steps=4)
    assert reasoner.config.latent_kind == "pause"
    expected = naive_scores(
        grown, lambda h, logits, step: row, cap=4, opening=(V,), closing=(V + 1,)
    )
    assert_equal(scores_of(reasoner), expected)


@pytest.mark.parametrize("both", [True, False])
def test_only_the_pause_row_itself_is_taken_for_it(bases, tmp_path, both):
    grown = files.resized(bases[0]["gpt2"], 3)
    row = {"pause_embedding": torch.ones(SIZE)} if both else {}
    other = {"pause_embedding.weight": torch.ones(SIZE)}
    torch.save({**files.coconut_keys(grown), **row, **other}, tmp_path / "pause.pt")
    with pytest.raises(LatentRefError, match=r"unknown key 'pause_embedding\.weight'"):
        load(bases[1]["gpt2"], weights=str(tmp_path / "pause.pt"), latent_steps=2)


# `latentref convert` makes one plain folder of each.


def sources(bases, tmp_path):
    models, paths = bases
    state, _ = files.codi_state(models["gpt2"], files.projector(SIZE))
    torch.save(state, tmp_path / "codi.pt")
    files.colar_checkpoint(models["llama"], files.policy(SIZE), tmp_path / "colar.ckpt")
    save_codi_port(bases, tmp_path / "port")
    save_pause(bases, tmp_path / "pause.pt")
    return {
        "codi": {"pretrained": paths["gpt2"], "weights": str(tmp_path / "codi.pt")},
        "colar": {"pretrained": paths["llama"], "weights": str(tmp_path / "colar.ckpt"), **COLAR},
        "port": {"pretrained": str(tmp_path / "port")},
        "pause": {
            "pretrained": paths["gpt2"],
            "weights": str(tmp_path / "pause.pt"),
            "latent_steps": 4,
        },
    }


@pytest.mark.parametrize("name", ["codi", "colar", "port", "pause"])
def test_a_converted_family_loads_in_one_step_and_thinks_the_same(bases, tmp_path, name):
    given = sources(bases, tmp_path)[name]
    expected = scores_of(load(**given, dtype="float32"))
    folder = convert(out=tmp_path / "out", **given)
    assert_equal(scores_of(load(str(folder))), expected)
    manifest = read_manifest(folder / "latentref.json")
    kinds = {"codi": "projected", "port": "projected", "colar": "gaussian", "pause": "pause"}
    assert manifest.latent_kind == kinds[name]
    assert manifest.protocol == {"codi": "codi", "port": "codi", "colar": "colar"}.get(name)
    # And once more, from the folder.
    again = convert(out=tmp_path / "again", pretrained=str(folder))
    assert_equal(scores_of(load(str(again))), expected)


def test_an_explicit_kind_wins_over_the_keys(bases, tmp_path):
    models, paths = bases
    state, _ = files.codi_state(models["gpt2"], files.projector(SIZE))
    torch.save(state, tmp_path / "codi.pt")
    reasoner = load(paths["gpt2"], weights=str(tmp_path / "codi.pt"), latent_kind="realigned")
    assert reasoner.kind.name == "realigned"


def test_options_of_the_recorded_kind_are_left_out_where_another_is_given(bases, tmp_path, caplog):
    models, _ = bases
    files.colar_checkpoint(models["llama"], files.policy(SIZE), tmp_path / "colar.ckpt")
    named = save_folder(models["llama"], tmp_path / "Llama-3.2-1B")
    names = {"pretrained": named, "weights": str(tmp_path / "colar.ckpt")}
    assert load(**names, latent_kind="realigned").config.thought_scale is None
    folder = convert(out=tmp_path / "out", **names, thought_temperature=0.5)
    with caplog.at_level(logging.INFO):
        assert load(str(folder), latent_kind="Mixture").config.latent_kind == "mixture"
    assert "thought_scale=0.018 from latentref.json of" in caplog.text
    assert "is of another latent_kind and not used" in caplog.text
    other = convert(out=tmp_path / "other", pretrained=str(folder), latent_kind="realigned")
    assert load(str(other)).config.latent_kind == "realigned"


def test_the_rows_of_codi_are_not_taken_for_coconuts_markers(bases, tmp_path):
    """Both add three rows, but with different meanings."""
    assert MARKER_ROWS == V + 3
    models, paths = bases
    state, _ = files.codi_state(models["gpt2"], files.projector(SIZE))
    torch.save(state, tmp_path / "codi.pt")
    reasoner = load(paths["gpt2"], weights=str(tmp_path / "codi.pt"))
    assert len(reasoner.tokenizer) == PLAIN_ROWS
    assert (reasoner.markers.opening, reasoner.markers.closing) == ((V + 1,), (V + 2,))


def test_the_map_of_a_converted_folder_is_its_own_file(bases, tmp_path):
    folder = convert(out=tmp_path / "out", **sources(bases, tmp_path)["codi"])
    names = set(load_file(folder / "thought_map.safetensors"))
    assert names == {
        f"{layer}.{part}"
        for layer in ("linear_1", "linear_2", "norm")
        for part in ("weight", "bias")
    }
