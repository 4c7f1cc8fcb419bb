"""PEFT adapters: what an adapter's files hold, and several of them on one base model.

    facts = read_adapter("out/lora", config)
    attach(base_model, {"backbone": facts, "strong": other})    # a PeftModel with two adapters

The base weights stay in memory once. PEFT only warns about keys that do not fit; here they are
errors. Deliberately knows no names of checkpoints and no tokenizer.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.folders import one_line
from lm_eval_latentref.state_dicts import (
    input_embedding_name,
    make_skeleton,
    read_tensors,
    set_rows,
)

PREFIX = "base_model.model."
SAFE_WEIGHTS = "adapter_model.safetensors"
PICKLED_WEIGHTS = "adapter_model.bin"
CONFIG = "adapter_config.json"

# Legend of shape suffixes: V rows of the vocabulary, D hidden size.


@dataclass(frozen=True)
class Adapter:
    """An adapter's files, read and understood, before it meets its base model."""

    path: str
    config: dict[str, Any]
    tensors: dict[str, Tensor]

    embedding: str
    """Name of the base model's input embedding weight."""

    output: str | None
    """Name of the base model's output layer weight."""

    trained_ids: frozenset[int]
    """Tokens whose input rows were trained one by one (`trainable_token_indices`)."""

    @property
    def carried_rows(self) -> int | None:
        """Rows of the whole input embedding, if the adapter's file holds one."""
        for key in self._embedding_keys(self.embedding):
            if key in self.tensors:
                return self.tensors[key].shape[0]
        return None

    @property
    def adapted_rows(self) -> int:
        """Rows of the input embedding that low-rank factors adapt; 0 if none do."""
        module = self.embedding.removesuffix(".weight")
        factor = self.tensors.get(f"{PREFIX}{module}.lora_embedding_A")
        return 0 if factor is None else factor.shape[1]

    @property
    def trains_embedding(self) -> bool:
        """Whether the whole input embedding was trained (`modules_to_save` or adapted)."""
        return self._saves(self.embedding) or self._adapts(self.embedding)

    @property
    def num_rows(self) -> int | None:
        """Rows that the adapter's base must have to be adapted, if its files tell."""
        trained = max(self.trained_ids, default=-1) + 1
        return self.carried_rows or self.adapted_rows or trained or None

    def trains(self, token_id: int) -> bool:
        """Whether the adapter trained the input row of this token."""
        if token_id in self.trained_ids:
            return True
        return self.trains_embedding and token_id < (self.carried_rows or self.adapted_rows)

    def carries(self, token_id: int) -> bool:
        """Whether the adapter has an input row of its own for this token, trained or not."""
        own = not self.trained_ids and token_id < (self.carried_rows or 0)
        return self.trains(token_id) or own

    def shares(self, key: str) -> bool:
        """Whether the whole embedding saved under `key` is the shared base's, not its own."""
        return bool(self.trained_ids) or key.endswith(".base_layer.weight")

    def saved_whole(self) -> dict[str, str]:
        """Embedding keys in the file that PEFT would write into the shared base, by module name.

        PEFT saves the whole embedding beside an adapter whenever its vocabulary was resized.
        """
        found = {}
        for weight in filter(None, (self.embedding, self.output)):
            for key in self._embedding_keys(weight):
                if key in self.tensors and not self._saves(weight):
                    found[key] = weight
        return found

    def _embedding_keys(self, weight: str) -> tuple[str, str]:
        module = weight.removesuffix(".weight")
        return f"{PREFIX}{weight}", f"{PREFIX}{module}.base_layer.weight"

    def _saves(self, weight: str) -> bool:
        names = self.config.get("modules_to_save") or []
        return any(_names_module(name, weight) for name in names)

    def _adapts(self, weight: str) -> bool:
        module = f"{PREFIX}{weight.removesuffix('.weight')}."
        return any(key.startswith(f"{module}lora_") for key in self.tensors)


def read_adapter(path: str, base_config: Any, trust_remote_code: bool = False) -> Adapter:
    """Reads configuration and tensors of the adapter in the folder `path`; runs no code.

    Raises LatentRefError for damaged files and for adapters that prepend virtual tokens.
    """
    config_path = os.path.join(path, CONFIG)
    try:
        config = json.loads(Path(config_path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise LatentRefError(
            f"{config_path} cannot be read ({one_line(error)}); save the adapter again"
        ) from error
    if "num_virtual_tokens" in config or config.get("peft_type") == "ADAPTION_PROMPT":
        raise LatentRefError(
            f"adapter {path} is of type {config.get('peft_type')}, which prepends virtual tokens; "
            "give an adapter that changes weights, such as LoRA"
        )
    tensors = _read_files(path)
    skeleton = make_skeleton(base_config, trust_remote_code)
    embedding = input_embedding_name(skeleton)
    output_layer = skeleton.get_output_embeddings()
    output = next(
        (f"{name}.weight" for name, module in skeleton.named_modules() if module is output_layer),
        None,
    )
    trained = _trained_ids(config, embedding)
    return Adapter(path, config, dict(tensors), embedding, output, trained)


def attach(model: Any, adapters: Mapping[str, Adapter], num_rows: int) -> Any:
    """A PeftModel with every one of `adapters` on `model`, by name; none of them is trainable.

    The embedding is given `num_rows` rows first. Raises LatentRefError for an adapter that was
    made for another base, naming the key.
    """
    from peft import PeftModel

    embedding_VD = model.get_input_embeddings().weight
    old_rows = len(embedding_VD)
    if num_rows != old_rows and embedding_VD.device.type == "meta":
        raise LatentRefError(
            "the adapter has tokens that its base model lacks, and the base's embedding is "
            "offloaded; run `latentref convert` first and load its folder"
        )
    set_rows(model, num_rows)
    _fill_new_rows(model, adapters, old_rows)
    peft_model: Any = None
    with tempfile.TemporaryDirectory(prefix="latentref-") as scratch:
        paths = {
            name: _portable(adapter, model, old_rows, os.path.join(scratch, name))
            for name, adapter in adapters.items()
        }
        for name, path in paths.items():
            try:
                if peft_model is None:
                    peft_model = PeftModel.from_pretrained(model, path, adapter_name=name)
                else:
                    peft_model.load_adapter(path, adapter_name=name)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, KeyError, ValueError, TypeError, OSError) as error:
                raise LatentRefError(
                    f"adapter {adapters[name].path} does not fit its base model "
                    f"({one_line(error)}); give the base it was trained on"
                ) from error
            _check_keys(peft_model, name, adapters[name].path, path)
    peft_model.requires_grad_(False)
    return peft_model.eval()


def _fill_new_rows(model: nn.Module, adapters: Mapping[str, Adapter], old_rows: int) -> None:
    """New rows of the shared base come from the first adapter that carries them and shares."""
    weights = dict(model.named_parameters(remove_duplicate=False))
    filled: set[str] = set()
    for adapter in adapters.values():
        for key, weight in adapter.saved_whole().items():
            if adapter.shares(key) and weight in weights and weight not in filled:
                filled.add(weight)
                saved_VD = adapter.tensors[key]
                if saved_VD.shape == weights[weight].shape:
                    with torch.no_grad():
                        weights[weight][old_rows:] = saved_VD[old_rows:].to(weights[weight])


def _portable(adapter: Adapter, model: nn.Module, old_rows: int, scratch: str) -> str:
    """The adapter's folder, or a rewritten copy in `scratch` if loading it would change the base.

    A whole embedding saved beside an adapter becomes the adapter's own (`modules_to_save`). Where
    single rows of it were trained, or where it is adapted itself, it must equal the base's.
    """
    whole = adapter.saved_whole()
    if not whole:
        return adapter.path
    config, tensors = dict(adapter.config), dict(adapter.tensors)
    weights = dict(model.named_parameters(remove_duplicate=False))
    for key, weight in whole.items():
        if adapter.shares(key):
            num_compared = old_rows if adapter.trained_ids else len(weights[weight])
            _check_shared(adapter, key, weights[weight], num_compared)
            del tensors[key]
        else:
            _own(config, tensors, weight)
            if adapter.output and weights[adapter.output] is weights[adapter.embedding]:
                for other in {adapter.embedding, adapter.output} - {weight}:
                    tensors.setdefault(f"{PREFIX}{other}", tensors[key].clone())
                    _own(config, tensors, other)
    os.makedirs(scratch)
    contiguous = {key: tensor.contiguous() for key, tensor in tensors.items()}
    save_file(contiguous, os.path.join(scratch, SAFE_WEIGHTS))
    Path(scratch, CONFIG).write_text(json.dumps(config), encoding="utf-8")
    return scratch


def _own(config: dict[str, Any], tensors: dict[str, Tensor], weight: str) -> None:
    """Makes the module of `weight` the adapter's own in its `config`."""
    module = weight.removesuffix(".weight")
    names = config.get("modules_to_save") or []
    if module not in names:
        config["modules_to_save"] = [*names, module]


def _check_shared(adapter: Adapter, key: str, base_VD: Tensor, num_rows: int) -> None:
    """Raises unless the saved embedding equals the shared base's, row-trained tokens apart."""
    saved_VD = adapter.tensors[key]
    rows = torch.tensor([row for row in range(num_rows) if row not in adapter.trained_ids])
    fits = saved_VD.shape == base_VD.shape
    if fits and torch.equal(saved_VD.to(base_VD.dtype)[rows], base_VD.detach().cpu()[rows]):
        return
    raise LatentRefError(
        f"adapter {adapter.path} carries {key!r}, which differs from its base's, so the base "
        "cannot be shared; run `latentref convert` on this adapter and give its folder"
    )


def _check_keys(peft_model: Any, name: str, shown_path: str, path: str) -> None:
    """Raises unless the keys of the adapter's file are exactly those its configuration makes."""
    from peft import get_peft_model_state_dict

    expected = get_peft_model_state_dict(
        peft_model, adapter_name=name, save_embedding_layers=False
    ).keys()
    found = _read_files(path).keys()
    for what, keys in (("missing", expected - found), ("unknown", found - expected)):
        if keys:
            raise LatentRefError(
                f"adapter {shown_path} does not fit its base model: key {min(keys)!r} is {what}; "
                "give the base it was trained on, or save the adapter again"
            )


def _read_files(path: str) -> dict[str, Tensor]:
    safe = os.path.join(path, SAFE_WEIGHTS)
    return read_tensors(safe if os.path.exists(safe) else os.path.join(path, PICKLED_WEIGHTS))


def _trained_ids(config: dict[str, Any], embedding: str) -> frozenset[int]:
    """Ids whose input rows the adapter trains one by one."""
    indices = config.get("trainable_token_indices") or config.get("token_indices") or []
    if isinstance(indices, dict):
        lists = [ids for name, ids in indices.items() if _names_module(name, embedding)]
        indices = [token_id for ids in lists for token_id in ids]
    return frozenset(indices)


def _names_module(name: str, weight: str) -> bool:
    module = weight.removesuffix(".weight")
    return module == name or module.endswith(f".{name}")
