"""Generates problems by the name of the generator, and checks its options.

    rows = generate("graph", 5000, seed=0, split="test", options={"nodes": 18})
    rows[0]["question"], rows[0]["steps"], rows[0]["answer"]

The names are used in a recipe's `train` and in a task file's `generator`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from lm_eval_latentref.benchmarks import arith, graph, prosqa, prosqa_letters
from lm_eval_latentref.errors import LatentRefError

GENERATORS: dict[str, Callable[..., Iterator[Any]]] = {
    "graph": graph.generate,
    "arith": arith.generate,
    "prosqa_generated": prosqa.generate,
    "prosqa_letters": prosqa_letters.generate,
}
"""The generators by name; `prosqa` is the published benchmark, hence `prosqa_generated`."""


def generate(
    name: str, num: int, *, seed: int, split: str, options: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """`num` problems from the generator `name`.

    Raises:
        LatentRefError: there is no such generator, or an option is unknown or out of range.
    """
    if name not in GENERATORS:
        raise LatentRefError(f"no generated task {name!r}: use {' or '.join(GENERATORS)}")
    known = set(inspect.signature(GENERATORS[name]).parameters) - {"num", "seed", "split"}
    if unknown := sorted(options.keys() - known):
        allowed = f"they are {', '.join(sorted(known))}" if known else "it has none"
        raise LatentRefError(f"{unknown[0]!r} is not an option of {name}; {allowed}")
    for option, value in options.items():
        # All options of all generators are counts.
        if type(value) is not int:
            raise LatentRefError(f"{option}={value!r}: it must be an integer")
    return list(GENERATORS[name](num, seed=seed, split=split, **options))
