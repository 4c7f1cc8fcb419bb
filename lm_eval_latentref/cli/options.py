"""The options of `latentref`, each declared once.

    OPTIONS["limit"]["help"]

Names have lm-eval's underscores; hyphens may replace them. `parser` gives options to subcommands.
"""

from __future__ import annotations

from typing import Any

from lm_eval_latentref.cli import values
from lm_eval_latentref.cli.model_options import MODEL_OPTIONS

OPTIONS: dict[str, dict[str, Any]] = {
    **MODEL_OPTIONS,
    "model_args": {
        "nargs": "+",
        "default": [],
        "metavar": "NAME=VALUE",
        "help": "any argument of the model, as for lm_eval --model_args: memory_rate=, dtype=, "
        "device=, trust_remote_code= and more; an option of the same name takes precedence",
    },
    "task": {
        "required": True,
        "metavar": "TASK",
        "help": "the dev task on which settings are chosen, such as latentref_mathqa_mc_dev",
    },
    "output": {
        "required": True,
        "type": values.folder,
        "metavar": "FOLDER",
        "help": "folder for the results",
    },
    "work": {
        "type": values.folder,
        "metavar": "FOLDER",
        "help": "folder for finished work, from which the same command continues after an "
        "interruption (default: in out/, named after the command and the output)",
    },
    "memory_rates": {
        "type": values.rate,
        "nargs": "+",
        "metavar": "ALPHA",
        "help": "memory rates to try, 0 to 1 each; 0 is always tried (default: "
        "0.1 0.3 0.5 0.7, in a study 0.05 0.1 0.3)",
    },
    "step_sizes": {
        "type": values.half_widths,
        "nargs": "+",
        "metavar": "X*d/2",
        "help": "step sizes of the search to try, such as 0.3*d/2 (0.3 means the same here); 0 is "
        "always tried (default: 0.03 0.1 0.3 1.0, in a study -0.1 0.03 0.1 0.3)",
    },
    "step_size": {
        "type": values.half_widths,
        "metavar": "X*d/2",
        "help": "step size of the search, such as 0.3*d/2 (0.3 means the same here; default: that "
        "of latentref.json)",
    },
    "limit": {
        "type": values.count,
        "metavar": "N",
        "help": "only the first N documents, 1 or more (default: all)",
    },
    "dev_limit": {
        "type": values.count,
        "metavar": "N",
        "help": "only the first N documents of the dev split (default: --limit)",
    },
    "seed": {
        "type": values.from_zero,
        "default": 0,
        "metavar": "N",
        "help": "seed of the bootstrap, 0 or more (default: 0)",
    },
    "batch_size": {
        "type": values.count,
        "default": 100,
        "metavar": "N",
        "help": "maximum number of rows in a forward pass (default: 100)",
    },
    "device": {
        "type": values.device,
        "help": "cpu, cuda, cuda:N or mps (default: the GPU if there is one)",
    },
    "dtype": {
        "type": values.dtype,
        "help": "dtype of the weights, for example bfloat16 (default: the checkpoint's)",
    },
    "num": {"type": values.count, "metavar": "N"},
    "max_new_tokens": {
        "type": values.count,
        "metavar": "N",
        "help": "maximum number of tokens of the answer (default: 256, or less if the model "
        "has no room)",
    },
    "show_thoughts": {
        "action": "store_true",
        "help": "print the Euclidean norm of each thought before the answer",
    },
    "adapter": {
        "action": "store_true",
        "help": "keep adapters as adapters (default: merge them into their base)",
    },
    "tuned_on": {
        "metavar": "SPLIT",
        "help": "the data on which settings were chosen, recorded in latentref.json for readers",
    },
    "split": {"default": "train", "help": "train (default), validation or test"},
    "write": {
        "action": "store_true",
        "help": "write the recommended settings into the model's latentref.json",
    },
    "metadata": {
        "metavar": "JSON",
        "help": "metadata of the task, as for lm-eval: an object such as "
        "'{\"num_documents\": 1000}'",
    },
    "include_path": {
        "metavar": "FOLDER",
        "help": "folder of your own task files, as for lm-eval (default: only the packaged tasks)",
    },
    "judge_on": {
        "metavar": "TASK",
        "help": "test task on which the best setting of each row and the recommended setting are "
        "evaluated",
    },
    "contrast": {
        "metavar": "NAME=STRONG,WEAK",
        "type": values.contrast,
        "action": "append",
        "help": "adds a row NAME of search alone with other references: . for the set itself, "
        "paths relative to it (such as control, or ../coconut-2-4 beside a kept epoch), or "
        "checkpoints; may be given again",
    },
    "row": {
        "metavar": "NAME=CHECKPOINT",
        "type": values.named,
        "action": "append",
        "help": "adds a row NAME of another checkpoint without refinement, named like a reference "
        "of --contrast (such as weak); may be given again",
    },
    "recommended": {
        "action": "store_true",
        "help": "add a row with the setting that the sweep recommends, which may be none",
    },
    "no_margins": {
        "dest": "margins",
        "action": "store_false",
        "help": "evaluate answers only, without scoring the candidates of the test problems",
    },
    "metric": {
        "metavar": "NAME",
        "help": "metric to compare (default: acc, exact_match, or the first metric)",
    },
    "baseline": {
        "metavar": "FOLDER|FILE.yaml",
        "help": "an earlier run with --log_samples, compared document by document, or a YAML file "
        "of accuracies in vLLM's format",
    },
    "allow_different": {
        "nargs": "+",
        "metavar": "FIELD",
        "help": "compare runs even if they differ in version, num_fewshot, limit or documents "
        "(default: such runs are not compared)",
    },
    "eval_results": {
        "type": values.folder,
        "metavar": "FOLDER",
        "help": "write .eval_results/*.yaml for the Hugging Face Hub, for each row",
    },
    "watch": {
        "nargs": "?",
        "type": values.seconds,
        "const": 10.0,
        "metavar": "SECONDS",
        "help": "read new results every SECONDS, until Ctrl-C (without a value: 10; default: read "
        "once)",
    },
    "max_drop": {
        "type": float,
        "metavar": "X",
        "help": "accepted drop of a metric, absolute: 0.02 is two percentage points (default: that "
        "of the YAML file, or 0.02 if documents are paired)",
    },
    "significance": {
        "type": float,
        "default": 0.05,
        "metavar": "P",
        "help": "level of the paired tests, over all metrics together, above 0 and below 1 "
        "(default: 0.05)",
    },
    "golden": {
        "metavar": "FILE.json",
        "help": "file of log-likelihoods and texts that must be equal",
    },
    "write_golden": {
        "nargs": "?",
        "const": True,
        "metavar": "FILE.json",
        "help": "write CANDIDATE's golden file (default: the file of --golden); a second run as "
        "--baseline sets its tolerance",
    },
    "update": {"action": "store_true", "help": "replace the baseline's values by CANDIDATE's"},
    "show_flips": {
        "type": values.from_zero,
        "default": 0,
        "metavar": "N",
        "help": "list N documents whose answers changed (default: 0)",
    },
    "format": {
        "choices": ("text", "json", "markdown", "junit"),
        "default": "text",
        "help": "format of the report (default: text)",
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
    "help": "number of thoughts, 1 or more (default: that of latentref.json)",
}
