"""The `latentref` command: each subcommand turns strings into one call of the library.

    latentref ask "What is 2 + 3?" --latent_steps 6 --memory_rate 0.3 --show_thoughts

`help` explains the exit statuses. A subcommand imports its modules when it runs, so that `--help`
is quick.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_eval_latentref.cli.model_options import MODEL_OPTIONS, NAMES_OF_A_SET
from lm_eval_latentref.cli.options import BOARD_OPTIONS, CHECK_OPTIONS
from lm_eval_latentref.cli.parser import parse
from lm_eval_latentref.cli.terminal import discard, plain_terminal
from lm_eval_latentref.cli.values import no_flag
from lm_eval_latentref.errors import LatentRefError, say

INTERRUPTED = 130
PIPE_CLOSED = 141
KEPT = {
    "train": "the same command continues from the last saved state",
    "sweep": "finished work is in the output folder, and the same command continues from it",
    "study": "finished work is in the work folder, and the same command continues from it",
    "thoughts": "finished work is in the work folder, and the same command continues from it",
    "demo": "finished rows are in the output folder, and the same command continues from them",
    "leaderboard": "files that were written before are complete",
    "check": "files that were written before are complete",
}
"""The message after Ctrl-C, by subcommand."""

MISTAKE = 2
"""Exit status of a mistake in the command line, or in a file that it names."""
OTHER_MISTAKES = {"check": 3, "leaderboard": 3}
"""The status of a mistake in subcommands where it is not 2; in `check`, 2 means inconclusive."""

MAX_SHOWN_NAME = 200
"""The maximum number of characters of a file's name in a message."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand and returns its exit status; `argv` defaults to the command line's."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    mistake = OTHER_MISTAKES.get("".join(arguments[:1]), MISTAKE)
    try:
        with plain_terminal():
            status = _status(arguments)
            print(end="", flush=True)
        return status
    except LatentRefError as error:
        say(error)
        return mistake
    except KeyboardInterrupt as error:
        kept = str(error) or KEPT.get("".join(arguments[:1]), "nothing was written")
        say(f"interrupted: {kept}")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader, such as `| head`, has closed the pipe.
        discard(sys.stdout)
        return PIPE_CLOSED
    except OSError as error:
        # A name is too long, or lies in a folder without permission, wherever it is looked up.
        if not isinstance(error.filename, str) or isinstance(error, FileNotFoundError):
            raise
        name = error.filename[:MAX_SHOWN_NAME]
        say(f"{name} cannot be reached ({error.strerror}); correct the name or its permissions")
        return mistake


def _status(arguments: list[str]) -> int:
    # Arguments after `run` are passed to lm-eval; our parser does not know them.
    if arguments[:1] == ["run"]:
        return run(arguments[1:])
    args = parse([no_flag(word) for word in arguments])
    # Each subcommand is a function of the same name in this module.
    status: int = globals()[args.command.replace("-", "_")](args)
    return status


def run(arguments: Sequence[str]) -> int:
    """Runs lm-eval with these arguments, and with this package's model and tasks."""
    from lm_eval_latentref.harness.command import run

    return run(arguments)


def tasks_path(args: argparse.Namespace) -> int:
    """Prints the folder for lm-eval's --include_path."""
    from lm_eval_latentref.benchmarks.documents import tasks_path

    print(tasks_path())
    return 0


def ask(args: argparse.Namespace) -> int:
    """Prints the answer to one question and, with --show_thoughts, the norm of each thought."""
    from lm_eval_latentref.checkpoints.loading import load

    answer = load(**_model_arguments(args)).ask(args.question, **_given(args, "max_new_tokens"))
    if args.show_thoughts:
        for number, thought_D in enumerate(answer.thoughts, start=1):
            print(f"thought {number}: norm {thought_D.norm():.3f}")
    print(answer.text)
    return 0


def convert(args: argparse.Namespace) -> int:
    """Writes a set of checkpoints as one folder."""
    from lm_eval_latentref.checkpoints.convert import convert

    options = _model_arguments(args)
    print(convert(out=args.output, adapter=args.adapter, tuned_on=args.tuned_on, **options))
    return 0


def train(args: argparse.Namespace) -> int:
    """Trains the models of a recipe and logs progress."""
    import transformers

    from lm_eval_latentref.training.recipe import load_recipe
    from lm_eval_latentref.training.trainer import train

    recipe = load_recipe(args.recipe, args.pairs)
    transformers.utils.logging.disable_progress_bar()  # one bar is enough
    logging.basicConfig(format="%(message)s")
    logging.getLogger("lm_eval_latentref").setLevel(logging.INFO)
    train(recipe)
    return 0


def data(args: argparse.Namespace) -> int:
    """Writes generated problems to a file."""
    from lm_eval_latentref.training.data import write_generated
    from lm_eval_latentref.training.recipe import parse_overrides

    options = parse_overrides(args.pairs)
    amount = _given(args, "num", "seed", "split")
    num = write_generated(args.task, args.output, options=options, **amount)
    print(f"{args.output}: {num} problems")
    return 0


def sweep(args: argparse.Namespace) -> int:
    """Tries settings on a dev split; prints the table of settings, then one JSON line."""
    from lm_eval_latentref.evaluation.provenance import command
    from lm_eval_latentref.evaluation.report import sweep_page
    from lm_eval_latentref.evaluation.sweep import last_line, save_sweep, sweep

    names = ("task", "output", "limit", "seed", "write", "include_path", "latent_steps", "judge_on")
    grids = ("memory_rates", "step_sizes", "search_steps")
    # With lm-eval's default, a batch size of 1, a sweep would be much slower.
    model_args = {"batch_size": 32, **_model_arguments(args)}
    result = sweep(model_args, metadata=_metadata(args.metadata), **_given(args, *names, *grids))
    print(sweep_page(save_sweep(result, args.output, command=command())))
    if result.written:
        print(f"Written into {result.written}")
    print(json.dumps(last_line(result)))
    return 0


def study(args: argparse.Namespace) -> int:
    """Evaluates trained sets on one or several tasks; writes and prints the page of results."""
    from lm_eval_latentref.evaluation.provenance import command
    from lm_eval_latentref.evaluation.report import OVERVIEW, STUDY, check_kind
    from lm_eval_latentref.evaluation.study import run_studies
    from lm_eval_latentref.evaluation.study_options import check_distinct
    from lm_eval_latentref.evaluation.study_report import save_studies, save_study

    names = ("work", "latent_steps", "memory_rates", "step_sizes", "limit", "dev_limit", "margins")
    options = _given(args, *names, "recommended", "seed", "batch_size", "device", "dtype")
    check_kind(args.output, OVERVIEW if len(args.task) > 1 else STUDY)
    rows = {"contrasts": args.contrast or (), "checkpoints": args.row or ()}
    check_distinct("row", [name for given in rows.values() for name, _ in given])
    options |= {kind: dict(given) for kind, given in rows.items()}
    options.setdefault("work", _work_folder("study", args.output))
    studies = run_studies(args.folders, tasks=args.task, **options)
    if len(studies) > 1:
        print(save_studies(studies, args.output, command=command()))
    else:
        print(save_study(studies[0], args.output, command=command()))
    return 0


def thoughts(args: argparse.Namespace) -> int:
    """Writes and prints a page of what thoughts decode to, with and without refinement."""
    from lm_eval_latentref.evaluation.provenance import command
    from lm_eval_latentref.evaluation.report import check_file
    from lm_eval_latentref.evaluation.thoughts import study_cases
    from lm_eval_latentref.evaluation.thoughts_page import save_thoughts, thoughts_json

    names = ("task", "work", "num", "latent_steps", "memory_rate", "step_size", "limit")
    check_file(args.output)
    options = _given(args, *names, "batch_size", "device", "dtype")
    options.setdefault("work", _work_folder("thoughts", args.output))
    cases = study_cases(args.folder, **options)
    print(save_thoughts(thoughts_json(cases, command=command()), args.output))
    return 0


def compare(args: argparse.Namespace) -> int:
    """Prints the paired tests of two runs, then one JSON line."""
    from lm_eval_latentref.evaluation.compare import as_json, as_text, compare, read_answers

    first, second = (read_answers(name, metric=args.metric) for name in (args.first, args.second))
    comparisons = compare(first, second, seed=args.seed)
    print(as_text(comparisons))
    print(json.dumps(as_json(comparisons)))
    return 0


def leaderboard(args: argparse.Namespace) -> int:
    """Prints and writes the leaderboard; with --watch, again whenever results change."""
    from lm_eval_latentref.evaluation.leaderboard_report import show

    show(args.results, **_given(args, *BOARD_OPTIONS))
    return 0


def check(args: argparse.Namespace) -> int:
    """Prints the gate's report, or updates its files; returns the exit status of the verdict."""
    from lm_eval_latentref.evaluation.gate import gate

    return gate(args.candidate, **_given(args, *CHECK_OPTIONS))


def demo(args: argparse.Namespace) -> int:
    """Runs a first evaluation with the packaged models and tasks."""
    from lm_eval_latentref.evaluation import demo

    if args.smollm2:
        return demo.run_smollm2(output=args.output, limit=args.limit or 50)
    return demo.run_demo(output=args.output, limit=args.limit or 1000)


def _work_folder(command: str, output: str) -> str:
    """The default work folder of a command; each output has its own."""
    place = Path(output).absolute()
    digest = hashlib.sha256(os.path.normpath(place).encode("utf-8", "surrogateescape"))
    return str(Path("out", command, f"{place.stem or 'root'}-{digest.hexdigest()[:8]}"))


def _given(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The values of the options in `names`, without those that are None."""
    return {name: value for name in names if (value := getattr(args, name)) is not None}


def _model_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """The model arguments: those of `--model_args`, overridden by options of the same name."""
    from lm_eval.utils import simple_parse_args_string

    pairs = [pair for word in args.model_args for pair in word.split(",") if pair]
    for pair in pairs:
        if not re.match(r"\s*\w+\s*=", pair):
            raise LatentRefError(
                f"--model_args {pair}: each argument is NAME=VALUE, separated by commas or "
                "spaces; write for example --model_args pretrained=gpt2,latent_steps=6"
            )
    # A sweep's --latent_steps is a list of values to try, not an argument of the model.
    names = NAMES_OF_A_SET if args.command == "sweep" else tuple(MODEL_OPTIONS)
    own = _given(args, *names)
    return {**simple_parse_args_string(",".join(pairs)), **own}


def _metadata(text: str | None) -> Any:
    try:
        values = json.loads(text or "{}")
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise LatentRefError(
            f"--metadata {text}: it must be one JSON object, such as '{{\"num_documents\": 1000}}'"
        )
    return values
