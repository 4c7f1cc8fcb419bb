"""The text that a latent-reasoning model reads and writes, in training and in evaluation.

    prompt("Is Tom a lempus or a gorpus?")      # the context: question, then a newline
    extract_answer("... ### Tom is a lempus.")  # "Tom is a lempus."

The format is that of the Coconut family (Hao et al., arXiv:2412.06769).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lm_eval_latentref.errors import LatentRefError

Tokenizer = Any

START_LATENT = "<|start-latent|>"
END_LATENT = "<|end-latent|>"
LATENT = "<|latent|>"

MARKERS = (START_LATENT, END_LATENT, LATENT)
"""The tokens Coconut adds to its base vocabulary, in the order of their ids. `LATENT` is only a
placeholder in training data: thoughts are vectors and need no id."""


@dataclass(frozen=True)
class Example:
    """One problem with its gold chain of thought."""

    question: str
    steps: tuple[str, ...]
    answer: str

    @property
    def context(self) -> str:
        """What the model reads before it thinks."""
        return prompt(self.question)

    @property
    def written_answer(self) -> str:
        """The text that ends the gold solution."""
        return answer_text(self.answer)


@dataclass(frozen=True)
class ClozeExample(Example):
    """An `Example` in the format of lm-eval's own tasks: "Question: ...", "Answer:", plain text."""

    @property
    def context(self) -> str:
        return f"Question: {self.question}\nAnswer:"

    @property
    def written_answer(self) -> str:
        return f" {self.answer}"


def prompt(question: str) -> str:
    """The context of `question`; its newline stays before the start marker."""
    return question + "\n"


def answer_text(answer: str) -> str:
    """`answer` as a model trained on this protocol writes it."""
    return "### " + answer


def extract_answer(text: str) -> str:
    """The answer in a generated `text`: what follows the last "#", without commas, stripped."""
    return text.rsplit("#", 1)[-1].replace(",", "").strip()


def marker_ids(tokenizer: Tokenizer, latent_markers: str) -> tuple[int, int] | None:
    """Ids of the start and the end marker, or None if `tokenizer` has neither.

    With `latent_markers="none"` the result is always None. A tokenizer that has only one of the two
    raises LatentRefError: a model is trained with both or with neither.
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
    """The id of `text` if it is in the vocabulary and encodes to that one token; else None."""
    token_id = tokenizer.get_vocab().get(text)
    if token_id is None:
        return None
    return token_id if tokenizer.encode(text, add_special_tokens=False) == [token_id] else None


def known_markers(tokenizer: Tokenizer) -> dict[str, int]:
    """The markers in the vocabulary of `tokenizer`, with their ids."""
    vocabulary = tokenizer.get_vocab()
    return {marker: vocabulary[marker] for marker in MARKERS if marker in vocabulary}
