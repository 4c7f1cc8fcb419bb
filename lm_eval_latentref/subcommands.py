"""What each subcommand of `latentref` does: one call of the library, and what is printed of it.

    status = ask(args)      # args: as the parser of `cli` gives them

Returns the exit status. Holds no logic and knows no parser; what a subcommand needs is imported
when it runs, so that `--help` is quick.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lm_eval_latentref.errors import LatentRefError

MODEL_OPTIONS = {
    "pretrained": "hub id, folder or packaged set (default: smollm2-135m)",
    "strong": "the reference to move towards: hub id, folder, adapter or state dict",
    "weak": "the reference to move away from",
    "weights": "raw state dict laid over the backbone: a file, or REPO_ID:PATH/IN/REPO",
    "latent_steps": "number of thoughts",
    "memory_rate": "residual mixing rate, 0 to 1",
    "search_step_size": "step size of the contrastive search",
    "search_steps": "inner steps of the search",
    "search_gradient": "detached or through",
    "latent_markers": "auto or none",
    "latent_kind": "continuous or pause",
}

NAMES_OF_A_SET = ("pretrained", "strong", "weak", "weights")


def run(arguments: Sequence[str]) -> int:
    """Hands lm-eval its command line, with this package's model and tasks."""
    from lm_eval_latentref.harness.command import run

    run(arguments)
    return 0


def tasks_path(args: argparse.Namespace) -> int:
    """Prints the folder for lm-eval's --include_path."""
    from lm_eval_latentref.benchmarks.tasks import tasks_path

    print(tasks_path())
    return 0


def ask(args: argparse.Namespace) -> int:
    """Prints the answer to one question, and the size of each thought where that is asked."""
    from lm_eval_latentref.checkpoints.loading import load

    answer = load(**_model_arguments(args)).ask(args.question, max_new_tokens=args.max_new_tokens)
    if args.show_thoughts:
        for number, thought_D in enumerate(answer.thoughts, start=1):
            print(f"thought {number}: norm {thought_D.norm():.3f}")
    print(answer.text)
    return 0


def convert(args: argparse.Namespace) -> int:
    """Writes a set of checkpoints as one folder."""
    from lm_eval_latentref.checkpoints.convert import convert

    folder = convert(
        out=args.output, adapter=args.adapter, tuned_on=args.tuned_on, **_model_arguments(args)
    )
    print(folder)
    return 0


def train(args: argparse.Namespace) -> int:
    """Trains by a recipe, telling how far it is."""
    import logging

    import transformers

    from lm_eval_latentref.training.loop import train
    from lm_eval_latentref.training.recipe_files import load_recipe

    recipe = load_recipe(args.recipe, args.overrides)
    transformers.utils.logging.disable_progress_bar()  # one bar is enough
    logging.basicConfig(format="%(message)s")
    logging.getLogger("lm_eval_latentref").setLevel(logging.INFO)
    try:
        train(recipe)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from the state saved last", file=sys.stderr)
        raise
    return 0


def data(args: argparse.Namespace) -> int:
    """Writes generated problems to a file."""
    from lm_eval_latentref.training.data import write_generated
    from lm_eval_latentref.training.recipe_files import parse_overrides

    options = parse_overrides(args.options)
    num = write_generated(
        args.task, args.output, num=args.num, seed=args.seed, split=args.split, options=options
    )
    print(f"{args.output}: {num} problems")
    return 0


def sweep(args: argparse.Namespace) -> int:
    """Tries settings on a dev split; prints the table, then one JSON line."""
    import json

    from lm_eval_latentref.evaluation.provenance import command
    from lm_eval_latentref.evaluation.sweep import sweep
    from lm_eval_latentref.evaluation.sweep_report import as_text, last_line, save

    names = ("task", "output", "limit", "seed", "compare", "write", "include_path", "latent_steps")
    grids = ("memory_rates", "step_sizes", "search_steps")
    options = {name: getattr(args, name) for name in (*names, *grids)}
    # One row at a time, as lm-eval begins with, would undo most of what a sweep saves.
    model_args = {"batch_size": 32, **_model_arguments(args, NAMES_OF_A_SET)}
    try:
        result = sweep(model_args, metadata=_metadata(args.metadata), **options)
    except KeyboardInterrupt:
        print(
            f"interrupted: what is finished is in {args.output}, the same command goes on",
            file=sys.stderr,
        )
        raise
    save(result, args.output, command=command())
    print(as_text(result))
    print(json.dumps(last_line(result)))
    return 0


def compare(args: argparse.Namespace) -> int:
    """Prints the paired tests of two runs, then one JSON line."""
    import json

    from lm_eval_latentref.evaluation.answers import read_answers
    from lm_eval_latentref.evaluation.compare import as_json, as_text, compare

    first, second = (read_answers(name, metric=args.metric) for name in (args.first, args.second))
    found = compare(first, second, seed=args.seed)
    print(as_text(found))
    print(json.dumps(as_json(found)))
    return 0


def check(args: argparse.Namespace) -> int:
    """Prints what the gate says, or writes its files anew; the status is the verdict's."""
    from lm_eval_latentref.evaluation.check import STATUS, check
    from lm_eval_latentref.evaluation.check_report import announce, render

    if args.write_golden:
        return _write_golden(args)
    if args.update and not (args.baseline and Path(args.baseline).exists()):
        return _update(args)
    names = ("baseline", "max_drop", "significance", "golden", "show_flips")
    report = check(args.candidate, **{name: getattr(args, name) for name in names})
    print(render(report, args.format))
    if args.update:
        return _update(args)
    announce(report)
    return STATUS[report.verdict]


def _update(args: argparse.Namespace) -> int:
    from lm_eval_latentref.evaluation.check_update import update_baseline

    if args.baseline is None:
        raise LatentRefError("--update writes a baseline; name it with --baseline")
    update_baseline(args.candidate, args.baseline)
    print(f"{args.baseline} now holds what {args.candidate} measured", file=sys.stderr)
    return 0


def _write_golden(args: argparse.Namespace) -> int:
    from lm_eval_latentref.evaluation.check_update import update_golden

    file = args.golden if args.write_golden is True else args.write_golden
    if file is None:
        raise LatentRefError("--write_golden FILE.json: name the file to write")
    tolerance = update_golden(args.candidate, file, again=args.baseline)
    print(f"{file}: log-likelihoods may differ by {tolerance:.2g} nats", file=sys.stderr)
    return 0


def study(args: argparse.Namespace) -> int:
    """Writes the results' page, or the page of several tasks, and prints it."""
    from lm_eval_latentref.evaluation import overview, pages, study_report
    from lm_eval_latentref.evaluation.provenance import command
    from lm_eval_latentref.evaluation.study import run_studies

    names = ("work", "latent_steps", "memory_rates", "step_sizes", "limit", "dev_limit", "margins")
    others = ("seed", "batch_size", "device", "dtype")
    options = {name: getattr(args, name) for name in (*names, *others)}
    pages.check_kind(args.output, (overview if len(args.task) > 1 else study_report).FORMAT)
    studies = run_studies(args.folders, tasks=args.task, **options)
    if len(studies) > 1:
        print(overview.save(studies, args.output, command=command()))
    else:
        study_report.save(studies[0], args.output, command=command())
        print(study_report.as_markdown(studies[0], command=command()))
    return 0


def diagnose(args: argparse.Namespace) -> int:
    """Writes why refinement helps or does not, and prints it."""
    from lm_eval_latentref.evaluation.diagnosis import diagnose
    from lm_eval_latentref.evaluation.diagnosis_report import as_markdown, save
    from lm_eval_latentref.evaluation.provenance import command

    names = ("task", "work", "latent_steps", "limit", "batch_size", "seed")
    options = {name: getattr(args, name) for name in names}
    found = [diagnose(folder, **options) for folder in args.folders]
    save(found, args.output, command=command())
    print(as_markdown(found, command=command()))
    return 0


def thoughts(args: argparse.Namespace) -> int:
    """Writes what thoughts read as before and after refinement, and prints it."""
    from lm_eval_latentref.evaluation.cases import study_cases
    from lm_eval_latentref.evaluation.cases_report import as_markdown, check_file, save
    from lm_eval_latentref.evaluation.provenance import command

    names = ("task", "work", "num", "latent_steps", "memory_rate", "step_size", "limit")
    options = {name: getattr(args, name) for name in (*names, "batch_size", "device", "dtype")}
    check_file(args.output)
    found = study_cases(args.folder, **options)
    save(found, args.output, command=command())
    print(as_markdown(found, command=command()))
    return 0


def demo(args: argparse.Namespace) -> int:
    """A first evaluation of what comes with the package."""
    from lm_eval_latentref.evaluation.demo import run_demo

    return run_demo(output=args.output, limit=args.limit)


def _model_arguments(
    args: argparse.Namespace, names: Iterable[str] = MODEL_OPTIONS
) -> dict[str, Any]:
    """The arguments of `load`: those of `--model_args`, each overridden by its own option.

    `names` are the options that the subcommand has.
    """
    from lm_eval.utils import simple_parse_args_string

    pairs = [pair for word in args.model_args for pair in word.split(",") if pair]
    for pair in pairs:
        if not pair.partition("=")[1]:
            raise LatentRefError(
                f"--model_args {pair}: each argument is NAME=VALUE, separated by commas or "
                "spaces; write for example --model_args pretrained=gpt2,latent_steps=6"
            )
    arguments: dict[str, Any] = simple_parse_args_string(",".join(pairs))
    own = {name: getattr(args, name) for name in names}
    return arguments | {name: value for name, value in own.items() if value is not None}


def _metadata(text: str | None) -> Any:
    import json

    try:
        values = json.loads(text or "{}")
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise LatentRefError(
            f"--metadata {text}: it must be one JSON object, such as '{{\"num_documents\": 1000}}'"
        )
    return values
