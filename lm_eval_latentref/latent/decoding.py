"""Checks decoding options: after thoughts only greedy decoding and plain sampling work.

    check_decoding(model.generation_config, {"num_beams": 4}, thinks=True)      # LatentRefError

An argument of transformers' `GenerationConfig` that is not listed here, such as one added in a
later release, is refused unless it has no effect.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from transformers import GenerationConfig, GenerationMixin

from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.transformers_seams import generation_default

ALLOWED = frozenset(
    # First the arguments that change the logits of the next token, then the arguments that have no
    # effect unless a refused argument switches their mode on.
    {
        "do_sample",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "top_h",
        "typical_p",
        "epsilon_cutoff",
        "eta_cutoff",
        "repetition_penalty",
        "renormalize_logits",
        "bad_words_ids",
        "sequence_bias",
        "suppress_tokens",
        "begin_suppress_tokens",
        "remove_invalid_values",
        "exponential_decay_length_penalty",
        "forced_eos_token_id",
        "min_new_tokens",
        "eos_token_id",
        "bos_token_id",
        "early_stopping",
        "length_penalty",
        "is_assistant",
        "num_assistant_tokens",
        "num_assistant_tokens_schedule",
        "assistant_confidence_threshold",
        "max_matching_ngram_size",
        "assistant_lookbehind",
        "target_lookbehind",
        "disable_compile",
    }
)
"""Arguments that are allowed after thoughts, in a call and in the model's generation config."""

REPLACED = frozenset(
    {
        "max_length",
        "max_new_tokens",
        "pad_token_id",
        "use_cache",
        "cache_implementation",
        "cache_config",
        "max_cache_len",
        "transformers_version",
        "_from_model_config",
    }
)
"""Arguments that are also allowed in the model's generation config, because every call overrides
them or passes its own cache."""

_ADVICE = {
    "max_length": "give max_gen_toks, which counts the tokens of the text",
    "min_length": "give min_new_tokens, which counts the tokens of the text",
    "stop_strings": "give until",
    "num_beams": "use greedy decoding (num_beams=1) or sampling (do_sample=True)",
}


def check_decoding(
    own: GenerationConfig, given: Mapping[str, Any] | None = None, *, thinks: bool
) -> None:
    """Raise LatentRefError unless text can be generated with these options.

    Args:
        own: the model's generation config, which supplies the arguments that are not given.
        given: the arguments of this call; each must be an argument of `generate`.
        thinks: whether thoughts or markers precede the text; without them all modes are allowed.
    """
    given = given or {}
    check_names(given)
    if not thinks:
        return
    for name, value in given.items():
        if name not in ALLOWED and not _is_off(name, value):
            raise LatentRefError(_refusal(name, value))
    for name in vars(GenerationConfig()).keys() - ALLOWED - REPLACED - given.keys():
        if not _is_off(name, value := getattr(own, name)):
            raise LatentRefError(_refusal(name, value, " (the model's generation config)"))


def check_names(names: Iterable[str], *, also: Iterable[str] = ()) -> None:
    """Raise LatentRefError on a name that is no argument of `generate`; suggest the nearest."""
    own = inspect.signature(GenerationMixin.generate).parameters.keys() - {"self", "kwargs"}
    known = {*own, *vars(GenerationConfig()), *also}
    for name in names:
        if name not in known:
            nearest = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
            advice = f"did you mean {nearest[0]}?" if nearest else "leave it out"
            raise LatentRefError(f"{name}= is not an argument of generation; {advice}")


def _is_off(name: str, value: Any) -> bool:
    return value is None or value is False or value == generation_default(name)


def _refusal(name: str, value: Any, origin: str = "") -> str:
    advice = _ADVICE.get(name, f"leave it out (or give {name}=None)")
    return (
        f"{name}={value}{origin} is not possible after latent thoughts or markers, which allow "
        f"greedy decoding and plain sampling; {advice}"
    )
