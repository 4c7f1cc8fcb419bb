"""The evaluation loop of facebookresearch/coconut, as published: what a user had before.

    ids = generate(model, context_ids, markers=None, latent_steps=6, max_new_tokens=16, eos_id=2)

One question at a time. Thoughts go through a cache, text does not: every new token runs the whole
sequence of embeddings again, with logits for each of its columns. Greedy. Written from that
description, not copied; the benchmarks' baseline, used by nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from lm_eval_latentref.latent.transformers_seams import own_cache_argument


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    context: Sequence[int],
    *,
    markers: tuple[int, int] | None,
    latent_steps: int,
    max_new_tokens: int,
    eos_id: int | None,
) -> list[int]:
    """The tokens written after `context` and its thoughts, EOS left out.

    The first token is not checked for EOS, as in the original.
    """
    embed = model.get_input_embeddings()

    def embedded(*ids: int) -> Tensor:
        return embed(torch.tensor([ids], device=model.device))

    columns_1LD = embedded(*context, *(markers[:1] if markers else ()))
    columns_1LD = _think(model, columns_1LD, latent_steps)
    if markers:
        columns_1LD = torch.cat([columns_1LD, embedded(markers[1])], dim=1)
    written: list[int] = []
    while len(written) < max_new_tokens:
        token = int(model(inputs_embeds=columns_1LD).logits[0, -1].argmax())
        if token == eos_id and written:
            break
        written.append(token)
        columns_1LD = torch.cat([columns_1LD, embedded(token)], dim=1)
    return written


def _think(model: PreTrainedModel, columns_1LD: Tensor, latent_steps: int) -> Tensor:
    cache, unread_1LD = DynamicCache(config=model.config), columns_1LD
    for _ in range(latent_steps):
        read = {own_cache_argument(): cache}
        output = model(inputs_embeds=unread_1LD, output_hidden_states=True, **read)
        unread_1LD = output.hidden_states[-1][:, -1:]
        columns_1LD = torch.cat([columns_1LD, unread_1LD], dim=1)
    return columns_1LD
