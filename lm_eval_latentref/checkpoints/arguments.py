"""Which model arguments exist: ours, HFLM's, and those of transformers' `from_pretrained`.

    check_known({"latent_step": 6}, config)     # LatentRefError: ... did you mean latent_steps?

HFLM hands every argument it does not know to `from_pretrained`, so an argument is a mistake only
when none of the three knows it. What others refuse is told in one line as well.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedModel

from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.config import OPTION_NAMES

OWN_NAMES = ("strong", "weak", "weights", *OPTION_NAMES)

_MEANT = dict.fromkeys(("model", "model_name", "model_path", "path"), "pretrained")
"""What other tools call our arguments."""

FROM_PRETRAINED_NAMES = (
    # Taken out of **kwargs inside from_pretrained, so its signature does not show them.
    *("adapter_kwargs", "attn_implementation", "bnb_4bit_compute_dtype", "code_revision"),
    *("commit_hash", "device_map", "device_mesh", "distributed_config", "dtype"),
    *("experts_implementation", "generation_config", "key_mapping"),
    *("low_cpu_mem_usage", "max_memory", "offload_buffers", "offload_folder"),
    *("offload_state_dict", "proxies", "quantization_config", "state_dict", "torch_dtype"),
    *("tp_plan", "tp_size", "use_kernels", "variant", "weights_only"),
)


def check_known(names: Iterable[str], config: Any, *, also: Iterable[str] = ()) -> None:
    """Raise LatentRefError on a name nobody knows, with the nearest known one.

    Args:
        config: the backbone's; `from_pretrained` takes each of its fields as an argument.
        also: names that the caller takes beside ours, such as HFLM's.
    """
    loading = set(inspect.signature(PreTrainedModel.from_pretrained).parameters)
    visible = {*OWN_NAMES, *also, *loading, *FROM_PRETRAINED_NAMES}
    known = visible | set(config.to_dict())
    for name in names:
        if name in known:
            continue
        meant = [_MEANT[name]] if name in _MEANT else []
        nearest = meant or difflib.get_close_matches(name, sorted(visible), n=1, cutoff=0.5)
        advice = f"did you mean {nearest[0]}?" if nearest else f"ours are {', '.join(OWN_NAMES)}"
        raise LatentRefError(
            f"{name}= is no argument of latentref, nor of what it hands arguments on to "
            f"(--model hf, from_pretrained); {advice}"
        )


def check_batch_size(batch_size: Any) -> None:
    """Raise LatentRefError unless `batch_size` is one that HFLM understands."""
    number = str(batch_size)
    if not number.startswith("auto") and not (number.isdigit() and int(number) > 0):
        raise LatentRefError(
            f"batch_size={batch_size}: it must be an integer >= 1, auto or auto:N; "
            "it is the most rows in one forward pass"
        )


@contextmanager
def one_line_errors(name: str) -> Iterator[None]:
    """What others raise while `name` is loaded becomes one line; the cause stays attached."""
    try:
        yield
    except LatentRefError:
        raise
    except (OSError, ValueError, TypeError, AttributeError, ImportError) as error:
        line = " ".join(str(error).split())
        raise LatentRefError(f"pretrained={name} cannot be loaded: {line[:300]}") from error
