"""Grouping loses and reorders nothing; running out of memory costs no finished batch."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_eval_latentref.latent import batching
from lm_eval_latentref.latent.batching import RowLimit, group_by_context, in_batches

tokens = st.lists(st.integers(0, 3), max_size=3).map(tuple)
pairs = st.lists(st.tuples(tokens, tokens), max_size=20)


@given(pairs)
def test_every_request_is_in_exactly_one_group_with_its_own_tokens(requests):
    actual = {
        index: (group.context, continuation)
        for group in group_by_context(requests)
        for index, continuation in zip(group.requests, group.continuations, strict=True)
    }
    assert actual == dict(enumerate(requests))


@given(pairs)
def test_each_context_is_one_group_and_the_longest_comes_first(requests):
    contexts = [group.context for group in group_by_context(requests)]
    assert len(set(contexts)) == len(contexts)
    assert [len(c) for c in contexts] == sorted((len(c) for c in contexts), reverse=True)


@given(pairs, st.randoms())
def test_groups_do_not_depend_on_the_order_of_requests(requests, random):
    shuffled = random.sample(requests, len(requests))
    contexts = [group.context for group in group_by_context(requests)]
    assert contexts == [group.context for group in group_by_context(shuffled)]


@pytest.fixture(scope="module", autouse=True)
def no_garbage_collection():
    """Collecting all garbage after each of hundreds of failures would take minutes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batching, "clear_device_cache", lambda **_: None)
        yield


@given(st.integers(0, 30), st.integers(1, 12), st.integers(1, 12))
def test_memory_running_out_halves_the_batch_and_redoes_only_that_one(num, batch_size, capacity):
    done = []

    def work(batch, _):
        if len(batch) > capacity:
            raise RuntimeError("CUDA out of memory.")
        done.extend(batch)
        return list(batch)

    results = list(in_batches(range(num), limit=RowLimit(batch_size, num_items=num), work=work))
    assert done == list(range(num))
    assert [item for _, batch in results for item in batch] == done
    assert all(list(batch) == result for batch, result in results)


@given(st.integers(1, 40), st.integers(1, 4))
def test_a_larger_batch_is_tried_again_as_often_as_asked(num, num_tries):
    refused = []

    def work(batch, _):
        if len(batch) > 2:
            refused.append(batch)
            raise RuntimeError("CUDA out of memory.")
        return list(batch)

    limit = RowLimit(4, num_items=num, num_tries=num_tries)
    results = list(in_batches(range(num), limit=limit, work=work))
    assert [item for _, batch in results for item in batch] == list(range(num))
    assert len(refused) <= num_tries


def test_a_row_that_does_not_fit_alone_is_the_callers_error():
    def work(batch, _):
        raise RuntimeError("CUDA out of memory.")

    with pytest.raises(RuntimeError, match="out of memory"):
        list(in_batches([1, 2], limit=RowLimit(2, num_items=2), work=work))


def test_other_errors_are_not_tried_again():
    calls = []

    def work(batch, _):
        calls.append(batch)
        raise ValueError("no memory of that")

    with pytest.raises(ValueError, match="no memory of that"):
        list(in_batches([1, 2], limit=RowLimit(2, num_items=2), work=work))
    assert len(calls) == 1


def test_giving_memory_back_is_left_to_c_libraries_that_can(monkeypatch):
    batching.give_back_memory()
    monkeypatch.setattr(batching.ctypes, "CDLL", lambda name: object())
    batching._malloc_trim.cache_clear()
    batching.give_back_memory()
    assert batching._malloc_trim() is None
    batching._malloc_trim.cache_clear()
