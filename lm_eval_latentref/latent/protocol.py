"""Protocols: the format of the prompt that a model reads and of the answer that it writes.

    prompt("Is Tom a lempus or a gorpus?")      # the context: question, then a newline
    extract_answer("... ### Tom is a lempus.")  # "Tom is a lempus."

`prompt`, `answer_text` and `extract_answer` are the protocol of Coconut (Hao et al.,
arXiv:2412.06769), which `latentref train` uses; `PROTOCOLS` also has those of other families.
`marker_ids` and `known_markers` look up Coconut's marker tokens in a tokenizer.
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
"""The tokens that Coconut adds to its base vocabulary, in the order of their ids. `LATENT` is only
a placeholder in training data: thoughts are vectors and need no id."""


@dataclass(frozen=True)
class Example:
    """A problem with its gold chain of thought, in Coconut's protocol."""

    question: str
    steps: tuple[str, ...]
    answer: str

    @property
    def context(self) -> str:
        """The text that the model reads before it thinks."""
        return prompt(self.question)

    @property
    def written_answer(self) -> str:
        """The text with which the gold solution ends."""
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
    """The context for `question`; the start marker follows its newline."""
    return question + "\n"


def answer_text(answer: str) -> str:
    """The text that a model trained on Coconut's protocol writes for `answer`."""
    return "### " + answer


def extract_answer(text: str) -> str:
    """The answer in a generated `text`: the text after the last "#", without commas, stripped."""
    return text.rsplit("#", 1)[-1].replace(",", "").strip()


@dataclass(frozen=True)
class Protocol:
    """The format of a family's prompts and answers."""

    name: str
    prompt: Callable[[str], str]
    """Maps a question to its context, without the marker before the thoughts."""
    answer_text: Callable[[str], str]
    """Maps an answer to the text that the models write for it."""
    extract: Callable[[str], str]
    """Maps a generated text to the answer in it."""
    answer_pattern: str
    """A regular expression whose group is the part of a generated text that `extract` reads."""
    adds_special_tokens: bool = True
    """Whether the tokenizer's special tokens, such as BOS, surround the prompt."""
    number_in: Callable[[str], float | None] | None = None
    """Maps a generated text to the number that is compared with a numeric gold answer; without it,
    numbers are compared as text."""
    reads_letters: bool = False
    """Whether only the first character of an answer counts if the gold answer is one character."""

    def is_right(self, text: str, gold: str) -> bool:
        """Whether the answer in the generated `text` equals the answer `gold`."""
        if self.number_in is not None and (number := _number(gold)) is not None:
            return self.number_in(text) == number
        answer, expected = self.extract(text), self.extract(self.answer_text(gold))
        if self.reads_letters and len(expected) == 1:
            answer = answer[:1]
        return answer == expected

    def gold_of(self, coconut_text: str) -> str:
        """The answer in `coconut_text`, the `answer_text` of Coconut's protocol."""
        return coconut_text.removeprefix(answer_text(""))


_NUMBER = re.compile(r"-?\d+\.?\d*")


def _number(text: str) -> float | None:
    plain = text.replace(",", "")
    return float(plain) if _NUMBER.fullmatch(plain) else None


def _last_number(text: str) -> float | None:
    """The last number anywhere in `text`."""
    numbers = _NUMBER.findall(text.replace(",", ""))
    return float(numbers[-1]) if numbers else None


def _codi_prompt(question: str) -> str:
    return question.strip().replace("  ", " ")


def _colar_prompt(question: str) -> str:
    # 5 is the published speed. The marker "###" follows.
    return f"Question: {question} Let's think step by step:(Thinking speed: 5)"


def _after(mark: str) -> Callable[[str], str]:
    return lambda text: text.rsplit(mark, 1)[-1].strip().removesuffix(".")


def _part_after(mark: str) -> str:
    mark = re.escape(mark)
    return rf"(?s)(?:\A|{mark})((?:(?!{mark}).)*?)\.?\s*\Z"


_codi_answer, _colar_answer = _after("The answer is:"), _after("Answer:")


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("coconut", prompt, answer_text, extract_answer, r"(?:\A|#)([^#]*)\Z"),
        Protocol(
            "codi",
            _codi_prompt,
            lambda answer: f"The answer is: {answer}",
            _codi_answer,
            _part_after("The answer is:"),
            number_in=_last_number,
            reads_letters=True,
        ),
        Protocol(
            "colar",
            _colar_prompt,
            lambda answer: f"Answer: {answer}",
            _colar_answer,
            _part_after("Answer:"),
            adds_special_tokens=False,
            number_in=lambda text: _number(_colar_answer(text)),
        ),
    )
}
"""CODI's format is that of zhenyi4/codi (4fd88d4), CoLaR's of xiaomi-research/colar (4b6ae9a)."""


def protocol_named(name: object) -> Protocol:
    """The protocol with this name; raises LatentRefError if there is none."""
    if name not in PROTOCOLS:
        raise LatentRefError(f"protocol={name}: it must be {', '.join(PROTOCOLS)}")
    return PROTOCOLS[str(name)]


def marker_ids(tokenizer: Tokenizer, latent_markers: str) -> tuple[int, int] | None:
    """The ids of Coconut's start and end markers; None if `tokenizer` has neither.

    With `latent_markers="none"` the result is always None. Raises LatentRefError if the tokenizer
    has only one of the two, because models are trained with both or with neither.
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
            "neither: add the missing token and its trained embedding row, or set "
            "latent_markers=none"
        )
    start, end = ids[START_LATENT], ids[END_LATENT]
    assert start is not None
    assert end is not None
    return start, end


def single_token(tokenizer: Tokenizer, text: str) -> int | None:
    """The id of `text` if it is in the vocabulary and encodes to this single token; else None."""
    token_id = _token_id(tokenizer, text)
    if token_id is None:
        return None
    return token_id if tokenizer.encode(text, add_special_tokens=False) == [token_id] else None


def known_markers(tokenizer: Tokenizer) -> dict[str, int]:
    """Coconut's markers in the vocabulary of `tokenizer`, with their ids."""
    ids = {marker: _token_id(tokenizer, marker) for marker in MARKERS}
    return {marker: token_id for marker, token_id in ids.items() if token_id is not None}


def _token_id(tokenizer: Tokenizer, text: str) -> int | None:
    """The id of `text` in the vocabulary, which is not copied as `get_vocab` does; else None."""
    token_id = tokenizer.convert_tokens_to_ids(text)  # that of the unknown token, if there is one
    known = token_id is not None and tokenizer.convert_ids_to_tokens(token_id) == text
    return token_id if known else None
