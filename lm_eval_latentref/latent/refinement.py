"""The two refinements of a thought, as functions of tensors (Wang et al., arXiv:2506.08552).

    mixed_BD = mix_residual(raw_BD, previous_BD, memory_rate=0.3)
    refined_BD = contrastive_step(mixed_BD, good_BD, bad_BD, step_size=288.0)

Both compute in float32 and row by row, so no result depends on other rows of the batch.

Shape suffixes: B batch, D hidden size.
"""

from __future__ import annotations

from torch import Tensor


def mix_residual(raw_BD: Tensor, previous_BD: Tensor, *, memory_rate: float | Tensor) -> Tensor:
    """Residual embedding refinement: alpha * z_{t-1} + (1 - alpha) * raw_t, in float32.

    Args:
        raw_BD: the raw thought: the vector to feed next, before refinement.
        previous_BD: the committed previous thought.
        memory_rate: alpha, in [0, 1]; (B, 1) in float32 if rows differ.
    """
    return memory_rate * previous_BD.float() + (1.0 - memory_rate) * raw_BD.float()


def contrastive_step(
    thought_BD: Tensor, good_BD: Tensor, bad_BD: Tensor, *, step_size: float
) -> Tensor:
    """One contrastive update with the references' hidden states held constant, in float32.

    The gradient of MSE(h, good) - MSE(h, bad) with respect to h is 2/D * (bad - good), so a
    gradient-descent step of size eta gives h + eta * 2/D * (good - bad): positive eta moves h
    towards good. The mean in MSE is over the D components of one row, never over the batch.

    Args:
        thought_BD: h, the thought.
        good_BD: the strong reference's hidden state at the thought.
        bad_BD: the weak reference's hidden state at the thought.
        step_size: eta.
    """
    scale = step_size * 2.0 / thought_BD.shape[-1]
    return thought_BD.float() + scale * (good_BD.float() - bad_BD.float())


def contrastive_loss(thought_BD: Tensor, good_BD: Tensor, bad_BD: Tensor) -> Tensor:
    """MSE(h, good) - MSE(h, bad) of each row, shape (B,), in float32.

    With `search_gradient=through`, its gradient with respect to the thought is taken through the
    references, whose hidden states depend on the thought.
    """
    towards_B = (thought_BD.float() - good_BD.float()).square().mean(-1)
    away_B = (thought_BD.float() - bad_BD.float()).square().mean(-1)
    return towards_B - away_B
