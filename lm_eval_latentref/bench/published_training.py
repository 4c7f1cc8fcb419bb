"""The training step of facebookresearch/coconut, as published: what a user had before.

    loss = published_loss(model, rows, start_id=50257, end_id=50258, latent_id=50259)

Thoughts go through a cache, one pass each over the new columns only. But every pass takes the
embeddings apart into single vectors and stacks them anew, each position of a thought is fetched
from the device by itself, and all passes return hidden states of all layers and logits over the
vocabulary at every column. Written from that description, not copied; the baseline of the training
bench, used by nothing else.

Shape suffixes: B batch, L columns, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from lm_eval_latentref.latent.transformers_seams import own_cache_argument
from lm_eval_latentref.training.curriculum import Row

NOT_LABELLED = -100


@dataclass(frozen=True)
class Collated:
    """Rows padded so that their first thoughts stand in one column."""

    ids_BL: Tensor
    mask_BL: Tensor
    positions_BL: Tensor
    labels_BL: Tensor


def collate(
    rows: Sequence[Row], *, start_id: int, end_id: int, latent_id: int, device: torch.device
) -> Collated:
    """`rows`, which have equal numbers of thoughts, as the published trainer would get them."""
    columns: dict[str, list[list[int]]] = {"ids": [], "mask": [], "positions": [], "labels": []}
    num_context = max(len(row.context) for row in rows)
    num_text = max(len(row.target) for row in rows)
    for row in rows:
        before, after = num_context - len(row.context), num_text - len(row.target)
        ids = [*row.context, start_id, *[latent_id] * row.num_thoughts, end_id, *row.target]
        unlabelled = [NOT_LABELLED] * (len(ids) - len(row.target))
        columns["ids"].append([0] * before + ids + [0] * after)
        columns["mask"].append([0] * before + [1] * len(ids) + [0] * after)
        columns["positions"].append([0] * before + list(range(len(ids))) + [0] * after)
        labels = [NOT_LABELLED] * before + unlabelled + list(row.target)
        columns["labels"].append(labels + [NOT_LABELLED] * after)
    return Collated(*(torch.tensor(values).to(device) for values in columns.values()))


def published_loss(
    model: PreTrainedModel, rows: Sequence[Row], *, start_id: int, end_id: int, latent_id: int
) -> Tensor:
    """Mean cross-entropy of the labelled tokens of `rows`."""
    batch = collate(
        rows, start_id=start_id, end_id=end_id, latent_id=latent_id, device=model.device
    )
    found = (batch.ids_BL == latent_id).nonzero()
    places = [
        [place[1].item() for place in found if place[0] == number] for number in range(len(rows))
    ]
    embeds_BLD = model.get_input_embeddings()(batch.ids_BL)
    cache = DynamicCache(config=model.config)
    logits: list[Tensor] = []
    done = 0
    for number in range(rows[0].num_thoughts):
        upto = min(row[number] for row in places)
        output = _pass(model, batch, embeds_BLD, cache, done, upto)
        logits.append(output.logits)
        num_rows, num_columns = embeds_BLD.shape[:2]
        vectors = [
            [embeds_BLD[row, column] for column in range(num_columns)] for row in range(num_rows)
        ]
        for row, row_places in enumerate(places):
            vectors[row][row_places[number]] = output.hidden_states[-1][row, -1]
        embeds_BLD = torch.stack([torch.stack(row) for row in vectors])
        done = upto
    logits.append(_pass(model, batch, embeds_BLD, cache, done, embeds_BLD.shape[1]).logits)
    logits_BLV = torch.cat(logits, dim=1)[:, :-1]
    return torch.nn.functional.cross_entropy(
        logits_BLV.flatten(0, 1), batch.labels_BL[:, 1:].flatten(), ignore_index=NOT_LABELLED
    )


def _pass(
    model: PreTrainedModel,
    batch: Collated,
    embeds_BLD: Tensor,
    cache: DynamicCache,
    start: int,
    end: int,
) -> Any:
    return model(
        inputs_embeds=embeds_BLD[:, start:end],
        attention_mask=batch.mask_BL[:, :end],
        position_ids=batch.positions_BL[:, start:end],
        output_hidden_states=True,
        **{own_cache_argument(): cache},
    )
