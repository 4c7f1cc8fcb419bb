"""Writes a set of checkpoints as one folder, which `pretrained=FOLDER` loads.

    convert(out="out/coconut", pretrained="gpt2", weights="checkpoint_41", strong="cot_25",
            weak="cot_1", latent_steps=6, memory_rate=0.3, tuned_on="mathqa dev")

The backbone is at the top of the folder, the references are in `strong/` and `weak/`, the settings
in latentref.json. All three are plain models; with `adapter=True` they remain adapters.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from lm_eval_latentref.checkpoints.adapter_files import (
    CONFIG,
    PICKLED_WEIGHTS,
    SAFE_WEIGHTS,
    read_adapter,
)
from lm_eval_latentref.checkpoints.files import (
    new_folder,
    one_line,
    read_json_object,
    write_text,
)
from lm_eval_latentref.checkpoints.history import copy_history
from lm_eval_latentref.checkpoints.loading import check_set, load_alone, read_thought_files
from lm_eval_latentref.checkpoints.manifest import Manifest, write_manifest
from lm_eval_latentref.checkpoints.opening import (
    default_loader,
    has_tokenizer,
    load_tokenizer,
    open_config,
    open_tokenizer,
)
from lm_eval_latentref.checkpoints.packaged import DEFAULT_MODEL
from lm_eval_latentref.checkpoints.questions import QUESTIONS_NAME, write_hashes
from lm_eval_latentref.checkpoints.sets import CheckpointNames, SetPlan, learnt_from, resolve
from lm_eval_latentref.checkpoints.sources import Source, default_source
from lm_eval_latentref.checkpoints.state_dicts import make_skeleton, read_tensors
from lm_eval_latentref.checkpoints.thought_files import detect_kind, with_thoughts, write_map
from lm_eval_latentref.checkpoints.unpacked import as_plain_model
from lm_eval_latentref.checkpoints.written import check_written, log_likelihoods, sample_ids
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.config import RefinementConfig
from lm_eval_latentref.latent.protocol import END_LATENT, START_LATENT, known_markers

logger = logging.getLogger(__name__)

_Samples = list[list[int]]


def convert(
    *,
    out: str | os.PathLike[str],
    adapter: bool = False,
    tuned_on: str | None = None,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    **options: Any,
) -> Path:
    """Writes the set into the folder `out` and returns its path.

    Args:
        out: a new or empty folder; it is unchanged after an error.
        adapter: whether adapters stay adapters; if not, they are merged into their base.
        tuned_on: the split on which memory rate and step size were tuned.
        dtype: the dtype of the written weights; "auto": the dtype of each checkpoint.
        options: names of checkpoints (the fields of `CheckpointNames`), and settings for
            latentref.json (the fields of `RefinementConfig`). The latentref.json of `pretrained`
            supplies the defaults.

    Raises:
        LatentRefError: the set does not fit together, `out` is not empty, or the disk is full.
    """
    target = Path(out).expanduser()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise LatentRefError(f"out={target} exists and is not an empty folder; give a new one")
    _check_dtype(dtype)
    names = CheckpointNames.taken_from(options)
    plan = resolve(names)
    recorded = detect_kind(plan, options).settings
    given = RefinementConfig.parse({**recorded, **options})
    splits, questions = learnt_from(plan)
    manifest = dataclasses.replace(
        _manifest(plan, recorded, {name: getattr(given, name) for name in options}, tuned_on),
        trained_on=sorted(splits) or None,
        trained_questions=QUESTIONS_NAME if len(questions) else None,
    )
    own_tokenizer = load_tokenizer(plan.backbone, trust_remote_code=trust_remote_code)
    borrowed = check_set(plan, tokenizer=own_tokenizer, trust_remote_code=trust_remote_code)
    files = read_thought_files(plan, trust_remote_code)
    manifest = with_thoughts(manifest, files)
    if adapter:
        _check_adapters(plan)
    _check_space(plan, target, adapter, dtype, trust_remote_code)
    with _new_set(target) as folder:
        samples = sample_ids(own_tokenizer)
        if adapter:
            _copy_adapters(plan, folder, samples, dtype, trust_remote_code)
        else:
            _save_models(plan, folder, own_tokenizer, borrowed, samples, dtype, trust_remote_code)
        # `_copy_adapter` has written the adapter's own tokenizer if it differs from the base's.
        if not adapter or plan.backbone.tokenizer not in (None, plan.backbone.adapter):
            own_tokenizer.save_pretrained(folder)
        copy_history(_members(plan), folder, name=target.name)
        write_map(files, folder)
        if len(questions):
            write_hashes(folder, questions)
        write_manifest(folder, manifest)
    return target


def _check_dtype(name: str) -> None:
    wanted = getattr(torch, str(name), None)
    is_floating = isinstance(wanted, torch.dtype) and wanted.is_floating_point
    if name != "auto" and not is_floating:
        raise LatentRefError(f"dtype={name}: give a floating-point type such as bfloat16, or auto")


@contextmanager
def _new_set(target: Path) -> Iterator[Path]:
    """Yields a temporary folder that becomes `target`; a full disk raises LatentRefError."""
    try:
        with new_folder(target) as folder:
            yield folder
    except SafetensorError as error:
        raise LatentRefError(
            f"{target} cannot be written ({one_line(error)}); make room"
        ) from error


def _members(plan: SetPlan) -> dict[str, Source]:
    sources = {"pretrained": plan.backbone, "strong": plan.strong, "weak": plan.weak}
    return {role: source for role, source in sources.items() if source is not None}


def _manifest(
    plan: SetPlan, recorded: Mapping[str, Any], given: Mapping[str, Any], tuned_on: str | None
) -> Manifest:
    """The manifest of the new set: the `recorded` settings, overridden by `given`.

    The `tuned_on` of `plan` is dropped if `given` has a new memory rate or step size.
    """
    retuned = {"memory_rate", "search_step_size"} & given.keys()
    settings: dict[str, Any] = {**recorded, **given}
    return Manifest(
        **settings,
        strong="strong" if plan.strong is not None else None,
        weak="weak" if plan.weak is not None else None,
        tuned_on=tuned_on or (None if retuned else plan.manifest.tuned_on),
        writes_steps=plan.manifest.writes_steps,
    )


def _copy_adapters(
    plan: SetPlan, folder: Path, samples: _Samples, dtype: str, trust_remote_code: bool
) -> None:
    loader = default_loader(trust_remote_code=trust_remote_code)
    for role, source in _members(plan).items():
        place = folder if role == "pretrained" else folder / role
        _copy_adapter(source, place, dtype, open_config(source, role, trust_remote_code))
        original, written = (
            load_alone(adapter, load_model=loader, trust_remote_code=trust_remote_code).model
            for adapter in (source, dataclasses.replace(source, adapter=str(place)))
        )
        rounded_to = written.dtype if dtype == "auto" else getattr(torch, dtype)
        name = f"{role}={source.name or source.base}"
        check_written(name, log_likelihoods(original, samples), written, samples, rounded_to)


def _save_models(
    plan: SetPlan,
    folder: Path,
    own_tokenizer: Any,
    borrowed: dict[str, frozenset[int]],
    samples: _Samples,
    dtype: str,
    trust_remote_code: bool,
) -> None:
    """Writes plain models and their tokenizers; only one model at a time is in memory."""
    for role, source in _members(plan).items():
        logger.info("writing %s (%s)", role, source.name or source.base)
        place = folder if role == "pretrained" else folder / role
        before_S = _save_merged(source, place, samples, dtype, trust_remote_code)
        written = load_alone(
            Source(base=str(place), name=source.name),
            load_model=default_loader(trust_remote_code=trust_remote_code),
            trust_remote_code=trust_remote_code,
        ).model
        name = f"{role}={source.name or source.base}"
        check_written(name, before_S, written, samples, written.dtype)
        if role != "pretrained":
            _save_own_tokenizer(source, place, own_tokenizer, borrowed[role], trust_remote_code)


def _save_merged(
    source: Source, folder: Path, samples: _Samples, dtype: str, trust_remote_code: bool
) -> Tensor:
    """Writes `source` as a plain model with its adapter merged.

    Returns the log-likelihoods (S) of `samples` before merging.
    """
    loader = default_loader(dtype=dtype, trust_remote_code=trust_remote_code)
    loaded = load_alone(source, load_model=loader, trust_remote_code=trust_remote_code)
    model = loaded.model
    before_S = log_likelihoods(model, samples)
    if loaded.adapter is not None:
        model = _merge(model)
    if not all(parameter.is_floating_point() for parameter in model.parameters()):
        raise LatentRefError(
            f"{source.name or source.base} has quantised weights, which cannot be written as a "
            "plain folder; give the checkpoint it was quantised from"
        )
    if getattr(model, "hf_quantizer", None) is not None:
        model = as_plain_model(model)
    model.save_pretrained(folder)
    return before_S


def _untie(model: Any) -> None:
    """Gives tied layers weights of their own, because an adapter may change only one of them."""
    shared = model.get_input_embeddings().weight
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            if weight is shared and not isinstance(module, nn.Embedding):
                setattr(module, name, nn.Parameter(weight.detach().clone(), requires_grad=False))


def _merge(peft_model: Any) -> Any:
    """The base with its adapter merged; embedding and output layer stay tied only if still equal.

    They are untied first, because PEFT would merge a change to one of two tied layers into both.
    """
    base = peft_model.get_base_model()
    configs = (base.config, base.config.get_text_config())
    tying = [config for config in configs if getattr(config, "tie_word_embeddings", False)]
    _untie(base)
    model = peft_model.merge_and_unload()
    output, inputs = model.get_output_embeddings(), model.get_input_embeddings()
    if tying and output is not None:
        is_tied = torch.equal(output.weight, inputs.weight)
        if is_tied:
            output.weight = inputs.weight
        for config in tying:
            config.tie_word_embeddings = is_tied
    return model


def _save_own_tokenizer(
    source: Source, folder: Path, backbone: Any, borrowed: frozenset[int], trust_remote_code: bool
) -> None:
    """Writes the tokenizer of a reference. It decides whether the reference borrows marker rows.

    A reference that has its own embedding rows for the markers gets the backbone's tokenizer. Any
    other reference gets its own tokenizer, or none if its own has the markers, so that it continues
    to borrow the backbone's rows.
    """
    markers = known_markers(backbone)
    ids = {markers[name] for name in (START_LATENT, END_LATENT) if name in markers}
    if ids and not ids & borrowed:
        backbone.save_pretrained(folder)
        return
    if ids & borrowed != ids:
        raise LatentRefError(
            f"{source.name or source.base} was trained on one of {START_LATENT} and {END_LATENT} "
            "but not the other; train both or neither before converting"
        )
    if source.weights is None and has_tokenizer(source):
        own = open_tokenizer(source, trust_remote_code)
        if not known_markers(own):
            own.save_pretrained(folder)


def _check_adapters(plan: SetPlan) -> None:
    for role, source in _members(plan).items():
        if source.adapter is None or source.weights is not None:
            raise LatentRefError(
                f"{role}={source.name or source.base} is not an adapter, so the set cannot remain "
                "adapters on one base; convert without adapter to merge everything"
            )
        if source.base_key != plan.backbone.base_key:
            raise LatentRefError(
                f"{role}={source.name} is an adapter on {source.base}, but the backbone is an "
                f"adapter on {plan.backbone.base}; convert without adapter to merge everything"
            )
    base_name(plan.backbone)


def _copy_adapter(source: Source, folder: Path, dtype: str, base_config: Any) -> None:
    """Copies an adapter's files into `folder`, with the resolved name of its base.

    Trained weights are written in `dtype`. Copies of base weights in the file keep their dtype,
    because `attach` compares them with the base. A tokenizer equal to the base's is not copied.
    """
    assert source.adapter is not None
    folder.mkdir(exist_ok=True)
    origin = Path(source.adapter)
    weights = SAFE_WEIGHTS if (origin / SAFE_WEIGHTS).exists() else PICKLED_WEIGHTS
    if dtype == "auto":
        shutil.copyfile(origin / weights, folder / weights)
    else:
        trained = read_adapter(str(origin), base_config).tensors
        tensors = read_tensors(str(origin / weights))
        _write_as(dtype, tensors, trained, folder / SAFE_WEIGHTS)
    config = read_json_object(origin / CONFIG, "save the adapter again")
    config["base_model_name_or_path"] = base_name(source)
    config["revision"] = None if os.path.isdir(source.base) else source.revision
    write_text(folder / CONFIG, json.dumps(config, indent=2) + "\n")
    if source.tokenizer == source.adapter:
        own = open_tokenizer(source)
        base = dataclasses.replace(source, adapter=None, tokenizer=None)
        if not has_tokenizer(base) or not _same_tokenizer(own, open_tokenizer(base)):
            own.save_pretrained(folder)


def _same_tokenizer(own: Any, other: Any) -> bool:
    """Whether both have the same vocabulary, special tokens and chat template."""
    return bool(
        own.get_vocab() == other.get_vocab()
        and own.special_tokens_map == other.special_tokens_map
        and own.chat_template == other.chat_template
        and own("").input_ids == other("").input_ids
    )


def _write_as(
    dtype: str, tensors: Mapping[str, Tensor], trained: Collection[str], target: Path
) -> None:
    """Writes `tensors` to `target`; the tensors named in `trained` are converted to `dtype`."""
    wanted = getattr(torch, dtype)
    converted = {
        name: tensor.to(wanted if name in trained else tensor.dtype).contiguous()
        for name, tensor in tensors.items()
    }
    save_file(converted, target, metadata={"format": "pt"})


def base_name(source: Source) -> str:
    """The name of the base of `source` for an adapter_config.json.

    Raises LatentRefError if the base is a GGUF file or a subfolder, which has no such name.
    """
    if source.gguf_file is None and not source.subfolder:
        return os.path.abspath(source.base) if os.path.isdir(source.base) else source.base
    if source.base_key == default_source().base_key:
        return DEFAULT_MODEL
    raise LatentRefError(
        f"the base {source.base} is a GGUF file or a subfolder, and adapter_config.json cannot "
        "name it; run `latentref convert` without adapter, which writes plain models"
    )


def _check_space(
    plan: SetPlan, target: Path, adapter: bool, dtype: str, trust_remote_code: bool
) -> None:
    """Raises LatentRefError if the disk has too little space for the weights."""
    needed = 0
    for role, source in _members(plan).items():
        if adapter:
            assert source.adapter is not None
            needed += sum(path.stat().st_size for path in Path(source.adapter).iterdir())
            continue
        config = open_config(source, role, trust_remote_code)
        wanted = config.dtype if dtype == "auto" else getattr(torch, dtype, None)
        size = torch.finfo(wanted or torch.float32).bits // 8
        skeleton = make_skeleton(config, trust_remote_code)
        needed += size * sum(parameter.numel() for parameter in skeleton.parameters())
    folder = next(parent for parent in target.absolute().parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if needed * 1.05 > free:
        raise LatentRefError(
            f"out needs about {tqdm.format_sizeof(needed, 'B')} but {folder} has "
            f"{tqdm.format_sizeof(free, 'B')} free; free some space or choose another disk"
        )
