#!/usr/bin/env bash
# Makes the packaged set smollm2-135m and its pages again, from SmolLM2-135M-Instruct.
#
#   LATENTREF_DATA=FOLDER results/smollm2-135m/make.sh train     # about 80 minutes on two cores
#   LATENTREF_DATA=FOLDER results/smollm2-135m/make.sh pages     # hours on one core
#
# The set is trained on MathQA (with our prompt and that of lm-eval's own task) and on StrategyQA. No-CoT
# is trained separately. `train` writes the set to out/smollm2-135m-set; to package it, replace
# lm_eval_latentref/models/smollm2-135m by it. After an interruption, the same command continues.
set -euo pipefail
cd "$(dirname "$0")/../.."

train() {
    torchrun --nproc_per_node 2 -m lm_eval_latentref train smollm2-135m output=out/smollm2-135m
    latentref train smollm2-135m output=out/smollm2-135m-no-cot phases=no_cot
    latentref convert --model_args pretrained=out/smollm2-135m,dtype=bfloat16 --adapter \
        -o out/smollm2-135m-set
    latentref convert --model_args pretrained=out/smollm2-135m-no-cot,dtype=bfloat16 --adapter \
        -o out/smollm2-135m-set/no_cot
}

pages() {
    local grid=(--memory_rates 0.1 0.3 0.7 --step_sizes -0.3 0.3 1 --batch_size 128)
    local here=results/smollm2-135m
    latentref study smollm2-135m --task latentref_mathqa --task latentref_mathqa_harness \
        --task latentref_strategyqa "${grid[@]}" --dtype bfloat16 --limit 1000 --dev_limit 150 \
        --no_margins -o $here
    latentref study smollm2-135m --task latentref_mathqa_mc --task latentref_mathqa_harness \
        "${grid[@]}" --dtype float32 --limit 500 --dev_limit 150 -o $here/mathqa-float32
    latentref study smollm2-135m --task latentref_strategyqa "${grid[@]}" --dtype float32 \
        -o $here/strategyqa-float32
    latentref thoughts smollm2-135m --task latentref_mathqa_mc --memory_rate 0.7 --step_size 1 \
        --batch_size 128 --dtype float32 --limit 500 -o $here/thoughts.md
    latentref thoughts smollm2-135m --task latentref_strategyqa_mc --memory_rate 0.7 --step_size 1 \
        --batch_size 64 --dtype float32 -o $here/thoughts-strategyqa.md
}

case ${1:-} in
    train) train ;;
    pages) pages ;;
    *)
        echo "usage: $0 train|pages" >&2
        exit 2
        ;;
esac
