"""Checks that a written checkpoint gives the same log-likelihoods as the original.

    before_S = log_likelihoods(model, sample_ids(tokenizer))
    ...                                       # write it, load it again as `written`
    check_written("strong=out/cot", before_S, written, samples, torch.bfloat16)

It calls transformers' forward, row by row, and no code of the thought loop.

Shape suffixes: S samples, L tokens of a sample, V rows of the vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.protocol import known_markers

SMALLEST_BOUND = 1e-4
"""The bound in float32, and the smallest bound in other dtypes, in nats per sample."""

_SAMPLES = (
    "The shop sold nine red kites, then four more.",
    "Is 37 * 12 = 444? Yes, it is.",
    "def f(x):\n    return x[1:]",
)
_DRAWS = 3
_MARGIN = 4


def sample_ids(tokenizer: Any) -> list[list[int]]:
    """The token ids of a few short texts, and of another sample that has all markers."""
    texts = [tokenizer(text, add_special_tokens=False).input_ids for text in _SAMPLES]
    markers = sorted(known_markers(tokenizer).values())
    return [*texts, [*texts[0][:4], *markers, *texts[0][4:8]]]


@torch.no_grad()
def log_likelihoods(model: Any, samples: list[list[int]]) -> Tensor:
    """The log-likelihood (S) of each sample after its first token, on the CPU, in float32.

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
    name: str, before_S: Tensor, written: Any, samples: list[list[int]], dtype: torch.dtype
) -> None:
    """Raises LatentRefError unless the log-likelihoods of `written` agree with `before_S`.

    Args:
        name: the name of the original, for the message.
        before_S: the `log_likelihoods` of the original.
        written: the model loaded from the written folder; the check may destroy its weights.
        dtype: the dtype of the written weights.
    """
    now_S = log_likelihoods(written, samples)
    error = (now_S - before_S).abs().max().item()
    if error <= SMALLEST_BOUND:
        return
    bound = SMALLEST_BOUND
    if dtype != torch.float32:
        bound = max(bound, rounding_bound(written, samples, dtype))
    if not error <= bound:
        raise LatentRefError(
            f"{name}: the written model differs from the original: a log-likelihood is off by "
            f"{error:.2g}, but rounding explains at most {bound:.2g}; nothing is kept; convert "
            "with --adapter, which does not merge adapters, or with --model_args dtype=float32"
        )


@torch.no_grad()
def rounding_bound(model: Any, samples: list[list[int]], dtype: torch.dtype) -> float:
    """A bound, in nats, on the change of a log-likelihood when weights are rounded to `dtype`.

    It is measured by changing each weight of `model` at random by -1, 0 or 1 units in the last
    place, three times; this destroys the weights. The bound is four times the largest change,
    because each weight is rounded once or twice (base, then base plus adapter).
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
