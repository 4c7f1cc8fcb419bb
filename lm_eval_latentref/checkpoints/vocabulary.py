"""Which token has which id: the markers, and whether three tokenizers agree.

    marker_ids(tokenizer, "auto")      # (50257, 50258), or None when markers are off

Works on tokenizers alone; deliberately knows no weights and no files.
"""

from __future__ import annotations

from typing import Any

from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.protocol import END_LATENT, MARKERS, START_LATENT

Tokenizer = Any


def marker_ids(tokenizer: Tokenizer, latent_markers: str) -> tuple[int, int] | None:
    """Ids of the start and the end marker, or None when `tokenizer` has neither.

    `latent_markers` is "auto" or "none" (None always). A tokenizer that has one of the two is an
    error: the model was trained with both or with none.
    """
    if latent_markers == "none":
        return None
    ids = {marker: single_token(tokenizer, marker) for marker in (START_LATENT, END_LATENT)}
    missing = [marker for marker, token_id in ids.items() if token_id is None]
    if len(missing) == 2:
        return None
    if missing:
        (present,) = [marker for marker in ids if marker not in missing]
        raise LatentRefError(
            f"the tokenizer has {present} but not {missing[0]}; latent_markers=auto needs both or "
            "neither: add the missing token and its trained row, or set latent_markers=none"
        )
    start, end = ids[START_LATENT], ids[END_LATENT]
    assert start is not None
    assert end is not None
    return start, end


def single_token(tokenizer: Tokenizer, text: str) -> int | None:
    """The id of `text` if it is one token of the vocabulary and is encoded as this token."""
    token_id = tokenizer.get_vocab().get(text)
    if token_id is None:
        return None
    return token_id if tokenizer.encode(text, add_special_tokens=False) == [token_id] else None


def known_markers(tokenizer: Tokenizer) -> dict[str, int]:
    """The markers in the vocabulary of `tokenizer`, with their ids."""
    vocabulary = tokenizer.get_vocab()
    return {marker: vocabulary[marker] for marker in MARKERS if marker in vocabulary}


def num_plain(tokenizer: Tokenizer) -> int:
    """Size of the vocabulary without markers at its end: the base's, before Coconut training."""
    size = len(tokenizer)
    markers = known_markers(tokenizer)
    return size - len(markers) if set(markers.values()) == _last(size, len(markers)) else size


def add_markers(tokenizer: Tokenizer) -> None:
    """Adds the three markers as facebookresearch/coconut does: plain added tokens, in this order.

    They get the ids that follow the vocabulary. Adds only what is missing.
    """
    tokenizer.add_tokens([marker for marker in MARKERS if marker not in tokenizer.get_vocab()])


def check_same_ids(names: tuple[str, str], first: Tokenizer, second: Tokenizer) -> None:
    """Raises LatentRefError, naming both, unless the two vocabularies agree.

    Every token but the markers must have the same id in both; a marker may be missing from one.
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
        f"({len(differing)} tokens differ): the three models must share one vocabulary, markers "
        "apart; give checkpoints trained from the same base"
    )


def _is_id(token_id: int | None) -> bool:
    return token_id is not None


def _last(size: int, count: int) -> set[int]:
    return set(range(size - count, size))
