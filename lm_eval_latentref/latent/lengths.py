"""Length limits: beyond them a model cannot read, or its results depend on the rest of the batch.

    check_length(model.config, max_length=8192, name="microsoft/Phi-3-mini-128k-instruct")
    check_table(model, max_length=8192, name="gpt2")

`probe` reads too few tokens to detect such limits, so they are taken from the model's
configuration. Up to the limit, results are correct at any batch size. Beyond it, reading columns in
several steps and reading them at once may give different results.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import PreTrainedModel

from lm_eval_latentref.errors import LatentRefError

if TYPE_CHECKING:
    from peft import PeftModel

_CHOOSES_COLUMNS = ("index_topk", "keep_window_size")
"""Configuration fields with the number of highest-scoring columns that sparse attention keeps."""

_CHANGING_ROPES = ("dynamic", "longrope")
"""RoPE types whose frequencies depend on the longest row of a batch."""


def check_length(config: Any, max_length: int | None, name: str) -> None:
    """Raise LatentRefError if rows may be longer than a limit in the model's configuration.

    Args:
        config: the model's configuration.
        max_length: the maximum number of columns of a row; None if unknown.
        name: the model's name, for the message.
    """
    config = config.get_text_config()
    for limit, reason in (*_of_attention(config), *_of_positions(config)):
        if max_length is None or max_length > limit:
            raise LatentRefError(
                f"{name} ({config.model_type}) with max_length={max_length}: {reason}; give "
                f"max_length={limit} or less, or a model that reads every length alike"
            )


def check_table(model: PreTrainedModel | PeftModel, max_length: int | None, name: str) -> None:
    """Raise LatentRefError if rows may be longer than the model's learned position embedding.

    A position embedding is an embedding, other than that of the vocabulary, with one row per
    position and at most two rows more (OPT's offset). The arguments are those of `check_length`.
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
                f"beyond {field}={limit} columns it attends only to the highest-scoring columns, "
                "which depend on padding",
            )
    scale = getattr(config, "floor_scale", None)
    if scale and getattr(config, "attn_temperature_tuning", False):
        # A row is padded on the left to the longest context, on the right to the longest choice.
        yield (
            int(scale - 1) // 2,
            f"from column floor_scale={scale:g} on it scales attention by the column's number, in "
            "which padding counts, and padding can double a row's length",
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
