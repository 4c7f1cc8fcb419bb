"""Columns that rows share act as a tensor in which every row has its own copy."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from lm_eval_latentref.latent.branched import BranchedColumns, attend, can_attend

B, G, S, P, K, D = 3, 2, 2, 7, 5, 8
"""Rows, key heads, query heads a key head, shared columns, own columns, head size."""


def branched(seed):
    torch.manual_seed(seed)
    return BranchedColumns(torch.randn(1, G, P, D), torch.randn(B, G, K, D))


def test_any_operation_sees_a_copy_for_each_row():
    keys = branched(0)
    whole = keys.whole()
    assert keys.shape == whole.shape == (B, G, P + K, D)
    assert whole[2, 1, 3].equal(keys.shared_1GPD[0, 1, 3])
    assert whole[2, 1, P].equal(keys.own_BGOD[2, 1, 0])
    for operation in (torch.exp, lambda x: x[..., 4:9, :], lambda x: x.repeat_interleave(2, 1)):
        result = operation(keys)
        assert type(result) is torch.Tensor
        assert result.equal(operation(whole))


@pytest.mark.parametrize("num_new", [1, 3])
@pytest.mark.parametrize("kind", ["none", "bool", "added"])
def test_attention_is_that_over_copies(num_new, kind):
    keys, values, query = branched(0), branched(1), torch.randn(B, G * S, num_new, D)
    mask = torch.ones(B, 1, num_new, P + K, dtype=torch.bool)
    mask[1, ..., P : P + 3] = False
    added = torch.zeros_like(mask, dtype=torch.float32).masked_fill(~mask, -torch.inf)
    given = {"none": None, "bool": mask, "added": added}[kind]
    assert can_attend(query, keys, values, given)
    actual = attend(query, keys, values, given, scale=0.3)
    expected = scaled_dot_product_attention(
        query, keys.whole(), values.whole(), attn_mask=given, scale=0.3, enable_gqa=True
    )
    torch.testing.assert_close(actual, expected)


def test_a_mask_that_hides_a_shared_column_and_a_gradient_are_left_to_others():
    keys, values, query = branched(0), branched(1), torch.randn(B, G * S, 1, D)
    mask = torch.ones(B, 1, 1, P + K, dtype=torch.bool)
    assert can_attend(query, keys, values, mask)
    mask[2, ..., P - 1] = False
    added = torch.zeros_like(mask, dtype=torch.float32).masked_fill(~mask, -torch.inf)
    assert not can_attend(query, keys, values, mask)
    assert not can_attend(query, keys, values, added)
    assert not can_attend(query, keys.whole(), values.whole(), None)
    assert not can_attend(query.bfloat16(), keys, values, None)
    assert not can_attend(query.requires_grad_(), keys, values, None)
