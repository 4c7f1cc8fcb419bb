"""Reads the files of a PEFT adapter, without loading its base model.

    adapter = read_adapter("out/lora", config)
    adapter.trains(token_id)

`adapters` attaches adapters to a base model.

Shape suffixes: V rows of the vocabulary, D hidden size.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lm_eval_latentref.checkpoints.census import changes_base_at_random
from lm_eval_latentref.checkpoints.files import read_json_object, reading
from lm_eval_latentref.checkpoints.state_dicts import (
    input_embedding_name,
    make_skeleton,
    read_tensors,
    tied_names,
)
from lm_eval_latentref.errors import LatentRefError

PREFIX = "base_model.model."
SAFE_WEIGHTS = "adapter_model.safetensors"
PICKLED_WEIGHTS = "adapter_model.bin"
CONFIG = "adapter_config.json"

# The names under which PEFT saves weights of the base model together with an adapter.
_BASE_COPIES = ("base_layer", "token_adapter.base_layer", "original_module")
_TOKEN_ROWS = "token_adapter.trainable_tokens_delta"


@dataclass(frozen=True)
class Adapter:
    """The contents of an adapter's files, before it is attached to its base model."""

    path: str
    config: dict[str, Any]
    """adapter_config.json; its `modules_to_save` also lists an embedding saved with the adapter."""

    tensors: dict[str, Tensor]
    """The adapter's own tensors, by the keys of its file."""

    base_copies: dict[str, Tensor]
    """The embedding and output layer of its base, by the base's names, if the file has them."""

    is_rewritten: bool
    """Whether `config` and `tensors` differ from the files."""

    embedding: str
    """The name of the base model's input embedding weight."""

    trained_ids: frozenset[int]
    """Ids of tokens whose embedding rows were trained individually (`trainable_token_indices`)."""

    trains_embedding: bool
    """Whether the whole input embedding was trained (`modules_to_save` or low-rank factors)."""

    @property
    def exact_rows(self) -> int | None:
        """The number of rows if the adapter has or adapts the whole embedding; else None."""
        own_VD = self.tensors.get(f"{PREFIX}{self.embedding}")
        factor = self.tensors.get(f"{PREFIX}{_module_name(self.embedding)}.lora_embedding_A")
        if own_VD is not None:
            return own_VD.shape[0]
        return None if factor is None else factor.shape[1]

    @property
    def known_rows(self) -> int | None:
        """The number of embedding rows in training; None if the files do not say."""
        copy_VD = self.base_copies.get(self.embedding)
        return self.exact_rows or (None if copy_VD is None else copy_VD.shape[0])

    def trains(self, token_id: int) -> bool:
        """Whether the adapter trained this token's embedding row."""
        in_whole = self.trains_embedding and token_id < (self.exact_rows or 0)
        return in_whole or token_id in self.trained_ids

    def carries(self, token_id: int) -> bool:
        """Whether the adapter has its own embedding row for this token, trained or not."""
        return token_id < (self.exact_rows or 0) or token_id in self.trained_ids

    def adapts(self, weight: str) -> bool:
        """Whether the adapter has low-rank factors for the base's `weight`."""
        return any(key.startswith(f"{PREFIX}{_module_name(weight)}.lora_") for key in self.tensors)


def read_adapter(path: str, base_config: Any, trust_remote_code: bool = False) -> Adapter:
    """Reads the configuration and the tensors of the adapter in the folder `path`; runs no code.

    If the vocabulary was resized, PEFT saves the whole embedding with the adapter and would load it
    into the base, which is shared here. Therefore the embedding becomes part of the adapter
    (`modules_to_save`) or, if only single rows of it were trained, is stored in `base_copies`.

    Raises:
        LatentRefError: the files are damaged, or the adapter does not only change weights.
    """
    skeleton = make_skeleton(base_config, trust_remote_code)
    with reading(os.path.join(path, CONFIG), "save the adapter again"):
        return _read_for(skeleton, path)


def _read_for(skeleton: Any, path: str) -> Adapter:
    own_config = config = read_config(path)
    tensors = read_files(path)
    embedding = input_embedding_name(skeleton)
    output_layer = skeleton.get_output_embeddings()
    modules = skeleton.named_modules(remove_duplicate=False)
    weights = [embedding, *(f"{n}.weight" for n, m in modules if m is output_layer)]
    tied = any(set(weights) <= group for group in tied_names(skeleton))
    trained_ids = _trained_ids(config, embedding)
    own = {key: tensor for key, tensor in tensors.items() if not _is_copy(key, weights, tied)}
    trained_whole = {weight for weight in weights if _saves(config, weight)}
    base_copies = {
        weight: tensors[key]
        for weight in weights
        for kind in _BASE_COPIES
        if (key := f"{PREFIX}{_module_name(weight)}.{kind}.weight") in tensors
    }
    for weight in weights:
        key = f"{PREFIX}{weight}"
        if key not in own or weight in trained_whole:
            continue
        if trained_ids:
            base_copies[weight] = own.pop(key)
            continue
        for other in weights if tied else [weight]:
            own.setdefault(f"{PREFIX}{other}", own[key].clone())
            if not _saves(config, other):
                names = [*(config.get("modules_to_save") or []), _module_name(other)]
                config = {**config, "modules_to_save": names}
    factors = f"{PREFIX}{_module_name(embedding)}.lora_embedding_A"
    return Adapter(
        path=path,
        config=config,
        tensors=own,
        base_copies=base_copies,
        is_rewritten=own.keys() != tensors.keys() or config != own_config,
        embedding=embedding,
        trained_ids=trained_ids,
        trains_embedding=embedding in trained_whole or factors in own,
    )


def read_config(path: str) -> dict[str, Any]:
    """adapter_config.json in the folder `path`.

    Raises LatentRefError if the adapter does anything other than change weights, or would not load
    the same way every time.
    """
    config_path = os.path.join(path, CONFIG)
    config = read_json_object(config_path, "save the adapter again")
    kind = config.get("peft_type")
    if "num_virtual_tokens" in config or kind == "ADAPTION_PROMPT":
        raise LatentRefError(
            f"adapter {path} is of type {kind}, which prepends virtual tokens; "
            "give an adapter that changes weights, such as LoRA"
        )
    if config.get("alora_invocation_tokens"):
        raise LatentRefError(
            f"adapter {path} is active only after its alora_invocation_tokens, but thoughts are no "
            "tokens; give an adapter that is always active, such as plain LoRA"
        )
    if config.get("megatron_config"):
        raise LatentRefError(
            f"adapter {path} has a megatron_config, which makes PEFT import a module; save it as "
            "an adapter for transformers"
        )
    _check_kind(path, kind)
    if kind == "LORA" and changes_base_at_random(config):
        raise LatentRefError(
            f"adapter {path} has init_lora_weights={config.get('init_lora_weights')}, with which "
            "PEFT changes the base at random each time it loads the adapter; save it as plain "
            "LoRA with path_initial_model_for_weight_conversion of PEFT's save_pretrained"
        )
    return config


def _check_kind(path: str, kind: Any) -> None:
    import peft

    if kind not in [known.value for known in peft.PeftType]:
        raise LatentRefError(
            f"adapter {path} has peft_type={kind!r} in its {CONFIG}, which PEFT {peft.__version__} "
            "does not know; install the release of peft that saved it, or save it again"
        )


def read_files(path: str) -> dict[str, Tensor]:
    """The tensors of the adapter in the folder `path`; raises LatentRefError if it is damaged."""
    safe = os.path.join(path, SAFE_WEIGHTS)
    return read_tensors(safe if os.path.exists(safe) else os.path.join(path, PICKLED_WEIGHTS))


def _trained_ids(config: dict[str, Any], embedding: str) -> frozenset[int]:
    """The ids of tokens whose embedding rows the adapter trains individually."""
    indices = config.get("trainable_token_indices") or config.get("token_indices") or []
    if isinstance(indices, dict):
        lists = [ids for name, ids in indices.items() if _names_module(name, embedding)]
        indices = [token_id for ids in lists for token_id in ids]
    return frozenset(indices)


def _is_copy(key: str, weights: list[str], tied: bool) -> bool:
    """Whether `key` holds weights of the base, or a second copy of the adapter's weights."""
    for weight in weights:
        module = f"{PREFIX}{_module_name(weight)}"
        twice = [f"{module}.modules_to_save.weight"]
        if tied and weight != weights[0]:
            twice.append(f"{module}.{_TOKEN_ROWS}")
        if key in twice or key in [f"{module}.{kind}.weight" for kind in _BASE_COPIES]:
            return True
    return False


def _saves(config: dict[str, Any], weight: str) -> bool:
    return any(_names_module(name, weight) for name in config.get("modules_to_save") or [])


def _names_module(name: str, weight: str) -> bool:
    module = _module_name(weight)
    return module == name or module.endswith(f".{name}")


def _module_name(weight: str) -> str:
    """The name of the module that has the weight called `weight`."""
    return weight.removesuffix(".weight")
