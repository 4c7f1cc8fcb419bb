"""Dropout in the residual branches while thoughts are read; reproducible per document and sample.

    with dropping(network, 0.1, draws, step=3):
        stream.feed(thought_B1D)

There is no dropout on attention weights or embeddings. Each row has its own masks, so a sample does
not depend on its batch.

Shape suffixes: B batch, L columns, D hidden size, N = L D.
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
    """Apply dropout to the residual branches of `network` inside this block.

    Args:
        rate: the probability that a component is set to zero; the others are scaled up.
        draws: the source of each row's random numbers.
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
            f"thought_dropout with {name} ({network.causal_lm.config.model_type}), whose layers do "
            "not simply add attention and MLP to the residual stream; give thought_noise instead, "
            "or a model such as GPT-2, Llama or Qwen"
        )
