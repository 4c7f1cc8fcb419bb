"""Everything that this package relies on in lm-eval beyond public calls.

    class LatentRefLM(SeamLM): ...       # implements the methods that raise NotImplementedError

`SeamLM` gives public names to the private methods of HFLM that we override or call. The contract
tests (`pytest -m contract`) check every assumption made here on the installed lm-eval.
"""

from __future__ import annotations

import argparse
import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lm_eval import evaluator_utils
from lm_eval.models.huggingface import HFLM, stop_sequences_criteria
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Kind
from torch import Tensor

from lm_eval_latentref import _autoload
from lm_eval_latentref.checkpoints import unpacked
from lm_eval_latentref.errors import printable

Request = tuple[Any, list[int], list[int]]
"""A request to score: (context, continuation) as text, ids of the context, ids of the continuation.
"""

NOT_SAVED = "Could not save"
"""The first words of the warning that lm-eval logs when it cannot write a file."""

DEFAULT_DEVICE = "cuda:0"
"""The default device of lm-eval's command line, with or without a GPU."""

_TRACKER = "lm_eval.loggers.evaluation_tracker"


def loading_arguments() -> frozenset[str]:
    """The names of the arguments that HFLM itself uses to load a model."""
    return frozenset(inspect.signature(HFLM._create_model).parameters)


class SeamLM(HFLM):
    """HFLM with public names for private methods; weights are loaded after HFLM's `__init__`."""

    batch_size_per_gpu: Any
    _model: Any
    _device: torch.device
    _rank: int
    _world_size: int
    logits_cache: bool
    _scores_windows = False

    def check_backend(self) -> None:
        """Raise LatentRefError if models of the kind `self.backend` cannot be used."""

    def open_tokenizer(
        self, tokenizer: Any, *, trust_remote_code: bool, use_fast: Any, add_bos_token: Any
    ) -> Any:
        """The tokenizer; the arguments are those of HFLM."""
        raise NotImplementedError

    def score_pairs(
        self, requests: Sequence[Request], disable_tqdm: bool
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of each request's continuation, and whether it is greedy."""
        raise NotImplementedError

    def score_windows(
        self, windows: Sequence[Request], disable_tqdm: bool
    ) -> list[tuple[float, bool]]:
        """Log-likelihoods of one batch of windows of whole texts, and whether each is greedy."""
        raise NotImplementedError

    def write(self, context_BC: Tensor, max_length: int, stop: list[str], **options: Any) -> Tensor:
        """`context_BC` followed by the new text; the arguments are those of `write_as_hf`."""
        raise NotImplementedError

    @contextmanager
    def scoring_windows(self) -> Iterator[None]:
        """Pass HFLM's requests to `score_windows` inside this block, not to `score_pairs`."""
        self._scores_windows = True
        try:
            yield
        finally:
            self._scores_windows = False

    def finish_setting_up(self) -> None:
        """Load the models, which HFLM's `__init__` has postponed, and set this process's rank."""
        if isinstance(self._model, _LoadedLater):
            arguments, self._model = self._model.arguments, None
            self.open_models(arguments)
        if hasattr(self, "accelerator"):
            # HFLM sets these for several GPUs only, and to the index on the local machine.
            self._rank = self.accelerator.process_index
            self._world_size = self.accelerator.num_processes

    def open_models(self, arguments: dict[str, Any]) -> None:
        """Load all models and set `_model`; `arguments` are those of `open_as_hf`."""
        raise NotImplementedError

    # HFLM's implementations, under public names.

    def open_as_hf(self, name: str, **arguments: Any) -> Any:
        """The model `name`, opened by HFLM with its placement and quantisation."""
        super()._create_model(name, **{**arguments, "peft": None})
        return self._model

    def score_windows_as_hf(
        self, windows: Sequence[Request], disable_tqdm: bool
    ) -> list[tuple[float, bool]]:
        """HFLM's scores of `windows`, all in one forward.

        `logits_cache` is switched off, because it confuses windows with the same tokens whose
        scored parts start at different positions.
        """
        uses_cache, self.logits_cache = self.logits_cache, False
        try:
            return super()._loglikelihood_tokens(list(windows), disable_tqdm, len(windows))
        finally:
            self.logits_cache = uses_cache

    def write_as_hf(
        self, context_BC: Tensor, max_length: int, stop: list[str], **options: Any
    ) -> Tensor:
        """Context and new text (B, L) from HFLM's call of transformers' `generate`."""
        return super()._model_generate(context_BC, max_length, stop, **options)

    def up_to_stop(self, ids: list[int], stop: list[str]) -> list[int]:
        """New token ids, cut where HFLM would end a batch of this row alone."""
        criteria = stop_sequences_criteria(self.tokenizer, stop, 0, 1)
        ids_1L = torch.tensor([ids])
        lengths = range(1, len(ids))
        return ids[: next((n for n in lengths if criteria(ids_1L[:, :n], None).all()), len(ids))]

    # Overrides of HFLM's methods.

    @property
    def model(self) -> Any:
        """The model. HFLM would unwrap it with accelerate, which fails before it is loaded."""
        return self._model

    def _get_backend(self, *args: Any, **kwargs: Any) -> None:
        super()._get_backend(*args, **kwargs)
        self.check_backend()

    def _get_config(self, pretrained: str, **where: Any) -> None:
        name, where = unpacked.header(pretrained, where)
        super()._get_config(name, **where)

    def _create_tokenizer(self, pretrained: Any, tokenizer: Any, **kwargs: Any) -> None:
        self.tokenizer = self.open_tokenizer(
            tokenizer,
            trust_remote_code=bool(kwargs["trust_remote_code"]),
            use_fast=kwargs["use_fast_tokenizer"],
            add_bos_token=kwargs["add_bos_token"],
        )

    def _create_model(self, pretrained: str, **kwargs: Any) -> None:
        # Loading is postponed, because after this call HFLM checks more arguments, and it ties
        # weights again, which fails with adapters. Each base ties its weights when it is opened.
        self._model = _LoadedLater(kwargs)

    def _loglikelihood_tokens(
        self,
        requests: Sequence[Request],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        score = self.score_windows if self._scores_windows else self.score_pairs
        return score(requests, disable_tqdm)

    def _model_generate(
        self, context: Tensor, max_length: int, stop: list[str], **generation_kwargs: Any
    ) -> Tensor:
        return self.write(context, max_length, stop, **generation_kwargs)


class _LoadedLater:
    """A placeholder for the model in HFLM's `__init__`, which ignores it as it is not a module."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.arguments = arguments

    def to(self, device: Any) -> None:
        """Do nothing, because there is no model yet."""


def parse_run(
    arguments: Sequence[str],
) -> tuple[argparse.Namespace, Callable[[argparse.Namespace], None]]:
    """The arguments of `lm_eval run`, parsed by lm-eval, and the function that executes them.

    Without arguments lm-eval's help is printed, and the process exits.
    """
    from lm_eval._cli import HarnessCLI

    command_line = HarnessCLI()
    options = command_line._subparsers.choices["run"]._option_string_actions
    options["--model"].help = f"Model name (default: {_autoload.MODEL_NAME})"
    # HarnessCLI.parse_args would read sys.argv, which all threads share.
    args = command_line._parser.parse_args(["run", *(arguments or ["--help"])])
    return args, command_line.execute


class _ToLmEval(logging.Handler):
    """Passes log records to lm-eval's logger, which has its own level and handlers."""

    def emit(self, record: logging.LogRecord) -> None:
        record.msg, record.args = printable(record.getMessage()), ()
        logger = logging.getLogger("lm_eval")
        if logger.isEnabledFor(record.levelno):
            logger.handle(record)


def log_as_lm_eval() -> None:
    """Pass this package's log records to lm-eval's logger, at its level."""
    ours = logging.getLogger("lm_eval_latentref")
    if any(isinstance(handler, _ToLmEval) for handler in ours.handlers):
        return
    ours.addHandler(_ToLmEval())
    ours.propagate = False
    if ours.level == logging.NOTSET:
        ours.setLevel(logging.DEBUG)


@contextmanager
def recording_unsaved_files() -> Iterator[list[str]]:
    """Yield a list of lm-eval's warnings about files that it fails to write in this block."""
    warnings: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if warnings or record.getMessage().startswith(NOT_SAVED):
                warnings.append(record.getMessage())

    handler, tracker = Handler(), logging.getLogger(_TRACKER)
    tracker.addHandler(handler)
    try:
        yield warnings
    finally:
        tracker.removeHandler(handler)


def has_own_tests() -> bool:
    """Whether lm-eval's tests, which `--check_integrity` runs, lie beside its package."""
    try:
        evaluator_utils.find_test_root(start_path=Path(evaluator_utils.__file__))
    except FileNotFoundError:
        return False
    return True


def is_group(manager: TaskManager, name: str) -> bool:
    """Whether `name` is a group of tasks."""
    return bool(manager.task_index[name].kind is Kind.GROUP)


def task_file(manager: TaskManager, name: str) -> Path | None:
    """The YAML file of a task; None if lm-eval's index has none."""
    entry = manager.task_index.get(name)
    return None if entry is None else entry.yaml_path


def leaves(manager: TaskManager, name: str) -> set[str]:
    """The names of all tasks in a task, group or tag, from lm-eval's index; nothing is loaded."""
    entry = manager.task_index.get(name)
    if entry is None or entry.kind in (Kind.TASK, Kind.PY_TASK):
        return {name}
    if entry.kind is Kind.TAG:
        return set().union(*(leaves(manager, task) for task in entry.tags))
    members = (entry.cfg or {}).get("task") or []
    names = [m if isinstance(m, str) else m.get("task", m.get("group")) for m in members]
    return set().union(*(leaves(manager, task) for task in names if isinstance(task, str)))
