"""Reports mistakes in the arguments of `latentref run` in one line, before a model is loaded.

    check(args)        # args: the result of lm-eval's own parser

lm-eval itself would report most of them with a traceback, after it has loaded the model.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import glob
import inspect
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from lm_eval_latentref._autoload import MODEL_NAME
from lm_eval_latentref.benchmarks.documents import tasks_path
from lm_eval_latentref.checkpoints.files import read_text, reading
from lm_eval_latentref.errors import LatentRefError, check_place

TOKEN_COUNTS = ("max_gen_toks", "max_tokens", "max_completion_tokens")
"""lm-eval's names for the maximum number of new tokens, besides those of transformers."""


def check(args: argparse.Namespace) -> None:
    """Raise LatentRefError on the first mistake in `args`."""
    level = getattr(args, "verbosity", None)
    if level and not isinstance(logging.getLevelName(level.upper()), int):
        raise LatentRefError(f"--verbosity {level}: give DEBUG, INFO, WARNING or ERROR")
    config = _config(args)
    if config.limit is not None and not 0 < config.limit < sys.maxsize:
        raise LatentRefError(
            f"--limit {config.limit:g}: give the number of documents, 1 or more, or a share of "
            "them between 0 and 1"
        )
    if config.num_fewshot is not None and config.num_fewshot < 0:
        raise LatentRefError(f"--num_fewshot {config.num_fewshot}: give 0 or more examples")
    if config.model == MODEL_NAME:
        _check_model(config, explicit_device=args.device)
    else:
        _check_other_model(config.model, config.model_args)
    from lm_eval_latentref.harness.lm_eval_seams import has_own_tests

    if config.check_integrity and not has_own_tests():
        raise LatentRefError(
            "--check_integrity runs lm-eval's own tests, which the installed package does not "
            "contain; leave it out, or install lm-eval from its repository"
        )
    if config.use_cache:
        from lm_eval_latentref.harness.response_cache import check_files

        check_place(f"{config.use_cache}_rank0.db", is_folder=False)
        check_files(config.use_cache)
    if config.output_path:
        check_place(config.output_path, is_folder=not config.output_path.endswith(".json"))
    _check_tasks(config)


def _config(args: argparse.Namespace) -> Any:
    """The configuration that lm-eval builds from `args`; raises LatentRefError if it refuses."""
    from lm_eval.config.evaluate_config import EvaluatorConfig

    try:
        with _silence():
            return EvaluatorConfig.from_cli(args)
    except (ValueError, TypeError, OSError) as error:
        raise LatentRefError(" ".join(str(error).split())) from error


@contextlib.contextmanager
def _silence() -> Any:
    # lm-eval logs the same messages again when it runs.
    loggers = [logging.getLogger(name) for name in ("lm_eval", "transformers")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _check_model(config: Any, *, explicit_device: str | None) -> None:
    from lm_eval_latentref.checkpoints.arguments import check_batch_size, check_device
    from lm_eval_latentref.harness.arguments import check_values
    from lm_eval_latentref.latent.decoding import check_names

    check_batch_size(config.batch_size)
    # lm-eval passes the value of --batch_size as well, and Python refuses an argument twice.
    if (rows := config.model_args.get("batch_size")) is not None:
        raise LatentRefError(f"--model_args batch_size={rows}: give --batch_size {rows} instead")
    check_values(config.model_args)
    if device := explicit_device or config.model_args.get("device"):
        check_device(device)
    check_names(config.gen_kwargs, also=("until", *TOKEN_COUNTS))
    if config.apply_chat_template:
        _check_chat_template(config.model_args, config.apply_chat_template)


def _check_other_model(name: str, model_args: Mapping[str, Any]) -> None:
    from lm_eval.api.registry import MODEL_REGISTRY, get_model

    if name not in MODEL_REGISTRY:
        nearest = difflib.get_close_matches(name, [MODEL_NAME, *MODEL_REGISTRY], n=1)
        advice = f"did you mean {nearest[0]}?" if nearest else "give hf or latentref, for example"
        raise LatentRefError(f"--model {name}: there is no such model; {advice}")
    with reading(f"the class of --model {name}", "install the packages it needs"):
        parameters = inspect.signature(get_model(name)).parameters.values()
    for parameter in parameters:
        is_named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        is_required = is_named and parameter.default is parameter.empty
        if is_required and parameter.name not in model_args:
            raise LatentRefError(
                f"--model {name} needs {parameter.name}; give --model_args {parameter.name}=VALUE"
            )


def _check_chat_template(model_args: Mapping[str, Any], template: bool | str) -> None:
    from lm_eval_latentref.checkpoints.opening import load_tokenizer
    from lm_eval_latentref.checkpoints.sets import CheckpointNames, resolve

    source = resolve(CheckpointNames.of(model_args)).backbone
    trusted = bool(model_args.get("trust_remote_code"))
    own = load_tokenizer(source, trust_remote_code=trusted).chat_template
    if own is None:
        raise LatentRefError(
            f"--apply_chat_template: the tokenizer of {source.name or source.base} has no chat "
            "template; leave the option out, or give a tokenizer= with a chat template"
        )
    if isinstance(own, dict) and isinstance(template, str) and template not in own:
        raise LatentRefError(
            f"--apply_chat_template {template}: the tokenizer's templates are {', '.join(own)}"
        )


def _check_tasks(config: Any) -> None:
    """Check names, overlapping groups and `--samples`, and load the data of our tasks."""
    from lm_eval.tasks import TaskManager

    from lm_eval_latentref.harness.lm_eval_seams import is_group, leaves, task_file
    from lm_eval_latentref.harness.trial import try_options

    with _silence():
        manager = TaskManager(include_path=config.include_path, metadata=config.metadata or {})
    names = [name for text in _as_list(config.tasks) for name in text.split(",") if name]
    if not names:
        raise LatentRefError("--tasks: name at least one task; `lm_eval ls tasks` lists all")
    is_alone = len(names) == 1
    given = dict.fromkeys(match for name in names for match in _matches(manager, name, is_alone))
    members = {name: leaves(manager, name) for name in given}
    for group in filter(lambda name: is_group(manager, name), given):
        for other in given:
            if other != group and (both := members[group] & members[other]):
                raise LatentRefError(
                    f"--tasks {group} and {other}: both contain {min(both)}; give one of them"
                )
    tasks = set().union(*members.values())
    samples = _samples(config.samples, tasks)
    ours = {name for name in tasks if (f := task_file(manager, name)) and f.parent == tasks_path()}
    for name in sorted(ours | samples.keys()):
        with _silence():
            task = manager.load([name])["tasks"][name]
        _check_range(name, samples.get(name, ()), len(task.eval_docs))
        if config.gen_kwargs and task.config.generation_kwargs:
            with _silence():
                try_options({**task.config.generation_kwargs, **config.gen_kwargs})


def _as_list(tasks: str | Iterable[str]) -> list[str]:
    return [tasks] if isinstance(tasks, str) else list(tasks)


def _matches(manager: Any, name: str, is_alone: bool) -> list[str]:
    if matches := manager.match_tasks([name]):
        return list(matches)
    if not is_alone and os.path.isdir(name):
        raise LatentRefError(
            f"--tasks {name}: a folder of task files cannot be combined with other tasks; give "
            f"--include_path {name} and the names of its tasks"
        )
    if files := _own_files(name):
        for file in files:  # lm-eval loads them later
            with reading(file, "correct it"):
                yaml.compose(read_text(file))
        return []
    nearest = difflib.get_close_matches(name, manager.all_tasks, n=3, cutoff=0.5)
    advice = f"did you mean {', '.join(nearest)}?" if nearest else "`lm_eval ls tasks` lists all"
    raise LatentRefError(f"--tasks {name}: there is no such task; {advice}")


def _own_files(name: str) -> list[str]:
    """The user's task files: `name` is a path or pattern that ends in .yaml, or a folder."""
    pattern = name if name.endswith(".yaml") else os.path.join(name, "*.yaml")
    return sorted(glob.glob(pattern))


def _samples(samples: Any, tasks: set[str]) -> dict[str, list[int]]:
    if not samples:
        return {}
    if not isinstance(samples, Mapping):
        raise LatentRefError(
            f'--samples {samples}: give JSON such as {{"{min(tasks, default="TASK")}": [0, 1]}}, '
            "or a file with JSON"
        )
    for name, numbers in samples.items():
        if name not in tasks:
            raise LatentRefError(f"--samples {name}: it is not among --tasks; add it there")
        if not isinstance(numbers, list) or not all(type(n) is int for n in numbers):
            raise LatentRefError(
                f"--samples {name}: give a list of document numbers, which start at 0"
            )
    return dict(samples)


def _check_range(name: str, numbers: Iterable[int], num_documents: int) -> None:
    for number in numbers:
        if not 0 <= number < num_documents:
            raise LatentRefError(
                f"--samples {name}: there is no document {number}; it has {num_documents}, "
                f"numbered from 0 to {num_documents - 1}"
            )
