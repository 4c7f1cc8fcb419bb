"""Checkpoints in the layouts of latent-reasoning families, made of tiny models.

The writer knows the published layouts and nothing of the package's reader. Each function returns
the path to give and the model that the file should be read as.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny_checkpoints import fresh_model, save_folder

ALPHA = 32


def save_bases(folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Tiny bases of GPT-2 and Llama, and their folders."""
    models = {family: fresh_model(family) for family in ("gpt2", "llama")}
    return models, {name: save_folder(model, folder / name) for name, model in models.items()}


def resized(model: Any, extra: int, seed: int = 3) -> Any:
    """A copy of `model` with `extra` random rows."""
    model = copy.deepcopy(model)
    old = model.get_input_embeddings().weight.shape[0]
    model.resize_token_embeddings(old + extra, mean_resizing=False)
    torch.manual_seed(seed)
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        layer.weight.data[old:] = 0.3 * torch.randn(extra, layer.weight.shape[1])
    return model.requires_grad_(False)


def draw(layers: dict[str, Any], seed: int = 5) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Random weight and bias of each layer: (rows, columns), or a width for a LayerNorm."""
    generator = torch.Generator().manual_seed(seed)

    def numbers(*shape: int) -> torch.Tensor:
        return 0.3 * torch.randn(*shape, generator=generator)

    return {
        name: (numbers(*shape), numbers(shape[0]))
        if isinstance(shape, tuple)
        else (1 + numbers(shape), numbers(shape))
        for name, shape in layers.items()
    }


def projector(size: int, width: int = 12, *, norm: bool = True) -> dict[str, Any]:
    """A projector by the names of the naive loop."""
    layers: dict[str, Any] = {"linear_1": (width, size), "linear_2": (size, width)}
    return draw({**layers, "norm": size} if norm else layers)


def policy(size: int, width: int = 12) -> dict[str, Any]:
    """CoLaR's head by the names of the naive loop."""
    heads = {"mean": (size, width), "log_std": (size, width)}
    return draw({"fc_1": (width, size), "fc_2": (width, width), "norm": width, **heads})


def keys_of(layers: dict[str, Any], names: dict[str, str]) -> dict[str, torch.Tensor]:
    return {
        f"{names[layer]}.{part}": tensor
        for layer, pair in layers.items()
        if layer in names
        for part, tensor in zip(("weight", "bias"), pair, strict=True)
    }


CODI = {"linear_1": "prj.1", "linear_2": "prj.3", "norm": "prj.ln"}
CODI_PORT = {"linear_1": "projector.1", "linear_2": "projector.3", "norm": "projector.4"}
COLAR = {
    "fc_1": "latent_policy.fc.0",
    "fc_2": "latent_policy.fc.2",
    "norm": "latent_policy.fc.3",
    "mean": "latent_policy.mean",
    "log_std": "latent_policy.log_std",
}
COLAR_PORT = {
    "fc_1": "lt_head.fc.0",
    "fc_2": "lt_head.fc.2",
    "norm": "lt_head.fc.3",
    "mean": "lt_head.mean",
}


def adapted(model: Any, endings: tuple[str, ...], rank: int, alpha: float = ALPHA) -> Any:
    """LoRA halves for the linears that end so, and a copy of `model` with them merged by hand."""
    merged, halves = copy.deepcopy(model), {}
    torch.manual_seed(11)
    for name, module in merged.named_modules():
        if not name.endswith(endings):
            continue
        transposed = type(module).__name__ == "Conv1D"
        num_out, num_in = module.weight.shape[::-1] if transposed else module.weight.shape
        a, b = 0.1 * torch.randn(rank, num_in), 0.1 * torch.randn(num_out, rank)
        halves[name] = (a, b)
        change = torch.zeros(num_out, num_in)
        for each in range(rank):
            change += torch.outer(b[:, each], a[each])
        module.weight.data += (alpha / rank) * (change.T if transposed else change)
    return halves, merged


def codi_state(
    base: Any, layers: dict[str, Any], *, prefix: str = "codi.", rank: int = 4
) -> tuple[dict[str, torch.Tensor], Any]:
    """CODI's keys, and the model with its adapter merged."""
    model = resized(base, 3)
    endings = ("c_attn", "c_fc") if model.config.model_type == "gpt2" else ("q_proj", "up_proj")
    halves, merged = adapted(model, endings, rank)
    state = {}
    for name, tensor in model.state_dict().items():
        module, _, parameter = name.rpartition(".")
        at = f"{module}.base_layer" if module in halves else module
        state[f"{prefix}base_model.model.{at}.{parameter}"] = tensor.clone()
    for module, (a, b) in halves.items():
        state[f"{prefix}base_model.model.{module}.lora_A.default.weight"] = a
        state[f"{prefix}base_model.model.{module}.lora_B.default.weight"] = b
    return {**state, **keys_of(layers, CODI)}, merged


def training_only(base: Any) -> dict[str, torch.Tensor]:
    """What SIM-CoT saves beside: the decoder that explains thoughts, and projections for it."""
    decoder = {f"decoder.{name}": tensor.clone() for name, tensor in base.state_dict().items()}
    return {**decoder, "pj_in.weight": torch.zeros(2, 2), "pj_out.weight": torch.zeros(2, 2)}


def save_shards(state: dict[str, torch.Tensor], folder: Path) -> Path:
    """Two safetensors files with an index, and a config.json of no bytes, as SIM-CoT's folders."""
    folder.mkdir()
    names = sorted(state)
    places = {
        name: f"model-0000{1 + number % 2}-of-00002.safetensors"
        for number, name in enumerate(names)
    }
    for file in set(places.values()):
        part = {name: state[name].contiguous() for name in names if places[name] == file}
        save_file(part, folder / file)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text("")
    return folder


def save_port(model: Any, extra: dict[str, torch.Tensor], folder: Path, **config: Any) -> Path:
    """A folder of transformers with further tensors among the weights and fields in config.json."""
    model.save_pretrained(folder)
    state = {
        name: tensor.clone()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight" or not model.config.tie_word_embeddings
    }
    save_file({**state, **extra}, folder / "model.safetensors", metadata={"format": "pt"})
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**written, **config}))
    return folder


def colar_checkpoint(base: Any, layers: dict[str, Any], path: Path, rank: int = 4) -> Any:
    """Lightning's file of CoLaR at `path`; returns the model with the adapter merged."""
    halves, merged = adapted(base, ("q_proj", "v_proj"), rank)
    state = keys_of(layers, COLAR)
    for module, (a, b) in halves.items():
        state[f"llm.base_model.model.{module}.lora_A.default.weight"] = a
        state[f"llm.base_model.model.{module}.lora_B.default.weight"] = b
    torch.save({"epoch": 3, "global_step": 100, "state_dict": state, "loops": {}}, path)
    return merged


def coconut_keys(model: Any) -> dict[str, torch.Tensor]:
    wrapped = {f"base_causallm.{name}": tensor for name, tensor in model.state_dict().items()}
    return {**wrapped, "embedding.weight": model.get_input_embeddings().weight}
