"""The `latentref` command: each subcommand turns strings into one call of the library.

    latentref ask "What is 2 + 3?" --latent_steps 6 --memory_rate 0.3 --show-thoughts

Exit status: 0 done, 2 a mistake of the user's (its line on stderr, no traceback), 130 Ctrl-C. Holds
no logic; what a subcommand needs is imported when it runs, so that `--help` is quick.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from lm_eval_latentref.errors import LatentRefError

MODEL_OPTIONS = {
    "pretrained": "hub id or folder of the backbone (default: SmolLM2-135M-Instruct)",
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


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand and returns its exit status; `argv` defaults to the command line's."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        # What follows `run` is lm-eval's: argparse would take its options for ours.
        if arguments[:1] == ["run"]:
            return _run(arguments[1:])
        args = _parser().parse_args(arguments)
        status: int = args.call(args)
        return status
    except LatentRefError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _run(arguments: Sequence[str]) -> int:
    from lm_eval_latentref.harness import run

    run(arguments)
    return 0


def _tasks_path(args: argparse.Namespace) -> int:
    from lm_eval_latentref.tasks import tasks_path

    print(tasks_path())
    return 0


def _ask(args: argparse.Namespace) -> int:
    from lm_eval_latentref.reasoner import load

    answer = load(**_model_arguments(args)).ask(args.question, max_new_tokens=args.max_new_tokens)
    if args.show_thoughts:
        for number, thought_D in enumerate(answer.thoughts, start=1):
            print(f"thought {number}: norm {thought_D.norm():.3f}")
    print(answer.text)
    return 0


def _convert(args: argparse.Namespace) -> int:
    from lm_eval_latentref.convert import convert

    convert(args.sources, args.output)
    return 0


def _demo(args: argparse.Namespace) -> int:
    from lm_eval_latentref.demo import run_demo

    return run_demo(output=args.output, limit=args.limit)


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
    arguments: dict[str, Any] = simple_parse_args_string(",".join(pairs))
    own = {name: getattr(args, name) for name in MODEL_OPTIONS}
    return arguments | {name: value for name, value in own.items() if value is not None}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="latentref", description="Evaluate and use latent-reasoning language models."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    # Only for the help: `main` hands `run` over before argparse sees it.
    commands.add_parser("run", help="lm-eval's `run` with this package's model and tasks")

    tasks = commands.add_parser("tasks-path", help="print the folder for lm-eval's --include_path")
    tasks.set_defaults(call=_tasks_path)

    ask = commands.add_parser("ask", help="think about one question and print the answer")
    ask.add_argument("question")
    ask.add_argument(
        *("--model_args", "-a"),
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="the model's arguments, as for lm-eval",
    )
    for name, meaning in MODEL_OPTIONS.items():
        ask.add_argument(f"--{name}", help=meaning)
    ask.add_argument("--max_new_tokens", type=int, default=256, help="at most (default: 256)")
    ask.add_argument("--show-thoughts", action="store_true", help="print the size of each thought")
    ask.set_defaults(call=_ask)

    convert = commands.add_parser("convert", help="write any checkpoint as one plain folder")
    convert.add_argument("sources", nargs="+", metavar="SOURCE")
    convert.add_argument("-o", "--output", required=True, metavar="FOLDER")
    convert.set_defaults(call=_convert)

    demo = commands.add_parser("demo", help="a first evaluation that needs nothing but this")
    demo.add_argument("--output", default="results/demo", help="folder of the results JSON")
    demo.add_argument("--limit", type=int, default=50, help="documents (default: 50)")
    demo.set_defaults(call=_demo)
    return parser
