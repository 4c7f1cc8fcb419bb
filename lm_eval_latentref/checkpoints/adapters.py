"""Attaches PEFT adapters to a base model, which several adapters may share.

    attach(base_model, {"backbone": adapter, "strong": other}, num_rows)    # a PeftModel with both

The base weights are in memory only once. Keys that do not fit are errors; PEFT only warns. The two
adapters are results of `adapter_files.read_adapter`.

Shape suffixes: V rows of the vocabulary, D hidden size.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from lm_eval_latentref.checkpoints.adapter_files import CONFIG, SAFE_WEIGHTS, Adapter
from lm_eval_latentref.checkpoints.census import Census
from lm_eval_latentref.checkpoints.files import one_line
from lm_eval_latentref.checkpoints.state_dicts import check_floating, training_wrapper
from lm_eval_latentref.checkpoints.vocabulary import set_rows
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.peft_seams import adapter_layers, making


def attach(
    model: Any, adapters: Mapping[str, Adapter], num_rows: int, *, is_shared: bool = False
) -> Any:
    """A PeftModel with all `adapters` on `model`; no parameter is trainable.

    Args:
        adapters: the adapters by name.
        num_rows: the number of rows to which the embedding is resized first.
        is_shared: whether the base is also used without an adapter.

    Raises:
        LatentRefError: an adapter was made for another base (the message names the key), or it
            changes a base that is shared, with other adapters or without one.
    """
    old_rows = len(model.get_input_embeddings().weight)
    if any(parameter.device.type == "meta" for parameter in model.parameters()):
        raise LatentRefError(
            "PEFT adapters cannot be attached to a base model that is offloaded to CPU memory or "
            "disk; run `latentref convert` first and load its folder, or give more device memory"
        )
    set_rows(model, num_rows)
    _fill_new_rows(model, adapters, old_rows)
    for adapter in adapters.values():
        _check_base_copies(adapter, model, old_rows)
    before = Census(model) if is_shared or len(adapters) > 1 else None
    peft_model: Any = None
    with tempfile.TemporaryDirectory(prefix="latentref-") as scratch:
        # PEFT expects that all adapters after an adapter with trained token rows have such rows.
        for name, adapter in sorted(adapters.items(), key=lambda item: bool(item[1].trained_ids)):
            path = _folder_for_peft(adapter, os.path.join(scratch, name))
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
    # PEFT checks few values of a configuration, so a damaged file may raise almost any exception.
    except Exception as error:
        # PEFT raises ValueError if two adapters' configurations exclude each other.
        if peft_model is not None and isinstance(error, ValueError):
            raise LatentRefError(
                f"adapter {adapter.path} cannot be attached to the base of another adapter "
                f"({one_line(error)}); run `latentref convert` on it and give that folder"
            ) from error
        raise LatentRefError(
            f"adapter {adapter.path} does not fit its base model "
            f"({one_line(error)}); give the base it was trained on"
        ) from error
    return peft_model


def _changes_base(label: str, weight: str) -> str:
    return (
        f"{label} changes its base when it is attached ({weight!r}), so it cannot share that base "
        "with another model of the set; run `latentref convert` on it and give that folder"
    )


def compute_in_one_dtype(peft_model: Any) -> None:
    """Converts all adapters of `peft_model` to the dtype of its base, for inference.

    PEFT loads adapters in float32, as training needs it. On a base in half precision, activations
    in the adapters would then need twice the memory and be cast twice.
    """
    for layer in adapter_layers(peft_model):
        for name in getattr(layer, "adapter_layer_names", ()):
            if isinstance(parameters := getattr(layer, name, None), nn.Module):
                parameters.to(peft_model.get_base_model().dtype)


def _fill_new_rows(model: nn.Module, adapters: Mapping[str, Adapter], old_rows: int) -> None:
    """Fills the new rows of the shared base from the first adapter whose file has them."""
    weights = dict(model.named_parameters(remove_duplicate=False))
    filled: set[str] = set()
    for adapter in adapters.values():
        for weight, copy_VD in adapter.base_copies.items():
            if weight not in filled and copy_VD.shape == weights[weight].shape:
                filled.add(weight)
                with torch.no_grad():
                    weights[weight][old_rows:] = copy_VD[old_rows:].to(weights[weight])


def _check_base_copies(adapter: Adapter, model: nn.Module, old_rows: int) -> None:
    """Raises LatentRefError if base rows in the adapter's file differ from the shared base's rows.

    Individually trained rows are ignored. New rows are compared only if low-rank factors are added
    to them.
    """
    weights = dict(model.named_parameters(remove_duplicate=False))
    for weight, copy_VD in adapter.base_copies.items():
        base_VD = weights[weight].detach().cpu()
        adapted = adapter.adapts(weight)
        num_rows = min(len(base_VD) if adapted else old_rows, len(base_VD), len(copy_VD))
        rows = torch.tensor([row for row in range(num_rows) if row not in adapter.trained_ids])
        fits = copy_VD.shape[1:] == base_VD.shape[1:] and not (
            adapted and len(copy_VD) != len(base_VD)
        )
        if not fits or not torch.equal(copy_VD[rows].to(base_VD.dtype), base_VD[rows]):
            raise LatentRefError(
                f"adapter {adapter.path} was saved with {weight!r} of another base, so it cannot "
                "share this base; give the base it was trained on, or run `latentref convert` on "
                "it and give that folder"
            )


def _folder_for_peft(adapter: Adapter, scratch: str) -> str:
    """The folder from which PEFT loads `adapter`: its own, or `scratch` if it was rewritten."""
    if not adapter.is_rewritten:
        return adapter.path
    os.makedirs(scratch)
    contiguous = {key: tensor.contiguous() for key, tensor in adapter.tensors.items()}
    save_file(contiguous, os.path.join(scratch, SAFE_WEIGHTS))
    Path(scratch, CONFIG).write_text(json.dumps(adapter.config), encoding="utf-8")
    return scratch


def _check_keys(peft_model: Any, name: str, adapter: Adapter) -> None:
    """Raises LatentRefError unless the file has exactly the keys that its configuration implies."""
    from peft import get_peft_model_state_dict

    expected = get_peft_model_state_dict(peft_model, adapter_name=name, save_embedding_layers=False)
    keys, present = expected.keys(), adapter.tensors.keys()
    if wrapped := next(filter(training_wrapper, sorted(present - keys)), None):
        raise LatentRefError(
            f"adapter {adapter.path} has key {wrapped!r}, in which a training wrapper has inserted "
            f"{training_wrapper(wrapped)!r}; save the adapter of the unwrapped model again"
        )
    for problem, wrong in (("missing", keys - present), ("unknown", present - keys)):
        if wrong:
            raise LatentRefError(
                f"adapter {adapter.path} does not fit its base model: key {min(wrong)!r} is "
                f"{problem}; give the base it was trained on, or save the adapter again"
            )
    for key, weight in expected.items():
        check_floating(f"adapter {adapter.path}", key, adapter.tensors[key].dtype, weight)
