"""What the paper reports (Wang et al., arXiv:2506.08552): facts to stand beside our own figures.

    REPORTED["latentref_mathqa"].accuracy["both"]       # 40.2, in percent

Deliberately computes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

SOURCE = "Wang et al., arXiv:2506.08552: GPT-2 (117M), exact match, mean of 3 seeds"


@dataclass(frozen=True, kw_only=True)
class Reported:
    """One benchmark in the paper."""

    accuracy: Mapping[str, float]
    """In percent by row."""
    exact: Collection[str] = ()
    """Rows that stand in the paper's table; others are read off its figure, so approximate."""
    tokens: Mapping[str, float] = field(default_factory=dict)
    """Generated for each query by row; "both" stands for latent reasoning."""


_MATHQA_TABLE = {"Coconut": 38.25, "+ residual": 40.02, "+ search": 39.79, "both": 40.20}


def _figure(no_cot: float, cot: float, coconut: float, both: float) -> dict[str, float]:
    return {"No-CoT": no_cot, "CoT": cot, "Coconut": coconut, "both": both}


REPORTED: Mapping[str, Reported] = {
    "latentref_gsm8k": Reported(accuracy=_figure(16.5, 42.8, 36.3, 36.9)),
    "latentref_mathqa": Reported(
        accuracy={**_figure(23.0, 35.3, 38.3, 40.2), **_MATHQA_TABLE},
        exact=_MATHQA_TABLE,
        tokens={"CoT": 66.71, "both": 5.02},
    ),
    "latentref_aqua": Reported(
        accuracy=_figure(22.8, 24.7, 28.5, 31.3), tokens={"CoT": 72.73, "both": 5.31}
    ),
    "latentref_strategyqa": Reported(accuracy=_figure(50.6, 57.5, 59.4, 62.0)),
    "latentref_prosqa": Reported(accuracy=_figure(75.0, 77.5, 82.0, 85.7)),
}
"""By our task of the same benchmark."""

OTHER_BACKBONES: Mapping[str, Mapping[str, float]] = {
    "Qwen-2.5 1.5B": {"Coconut": 42.29, "both": 43.04},
    "LLaMA-3.2 3B": {"Coconut": 39.30, "both": 41.10},
}
"""On MathQA, with LoRA."""
