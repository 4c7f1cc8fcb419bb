"""The training bench: both sides compute the same, and its report says so."""

from __future__ import annotations

import json

import pytest
import torch
from tiny import random_ids, tiny_model

from lm_eval_latentref.bench import train as bench
from lm_eval_latentref.bench.published_training import published_loss
from lm_eval_latentref.latent.networks import Network
from lm_eval_latentref.latent.thoughts import Markers
from lm_eval_latentref.training.curriculum import Row
from lm_eval_latentref.training.loss import loss_sum, num_labelled

MARKERS = Markers(start_id=290, end_id=291, pause_id=292)


@pytest.mark.parametrize("num_thoughts", [0, 1, 3])
def test_the_published_step_has_our_loss_and_gradients(num_thoughts):
    rows = [
        Row(random_ids(5 + n, seed=n), num_thoughts, random_ids(6 - n, seed=9 + n))
        for n in range(3)
    ]
    ours, theirs = (tiny_model("gpt2").requires_grad_() for _ in range(2))
    loss = loss_sum(rows, network=Network(ours), markers=MARKERS) / num_labelled(rows)
    expected = published_loss(theirs, rows, start_id=290, end_id=291, latent_id=292)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    loss.backward()
    expected.backward()
    for (name, found), (_, wanted) in zip(
        ours.named_parameters(), theirs.named_parameters(), strict=True
    ):
        torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_the_report_holds_both_sides_and_the_bound():
    report = bench.run(rounds=1, documents=2, batch_size=2, layers=1, width=64)
    assert not report.failures
    line = json.loads(report.line())
    assert set(line["documents_per_second"]) == {bench.PUBLISHED, bench.OURS}
    assert line["loss_difference"] < bench.TOLERANCE
    assert 0 < line["update_share"] < 1
    assert bench.ONE_PASS in report.table()
