"""A damaged file of a family, or one of another kind, is refused in one line by what is wrong."""

from __future__ import annotations

import logging

import family_files as files
import pytest
import torch

from lm_eval_latentref.checkpoints.loading import load
from lm_eval_latentref.errors import LatentRefError

SIZE = 16


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    return files.save_bases(tmp_path_factory.mktemp("bases"))


def damaged(state, how):
    state = dict(state)
    if how == "no bias":
        del state["prj.3.bias"]
    elif how == "no layer":
        state = {key: tensor for key, tensor in state.items() if not key.startswith("prj.3.")}
    elif how == "unknown":
        state["prj.9.weight"] = torch.zeros(1)
    elif how == "more in the map":
        state["prj.1.scale"] = torch.zeros(1)
    elif how == "twice":
        state["transformer.wpe.weight"] = torch.zeros(1)
    elif how == "half":
        state.pop(next(key for key in state if "lora_B" in key))
    elif how == "rank":
        key = next(key for key in state if "lora_B" in key)
        state[key] = state[key][:-1]
    elif how in ("vector", "no rank", "integers"):
        change = {
            "vector": lambda half: half[0],
            "no rank": lambda half: half[:0],
            "integers": lambda half: half.int(),
        }
        key = next(key for key in state if "lora_A" in key)
        state[key] = change[how](state[key])
    elif how in ("number", "integer map"):
        tensor = state["prj.1.weight"]
        state["prj.1.weight"] = tensor[0, 0] if how == "number" else tensor.int()
    elif how == "embedding":
        key = next(key for key in state if key.endswith("wte.weight"))
        state[key] = torch.tensor(1.0)
    elif how == "rows":
        for key in [key for key in state if key.endswith(("wte.weight", "lm_head.weight"))]:
            state[key] = state[key][:-1]
    else:
        state["prj.1.weight"] = state["prj.1.weight"][:, :-1]
    return state


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no bias", r"of CODI needs the keys prj\.3\.bias, which are missing"),
        ("no layer", r"needs the keys prj\.3\.bias, prj\.3\.weight, which"),
        ("unknown", r"unknown key 'prj\.9\.weight'"),
        ("more in the map", r"unknown tensors: linear_1\.scale"),
        ("twice", r"'transformer\.wpe\.weight' twice"),
        ("half", "only lora_A"),
        ("rank", "its adapter of"),
        ("vector", r"its adapter of .* has shape \(48,\), not"),
        ("no rank", r"lora_A.* has shape \(0, 16\)"),
        ("integers", r"lora_A.* torch\.int32, but it must be"),
        ("number", r"'prj\.1\.weight' has shape \(\)"),
        ("integer map", r"'prj\.1\.weight' .* torch\.int32"),
        ("embedding", r"wte\.weight' has shape \(\), not that of a matrix"),
        ("rows", "opened and closed by the ids"),
        ("width", r"linear_1\.weight of the map has shape"),
    ],
)
def test_a_damaged_file_is_refused_by_what_is_wrong(bases, tmp_path, how, message):
    models, paths = bases
    state, _ = files.codi_state(models["gpt2"], files.projector(SIZE))
    torch.save(damaged(state, how), tmp_path / "codi.pt")
    with pytest.raises(LatentRefError, match=message) as error:
        load(paths["gpt2"], weights=str(tmp_path / "codi.pt"))
    assert "\n" not in str(error.value)


def test_a_kind_that_the_file_cannot_serve_names_the_keys_it_needs(bases):
    with pytest.raises(LatentRefError, match=r"none of the keys prj\.1\.\* and prj\.3"):
        load(bases[1]["gpt2"], latent_kind="projected", latent_steps=2)


def test_pickled_hyper_parameters_are_refused(bases, tmp_path):
    path = tmp_path / "colar.ckpt"
    files.colar_checkpoint(bases[0]["llama"], files.policy(SIZE), path)
    saved = torch.load(path)
    torch.save({**saved, "hyper_parameters": logging.Formatter()}, path)
    with pytest.raises(LatentRefError, match="never loaded"):
        load(bases[1]["llama"], weights=str(path))
