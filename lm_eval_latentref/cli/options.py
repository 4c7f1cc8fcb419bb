"""The options of `latentref`, each declared once, and the parser of its subcommands.

    args = parser().parse_args(["ask", "What is 2 + 3?", "--latent-steps", "6"])
    args.command, args.latent_steps         # "ask", 6

Names have lm-eval's underscores; hyphens may replace them. Nothing slow is imported, so that
`--help` is quick.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import Any

from lm_eval_latentref.errors import LatentRefError

MODEL_OPTIONS = {
    "pretrained": {"help": "hub id, folder or packaged set (default: smollm2-135m)"},
    "strong": {"help": "the reference to move towards: hub id, folder, adapter or state dict"},
    "weak": {"help": "the reference to move away from"},
    "weights": {"help": "raw state dict to load into the backbone: a file or REPO_ID:PATH/IN/REPO"},
    "latent_steps": {"help": "number of thoughts"},
    "memory_rate": {"help": "residual mixing rate, 0 to 1"},
    "search_step_size": {"help": "step size of the contrastive search: a number, or 0.3*d/2"},
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
        "help": "keeps finished work (default: in out/, named after the command and the output)",
    },
    "memory_rates": {"type": float, "nargs": "+", "help": "0 to 1; 0 is always tried"},
    "step_sizes": {
        **{"type": _half_widths, "nargs": "+", "metavar": "X*d/2"},
        "help": "for example 0.3*d/2 (0.3 means the same here); 0 is always tried",
    },
    "step_size": {
        **{"type": _half_widths, "metavar": "X*d/2"},
        "help": "for example 0.3*d/2 (0.3 means the same here; default: as in latentref.json)",
    },
    "limit": {"type": int, "help": "use only this many documents, from the first"},
    "dev_limit": {"type": int, "help": "--limit for the dev split (default: --limit)"},
    "seed": {"type": int, "default": 0, "help": "seed of the bootstrap (default: 0)"},
    "batch_size": {"type": int, "default": 100, "help": "rows in a forward (default: 100)"},
    "device": {"help": "default: the GPU if there is one"},
    "dtype": {"help": "dtype of the models, for example bfloat16"},
    "num": {"type": int, "help": "how many"},
    "max_new_tokens": {
        **{"type": int},
        "help": "the most tokens to write (default: 256, or what fits the model if that is less)",
    },
    "show_thoughts": {"action": "store_true", "help": "print the norm of each thought"},
    "adapter": {"action": "store_true", "help": "keep adapters as adapters"},
    "tuned_on": {"metavar": "SPLIT", "help": "the split that the settings were tuned on"},
    "split": {"default": "train", "help": "train (default), validation or test"},
    "write": {"action": "store_true", "help": "write the chosen settings into latentref.json"},
    "metadata": {"metavar": "JSON", "help": "the task's metadata, as for lm-eval"},
    "include_path": {"metavar": "FOLDER", "help": "your own task files"},
    "judge_on": {"metavar": "TASK", "help": "a test task: judge the best of each row there, once"},
    "no_margins": {
        **{"dest": "margins", "action": "store_false"},
        "help": "judge answers alone: candidates of the test problems are not scored",
    },
    "metric": {"help": "default: acc, exact_match, or the run's first metric"},
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
        "help": "look for new results at this interval, until Ctrl-C (default: 10 seconds)",
    },
    "max_drop": {
        "type": float,
        "help": "largest accepted drop, absolute (default: as in the YAML file; paired: 0.02)",
    },
    "significance": {
        **{"type": float, "default": 0.05},
        "help": "level of the paired tests, over all metrics together (default: 0.05)",
    },
    "golden": {
        "metavar": "FILE.json",
        "help": "log-likelihoods and texts that must be the same",
    },
    "write_golden": {
        **{"nargs": "?", "const": True, "metavar": "FILE.json"},
        "help": "write this golden file from CANDIDATE (default: the file that --golden names); a "
        "second run as --baseline measures its tolerance",
    },
    "update": {"action": "store_true", "help": "replace the baseline's values by CANDIDATE's"},
    "show_flips": {
        **{"type": int, "default": 0, "metavar": "N"},
        "help": "list N documents that changed",
    },
    "format": {
        **{"choices": ("text", "json", "markdown", "junit"), "default": "text"},
        "help": "default: text",
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
LATENT_STEPS = {"type": int, "help": "number of thoughts (default: as in latentref.json)"}


def parser() -> argparse.ArgumentParser:
    """The parser; the `command` of its result is the name of the subcommand."""
    made = argparse.ArgumentParser(
        prog="latentref", description="Evaluate and use latent-reasoning language models."
    )
    commands = made.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, help: str, **settings: Any) -> Any:
        return commands.add_parser(name, help=help, **settings)

    add("run", "lm-eval's `run` with this package's model and tasks")  # only for the help
    add("tasks-path", "print the folder for lm-eval's --include_path")
    _add_checkpoint_commands(add)
    _add_training_commands(add)
    _add_evaluation_commands(add)
    command = add("demo", "a first evaluation, offline, with the packaged model and tasks")
    _option(command, "output", required=False, default="results/demo")
    _option(command, "limit", help="documents (default: 1000, with --smollm2 50)")
    command.add_argument("--smollm2", action="store_true", help="the set on SmolLM2-135M instead")
    return made


def _add_checkpoint_commands(add: Callable[..., Any]) -> None:
    command = add("ask", "think about one question and print the answer")
    command.add_argument("question")
    _options(command, "model_args", *MODEL_OPTIONS, "max_new_tokens", "show_thoughts")
    command = add("convert", "write any set of checkpoints as one folder")
    _options(command, "model_args", *MODEL_OPTIONS, "adapter", "tuned_on")
    _option(command, "output", help="a new folder")


def _add_training_commands(add: Callable[..., Any]) -> None:
    command = add("train", "train a set of checkpoints by a recipe")
    command.add_argument("recipe", metavar="RECIPE", help="a YAML file or a recipe of the package")
    command.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes to the recipe")
    command = add("data", "write generated problems to a file")
    command.add_argument("task", help="graph, arith or prosqa_generated")
    command.add_argument("options", nargs="*", metavar="KEY=VALUE", help="the generator's options")
    _option(command, "num", required=True, help="how many problems")
    _option(
        command,
        "seed",
        default=-1,
        help="seed of the problems (default: -1); training with seed S uses seed S * 1000000 + E "
        "for epoch E (from 0), and the dev and test tasks use seed 0",
    )
    _option(command, "split")
    _option(command, "output", metavar="FILE", help=".json or .jsonl")


def _add_evaluation_commands(add: Callable[..., Any]) -> None:
    command = add(
        *("sweep", "choose a checkpoint set's settings on a dev split"),
        epilog="batch_size in --model_args is 32 if it is not given",
    )
    _options(command, "model_args", *NAMES_OF_A_SET, "task", "output", "memory_rates", "step_sizes")
    _option(command, "latent_steps", **LATENT_STEPS, nargs="+", default=())
    _option(command, "search_steps", type=int, nargs="+", default=(1,))
    _options(command, "limit", "seed", "write", "metadata", "include_path", "judge_on")

    command = add("study", "every row of the results table on trained sets")
    command.add_argument("folders", nargs="+", metavar="FOLDER", help="trained sets")
    _option(
        *(command, "task"),
        action="append",
        help="for example latentref_mathqa; give it again for more tasks, on one page",
    )
    _options(command, "output", "memory_rates", "step_sizes", "dev_limit", "no_margins", "seed")
    _add_running(command)

    command = add("thoughts", "show what thoughts decode to, before and after refinement")
    command.add_argument("folder", metavar="FOLDER", help="a trained set with its references")
    _options(command, "task", "step_size")
    _option(command, "memory_rate", type=float)
    _option(command, "num", default=6, help="number of cases, half of each kind (default: 6)")
    _option(command, "output", metavar="FILE.md", help="the page")
    _add_running(command)

    command = add("compare", "paired tests of two runs on the same documents")
    command.add_argument("first", help="folder or file of logged samples, or SWEEP.json::SETTING")
    command.add_argument("second", help="the run to compare with the first; as `first`")
    _options(command, "metric", "seed")

    command = add(
        *("leaderboard", "rank runs by paired tests on the same documents"),
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
    ranked_by = "each task is ranked by the first of these it has (default: acc exact_match)"
    _option(command, "metric", nargs="+", help=ranked_by)
    _options(command, *BOARD_OPTIONS[3:])

    command = add(
        *("check", "a gate for CI: is a run worse than its baseline?"),
        epilog="Exit status: 0 pass, 1 fail, 2 inconclusive, 3 a mistake, wrong options included. "
        "With --update and --write_golden: 0 written, 3 a mistake.",
    )
    command.add_argument("candidate", metavar="CANDIDATE", help="folder of lm_eval --output_path")
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


def no_flag(word: str) -> str:
    """`word`, changed if it is like `-0.3*d/2` so that argparse reads it as a value."""
    return f" {word}" if re.fullmatch(r"-[\d.]\S*\*\s*d\s*/\s*2", word) else word
