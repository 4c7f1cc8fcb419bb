"""Generates modular arithmetic, computed from left to right: each step needs the previous result.

    rows = list(generate(5000, seed=0, split="test"))
    rows[0]["question"]     # "4 +7 *3 -9 ="
    rows[0]["steps"]        # ["0", "0", "2"] modulo 11; the answer is the last of them

Operands are never 0. With a prime modulus, a reader who does not know the first number or some
operation therefore cannot do better than chance, 1 / modulus.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice

from lm_eval_latentref.benchmarks.drawing import Row, check_request, distinct
from lm_eval_latentref.errors import LatentRefError

OPERATIONS = {
    "+": lambda value, operand: value + operand,
    "-": lambda value, operand: value - operand,
    "*": lambda value, operand: value * operand,
}

MOST = 1000
"""The largest modulus and number of steps: each problem lists all candidates and all steps."""


def generate(
    num: int,
    *,
    seed: int = 0,
    split: str = "train",
    modulus: int = 11,
    min_steps: int = 3,
    max_steps: int = 3,
) -> Iterator[Row]:
    """Yields `num` distinct problems; the first n are the same for every `num`.

    Args:
        num: the number of problems, 0 or more.
        seed: any integer; different seeds give different problems.
        split: "train", "validation" or "test"; no problem is in two splits, whatever the seeds.
        modulus: results are taken modulo this number, 2 to 1000.
        min_steps: the minimum number of operations; the number is drawn uniformly.
        max_steps: the maximum number of operations, at most 1000.

    Raises:
        LatentRefError: a value is out of range, or there are fewer than `num` problems.
    """
    check_request(num, split)
    if not 2 <= modulus <= MOST:
        raise LatentRefError(f"modulus={modulus}: it must be from 2 to {MOST}")
    if not 1 <= min_steps <= max_steps <= MOST:
        raise LatentRefError(
            f"min_steps={min_steps}, max_steps={max_steps}: they must be in order, from 1 to {MOST}"
        )
    # A string seed goes through SHA-512, so it does not depend on Python's hash randomisation.
    rng = random.Random(f"arith {split} {seed}")
    return islice(
        distinct(
            lambda: _draw(rng, modulus, rng.randint(min_steps, max_steps)),
            split,
            identity=lambda row: row["question"],
        ),
        num,
    )


def _draw(rng: random.Random, modulus: int, num_steps: int) -> Row:
    value = rng.randrange(modulus)
    words, steps = [str(value)], []
    for _ in range(num_steps):
        sign, operand = rng.choice(list(OPERATIONS)), rng.randrange(1, modulus)
        value = OPERATIONS[sign](value, operand) % modulus
        words.append(f"{sign}{operand}")
        steps.append(str(value))
    return Row(
        question=" ".join([*words, "="]),
        steps=steps,
        answer=steps[-1],
        candidates=[str(number) for number in range(modulus)],
    )
