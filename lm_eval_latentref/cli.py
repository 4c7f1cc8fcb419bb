"""The `latentref` command: each subcommand turns strings into one call of the library.

    latentref ask "What is 2 + 3?" --latent_steps 6 --memory_rate 0.3 --show-thoughts

Exit status: 0 done, 2 a mistake of the user's (its line on stderr, no traceback), 130 Ctrl-C;
`check` has statuses of its own. Knows the options; what is done with them is in `subcommands`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from lm_eval_latentref import subcommands
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.subcommands import MODEL_OPTIONS, NAMES_OF_A_SET

MISTAKE = 2
"""Exit status of a mistake, which is argparse's."""

MISTAKE_IN_CHECK = 3
"""There 2 is inconclusive."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand and returns its exit status; `argv` defaults to the command line's."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    mistake = MISTAKE_IN_CHECK if arguments[:1] == ["check"] else MISTAKE
    try:
        # What follows `run` is lm-eval's: argparse would take its options for ours.
        if arguments[:1] == ["run"]:
            return subcommands.run(arguments[1:])
        args = _parser().parse_args(arguments)
        status: int = args.call(args)
        return status
    except LatentRefError as error:
        print(error, file=sys.stderr)
        return mistake
    except SystemExit as error:  # argparse's: its own mistakes, and --help
        if error.code == MISTAKE:
            error.code = mistake
        raise
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="latentref", description="Evaluate and use latent-reasoning language models."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    # Only for the help: `main` hands `run` over before argparse sees it.
    commands.add_parser("run", help="lm-eval's `run` with this package's model and tasks")

    tasks = commands.add_parser("tasks-path", help="print the folder for lm-eval's --include_path")
    tasks.set_defaults(call=subcommands.tasks_path)

    ask = commands.add_parser("ask", help="think about one question and print the answer")
    ask.add_argument("question")
    _add_model_options(ask, MODEL_OPTIONS)
    ask.add_argument("--max_new_tokens", type=int, default=256, help="at most (default: 256)")
    ask.add_argument("--show-thoughts", action="store_true", help="print the size of each thought")
    ask.set_defaults(call=subcommands.ask)

    convert = commands.add_parser("convert", help="write any set of checkpoints as one folder")
    _add_model_options(convert, MODEL_OPTIONS)
    convert.add_argument("--adapter", action="store_true", help="keep adapters as adapters")
    convert.add_argument("--tuned_on", metavar="SPLIT", help="what the settings were tuned on")
    convert.add_argument("-o", "--output", required=True, metavar="FOLDER", help="a new folder")
    convert.set_defaults(call=subcommands.convert)

    _add_training(commands)
    _add_sweep(commands)
    _add_study(commands)
    _add_thoughts(commands)

    compare = commands.add_parser("compare", help="paired tests of two runs on the same documents")
    compare.add_argument("first", help="folder or file of logged samples, or SWEEP.json::SETTING")
    compare.add_argument("second", help="likewise: what is compared with the first")
    compare.add_argument("--metric", help="default: acc, exact_match, or the first there is")
    compare.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: 0)")
    compare.set_defaults(call=subcommands.compare)

    _add_check(commands)

    demo = commands.add_parser("demo", help="a first evaluation that needs nothing but this")
    demo.add_argument("--output", default="results/demo", help="folder of the results JSON")
    demo.add_argument("--limit", type=int, default=50, help="documents (default: 50)")
    demo.set_defaults(call=subcommands.demo)
    return parser


def _add_check(commands: Any) -> None:
    check = commands.add_parser(
        "check",
        help="a gate for CI: is a run worse than its baseline?",
        epilog="Exit status: 0 pass, 1 fail, 2 inconclusive, 3 a mistake, wrong options included. "
        "With --update and --write_golden: 0 written, 3 a mistake.",
    )
    check.add_argument("candidate", metavar="CANDIDATE", help="folder of lm_eval --output_path")
    check.add_argument(
        "--baseline",
        metavar="FOLDER|FILE.yaml",
        help="an earlier run with --log_samples, compared document by document, or accuracies in "
        "vLLM's form",
    )
    check.add_argument(
        "--max_drop",
        type=float,
        help="drop that is accepted, absolute (default: as the YAML file says; paired: 0.02)",
    )
    check.add_argument(
        "--significance",
        type=float,
        default=0.05,
        help="of the paired tests, over all metrics together (default: 0.05)",
    )
    check.add_argument(
        "--golden", metavar="FILE.json", help="log-likelihoods and texts that must be the same"
    )
    check.add_argument(
        "--write_golden",
        nargs="?",
        const=True,
        metavar="FILE.json",
        help="make that file from CANDIDATE (default: the one --golden names); a second run as "
        "--baseline measures its tolerance",
    )
    check.add_argument("--update", action="store_true", help="make the baseline what CANDIDATE is")
    check.add_argument(
        "--show_flips", type=int, default=0, metavar="N", help="list N documents that changed"
    )
    formats = ("text", "json", "markdown", "junit")
    check.add_argument("--format", choices=formats, default="text", help="default: text")
    check.set_defaults(call=subcommands.check)


def _add_training(commands: Any) -> None:
    train = commands.add_parser("train", help="train a set of checkpoints by a recipe")
    train.add_argument("recipe", metavar="RECIPE", help="a YAML file or a recipe of the package")
    train.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes of the recipe")
    train.set_defaults(call=subcommands.train)

    data = commands.add_parser("data", help="write generated problems to a file")
    data.add_argument("task", help="graph, arith, hops or prosqa_generated")
    data.add_argument("options", nargs="*", metavar="KEY=VALUE", help="options of the generator")
    data.add_argument("--num", type=int, required=True, help="how many problems")
    data.add_argument(
        "--seed",
        type=int,
        default=-1,
        help="of the problems (default: -1); training with seed S draws epoch E, from 0, of seed "
        "S * 1000000 + E, and the dev and test tasks are of seed 0",
    )
    data.add_argument("--split", default="train", help="train (default), validation or test")
    data.add_argument("-o", "--output", required=True, metavar="FILE", help=".json or .jsonl")
    data.set_defaults(call=subcommands.data)


def _add_model_options(parser: argparse.ArgumentParser, names: Iterable[str]) -> None:
    parser.add_argument(
        *("--model_args", "-a"),
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="the model's arguments, as for lm-eval",
    )
    for name in names:
        parser.add_argument(f"--{name}", help=MODEL_OPTIONS[name])


def _add_sweep(commands: Any) -> None:
    sweep = commands.add_parser(
        "sweep",
        help="choose a checkpoint set's settings on a dev split",
        epilog="batch_size in --model_args is 32 if it is not given",
    )
    _add_model_options(sweep, NAMES_OF_A_SET)
    sweep.add_argument("--task", required=True, help="for example latentref_mathqa_mc_dev")
    sweep.add_argument("-o", "--output", required=True, metavar="FOLDER", help="keeps what is done")
    grids = {
        "latent-steps": (int, "numbers of thoughts (default: what latentref.json says)"),
        "memory-rates": (float, "0 to 1; 0 is always tried (default: 0.1 0.3 0.5 0.7)"),
        "step-sizes": (float, "units of d/2; 0 is always tried (default: 0.03 0.1 0.3 1)"),
        "search-steps": (int, "updates per thought (default: 1)"),
    }
    for name, (kind, meaning) in grids.items():
        sweep.add_argument(f"--{name}", type=kind, nargs="+", help=meaning)
    sweep.set_defaults(latent_steps=(), search_steps=(1,))
    sweep.add_argument("--limit", type=int, help="the first so many documents only")
    sweep.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: 0)")
    sweep.add_argument(
        "--compare",
        type=int,
        default=0,
        metavar="N",
        help="run N settings one by one too, and print what the sweep saves",
    )
    sweep.add_argument("--write", action="store_true", help="recommended into latentref.json")
    sweep.add_argument("--metadata", metavar="JSON", help="of the task, as for lm-eval")
    sweep.add_argument("--include_path", metavar="FOLDER", help="your own task files")
    sweep.set_defaults(call=subcommands.sweep)


def _add_study(commands: Any) -> None:
    study = commands.add_parser("study", help="every row of the results table on trained sets")
    grids = {
        "memory-rates": ((0.05, 0.1, 0.3), "0 to 1 (default: 0.05 0.1 0.3)"),
        "step-sizes": ((-0.1, 0.03, 0.1, 0.3), "units of d/2 (default: -0.1 0.03 0.1 0.3)"),
    }
    for name, (values, meaning) in grids.items():
        study.add_argument(f"--{name}", type=float, nargs="+", default=values, help=meaning)
    study.add_argument(
        "--task",
        action="append",
        required=True,
        help="for example latentref_mathqa; give it again for more tasks, on one page",
    )
    study.add_argument(
        "--dev-limit", type=int, metavar="N", help="as --limit, of the dev split (default: --limit)"
    )
    study.add_argument(
        "--no-margins",
        dest="margins",
        action="store_false",
        help="judge answers alone: candidates of the test problems are not scored",
    )
    study.set_defaults(call=subcommands.study)
    diagnose = commands.add_parser("diagnose", help="why refinement helps a trained set, or not")
    diagnose.set_defaults(call=subcommands.diagnose)
    diagnose.add_argument("--task", required=True, help="for example latentref_hops_mc_dev")
    for parser in (study, diagnose):
        parser.add_argument("folders", nargs="+", metavar="FOLDER", help="trained sets")
        parser.add_argument("-o", "--output", required=True, metavar="FOLDER", help="the report's")
        parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: 0)")
        _add_running(parser)
    _add_loading(study)


def _add_thoughts(commands: Any) -> None:
    thoughts = commands.add_parser("thoughts", help="what thoughts read as, before and after")
    thoughts.add_argument("folder", metavar="FOLDER", help="a trained set with its references")
    thoughts.add_argument("--task", required=True, help="for example latentref_mathqa_mc")
    thoughts.add_argument(
        "--num", type=int, default=6, help="cases, half of each kind (default: 6)"
    )
    thoughts.add_argument("--memory-rate", type=float, help="default: what latentref.json says")
    thoughts.add_argument("--step-size", type=float, help="units of d/2; likewise")
    thoughts.add_argument("-o", "--output", required=True, metavar="FILE.md", help="the page")
    _add_running(thoughts)
    _add_loading(thoughts)
    thoughts.set_defaults(call=subcommands.thoughts)


def _add_running(parser: argparse.ArgumentParser) -> None:
    """What evaluations share that keep what is done."""
    parser.add_argument("--work", default="out/study", metavar="FOLDER", help="keeps what is done")
    parser.add_argument("--latent-steps", type=int, help="default: what latentref.json says")
    parser.add_argument("--batch_size", type=int, default=100, help="default: 100")
    parser.add_argument("--limit", type=int, help="the first so many documents only")


def _add_loading(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="default: the GPU when there is one")
    parser.add_argument("--dtype", help="of the models, for example bfloat16")
