"""Loads raw state dicts, such as those of facebookresearch/coconut's trainer, into a base model.

    raw = read_raw("checkpoint_41", config)    # checks every key and shape
    load_raw(raw, model)                       # model: the base, opened by from_pretrained

A Coconut file has keys `base_causallm.*` and a copy `embedding.weight`; a CoT file has the model's
own keys. Keys are compared with those of a model with the same configuration on the "meta" device,
so nothing here depends on the model family.

Shape suffixes: V rows of the vocabulary, D hidden size.
"""

from __future__ import annotations

import dataclasses
import pickle
import zipfile
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lm_eval_latentref.checkpoints.families import WRAPPER_PREFIX, Family, take_apart
from lm_eval_latentref.checkpoints.files import one_line, state_dict_files
from lm_eval_latentref.checkpoints.vocabulary import set_rows
from lm_eval_latentref.errors import LatentRefError

WRAPPER_COPY = "embedding.weight"
PARALLEL_PREFIX = "module."
LORA_ALPHA = 32.0
"""The alpha of LoRA adapters in CODI's and CoLaR's files, which do not record it."""
TRAINING_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""Names that torch.compile, FSDP and activation checkpointing insert into keys, at any depth."""


@dataclass(frozen=True)
class RawStateDict:
    """A state dict whose keys and shapes fit the base model's architecture."""

    path: str
    tensors: dict[str, Tensor]
    """The tensors by the model's own names."""

    num_rows: int
    """The number of rows of its input embedding."""

    is_coconut: bool
    """Whether it was saved from the Coconut wrapper; then it has rows for the three markers."""

    deltas: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """LoRA's matrices `A` and `B`, by the name of the weight to which they are added."""

    family: Family | None = None
    map: dict[str, Tensor] = field(default_factory=dict)
    """The map from hidden state to thought, under the names that its kind reads."""


def read_raw(path: str, config: Any, trust_remote_code: bool = False) -> RawStateDict:
    """Reads the file at `path` and checks it against the architecture of `config`.

    Raises:
        LatentRefError: the file contains objects other than tensors, or a key is missing, unknown
            or has a wrong shape. The number of vocabulary rows may differ.
    """
    tensors = _unparallel(_without_training_wrappers(path, read_tensors(path)))
    parts = take_apart(path, tensors)
    skeleton = make_skeleton(config, trust_remote_code)
    if parts is None:
        return _read_plain(path, tensors, skeleton, config)
    of_family: dict[str, Any] = {"family": parts.family, "map": parts.map, "deltas": parts.deltas}
    _check_deltas(path, parts.deltas, skeleton, config)
    if parts.deltas and not parts.tensors:  # an adapter and a map, without the base's weights
        num_rows = config.get_text_config().vocab_size
        return RawStateDict(path, {}, num_rows, False, **of_family)
    return dataclasses.replace(_read_plain(path, parts.tensors, skeleton, config), **of_family)


def _read_plain(path: str, tensors: dict[str, Tensor], skeleton: Any, config: Any) -> RawStateDict:
    """The state dict of a backbone, with or without Coconut's wrapper."""
    tensors, is_coconut = _unwrap(path, tensors)
    embedding = input_embedding_name(skeleton)
    copy_VD = tensors.pop(WRAPPER_COPY, None) if is_coconut else None
    if copy_VD is not None and not _equal(copy_VD, tensors.get(embedding)):
        raise LatentRefError(
            f"{path}: {WRAPPER_COPY} differs from {WRAPPER_PREFIX}{embedding}, although Coconut "
            "saves it as a copy; save the checkpoint again"
        )
    if embedding not in tensors:
        raise LatentRefError(_other_architecture(path, f"key {embedding!r} is missing", config))
    if tensors[embedding].ndim != 2:
        problem = f"{embedding!r} has shape {tuple(tensors[embedding].shape)}, not that of a matrix"
        raise LatentRefError(_other_architecture(path, problem, config))
    num_rows = tensors[embedding].shape[0]
    tensors = _check_keys(path, tensors, skeleton, num_rows, config)
    return RawStateDict(path, tensors, num_rows, is_coconut)


def read_tensors(path: str) -> dict[str, Tensor]:
    """The tensors in a .safetensors file, in a file of torch.save, or in shards; never runs code.

    Raises LatentRefError if the file is damaged or contains other objects.
    """
    tensors: dict[str, Tensor] = {}
    for part in state_dict_files(path):
        tensors |= _read_file(part)
    return tensors


def _read_file(path: str) -> dict[str, Tensor]:
    try:
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file

            return load_file(path)
        # Only the zip format of torch >= 1.6 can be memory-mapped.
        values = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except pickle.UnpicklingError as error:
        raise LatentRefError(
            f"{path} is not a state dict, is truncated, or contains pickled objects other than "
            "tensors, which are never loaded; save it again with torch.save(model.state_dict(), "
            "FILE)"
        ) from error
    except Exception as error:  # torch and safetensors raise many classes on damaged files
        raise LatentRefError(
            f"{path} cannot be read as a state dict ({one_line(error)}); it may be truncated: "
            "fetch or save it again"
        ) from error
    if isinstance(values, dict) and isinstance(values.get("state_dict"), dict):
        values = values["state_dict"]  # a checkpoint of Lightning, with other training state
    if not isinstance(values, dict) or not values:
        raise LatentRefError(
            f"{path} is not a state dict but {type(values).__name__}; save a state dict"
        )
    for name, value in values.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise LatentRefError(
                f"{path}: {name!r} is {type(value).__name__}, not a tensor; give a plain state "
                "dict, saved with torch.save(model.state_dict(), FILE)"
            )
    return values


def load_raw(raw: RawStateDict, model: nn.Module, lora_alpha: float = LORA_ALPHA) -> None:
    """Replaces the weights of `model` by those of `raw`, in the model's dtype and on its devices.

    The embedding gets as many rows as in the file. LoRA adapters are merged: W + alpha / r * B A.
    Raises LatentRefError if a weight of `model` is quantised or offloaded.
    """
    weights = named_tensors(model)
    names = [*raw.tensors, *raw.deltas]
    fixed = next((name for name in names if not _is_writable(weights.get(name))), None)
    if fixed is not None:
        raise LatentRefError(
            f"{raw.path}: {fixed!r} of the base model is quantised or offloaded and cannot be "
            "replaced by a raw state dict; run `latentref convert` first and load its folder"
        )
    set_rows(model, raw.num_rows)
    weights = named_tensors(model)
    with torch.no_grad():
        for name, tensor in raw.tensors.items():
            check_floating(raw.path, name, tensor.dtype, weights[name])
            weights[name].copy_(tensor)
        for name, halves in raw.deltas.items():
            delta = lora_alpha / len(halves["A"]) * (halves["B"].float() @ halves["A"].float())
            weight = raw.tensors.get(name, weights[name]).float()
            delta = delta.T if _is_transposed(model, name) else delta
            weights[name].copy_(weight + delta.to(weight.device))


def check_floating(path: str, name: str, stored: torch.dtype, weight: Tensor) -> None:
    """Raises LatentRefError if a floating-point weight is stored as integers or complex numbers.

    Args:
        stored: the dtype in the file.
        weight: the model's weight.
    """
    if weight.is_floating_point() and not stored.is_floating_point:
        raise LatentRefError(
            f"{path}: {name!r} is stored as {stored}, but the model has floating-point weights; "
            "save the checkpoint again"
        )


def check_file(path: str, model: nn.Module) -> None:
    """Calls `check_floating` for each parameter of `model` that is in the weight file `path`."""
    for name, stored in _not_floating(path).items():
        for other, weight in model.named_parameters():
            # Either name may have an additional prefix, that of the base model.
            if f".{other}".endswith(f".{name}") or f".{name}".endswith(f".{other}"):
                check_floating(path, name, stored, weight)


def _not_floating(path: str) -> dict[str, torch.dtype]:
    """The dtypes of the tensors in a file that are not floating-point, by name."""
    if not path.endswith(".safetensors"):
        tensors = torch.load(path, map_location="meta", weights_only=True)
        return {n: t.dtype for n, t in tensors.items() if not t.is_floating_point()}
    with safe_open(path, "pt") as file:
        names = [n for n in file.keys() if "F" not in file.get_slice(n).get_dtype()]  # noqa: SIM118
        return {name: file.get_tensor(name).dtype for name in names}


def make_skeleton(config: Any, trust_remote_code: bool = False) -> Any:
    """The model of `config` on the "meta" device: with names and shapes, but without weights."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)


def input_embedding_name(model: Any) -> str:
    """The name of the input embedding's weight in the state dict of `model`."""
    embedding = model.get_input_embeddings()
    (name,) = [name for name, module in model.named_modules() if module is embedding]
    return f"{name}.weight"


def tied_names(model: nn.Module) -> list[set[str]]:
    """The names of each parameter that has several, such as embedding and tied output layer."""
    groups: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), set()).add(name)
    return [group for group in groups.values() if len(group) > 1]


def _unparallel(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    if not all(name.startswith(PARALLEL_PREFIX) for name in tensors):
        return tensors
    return {name.removeprefix(PARALLEL_PREFIX): tensors[name] for name in tensors}


def _is_transposed(model: Any, weight_name: str) -> bool:
    """Whether the weight of this linear layer is stored as [in, out], as in GPT-2."""
    return isinstance(model.get_submodule(weight_name.rsplit(".", 1)[0]), Conv1D)


def _check_deltas(
    path: str, deltas: dict[str, dict[str, Tensor]], skeleton: Any, config: Any
) -> None:
    """Raises LatentRefError if the model lacks an adapted weight or its shape does not fit."""
    shapes = {name: tuple(tensor.shape) for name, tensor in skeleton.state_dict().items()}
    for name, halves in deltas.items():
        if name not in shapes:
            problem = f"its adapter changes {name!r}, which the model lacks"
            raise LatentRefError(_other_architecture(path, problem, config))
        shape = (*halves["B"].shape[:1], *halves["A"].shape[1:])
        expected = shapes[name][::-1] if _is_transposed(skeleton, name) else shapes[name]
        if shape != expected or halves["B"].shape[1:] != halves["A"].shape[:1]:
            problem = f"its adapter of {name!r} has shape {shape}, not {expected}"
            raise LatentRefError(_other_architecture(path, problem, config))


def _unwrap(path: str, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], bool]:
    """The tensors by the model's own names, and whether they were saved from Coconut's wrapper."""
    is_coconut = any(name.startswith(WRAPPER_PREFIX) for name in tensors)
    if not is_coconut:
        return dict(tensors), False
    for name in tensors:
        if not name.startswith(WRAPPER_PREFIX) and name != WRAPPER_COPY:
            raise LatentRefError(
                f"{path}: unknown key {name!r} besides {WRAPPER_PREFIX}* and {WRAPPER_COPY}; "
                "give a state dict saved by facebookresearch/coconut"
            )
    return {name.removeprefix(WRAPPER_PREFIX): tensors[name] for name in tensors}, True


def training_wrapper(key: str) -> str | None:
    """The name that a training wrapper has inserted into `key`; None if there is none."""
    return next((wrapper for wrapper in TRAINING_WRAPPERS if wrapper in key), None)


def _without_training_wrappers(path: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, with the names that training wrappers inserted removed from their keys."""
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        short = name
        while wrapper := training_wrapper(short):
            short = short.replace(wrapper, "")
        if short in plain:
            raise LatentRefError(
                f"{path} has {short!r} twice, with and without {' or '.join(TRAINING_WRAPPERS)}; "
                "save the state dict of the unwrapped model"
            )
        plain[short] = tensor
    return plain


def _check_keys(
    path: str, tensors: dict[str, Tensor], skeleton: Any, num_rows: int, config: Any
) -> dict[str, Tensor]:
    """The tensors to load: one of each tied group, and none that the model computes itself."""
    expected = _expected_shapes(skeleton, num_rows)
    for name in sorted(tensors.keys() - expected.keys()):
        if not _is_derived(name, tensors[name], config):
            raise LatentRefError(_other_architecture(path, f"unknown key {name!r}", config))
    known = {name: tensor for name, tensor in tensors.items() if name in expected}
    for group in tied_names(skeleton):
        present = sorted(group & known.keys())
        for other in present[1:]:
            if not _equal(known[other], known[present[0]]):
                raise LatentRefError(
                    f"{path}: {other!r} differs from {present[0]!r}, which the architecture ties; "
                    "give the base model with tie_word_embeddings=false as pretrained="
                )
            del known[other]
        for name in group - set(present[:1]) if present else ():
            expected.pop(name, None)
    for name, shape in expected.items():
        if name not in known:
            raise LatentRefError(_other_architecture(path, f"key {name!r} is missing", config))
        if tuple(known[name].shape) != shape:
            problem = f"{name!r} has shape {tuple(known[name].shape)}, not {shape}"
            raise LatentRefError(_other_architecture(path, problem, config))
    return known


def _expected_shapes(skeleton: Any, num_rows: int) -> dict[str, tuple[int, ...]]:
    """The expected shape of each key, with a vocabulary of `num_rows` rows."""
    shapes = {name: tuple(tensor.shape) for name, tensor in skeleton.state_dict().items()}
    layers = (skeleton.get_input_embeddings(), skeleton.get_output_embeddings())
    for name, module in skeleton.named_modules(remove_duplicate=False):
        if any(module is layer for layer in layers):
            for parameter, _ in module.named_parameters():
                key = f"{name}.{parameter}"
                shapes[key] = (num_rows, *shapes[key][1:])
    return shapes


def _is_derived(name: str, tensor: Tensor, config: Any) -> bool:
    """Whether an unknown key holds exactly the values that the model computes itself.

    Older releases of transformers saved causal masks (`attn.bias`), the value of masked scores
    (`masked_bias`) and rotary frequencies (`rotary_emb.inv_freq`).
    """
    last = name.rsplit(".", 1)[-1]
    if last == "masked_bias":
        return tensor.ndim == 0
    if last == "bias" and tensor.ndim == 4 and tensor.dtype in (torch.bool, torch.uint8):
        return bool((tensor.bool() == torch.ones_like(tensor, dtype=torch.bool).tril()).all())
    if last == "inv_freq" and tensor.ndim == 1:
        return _fits_rotary(tensor, config)
    return False


def _fits_rotary(frequencies: Tensor, config: Any) -> bool:
    """Whether `frequencies` are those of the plain rotary embedding of `config`."""
    parameters = getattr(config, "rope_parameters", None) or {}
    theta = parameters.get("rope_theta")
    if theta is None or parameters.get("rope_type", "default") != "default":
        return False
    exponents = torch.arange(len(frequencies), dtype=torch.float32) / len(frequencies)
    return torch.allclose(frequencies.float(), float(theta) ** -exponents, rtol=1e-2)


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of `model`, each under all of its names."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return {**parameters, **dict(model.named_buffers(remove_duplicate=False))}


def _is_writable(tensor: Tensor | None) -> bool:
    packed = (torch.uint8, torch.int8)
    return tensor is not None and tensor.device.type != "meta" and tensor.dtype not in packed


def _equal(first: Tensor | None, second: Tensor | None) -> bool:
    return first is not None and second is not None and torch.equal(first, second)


def _other_architecture(path: str, problem: str, config: Any) -> str:
    return (
        f"{path} does not fit the base model's architecture ({type(config).__name__}): {problem}; "
        "give the model it was trained from as pretrained="
    )
