"""The names of our tasks, by what a model does in them."""

from __future__ import annotations

from lm_eval_latentref.benchmarks.rows import BENCHMARKS

CHOOSING = [name for name in BENCHMARKS if name != "gsm8k"]
GENERATING_TASKS = [f"latentref_{name}{dev}" for name in BENCHMARKS for dev in ("", "_dev")]
CHOOSING_TASKS = [f"latentref_{name}_mc{dev}" for name in CHOOSING for dev in ("", "_dev")]
HARNESS_TASKS = ["latentref_mathqa_harness", "latentref_mathqa_harness_dev"]
LETTERED_TASKS = [
    f"latentref_prosqa_letters{kind}{dev}" for kind in ("", "_mc") for dev in ("", "_dev")
]
GENERATED = ["prosqa_generated", "graph", "arith"]
GENERATED_TASKS = [f"latentref_{name}{mc}" for name in GENERATED for mc in ("", "_mc")]
GENERATED_DEV_TASKS = [f"{name}_dev" for name in GENERATED_TASKS]
ALL_TASKS = [*GENERATING_TASKS, *CHOOSING_TASKS, *HARNESS_TASKS, *GENERATED_TASKS]
ALL_TASKS += [*GENERATED_DEV_TASKS, *LETTERED_TASKS]
VOTING_TASKS = [f"latentref_{name}_vote" for name in BENCHMARKS]
SAMPLING_TASKS = [*VOTING_TASKS, "latentref_gsm8k_pass"]
GROUPS = ["latentref", "latentref_mc", "latentref_dev", "latentref_mc_dev"]
