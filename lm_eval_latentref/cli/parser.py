"""The parser of the `latentref` command and its subcommands.

    args = parse(["ask", "What is 2 + 3?", "--latent-steps", "6"])
    args.command, args.latent_steps         # "ask", 6

`options` declares the options. Nothing slow is imported, so that `--help` is quick.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any, NoReturn

from lm_eval_latentref.cli import values
from lm_eval_latentref.cli.model_options import MODEL_OPTIONS, NAMES_OF_A_SET
from lm_eval_latentref.cli.options import (
    BOARD_OPTIONS,
    CHECK_OPTIONS,
    LATENT_STEPS,
    OPTIONS,
    SHORT,
)
from lm_eval_latentref.errors import LatentRefError

DEFAULTS_OF_A_SET = """\
The default settings are those of the model's latentref.json; without it, latent_steps, memory_rate
and search_step_size are 0, search_steps 1, search_gradient detached, latent_markers auto and
latent_kind continuous."""

STATUSES = """\
Exit status: 0 done, 1 results could not be written, 2 a mistake (described in one line), 130
Ctrl-C, 141 a closed pipe."""

OTHER_STATUSES = "`check` and `leaderboard` have other statuses; see their --help."

EXAMPLES = {
    "ask": 'latentref ask "What is 2 + 3?" --latent_steps 6 --memory_rate 0.3 --show_thoughts',
    "convert": "latentref convert --pretrained gpt2 --weights checkpoint_41 -o out/set",
    "train": "latentref train graph-small output=out/graph seed=1",
    "data": "latentref data graph nodes=12 --num 1000 -o graph.jsonl",
    "sweep": "latentref sweep --pretrained out/graph --task latentref_graph_dev -o results/sweep",
    "study": "latentref study out/graph --task latentref_graph -o results/study",
    "thoughts": "latentref thoughts out/graph --task latentref_graph -o thoughts.md",
    "compare": "latentref compare results/before results/after",
    "leaderboard": "latentref leaderboard plain=results/a refined=results/b -o board.md",
    "check": "latentref check results/new --baseline results/main --max_drop 0.01",
    "demo": "latentref demo --limit 20",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raises LatentRefError instead of exiting, so that all mistakes are reported alike."""
        raise LatentRefError(f"{self.prog}: {message}; see `{self.prog} --help`")


class _Version(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        """Prints the version, which is looked up only now."""
        print(version("lm-eval-latentref"))
        parser.exit()


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The arguments in `words`, the command line without the program's name.

    Raises LatentRefError if they are wrong.
    """
    args, rest = parser().parse_known_args(words)
    if rest:
        # argparse does not accept positional arguments both before and after options.
        if not hasattr(args, "pairs") or any(word.startswith("-") for word in rest):
            raise LatentRefError(
                f"latentref {args.command}: unrecognized arguments: {' '.join(rest)}; see "
                f"`latentref {args.command} --help`"
            )
        args.pairs = [*args.pairs, *rest]
    return args


def parser() -> argparse.ArgumentParser:
    """The parser; it stores the name of the subcommand as `command`."""
    raw = argparse.RawDescriptionHelpFormatter
    whole = _Parser(
        prog="latentref",
        description="Evaluate and use latent-reasoning language models.",
        epilog=f"`latentref COMMAND --help` says more.\n\n{STATUSES}\n{OTHER_STATUSES}",
        formatter_class=raw,
    )
    whole.add_argument("--version", action=_Version, help="print the version and exit")
    commands = whole.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, help: str, epilog: str = STATUSES) -> Any:
        example = f"Example: {EXAMPLES[name]}\n\n" if name in EXAMPLES else ""
        about = f"{help[0].upper()}{help[1:]}."
        return commands.add_parser(
            name, help=help, description=about, epilog=example + epilog, formatter_class=raw
        )

    # Only for the help: the arguments of `run` are passed to lm-eval.
    add("run", "lm-eval's `run` with this package's tasks, and its model unless --model is given")
    add("tasks-path", "print the folder for lm-eval's --include_path")
    _add_checkpoint_commands(add)
    _add_training_commands(add)
    _add_evaluation_commands(add)
    command = add("demo", "a first evaluation, offline, with the packaged model and tasks")
    where = "folder for the results (default: results/demo)"
    _option(command, "output", required=False, default="results/demo", help=where)
    _option(command, "limit", help="documents, 1 or more (default: 1000, with --smollm2 50)")
    command.add_argument("--smollm2", action="store_true", help="evaluate SmolLM2-135M instead")
    return whole


def _add_checkpoint_commands(add: Callable[..., Any]) -> None:
    epilog = f"{DEFAULTS_OF_A_SET}\n\n{STATUSES}"
    command = add("ask", "think about one question and print the answer", epilog)
    command.add_argument("question", help="the question, which the model reads unchanged")
    _options(command, *MODEL_OPTIONS, "model_args", "max_new_tokens", "show_thoughts")
    command = add("convert", "write a set of checkpoints as one folder", epilog)
    _options(command, *MODEL_OPTIONS, "model_args", "adapter", "tuned_on")
    _option(command, "output", help="a new folder")


def _add_training_commands(add: Callable[..., Any]) -> None:
    command = add("train", "train a set of checkpoints by a recipe")
    command.add_argument("recipe", metavar="RECIPE", help="a YAML file or a packaged recipe")
    changes = "fields of the recipe to change, such as seed=1 or config.hidden_size=64"
    command.add_argument("pairs", nargs="*", default=[], metavar="KEY=VALUE", help=changes)
    command = add("data", "write generated problems to a file")
    command.add_argument("task", help="graph, arith, prosqa_generated or prosqa_letters")
    of_task = "arguments of the generator, such as nodes=12 (default: those of the packaged task)"
    command.add_argument("pairs", nargs="*", default=[], metavar="KEY=VALUE", help=of_task)
    _option(command, "num", required=True, help="number of problems, 1 or more")
    _option(
        command,
        "seed",
        type=int,
        default=-1,
        help="seed of the problems (default: -1); training with seed S uses seed S * 1000000 + E "
        "for epoch E (from 0), and the dev and test tasks use seed 0",
    )
    _option(command, "split")
    _option(
        command,
        "output",
        type=values.file,
        metavar="FILE",
        help="the file to write, .json or .jsonl",
    )


def _add_evaluation_commands(add: Callable[..., Any]) -> None:
    _add_set_commands(add)
    _add_run_commands(add)


def _add_set_commands(add: Callable[..., Any]) -> None:
    """Commands that evaluate trained sets."""
    command = add(
        "sweep",
        "choose a checkpoint set's settings on a dev split",
        epilog=f"The default of batch_size in --model_args is 32.\n\n{STATUSES}",
    )
    _options(command, "model_args", *NAMES_OF_A_SET, "task", "output", "memory_rates", "step_sizes")
    _option(command, "latent_steps", **LATENT_STEPS, nargs="+", default=())
    moves = "numbers of search steps per thought to try, 1 or more (default: 1)"
    _option(command, "search_steps", type=int, nargs="+", default=(1,), help=moves)
    _options(command, "limit", "seed", "write", "metadata", "include_path", "judge_on")

    command = add("study", "evaluate trained sets in every row of the paper's table")
    sets = "trained sets of one recipe, one for each seed, or the same kept epoch of each: "
    sets += "OUTPUT/epochs/NAME, which uses the references and baselines in OUTPUT"
    command.add_argument("folders", nargs="+", type=values.there, metavar="FOLDER", help=sets)
    _option(
        command,
        "task",
        action="append",
        help="a test task, for example latentref_mathqa; give it again for further tasks",
    )
    _options(command, "output", "memory_rates", "step_sizes", "recommended", "contrast", "row")
    _options(command, "dev_limit", "no_margins", "seed")
    _add_running(command)

    command = add(
        "thoughts", "show the tokens that thoughts decode to, with and without refinement"
    )
    command.add_argument("folder", metavar="FOLDER", help="a trained set with its references")
    any_task = "the task of the documents, for example latentref_mathqa_mc"
    _option(command, "task", help=any_task)
    _options(command, "step_size")
    weight = MODEL_OPTIONS["memory_rate"]["help"]
    _option(
        command, "memory_rate", type=values.rate, help=f"{weight} (default: that of latentref.json)"
    )
    cases = "number of documents, half turned right and half turned wrong (default: 6)"
    _option(command, "num", default=6, help=cases)
    _option(command, "output", type=str, metavar="FILE.md", help="the page")
    _add_running(command)


def _add_run_commands(add: Callable[..., Any]) -> None:
    """Commands that read finished runs."""
    command = add("compare", "paired tests of two runs on the same documents")
    kinds = "folder or file of --log_samples, or sweep.json::SETTING"
    command.add_argument("first", type=values.there, help=kinds)
    command.add_argument("second", type=values.there, help="the same, for the second run")
    _options(command, "metric", "seed")

    command = add(
        "leaderboard",
        "rank runs by paired tests on the same documents",
        epilog="Exit status: 0 written, 3 a mistake or no readable run, 130 Ctrl-C.",
    )
    command.add_argument(
        "results",
        nargs="+",
        type=values.there,
        metavar="RESULTS",
        help="folders or files of lm_eval --output_path, for any model; NAME=FOLDER names a row, "
        "and the same name again adds tasks or seeds to it",
    )
    kinds = "file to write: .txt, .md, .csv, .json or .html; a folder gets all formats"
    _option(command, "output", required=False, type=values.place, metavar="FILE|FOLDER", help=kinds)
    against = "the row that others are compared with (default: none)"
    _option(command, "baseline", metavar="ROW", help=against)
    ranked_by = "metrics; a task is ranked by the first that it has (default: acc exact_match)"
    _option(command, "metric", nargs="+", help=ranked_by)
    _options(command, *BOARD_OPTIONS[3:])

    command = add(
        "check",
        "a gate for CI: fails if a run is worse than its baseline",
        epilog="Exit status: 0 pass, 1 fail, 2 inconclusive, 3 a mistake (also in the options),\n"
        "130 Ctrl-C. With --update and --write_golden: 0 written, 3 a mistake.",
    )
    a_run = "a run of lm_eval --output_path"
    command.add_argument("candidate", type=values.there, metavar="CANDIDATE", help=a_run)
    _options(command, *CHECK_OPTIONS)


def _add_running(command: argparse.ArgumentParser) -> None:
    """Adds the options of commands that evaluate models and keep finished work."""
    _option(command, "latent_steps", **LATENT_STEPS)
    _options(command, "work", "batch_size", "limit", "device", "dtype")


def _options(command: argparse.ArgumentParser, *names: str) -> None:
    for name in names:
        _option(command, name)


def _option(command: argparse.ArgumentParser, name: str, **changes: Any) -> None:
    flags = [f"--{name}", f"--{name.replace('_', '-')}", *([SHORT[name]] if name in SHORT else [])]
    command.add_argument(*dict.fromkeys(flags), **{**OPTIONS[name], **changes})
