"""What the machine can do at best: bf16 matrix products and copies, measured where the bench runs.

    peaks = measure_peaks(torch.device("cuda"), torch.bfloat16)
    peaks.flops_per_second, peaks.bytes_per_second

Random data: products of zeros can run faster than any real ones. Knows no model.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from lm_eval_latentref.bench.report import timed_call

SIDE = {"cuda": 8192, "cpu": 512}
"""Rows and columns of the matrices, by kind of device."""

COPIED_BYTES = {"cuda": 2**31, "cpu": 2**26}
NUM_TRIES, NUM_REPEATS = 5, 10


@dataclass(frozen=True)
class Peaks:
    """Rates that nothing on this machine is expected to exceed."""

    flops_per_second: float
    """Of a large square matrix product, a multiplication and an addition counted as two."""

    bytes_per_second: float
    """Of a large copy on the device, bytes read and bytes written counted."""


def measure_peaks(device: torch.device, dtype: torch.dtype) -> Peaks:
    """Both rates: the median of some tries, each of several launches in a row."""
    side, num_bytes = SIDE[device.type], COPIED_BYTES[device.type]
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    product = torch.empty_like(left)
    source = torch.randint(0, 255, (num_bytes,), device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    return Peaks(
        2 * side**3 / _seconds(lambda: torch.mm(left, right, out=product)),
        2 * num_bytes / _seconds(lambda: target.copy_(source)),
    )


def _seconds(launch: Callable[[], Any]) -> float:
    def repeat() -> None:
        for _ in range(NUM_REPEATS):
            launch()

    timed_call(repeat)
    return statistics.median(timed_call(repeat)[0] for _ in range(NUM_TRIES)) / NUM_REPEATS
