"""Latent reasoning in Python, without lm-eval: think about questions and answer them.

    reasoner = Reasoner(loaded, RefinementConfig(latent_steps=6, memory_rate=0.3))
    answer = reasoner.ask("Is Tom a lempus or a gorpus?")
    answer.text, answer.answer, answer.thoughts

Shape suffixes: B batch, K columns, L new tokens, T thoughts, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.batching import Tokens
from lm_eval_latentref.latent.decoding import check_decoding
from lm_eval_latentref.latent.thoughts import Thoughts
from lm_eval_latentref.latent.token_reasoner import NonFiniteThoughtError, TokenReasoner, padding_id

MAX_NEW_TOKENS = 256
"""The maximum number of tokens that `ask` generates by default."""


@contextmanager
def _of_rows(rows: Sequence[int]) -> Iterator[None]:
    """Errors inside this block, about a row of a part, name its number among `rows` instead."""
    try:
        yield
    except NonFiniteThoughtError as error:
        raise NonFiniteThoughtError(rows[error.row], error.reason) from error


@dataclass(frozen=True)
class Answer:
    """A model's answer to one question."""

    text: str
    """All text after the thoughts."""
    answer: str
    """The answer extracted from `text` by the checkpoint's protocol."""
    thoughts: Tensor
    """z_1..z_T, shape (T, D), on the CPU."""


class Reasoner(TokenReasoner):
    """A `TokenReasoner` that also answers questions; the arguments are the same."""

    def ask(self, question: str, *, max_new_tokens: int | None = None) -> Answer:
        """Think about a question, in the prompt of the checkpoint's protocol, and write the answer.

        Args:
            max_new_tokens: the maximum length of the text; None: 256, or fewer if the model's
                `max_length` leaves less room.

        Raises:
            LatentRefError: the question is empty, is not valid text, or leaves no room.
        """
        return self.ask_all([question], max_new_tokens=max_new_tokens)[0]

    def ask_all(
        self, questions: Sequence[str], *, max_new_tokens: int | None = None
    ) -> list[Answer]:
        """Answer a batch of questions; arguments and errors are those of `ask`."""
        for question in questions:
            _check_text(question)
        protocol = self.protocol
        contexts = [
            tuple(
                self.tokenizer.encode(
                    protocol.prompt(question), add_special_tokens=protocol.adds_special_tokens
                )
            )
            for question in questions
        ]
        if max_new_tokens is None:
            rooms = [self.room(context) for context in contexts]
            limits = [MAX_NEW_TOKENS, *(room for room in rooms if room is not None)]
            max_new_tokens = max(1, min(limits))
        return self.answer(contexts, max_new_tokens=max_new_tokens)

    def room(self, context: Tokens) -> int | None:
        """The number of tokens that fit after `context` and its thoughts; None: no limit."""
        if self.max_length is None:
            return None
        # The last token is written but not read, so it takes no column.
        return self.max_length - len(context) - self.num_extra_columns + 1

    def answer(self, contexts: Sequence[Tokens], *, max_new_tokens: int) -> list[Answer]:
        """Think about contexts (token ids without markers); generate each answer greedily."""
        check_decoding(self.backbone.causal_lm.generation_config, thinks=self.thinks)
        for context in contexts:
            self.check_room(context, max_new_tokens)
        answers: dict[int, Answer] = {}
        with torch.no_grad(), self.accounting.working():
            for rows in self.trunks.in_order(contexts):
                part = [contexts[row] for row in rows]
                with _of_rows(rows):
                    answers.update(zip(rows, self._answer(part, max_new_tokens), strict=True))
        return [answers[row] for row in range(len(contexts))]

    def _answer(self, contexts: Sequence[Tokens], max_new_tokens: int) -> list[Answer]:
        answers: dict[int, Answer] = {}
        for rows, thoughts in self.think_in_groups(contexts):
            new_ids = self._write([contexts[row] for row in rows], thoughts, rows, max_new_tokens)
            texts = self.tokenizer.batch_decode(new_ids, skip_special_tokens=True)
            thoughts_BTD = thoughts.thoughts_BTD.cpu()
            for row, text, thoughts_TD in zip(rows, texts, thoughts_BTD, strict=True):
                answers[row] = Answer(text, self.protocol.extract(text), thoughts_TD)
        return [answers[row] for row in range(len(contexts))]

    def _write(
        self, contexts: Sequence[Tokens], thoughts: Thoughts, rows: Sequence[int], max_new: int
    ) -> Tensor:
        """New token ids (B, L) of a group of rows, generated greedily."""
        inputs = self.generation_inputs(contexts, thoughts)
        with self.checking_states(rows):
            output_BK = self.backbone.causal_lm.generate(
                **inputs,
                max_new_tokens=max_new,
                do_sample=False,
                num_beams=1,
                pad_token_id=padding_id(self.tokenizer),
            )
        new_BL = output_BK[:, inputs["input_ids"].shape[1] :]
        self.count_generated(new_BL.tolist())
        return new_BL

    def check_room(self, context: Tokens, max_new_tokens: int) -> None:
        """Raise LatentRefError if `max_new_tokens` tokens do not fit after `context`."""
        if max_new_tokens < 1:
            raise LatentRefError(f"max_new_tokens={max_new_tokens}: it must be an integer >= 1")
        room = self.room(context)
        if room is not None and max_new_tokens > room:
            raise LatentRefError(
                f"the question has {len(context)} tokens; with {self.num_extra_columns} columns of "
                f"thoughts and markers and max_new_tokens={max_new_tokens} that is more than "
                f"max_length={self.max_length}; shorten the question or lower max_new_tokens"
            )


def _check_text(question: str) -> None:
    if not question.strip():
        raise LatentRefError("the question is empty; give some text")
    try:
        question.encode()
    except UnicodeEncodeError as error:
        raise LatentRefError(
            f"the question contains {question[error.start]!a}, which is not a valid character; "
            "give UTF-8 text"
        ) from error
