"""`loglikelihood_rolling`: log-likelihoods of whole texts, without thoughts.

    class LatentRefLM(RollingLM): ...

A whole text has no context to think about, so HFLM computes its log-likelihood. The class here
halves batches when memory runs out, and counts the cost.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lm_eval_latentref.benchmarks.documents import of_evaluations
from lm_eval_latentref.harness.lm_eval_seams import Request, SeamLM
from lm_eval_latentref.latent.batching import RowLimit, in_batches
from lm_eval_latentref.latent.reasoner import Reasoner


class RollingLM(SeamLM):
    """HFLM whose batches of windows are halved when memory runs out, and whose cost is counted."""

    reasoner: Reasoner
    _window_limit: RowLimit
    _is_reported = False

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each whole text, computed by HFLM, without thoughts."""
        # One limit for all batches, so that a size that did not fit is not tried again.
        self._window_limit = self.row_limit(sys.maxsize)
        with self.counting_cost(), self.batches_of(self._window_limit.rows), self.scoring_windows():
            return super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)

    def score_windows(
        self, windows: Sequence[Request], disable_tqdm: bool
    ) -> list[tuple[float, bool]]:
        """Scores of one batch of windows, which is halved if it does not fit into memory."""

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
        """The batch sizes to try for `num_items` items.

        For `batch_size=auto`, HFLM determines the size by a forward over rows of max_length. Here
        the largest size is tried on the actual batches, and halved if it does not fit. `auto:N`
        tries the largest size N times.
        """
        if self.batch_size != "auto":
            return RowLimit(self.batch_size, num_items=num_items)
        num_tries = max(1, int(self.batch_schedule))
        return RowLimit(self.max_batch_size, num_items=num_items, num_tries=num_tries)

    @contextmanager
    def batches_of(self, num_rows: int) -> Iterator[None]:
        """Set the batch size of HFLM's loops to `num_rows` inside this block."""
        previous = self.batch_size_per_gpu
        self.batch_size_per_gpu = num_rows
        try:
            yield
        finally:
            self.batch_size_per_gpu = previous

    @contextmanager
    def counting_cost(self) -> Iterator[None]:
        """Restart the cost counters before this block if the last counts have been reported.

        Tasks use their data after lm-eval has sent all requests, so any data used by now are those
        of an earlier evaluation.
        """
        of_evaluations.begin()
        if self._is_reported:
            self.reasoner.accounting.restart()
            self._is_reported = False
        yield
