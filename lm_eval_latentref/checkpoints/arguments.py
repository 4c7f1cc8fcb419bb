"""Checks model arguments for misspelt names and impossible values, before anything is loaded.

    check_known({"latent_step": 6}, config)     # LatentRefError: ... did you mean latent_steps?

Only names that are close to an argument of this package are errors here. HFLM passes all other
unknown arguments to `from_pretrained`, which passes them to the model, which refuses them.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from lm_eval_latentref.checkpoints.sets import NAMES
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.config import OPTION_NAMES

OWN_NAMES = (*NAMES, *OPTION_NAMES)

_ALIASES = dict.fromkeys(("model", "model_name", "model_path", "path"), "pretrained")
"""Names that other tools use for our arguments, and our names."""

_REMOVED = dict.fromkeys(
    ("load_in_4bit", "load_in_8bit"),
    "is not an argument of from_pretrained since transformers 5; give a checkpoint that was saved "
    "quantised, or, to `load` in Python, quantization_config=BitsAndBytesConfig(...)",
)
"""Advice for arguments that were removed but are still often given."""

_FOREIGN_ERRORS = (
    *(OSError, ValueError, TypeError, KeyError, AttributeError, ImportError, ArithmeticError),
    StrictDataclassError,
)
"""The exceptions that transformers and PEFT raise on files and arguments that they cannot use."""

_SIMILARITY = 0.82
"""Names with at least this similarity, by difflib, count as misspellings."""


def check_known(names: Iterable[str], config: Any, *, also: Iterable[str] = ()) -> None:
    """Raise LatentRefError on an unknown name that is close to an argument of this package.

    Args:
        config: the backbone's configuration; `from_pretrained` takes its fields as arguments.
        also: further names that the caller accepts, such as HFLM's arguments.
    """
    from transformers import PreTrainedModel

    loading = inspect.signature(PreTrainedModel.from_pretrained).parameters
    known = {*OWN_NAMES, *also, *loading, *config.to_dict()}
    for name in names:
        if name in _REMOVED and name not in known:
            raise LatentRefError(f"{name}= {_REMOVED[name]}")
        near = difflib.get_close_matches(name, OWN_NAMES, n=1, cutoff=_SIMILARITY)
        intended = _ALIASES.get(name) or (near[0] if near else None)
        if name not in known and intended is not None:
            raise LatentRefError(
                f"{name}= is not an argument of latentref; did you mean {intended}?"
            )


def check_device(device: Any) -> None:
    """Raise LatentRefError unless this machine has `device`."""
    import torch

    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise LatentRefError(
            f"device={device}: no such kind of device; give cpu, cuda, cuda:N or mps"
        ) from error
    if wanted.type in ("cpu", "meta"):
        return
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    num = torch.accelerator.device_count() if accelerator else 0
    if accelerator is None or wanted.type != accelerator.type or (wanted.index or 0) >= num:
        present = f"{num} device(s) of type {accelerator.type}" if accelerator else "no accelerator"
        raise LatentRefError(f"device={device}: this machine has {present}; give device=cpu")


def check_batch_size(batch_size: Any) -> None:
    """Raise LatentRefError unless HFLM understands `batch_size`."""
    number = str(batch_size)
    if not number.startswith("auto") and not (number.isdigit() and int(number) > 0):
        raise LatentRefError(
            f"batch_size={batch_size}: it must be an integer >= 1, auto or auto:N; "
            "it is the maximum number of rows in a forward"
        )


@contextmanager
def one_line_errors(name: str) -> Iterator[None]:
    """Turn other packages' errors while `name` is loaded into LatentRefErrors of one line."""
    try:
        yield
    except LatentRefError:
        raise
    except _FOREIGN_ERRORS as error:
        line = " ".join(str(error).split())
        raise LatentRefError(f"pretrained={name} cannot be loaded: {line[:300]}") from error
