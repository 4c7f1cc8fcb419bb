"""Checks model arguments for misspellings of ours, and reports others' errors in one line.

    check_known({"latent_step": 6}, config)     # LatentRefError: ... did you mean latent_steps?

HFLM passes every argument it does not know to `from_pretrained`, which passes it to the model; the
model refuses unknown ones. Only arguments whose names are close to ours are refused here, before
anything is loaded.
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

_MEANT = dict.fromkeys(("model", "model_name", "model_path", "path"), "pretrained")
"""Names that other tools use for our arguments."""

_INSTEAD = dict.fromkeys(
    ("load_in_4bit", "load_in_8bit"),
    "is no argument of from_pretrained since transformers 5; give a checkpoint that was saved "
    "quantised, or, to `load` in Python, quantization_config=BitsAndBytesConfig(...)",
)
"""Advice for arguments that were removed but are still often given."""

_OF_OTHERS = (
    *(OSError, ValueError, TypeError, KeyError, AttributeError, ImportError, ArithmeticError),
    StrictDataclassError,
)
"""What transformers and PEFT raise on files and arguments that they cannot use."""

_NEAR = 0.82
"""Names with at least this ratio of equal letters, by difflib, count as misspellings."""


def check_known(names: Iterable[str], config: Any, *, also: Iterable[str] = ()) -> None:
    """Raise LatentRefError on a name that is close to one of ours.

    Args:
        config: the backbone's; `from_pretrained` takes each of its fields as an argument.
        also: further names that the caller accepts, such as HFLM's.
    """
    from transformers import PreTrainedModel

    loading = inspect.signature(PreTrainedModel.from_pretrained).parameters
    known = {*OWN_NAMES, *also, *loading, *config.to_dict()}
    for name in names:
        if name in _INSTEAD and name not in known:
            raise LatentRefError(f"{name}= {_INSTEAD[name]}")
        near = difflib.get_close_matches(name, OWN_NAMES, n=1, cutoff=_NEAR)
        meant = _MEANT.get(name) or (near[0] if near else None)
        if name not in known and meant is not None:
            raise LatentRefError(f"{name}= is no argument of latentref; did you mean {meant}?")


def check_device(device: Any) -> None:
    """Raise LatentRefError unless `device` is one of this machine."""
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
        there = f"{num} of {accelerator.type}" if accelerator else "no accelerator"
        raise LatentRefError(f"device={device}: there is {there} on this machine; give device=cpu")


def check_batch_size(batch_size: Any) -> None:
    """Raise LatentRefError unless HFLM understands `batch_size`."""
    number = str(batch_size)
    if not number.startswith("auto") and not (number.isdigit() and int(number) > 0):
        raise LatentRefError(
            f"batch_size={batch_size}: it must be an integer >= 1, auto or auto:N; "
            "it is the most rows in one forward pass"
        )


@contextmanager
def one_line_errors(name: str) -> Iterator[None]:
    """Turn other packages' errors while `name` is loaded into a LatentRefError, with its cause."""
    try:
        yield
    except LatentRefError:
        raise
    except _OF_OTHERS as error:
        line = " ".join(str(error).split())
        raise LatentRefError(f"pretrained={name} cannot be loaded: {line[:300]}") from error
