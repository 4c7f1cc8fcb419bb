"""`latentref check` for pytest: the test fails, with the report, if a run is worse than a baseline.

from lm_eval_latentref.testing import check

def test_my_model_is_no_worse(tmp_path):
    subprocess.run(["lm_eval", ..., "--log_samples", "--output_path", tmp_path], check=True)
    check(tmp_path, baseline="tests/baseline.yaml")
"""

from __future__ import annotations

import warnings
from typing import Any

from lm_eval_latentref.evaluation import check as gate
from lm_eval_latentref.evaluation.gate import render


class InconclusiveWarning(UserWarning):
    """The run was too short to detect a drop; with `-W error` the test fails."""


def check(candidate: Any, **options: Any) -> gate.Report:
    """Run `lm_eval_latentref.evaluation.check.check` with the same arguments; return its report.

    Raises:
        AssertionError: the verdict is "fail"; the message is the report.
    """
    report = gate.check(candidate, **options)
    text = render(report, "text")
    if report.verdict == "inconclusive":
        warnings.warn(text, InconclusiveWarning, stacklevel=2)
    if report.verdict == "fail":
        raise AssertionError(text)
    return report
