"""Prepares the inputs with which transformers' `generate` continues after thoughts.

    inputs = inputs_after(contexts, thoughts, backbone, markers)

Shape suffixes: B batch, K columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lm_eval_latentref.latent import transformers_seams as seams
from lm_eval_latentref.latent.batching import Tokens
from lm_eval_latentref.latent.contexts import Context, Markers
from lm_eval_latentref.latent.networks import Network
from lm_eval_latentref.latent.thoughtful import Thoughts


def inputs_after(
    contexts: Sequence[Tokens], thoughts: Thoughts, backbone: Network, markers: Markers | None
) -> dict[str, Any]:
    """Arguments with which transformers' `generate` continues after `thoughts` on `contexts`.

    `input_ids` (B, K) has an id for every column, because logits processors read them: the
    context's last token stands in for each thought, and its first token for padding. So they see
    only tokens of the context and the markers.
    """
    backbone.activate()
    if thoughts.pending_mask_BP is not None and thoughts.pending_BPD.shape[1] > 1:
        # `generate` would read the padding; the stream reads rows of different lengths in parts.
        with torch.no_grad():
            thoughts = thoughts.read_but_last()
    columns = Context.pad(
        [_column_ids(context, thoughts.num_thoughts, markers) for context in contexts],
        device=backbone.device,
        # The stream may have more columns than these rows need: longer rows have left the batch.
        num_columns=thoughts.stream.length + thoughts.pending_BPD.shape[1],
    )
    ids_BK = columns.ids_BC
    if columns.mask_BC is not None:
        first_B1 = torch.tensor([context[:1] for context in contexts], device=ids_BK.device)
        ids_BK = torch.where(columns.mask_BC, ids_BK, first_B1)
    return seams.generation_inputs(
        ids_BK,
        thoughts.mask_BK,
        cache=thoughts.stream.cache,
        num_read=thoughts.stream.length,
        pending_BPD=thoughts.pending_BPD,
    )


def _column_ids(context: Tokens, num_thoughts: int, markers: Markers | None) -> Tokens:
    thoughts = (context[-1],) * num_thoughts
    if markers is None:
        return (*context, *thoughts)
    return (*context, *markers.opening, *thoughts, *markers.closing)
