"""The options of `latentref`, each declared once, and the parser of its subcommands.

    args = parse(["ask", "What is 2 + 3?", "--latent-steps", "6"])
    args.command, args.latent_steps         # "ask", 6

Names have lm-eval's underscores; hyphens may replace them. Nothing slow is imported, so that
`--help` is quick.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any, NoReturn

from lm_eval_latentref.cli import values
from lm_eval_latentref.cli.help import DEFAULTS_OF_A_SET, EXAMPLES, OTHER_STATUSES, STATUSES
from lm_eval_latentref.cli.model_options import MODEL_OPTIONS, NAMES_OF_A_SET
from lm_eval_latentref.errors import LatentRefError

OPTIONS: dict[str, dict[str, Any]] = {
    **MODEL_OPTIONS,
    "model_args": {
        **{"nargs": "+", "default": [], "metavar": "NAME=VALUE"},
        "help": "any argument of the model, as for lm_eval --model_args: memory_rate=, dtype=, "
        "device=, trust_remote_code= and more; where the same is given as an option, that wins",
    },
    "task": {
        **{"required": True, "metavar": "TASK"},
        "help": "a dev task that settings are chosen on, for example latentref_mathqa_mc_dev",
    },
    "output": {
        "required": True,
        "type": values.folder,
        "metavar": "FOLDER",
        "help": "folder that the results go to",
    },
    "work": {
        **{"type": values.folder, "metavar": "FOLDER"},
        "help": "keeps what is done, so that the same command goes on after a stop (default: in "
        "out/, named after the command and the output)",
    },
    "memory_rates": {
        **{"type": values.rate, "nargs": "+", "metavar": "ALPHA"},
        "help": "memory rates to try, 0 to 1 each; 0 is always tried (default: "
        "0.1 0.3 0.5 0.7, in a study 0.05 0.1 0.3)",
    },
    "step_sizes": {
        **{"type": values.half_widths, "nargs": "+", "metavar": "X*d/2"},
        "help": "step sizes of the search to try, such as 0.3*d/2 (0.3 means the same here); 0 is "
        "always tried (default: 0.03 0.1 0.3 1.0, in a study -0.1 0.03 0.1 0.3)",
    },
    "step_size": {
        **{"type": values.half_widths, "metavar": "X*d/2"},
        "help": "of the search, such as 0.3*d/2 (0.3 means the same here; default: what "
        "latentref.json says)",
    },
    "limit": {
        **{"type": values.count, "metavar": "N"},
        "help": "the first N documents only, 1 or more (default: all)",
    },
    "dev_limit": {
        **{"type": values.count, "metavar": "N"},
        "help": "the first N documents of the dev split only (default: --limit)",
    },
    "seed": {
        **{"type": values.from_zero, "default": 0, "metavar": "N"},
        "help": "of the bootstrap that intervals come from, 0 or more (default: 0)",
    },
    "batch_size": {
        **{"type": values.count, "default": 100, "metavar": "N"},
        "help": "rows in one forward pass, at most (default: 100)",
    },
    "device": {
        "type": values.device,
        "help": "cpu, cuda, cuda:N or mps (default: the GPU when there is one)",
    },
    "dtype": {
        **{"type": values.dtype},
        "help": "of the weights, for example bfloat16 (default: as the model is stored)",
    },
    "num": {"type": values.count, "metavar": "N"},
    "max_new_tokens": {
        **{"type": values.count, "metavar": "N"},
        "help": "most tokens of the answer (default: 256, or what fits the model if that is less)",
    },
    "show_thoughts": {
        **{"action": "store_true"},
        "help": "print the Euclidean norm of each thought before the answer",
    },
    "adapter": {
        **{"action": "store_true"},
        "help": "write adapters as adapters, not merged into their base (default: merged)",
    },
    "tuned_on": {
        **{"metavar": "SPLIT"},
        "help": "note in latentref.json what the settings were tuned on, for people to read",
    },
    "split": {"default": "train", "help": "train (default), validation or test"},
    "write": {
        **{"action": "store_true"},
        "help": "write the recommended settings into the model's latentref.json",
    },
    "metadata": {
        **{"metavar": "JSON"},
        "help": "of the task, as for lm-eval: one object such as '{\"num_documents\": 1000}'",
    },
    "include_path": {
        **{"metavar": "FOLDER"},
        "help": "folder of your own task files, as for lm-eval (default: the packaged tasks alone)",
    },
    "judge_on": {"metavar": "TASK", "help": "a test task: judge the best of each row there, once"},
    "contrast": {
        **{"metavar": "NAME=STRONG,WEAK", "type": values.contrast, "action": "append"},
        "help": "one more row of search alone, NAME, with references of its own: parts of the set "
        "(such as control), . for the set itself, or checkpoints; may be given again",
    },
    "no_margins": {
        **{"dest": "margins", "action": "store_false"},
        "help": "judge answers alone: candidates of the test problems are not scored",
    },
    "metric": {
        **{"metavar": "NAME"},
        "help": "what is compared (default: acc, exact_match, or the first there is)",
    },
    "baseline": {
        "metavar": "FOLDER|FILE.yaml",
        "help": "an earlier run with --log_samples, compared document by document, or accuracies "
        "in vLLM's form",
    },
    "allow_different": {
        **{"nargs": "+", "metavar": "FIELD"},
        "help": "compare runs although they differ in version, num_fewshot, limit or documents "
        "(default: such runs are not compared)",
    },
    "eval_results": {
        **{"type": values.folder, "metavar": "FOLDER"},
        "help": "write .eval_results/*.yaml of the Hugging Face Hub for each row",
    },
    "watch": {
        **{"nargs": "?", "type": values.seconds, "const": 10.0, "metavar": "SECONDS"},
        "help": "look for new results every so many seconds, until Ctrl-C (10 if the option has "
        "no value; default: look once)",
    },
    "max_drop": {
        **{"type": float, "metavar": "X"},
        "help": "drop of a metric that is accepted, absolute: 0.02 is two points of a hundred "
        "(default: as the YAML file says; paired: 0.02)",
    },
    "significance": {
        **{"type": float, "default": 0.05, "metavar": "P"},
        "help": "level of the paired tests, over all metrics together, above 0 and below 1 "
        "(default: 0.05)",
    },
    "golden": {"metavar": "FILE.json", "help": "log-likelihoods and texts that must be the same"},
    "write_golden": {
        **{"nargs": "?", "const": True, "metavar": "FILE.json"},
        "help": "write this golden file from CANDIDATE (default: the file that --golden names); a "
        "second run as --baseline measures its tolerance",
    },
    "update": {"action": "store_true", "help": "replace the baseline's values by CANDIDATE's"},
    "show_flips": {
        **{"type": values.from_zero, "default": 0, "metavar": "N"},
        "help": "list N documents whose answers changed (default: 0)",
    },
    "format": {
        **{"choices": ("text", "json", "markdown", "junit"), "default": "text"},
        "help": "of the report (default: text)",
    },
}
"""Every option, declared once; a subcommand may override parts. Hyphens may replace underscores."""

SHORT = {"model_args": "-a", "output": "-o"}
BOARD_OPTIONS = ("output", "baseline", "metric", "allow_different", "eval_results", "watch", "seed")
CHECK_OPTIONS = (
    "baseline",
    "max_drop",
    "significance",
    "golden",
    "write_golden",
    "update",
    "show_flips",
    "format",
)
LATENT_STEPS = {
    "type": values.from_zero,
    "help": "number of thoughts, 1 or more (default: what latentref.json says)",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """A mistake in the words of a command line is one line, as every other is."""
        raise LatentRefError(f"{self.prog}: {message}; `{self.prog} --help` says what it takes")


class _Version(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        """Looks the version up only when it is asked for."""
        print(version("lm-eval-latentref"))
        parser.exit()


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The arguments in `words`, the command line without the program's name.

    Raises LatentRefError on a mistake in them.
    """
    made = parser()
    args, rest = made.parse_known_args(words)
    if rest:
        # argparse takes positional arguments from one place only, before or after the options.
        if not hasattr(args, "pairs") or any(word.startswith("-") for word in rest):
            made.error(f"unrecognized arguments: {' '.join(rest)}")
        args.pairs = [*args.pairs, *rest]
    return args


def parser() -> argparse.ArgumentParser:
    """The parser; `command` of what it returns is the name of the subcommand."""
    raw = argparse.RawDescriptionHelpFormatter
    made = _Parser(
        prog="latentref",
        description="Evaluate and use latent-reasoning language models.",
        epilog=f"`latentref COMMAND --help` says more.\n\n{STATUSES}\n{OTHER_STATUSES}",
        formatter_class=raw,
    )
    made.add_argument("--version", action=_Version, help="print the version and exit")
    commands = made.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, help: str, epilog: str = STATUSES) -> Any:
        example = f"Example: {EXAMPLES[name]}\n\n" if name in EXAMPLES else ""
        about = f"{help[0].upper()}{help[1:]}."
        return commands.add_parser(
            name, help=help, description=about, epilog=example + epilog, formatter_class=raw
        )

    # Only for the help: what follows `run` is lm-eval's.
    add("run", "lm-eval's `run` with our tasks, and our model if no --model is given")
    add("tasks-path", "print the folder for lm-eval's --include_path")
    _add_checkpoint_commands(add)
    _add_training_commands(add)
    _add_evaluation_commands(add)
    command = add("demo", "a first evaluation, offline, with the packaged model and tasks")
    where = "folder that the results go to (default: results/demo)"
    _option(command, "output", required=False, default="results/demo", help=where)
    _option(command, "limit", help="documents, 1 or more (default: 1000, with --smollm2 50)")
    command.add_argument("--smollm2", action="store_true", help="the set on SmolLM2-135M instead")
    return made


def _add_checkpoint_commands(add: Callable[..., Any]) -> None:
    epilog = f"{DEFAULTS_OF_A_SET}\n\n{STATUSES}"
    command = add("ask", "think about one question and print the answer", epilog)
    command.add_argument("question", help="text, put to the model as it is")
    _options(command, *MODEL_OPTIONS, "model_args", "max_new_tokens", "show_thoughts")
    command = add("convert", "write any set of checkpoints as one folder", epilog)
    _options(command, *MODEL_OPTIONS, "model_args", "adapter", "tuned_on")
    _option(command, "output", help="a new folder")


def _add_training_commands(add: Callable[..., Any]) -> None:
    command = add("train", "train a set of checkpoints by a recipe")
    command.add_argument("recipe", metavar="RECIPE", help="a YAML file or a recipe of the package")
    changes = "fields of the recipe to change, such as seed=1 or config.hidden_size=64"
    command.add_argument("pairs", nargs="*", default=[], metavar="KEY=VALUE", help=changes)
    command = add("data", "write generated problems to a file")
    command.add_argument("task", help="graph, arith or prosqa_generated")
    of_task = "arguments of the generator, such as nodes=12 (default: those of the packaged task)"
    command.add_argument("pairs", nargs="*", default=[], metavar="KEY=VALUE", help=of_task)
    _option(command, "num", required=True, help="how many problems, 1 or more")
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
        *("sweep", "choose a checkpoint set's settings on a dev split"),
        epilog=f"batch_size in --model_args is 32 if it is not given.\n\n{STATUSES}",
    )
    _options(command, "model_args", *NAMES_OF_A_SET, "task", "output", "memory_rates", "step_sizes")
    _option(command, "latent_steps", **LATENT_STEPS, nargs="+", default=())
    moves = "moves of the search for each thought to try, 1 or more (default: 1)"
    _option(command, "search_steps", type=int, nargs="+", default=(1,), help=moves)
    _options(command, "limit", "seed", "write", "metadata", "include_path", "judge_on")

    command = add("study", "every row of the results table on trained sets")
    sets = "trained sets of one recipe, one for each seed"
    command.add_argument("folders", nargs="+", type=values.there, metavar="FOLDER", help=sets)
    _option(
        *(command, "task"),
        action="append",
        help="a test task, for example latentref_mathqa; give it again for more, on one page",
    )
    _options(command, "output", "memory_rates", "step_sizes", "contrast", "dev_limit")
    _options(command, "no_margins", "seed")
    _add_running(command)

    command = add("thoughts", "show what thoughts decode to, before and after refinement")
    command.add_argument("folder", metavar="FOLDER", help="a trained set with its references")
    any_task = "the task that documents come from, for example latentref_mathqa_mc"
    _option(command, "task", help=any_task)
    _options(command, "step_size")
    kept = MODEL_OPTIONS["memory_rate"]["help"]
    _option(
        command, "memory_rate", type=values.rate, help=f"{kept} (default: what latentref.json says)"
    )
    _option(command, "num", default=6, help="problems, half mended, half broken (default: 6)")
    _option(command, "output", type=str, metavar="FILE.md", help="the page")
    _add_running(command)


def _add_run_commands(add: Callable[..., Any]) -> None:
    """Commands that read finished runs."""
    command = add("compare", "paired tests of two runs on the same documents")
    kinds = "folder or file of --log_samples, or sweep.json::SETTING"
    command.add_argument("first", type=values.there, help=kinds)
    command.add_argument(
        "second", type=values.there, help="likewise: what is compared with the first"
    )
    _options(command, "metric", "seed")

    command = add(
        *("leaderboard", "rank runs by paired tests on the same documents"),
        epilog="Exit status: 0 written, 3 a mistake, or no run that can be read, 130 Ctrl-C.",
    )
    command.add_argument(
        *("results",),
        **{"nargs": "+", "type": values.there, "metavar": "RESULTS"},
        help="folders or files of lm_eval --output_path, of any model; NAME=FOLDER names its row, "
        "and the same name again adds tasks or seeds to it",
    )
    kinds = "what to write: .txt, .md, .csv, .json or .html; a folder gets one of each"
    _option(command, "output", required=False, type=values.place, metavar="FILE|FOLDER", help=kinds)
    against = "the row that others are shown against (default: none)"
    _option(command, "baseline", metavar="ROW", help=against)
    ranked_by = "what tasks are ranked by, the first that a task has (default: acc exact_match)"
    _option(command, "metric", nargs="+", help=ranked_by)
    _options(command, *BOARD_OPTIONS[3:])

    command = add(
        *("check", "a gate for CI: fails if a run is worse than its baseline"),
        epilog="Exit status: 0 pass, 1 fail, 2 inconclusive, 3 a mistake, wrong options included,\n"
        "130 Ctrl-C. With --update and --write_golden: 0 written, 3 a mistake.",
    )
    a_run = "a run of lm_eval --output_path"
    command.add_argument("candidate", type=values.there, metavar="CANDIDATE", help=a_run)
    _options(command, *CHECK_OPTIONS)


def _add_running(command: argparse.ArgumentParser) -> None:
    """Adds the options shared by evaluations that keep finished work."""
    _option(command, "latent_steps", **LATENT_STEPS)
    _options(command, "work", "batch_size", "limit", "device", "dtype")


def _options(command: argparse.ArgumentParser, *names: str) -> None:
    for name in names:
        _option(command, name)


def _option(command: argparse.ArgumentParser, name: str, **changes: Any) -> None:
    flags = [f"--{name}", f"--{name.replace('_', '-')}", *([SHORT[name]] if name in SHORT else [])]
    command.add_argument(*dict.fromkeys(flags), **{**OPTIONS[name], **changes})
