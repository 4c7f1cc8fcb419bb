"""Dropout in the residual branches while thoughts are read, with seeds by document and sample.

    with dropping(network, 0.1, draws, step=3):
        stream.feed(thought_B1D)

Attention weights and embeddings are left alone. Every row has masks of its own, so that a sample
does not depend on its batch.

Shape suffixes: B batch, L columns, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent import transformers_seams as seams
from lm_eval_latentref.latent.kinds.draws import Draws
from lm_eval_latentref.latent.networks import Network


@contextmanager
def dropping(network: Network, rate: float, draws: Draws, *, step: int) -> Iterator[None]:
    """Drop components of the residual branches of `network` with probability `rate` meanwhile.

    Args:
        step: the number of the thought that is read.
    """

    def hook_of(number: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            branch_BLD: Tensor = output if isinstance(output, Tensor) else output[0]
            size = branch_BLD[0].numel()
            drawn_BN = draws.uniform(f"dropout {number}", step=step, size=size)
            keep_BLD = (drawn_BN >= rate).to(branch_BLD).view_as(branch_BLD) / (1 - rate)
            kept_BLD = branch_BLD * keep_BLD
            return kept_BLD if isinstance(output, Tensor) else (kept_BLD, *output[1:])

        return hook

    branches = seams.residual_branches(network.causal_lm)
    handles = [branch.register_forward_hook(hook_of(n)) for n, branch in enumerate(branches)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def check_droppable(network: Network, name: str) -> None:
    """Raise LatentRefError unless the residual branches of `network` can be located."""
    if not seams.residual_branches(network.causal_lm):
        raise LatentRefError(
            f"thought_dropout with {name} ({network.causal_lm.config.model_type}), whose layers "
            "are not the plain sum of attention and MLP; give thought_noise in its place, or a "
            "model such as GPT-2, Llama or Qwen"
        )
