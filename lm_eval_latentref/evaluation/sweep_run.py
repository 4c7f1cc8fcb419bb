"""Evaluates one checkpoint set on one task under many settings, keeping a journal.

    run = GridRun(model, task, grid.settings())
    cost = run.fill(path)                   # work in the journal at `path` is not done again
    outcomes, overflowed = run.outcomes()

The journal holds one JSON object per line. A process may be killed at any moment: an incomplete
last line is ignored when reading, and removed before anything is added.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm import tqdm

from lm_eval_latentref.checkpoints.files import parse_json, reading
from lm_eval_latentref.errors import LatentRefError, saving
from lm_eval_latentref.evaluation.dev_tasks import DevTask
from lm_eval_latentref.evaluation.provenance import versions
from lm_eval_latentref.evaluation.settings import Outcome, Setting
from lm_eval_latentref.evaluation.sweep_model import SweepModel, forwards
from lm_eval_latentref.latent.batching import Group, group_by_context, in_batches
from lm_eval_latentref.latent.config import OPTION_NAMES
from lm_eval_latentref.latent.reasoner import Reasoner
from lm_eval_latentref.latent.scoring import Score

logger = logging.getLogger(__name__)

JOURNAL_FORMAT = 2
"""The format of a line; lines of other formats are ignored."""

SWEPT = ("latent_steps", "memory_rate", "search_step_size", "search_steps")
"""The refinement options that are part of a setting."""


def check_comparable(reasoner: Reasoner) -> None:
    """Raises LatentRefError if settings cannot be compared with the model's kind of thoughts."""
    config = reasoner.config
    if why := reasoner.kind.why_not_refined:
        raise LatentRefError(
            f"latent_kind={config.latent_kind}: {why}; sweep a checkpoint of another kind"
        )
    if config.draws:
        raise LatentRefError(
            "settings are compared without random numbers; leave out thought_noise, "
            "thought_dropout and confidence_steps, and take the mean of Gaussian thoughts "
            "(thought_temperature=0, latent_stop=steps)"
        )


@dataclass
class Cost:
    """The cost of some work."""

    seconds: float = 0.0
    forwards: dict[str, int] = field(default_factory=dict)
    """The number of forward passes of each model."""

    def add(self, seconds: float, forwards: Mapping[str, int]) -> None:
        self.seconds += seconds
        for name, number in forwards.items():
            self.forwards[name] = self.forwards.get(name, 0) + number


class GridRun:
    """Scores of one model on one task, by setting and request.

    Args:
        written: if true, a document is right if greedy decoding writes exactly its gold answer and
            the end of sequence; if false, if the gold answer is the likeliest candidate. Tasks with
            free answers are always judged as if it were true.

    Raises:
        LatentRefError: settings cannot be compared with the model's kind of thoughts.
    """

    def __init__(
        self,
        model: SweepModel,
        task: DevTask,
        settings: Sequence[Setting],
        *,
        written: bool = False,
    ) -> None:
        self.model, self.task = model, task
        self.written = written or task.is_free
        base = model.reasoner.config
        check_comparable(model.reasoner)
        options = {name: getattr(base, name) for name in OPTION_NAMES if name not in SWEPT}
        hidden_size = model.reasoner.backbone.hidden_size
        self.configs = {setting: setting.config(hidden_size, **options) for setting in settings}
        self.identity = {
            name: value
            for name, value in model.reasoner.settings().items()
            if name not in SWEPT and (name, value) != ("latent_kind", "continuous")
        }
        self.pairs = model.encode(task.requests, ending=self.written)
        self.groups = group_by_context(self.pairs)
        self.keys = {setting: self._key(setting) for setting in self.configs}
        self.scores: dict[Setting, dict[int, Score | None]] = {
            setting: {} for setting in self.configs
        }
        """By setting and request; None if a thought overflowed."""

    def fill(self, path: Path) -> Cost:
        """Reads the scores in the journal at `path`, computes the missing scores and adds them.

        Returns the cost of all settings, including work of earlier calls.
        """
        cost = self._recall(path)
        missing = [group for group in self.groups if self._missing([group])]
        total = sum(len(self._missing([group])) for group in missing)
        with Journal(path) as journal, tqdm(total=total, desc="Sweeping", disable=not total) as bar:

            def work(batch: Sequence[Group], max_rows: int) -> None:
                for line in self._score(batch, max_rows):
                    journal.add(line)
                    cost.add(line["seconds"], line["forwards"])
                    bar.update(len(batch))

            limit = self.model.row_limit(len(missing))
            order = self.model.reasoner.trunks.in_order([group.context for group in missing])
            for part in ([missing[number] for number in numbers] for numbers in order):
                for _ in in_batches(part, limit=limit, work=work):
                    pass
        return cost

    def outcomes(self) -> tuple[list[Outcome], dict[Setting, int]]:
        """The outcomes, and for each setting that overflowed, on how many documents it did."""
        outcomes, overflowed = [], {}
        for setting, values in self.scores.items():
            rows = [
                [values[number] for number in document.requests] for document in self.task.documents
            ]
            num_bad = sum(None in row for row in rows)
            if num_bad:
                overflowed[setting] = num_bad
                continue
            judged = [
                _judge([value for value in row if value is not None], document.gold, self.written)
                for row, document in zip(rows, self.task.documents, strict=True)
            ]
            correct, margins = zip(*judged, strict=True)
            outcomes.append(Outcome(setting=setting, correct=correct, margins=margins))
        return outcomes, overflowed

    def _score(self, batch: Sequence[Group], max_rows: int) -> Iterator[dict[str, Any]]:
        """Computes the missing scores of `batch`; yields a journal line for each setting.

        The cost of work that settings share is counted for the first of these settings.
        """
        settings = self._missing(batch)
        configs = [self.configs[setting] for setting in settings]
        requests = [request for group in batch for request in group.requests]
        start, before = time.perf_counter(), forwards(self.model.reasoner)
        for number, scores in self.model.score_under(batch, configs, max_rows=max_rows):
            values = [value for row in scores for value in row]
            self.scores[settings[number]].update(zip(requests, values, strict=True))
            now, after = time.perf_counter(), forwards(self.model.reasoner)
            yield {
                "key": self.keys[settings[number]],
                "requests": requests,
                "values": values,
                "seconds": now - start,
                "forwards": {name: after[name] - before[name] for name in after},
            }
            start, before = now, after

    def _missing(self, batch: Sequence[Group]) -> list[Setting]:
        return [
            setting
            for setting, known in self.scores.items()
            if any(request not in known for group in batch for request in group.requests)
        ]

    def _recall(self, path: Path) -> Cost:
        settings, cost = {key: setting for setting, key in self.keys.items()}, Cost()
        for line in read_journal(path):
            with reading(path, ADVICE):
                if setting := settings.get(line["key"]):
                    values = [value and _recalled(*value) for value in line["values"]]
                    requests = map(int, line["requests"])
                    self.scores[setting].update(zip(requests, values, strict=True))
                    cost.add(float(line["seconds"]), line["forwards"])
        if num_known := sum(map(len, self.scores.values())):
            logger.info("%s already holds %d log-likelihoods of this sweep", path, num_known)
        return cost

    def _key(self, setting: Setting) -> str:
        """A key that identifies the answers of this model under `setting` to these requests."""
        identity = dict(self.identity)
        if not setting.step_size:
            for name in ("strong", "weak", "search_gradient"):
                identity.pop(name)
        facts = {
            "format": JOURNAL_FORMAT,
            "setting": dataclasses.astuple(setting),
            "model": identity,
            "task": [self.task.name, self.task.version],
            "requests": self.pairs,
            "package": versions().get("lm-eval-latentref"),
        }
        return _digest(facts)


def _recalled(log_likelihood: float, is_greedy: bool) -> Score:
    """A score from its values in the journal; raises TypeError for other types."""
    if not isinstance(log_likelihood, float) or not isinstance(is_greedy, bool):
        raise TypeError(f"{log_likelihood!r}, {is_greedy!r} is not a score")
    return Score(log_likelihood, is_greedy)


def _judge(scores: Sequence[Score], gold: int, written: bool) -> tuple[bool, float]:
    """Whether a document is right, and its margin in nats.

    If not `written`, it is right if the gold candidate is the likeliest; of equal candidates the
    first counts, as in lm-eval's acc. A free answer has no other candidates, so its margin is its
    log-likelihood.
    """
    values = [score.log_likelihood for score in scores]
    others = [value for number, value in enumerate(values) if number != gold]
    is_right = scores[gold].is_greedy if written else values.index(max(values)) == gold
    return is_right, values[gold] - max(others, default=0.0)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


ADVICE = "remove it to start from the beginning, or give another folder"


def read_journal(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The objects in the journal at `path`; empty if there is no file."""
    with reading(path, ADVICE):
        lines = _whole_lines(Path(path)).split(b"\n")
    values = []
    for number, line in enumerate(lines[:-1], start=1):
        with reading(f"{path}, line {number}", ADVICE):
            value = parse_json(line.decode("utf-8"))
            if not isinstance(value, dict):
                raise TypeError("not a JSON object")
        values.append(value)
    return values


class Journal:
    """The journal file, open for adding lines, which are flushed at once."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab")
        except OSError as error:
            raise LatentRefError(
                f"{path.parent} cannot be written to ({error.strerror}); give another folder"
            ) from error
        self._file.truncate(len(_whole_lines(path)))

    def add(self, value: dict[str, Any]) -> None:
        """Writes one line."""
        with saving(self._path):
            self._file.write(json.dumps(value, allow_nan=False).encode() + b"\n")
            self._file.flush()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # After an error, closing repeats the failed write, which has been reported already.
        with contextlib.suppress(OSError) if kind is not None else saving(self._path):
            self._file.close()


def _whole_lines(path: Path) -> bytes:
    content = path.read_bytes() if path.is_file() else b""
    return content[: content.rfind(b"\n") + 1]
