"""The interface between the thought loop and a kind of thought.

    class Continuous(Kind):
        name = "continuous"
        is_identity = True

        def vector(self, state):
            return state.hidden_BD

Shape suffixes: B batch, D hidden size, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

# The options of kinds are checked before torch is imported, so this module does not import it.
if TYPE_CHECKING:
    from torch import Tensor

    from lm_eval_latentref.latent.kinds.draws import Draws
    from lm_eval_latentref.latent.networks import Network


@dataclass(frozen=True, kw_only=True)
class Materials:
    """Everything that a kind may be built from."""

    network: Network
    tokenizer: Any
    options: Mapping[str, Any]
    """The values of the kind's own options."""
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    """The weights of the checkpoint's map from hidden state to thought; empty without a map."""


@dataclass(frozen=True, kw_only=True)
class State:
    """The backbone's state at the last column read; the next thought is computed from it."""

    network: Network
    num_rows: int
    hidden: Tensor | None
    """The final hidden state (B, D) in float32; None if the kind does not read it."""
    step: int = 0
    """The number of thoughts before this one."""
    draws: Draws | None = None
    """The source of each row's random numbers; None if the run draws none."""

    @property
    def hidden_BD(self) -> Tensor:
        assert self.hidden is not None, "this kind reads no hidden state"
        return self.hidden

    def select(self, rows: Sequence[int]) -> State:
        """The state of the given rows, in the given order."""
        from lm_eval_latentref.latent.streams import picked

        chosen = dataclasses.replace(
            self,
            num_rows=len(rows),
            hidden=picked(self.hidden, rows),
            draws=self.draws.select(rows) if self.draws else None,
        )
        if (logits := self.__dict__.get("logits_BV")) is not None:
            chosen.__dict__["logits_BV"] = picked(logits, rows)
        return chosen

    def normal(self, purpose: str, size: int) -> Tensor:
        """Standard normal numbers (B, `size`) for this thought of each row."""
        assert self.draws is not None, "this run has no source of random numbers"
        return self.draws.normal(purpose, step=self.step, size=size).to(self.network.device)

    def uniform(self, purpose: str, size: int) -> Tensor:
        """Numbers (B, `size`) in [0, 1) for this thought of each row."""
        assert self.draws is not None, "this run has no source of random numbers"
        return self.draws.uniform(purpose, step=self.step, size=size).to(self.network.device)

    @cached_property
    def logits_BV(self) -> Tensor:
        """Logits of the next token (B, V) in float32; computed on first use."""
        return self.network.project(self.hidden_BD.to(self.network.dtype)).float()


class Kind(ABC):
    """A kind of thought: the vector fed next, as a function of the current state. Immutable."""

    name: ClassVar[str]
    """Its value of `latent_kind`."""

    reads_state: ClassVar[bool] = True
    """Whether the vector depends on the hidden state; if not, all thoughts are read in one pass."""

    is_identity: ClassVar[bool] = False
    """Whether the vector is the hidden state itself."""

    why_not_refined: ClassVar[str] = ""
    """The reason why neither memory rate nor search applies to it; empty if both may apply."""

    why_not_searched: ClassVar[str] = ""
    """The reason why the search does not apply to it, although the memory rate does; or empty."""

    draws_vectors: ClassVar[bool] = False
    """Whether its vectors are random."""

    min_thoughts: ClassVar[int] = 0
    """The number of thoughts after which a row may stop."""

    defaults: ClassVar[Mapping[str, Any]] = {
        "latent_stop": "steps",
        "stop_entropy": None,
        "stop_patience": None,
        "confidence_steps": 0,
        "confidence_step_size": 0.05,
        "confidence_noise": 0.1,
    }
    """The options of `RefinementConfig` that only some kinds read and that it reads, with its
    defaults."""

    file_keys: ClassVar[str] = ""
    """The keys that a checkpoint must have for it; empty if it works with any model."""

    marker_texts: ClassVar[tuple[str, str] | None] = None
    """The texts before and after the thoughts in its checkpoints; None if there are none."""

    has_marker_tokens: ClassVar[bool] = True
    """Whether `latent_markers=auto` looks for Coconut's tokens in the tokenizer."""

    temperature: float = 1.0
    """The temperature of the next-token distribution whose entropy an entropy stop compares."""

    @classmethod
    @abstractmethod
    def of(cls, materials: Materials) -> Kind:
        """The kind for one backbone; raises LatentRefError if `materials` do not suffice."""

    def ends(self, state: State, end_id: int) -> Tensor:
        """Which rows have `end_id` as their next token (B,), as bool."""
        return state.logits_BV.argmax(-1) == end_id

    @abstractmethod
    def vector(self, state: State) -> Tensor:
        """The vector (B, D) to feed next, before refinement."""
