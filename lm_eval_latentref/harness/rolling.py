"""Log-likelihoods of whole texts: lm-eval's own, in batches that halve, and counted.

    class LatentRefLM(RollingLM): ...

A text of its own has no context to think about, so lm-eval's HFLM computes it; this only lies
between its loop over windows and its forward passes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lm_eval_latentref.harness.lm_eval_seams import Request, SeamLM
from lm_eval_latentref.latent.batching import RowLimit, in_batches
from lm_eval_latentref.latent.reasoner import Reasoner


class RollingLM(SeamLM):
    """HFLM whose windows of whole texts are halved when memory runs out, and counted."""

    reasoner: Reasoner
    _window_limit: RowLimit
    _is_reported = False

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts: no context to think about, so it is hf's."""
        # Kept from batch to batch, so that what did not fit is not tried again.
        self._window_limit = self.row_limit(sys.maxsize)
        with self.counting_cost(), self.batches_of(self._window_limit.rows), self.scoring_windows():
            return super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)

    def score_windows(
        self, windows: Sequence[Request], disable_tqdm: bool
    ) -> list[tuple[float, bool]]:
        """One batch of hf's loop over the windows of rolling texts, halved if it does not fit."""

        def work(part: Sequence[Request], _: int) -> list[tuple[float, bool]]:
            self.reasoner.backbone.activate()
            with self.reasoner.accounting.working():
                scores = self.score_windows_as_hf(part, disable_tqdm)
            num_read = sum(len(context) + len(text) - 1 for _, context, text in part)
            self.reasoner.accounting.count(tokens_encoded=num_read)
            return scores

        batches = in_batches(windows, limit=self._window_limit, work=work)
        return [score for _, scores in batches for score in scores]

    def row_limit(self, num_items: int) -> RowLimit:
        """How many of `num_items` rows to try at once.

        HFLM would size `auto` by a plain forward pass of max_length; here the real work is tried,
        and halved when it does not fit. `auto:N` tries the most again N times.
        """
        if self.batch_size != "auto":
            return RowLimit(self.batch_size, num_items=num_items)
        num_tries = max(1, int(self.batch_schedule))
        return RowLimit(self.max_batch_size, num_items=num_items, num_tries=num_tries)

    @contextmanager
    def batches_of(self, num_rows: int) -> Iterator[None]:
        """Let HFLM's loops take `num_rows` at once while this is open."""
        asked_for = self.batch_size_per_gpu
        self.batch_size_per_gpu = num_rows
        try:
            yield
        finally:
            self.batch_size_per_gpu = asked_for

    @contextmanager
    def counting_cost(self) -> Iterator[None]:
        """Count the cost of what is done while this is open; after a report it is counted anew."""
        if self._is_reported:
            self.reasoner.accounting.restart()
            self._is_reported = False
        yield
