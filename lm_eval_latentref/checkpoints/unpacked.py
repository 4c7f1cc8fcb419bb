"""Unpacks GGUF files once into a cache folder, from which transformers loads them faster.

    name, where = unpacked.header("models/q4", {"gguf_file": "model.gguf"})
    config = AutoConfig.from_pretrained(name, **where)       # the same for AutoTokenizer
    name, kwargs = unpacked.weights("models/q4", {"gguf_file": "model.gguf", "dtype": "bfloat16"})
    model = AutoModelForCausalLM.from_pretrained(name, **kwargs)

transformers takes seconds to parse a GGUF file, and parses it at every call. A cache entry is
identified by the file's sha256 and the versions of gguf and transformers. There is an entry for
each dtype, with the weights that transformers reads from the file in that dtype, so nothing is
rounded twice. A file is parsed at every call, without a cache entry, if it cannot be unpacked or if
the entry differs when it is read back. Because an entry's weights are known, its model is checked
once for each configuration, machine and version of the code (`check_once`).
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import logging
import os
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from huggingface_hub import constants
from safetensors import SafetensorError

from lm_eval_latentref import latent
from lm_eval_latentref.checkpoints.files import file_digest, one_line, read_json
from lm_eval_latentref.checkpoints.sources import Folder
from lm_eval_latentref.checkpoints.state_dicts import make_skeleton
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.transformers_seams import attention_of

logger = logging.getLogger(__name__)

WRITTEN = "written.json"
"""The file that lists an entry's files with their sizes and modification times, to detect changes.
"""

_LOCATION = ("revision", "subfolder", "gguf_file")

_refused: set[Path] = set()
"""Entries that could not be written; each is reported once per process and not tried again."""


class _Differs(Exception):
    """An entry, read back, differs from the parsed file."""


def header(name: str, where: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Arguments for AutoConfig and AutoTokenizer that replace `name` and `where`."""
    return _unpacked(name, where, "header", _write_header)


def weights(name: str, kwargs: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Arguments for AutoModelForCausalLM that replace `name` and `kwargs`.

    They are returned unchanged if weights stay quantised or if each module has its own dtype.
    """
    dtype = kwargs.get("dtype") or "auto"
    if kwargs.get("quantization_config") is not None or isinstance(dtype, dict):
        return name, kwargs
    dtype = str(dtype).removeprefix("torch.")
    return _unpacked(name, kwargs, dtype, lambda at, folder: _write_weights(at, dtype, folder))


def cache_folder() -> Path:
    """The folder of all entries. It lies beside the hub's cache, so `HF_HOME` moves both."""
    return Path(constants.HF_HOME) / "latentref" / "gguf"


def check_once(model: Any, check: Callable[[], None]) -> None:
    """Calls `check()`, unless it has passed before on this model in the same circumstances.

    Models that do not come from an entry are always checked. A check that has passed leaves an
    empty file beside the entry.
    """
    entry = Path(model.name_or_path)
    if cache_folder() not in entry.parents:
        check()
        return
    passed = entry.with_name(f".{entry.name}.{_circumstances(model)}.passed")
    if not passed.exists():
        check()
        with contextlib.suppress(OSError):
            passed.touch()


def _circumstances(model: Any) -> str:
    """A digest of all that a check may depend on, besides the weights."""
    places = getattr(model, "hf_device_map", None) or model.device
    machine = [torch.backends.cpu.get_cpu_capability(), *_names_of_gpus()]
    facts = [model.config.to_json_string(use_diff=False), attention_of(model), model.dtype]
    digest = hashlib.sha256(repr([*facts, places, machine, torch.__version__]).encode())
    for file in (
        Path(inspect.getfile(type(model))),
        *sorted(Path(latent.__file__).parent.rglob("*.py")),
    ):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _names_of_gpus() -> list[str]:
    return [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]


def _unpacked(
    name: str, kwargs: dict[str, Any], part: str, write: Callable[[dict[str, Any], Path], None]
) -> tuple[str, dict[str, Any]]:
    """The entry folder of `part`, and `kwargs` without the arguments that locate the GGUF file.

    `write(location, folder)` fills the folder if it does not exist. Without a GGUF file, or if the
    entry cannot be written, `name` and `kwargs` are returned unchanged.
    """
    at = {key: kwargs[key] for key in _LOCATION if kwargs.get(key)}
    if "gguf_file" not in at:
        return name, kwargs
    folder = Folder(name, at.get("revision"), at.get("subfolder", ""))
    if (path := folder.find(at["gguf_file"])) is None:
        return name, kwargs
    entry = cache_folder() / _key(path) / part
    try:
        if entry not in _refused:
            _ensure(entry, lambda target: write({"name": name, **at}, target), at["gguf_file"])
    except (OSError, SafetensorError, _Differs) as error:
        _refused.add(entry)
        logger.warning(
            "%s is parsed at every start, because %s cannot be written (%s)",
            at["gguf_file"],
            entry,
            one_line(error),
        )
    if entry in _refused:
        return name, kwargs
    return str(entry), {key: value for key, value in kwargs.items() if key not in _LOCATION}


def _key(path: str) -> str:
    return f"{file_digest(path)}-gguf{version('gguf')}-transformers{version('transformers')}"


def _ensure(entry: Path, write: Callable[[Path], None], label: str) -> None:
    """Writes `entry` unless it is complete; other processes wait for it."""
    if _is_complete(entry):
        return
    entry.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(entry.with_name(f".{entry.name}.lock")):
        if _is_complete(entry):
            return
        temporary = entry.with_name(f".{entry.name}.tmp")
        for broken in (temporary, entry):  # left by a killed process, or damaged
            if broken.exists():
                shutil.rmtree(broken)
        logger.info("unpacking %s, once, to %s", label, entry)
        try:
            temporary.mkdir()
            write(temporary)
            _write_list(temporary)
            os.replace(temporary, entry)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _is_complete(entry: Path) -> bool:
    try:
        listed = read_json(entry / WRITTEN)
    except LatentRefError:
        return False
    return bool(listed == _facts(entry))


def _write_list(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    (folder / WRITTEN).write_text(json.dumps(_facts(folder)), encoding="utf-8")


def _facts(folder: Path) -> dict[str, list[int]]:
    """Size in bytes and modification time in nanoseconds of each file in `folder`."""
    stats = {path.name: path.stat() for path in folder.iterdir() if path.name != WRITTEN}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}


def _write_header(at: dict[str, Any], folder: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer

    name, where = at["name"], {key: at[key] for key in _LOCATION if key in at}
    config = AutoConfig.from_pretrained(name, **where)
    tokenizer = AutoTokenizer.from_pretrained(name, **where)
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    own = {"_name_or_path": None, "transformers_version": None}
    if config.to_dict() | own != AutoConfig.from_pretrained(folder).to_dict() | own:
        raise _Differs("its configuration differs when read back")
    if tokenizer_facts(tokenizer) != tokenizer_facts(AutoTokenizer.from_pretrained(folder)):
        raise _Differs("its tokenizer differs when read back")


def tokenizer_facts(tokenizer: Any) -> dict[str, Any]:
    """Everything that determines how the tokenizer encodes and decodes."""
    return {
        "class": type(tokenizer).__name__,
        "backend": tokenizer.backend_tokenizer.to_str(),
        "special tokens": tokenizer.special_tokens_map,
        "added tokens": {i: repr(token) for i, token in tokenizer.added_tokens_decoder.items()},
        "chat template": tokenizer.chat_template,
        "length": tokenizer.model_max_length,
        "sides": (tokenizer.padding_side, tokenizer.truncation_side),
        "cleans up": tokenizer.clean_up_tokenization_spaces,
    }


def _write_weights(at: dict[str, Any], dtype: str, folder: Path) -> None:
    """Saves the model that transformers reads from the file; checks that it loads back equal."""
    from transformers import AutoModelForCausalLM

    where = {key: at[key] for key in _LOCATION if key in at}
    model = AutoModelForCausalLM.from_pretrained(at["name"], **where, dtype=dtype, **_dense())
    as_plain_model(model).save_pretrained(folder)
    again = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    expected, actual = model.state_dict(), again.state_dict()
    same = expected.keys() == actual.keys() and all(
        actual[name].dtype == tensor.dtype and torch.equal(actual[name], tensor)
        for name, tensor in expected.items()
    )
    if not same:
        raise _Differs("its weights differ when read back")


def _dense() -> dict[str, Any]:
    """Arguments that dequantise weights; empty if this version of transformers always does so."""
    import transformers

    if not hasattr(transformers, "GgufConfig"):
        return {}
    return {"quantization_config": transformers.GgufConfig(dequantize=True)}


def as_plain_model(model: Any) -> Any:
    """A copy of `model`, loaded from GGUF, that can be saved; parameters are shared."""
    config = type(model.config).from_dict(model.config.to_dict())
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = make_skeleton(config)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    return plain
