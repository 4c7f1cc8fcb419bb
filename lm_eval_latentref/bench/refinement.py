"""The price of refinement: both references against plain Coconut, on the work of `generation`.

    latentref bench refinement --rounds 3 --documents 16 --batch_size 16

Three models instead of one read each question and each thought; only the backbone decodes. The
references are the backbone with noise on its weights. That nothing else differs is checked with
two references that are the same, in float32: the search then moves nothing, and the texts must be
those of plain Coconut.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from lm_eval_latentref.bench.generation import LATENT_STEPS, NEW_TOKENS
from lm_eval_latentref.bench.report import Report, Side, alternate, compare_speed, verdict
from lm_eval_latentref.bench.sides import facts, load_lm, perturbed, prosqa_prompts, thinking, write
from lm_eval_latentref.harness.model import LatentRefLM
from lm_eval_latentref.latent.config import RefinementConfig

PLAIN, REFINED = "plain Coconut", "both references"
TARGET = 3.2
NUM_CHECKED = 2


def run(
    *,
    rounds: int = 3,
    documents: int = 16,
    dtype: str = "bfloat16",
    batch_size: int = 16,
    search_gradient: str = "detached",
    pretrained: str | None = None,
) -> Report:
    """Time with refinement over time without, and the forwards a thought of each model."""
    prompts = prosqa_prompts(max(300, (rounds + 1) * documents))
    num_equal = _check_in_float32(prompts[-NUM_CHECKED:], pretrained)
    lm = load_lm(pretrained=pretrained, dtype=dtype, batch_size=batch_size)
    plain = thinking(lm, RefinementConfig(latent_steps=LATENT_STEPS))
    refined = thinking(
        lm,
        settings(lm.reasoner.backbone.hidden_size, search_gradient),
        (perturbed(lm.model, 1), perturbed(lm.model, 2)),
    )
    forwards = forwards_a_thought(refined, prompts[-2:])
    sides = [
        Side(REFINED, partial(write, refined, max_new_tokens=NEW_TOKENS)),
        Side(PLAIN, partial(write, plain, max_new_tokens=NEW_TOKENS)),
    ]
    found = alternate(sides, prompts[:-NUM_CHECKED], rounds=rounds, per_round=documents)
    compared = compare_speed(found, slow=REFINED, fast=PLAIN)
    remarks = [
        _judged(search_gradient, compared.ratio.median),
        f"Forwards a thought: {', '.join(f'{n} {v:g}' for n, v in forwards.items())}; with "
        f"equal references {num_equal} of {NUM_CHECKED} texts are those without (float32).",
    ]
    failures = []
    if num_equal < NUM_CHECKED:
        failures.append(f"equal references change {NUM_CHECKED - num_equal} of {NUM_CHECKED} texts")
    if search_gradient == "detached" and set(forwards.values()) != {1.0}:
        failures.append(f"forwards a thought are {forwards}, not one for each model")
    return compared.report(
        "refinement",
        remarks=remarks,
        failures=failures,
        target=TARGET if search_gradient == "detached" else None,
        forwards_a_thought=forwards,
        equal_texts_float32=[num_equal, NUM_CHECKED],
        search_gradient=search_gradient,
        latent_steps=LATENT_STEPS,
        new_tokens=NEW_TOKENS,
        rounds=rounds,
        documents=documents,
        **facts(lm),
    )


def _judged(search_gradient: str, ratio: float) -> str:
    what = f"time with {search_gradient} search"
    if search_gradient == "detached":
        return verdict(what, ratio, at_most=TARGET)
    return f"{what}: {ratio:.3g}; this is its price, there is no target."


def settings(hidden_size: int, search_gradient: str = "detached") -> RefinementConfig:
    """Refinement with a step of d/2: from weak to strong, once."""
    return RefinementConfig.parse(
        {
            "latent_steps": LATENT_STEPS,
            "memory_rate": 0.5,
            "search_step_size": hidden_size / 2,
            "search_gradient": search_gradient,
        }
    )


def forwards_a_thought(lm: LatentRefLM, prompts: Sequence[str]) -> dict[str, float]:
    """Forwards of each model from the context to the last thought, over the number of thoughts."""
    contexts = [tuple(lm.tok_encode(prompt)) for prompt in prompts]
    before = lm.reasoner.accounting.report()["forwards"]
    lm.reasoner.think(contexts)
    after = lm.reasoner.accounting.report()["forwards"]
    return {name: (after[name] - before[name]) / LATENT_STEPS for name in after}


def _check_in_float32(prompts: Sequence[str], pretrained: str | None) -> int:
    lm = load_lm(pretrained=pretrained, dtype="float32", batch_size=len(prompts))
    twin = perturbed(lm.model, 1)
    search = RefinementConfig(
        latent_steps=LATENT_STEPS, search_step_size=lm.reasoner.backbone.hidden_size / 2
    )
    plain = thinking(lm, RefinementConfig(latent_steps=LATENT_STEPS))
    texts = [
        write(side, prompts, max_new_tokens=NEW_TOKENS)
        for side in (plain, thinking(lm, search, (twin, twin)))
    ]
    return sum(a == b for a, b in zip(*texts, strict=True))
