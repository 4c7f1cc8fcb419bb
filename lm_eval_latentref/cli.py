"""The `latentref` command: each subcommand turns strings into one call of the library.

    latentref ask "What is 2 + 3?" --latent_steps 6 --memory_rate 0.3 --show_thoughts

Exit status: 0 done, 2 a mistake of the user's (its line on stderr, no traceback), 130 Ctrl-C;
`check` and `leaderboard` have statuses of their own. What a subcommand needs is imported when it
runs, so that `--help` is quick.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lm_eval_latentref.errors import LatentRefError, printable

MODEL_OPTIONS = {
    "pretrained": {"help": "hub id, folder or packaged set (default: smollm2-135m)"},
    "strong": {"help": "the reference to move towards: hub id, folder, adapter or state dict"},
    "weak": {"help": "the reference to move away from"},
    "weights": {"help": "raw state dict laid over the backbone: a file, or REPO_ID:PATH/IN/REPO"},
    "latent_steps": {"help": "number of thoughts"},
    "memory_rate": {"help": "residual mixing rate, 0 to 1"},
    "search_step_size": {"help": "of the contrastive search: a number, or 0.3*d/2"},
    "search_steps": {"help": "inner steps of the search"},
    "search_gradient": {"help": "detached or through"},
    "latent_markers": {"help": "auto or none"},
    "latent_kind": {"help": "continuous or pause"},
}
NAMES_OF_A_SET = ("pretrained", "strong", "weak", "weights")


def _half_widths(text: str) -> float:
    """A step size in units of d/2; `0.3` is short for `0.3*d/2`."""
    from lm_eval_latentref.latent.config import RefinementConfig

    full = text if "*" in text else f"{text}*d/2"
    try:
        return float(RefinementConfig.parse({"search_step_size": full}).search_step_size)
    except LatentRefError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


OPTIONS: dict[str, dict[str, Any]] = {
    **MODEL_OPTIONS,
    "model_args": {
        **{"nargs": "+", "default": [], "metavar": "NAME=VALUE"},
        "help": "the model's arguments, as for lm-eval",
    },
    "task": {"required": True, "help": "for example latentref_mathqa_mc_dev"},
    "output": {"required": True, "metavar": "FOLDER", "help": "where the results go"},
    "work": {
        "metavar": "FOLDER",
        "help": "keeps what is done (default: in out/, named after the command and the output)",
    },
    "memory_rates": {"type": float, "nargs": "+", "help": "0 to 1; 0 is always tried"},
    "step_sizes": {
        **{"type": _half_widths, "nargs": "+", "metavar": "X*d/2"},
        "help": "such as 0.3*d/2 (0.3 means the same here); 0 is always tried",
    },
    "step_size": {
        **{"type": _half_widths, "metavar": "X*d/2"},
        "help": "such as 0.3*d/2 (0.3 means the same here; default: what latentref.json says)",
    },
    "limit": {"type": int, "help": "the first so many documents only"},
    "dev_limit": {"type": int, "help": "as --limit, of the dev split (default: --limit)"},
    "seed": {"type": int, "default": 0, "help": "of the bootstrap (default: 0)"},
    "batch_size": {"type": int, "default": 100, "help": "rows in a forward (default: 100)"},
    "device": {"help": "default: the GPU when there is one"},
    "dtype": {"help": "of the models, for example bfloat16"},
    "num": {"type": int, "help": "how many"},
    "max_new_tokens": {
        **{"type": int},
        "help": "at most (default: 256, or what fits the model if that is less)",
    },
    "show_thoughts": {"action": "store_true", "help": "print the size of each thought"},
    "adapter": {"action": "store_true", "help": "keep adapters as adapters"},
    "tuned_on": {"metavar": "SPLIT", "help": "what the settings were tuned on"},
    "split": {"default": "train", "help": "train (default), validation or test"},
    "write": {"action": "store_true", "help": "recommended settings into latentref.json"},
    "metadata": {"metavar": "JSON", "help": "of the task, as for lm-eval"},
    "include_path": {"metavar": "FOLDER", "help": "your own task files"},
    "no_margins": {
        **{"dest": "margins", "action": "store_false"},
        "help": "judge answers alone: candidates of the test problems are not scored",
    },
    "metric": {"help": "default: acc, exact_match, or the first there is"},
    "baseline": {
        "metavar": "FOLDER|FILE.yaml",
        "help": "an earlier run with --log_samples, compared document by document, or accuracies "
        "in vLLM's form",
    },
    "allow_different": {
        **{"nargs": "+", "metavar": "FIELD"},
        "help": "compare runs that differ in version, num_fewshot, limit or documents",
    },
    "eval_results": {
        "metavar": "FOLDER",
        "help": "write .eval_results/*.yaml of the Hugging Face Hub for each row",
    },
    "watch": {
        **{"nargs": "?", "type": float, "const": 10.0, "metavar": "SECONDS"},
        "help": "look for new results so often, until Ctrl-C (default: every 10 seconds)",
    },
    "max_drop": {
        "type": float,
        "help": "drop that is accepted, absolute (default: as the YAML file says; paired: 0.02)",
    },
    "significance": {
        **{"type": float, "default": 0.05},
        "help": "of the paired tests, over all metrics together (default: 0.05)",
    },
    "golden": {
        "metavar": "FILE.json",
        "help": "log-likelihoods and texts that must be the same",
    },
    "write_golden": {
        **{"nargs": "?", "const": True, "metavar": "FILE.json"},
        "help": "make that file from CANDIDATE (default: the one --golden names); a second run as "
        "--baseline measures its tolerance",
    },
    "update": {"action": "store_true", "help": "make the baseline what CANDIDATE is"},
    "show_flips": {
        **{"type": int, "default": 0, "metavar": "N"},
        "help": "list N documents that changed",
    },
    "format": {
        **{"choices": ("text", "json", "markdown", "junit"), "default": "text"},
        "help": "default: text",
    },
}
"""Every option once; a subcommand changes what differs there. Hyphens may replace underscores."""

INTERRUPTED = 130
PIPE_CLOSED = 141
KEPT = {
    "train": "the same command goes on from the state saved last",
    "sweep": "what is finished is in the output folder, and the same command goes on",
    "study": "what is finished is in the work folder, and the same command goes on",
    "thoughts": "what is finished is in the work folder, and the same command goes on",
}
"""What Ctrl-C leaves behind, by subcommand."""

MISTAKE = 2
"""Exit status of a mistake, which is argparse's."""
OTHER_MISTAKES = {"check": 3, "leaderboard": 3}
"""In `check` 2 is inconclusive."""

SHORT = {"model_args": "-a", "output": "-o"}
BOARD_OPTIONS = ("output", "baseline", "metric", "allow_different", "eval_results", "watch", "seed")
CHECK_OPTIONS = (
    *("baseline", "max_drop", "significance", "golden", "write_golden", "update"),
    *("show_flips", "format"),
)
LATENT_STEPS = {"type": int, "help": "number of thoughts (default: what latentref.json says)"}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand and returns its exit status; `argv` defaults to the command line's."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    mistake = OTHER_MISTAKES.get("".join(arguments[:1]), MISTAKE)
    try:
        # What follows `run` is lm-eval's: argparse would take its options for ours.
        if arguments[:1] == ["run"]:
            return run(arguments[1:])
        args = _parser().parse_args([_no_flag(word) for word in arguments])
        status: int = args.call(args)
        sys.stdout.flush()
        return status
    except LatentRefError as error:
        print(printable(str(error)), file=sys.stderr)
        return mistake
    except SystemExit as error:  # argparse's: its own mistakes, and --help
        if error.code == MISTAKE:
            error.code = mistake
        raise
    except KeyboardInterrupt:
        kept = KEPT.get("".join(arguments[:1]), "nothing was written")
        print(f"interrupted: {kept}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # `| head` has read enough; Python would complain once more when it closes the stream.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED


def _no_flag(word: str) -> str:
    """`-0.3*d/2` so that argparse takes it for a value, as it does -0.3."""
    return f" {word}" if re.fullmatch(r"-[\d.]\S*\*\s*d\s*/\s*2", word) else word


# What each subcommand takes ----------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="latentref", description="Evaluate and use latent-reasoning language models."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, call: Callable[..., int], help: str, **settings: Any) -> Any:
        command = commands.add_parser(name, help=help, **settings)
        command.set_defaults(call=call)
        return command

    add("run", run, "lm-eval's `run` with this package's model and tasks")  # only for the help
    add("tasks-path", tasks_path, "print the folder for lm-eval's --include_path")
    _add_checkpoint_commands(add)
    _add_training_commands(add)
    _add_evaluation_commands(add)
    demo_ = add("demo", demo, "a first evaluation that needs nothing but this")
    _option(demo_, "output", required=False, default="results/demo")
    _option(demo_, "limit", default=50)
    return parser


def _add_checkpoint_commands(add: Callable[..., Any]) -> None:
    command = add("ask", ask, "think about one question and print the answer")
    command.add_argument("question")
    _options(command, "model_args", *MODEL_OPTIONS, "max_new_tokens", "show_thoughts")
    command = add("convert", convert, "write any set of checkpoints as one folder")
    _options(command, "model_args", *MODEL_OPTIONS, "adapter", "tuned_on")
    _option(command, "output", help="a new folder")


def _add_training_commands(add: Callable[..., Any]) -> None:
    command = add("train", train, "train a set of checkpoints by a recipe")
    command.add_argument("recipe", metavar="RECIPE", help="a YAML file or a recipe of the package")
    command.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes of the recipe")
    command = add("data", data, "write generated problems to a file")
    command.add_argument("task", help="graph, arith, hops or prosqa_generated")
    command.add_argument("options", nargs="*", metavar="KEY=VALUE", help="of the generator")
    _option(command, "num", required=True, help="how many problems")
    _option(
        command,
        "seed",
        default=-1,
        help="of the problems (default: -1); training with seed S draws epoch E, from 0, of seed "
        "S * 1000000 + E, and the dev and test tasks are of seed 0",
    )
    _option(command, "split")
    _option(command, "output", metavar="FILE", help=".json or .jsonl")


def _add_evaluation_commands(add: Callable[..., Any]) -> None:
    command = add(
        *("sweep", sweep, "choose a checkpoint set's settings on a dev split"),
        epilog="batch_size in --model_args is 32 if it is not given",
    )
    _options(command, "model_args", *NAMES_OF_A_SET, "task", "output", "memory_rates", "step_sizes")
    _option(command, "latent_steps", **LATENT_STEPS, nargs="+", default=())
    _option(command, "search_steps", type=int, nargs="+", default=(1,))
    _options(command, "limit", "seed", "write", "metadata", "include_path")

    command = add("study", study, "every row of the results table on trained sets")
    command.add_argument("folders", nargs="+", metavar="FOLDER", help="trained sets")
    _option(
        *(command, "task"),
        action="append",
        help="for example latentref_mathqa; give it again for more tasks, on one page",
    )
    _options(command, "output", "memory_rates", "step_sizes", "dev_limit", "no_margins", "seed")
    _add_running(command)

    command = add("thoughts", thoughts, "what thoughts read as, before and after")
    command.add_argument("folder", metavar="FOLDER", help="a trained set with its references")
    _options(command, "task", "step_size")
    _option(command, "memory_rate", type=float)
    _option(command, "num", default=6, help="cases, half of each kind (default: 6)")
    _option(command, "output", metavar="FILE.md", help="the page")
    _add_running(command)

    command = add("compare", compare, "paired tests of two runs on the same documents")
    command.add_argument("first", help="folder or file of logged samples, or SWEEP.json::SETTING")
    command.add_argument("second", help="likewise: what is compared with the first")
    _options(command, "metric", "seed")

    command = add(
        *("leaderboard", leaderboard, "rank runs by paired tests on the same documents"),
        epilog="Exit status: 0 written, 3 a mistake, or no run that can be read.",
    )
    command.add_argument(
        *("results",),
        **{"nargs": "+", "metavar": "RESULTS"},
        help="folders or files of lm_eval --output_path, of any model; NAME=FOLDER names its row, "
        "and the same name again adds tasks or seeds to it",
    )
    kinds = ".txt, .md, .csv, .json or .html; a folder gets one of each"
    _option(command, "output", required=False, metavar="FILE|FOLDER", help=kinds)
    _option(command, "baseline", metavar="ROW", help="show each row's difference to this one")
    ranked_by = "what tasks are ranked by, the first that a task has (default: acc exact_match)"
    _option(command, "metric", nargs="+", help=ranked_by)
    _options(command, *BOARD_OPTIONS[3:])

    command = add(
        *("check", check, "a gate for CI: is a run worse than its baseline?"),
        epilog="Exit status: 0 pass, 1 fail, 2 inconclusive, 3 a mistake, wrong options included. "
        "With --update and --write_golden: 0 written, 3 a mistake.",
    )
    command.add_argument("candidate", metavar="CANDIDATE", help="folder of lm_eval --output_path")
    _options(command, *CHECK_OPTIONS)


def _add_running(command: argparse.ArgumentParser) -> None:
    """What evaluations share that keep what is done."""
    _option(command, "latent_steps", **LATENT_STEPS)
    _options(command, "work", "batch_size", "limit", "device", "dtype")


def _options(command: argparse.ArgumentParser, *names: str) -> None:
    for name in names:
        _option(command, name)


def _option(command: argparse.ArgumentParser, name: str, **changes: Any) -> None:
    flags = [f"--{name}", f"--{name.replace('_', '-')}", *([SHORT[name]] if name in SHORT else [])]
    command.add_argument(*dict.fromkeys(flags), **{**OPTIONS[name], **changes})


# What each subcommand does -----------------------------------------------------------------------


def run(arguments: Sequence[str]) -> int:
    """Hands lm-eval its command line, with this package's model and tasks."""
    from lm_eval_latentref.harness.command import run

    return run(arguments)


def tasks_path(args: argparse.Namespace) -> int:
    """Prints the folder for lm-eval's --include_path."""
    from lm_eval_latentref.benchmarks.documents import tasks_path

    print(tasks_path())
    return 0


def ask(args: argparse.Namespace) -> int:
    """Prints the answer to one question, and the size of each thought where that is asked."""
    from lm_eval_latentref.checkpoints.loading import load

    answer = load(**_model_arguments(args)).ask(args.question, **_given(args, "max_new_tokens"))
    if args.show_thoughts:
        for number, thought_D in enumerate(answer.thoughts, start=1):
            print(f"thought {number}: norm {thought_D.norm():.3f}")
    _show(answer.text)
    return 0


def convert(args: argparse.Namespace) -> int:
    """Writes a set of checkpoints as one folder."""
    from lm_eval_latentref.checkpoints.convert import convert

    options = _model_arguments(args)
    print(convert(out=args.output, adapter=args.adapter, tuned_on=args.tuned_on, **options))
    return 0


def train(args: argparse.Namespace) -> int:
    """Trains by a recipe, and logs how far it is."""
    import transformers

    from lm_eval_latentref.training.recipe_files import load_recipe
    from lm_eval_latentref.training.trainer import train

    recipe = load_recipe(args.recipe, args.overrides)
    transformers.utils.logging.disable_progress_bar()  # one bar is enough
    logging.basicConfig(format="%(message)s")
    logging.getLogger("lm_eval_latentref").setLevel(logging.INFO)
    train(recipe)
    return 0


def data(args: argparse.Namespace) -> int:
    """Writes generated problems to a file."""
    from lm_eval_latentref.training.data import write_generated
    from lm_eval_latentref.training.recipe_files import parse_overrides

    options = parse_overrides(args.options)
    amount = _given(args, "num", "seed", "split")
    num = write_generated(args.task, args.output, options=options, **amount)
    print(f"{args.output}: {num} problems")
    return 0


def sweep(args: argparse.Namespace) -> int:
    """Tries settings on a dev split; prints the table, then one JSON line."""
    from lm_eval_latentref.evaluation.provenance import command
    from lm_eval_latentref.evaluation.report import sweep_page
    from lm_eval_latentref.evaluation.sweep import last_line, save_sweep, sweep

    names = ("task", "output", "limit", "seed", "write", "include_path", "latent_steps")
    grids = ("memory_rates", "step_sizes", "search_steps")
    # One row at a time, as lm-eval begins with, would undo most of what a sweep saves.
    model_args = {"batch_size": 32, **_model_arguments(args)}
    result = sweep(model_args, metadata=_metadata(args.metadata), **_given(args, *names, *grids))
    _show(sweep_page(save_sweep(result, args.output, command=command())))
    if result.written:
        print(f"Written into {result.written}")
    print(json.dumps(last_line(result)))
    return 0


def study(args: argparse.Namespace) -> int:
    """Writes the results' page, or the page of several tasks, and prints it."""
    from lm_eval_latentref.evaluation.provenance import command
    from lm_eval_latentref.evaluation.report import OVERVIEW, STUDY, check_kind
    from lm_eval_latentref.evaluation.study import run_studies
    from lm_eval_latentref.evaluation.study_report import save_studies, save_study

    names = ("work", "latent_steps", "memory_rates", "step_sizes", "limit", "dev_limit", "margins")
    options = _given(args, *names, "seed", "batch_size", "device", "dtype")
    check_kind(args.output, OVERVIEW if len(args.task) > 1 else STUDY)
    options.setdefault("work", _work_folder("study", args.output))
    studies = run_studies(args.folders, tasks=args.task, **options)
    if len(studies) > 1:
        _show(save_studies(studies, args.output, command=command()))
    else:
        _show(save_study(studies[0], args.output, command=command()))
    return 0


def thoughts(args: argparse.Namespace) -> int:
    """Writes what thoughts read as before and after refinement, and prints it."""
    from lm_eval_latentref.evaluation.provenance import command
    from lm_eval_latentref.evaluation.thoughts import (
        check_file,
        save_thoughts,
        study_cases,
        thoughts_json,
    )

    names = ("task", "work", "num", "latent_steps", "memory_rate", "step_size", "limit")
    check_file(args.output)
    options = _given(args, *names, "batch_size", "device", "dtype")
    options.setdefault("work", _work_folder("thoughts", args.output))
    found = study_cases(args.folder, **options)
    _show(save_thoughts(thoughts_json(found, command=command()), args.output))
    return 0


def compare(args: argparse.Namespace) -> int:
    """Prints the paired tests of two runs, then one JSON line."""
    from lm_eval_latentref.evaluation.compare import as_json, as_text, compare, read_answers

    first, second = (read_answers(name, metric=args.metric) for name in (args.first, args.second))
    found = compare(first, second, seed=args.seed)
    _show(as_text(found))
    print(json.dumps(as_json(found)))
    return 0


def leaderboard(args: argparse.Namespace) -> int:
    """Prints the board and writes it; with --watch again whenever its files change."""
    from lm_eval_latentref.evaluation.leaderboard_report import show

    show(args.results, **_given(args, *BOARD_OPTIONS))
    return 0


def check(args: argparse.Namespace) -> int:
    """Prints what the gate says, or writes its files anew; the status is the verdict's."""
    from lm_eval_latentref.evaluation.gate import gate

    return gate(args.candidate, **_given(args, *CHECK_OPTIONS))


def demo(args: argparse.Namespace) -> int:
    """A first evaluation of what comes with the package."""
    from lm_eval_latentref.evaluation.demo import run_demo

    return run_demo(output=args.output, limit=args.limit)


def _show(text: str) -> None:
    """Prints what may hold text of files or models: line by line, without control characters."""
    print("\n".join(map(printable, text.split("\n"))))


def _work_folder(command: str, output: str) -> str:
    """Where a command keeps its work: apart from that of another output."""
    parts = [part for part in Path(output.removesuffix(".md")).parts if part not in ("/", "..")]
    return str(Path("out", command, "-".join(parts) or "here"))


def _given(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Those of `names` that the user gave or that have a default; the library has the others'."""
    return {name: value for name in names if (value := getattr(args, name)) is not None}


def _model_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `load`: those of `--model_args`, each overridden by its own option."""
    from lm_eval.utils import simple_parse_args_string

    pairs = [pair for word in args.model_args for pair in word.split(",") if pair]
    for pair in pairs:
        if not pair.partition("=")[1]:
            raise LatentRefError(
                f"--model_args {pair}: each argument is NAME=VALUE, separated by commas or "
                "spaces; write for example --model_args pretrained=gpt2,latent_steps=6"
            )
    # A sweep's --latent_steps are what it tries.
    names = NAMES_OF_A_SET if args.call is sweep else tuple(MODEL_OPTIONS)
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
