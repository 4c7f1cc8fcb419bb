"""The trained set that a training starts from: its adapter, its record and its references.

check_start(recipe)                    # before anything large is loaded
load_adapter(model, "default", open_start("out/mine").adapter, recipe)
start = Start(recipe)
start.trained_on, start.questions
start.references()                     # {"strong": Path("out/mine/strong"), "weak": ...}
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm_eval_latentref.checkpoints.adapter_files import read_config, read_files
from lm_eval_latentref.checkpoints.census import changes_base
from lm_eval_latentref.checkpoints.manifest import MANIFEST_NAME, read_manifest
from lm_eval_latentref.checkpoints.packaged import DEFAULT_MODEL, local_folder
from lm_eval_latentref.checkpoints.questions import Hashes, hash_questions
from lm_eval_latentref.checkpoints.sets import CheckpointNames, SetPlan, learnt_from, resolve
from lm_eval_latentref.checkpoints.sources import Source, default_source
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.training.recipe import Recipe
from lm_eval_latentref.training.state import EPOCHS

logger = logging.getLogger(__name__)

WITHOUT_THOUGHTS = ("no_cot", "cot")
"""Phases whose models have no markers."""

_DECIDING = (
    "r",
    "lora_alpha",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "use_dora",
    "bias",
    "fan_in_fan_out",
    "modules_to_save",
    "layers_to_transform",
    "target_modules",
)
"""Arguments of LoraConfig that determine what an adapter's weights mean."""


def open_start(name: str) -> Source:
    """The source that `pretrained=name` of a recipe refers to."""
    if name == DEFAULT_MODEL:  # the base weights, as adapters on them refer to them
        return default_source()
    return resolve(CheckpointNames(pretrained=name)).backbone


def check_start(recipe: Recipe) -> None:
    """Raises LatentRefError for a LoRA that cannot be trained, or not from its `pretrained`."""
    if recipe.pretrained is None:
        return
    if recipe.lora is not None and changes_base(recipe.lora):
        raise changes_its_base(recipe)
    adapter = open_start(recipe.pretrained).adapter
    if adapter is None:
        return
    name = f"pretrained={recipe.pretrained}"
    if recipe.lora is None:
        raise LatentRefError(
            f"{name} is an adapter, but the recipe has no lora; give the lora it was trained with, "
            "or run `latentref convert` on it and give that folder to train all weights"
        )
    there = read_config(adapter)
    if changes_base(there):
        raise LatentRefError(
            f"{name} is an adapter that changes the weights of its base, so that references cannot "
            "share the base; run `latentref convert` on it and give that folder"
        )
    for field, (trained, given) in _differences(there, recipe.lora).items():
        raise LatentRefError(
            f"{name} was trained with {field}={trained} in lora, but the recipe has "
            f"{field}={given}; give the lora it was trained with"
        )
    without = [phase for phase in recipe.phases if phase in WITHOUT_THOUGHTS]
    if there.get("trainable_token_indices") and without:
        raise LatentRefError(
            f"{name} is an adapter with embeddings of marker tokens, which {without[0]} does not "
            f"use; give phases=coconut, or an adapter of CoT such as {recipe.pretrained}/strong"
        )


def changes_its_base(recipe: Recipe) -> LatentRefError:
    """The error for a LoRA that changes or trains weights of its base model."""
    return LatentRefError(
        f"lora={recipe.lora} changes or trains weights of its base, which the trained model shares "
        "with its references; leave out the argument that does so (such as init_lora_weights or "
        "bias), or leave out lora to train all weights"
    )


def _differences(there: dict[str, Any], lora: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The arguments that differ: (value the adapter was trained with, value given), by name."""
    from peft import LoraConfig

    try:
        default, given = LoraConfig().to_dict(), LoraConfig(**lora).to_dict()
    except (ValueError, TypeError):  # reported when the adapter is made
        return {}
    pairs = {field: (there.get(field, default[field]), given[field]) for field in _DECIDING}
    modules = pairs["target_modules"]
    if any(isinstance(names, str) for names in modules):  # a pattern: weights' names are compared
        del pairs["target_modules"]
    else:
        pairs["target_modules"] = tuple(sorted(names or ()) for names in modules)  # type: ignore[assignment]
    return {field: pair for field, pair in pairs.items() if pair[0] != pair[1]}


def load_adapter(model: Any, adapter: str, folder: str | os.PathLike[str], recipe: Recipe) -> None:
    """Loads the weights saved in `folder` into the PeftModel's `adapter`.

    Embeddings of marker tokens that are not saved there stay unchanged. Raises LatentRefError if
    the saved adapter has another model or shape.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    own = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    there = read_files(os.fspath(folder))
    shapes = {name: tensor.shape for name, tensor in own.items()}
    unfit = {name for name, tensor in there.items() if shapes.get(name) != tensor.shape}
    unfit |= {name for name in own.keys() - there.keys() if "token_adapter" not in name}
    ids = read_config(os.fspath(folder)).get("trainable_token_indices")
    if ids and ids != model.peft_config[adapter].trainable_token_indices:
        unfit.add("trainable_token_indices")
    if unfit:
        raise LatentRefError(
            f"the adapter {folder} does not fit lora={recipe.lora} on this model ({min(unfit)}); "
            "give the base and the lora it was trained with"
        )
    set_peft_model_state_dict(model, {**own, **there}, adapter_name=adapter)


class Start:
    """The trained set that `recipe` starts from; empty if it starts from an untrained model."""

    def __init__(self, recipe: Recipe) -> None:
        self._name = None if recipe.pretrained == DEFAULT_MODEL else recipe.pretrained
        self._epochs = _named_epochs(recipe)
        if self._epochs:
            self.references()  # before anything is trained

    @functools.cached_property
    def _plan(self) -> SetPlan | None:
        return resolve(CheckpointNames(pretrained=self._name)) if self._name else None

    @functools.cached_property
    def _learnt(self) -> tuple[frozenset[str], Hashes]:
        if self._plan is None:
            return frozenset(), hash_questions([])
        return learnt_from(self._plan)

    @property
    def trained_on(self) -> frozenset[str]:
        """The splits that the set was trained on."""
        return self._learnt[0]

    @property
    def questions(self) -> Hashes:
        """The hashes of the questions that the set was trained on."""
        return self._learnt[1]

    def warn_of_seen(self, questions: Sequence[str]) -> None:
        """Logs how many of these validation questions the set was trained on, if any."""
        num_seen = int(np.isin(hash_questions(questions), self.questions).sum())
        if num_seen:
            logger.warning(
                "pretrained=%s was trained on %d of the %d validation problems: accuracy on them "
                "says little and is a poor way to choose references; give another validation",
                self._name,
                num_seen,
                len(questions),
            )

    def references(self) -> dict[str, Path]:
        """The local folders of the set's references, by role.

        They are the epochs that the recipe names, or the references in the set's latentref.json.
        A start that has neither references nor kept epochs gives none. Raises LatentRefError if a
        named epoch is missing.
        """
        if self._name is None or self._plan is None:
            return {}
        folders = {}
        for role, source in (("strong", self._plan.strong), ("weak", self._plan.weak)):
            if source is not None and source.weights is None:
                folder = Path(source.adapter or os.path.join(source.base, source.subfolder))
                if folder.is_dir():
                    folders[role] = folder
        if not folders and not (_local(self._name) / EPOCHS).is_dir():
            return {}  # the start has no CoT beside it
        named = {
            role: _kept_cot(self._name, epoch, folders.values())
            for role, epoch in self._epochs.items()
        }
        return folders | named


def _named_epochs(recipe: Recipe) -> dict[str, int]:
    """The epochs of the CoT run `pretrained` that become references, by role."""
    if "cot" in recipe.phases or "coconut" not in recipe.phases or recipe.pretrained is None:
        return {}
    named = {"strong": recipe.strong_epoch, "weak": recipe.weak_epoch}
    return {role: epoch for role, epoch in named.items() if epoch is not None}


def _kept_cot(name: str, epoch: int, references: Iterable[Path]) -> Path:
    """The folder of an epoch that was kept by its name or as a reference."""
    for folder in references:
        record = folder / MANIFEST_NAME
        if record.is_file() and read_manifest(record).epoch == epoch:
            return folder
    folder = _local(name) / EPOCHS / f"cot-{epoch}"
    if not folder.is_dir():
        raise LatentRefError(
            f"pretrained={name} did not keep epoch {epoch} of CoT (there is no {folder}); name an "
            f"epoch that it kept, or train it with keep_epochs=cot-{epoch}"
        )
    return folder


def _local(name: str) -> Path:
    return local_folder(name) or Path(name)
