"""LTPO: moves thoughts towards higher confidence of the model, without training.

    thoughts = more_confident(origin, thoughts, num_closing=1, config=config, draws=draws)

All thoughts of a row move together. Each step tries a random displacement, computes a reward (the
model's confidence from the first thought to the column after the last), and moves the thoughts
along the displacement in proportion to the reward. The result is the thoughts after the step with
the highest reward (ltpo2025/LTPO, `ltpo.py`, the variant without gradients).

Shape suffixes: B batch, T thoughts, P pending columns, L columns, D hidden size, N = T D, V
vocabulary, K likeliest tokens.
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
"""The factor by which the displacement's standard deviation shrinks at each step."""

NUM_LIKELIEST = 10
"""The number of likeliest tokens over which the confidence is averaged."""


def more_confident(
    origin: Stream,
    thoughts: Thoughts,
    *,
    num_closing: int,
    config: RefinementConfig,
    draws: Draws,
) -> Thoughts:
    """The best thoughts of `config.confidence_steps` steps; they are pending on `origin`.

    Args:
        origin: a stream of the same rows that has read everything before the first thought.
        num_closing: the number of columns after the thoughts: the closing markers.
        draws: the source of each row's random numbers.
    """
    options = config.of_kind
    num_rows, num_thoughts, size = thoughts.thoughts_BTD.shape
    # If a row stopped early, its last thought has been read, so only the end of `pending` is used.
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
    """The reward of each row (B,): minus the mean of the ten largest log-probabilities.

    The mean is over the ten tokens and over the columns: the thoughts and `after_BLD`.
    """
    columns_BLD = torch.cat([thoughts_BTD.to(after_BLD.dtype), after_BLD], dim=1)
    hidden_BLD = origin.fork().feed(columns_BLD)
    rewards = []
    for hidden_LD in hidden_BLD:  # one row at a time, because logits are the largest tensors
        log_p_LV = origin.network.project(hidden_LD).float().log_softmax(-1)
        likeliest_LK = log_p_LV.topk(min(NUM_LIKELIEST, log_p_LV.shape[-1])).values
        rewards.append(-likeliest_LK.sum(-1).mean() / NUM_LIKELIEST)
    return torch.stack(rewards)
