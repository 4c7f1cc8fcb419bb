"""The settings a sweep tries, in the paper's four rows: plain, residual only, search only, both.

    grid = Grid(memory_rates=(0.3, 0.5), step_sizes=(0.1,), latent_steps=(6,))
    grid.settings()[0].label        # "T=6 alpha=0 eta=0"

Step sizes are in units of d/2: 1 moves a thought by the whole way from the weak reference's hidden
state to the strong one's, whatever the model's hidden size d. Deliberately knows no model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.config import RefinementConfig

ROWS = ("plain", "residual", "search", "both")
"""From the simplest to the most complex: the search needs two more models than the residual."""


@dataclass(frozen=True, kw_only=True, order=True)
class Setting:
    """One point of the grid, in the form that tells equal ones: what has no effect is 0 or 1."""

    latent_steps: int
    memory_rate: float = 0.0
    step_size: float = 0.0
    """In units of d/2."""
    search_steps: int = 1

    @classmethod
    def of(cls, steps: int, memory_rate: float, step_size: float, search_steps: int) -> Setting:
        """The setting with these values, without those that change nothing."""
        return cls(
            latent_steps=steps,
            # The first thought has no predecessor.
            memory_rate=memory_rate if steps > 1 else 0.0,
            step_size=step_size if steps else 0.0,
            search_steps=search_steps if steps and step_size else 1,
        )

    @property
    def row(self) -> str:
        """Which of `ROWS` it belongs to."""
        return ROWS[(self.memory_rate != 0) + 2 * (self.step_size != 0)]

    @property
    def label(self) -> str:
        label = f"T={self.latent_steps} alpha={self.memory_rate:g} eta={self.step_size:g}"
        return label if self.search_steps == 1 else f"{label} S={self.search_steps}"

    def config(self, hidden_size: int, **options: Any) -> RefinementConfig:
        """The options that run it on a model; `options` are the others of `RefinementConfig`."""
        return RefinementConfig(
            latent_steps=self.latent_steps,
            memory_rate=self.memory_rate,
            search_step_size=self.step_size * hidden_size / 2,
            search_steps=self.search_steps,
            **options,
        )


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The values to try of each option; every combination is a setting."""

    latent_steps: tuple[int, ...]
    memory_rates: tuple[float, ...] = (0.0,)
    step_sizes: tuple[float, ...] = (0.0,)
    """In units of d/2; negative ones move towards the weak reference."""
    search_steps: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        for name in ("latent_steps", "memory_rates", "step_sizes", "search_steps"):
            if not getattr(self, name):
                raise LatentRefError(f"{name} is empty: give at least one value")
        for steps, rate, size, num_searches in self._points():
            RefinementConfig(
                latent_steps=steps,
                memory_rate=rate,
                search_step_size=size,
                search_steps=num_searches,
            )

    def settings(self) -> list[Setting]:
        """All settings, each once, sorted; 0 always joins memory rates and step sizes.

        Without 0 there would be nothing to compare with.
        """
        return sorted({Setting.of(*point) for point in self._points()})

    def _points(self) -> Iterator[tuple[int, float, float, int]]:
        rates, sizes = {0.0, *self.memory_rates}, {0.0, *self.step_sizes}
        return product(self.latent_steps, rates, sizes, self.search_steps)
