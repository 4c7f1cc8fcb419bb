"""A folder with a configuration and a raw state dict is a checkpoint by itself."""

from __future__ import annotations

import family_files as files
import pytest
import torch
from tiny import tiny_tokenizer
from tiny_checkpoints import fresh_model, save_folder

from lm_eval_latentref.checkpoints.convert import convert
from lm_eval_latentref.checkpoints.loading import load
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.harness.model import LatentRefLM

CONTEXTS = [(5, 9, 31, 7), (12, 3)]
CONTINUATIONS = [[(8, 21, 6), (17,)]] * len(CONTEXTS)
SIZE = 16


def coconut(model, folder):
    torch.save(files.coconut_keys(files.resized(model, 3)), folder / "pytorch_model.bin")


def sim_cot(model, folder):
    other = {f"expainable_llm.{k}": v for k, v in model.state_dict().items()}
    state = files.coconut_keys(files.resized(model, 3))
    torch.save({**state, **other}, folder / "checkpoint_28")


def pause(model, folder):
    state = files.coconut_keys(files.resized(model, 3))
    torch.save({**state, "pause_embedding": torch.ones(SIZE)}, folder / "checkpoint_best")


def codi(model, folder):
    state, _ = files.codi_state(model, files.projector(SIZE))
    torch.save(state, folder / "pytorch_model.bin")


def bare_folder(write, folder, family="gpt2"):
    """The weights that `write` makes beside a configuration and a tokenizer; their path."""
    model = fresh_model(family, seed=5)
    folder.mkdir()
    model.config.save_pretrained(folder)
    tiny_tokenizer(markers=False).save_pretrained(folder)
    write(model, folder)
    (path,) = [*folder.glob("checkpoint_*"), *folder.glob("pytorch_model.bin")]
    return path


def scores_of(reasoner):
    return [
        [score.log_likelihood for score in row]
        for row in reasoner.score(CONTEXTS, CONTINUATIONS, max_rows=4)
    ]


@pytest.mark.parametrize("write", [coconut, sim_cot, pause, codi])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_folder_alone_is_the_file_on_its_base(tmp_path, family, write):
    path = bare_folder(write, tmp_path / "bare", family)
    base = save_folder(fresh_model(family), tmp_path / "base")
    expected = load(base, weights=str(path), latent_steps=3)
    actual = load(str(tmp_path / "bare"), latent_steps=3)
    assert actual.config == expected.config
    assert actual.markers == expected.markers is not None
    assert scores_of(actual) == scores_of(expected)
    in_lm_eval = LatentRefLM(str(tmp_path / "bare"), latent_steps=3, device="cpu")
    assert scores_of(in_lm_eval.reasoner) == scores_of(expected)


def test_such_folders_are_references_and_are_converted(tmp_path):
    folders = {}
    for seed, role in enumerate(("pretrained", "strong", "weak")):
        path = bare_folder(coconut, tmp_path / role)
        model = files.resized(fresh_model(seed=seed), 3)
        torch.save(files.coconut_keys(model), path)
        folders[role] = str(tmp_path / role)
    options = {"latent_steps": 3, "search_step_size": 4.0}
    reasoner = load(**folders, **options)
    assert len({str(row) for row in map(scores_of, (reasoner, load(folders["weak"])))}) == 2
    out = convert(out=tmp_path / "out", **folders, **options)
    assert scores_of(load(str(out))) == scores_of(reasoner)


def test_its_settings_of_generation_and_dtype_are_used(tmp_path):
    bare_folder(coconut, tmp_path / "bare")
    (tmp_path / "bare" / "generation_config.json").write_text('{"eos_token_id": [0, 7]}')
    model = load(str(tmp_path / "bare"), latent_steps=1, dtype="bfloat16").backbone.causal_lm
    assert model.dtype == torch.bfloat16
    assert model.generation_config.eos_token_id == [0, 7]


def test_of_several_files_one_has_to_be_chosen(tmp_path):
    path = bare_folder(sim_cot, tmp_path / "bare")
    torch.save(torch.load(path), tmp_path / "bare" / "checkpoint_5")
    with pytest.raises(LatentRefError, match="holds several models, checkpoint_28, checkpoint_5"):
        load(str(tmp_path / "bare"))
    chosen = load(str(tmp_path / "bare"), weights=str(path))
    assert chosen.config.latent_steps == 10
    with pytest.raises(LatentRefError, match="give one of them as strong=FILE"):
        load(str(tmp_path / "bare"), weights=str(path), strong=str(tmp_path / "bare"))


@pytest.mark.parametrize("lacks", ["config.json", "its content", "tokenizer"])
def test_a_folder_that_lacks_its_configuration_or_tokenizer_says_what_to_give(tmp_path, lacks):
    bare_folder(codi, tmp_path / "bare")
    if lacks == "tokenizer":
        for path in (tmp_path / "bare").glob("tokenizer*"):
            path.unlink()
    elif lacks == "config.json":
        (tmp_path / "bare" / lacks).unlink()
    else:
        (tmp_path / "bare" / "config.json").write_text("")
    advice = "tokenizer=" if lacks == "tokenizer" else "weights="
    with pytest.raises(LatentRefError, match=advice) as error:
        load(str(tmp_path / "bare"), latent_steps=1)
    assert "\n" not in str(error.value)
