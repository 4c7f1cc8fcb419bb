"""ProsQA problems with letters in place of names, which a small model can learn.

    row = lettered(load_split("prosqa", "test").rows[0])
    row["question"]     # "k> b c> a ... ; q f ; k": edges, both candidates, the person
    row["steps"]        # ["b", "m", "f"]: the nodes on the path; the last is the answer

An edge is two words: its source followed by ">", then its target. Facts and candidates have the
order of the original question. The letters differ from problem to problem.
"""

from __future__ import annotations

import functools
import random
import re
import string
from collections.abc import Iterator, Mapping
from typing import Any

from lm_eval_latentref.benchmarks import prosqa
from lm_eval_latentref.benchmarks.drawing import Row
from lm_eval_latentref.errors import LatentRefError

NUM_SYMBOLS = 28
"""The maximum number of nodes in a published problem."""

SYMBOLS = string.ascii_letters[:NUM_SYMBOLS]

_FACT = re.compile(r"(?:Every )?(\w+) is a (\w+)\.")


# `wraps` gives it the signature of `prosqa.generate`, which names the options.
@functools.wraps(prosqa.generate, assigned=())
def generate(*args: Any, **options: Any) -> Iterator[Row]:
    """Yields generated problems in letters; arguments and errors are those of `prosqa.generate`."""
    return map(lettered, prosqa.generate(*args, **options))


def lettered(row: Mapping[str, Any]) -> Row:
    """A published or generated ProsQA row in letters; the letters depend only on the question.

    Raises:
        LatentRefError: the question does not have ProsQA's wording.
    """
    question = row["question"]
    text, _, offer = question.rpartition(" Is ")
    person, _, concepts = offer.rstrip("?").partition(" a ")
    offered = concepts.split(" or ")
    facts = _FACT.findall(text)
    names = sorted({name for fact in facts for name in fact} | {person, *offered})
    if len(facts) != text.count(".") or len(offered) != 2 or len(names) > NUM_SYMBOLS:
        raise LatentRefError(
            f"not a ProsQA question with at most {NUM_SYMBOLS} names: {question[:80]!r}...; repair "
            "or remove that row"
        )
    letters = random.Random(f"letters {question}").sample(SYMBOLS, len(names))
    letter = dict(zip(names, letters, strict=True))
    edges = [f"{letter[up]}> {letter[down]}" for up, down in facts]
    candidates = [letter[name] for name in offered]
    steps = [letter[_FACT.findall(step)[0][1]] for step in row["steps"]]
    return Row(
        question=f"{' '.join(edges)} ; {' '.join(candidates)} ; {letter[person]}",
        steps=steps,
        answer=steps[-1],
        candidates=candidates,
    )
