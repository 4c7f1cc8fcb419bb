"""What is drawn at random depends on the seed, the document and the sample alone."""

from __future__ import annotations

import naive_kinds as naive
import pytest
import torch
from kind_cases import (
    CASES,
    CLOSING,
    CONTEXTS,
    CONTINUATIONS,
    FAMILIES,
    OPENING,
    POLICY,
    REFINED,
    SCALE,
    D,
    add_naive_results,
    assert_equal,
    draws_of,
    ids,
    naive_refinement,
    reasoner,
    results_of,
)
from matrix import crossed
from tiny import tiny_model

from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.contexts import Markers
from lm_eval_latentref.latent.kinds.draws import Draws
from lm_eval_latentref.latent.scoring import score as score_after
from lm_eval_latentref.latent.selection import find_stop

DRAWN = {"latent_kind": "gaussian", "thought_scale": SCALE, "thought_temperature": 0.7}


def naive_gaussian(family, context, *, closing, refined=False):
    """The columns and thoughts of one context with the numbers that are drawn for it."""
    model, *others = (tiny_model(family, seed) for seed in range(3))
    draws = draws_of(context)

    class SampledEnd:
        def __call__(self, logits, step):
            p = float(torch.softmax(logits, 0)[closing[0]])
            return float(draws.uniform("end", step=step, size=1)[0, 0]) < p

    return naive.think(
        model,
        context,
        naive.gaussian(
            POLICY,
            scale=SCALE,
            noise=lambda step: 0.7 * draws.normal("thought", step=step, size=D)[0],
        ),
        cap=4,
        opening=ids(OPENING),
        closing=closing,
        stops=SampledEnd(),
        min_thoughts=1,
        **(naive_refinement(CASES["gaussian mean"], others) if refined else {}),
    )


@pytest.mark.parametrize(("family", "refined"), crossed(FAMILIES, [False, True], every=2))
def test_gaussian_thoughts_and_their_sampled_end_equal_the_naive_loop(family, refined):
    subject = reasoner(family, DRAWN, thought_seed=3, **(REFINED if refined else {}))
    # A likely end token, so that rows of this few thoughts end.
    _, logits = naive.read(tiny_model(family), [*naive.embed(tiny_model(family), CONTEXTS[0])])
    closing = (int(logits.argmax()), 7)
    subject.markers = Markers(ids(OPENING), closing)
    subject.stop = find_stop(subject.config, subject.markers)
    scores, texts, numbers = [], [], []
    with torch.no_grad():
        for context, continuations in zip(CONTEXTS, CONTINUATIONS, strict=True):
            columns, thoughts = naive_gaussian(family, context, closing=closing, refined=refined)
            add_naive_results(tiny_model(family), columns, continuations, scores, texts)
            numbers.append(len(thoughts))
    assert min(numbers) >= 1
    for batch_size in (2, 5):
        assert_equal(results_of(subject, batch_size), (scores, texts, numbers))


@pytest.mark.parametrize("name", ["realigned", "projected"])
def test_noise_is_added_to_every_thought(name):
    subject = reasoner("llama", CASES[name].options, thought_noise=0.5, thought_seed=3, **REFINED)
    ((_, thoughts),) = subject.think_in_groups(CONTEXTS)
    model, *others = (tiny_model("llama", seed) for seed in range(3))
    with torch.no_grad():
        for context, thoughts_TD in zip(CONTEXTS, thoughts.thoughts_BTD, strict=True):
            draws = draws_of(context)
            _, expected = naive.think(
                model,
                context,
                CASES[name].vector(model),
                cap=4,
                opening=ids(OPENING),
                **naive_refinement(CASES[name], others),
                noise=lambda step, draws=draws: 0.5 * draws.normal("noise", step=step, size=D)[0],
            )
            # Refinement amplifies the noise of float32 from thought to thought.
            torch.testing.assert_close(thoughts_TD, torch.stack(expected), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["realigned", "projected"])
def test_samples_of_a_context_differ_and_do_not_depend_on_their_batch(name):
    subject = reasoner("llama", CASES[name].options, thought_noise=0.5, **REFINED)
    asked = [(row, number) for row in (0, 1) for number in (0, 1, 2)]

    def think(part):
        actual = {}
        groups = subject.think_in_groups(
            [CONTEXTS[row] for row, _ in part], [number for _, number in part]
        )
        for rows, group in groups:
            actual.update(zip([part[row] for row in rows], group.thoughts_BTD, strict=True))
        return actual

    together = think(asked)
    assert len({tuple(thoughts_TD.flatten().tolist()) for thoughts_TD in together.values()}) == 6
    for sample, thoughts_TD in {**think(asked[4::-2]), **think(asked[5:])}.items():
        torch.testing.assert_close(thoughts_TD, together[sample], rtol=1e-4, atol=1e-4)


def test_a_context_is_read_once_for_all_its_samples():
    subject = reasoner("llama", CASES["realigned"].options, thought_noise=0.5, **REFINED)
    subject.think_in_groups([CONTEXTS[1]] * 3, [0, 1, 2])
    report = subject.accounting.report()
    assert report["tokens_encoded"] == len(CONTEXTS[1])
    num_read = len(CONTEXTS[1]) + len(ids(OPENING)) - 1
    # The last column of the context and all thoughts but the last are read for each sample.
    assert report["columns_read"]["backbone"] == num_read + 3 * 4


def test_without_noise_all_is_bit_for_bit_as_without_samples():
    subject = reasoner("llama", CASES["realigned"].options, **REFINED)
    seeded = reasoner("llama", CASES["realigned"].options, thought_seed=7, **REFINED)
    ((_, plain),) = subject.think_in_groups(CONTEXTS)
    ((_, same),) = seeded.think_in_groups(CONTEXTS, [4, 3, 2, 1, 0])
    assert torch.equal(plain.thoughts_BTD, same.thoughts_BTD)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_dropout_acts_in_the_residual_branches_of_thoughts_alone(family):
    rate, seed = 0.3, 3
    subject = reasoner(family, CASES["realigned"].options, thought_dropout=rate, thought_seed=seed)
    model = tiny_model(family)
    layers = model.transformer.h if family == "gpt2" else model.model.layers
    with torch.no_grad():
        vector = CASES["realigned"].vector(model)
    branches = [
        getattr(layer, name)
        for layer in layers
        for name in (("attn",) if family == "gpt2" else ("self_attn",)) + ("mlp",)
    ]
    for batch in (CONTEXTS, CONTEXTS[3:4]):
        ((_, thoughts_of_batch),) = subject.think_in_groups(batch)
        scores = subject.score(batch, [[(5, 3)]] * len(batch), max_rows=3)
        thoughts_and_scores = zip(thoughts_of_batch.thoughts_BTD, scores, strict=True)
        for context, (actual, (score,)) in zip(batch, thoughts_and_scores, strict=True):
            draws, num_read = draws_of(context, seed=seed), len(context) + len(ids(OPENING))

            def hook(number, draws=draws, num_read=num_read):
                def drop(module, args, output):
                    states = (output if isinstance(output, torch.Tensor) else output[0]).clone()
                    end = min(num_read + 4, states.shape[1])
                    for step, column in enumerate(range(num_read, end), start=1):
                        drawn = draws.uniform(f"dropout {number}", step=step, size=D)[0]
                        states[0, column] *= (drawn >= rate).float() / (1 - rate)
                    return states if isinstance(output, torch.Tensor) else (states, *output[1:])

                return drop

            handles = [b.register_forward_hook(hook(n)) for n, b in enumerate(branches)]
            with torch.no_grad():
                columns, expected = naive.think(
                    model, context, vector, cap=4, opening=ids(OPENING), closing=ids(CLOSING)
                )
                expected_score = naive.log_likelihood(model, columns, (5, 3))
            for handle in handles:
                handle.remove()
            torch.testing.assert_close(actual, torch.stack(expected), rtol=1e-4, atol=1e-4)
            assert score.log_likelihood == pytest.approx(expected_score, abs=1e-4)


@pytest.mark.parametrize("name", ["realigned", "pause"])
def test_dropout_makes_samples_of_a_single_thought_differ(name):
    """The last thought is read with dropout as well, and pause tokens in the same way."""
    subject = reasoner("llama", CASES[name].options, thought_dropout=0.3, latent_steps=1)
    plain = reasoner("llama", CASES[name].options, latent_steps=1)
    ((_, thoughts),) = subject.think_in_groups([CONTEXTS[1]] * 2, [0, 1])
    rows = score_after(thoughts, [[(5, 3)]] * 2, max_rows=2)
    scores = [result.log_likelihood for (result,) in rows]
    ((expected,),) = plain.score([CONTEXTS[1]], [[(5, 3)]], max_rows=1)
    assert len({round(value, 5) for value in (*scores, expected.log_likelihood)}) == 3


def test_dropout_is_refused_where_branches_are_normalised_again():
    with pytest.raises(LatentRefError, match="do not simply add attention and MLP"):
        reasoner("gemma3", CASES["realigned"].options, thought_dropout=0.1)


def test_noise_drawn_by_row_number_is_caught(monkeypatch):
    def mutant(cls, rows, *, seed):
        return cls(tuple(bytes([row]) for row, _ in enumerate(rows)))

    monkeypatch.setattr(Draws, "of", classmethod(mutant))
    with pytest.raises(AssertionError):
        test_samples_of_a_context_differ_and_do_not_depend_on_their_batch("realigned")
