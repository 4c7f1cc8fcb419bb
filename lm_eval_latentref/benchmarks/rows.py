"""Extracts question, steps, answer and candidate answers from the rows of the five benchmarks.

    benchmark = BENCHMARKS["aqua"]
    benchmark.example(row)      # Example(question="Three birds ...\\nA)32400, B)6000, ...", ...)
    benchmark.candidates(row)   # ("A", "B", "C", "D", "E")

Rows have the field names of the published data sets. `published` reads the files, and `splits`
forms our splits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.protocol import ClozeExample, Example

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """The functions that read a benchmark's rows."""

    name: str
    problem: Callable[[Row], str]
    """The bare problem, without the candidate answers; used to detect overlaps."""
    question: Callable[[Row], str]
    """The question for the model: the context without its final newline."""
    steps: Callable[[Row], tuple[str, ...]]
    """The gold reasoning, with an entry for each step; may be empty."""
    answer: Callable[[Row], str]
    candidates: Callable[[Row], tuple[str, ...]]
    """The answers to choose from; empty if the answer is free text."""

    def example(self, row: Row) -> Example:
        """The row as an `Example`.

        Raises:
            LatentRefError: a field is missing, or the gold answer is not among the candidates.
        """
        try:
            example = Example(self.question(row), self.steps(row), self.answer(row))
            candidates = self.candidates(row)
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise self._malformed(row, f"{type(error).__name__} {error}") from error
        if not example.answer or (candidates and example.answer not in candidates):
            raise self._malformed(row, f"answer {example.answer!r}, candidates {list(candidates)}")
        return example

    def _malformed(self, row: Row, reason: str) -> LatentRefError:
        start = str(dict(row))[:80]
        message = f"malformed {self.name} row ({reason}): {start}...; repair or remove that row"
        return LatentRefError(message.replace("\n", " "))


def harness_choices(options: str) -> list[str]:
    """The choices that lm-eval's own `mathqa` task parses from a MathQA `options` field.

    The regular expression is lm-eval's, so a model gets the same scores from both tasks. It has
    quirks: each of the choices a to d ends at the first comma that is followed by a space, even
    within the choice; choice e is the rest; and the quotes of list-like fields ("['a ) 1', 'b ) 2',
    ...]") are kept.
    """
    choices = re.findall(r"[abcd] \) .*?, |e \) .*?$", options)
    return [choice[4:].rstrip(" ,") for choice in choices]


def harness_example(row: Row) -> ClozeExample:
    """A MathQA row as in lm-eval's own `mathqa` task: without choices, the gold choice as answer.

    Raises:
        LatentRefError: the row does not have five choices with the gold answer among them.
    """
    letter, choices = row["correct"], harness_choices(row["options"])
    if letter not in tuple("abcde") or len(choices) != 5:
        raise LatentRefError(
            f"malformed mathqa row (correct {letter!r}, {len(choices)} choices in "
            f"{row['options']!r}); repair or remove that row"
        )
    answer = choices["abcde".index(letter)]
    return ClozeExample(row["Problem"], _rationale_steps(row), answer)


def _gsm8k_answer(row: Row) -> str:
    return row["answer"].rsplit("####", 1)[-1].replace(",", "").strip()


def _gsm8k_steps(row: Row) -> tuple[str, ...]:
    """The row's steps; without them the solution's equations ("<<48/2=24>>"), or else its lines."""
    if "steps" in row:
        return tuple(row["steps"])
    solution = row["answer"].rsplit("####", 1)[0]
    return tuple(re.findall(r"<<.*?>>", solution)) or tuple(solution.strip().splitlines())


_ANSWER_TAIL = re.compile(
    r"(?:(?:the|correct|so|hence|thus|final)\s+)*(?:answer|ans|option)\W*(?:is\W*)?[a-e]?\W*$", re.I
)


def _rationale_steps(row: Row) -> tuple[str, ...]:
    """The lines and sentences of the rationale, without a final "the answer is c" and the like."""
    text = (row.get("Rationale") or row.get("rationale") or "").strip().strip('"')
    pieces = re.split(r"\n+|(?<=[.!?])\s+(?=\D)", text)
    steps = (_ANSWER_TAIL.sub("", piece).strip() for piece in pieces)
    return tuple(step for step in steps if any(char.isalnum() for char in step))


def _offered_sentences(row: Row) -> tuple[str, ...]:
    """The two possible answers to a ProsQA question ("... Is Tom a lempus or gorpus?")."""
    choice = row["question"].rsplit("Is ", 1)[1].rstrip("?")
    person, _, concepts = choice.partition(" a ")
    return tuple(f"{person} is a {concept}." for concept in concepts.split(" or "))


BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            name="gsm8k",
            problem=lambda row: row["question"],
            question=lambda row: row["question"],
            steps=_gsm8k_steps,
            answer=_gsm8k_answer,
            candidates=lambda row: (),
        ),
        Benchmark(
            name="mathqa",
            problem=lambda row: row["Problem"],
            question=lambda row: f"{row['Problem']}\n{row['options']}",
            steps=_rationale_steps,
            answer=lambda row: row["correct"].lower(),
            candidates=lambda row: tuple("abcde"),
        ),
        Benchmark(
            name="aqua",
            problem=lambda row: row["question"],
            question=lambda row: f"{row['question']}\n{', '.join(row['options'])}",
            steps=_rationale_steps,
            answer=lambda row: row["correct"].upper(),
            candidates=lambda row: tuple("ABCDE"),
        ),
        Benchmark(
            name="strategyqa",
            problem=lambda row: row["question"],
            question=lambda row: row["question"],
            # The sub-questions, then the facts, because a sub-question such as "Is #2 greater than
            # #1?" is useful only with the facts that answer it.
            steps=lambda row: (*row["decomposition"], *row["facts"]),
            answer=lambda row: "yes" if row["answer"] else "no",
            candidates=lambda row: ("yes", "no"),
        ),
        Benchmark(
            name="prosqa",
            problem=lambda row: row["question"],
            question=lambda row: row["question"],
            steps=lambda row: tuple(row["steps"]),
            answer=lambda row: row["answer"],
            candidates=_offered_sentences,
        ),
    )
}
"""The five benchmarks by the names of their tasks."""
