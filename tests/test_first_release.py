"""The command lines of 0.1.0's README and results still work, except for removed commands."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from lm_eval_latentref.cli.parser import parser
from lm_eval_latentref.training.recipe import load_recipe

GRID = "--memory-rates 0.1 0.3 0.7 --step-sizes -0.3 0.3 1 --batch_size 128"
COMMANDS = f"""
tasks-path
ask "What is 2 + 3?" --max_new_tokens 8 --show-thoughts
convert --pretrained openai-community/gpt2 --weights checkpoint_41 --strong a --weak b -o c
convert --model_args pretrained=out/smollm2-135m,dtype=bfloat16 --adapter -o SET
data prosqa_generated --num 10 --seed 1 --split test -o FILE.jsonl
demo --output results/demo --limit 50
sweep --pretrained out/mine --task latentref_mathqa_mc_dev -o out/sweep --write
sweep --model_args pretrained=a,dtype=bfloat16 --task t --memory-rates 0.1 --step-sizes 0.3 1 -o o
compare RESULTS_A RESULTS_B --metric acc --seed 1
study out/s0 out/s1 out/s2 --task latentref_mathqa --task latentref_gsm8k -o results/mine
study smollm2-135m --task t {GRID} --dtype bfloat16 --limit 1000 --dev-limit 150 --no-margins -o o
study out/s0 --task t --latent-steps 10 --step-sizes -0.3 0.1 --work out/study -o o
thoughts smollm2-135m --task t --memory-rate 0.7 --step-size 1 --dtype float32 -o t.md
""".strip().splitlines()
TRAININGS = [
    "smollm2-135m output=out/smollm2-135m",
    "smollm2-135m output=out/smollm2-135m-no-cot phases=no_cot",
    "smollm2-135m pretrained=smollm2-135m phases=coconut first_stage=3 output=out/more",
    "smollm2-135m pretrained=smollm2-135m/strong output=out/more-cot",
    "smollm2-135m output=out/no_cot 'phases=[no_cot]'",
]
BENCHES = ("choices", "generation", "refinement", "memory", "growth", "train", "device")


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_line_is_still_read(line):
    words = shlex.split(line)
    assert parser().parse_args(words).command == words[0]


@pytest.mark.parametrize("line", TRAININGS)
def test_a_training_is_still_described_by_its_recipe(line):
    name, *overrides = shlex.split(line)
    assert parser().parse_args(["train", name, *overrides]).command == "train"
    given = dict(override.split("=") for override in overrides)
    assert load_recipe(name, overrides).output == given["output"]


@pytest.mark.parametrize("name", BENCHES)
def test_a_bench_is_a_script_beside_its_page(name):
    folder = Path(__file__).parent.parent / "results" / "performance"
    assert (folder / f"{name}.py").is_file()
