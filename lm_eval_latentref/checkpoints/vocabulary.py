"""Vocabularies: size without markers, adding markers, comparison of two, rows of an embedding.

check_same_ids(("pretrained", "strong"), backbone_tokenizer, reference_tokenizer)
"""

from __future__ import annotations

from typing import Any

import torch

from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.protocol import MARKERS, Tokenizer, known_markers


def num_plain(tokenizer: Tokenizer) -> int:
    """The size of the vocabulary before Coconut's training, without markers at its end."""
    size = len(tokenizer)
    markers = known_markers(tokenizer)
    return size - len(markers) if set(markers.values()) == _last(size, len(markers)) else size


def add_markers(tokenizer: Tokenizer) -> None:
    """Adds the missing markers as facebookresearch/coconut does: as plain tokens, in this order.

    They get the ids after the vocabulary.
    """
    tokenizer.add_tokens([marker for marker in MARKERS if marker not in tokenizer.get_vocab()])


def check_same_ids(names: tuple[str, str], first: Tokenizer, second: Tokenizer) -> None:
    """Raises LatentRefError unless every token has the same id in both vocabularies.

    A marker may be missing from one of them. `names` are the names of both, for the message.
    """
    left, right = first.get_vocab(), second.get_vocab()
    differing = {
        token: (left.get(token), right.get(token))
        for token in left.keys() | right.keys()
        if left.get(token) != right.get(token)
        and not (token in MARKERS and (token not in left or token not in right))
    }
    if not differing:
        return
    token = min(differing, key=lambda token: (min(filter(_is_id, differing[token])), token))
    ids = ["missing" if token_id is None else f"id {token_id}" for token_id in differing[token]]
    raise LatentRefError(
        f"token {token!r} is {ids[0]} in {names[0]} but {ids[1]} in {names[1]} "
        f"({len(differing)} tokens differ): the three models must have the same vocabulary, apart "
        "from markers; give checkpoints trained from the same base"
    )


def _is_id(token_id: int | None) -> bool:
    return token_id is not None


def _last(size: int, count: int) -> set[int]:
    return set(range(size - count, size))


def set_rows(model: Any, num_rows: int) -> None:
    """Resizes the embedding of `model` to `num_rows` rows; new rows are the mean of the old rows.

    The mean is the same in every run; transformers would initialise new rows at random.
    """
    embedding = model.get_input_embeddings()
    old_rows, num_new = len(embedding.weight), num_rows - len(embedding.weight)
    if num_new == 0:
        return
    if num_new > 0:
        # transformers would first draw a whole embedding at random, which takes several times as
        # long as copying it.
        old_VD = embedding.weight.data
        embedding.weight.data = torch.cat([old_VD, old_VD.new_empty(num_new, old_VD.shape[1])])
        embedding.num_embeddings = num_rows
    model.resize_token_embeddings(num_rows, mean_resizing=False)
    layers = (embedding, model.get_output_embeddings())
    weights = {id(layer.weight): layer.weight for layer in layers if layer is not None}
    with torch.no_grad():
        for weight_VD in weights.values() if num_new > 0 else ():
            weight_VD[old_rows:] = weight_VD[:old_rows].float().mean(0).to(weight_VD.dtype)
