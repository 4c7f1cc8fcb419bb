"""The `latentref` command: each subcommand turns strings into one call of the library.

    latentref ask "What is 2 + 3?" --latent_steps 6 --memory_rate 0.3 --show-thoughts

Exit status: 0 done, 1 the two sides of a bench disagree, 2 a mistake of the user's (its line on
stderr, no traceback), 130 Ctrl-C. Holds no logic; what a subcommand needs is imported when it runs,
so that `--help` is quick.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
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

BENCH_OPTIONS = {
    "rounds": (int, "how often each side works, on fresh documents"),
    "documents": (int, "documents of a round"),
    "batch_size": (int, "rows in a forward pass"),
    "dtype": (str, "of the weights: bfloat16, float32, ..."),
    "pretrained": (str, "the model (default: SmolLM2-135M-Instruct)"),
    "search_gradient": (str, "of refinement: detached or through"),
    "layers": (int, "of the model that is trained"),
    "width": (int, "of the model that is trained"),
    "models": (str, "what the device works with: names with commas between"),
    "published_documents": (int, "how many of a round's documents the published loop answers"),
    "output": (str, "file for the JSON line; growth draws its plot beside it"),
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
    from lm_eval_latentref.benchmarks.tasks import tasks_path

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
    from lm_eval_latentref.checkpoints.convert import convert

    folder = convert(
        out=args.output, adapter=args.adapter, tuned_on=args.tuned_on, **_model_arguments(args)
    )
    print(folder)
    return 0


def _train(args: argparse.Namespace) -> int:
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


def _data(args: argparse.Namespace) -> int:
    from lm_eval_latentref.training.data import write_generated
    from lm_eval_latentref.training.recipe_files import parse_overrides

    options = parse_overrides(args.options)
    num = write_generated(
        args.task, args.output, num=args.num, seed=args.seed, split=args.split, options=options
    )
    print(f"{args.output}: {num} problems")
    return 0


def _sweep(args: argparse.Namespace) -> int:
    import json

    from lm_eval_latentref.provenance import command
    from lm_eval_latentref.tuning.sweep import sweep
    from lm_eval_latentref.tuning.sweep_report import as_text, last_line, save

    names = ("task", "output", "limit", "seed", "compare", "write", "include_path", "latent_steps")
    grids = ("memory_rates", "step_sizes", "search_steps")
    options = {name: getattr(args, name) for name in (*names, *grids)}
    try:
        result = sweep(
            _model_arguments(args, NAMES_OF_A_SET), metadata=_metadata(args.metadata), **options
        )
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


def _compare(args: argparse.Namespace) -> int:
    import json

    from lm_eval_latentref.tuning.compare import as_json, as_text, compare
    from lm_eval_latentref.tuning.samples import read_answers

    first, second = (read_answers(name, metric=args.metric) for name in (args.first, args.second))
    found = compare(first, second, seed=args.seed)
    print(as_text(found))
    print(json.dumps(as_json(found)))
    return 0


def _bench(args: argparse.Namespace) -> int:
    from lm_eval_latentref.bench import run_bench

    report = run_bench(args.name, **{name: getattr(args, name) for name in BENCH_OPTIONS})
    print(report.table())
    print(report.line())
    return 1 if report.failures or report.missed else 0


def _study(args: argparse.Namespace) -> int:
    from lm_eval_latentref.provenance import command
    from lm_eval_latentref.tuning import overview, study_report
    from lm_eval_latentref.tuning.study import run_studies

    names = ("work", "latent_steps", "memory_rates", "step_sizes", "limit", "dev_limit", "seed")
    options = {name: getattr(args, name) for name in (*names, "batch_size", "device", "dtype")}
    studies = run_studies(args.folders, tasks=args.task, **options)
    if len(studies) > 1:
        print(overview.save(studies, args.output, command=command()))
    else:
        study_report.save(studies[0], args.output, command=command())
        print(study_report.as_markdown(studies[0], command=command()))
    return 0


def _diagnose(args: argparse.Namespace) -> int:
    from lm_eval_latentref.provenance import command
    from lm_eval_latentref.tuning.diagnosis import diagnose
    from lm_eval_latentref.tuning.diagnosis_report import as_markdown, save

    names = ("task", "work", "latent_steps", "limit", "batch_size", "seed")
    options = {name: getattr(args, name) for name in names}
    found = [diagnose(folder, **options) for folder in args.folders]
    save(found, args.output, command=command())
    print(as_markdown(found, command=command()))
    return 0


def _thoughts(args: argparse.Namespace) -> int:
    from lm_eval_latentref.provenance import command
    from lm_eval_latentref.tuning.cases import study_cases
    from lm_eval_latentref.tuning.cases_report import as_markdown, save

    names = ("task", "work", "num", "latent_steps", "memory_rate", "step_size", "limit")
    options = {name: getattr(args, name) for name in (*names, "batch_size", "device", "dtype")}
    found = study_cases(args.folder, **options)
    save(found, args.output, command=command())
    print(as_markdown(found, command=command()))
    return 0


def _demo(args: argparse.Namespace) -> int:
    from lm_eval_latentref.demo import run_demo

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
    _add_model_options(ask, MODEL_OPTIONS)
    ask.add_argument("--max_new_tokens", type=int, default=256, help="at most (default: 256)")
    ask.add_argument("--show-thoughts", action="store_true", help="print the size of each thought")
    ask.set_defaults(call=_ask)

    convert = commands.add_parser("convert", help="write any set of checkpoints as one folder")
    _add_model_options(convert, MODEL_OPTIONS)
    convert.add_argument("--adapter", action="store_true", help="keep adapters as adapters")
    convert.add_argument("--tuned_on", metavar="SPLIT", help="what the settings were tuned on")
    convert.add_argument("-o", "--output", required=True, metavar="FOLDER", help="a new folder")
    convert.set_defaults(call=_convert)

    _add_training(commands)
    _add_sweep(commands)
    _add_study(commands)
    _add_thoughts(commands)

    compare = commands.add_parser("compare", help="paired tests of two runs on the same documents")
    compare.add_argument("first", help="folder or file of logged samples, or SWEEP.json::SETTING")
    compare.add_argument("second", help="likewise: what is compared with the first")
    compare.add_argument("--metric", help="default: acc, exact_match, or the first there is")
    compare.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: 0)")
    compare.set_defaults(call=_compare)

    bench = commands.add_parser("bench", help="measure speed, memory and growth on this machine")
    names = ("choices", "generation", "refinement", "memory", "growth", "train", "device")
    bench.add_argument("name", choices=names, help="what is measured")
    for name, (kind, meaning) in BENCH_OPTIONS.items():
        flags = ("-o", "--output") if name == "output" else (f"--{name}",)
        bench.add_argument(*flags, type=kind, help=meaning)
    bench.set_defaults(call=_bench)

    demo = commands.add_parser("demo", help="a first evaluation that needs nothing but this")
    demo.add_argument("--output", default="results/demo", help="folder of the results JSON")
    demo.add_argument("--limit", type=int, default=50, help="documents (default: 50)")
    demo.set_defaults(call=_demo)
    return parser


def _add_training(commands: Any) -> None:
    train = commands.add_parser("train", help="train a set of checkpoints by a recipe")
    train.add_argument("recipe", metavar="RECIPE", help="a YAML file or a recipe of the package")
    train.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes of the recipe")
    train.set_defaults(call=_train)

    data = commands.add_parser("data", help="write generated problems to a file")
    data.add_argument("task", help="prosqa or hops")
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
    data.set_defaults(call=_data)


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
    sweep = commands.add_parser("sweep", help="choose a checkpoint set's settings on a dev split")
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
    sweep.set_defaults(call=_sweep)


def _add_study(commands: Any) -> None:
    study = commands.add_parser("study", help="every row of the results table on trained sets")
    study.add_argument("--memory-rates", type=float, nargs="+", default=(0.05, 0.1, 0.3))
    study.add_argument("--step-sizes", type=float, nargs="+", default=(-0.1, 0.03, 0.1, 0.3))
    study.add_argument(
        "--task",
        action="append",
        required=True,
        help="for example latentref_mathqa; give it again for more tasks, on one page",
    )
    study.add_argument("--device", help="default: the GPU when there is one")
    study.add_argument("--dtype", help="of the models, for example bfloat16")
    study.add_argument("--dev-limit", type=int, metavar="N", help="as --limit, of the dev split")
    study.set_defaults(call=_study)
    diagnose = commands.add_parser("diagnose", help="why refinement helps a trained set, or not")
    diagnose.set_defaults(call=_diagnose)
    diagnose.add_argument("--task", required=True, help="for example latentref_hops_mc_dev")
    for parser in (study, diagnose):
        parser.add_argument("folders", nargs="+", metavar="FOLDER", help="trained sets")
        parser.add_argument("-o", "--output", required=True, metavar="FOLDER", help="the report's")
        parser.add_argument(
            "--work", default="out/study", metavar="FOLDER", help="keeps what is done"
        )
        parser.add_argument("--latent-steps", type=int, help="default: what latentref.json says")
        parser.add_argument("--batch_size", type=int, default=100)
        parser.add_argument("--limit", type=int, help="the first so many documents only")
        parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: 0)")


def _add_thoughts(commands: Any) -> None:
    thoughts = commands.add_parser("thoughts", help="what thoughts read as, before and after")
    thoughts.add_argument("folder", metavar="FOLDER", help="a trained set with its references")
    thoughts.add_argument("--task", required=True, help="for example latentref_mathqa_mc")
    thoughts.add_argument(
        "--num", type=int, default=6, help="cases, half of each kind (default: 6)"
    )
    thoughts.add_argument("--latent-steps", type=int, help="default: what latentref.json says")
    thoughts.add_argument("--memory-rate", type=float, help="likewise")
    thoughts.add_argument("--step-size", type=float, help="units of d/2; likewise")
    thoughts.add_argument("-o", "--output", required=True, metavar="FILE.md", help="the page")
    thoughts.add_argument(
        "--work", default="out/study", metavar="FOLDER", help="keeps what is done"
    )
    thoughts.add_argument("--batch_size", type=int, default=100)
    thoughts.add_argument("--device", help="default: the GPU when there is one")
    thoughts.add_argument("--dtype", help="of the models, for example bfloat16")
    thoughts.add_argument("--limit", type=int, help="the first so many documents only")
    thoughts.set_defaults(call=_thoughts)
