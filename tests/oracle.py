"""The slow, obvious version: one example at a time, no cache, everything recomputed.

Each step is written as the method states it. It shares only the config with the package.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lm_eval_latentref.latent.config import RefinementConfig


def embed(model: PreTrainedModel, ids: Sequence[int]) -> Tensor:
    return model.get_input_embeddings()(torch.tensor([list(ids)]))[0]


def last_hidden(model: PreTrainedModel, embeds: Tensor) -> Tensor:
    """Final hidden state, after the final norm, at the last of a single row of embeddings."""
    output = model(
        inputs_embeds=embeds[None].to(model.dtype), output_hidden_states=True, use_cache=False
    )
    return output.hidden_states[-1][0, -1]


def thoughts(
    context: Sequence[int],
    config: RefinementConfig,
    backbone: PreTrainedModel,
    strong: PreTrainedModel | None = None,
    weak: PreTrainedModel | None = None,
) -> list[Tensor]:
    """z_1..z_T for one context (the start marker, if any, is its last id)."""
    found: list[Tensor] = []
    for _ in range(config.latent_steps):
        sequence = torch.cat([embed(backbone, context), *[z[None] for z in found]])
        h = last_hidden(backbone, sequence).float()
        if found:
            h = config.memory_rate * found[-1].float() + (1 - config.memory_rate) * h
        if config.search_step_size != 0:
            assert strong is not None
            assert weak is not None
            for _ in range(config.search_steps):
                h = _search_step(h, context, found, config, strong, weak)
        found.append(h.to(backbone.dtype))
    return found


def _search_step(
    h: Tensor,
    context: Sequence[int],
    found: Sequence[Tensor],
    config: RefinementConfig,
    strong: PreTrainedModel,
    weak: PreTrainedModel,
) -> Tensor:
    leaf = h.detach().requires_grad_()

    def state(reference: PreTrainedModel) -> Tensor:
        rows = [embed(reference, context), *[z[None].to(reference.dtype) for z in found]]
        hidden = last_hidden(reference, torch.cat([*rows, leaf[None].to(reference.dtype)])).float()
        return hidden.detach() if config.search_gradient == "detached" else hidden

    with torch.enable_grad():
        mse = torch.nn.functional.mse_loss
        loss = mse(leaf, state(strong)) - mse(leaf, state(weak))
        (gradient,) = torch.autograd.grad(loss, leaf)
    return h - config.search_step_size * gradient


def prefix_embeds(
    context: Sequence[int],
    config: RefinementConfig,
    markers: tuple[int, int] | None,
    backbone: PreTrainedModel,
    strong: PreTrainedModel | None = None,
    weak: PreTrainedModel | None = None,
) -> Tensor:
    """All that stands before the continuation: context, start, thoughts, end."""
    read = [*context, markers[0]] if markers else list(context)
    found = thoughts(read, config, backbone, strong, weak)
    parts = [embed(backbone, read), *[z[None] for z in found]]
    if markers:
        parts.append(embed(backbone, [markers[1]]))
    return torch.cat(parts)


def log_likelihood(
    prefix: Tensor, continuation: Sequence[int], backbone: PreTrainedModel
) -> tuple[float, bool]:
    """Sum of log p over the continuation, and whether greedy decoding would give it."""
    total, greedy = 0.0, True
    for position, token in enumerate(continuation):
        sequence = (
            torch.cat([prefix, embed(backbone, continuation[:position])]) if position else prefix
        )
        logits = backbone(inputs_embeds=sequence[None], use_cache=False).logits[0, -1].float()
        total += float(logits.log_softmax(-1)[token])
        greedy &= int(logits.argmax()) == token
    return total, greedy


def greedy_tokens(
    prefix: Tensor, backbone: PreTrainedModel, *, num_tokens: int, eos_id: int
) -> list[int]:
    """Greedy decoding, the whole sequence recomputed for each token; ends with the first EOS."""
    tokens: list[int] = []
    while len(tokens) < num_tokens:
        sequence = torch.cat([prefix, embed(backbone, tokens)]) if tokens else prefix
        logits = backbone(inputs_embeds=sequence[None], use_cache=False).logits[0, -1]
        tokens.append(int(logits.argmax()))
        if tokens[-1] == eos_id:
            break
    return tokens
