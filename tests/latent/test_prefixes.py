"""Shared prefixes are found and read once, and no result changes."""

from __future__ import annotations

import functools
import gc
import weakref
from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matrix import crossed
from prefix_cases import CONTEXTS, CONTINUATIONS, GAP, PREFIX, REFINED, expected, reasoner, scores
from thought_cases import CONFIGS, assert_same_scores, models
from tiny import FAMILIES, random_ids, tiny_model

from lm_eval_latentref.latent import branched, prefixes
from lm_eval_latentref.latent.networks import Network
from lm_eval_latentref.latent.prefixes import PrefixGroup, Trunk, Trunks, by_prefix
from lm_eval_latentref.latent.streams import Stream
from lm_eval_latentref.latent.thoughts import Context
from lm_eval_latentref.latent.token_reasoner import NonFiniteThoughtError

WINDOWED = ("mistral", "gemma2", "gemma3")


@pytest.fixture
def short_prefixes_pay(monkeypatch):
    monkeypatch.setattr(prefixes, "MIN_TOKENS", 2)
    monkeypatch.setattr(prefixes, "MIN_SAVED", 1)


@pytest.fixture
def trunks_are_copied(monkeypatch):
    monkeypatch.setattr(Network, "shares_columns", False)


@pytest.mark.parametrize(
    ("family", "name"),
    crossed(
        [family for family in FAMILIES if family not in WINDOWED],
        ["no thought", "plain", "both", "through, two steps"],
        every=3,
    ),
)
def test_rows_that_branch_from_a_trunk_equal_the_oracle(family, name):
    trunk = Trunk(PREFIX, Trunk(PREFIX[:5]))
    assert_same_scores(scores(family, CONFIGS[name], trunk), expected(family, CONFIGS[name]))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_rows_that_copy_a_trunk_equal_the_oracle(family, trunks_are_copied):
    trunk = Trunk(PREFIX, Trunk(PREFIX[:5]))
    assert_same_scores(scores(family, CONFIGS["both"], trunk), expected(family, CONFIGS["both"]))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_rows_read_a_trunk_where_it_is_in_every_layer_and_forward(family, monkeypatch):
    network, num_attended, attend = Network(models(family)[0]), [], branched.attend
    monkeypatch.setattr(
        branched, "attend", lambda *args, **kw: num_attended.append(1) or attend(*args, **kw)
    )
    with torch.no_grad():
        trunk = Trunk(PREFIX)
        kept = trunk.stream(network).cache.layers
        context = Context.pad([(*PREFIX, n) for n in range(3)], trunk=trunk)
        stream, unread = context.begin(network)
        for _ in range(2):
            stream.feed(network.embed(unread.ids_BC))
    assert len(num_attended) == 2 * len(kept)
    for layer, own in zip(kept, stream.cache.layers, strict=True):
        assert (len(layer.keys), len(own.keys), own.keys.shape[2]) == (1, 3, 2)
        assert own.get_seq_length() == len(PREFIX) + 2


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_rows_of_one_length_and_single_rows_equal_the_oracle(family):
    wanted, trunk = expected(family, CONFIGS["both"]), Trunk(PREFIX)
    for rows in ([3, 4], [0], [2]):
        actual = scores(family, CONFIGS["both"], trunk, rows)
        assert_same_scores(actual, [wanted[row] for row in rows])


def one_token_read_twice(monkeypatch):
    branch = Trunk.branch
    longer = (*PREFIX, CONTEXTS[0][len(PREFIX)])
    monkeypatch.setattr(Trunk, "branch", lambda self, *args: branch(Trunk(longer), *args))


def padding_beside_the_trunk_is_read(monkeypatch):
    branch = Stream.branch

    def mutant(self):
        branched = branch(self)
        branched.num_shared = 0
        return branched

    monkeypatch.setattr(Stream, "branch", mutant)


def the_trunk_weighs_as_much_as_a_rows_own_columns(monkeypatch):
    attention = branched.attention_and_sums

    def mutant(*args):
        output, sums = attention(*args)
        return output, torch.zeros_like(sums)

    monkeypatch.setattr(branched, "attention_and_sums", mutant)


def padded_rows_begin_as_the_others(monkeypatch):
    monkeypatch.setattr(Network, "shares_columns", False)
    spread = Stream.spread

    def mutant(self, num_rows, mask_BK):
        branch = spread(self, num_rows, None)
        branch.mask_BK = mask_BK
        return branch

    monkeypatch.setattr(Stream, "spread", mutant)


@pytest.mark.parametrize(
    "mutant",
    [
        one_token_read_twice,
        padding_beside_the_trunk_is_read,
        the_trunk_weighs_as_much_as_a_rows_own_columns,
        padded_rows_begin_as_the_others,
    ],
)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_oracle_shows_a_wrong_branch(family, mutant, monkeypatch):
    config = CONFIGS["both"]
    mutant(monkeypatch)
    pairs = zip(scores(family, config, Trunk(PREFIX)), expected(family, config), strict=True)
    gaps = [
        abs(a[0] - b[0]) for actual, wanted in pairs for a, b in zip(actual, wanted, strict=True)
    ]
    assert max(gaps) > GAP


contexts_of_few_tokens = st.lists(
    st.lists(st.integers(0, 2), min_size=1, max_size=9).map(tuple), min_size=1, max_size=30
)


@settings(max_examples=200)
@given(contexts=contexts_of_few_tokens, least=st.integers(1, 4), saved=st.integers(1, 12))
def test_groups_hold_every_context_once_and_begin_with_their_prefix(contexts, least, saved):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefixes, "MIN_TOKENS", least)
        patch.setattr(prefixes, "MIN_SAVED", saved)
        plan = by_prefix(contexts)
    assert Counter(n for part in plan for n in part.members) == Counter(range(len(contexts)))
    for part in plan:
        for number in part.members:
            assert contexts[number][: len(part.prefix)] == part.prefix
            assert len(contexts[number]) > len(part.prefix)
    lengths = [len(part.prefix) for part in plan]
    assert all(length == 0 or length >= least for length in lengths)
    # A trunk in use is never read a second time: its groups are neighbours.
    for part in plan:
        under = [other.prefix[: len(part.prefix)] == part.prefix for other in plan]
        assert sum(a != b for a, b in pairwise([False, *under, False])) == 2


def test_nested_prefixes_are_found_and_what_does_not_pay_is_left_together():
    system, shots = tuple(range(1000, 1100)), tuple(range(2000, 2050))
    first = [(*system, *shots, 1, n) for n in range(30)]
    second = [(*system, 7, *range(40), n) for n in range(30)]
    few = [(*system, 8, *range(40), n) for n in range(3)]
    plan = by_prefix([*first, *few, *second])
    assert [(len(part.prefix), len(part.members)) for part in plan] == [
        (0, 0),
        (100, 3),
        (141, 30),
        (151, 30),
    ]
    assert by_prefix([(1, 2, 3, n) for n in range(50)]) == [PrefixGroup((), list(range(50)))]


@functools.cache
def scores_alone(family):
    subject = reasoner(family, **REFINED)
    return [
        subject.score([context], [choices], max_rows=3)[0]
        for context, choices in zip(CONTEXTS, CONTINUATIONS, strict=True)
    ]


@settings(max_examples=10)
@given(
    order=st.permutations(range(5)),
    batch_size=st.integers(1, 5),
    family=st.sampled_from(["gpt2", "llama", "mistral"]),
)
def test_order_and_batches_change_nothing_where_prefixes_are_shared(order, batch_size, family):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefixes, "MIN_TOKENS", 2)
        patch.setattr(prefixes, "MIN_SAVED", 1)
        subject, actual = reasoner(family, **REFINED), {}
        for numbers in subject.trunks.in_order([CONTEXTS[row] for row in order]):
            for start in range(0, len(numbers), batch_size):
                rows = [order[number] for number in numbers[start : start + batch_size]]
                choices = [CONTINUATIONS[row] for row in rows]
                results = subject.score([CONTEXTS[row] for row in rows], choices, max_rows=3)
                actual.update(zip(rows, results, strict=True))
        alone = scores_alone(family)
    assert_same_scores([actual[row] for row in range(5)], alone)
    assert (subject.accounting.report()["tokens_shared"] > 0) == (family != "mistral")


def test_shared_tokens_are_those_that_are_not_read(short_prefixes_pay):
    subject = reasoner("llama", **REFINED)
    contexts = [(*PREFIX, n, n) for n in range(4)]
    for numbers in subject.trunks.in_order(contexts):
        for start in (0, 2):
            subject.think([contexts[number] for number in numbers[start : start + 2]])
    report = subject.accounting.report()
    assert (report["tokens_encoded"], report["tokens_shared"]) == (4 * 14, 3 * 12)
    # Each model reads the prefix once; then two rows of two tokens, the marker and thoughts.
    assert report["columns_read"]["backbone"] == 12 + 2 * 2 * (2 + 1 + 1)
    assert report["forwards"] == {"backbone": 1 + 2 * 2, "strong": 1 + 2 * 2, "weak": 1 + 2 * 2}
    assert report["seconds"]["think"] > 0


def test_a_trunk_is_freed_when_no_context_to_do_begins_with_it(short_prefixes_pay):
    network, alive = Network(tiny_model("llama")), []
    trunks = Trunks([network])
    contexts = [(*PREFIX, *branch, n) for branch in ((1, 1, 1), (2, 2, 2)) for n in range(3)]
    for numbers in trunks.in_order(contexts):
        alive.append(weakref.ref(trunks.of([contexts[number] for number in numbers])))
        alive[-1]().stream(network)
        gc.collect()
        assert [ref() is not None for ref in alive] == [False] * (len(alive) - 1) + [True]
    gc.collect()
    assert [ref() for ref in alive] == [None, None]
    assert not trunks.in_use


def test_answers_to_contexts_that_share_a_prefix_are_those_of_each_alone(short_prefixes_pay):
    contexts = [CONTEXTS[row] for row in (0, 1, 3)] + [random_ids(6, seed=7)]
    subject = reasoner("llama", **REFINED)
    together = subject.answer(contexts, max_new_tokens=5)
    assert subject.accounting.report()["tokens_shared"] > 0
    alone = [subject.answer([context], max_new_tokens=5)[0] for context in contexts]
    assert [each.text for each in together] == [each.text for each in alone]
    for each, wanted in zip(together, alone, strict=True):
        torch.testing.assert_close(each.thoughts, wanted.thoughts, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_autocast_reads_a_shared_prefix(family, short_prefixes_pay):
    """Under autocast, keys may have another dtype than values and queries."""
    subject = reasoner(family, latent_steps=0)
    with torch.autocast("cpu", torch.bfloat16):
        together = subject.answer(CONTEXTS, max_new_tokens=3)
        assert subject.accounting.report()["tokens_shared"] > 0
        alone = [subject.answer([context], max_new_tokens=3)[0] for context in CONTEXTS]
    assert sum(a.text == b.text for a, b in zip(together, alone, strict=True)) >= 3


def test_an_error_names_the_row_among_all_contexts(short_prefixes_pay, monkeypatch):
    contexts = [random_ids(6, seed=7), *((*PREFIX, n) for n in range(3))]
    subject = reasoner("llama", **REFINED)

    def answer(part, _):
        if contexts[2] in part:
            raise NonFiniteThoughtError(part.index(contexts[2]), "overflow")
        return [None] * len(part)

    monkeypatch.setattr(subject, "_answer", answer)
    with pytest.raises(NonFiniteThoughtError, match="row 2: overflow"):
        subject.answer(contexts, max_new_tokens=5)
