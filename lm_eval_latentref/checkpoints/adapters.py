"""Reads PEFT adapters' files, and attaches several adapters to one base model.

    facts = read_adapter("out/lora", config)
    attach(base_model, {"backbone": facts, "strong": other})    # a PeftModel with two adapters

The base weights are in memory only once. PEFT only warns about keys that do not fit; here they are
errors.
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

from lm_eval_latentref.checkpoints.census import Census, is_drawn_anew
from lm_eval_latentref.checkpoints.files import one_line, read_json_object, reading
from lm_eval_latentref.checkpoints.state_dicts import (
    check_floating,
    input_embedding_name,
    make_skeleton,
    read_tensors,
    set_rows,
    tied_names,
    training_wrapper,
)
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.peft_seams import adapter_layers, making

PREFIX = "base_model.model."
SAFE_WEIGHTS = "adapter_model.safetensors"
PICKLED_WEIGHTS = "adapter_model.bin"
CONFIG = "adapter_config.json"

# Under these names PEFT saves weights of the base model together with an adapter.
_BASE_COPIES = ("base_layer", "token_adapter.base_layer", "original_module")
_TOKEN_ROWS = "token_adapter.trainable_tokens_delta"

# Legend of shape suffixes: V rows of the vocabulary, D hidden size.


@dataclass(frozen=True)
class Adapter:
    """The contents of an adapter's files, before it is attached to its base model."""

    path: str
    config: dict[str, Any]
    """adapter_config.json; an embedding saved beside the adapter is in its `modules_to_save`."""

    tensors: dict[str, Tensor]
    """The adapter's own tensors, by the keys of its file."""

    base_copies: dict[str, Tensor]
    """Embedding and output layer of its base, by the base's names, if the file has them."""

    is_rewritten: bool
    """Whether `config` and `tensors` differ from the files."""

    embedding: str
    """Name of the base model's input embedding weight."""

    trained_ids: frozenset[int]
    """Tokens whose input rows were trained one by one (`trainable_token_indices`)."""

    trains_embedding: bool
    """Whether the whole input embedding was trained (`modules_to_save` or low-rank factors)."""

    @property
    def exact_rows(self) -> int | None:
        """Rows that the base must have because the adapter has or adapts a whole embedding."""
        own_VD = self.tensors.get(f"{PREFIX}{self.embedding}")
        factor = self.tensors.get(f"{PREFIX}{_module(self.embedding)}.lora_embedding_A")
        if own_VD is not None:
            return own_VD.shape[0]
        return None if factor is None else factor.shape[1]

    @property
    def known_rows(self) -> int | None:
        """The number of embedding rows the adapter was trained on; None if its files do not say."""
        copy_VD = self.base_copies.get(self.embedding)
        return self.exact_rows or (None if copy_VD is None else copy_VD.shape[0])

    def trains(self, token_id: int) -> bool:
        """Whether the adapter trained the input row of this token."""
        in_whole = self.trains_embedding and token_id < (self.exact_rows or 0)
        return in_whole or token_id in self.trained_ids

    def carries(self, token_id: int) -> bool:
        """Whether the adapter has an input row of its own for this token, trained or not."""
        return token_id < (self.exact_rows or 0) or token_id in self.trained_ids

    def adapts(self, weight: str) -> bool:
        """Whether the adapter has low-rank factors for the base's `weight`."""
        return any(key.startswith(f"{PREFIX}{_module(weight)}.lora_") for key in self.tensors)


def read_adapter(path: str, base_config: Any, trust_remote_code: bool = False) -> Adapter:
    """Reads configuration and tensors of the adapter in the folder `path`; runs no code.

    If the vocabulary was resized, PEFT saves the whole embedding with the adapter, and loads it
    into the base, which is shared here. Therefore the embedding is made part of the adapter
    (`modules_to_save`) or, if only single rows of it were trained, kept apart in `base_copies`.
    Raises LatentRefError for damaged files and for adapters that prepend virtual tokens.
    """
    skeleton = make_skeleton(base_config, trust_remote_code)
    with reading(os.path.join(path, CONFIG), "save the adapter again"):
        return _read_for(skeleton, path)


def _read_for(skeleton: Any, path: str) -> Adapter:
    config = read_config(path)
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
        if (key := f"{PREFIX}{_module(weight)}.{kind}.weight") in tensors
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
                names = [*(config.get("modules_to_save") or []), _module(other)]
                config = {**config, "modules_to_save": names}
    factors = f"{PREFIX}{_module(embedding)}.lora_embedding_A"
    return Adapter(
        path=path,
        config=config,
        tensors=own,
        base_copies=base_copies,
        is_rewritten=own.keys() != tensors.keys() or config != read_config(path),
        embedding=embedding,
        trained_ids=trained_ids,
        trains_embedding=embedding in trained_whole or factors in own,
    )


def attach(
    model: Any, adapters: Mapping[str, Adapter], num_rows: int, *, is_shared: bool = False
) -> Any:
    """A PeftModel with all `adapters` on `model`, by name; none of them is trainable.

    The embedding is first resized to `num_rows` rows. Raises LatentRefError for an adapter that was
    made for another base, naming the key, and for an adapter that changes a shared base.

    Args:
        is_shared: whether the base is also used alone; with several adapters it is always shared.
    """
    old_rows = len(model.get_input_embeddings().weight)
    if any(parameter.device.type == "meta" for parameter in model.parameters()):
        raise LatentRefError(
            "PEFT adapters cannot be laid over a base model that is offloaded to CPU memory or "
            "disk; run `latentref convert` first and load its folder, or give more device memory"
        )
    set_rows(model, num_rows)
    _fill_new_rows(model, adapters, old_rows)
    for adapter in adapters.values():
        _check_base_copies(adapter, model, old_rows)
    before = Census(model) if is_shared or len(adapters) > 1 else None
    peft_model: Any = None
    with tempfile.TemporaryDirectory(prefix="latentref-") as scratch:
        # PEFT expects every adapter loaded after one with trained token rows to have such rows.
        for name, adapter in sorted(adapters.items(), key=lambda item: bool(item[1].trained_ids)):
            path = _as_files(adapter, os.path.join(scratch, name))
            peft_model = _attach_one(model, peft_model, name, adapter, path)
            if before is not None and (changed := before.first_change(peft_model)):
                raise LatentRefError(_changes_base(f"adapter {adapter.path}", changed))
            _check_keys(peft_model, name, adapter)
    peft_model.requires_grad_(False)
    return peft_model.eval()


def _attach_one(model: Any, peft_model: Any, name: str, adapter: Adapter, path: str) -> Any:
    """`peft_model`, or a new PeftModel on `model`, with the adapter in `path` added."""
    from peft import PeftModel

    try:
        with making():
            if peft_model is None:
                return PeftModel.from_pretrained(model, path, adapter_name=name)
            peft_model.load_adapter(path, adapter_name=name)
    except torch.OutOfMemoryError:
        raise
    # PEFT checks few values of a configuration, so a damaged one may raise almost any exception.
    except Exception as error:
        if peft_model is not None and isinstance(error, ValueError):  # of configurations
            raise LatentRefError(
                f"adapter {adapter.path} cannot be laid over a base beside another adapter "
                f"({one_line(error)}); run `latentref convert` on it and give that folder"
            ) from error
        raise LatentRefError(
            f"adapter {adapter.path} does not fit its base model "
            f"({one_line(error)}); give the base it was trained on"
        ) from error
    return peft_model


def _changes_base(what: str, weight: str) -> str:
    return (
        f"{what} changes its base when it is laid over it ({weight!r}), so it cannot share that "
        "base with another model of the set; run `latentref convert` on it and give that folder"
    )


def compute_in_one_dtype(peft_model: Any) -> None:
    """Makes all adapters of `peft_model`, which will not be trained, compute in its base's dtype.

    PEFT loads adapters in float32, which training needs. On a base in half precision their products
    would then take twice the memory and be cast back and forth.
    """
    for layer in adapter_layers(peft_model):
        for name in getattr(layer, "adapter_layer_names", ()):
            if isinstance(parameters := getattr(layer, name, None), nn.Module):
                parameters.to(peft_model.get_base_model().dtype)


def _fill_new_rows(model: nn.Module, adapters: Mapping[str, Adapter], old_rows: int) -> None:
    """Fills the new rows of the shared base from the first adapter whose file has them."""
    held = dict(model.named_parameters(remove_duplicate=False))
    filled: set[str] = set()
    for adapter in adapters.values():
        for weight, copy_VD in adapter.base_copies.items():
            if weight not in filled and copy_VD.shape == held[weight].shape:
                filled.add(weight)
                with torch.no_grad():
                    held[weight][old_rows:] = copy_VD[old_rows:].to(held[weight])


def _check_base_copies(adapter: Adapter, model: nn.Module, old_rows: int) -> None:
    """Raises unless the base's rows in the adapter's file equal those of the shared base.

    Rows that were trained one by one are ignored. New rows are compared only if low-rank factors
    are added to them.
    """
    held = dict(model.named_parameters(remove_duplicate=False))
    for weight, copy_VD in adapter.base_copies.items():
        base_VD = held[weight].detach().cpu()
        adapted = adapter.adapts(weight)
        num_rows = min(len(base_VD) if adapted else old_rows, len(base_VD), len(copy_VD))
        rows = torch.tensor([row for row in range(num_rows) if row not in adapter.trained_ids])
        fits = copy_VD.shape[1:] == base_VD.shape[1:] and not (
            adapted and len(copy_VD) != len(base_VD)
        )
        if not fits or not torch.equal(copy_VD[rows].to(base_VD.dtype), base_VD[rows]):
            raise LatentRefError(
                f"adapter {adapter.path} was saved with {weight!r} of another base, so it cannot "
                "share this one; give the base it was trained on, or run `latentref convert` on "
                "it and give that folder"
            )


def _as_files(adapter: Adapter, scratch: str) -> str:
    """A folder that PEFT loads as `adapter`: its own, or a copy without the base's weights."""
    if not adapter.is_rewritten:
        return adapter.path
    os.makedirs(scratch)
    contiguous = {key: tensor.contiguous() for key, tensor in adapter.tensors.items()}
    save_file(contiguous, os.path.join(scratch, SAFE_WEIGHTS))
    Path(scratch, CONFIG).write_text(json.dumps(adapter.config), encoding="utf-8")
    return scratch


def _check_keys(peft_model: Any, name: str, adapter: Adapter) -> None:
    """Raises unless the adapter's file has exactly the keys that its configuration implies."""
    from peft import get_peft_model_state_dict

    expected = get_peft_model_state_dict(peft_model, adapter_name=name, save_embedding_layers=False)
    keys, present = expected.keys(), adapter.tensors.keys()
    if wrapped := next(filter(training_wrapper, sorted(present - keys)), None):
        raise LatentRefError(
            f"adapter {adapter.path} has key {wrapped!r} with {training_wrapper(wrapped)!r} in it, "
            "which a wrapper of training puts there; save the adapter of the unwrapped model again"
        )
    for what, those in (("missing", keys - present), ("unknown", present - keys)):
        if those:
            raise LatentRefError(
                f"adapter {adapter.path} does not fit its base model: key {min(those)!r} is {what}"
                "; give the base it was trained on, or save the adapter again"
            )
    for key, weight in expected.items():
        check_floating(f"adapter {adapter.path}", key, adapter.tensors[key].dtype, weight)


def read_config(path: str) -> dict[str, Any]:
    """adapter_config.json of the folder `path`; LatentRefError unless it changes weights only."""
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
            f"adapter {path} acts only after the tokens of its alora_invocation_tokens, which "
            "thoughts are not; give an adapter that acts everywhere, such as plain LoRA"
        )
    if config.get("megatron_config"):
        raise LatentRefError(
            f"adapter {path} has a megatron_config, for which PEFT would import the module it "
            "names; save it as an adapter for transformers"
        )
    _check_kind(path, kind)
    if kind == "LORA" and is_drawn_anew(config):
        raise LatentRefError(
            f"adapter {path} has init_lora_weights={config.get('init_lora_weights')}, with which "
            "PEFT draws what it leaves of the base anew at every loading; save it as plain LoRA, "
            "by path_initial_model_for_weight_conversion of PEFT's save_pretrained"
        )
    return config


def _check_kind(path: str, kind: Any) -> None:
    import peft

    if kind not in [known.value for known in peft.PeftType]:
        raise LatentRefError(
            f"adapter {path} has peft_type={kind!r} in its {CONFIG}, which PEFT {peft.__version__} "
            "does not know; install the release of peft it was made with, or save it again"
        )


def read_files(path: str) -> dict[str, Tensor]:
    """The tensors of the adapter in the folder `path`; LatentRefError if they cannot be read."""
    safe = os.path.join(path, SAFE_WEIGHTS)
    return read_tensors(safe if os.path.exists(safe) else os.path.join(path, PICKLED_WEIGHTS))


def _trained_ids(config: dict[str, Any], embedding: str) -> frozenset[int]:
    """Token ids whose input rows the adapter trains one by one."""
    indices = config.get("trainable_token_indices") or config.get("token_indices") or []
    if isinstance(indices, dict):
        lists = [ids for name, ids in indices.items() if _names_module(name, embedding)]
        indices = [token_id for ids in lists for token_id in ids]
    return frozenset(indices)


def _is_copy(key: str, weights: list[str], tied: bool) -> bool:
    """Whether `key` holds weights of the base, or a second copy of the adapter's weights."""
    for weight in weights:
        module = f"{PREFIX}{_module(weight)}"
        twice = [f"{module}.modules_to_save.weight"]
        if tied and weight != weights[0]:
            twice.append(f"{module}.{_TOKEN_ROWS}")
        if key in twice or key in [f"{module}.{kind}.weight" for kind in _BASE_COPIES]:
            return True
    return False


def _saves(config: dict[str, Any], weight: str) -> bool:
    return any(_names_module(name, weight) for name in config.get("modules_to_save") or [])


def _names_module(name: str, weight: str) -> bool:
    module = _module(weight)
    return module == name or module.endswith(f".{name}")


def _module(weight: str) -> str:
    return weight.removesuffix(".weight")
