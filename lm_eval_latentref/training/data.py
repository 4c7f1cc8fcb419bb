"""Training data: examples from benchmarks, generated tasks and files, checked and encoded.

    data = load_data(recipe)
    for problem in encode(data.epoch(0), tokenizer): ...

Files have Coconut's format: a JSON list, or JSON lines, of objects with `question`, `steps` and
`answer`. Bad rows and questions that occur in a dev or test split are left out; their numbers are
logged.
"""

from __future__ import annotations

import collections
import functools
import hashlib
import json
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from lm_eval_latentref.benchmarks import splits
from lm_eval_latentref.benchmarks.generators import GENERATORS, generate
from lm_eval_latentref.benchmarks.rows import BENCHMARKS
from lm_eval_latentref.checkpoints.files import one_line, parse_json, read_text, write_text
from lm_eval_latentref.checkpoints.questions import normalise_question
from lm_eval_latentref.errors import LatentRefError, saving
from lm_eval_latentref.latent.protocol import Example
from lm_eval_latentref.training.curriculum import Problem
from lm_eval_latentref.training.recipe import Recipe

logger = logging.getLogger(__name__)

NUM_GENERATED = 10_000
"""The default number of fresh problems in an epoch."""

EPOCH_SEEDS = 1_000_000
"""Epoch e (from 0) of a run with seed s draws from the train split of seed s * EPOCH_SEEDS + e.
Seeds are never negative."""

MAX_SHOWN = 10
"""The maximum number of places that a summary lists for each rule."""


@dataclass(frozen=True)
class TrainingData:
    """The data for training and validation."""

    validation_by_source: Mapping[str, Sequence[Example]]
    epoch: Callable[[int], list[Example]]
    """The training examples of an epoch, counted over the whole run."""
    fixed: Sequence[Example] = ()
    """All examples from files and benchmarks. Generated examples are not included: they differ
    between epochs."""
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """For each file and benchmark: how many `problems` were kept, and how many were `removed`
    because they are held out."""

    @property
    def validation(self) -> list[Example]:
        """The validation problems of all sources, one source after another."""
        return [example for source in self.validation_by_source.values() for example in source]

    @property
    def texts(self) -> Iterator[str]:
        """All text known before training: everything but the text generated for later epochs."""
        return texts([*self.fixed, *self.epoch(0), *self.validation])

    @property
    def majority(self) -> float:
        """The accuracy of always giving the most frequent validation answer of each source."""
        sources = self.validation_by_source.values()
        answers = (collections.Counter(row.answer for row in source) for source in sources)
        num_right = sum(max(counts.values(), default=0) for counts in answers)
        return num_right / len(self.validation)

    def digest(self) -> str:
        """A hash that identifies the data."""
        known = [*self.fixed, *self.epoch(0), *self.validation]
        return hashlib.sha256(json.dumps(list(map(_values, known))).encode()).hexdigest()


def load_data(recipe: Recipe) -> TrainingData:
    """The data that `recipe` names.

    Raises LatentRefError if a name, file or generator argument cannot be used, or no row is left.
    """
    if recipe.task and not GENERATORS.keys() & set(recipe.train):
        raise LatentRefError(
            f"task={recipe.task} has no effect on train={', '.join(recipe.train)}, which is not "
            f"generated; leave it out, or train on {' or '.join(GENERATORS)}"
        )
    validation_by_source = _validation(recipe)
    validation = [example for source in validation_by_source.values() for example in source]
    held_out = {normalise_question(example.question) for example in validation}
    if leaves_questions_out(recipe.train, recipe.check_overlap):
        held_out |= _benchmark_questions()
    elif not recipe.check_overlap:
        logger.info("check_overlap=false: only the questions of `validation` are held out")
    _require_examples("validation", validation)
    loaded = {name: _train(name, held_out) for name in recipe.train if name not in GENERATORS}
    fixed = {name: examples for name, (examples, _) in loaded.items()}
    sources = [
        functools.partial(_next_examples, fixed[name], recipe.num_train, place / len(recipe.train))
        if name in fixed
        else _generated(recipe, name, held_out)
        for place, name in enumerate(recipe.train)
    ]
    return TrainingData(
        validation_by_source,
        lambda number: [example for source in sources for example in source(number)],
        fixed=[example for examples in fixed.values() for example in examples],
        counts={
            name: {"problems": len(examples), "removed": num_removed}
            for name, (examples, num_removed) in loaded.items()
        },
    )


def leaves_questions_out(train: Collection[str], check_overlap: bool) -> bool:
    """Whether questions of the benchmarks' dev and test splits are removed from the training data.

    Benchmarks always lose them; files lose them if `check_overlap`. Generated tasks never do: their
    own splits are disjoint.
    """
    names = set(train)
    return bool(splits.TRAINING.keys() & names) or (
        check_overlap and not GENERATORS.keys() >= names
    )


def texts(examples: Iterable[Example]) -> Iterator[str]:
    """All text in `examples` that a model reads or writes."""
    for example in examples:
        yield example.context
        yield from map(step_text, example.steps)
        yield example.written_answer


def step_text(step: str) -> str:
    """A reasoning step as the model writes it, with the newline that ends it."""
    return step + "\n"


def encode(examples: Sequence[Example], tokenizer: Any) -> list[Problem]:
    """`examples` as token ids of the prompt protocol's text; EOS ends each answer."""
    questions = tokenizer([example.context for example in examples])["input_ids"]
    plain = {example.written_answer for example in examples}
    plain |= {step_text(step) for example in examples for step in example.steps}
    texts = sorted(plain)
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    ids = {text: tuple(row) for text, row in zip(texts, encoded, strict=True)}
    return [
        Problem(
            tuple(question),
            tuple(ids[step_text(step)] for step in example.steps),
            (*ids[example.written_answer], tokenizer.eos_token_id),
        )
        for example, question in zip(examples, questions, strict=True)
    ]


def read_examples(path: str) -> list[Example]:
    """The examples in the JSON or JSON-lines file `path`.

    Bad rows are left out; a warning gives their number, their places and the reasons. Raises
    LatentRefError if the file cannot be read.
    """
    text = read_text(
        path,
        f"give a benchmark ({', '.join(splits.TRAINING)}), a generated task "
        f"({', '.join(GENERATORS)}) or a JSON file",
    )
    examples, bad = parse_examples(path, text)
    if bad:
        reasons = summary(bad, "row" if is_list(text) else "line")
        num_rows = len(examples) + len(bad)
        logger.warning("%s: %d bad rows left out of %d: %s", path, len(bad), num_rows, reasons)
    return examples


def write_rows(path: str, rows: Iterable[Any]) -> int:
    """Writes `rows` as a JSON list, or as JSON lines to a .jsonl file; returns their number.

    Folders on the path are created.
    """
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    text = "\n".join(lines) if path.endswith(".jsonl") else "[\n" + ",\n".join(lines) + "\n]"
    with saving(path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text + "\n")
    return len(lines)


def write_generated(
    task: str, path: str, *, num: int, seed: int, split: str, options: Mapping[str, Any]
) -> int:
    """Writes `num` problems of a generated task to `path`; returns their number."""
    if not path.endswith((".json", ".jsonl")):
        raise LatentRefError(f"output={path}: give a name that ends in .json or .jsonl")
    return write_rows(path, generate(task, num, seed=seed, split=split, options=options))


def _validation(recipe: Recipe) -> dict[str, list[Example]]:
    """The validation problems, divided equally among the sources that have a dev split."""
    if recipe.validation is not None:
        examples = read_examples(recipe.validation)
        return {"validation": examples[: recipe.num_validation]}
    num_problems = recipe.num_validation or 500
    with_dev = [name for name in recipe.train if name in BENCHMARKS or name in GENERATORS]
    if not with_dev:
        raise LatentRefError(
            f"train={', '.join(recipe.train)} has no problems to validate on; give "
            "validation=FILE, or train on a benchmark or generated task as well"
        )
    share, rest = divmod(num_problems, len(with_dev))
    nums = {name: share + (place < rest) for place, name in enumerate(with_dev)}
    return {
        name: _generate_examples(recipe, name, num, 0, "validation")
        if name in GENERATORS
        else splits.load(name, "dev")[:num]
        for name, num in nums.items()
    }


def _next_examples(
    examples: Sequence[Example], num: int | None, start: float, epoch: int
) -> Sequence[Example]:
    """The `num` examples of `epoch`, which begins where the previous epoch ended.

    Args:
        start: where epoch 0 begins, as a fraction of `examples`. Sources that contain the same
            problems in different words begin at different places, so that an epoch has more
            distinct problems.
    """
    if num is None or num >= len(examples):
        return examples
    first = int(start * len(examples)) + epoch * num
    return [examples[at % len(examples)] for at in range(first, first + num)]


def _generated(
    recipe: Recipe, name: str, held_out: Collection[str]
) -> Callable[[int], Sequence[Example]]:
    """A function that draws the problems of an epoch, without those in a validation file."""
    num_train, first = recipe.num_train or NUM_GENERATED, recipe.seed * EPOCH_SEEDS
    logged: set[int] = set()

    def epoch(number: int) -> list[Example]:
        drawn = _generate_examples(recipe, name, num_train, first + number, "train")
        if recipe.validation is None:  # the generator's own splits are disjoint
            return drawn
        kept = [row for row in drawn if normalise_question(row.question) not in held_out]
        if number not in logged:
            logged.add(number)
            logger.info(
                "%s: %d of the %d problems of epoch %d removed because they are in %s",
                name,
                len(drawn) - len(kept),
                len(drawn),
                number + 1,
                recipe.validation,
            )
        _require_examples(f"train={name}", kept)
        return kept

    return epoch


def _require_examples(name: str, examples: Sequence[Example]) -> None:
    if not examples:
        raise LatentRefError(f"{name}: no usable examples are left; give other data")


def _generate_examples(recipe: Recipe, name: str, num: int, seed: int, split: str) -> list[Example]:
    rows = generate(name, num, seed=seed, split=split, options=recipe.task)
    return [Example(row["question"], tuple(row["steps"]), row["answer"]) for row in rows]


def _train(name: str, held_out: Collection[str]) -> tuple[list[Example], int]:
    """The training examples of `name` whose questions are not held out; the number removed."""
    num_removed = 0
    if name in splits.TRAINING:
        examples, num_removed = splits.load_training(name, held_out)
    else:
        examples = read_examples(name)
    kept = [row for row in examples if normalise_question(row.question) not in held_out]
    num_removed += len(examples) - len(kept)
    logger.info(
        "%s: %d training examples; %d removed because their question is held out",
        name,
        len(kept),
        num_removed,
    )
    _require_examples(f"train={name}", kept)
    return kept, num_removed


def _benchmark_questions() -> frozenset[str]:
    try:
        return splits.held_out_questions()
    except LatentRefError as error:
        raise LatentRefError(
            f"the benchmarks' dev and test questions, which must not be trained on, are not "
            f"available: {error}; or give check_overlap=false if the data contains none of them"
        ) from error


def _values(example: Example) -> list[Any]:
    return [example.context, list(example.steps), example.written_answer]


class BadRow(NamedTuple):
    """A row that is left out."""

    number: int
    """Its line, or its place in a list, counted from 1."""
    rule: str
    """The first rule that it breaks."""


def parse_examples(path: str, text: str) -> tuple[list[Example], list[BadRow]]:
    """The examples in `text`, which was read from `path`, and its bad rows.

    Raises LatentRefError if a list is truncated.
    """
    examples, bad = [], []
    for number, value in _rows(path, text):
        rule = "it is not a JSON object" if value is None else _broken_rule(value)
        if rule:
            bad.append(BadRow(number, rule))
        else:
            steps = tuple(value["steps"])
            examples.append(Example(value["question"], steps, value["answer"]))
    return examples, bad


def summary(bad: Sequence[BadRow], unit: str = "line") -> str:
    """The broken rules, each with the numbers of the lines or rows (`unit`) that break it."""
    numbers: dict[str, list[int]] = {}
    for row in bad:
        numbers.setdefault(row.rule, []).append(row.number)
    return "; ".join(f"{rule}: {_places(rows, unit)}" for rule, rows in numbers.items())


def _places(numbers: Sequence[int], unit: str) -> str:
    """ "line 3", or "lines 3, 7-9 and 12 more"."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][-1] + 1:
            ranges[-1] = [ranges[-1][0], number]
        else:
            ranges.append([number])
    shown = ", ".join("-".join(map(str, ends)) for ends in ranges[:MAX_SHOWN])
    num_left = sum(ends[-1] - ends[0] + 1 for ends in ranges[MAX_SHOWN:])
    more = f" and {num_left} more" if num_left else ""
    return f"{unit}{'s' * (len(numbers) > 1)} {shown}{more}"


def _rows(path: str, text: str) -> Iterator[tuple[int, Any]]:
    """Each row with its place in the list or its line; None for a line that is not JSON."""
    if is_list(text):
        try:
            yield from enumerate(parse_json(text), start=1)
        except (ValueError, RecursionError) as error:
            raise LatentRefError(
                f"{path} is truncated or not JSON ({one_line(error)}); fix the file"
            ) from error
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield number, parse_json(line)
            except (ValueError, RecursionError):
                yield number, None


def is_list(text: str) -> bool:
    """Whether the rows are one JSON list; otherwise each line is a row."""
    return text.lstrip().startswith("[")


def _broken_rule(value: Any) -> str | None:
    """The first rule that a row breaks; None for a good row."""
    if not isinstance(value, dict):
        return "it is not a JSON object"
    for name in ("question", "answer"):
        if not isinstance(value.get(name), str) or not value[name].strip():
            return f"{name} is not a non-empty string"
    steps = value.get("steps")
    if not isinstance(steps, list) or not all(isinstance(step, str) for step in steps):
        return "steps is not a list of strings"
    if "#" in value["answer"]:
        return "answer contains '#', which marks the beginning of an answer"
    return None
