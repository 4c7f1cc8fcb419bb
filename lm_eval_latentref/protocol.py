"""The text a latent-reasoning model reads and writes, one renderer for training and evaluation.

    prompt("Is Tom a lempus or a gorpus?")      # the context: question, then a newline
    extract_answer("... ### Tom is a lempus.")  # "Tom is a lempus."

The format is that of the Coconut family (Hao et al., arXiv:2412.06769). Deliberately knows no
model, no token ids and no benchmark.
"""

from __future__ import annotations

from dataclasses import dataclass

START_LATENT = "<|start-latent|>"
END_LATENT = "<|end-latent|>"
LATENT = "<|latent|>"

MARKERS = (START_LATENT, END_LATENT, LATENT)
"""The tokens Coconut adds to its base vocabulary, in the order of their ids. `LATENT` only holds
a place in training data: thoughts are vectors, so no id is ever needed for them."""


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
        """What it writes last."""
        return answer_text(self.answer)


@dataclass(frozen=True)
class ClozeExample(Example):
    """The same in the words of lm-eval's own tasks: a bare question, an answer in plain text."""

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
    """How a model trained on this protocol writes `answer`."""
    return "### " + answer


def extract_answer(text: str) -> str:
    """The answer in a generated `text`: what follows the last "#", commas removed, stripped."""
    return text.rsplit("#", 1)[-1].replace(",", "").strip()
