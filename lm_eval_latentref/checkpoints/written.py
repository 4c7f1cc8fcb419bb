"""Checks that a written checkpoint gives the same log-likelihoods as the one it was made from.

    before_S = log_likelihoods(model, sample_ids(tokenizer))
    ...                                       # write it, open it again
    check_written("strong=out/cot", before_S, again, ids, torch.bfloat16)

It uses transformers' own forward pass, row by row, and nothing of the thought loop.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.protocol import known_markers

SMALLEST_BOUND = 1e-4
"""The bound of float32, and the smallest of other dtypes, in nats a sample."""

_SAMPLES = (
    "The shop sold nine red kites, then four more.",
    "Is 37 * 12 = 444? Yes, it is.",
    "def f(x):\n    return x[1:]",
)
_DRAWS = 3
_MARGIN = 4

# Legend of shape suffixes: S samples, L tokens of one, V rows of the vocabulary.


def sample_ids(tokenizer: Any) -> list[list[int]]:
    """Token ids of a few short texts, and of one more sample with all markers."""
    texts = [tokenizer(text, add_special_tokens=False).input_ids for text in _SAMPLES]
    markers = sorted(known_markers(tokenizer).values())
    return [*texts, [*texts[0][:4], *markers, *texts[0][4:8]]]


@torch.no_grad()
def log_likelihoods(model: Any, samples: list[list[int]]) -> Tensor:
    """Log-likelihood (S) of each sample without its first token, on the CPU, in float32.

    Ids for which the model has no embedding row are left out.
    """
    embedding = model.get_input_embeddings().weight
    sums = []
    for sample in samples:
        known = [token for token in sample if token < len(embedding)]
        ids_1L = torch.tensor([known], device=embedding.device)
        log_p_LV = model(input_ids=ids_1L, use_cache=False).logits[0].float().log_softmax(-1)
        sums.append(log_p_LV[:-1].gather(1, ids_1L[0, 1:, None]).sum())
    return torch.stack(sums).cpu()


def check_written(
    name: str, before_S: Tensor, again: Any, samples: list[list[int]], dtype: torch.dtype
) -> None:
    """Raises LatentRefError unless `again`, opened from the written folder, agrees with `before_S`.

    Args:
        before_S: the `log_likelihoods` of the checkpoint `name` that was read.
        again: the model of the written folder; measuring destroys its weights.
        dtype: the dtype of the written weights.
    """
    now_S = log_likelihoods(again, samples)
    apart = (now_S - before_S).abs().max().item()
    if apart <= SMALLEST_BOUND:
        return
    bound = SMALLEST_BOUND
    if dtype != torch.float32:
        bound = max(bound, rounding_bound(again, samples, dtype))
    if not apart <= bound:
        raise LatentRefError(
            f"{name}: what was written is another model than what was read, its log-likelihood of "
            f"a sample is off by {apart:.2g} where {bound:.2g} may be rounding, so nothing is "
            "kept; convert with --adapter, which leaves adapters as they are, or with "
            "--model_args dtype=float32"
        )


@torch.no_grad()
def rounding_bound(model: Any, samples: list[list[int]], dtype: torch.dtype) -> float:
    """A bound, in nats, on how much rounding weights to `dtype` changes a sample's log-likelihood.

    It is measured: three times, each weight of `model` is changed at random by one unit in its last
    place in `dtype` or not at all, which destroys the weights. The bound is four times the largest
    change of a sample, because each weight is rounded once or twice (base, then base and adapter).
    """
    exact_S = log_likelihoods(model, samples)
    weights = [weight for weight in model.parameters() if weight.is_floating_point()]
    eps = torch.finfo(dtype).eps
    generator = torch.Generator().manual_seed(0)
    changes = []
    for _ in range(_DRAWS):
        for weight in weights:
            moves = torch.randint(-1, 2, weight.shape, generator=generator, dtype=torch.int8)
            weight.addcmul_(weight, moves.to(weight.device, weight.dtype), value=eps)
        changes.append((log_likelihoods(model, samples) - exact_S).abs().max().item())
    return _MARGIN * max(changes)
