"""Tries generation options on a tiny model, because `generate` checks values only when it runs.

try_options({"do_sample": True, "temperature": -1.0})       # LatentRefError: ... strictly positive
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from lm_eval.models.utils import normalize_gen_kwargs
from transformers import GPT2Config, GPT2LMHeadModel

from lm_eval_latentref.checkpoints.files import one_line
from lm_eval_latentref.errors import LatentRefError

_NUM_IDS = 2**18
"""More ids than any tokenizer has, so that options with token ids can be tried."""


def try_options(options: Mapping[str, Any]) -> None:
    """Raise LatentRefError if lm-eval or transformers refuses a value in `options`.

    Args:
        options: generation arguments, as in lm-eval's tasks and `--gen_kwargs`.
    """
    try:
        kwargs = dict(normalize_gen_kwargs(dict(options)))
        until, num_new = kwargs.pop("until"), kwargs.pop("max_gen_toks")
        if not all(isinstance(text, str) for text in until):
            raise TypeError(f"until={until} must be a list of texts")
        if num_new < 1:
            raise ValueError(f"the number of new tokens, {num_new}, must be 1 or more")
        ids_BC = torch.zeros(1, 2, dtype=torch.int64)
        _tiny_model().generate(ids_BC, **{**kwargs, "max_new_tokens": 1})
    # Other exceptions are not about values; the tiny model may cause them.
    except (ValueError, TypeError) as error:
        given = ", ".join(f"{name}={value}" for name, value in options.items())
        raise LatentRefError(
            f"--gen_kwargs: {given} cannot be used ({one_line(error)}); correct it or leave it out"
        ) from error


@cache
def _tiny_model() -> GPT2LMHeadModel:
    config = GPT2Config(vocab_size=_NUM_IDS, n_positions=8, n_embd=2, n_layer=1, n_head=1)
    return GPT2LMHeadModel(config).eval()
