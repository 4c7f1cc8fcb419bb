"""Lengths beyond which a model cannot read, or its results depend on other rows of the batch.

    check_length(model.config, max_length=8192, name="microsoft/Phi-3-mini-128k-instruct")
    check_table(model, max_length=8192, name="gpt2")

The few tokens of `probe` cannot show this, so the limits come from the model's configuration. Up to
the limit every result is right at any batch size; beyond it, reading columns in several steps and
reading them at once give different results.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from lm_eval_latentref.errors import LatentRefError

_CHOOSES_COLUMNS = ("index_topk", "keep_window_size")
"""Fields that say how many columns sparse attention keeps: the highest-scoring ones."""

_CHANGING_ROPES = ("dynamic", "longrope")
"""Kinds of RoPE whose frequencies depend on the longest row of a batch."""


def check_length(config: Any, max_length: int | None, name: str) -> None:
    """Raise LatentRefError if rows of the model `name` may be longer than its limit.

    Args:
        config: the model's configuration.
        max_length: the most columns of a row; None if unknown.
    """
    config = config.get_text_config()
    for limit, reason in (*_of_attention(config), *_of_positions(config)):
        if max_length is None or max_length > limit:
            raise LatentRefError(
                f"{name} ({config.model_type}) with max_length={max_length}: {reason}; give "
                f"max_length={limit} or less, or a model that reads every length alike"
            )


def check_table(model: PreTrainedModel | PeftModel, max_length: int | None, name: str) -> None:
    """Raise LatentRefError if rows may be longer than a table of positions that `model` learned.

    An embedding with a row for each position, at most two more (OPT's offset), is such a table; the
    vocabulary's is none.
    """
    config = model.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    if not limit or max_length is None or max_length <= limit:
        return
    sizes = {part.num_embeddings for part in model.modules() if isinstance(part, nn.Embedding)}
    if not (sizes - {config.vocab_size}).isdisjoint(range(limit, limit + 3)):
        raise LatentRefError(
            f"max_length={max_length}: {name} ({config.model_type}) has learned {limit} positions; "
            f"give max_length={limit} or less"
        )


def _of_attention(config: Any) -> Iterator[tuple[int, str]]:
    for field in _CHOOSES_COLUMNS:
        if limit := getattr(config, field, None):
            yield (
                limit,
                f"beyond {field}={limit} columns it attends to those that score highest, which "
                "depend on padding",
            )
    scale = getattr(config, "floor_scale", None)
    if scale and getattr(config, "attn_temperature_tuning", False):
        # A row is padded on its left to the longest context, on its right to the longest choice.
        yield (
            int(scale - 1) // 2,
            f"from floor_scale={scale:g} columns on, padding included, it scales attention by the "
            "number of a column, and padding can double a row",
        )


def _of_positions(config: Any) -> Iterator[tuple[int, str]]:
    longest = getattr(config, "max_position_embeddings", None)
    for rope in _ropes(config):
        kind = rope.get("rope_type", rope.get("type"))
        limit = longest
        if kind == "longrope":
            field = "original_max_position_embeddings"
            limit = rope.get(field) or getattr(config, field, None) or longest
        if kind in _CHANGING_ROPES and limit:
            yield (
                limit,
                f"beyond {limit} positions its RoPE ({kind}) changes with the longest row of a "
                "batch",
            )


def _ropes(config: Any) -> Iterator[Mapping[str, Any]]:
    # A configuration has either one RoPE for all layers or one for each kind of layer.
    for field in ("rope_parameters", "rope_scaling"):
        parameters = getattr(config, field, None)
        if isinstance(parameters, Mapping):
            yield parameters
            yield from (value for value in parameters.values() if isinstance(value, Mapping))
