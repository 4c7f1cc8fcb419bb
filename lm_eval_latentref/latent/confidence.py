"""LTPO: thoughts are moved towards where the model is more confident, without training.

    thoughts = more_confident(context_stream, thoughts, config=config, draws=draws)

All thoughts of a row move together. Each step tries a random displacement, scores it by the model's
confidence from the first thought to the column after the last, and moves along it by its score; the
thoughts of the best step are kept (ltpo2025/LTPO, `ltpo.py`, in its forward-only form).

Shape suffixes: B batch, T thoughts, P pending columns, L columns, D hidden size, V vocabulary.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from lm_eval_latentref.latent.config import RefinementConfig
from lm_eval_latentref.latent.kinds.draws import Draws
from lm_eval_latentref.latent.streams import Stream
from lm_eval_latentref.latent.thoughts import Thoughts

DECAY = 0.99
"""Of the displacement's standard deviation, from step to step."""

NUM_LIKELIEST = 10
"""Tokens that the confidence is a mean over."""


def more_confident(
    origin: Stream,
    thoughts: Thoughts,
    *,
    num_closing: int,
    config: RefinementConfig,
    draws: Draws,
) -> Thoughts:
    """The thoughts after `config.confidence_steps` steps, to be read from `origin` on.

    Args:
        origin: the stream of the same rows that has read all before the first thought.
        num_closing: how many columns close the thoughts.
        draws: the source of random numbers of each row.
    """
    options = config.of_kind
    num_rows, num_thoughts, size = thoughts.thoughts_BTD.shape
    # Of a row that stopped early, the last thought is not pending any more.
    closing_BPD = thoughts.pending_BPD[:, thoughts.pending_BPD.shape[1] - num_closing :]
    moved_BTD = thoughts.thoughts_BTD.float()
    best_BTD, best_B = moved_BTD, moved_BTD.new_full((num_rows,), -torch.inf)
    for step in range(options["confidence_steps"]):
        sigma = options["confidence_noise"] * DECAY**step
        noise_BN = draws.normal("confidence", step=step, size=num_thoughts * size)
        noise_BTD = sigma * noise_BN.view(num_rows, num_thoughts, size).to(moved_BTD)
        reward_B = _confidence(origin, moved_BTD + noise_BTD, closing_BPD[:, :1])
        scale_B = options["confidence_step_size"] * reward_B / sigma**2
        moved_BTD = moved_BTD + scale_B[:, None, None] * noise_BTD
        is_best_B = reward_B > best_B
        best_B = torch.where(is_best_B, reward_B, best_B)
        best_BTD = torch.where(is_best_B[:, None, None], moved_BTD, best_BTD)
    committed_BTD = best_BTD.to(thoughts.thoughts_BTD)
    return dataclasses.replace(
        thoughts,
        stream=origin,
        pending_BPD=torch.cat([committed_BTD, closing_BPD], dim=1),
        pending_mask_BP=None,
        thoughts_BTD=committed_BTD,
    )


def _confidence(origin: Stream, thoughts_BTD: Tensor, after_BLD: Tensor) -> Tensor:
    """Mean over columns of -1/10 of the sum of the ten largest log-probabilities, (B,)."""
    columns_BLD = torch.cat([thoughts_BTD.to(after_BLD.dtype), after_BLD], dim=1)
    hidden_BLD = origin.fork().feed(columns_BLD)
    rewards = []
    for hidden_LD in hidden_BLD:  # one row at a time, because logits are the largest tensors
        log_p_LV = origin.network.project(hidden_LD).float().log_softmax(-1)
        likeliest_LK = log_p_LV.topk(min(NUM_LIKELIEST, log_p_LV.shape[-1])).values
        rewards.append(-likeliest_LK.sum(-1).mean() / NUM_LIKELIEST)
    return torch.stack(rewards)
