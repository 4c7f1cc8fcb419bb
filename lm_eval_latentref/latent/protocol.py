"""The text that a latent-reasoning model reads and writes, in training and in evaluation.

    prompt("Is Tom a lempus or a gorpus?")      # the context: question, then a newline
    extract_answer("... ### Tom is a lempus.")  # "Tom is a lempus."

`prompt`, `answer_text` and `extract_answer` are the format of the Coconut family (Hao et al.,
arXiv:2412.06769), in which `latentref train` trains; `PROTOCOLS` has those of other families too.
"""

from __future__ import annotations

import re
from collections.abc import Callable
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


@dataclass(frozen=True)
class Protocol:
    """How a family asks a question, and how it writes and is read an answer."""

    name: str
    prompt: Callable[[str], str]
    """From the question to the context, without the ids that open the thoughts."""
    answer_text: Callable[[str], str]
    """From an answer to the text that its models write."""
    extract: Callable[[str], str]
    """From a text to the answer in it."""
    adds_special_tokens: bool = True
    """Whether the tokenizer's own special tokens precede the prompt."""
    compares_numbers: bool = False
    """Whether answers that are numbers are compared as numbers, and found as the last in a text."""

    def is_right(self, text: str, gold: str) -> bool:
        """Whether the answer in `text` is `gold`."""
        wanted = _number(gold) if self.compares_numbers else None
        if wanted is not None:
            written = _NUMBER.findall(self.extract(text).replace(",", ""))
            return bool(written) and float(written[-1]) == wanted
        return self.extract(text) == self.extract(self.answer_text(gold))

    def gold_of(self, coconut_text: str) -> str:
        """The bare answer of a document, whose `answer_text` is Coconut's."""
        return coconut_text.removeprefix(answer_text(""))


_NUMBER = re.compile(r"-?\d+\.?\d*")


def _number(text: str) -> float | None:
    plain = text.replace(",", "")
    return float(plain) if _NUMBER.fullmatch(plain) else None


def _codi_prompt(question: str) -> str:
    return question.strip().replace("  ", " ")


def _colar_prompt(question: str) -> str:
    # The "###" after it opens the thoughts. 5 is the speed that is published.
    return f"Question: {question} Let's think step by step:(Thinking speed: 5)"


def _after(mark: str) -> Callable[[str], str]:
    return lambda text: text.rsplit(mark, 1)[-1].strip().removesuffix(".")


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("coconut", prompt, answer_text, extract_answer),
        Protocol(
            "codi",
            _codi_prompt,
            lambda answer: f"The answer is: {answer}",
            _after("The answer is:"),
            compares_numbers=True,
        ),
        Protocol(
            "colar",
            _colar_prompt,
            lambda answer: f"Answer: {answer}",
            _after("Answer:"),
            adds_special_tokens=False,
            compares_numbers=True,
        ),
    )
}
"""CODI's format is that of zhenyi4/codi (4fd88d4), CoLaR's of xiaomi-research/colar (4b6ae9a)."""


def protocol_named(name: object) -> Protocol:
    """The protocol `name`; LatentRefError if there is none."""
    if name not in PROTOCOLS:
        raise LatentRefError(f"protocol={name}: it must be {', '.join(PROTOCOLS)}")
    return PROTOCOLS[str(name)]


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
