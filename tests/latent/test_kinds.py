"""Every kind of thought equals the naive loop, whatever the architecture, batch and stop."""

from __future__ import annotations

from dataclasses import dataclass, field

import naive_kinds as naive
import pytest
import torch
from tiny import HIDDEN_SIZE, random_ids, tiny_model, tiny_tokenizer

from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.evaluation.sweep_run import check_comparable
from lm_eval_latentref.latent import kinds, thoughts
from lm_eval_latentref.latent.config import RefinementConfig
from lm_eval_latentref.latent.contexts import Markers
from lm_eval_latentref.latent.kinds.draws import Draws
from lm_eval_latentref.latent.loaded import LoadedModel, LoadedSet, ThoughtFiles
from lm_eval_latentref.latent.reasoner import Reasoner
from lm_eval_latentref.latent.selection import find_stop

FAMILIES = ("gpt2", "llama", "qwen3", "gemma3")
CONTEXTS = [random_ids(n, seed=n) for n in (5, 13, 8, 3, 9)]
CONTINUATIONS = [[random_ids(3, seed=50 + row), random_ids(1, seed=9)] for row in range(5)]
TOKENIZER = tiny_tokenizer(markers=False)
OPENING, CLOSING = "think", "halve it"
STEP = 2.0 * HIDDEN_SIZE / 2


def ids(text):
    return tuple(TOKENIZER.encode(text, add_special_tokens=False))


@dataclass
class Case:
    """One way of thinking: our options, and the naive vector and stops of it."""

    options: dict
    vector: object
    stops: dict = field(default_factory=dict)
    searched: bool = True


def entropies(family, temperature=1.0):
    """A threshold that some contexts are below and some above."""
    model = tiny_model(family)
    values = []
    for context in CONTEXTS:
        _, logits = naive.read(model, list(naive.embed(model, [*context, *ids(OPENING)])))
        values.append(naive.entropy(logits, temperature))
    return round(sorted(values)[2], 3) + 0.0005


CASES = {
    "mixture": Case({"latent_kind": "mixture"}, naive.mixture, searched=False),
    "sharp mixture": Case(
        {
            "latent_kind": "mixture",
            "mixture_temperature": 1.0,
            "mixture_top_k": 7,
            "mixture_top_p": 0.4,
            "mixture_min_p": 0.3,
            "mixture_tokens": 2,
        },
        lambda model: naive.mixture(
            model, temperature=1.0, top_k=7, top_p=0.4, min_p=0.3, tokens=2
        ),
        searched=False,
    ),
    "realigned": Case({"latent_kind": "realigned"}, naive.realigned),
    "realigned by ridge": Case(
        {"latent_kind": "realigned", "realign": "ridge"},
        lambda model: naive.realigned(model, ridge=True),
    ),
}
MAP_WIDTH = 24


def map_layers(layers, seed=5):
    """Random weights and biases by layer: (rows, columns), or a width for a LayerNorm."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return 0.3 * torch.randn(*shape, generator=generator)

    return {
        name: (random(*shape), random(shape[0]))
        if isinstance(shape, tuple)
        else (1 + random(shape), random(shape))
        for name, shape in layers.items()
    }


D, M = HIDDEN_SIZE, MAP_WIDTH
PROJECTOR = map_layers({"linear_1": (M, D), "linear_2": (D, M), "norm": D})
POLICY = map_layers({"fc_1": (M, D), "fc_2": (M, M), "norm": M, "mean": (D, M), "log_std": (D, M)})
SCALE = 0.5


def tensors_of(layers):
    return {
        f"{layer}.{name}": tensor
        for layer, pair in layers.items()
        for name, tensor in zip(("weight", "bias"), pair, strict=True)
    }


MAPS = {"projected": tensors_of(PROJECTOR), "gaussian": tensors_of(POLICY)}
CASES |= {
    "projected": Case({"latent_kind": "projected"}, lambda model: naive.projected(PROJECTOR)),
    "gaussian mean": Case(
        {
            "latent_kind": "gaussian",
            "thought_scale": SCALE,
            "thought_temperature": 0,
            "latent_stop": "steps",
        },
        lambda model: naive.gaussian(POLICY, scale=SCALE),
    ),
}
REFINED = {"memory_rate": 0.4, "search_step_size": STEP, "search_steps": 2}


def reasoner(family, options, **more):
    loaded = [
        LoadedModel(
            model=tiny_model(family, seed),
            identity={"name": str(seed)},
            thought_files=ThoughtFiles(tensors=MAPS.get(options["latent_kind"], {})),
        )
        for seed in range(3)
    ]
    members = dict(zip(("backbone", "strong", "weak"), loaded, strict=True))
    config = RefinementConfig.parse(
        {"latent_steps": 4, "latent_markers": f"{OPENING}|{CLOSING}", **options, **more}
    )
    return Reasoner(LoadedSet(tokenizer=TOKENIZER, **members), config)


def ours(family, options, *, batch_size=5, **more):
    return results_of(reasoner(family, options, **more), batch_size)


def results_of(subject, batch_size=5):
    """Scores of each context, its greedy text, and its number of thoughts."""
    scores, texts, numbers = [], [], []
    for start in range(0, len(CONTEXTS), batch_size):
        part = CONTEXTS[start : start + batch_size]
        count = {}
        results = subject.score(
            part,
            CONTINUATIONS[start : start + batch_size],
            max_rows=3,
            note=lambda rows, number, count=count: count.update(dict.fromkeys(rows, number)),
        )
        scores += [[score.log_likelihood for score in row] for row in results]
        numbers += [count[row] for row in range(len(part))]
        texts += [answer.text for answer in subject.answer(part, max_new_tokens=4)]
    return scores, texts, numbers


def wanted(family, case, *, refined=False, stops=None, opening=None, closing=None):
    models = [tiny_model(family, seed) for seed in range(3)]
    vector = case.vector(models[0])
    refinement = {}
    if refined:
        searched = {"step_size": STEP, "search_steps": 2, "references": models[1:]}
        refinement = {"memory_rate": 0.4, **(searched if case.searched else {})}
    scores, texts, numbers = [], [], []
    with torch.no_grad():
        for context, continuations in zip(CONTEXTS, CONTINUATIONS, strict=True):
            columns, actual = naive.think(
                models[0],
                context,
                vector,
                cap=4,
                opening=ids(OPENING) if opening is None else opening,
                closing=ids(CLOSING) if closing is None else closing,
                stops=stops and naive.Stops(**stops),
                **refinement,
            )
            scores.append([naive.log_likelihood(models[0], columns, c) for c in continuations])
            written = naive.greedy(models[0], columns, 4, end=TOKENIZER.eos_token_id)
            texts.append(TOKENIZER.decode(written, skip_special_tokens=True))
            numbers.append(len(actual))
    return scores, texts, numbers


def assert_equal(actual, expected):
    assert actual[2] == expected[2]
    assert actual[1] == expected[1]
    for row, expected_row in zip(actual[0], expected[0], strict=True):
        assert row == pytest.approx(expected_row, abs=1e-4)


def refinement_of(case):
    return REFINED if case.searched else {"memory_rate": 0.4}


@pytest.mark.parametrize("refined", [False, True])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_each_kind_equals_the_naive_loop(family, name, refined):
    case = CASES[name]
    more = refinement_of(case) if refined else {}
    actual = ours(family, case.options, batch_size=3, **more)
    assert_equal(actual, wanted(family, case, refined=refined))


@pytest.mark.parametrize("closing", [CLOSING, ""])
@pytest.mark.parametrize("name", ["mixture", "realigned"])
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_stop_early_equal_the_naive_loop(family, name, closing):
    case = CASES[name]
    temperature = 0.6 if name == "mixture" else 1.0
    nats = entropies(family, temperature)
    stop = {"latent_stop": "high_entropy", "stop_entropy": nats, "stop_patience": 1}
    stops = {"high": (nats, 1), "temperature": temperature}
    expected = wanted(family, case, stops=stops, refined=True, closing=ids(closing))
    assert len(set(expected[2])) > 1, "all rows stop together, which shows nothing"
    for batch_size in (1, 2, 5):
        actual = ours(
            family,
            case.options,
            batch_size=batch_size,
            **stop,
            **refinement_of(case),
            latent_markers=f"{OPENING}|{closing}",
        )
        assert_equal(actual, expected)


@pytest.mark.parametrize("family", ["gpt2", "gemma3"])
def test_a_row_stops_at_the_end_token_which_is_fed_once(family):
    case = CASES["mixture"]
    model = tiny_model(family)
    # What ends thoughts begins with the token that some context would write next.
    at = list(naive.embed(model, [*CONTEXTS[1], *ids(OPENING)]))
    closing = (int(naive.read(model, at)[1].argmax()), 7)
    expected = wanted(family, case, stops={"end": closing[0]}, closing=closing)
    assert 0 in expected[2]
    assert set(expected[2]) != {0}
    subject = reasoner(family, case.options, latent_stop="end_token")
    subject.markers = Markers(ids(OPENING), closing)
    subject.stop = find_stop(subject.config, subject.markers)
    for batch_size in (1, 5):
        assert_equal(results_of(subject, batch_size), expected)


def test_patience_counts_steps_in_a_row():
    case = CASES["realigned"]
    nats = entropies("llama")
    for patience in (2, 3):
        stop = {"latent_stop": "low_entropy", "stop_entropy": nats, "stop_patience": patience}
        expected = wanted("llama", case, stops={"low": (nats, patience)})
        assert_equal(ours("llama", case.options, **stop), expected)


def test_logits_are_computed_where_a_kind_needs_them_and_for_rows_still_thinking_only():
    nats = entropies("llama", 0.6)
    stop = {"latent_stop": "high_entropy", "stop_entropy": nats, "stop_patience": 1}

    def rows_projected(options):
        subject = reasoner("llama", options)
        seen = []
        head = subject.backbone.causal_lm.lm_head
        handle = head.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[-2]))
        numbers = {
            row: group.num_thoughts
            for rows, group in subject.think_in_groups(CONTEXTS)
            for row in rows
        }
        handle.remove()
        return sum(seen), numbers

    assert rows_projected({"latent_kind": "continuous", "latent_steps": 3})[0] == 0
    assert rows_projected({"latent_kind": "realigned", "latent_steps": 3})[0] == 0
    assert rows_projected({"latent_kind": "mixture", "latent_steps": 3})[0] == 3 * len(CONTEXTS)
    total, numbers = rows_projected({"latent_kind": "mixture", **stop})
    # One look before each thought, and one more by which a row stops.
    assert total == sum(number + (number < 4) for number in numbers.values())


def test_thoughts_of_each_context_are_in_the_cost():
    nats = entropies("llama")
    stop = {"latent_stop": "high_entropy", "stop_entropy": nats, "stop_patience": 1}
    subject = reasoner("llama", CASES["realigned"].options, **stop)
    numbers = {
        row: group.num_thoughts for rows, group in subject.think_in_groups(CONTEXTS) for row in rows
    }
    report = subject.accounting.report()
    assert report["thought_steps"] == sum(numbers.values())
    total = subject.accounting.of_all([report])
    assert total["thoughts_per_context"] == pytest.approx(sum(numbers.values()) / 5)


# What is drawn at random depends on the seed, the document and the sample alone.

DRAWN = {"latent_kind": "gaussian", "thought_scale": SCALE, "thought_temperature": 0.7}


def draws_of(context, number=0, seed=3):
    return Draws.of([(context, number)], seed=seed)


def naive_gaussian(family, context, *, closing, refined=False):
    """The columns and thoughts of one context with the numbers that are drawn for it."""
    model, *others = (tiny_model(family, seed) for seed in range(3))
    draws = draws_of(context)

    class SampledEnd:
        def __call__(self, logits, step):
            p = float(torch.softmax(logits, 0)[closing[0]])
            return float(draws.uniform("end", step=step, size=1)[0, 0]) < p

    searched = {"step_size": STEP, "search_steps": 2, "references": others, "memory_rate": 0.4}
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
        **(searched if refined else {}),
    )


@pytest.mark.parametrize("refined", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_gaussian_thoughts_and_their_sampled_end_equal_the_naive_loop(family, refined):
    # A likely end token, so that rows of this few thoughts end.
    subject = reasoner(family, DRAWN, thought_seed=3, **(REFINED if refined else {}))
    _, logits = naive.read(tiny_model(family), [*naive.embed(tiny_model(family), CONTEXTS[0])])
    closing = (int(logits.argmax()), 7)
    subject.markers = Markers(ids(OPENING), closing)
    subject.stop = find_stop(subject.config, subject.markers)
    actual = {}
    for batch in ([0, 1, 2, 3, 4], [4], [2, 0]):
        for rows, group in subject.think_in_groups([CONTEXTS[row] for row in batch]):
            for row, thoughts_TD in zip(rows, group.thoughts_BTD, strict=True):
                actual.setdefault(batch[row], []).append(thoughts_TD)
    for row, each in actual.items():
        with torch.no_grad():
            _, expected = naive_gaussian(family, CONTEXTS[row], closing=closing, refined=refined)
        for thoughts_TD in each:
            # Refinement amplifies the noise of float32 from thought to thought.
            torch.testing.assert_close(thoughts_TD, torch.stack(expected), rtol=1e-3, atol=1e-3)
    assert min(len(each[0]) for each in actual.values()) >= 1


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
                memory_rate=0.4,
                step_size=STEP,
                search_steps=2,
                references=others,
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


@pytest.mark.parametrize("stops_early", [False, True])
@pytest.mark.parametrize("closing", [CLOSING, ""])
@pytest.mark.parametrize("name", ["realigned", "mixture", "projected"])
def test_confidence_steps_equal_the_naive_loop(name, closing, stops_early):
    options = {"confidence_steps": 3, "confidence_noise": 0.2, "thought_seed": 3}
    model = tiny_model("llama")
    temperature = 0.6 if name == "mixture" else 1.0
    nats = entropies("llama", temperature)
    if stops_early:
        options |= {"latent_stop": "high_entropy", "stop_entropy": nats, "stop_patience": 1}
    expected = []
    with torch.no_grad():
        for context, continuations in zip(CONTEXTS, CONTINUATIONS, strict=True):
            vector = CASES[name].vector(model)
            stops = naive.Stops(high=(nats, 1), temperature=temperature) if stops_early else None
            columns, actual = naive.think(
                model, context, vector, cap=4, opening=ids(OPENING), stops=stops
            )
            num = len(actual)
            before, after = columns[: len(columns) - num], list(naive.embed(model, ids(closing)))

            def draw(i, draws=draws_of(context), num=num):  # noqa: B008
                return draws.normal("confidence", step=i, size=num * D).view(num, D)

            better = actual and naive.more_confident(
                model, before, actual, after, draw, steps=3, noise=0.2
            )
            columns = [*before, *better, *after]
            expected.append([naive.log_likelihood(model, columns, c) for c in continuations])
    for batch_size in (2, 5):
        actual, _, _ = ours(
            "llama",
            CASES[name].options,
            batch_size=batch_size,
            **options,
            latent_markers=f"{OPENING}|{closing}",
        )
        for row, expected_row in zip(actual, expected, strict=True):
            assert row == pytest.approx(expected_row, abs=1e-3)


def test_no_confidence_steps_are_bit_for_bit_nothing():
    ((_, plain),) = reasoner("llama", CASES["projected"].options).think_in_groups(CONTEXTS)
    none = reasoner("llama", CASES["projected"].options, confidence_steps=0)
    ((_, same),) = none.think_in_groups(CONTEXTS)
    assert torch.equal(plain.thoughts_BTD, same.thoughts_BTD)


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
        for context, actual in zip(batch, thoughts_of_batch.thoughts_BTD, strict=True):
            draws, num_read = draws_of(context, seed=seed), len(context) + len(ids(OPENING))

            def hook(number, draws=draws, num_read=num_read):
                def drop(module, args, output):
                    states = (output if isinstance(output, torch.Tensor) else output[0]).clone()
                    for step, column in enumerate(range(num_read, states.shape[1]), start=1):
                        drawn = draws.uniform(f"dropout {number}", step=step, size=D)[0]
                        states[0, column] *= (drawn >= rate).float() / (1 - rate)
                    return states if isinstance(output, torch.Tensor) else (states, *output[1:])

                return drop

            handles = [b.register_forward_hook(hook(n)) for n, b in enumerate(branches)]
            with torch.no_grad():
                _, expected = naive.think(model, context, vector, cap=4, opening=ids(OPENING))
            for handle in handles:
                handle.remove()
            torch.testing.assert_close(actual, torch.stack(expected), rtol=1e-4, atol=1e-4)


def test_dropout_is_refused_where_branches_are_normalised_again():
    with pytest.raises(LatentRefError, match="not the plain sum of attention and MLP"):
        reasoner("gemma3", CASES["realigned"].options, thought_dropout=0.1)


def test_noise_drawn_by_row_number_is_told(monkeypatch):
    def mutant(cls, rows, *, seed):
        return cls(tuple(bytes([row]) for row, _ in enumerate(rows)))

    monkeypatch.setattr(Draws, "of", classmethod(mutant))
    with pytest.raises(AssertionError):
        test_samples_of_a_context_differ_and_do_not_depend_on_their_batch("realigned")


def test_a_map_that_lacks_tensors_or_has_another_width_is_named():
    tensors = dict(MAPS["projected"])
    del tensors["linear_2.bias"]
    with pytest.raises(LatentRefError, match=r"missing: linear_2\.bias"):
        make("projected", tensors)
    wide = {**MAPS["projected"], "linear_1.weight": torch.zeros(M, D + 1)}
    with pytest.raises(LatentRefError, match=r"linear_1\.weight of the map has shape"):
        make("projected", wide)


def test_ids_around_the_thoughts_lie_in_the_embedding():
    files = ThoughtFiles(opening=(300,), closing=(5,))
    model = LoadedModel(model=tiny_model("gpt2"), identity={"name": "tiny"}, thought_files=files)
    with pytest.raises(LatentRefError, match="tiny has 300 embedding rows, but a token"):
        Reasoner(LoadedSet(tokenizer=TOKENIZER, backbone=model), RefinementConfig(latent_steps=2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thought_noise": 0.1}, "without random numbers"),
        ({"confidence_steps": 2}, "without random numbers"),
        ({"latent_stop": "high_entropy"}, "equal numbers of thoughts"),
    ],
)
def test_settings_are_compared_without_chance_and_at_equal_numbers_of_thoughts(options, message):
    with pytest.raises(LatentRefError, match=message):
        check_comparable(reasoner("gpt2", CASES["realigned"].options, **options))
    check_comparable(reasoner("gpt2", CASES["realigned"].options))


def make(name, tensors):
    model = LoadedModel(
        model=tiny_model("gpt2"),
        identity={"name": "tiny"},
        thought_files=ThoughtFiles(tensors=tensors),
    )
    config = RefinementConfig(latent_steps=2, latent_kind=name)
    return Reasoner(LoadedSet(tokenizer=TOKENIZER, backbone=model), config)


# The naive loop catches known ways to get a kind wrong.


def map_applied_twice(monkeypatch):
    vector = kinds.realigned.Realigned.vector

    def mutant(self, state):
        import dataclasses

        return vector(self, dataclasses.replace(state, hidden=vector(self, state)))

    monkeypatch.setattr(kinds.realigned.Realigned, "vector", mutant)


def first_thought_dropped(monkeypatch):
    step = thoughts.Thinking.step

    def mutant(self, config):
        step(self, config)
        if len(self._thoughts) == 1:
            self._pending_BPD = self._pending_BPD * 0

    monkeypatch.setattr(thoughts.Thinking, "step", mutant)


def end_token_fed_twice(monkeypatch):
    append = thoughts._append_end

    def mutant(columns_BLD, mask_BL, backbone, markers):
        return append(*append(columns_BLD, mask_BL, backbone, markers), backbone, markers)

    monkeypatch.setattr(thoughts, "_append_end", mutant)


def map_before_the_search(monkeypatch):
    """The search moves what is fed, not the hidden state."""
    monkeypatch.setattr(kinds.realigned.Realigned, "is_identity", True)


@pytest.mark.parametrize(
    "mutant", [map_applied_twice, first_thought_dropped, end_token_fed_twice, map_before_the_search]
)
def test_the_naive_loop_tells_a_mutant(mutant, monkeypatch):
    case = CASES["realigned by ridge"]
    expected = wanted("llama", case, refined=True)[0]
    mutant(monkeypatch)
    actual = ours("llama", case.options, **REFINED)[0]
    gaps = [
        abs(a - b)
        for each, other in zip(actual, expected, strict=True)
        for a, b in zip(each, other, strict=True)
    ]
    assert max(gaps) > 1e-2


# What a kind cannot do is refused in one line.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent_kind": "mixture", "search_step_size": 1.0}, "no direction"),
        ({"latent_kind": "pause", "latent_stop": "end_token"}, "does not read it"),
        ({"latent_kind": "continuous", "mixture_top_k": 3}, "does not read it"),
        ({"latent_kind": "mixture", "realign": "ridge"}, "does not read it"),
        ({"latent_kind": "mixture", "mixture_top_p": 0.0}, r"in \(0, 1\]"),
        ({"latent_kind": "mixture", "mixture_temperature": 0}, "a number > 0"),
        ({"latent_kind": "realigned", "realign": "full"}, "'identity' or 'ridge'"),
        ({"latent_kind": "mixture", "latent_stop": "never"}, "latent_stop=never"),
        ({"latent_kind": "mixture", "latent_stop": "steps+end_token"}, "latent_stop=steps"),
        ({"latent_kind": "mixture", "stop_entropy": 0.1}, "none of"),
        (
            {
                "latent_kind": "mixture",
                "latent_stop": "low_entropy+high_entropy",
                "stop_patience": 2,
            },
            "both",
        ),
        ({"latent_markers": "think"}, "latent_markers="),
        ({"thought_noise": -1}, "a number >= 0"),
        ({"thought_dropout": 1}, r"in \[0, 1\)"),
        ({"latent_kind": "gaussian", "confidence_steps": 3}, "does not read it"),
        ({"confidence_noise": 0}, "a number > 0"),
        ({"latent_kind": "gaussian", "thought_scale": 0}, "a number > 0"),
    ],
)
def test_what_a_kind_cannot_do_is_one_line(options, message):
    with pytest.raises(LatentRefError, match=message) as error:
        RefinementConfig.parse({"latent_steps": 2, **options})
    assert "\n" not in str(error.value)


def test_an_end_token_needs_a_text_that_ends_thoughts():
    with pytest.raises(LatentRefError, match="needs a token that ends the thoughts"):
        reasoner(
            "gpt2",
            {"latent_kind": "mixture", "latent_stop": "end_token"},
            latent_markers="none",
        )


@pytest.mark.parametrize(
    ("given", "texts"),
    [
        ("<think>|</think>", ("<think>", "</think>")),
        ("|</think>", ("", "</think>")),
        ("<|a|>|<|b|>", ("<|a|>", "<|b|>")),
        ("auto", None),
        ("none", None),
    ],
)
def test_marker_texts_are_separated_by_the_middle_bar(given, texts):
    assert RefinementConfig.parse({"latent_markers": given}).marker_texts == texts


def test_auto_is_the_kind_that_would_be_taken():
    assert RefinementConfig.parse({"latent_kind": "auto"}) == RefinementConfig()
