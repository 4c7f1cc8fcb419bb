"""The questions that the thought loop asks a kind of thought.

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

# Options are checked before torch is imported, and they belong to kinds.
if TYPE_CHECKING:
    from torch import Tensor

    from lm_eval_latentref.latent.kinds.draws import Draws
    from lm_eval_latentref.latent.networks import Network


@dataclass(frozen=True, kw_only=True)
class Materials:
    """What a kind can be made from."""

    network: Network
    tokenizer: Any
    options: Mapping[str, Any]
    """The values of the kind's own options."""
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    """The weights of the checkpoint's map from hidden state to thought, if it has one."""


@dataclass(frozen=True, kw_only=True)
class State:
    """The backbone at the last column read, and what is known beside it."""

    network: Network
    num_rows: int
    hidden: Tensor | None
    """The final hidden state (B, D) in float32; None for kinds that do not ask for it."""
    step: int = 0
    """The number of thoughts before this one."""
    draws: Draws | None = None
    """The source of random numbers of each row."""

    @property
    def hidden_BD(self) -> Tensor:
        assert self.hidden is not None, "this kind reads no hidden state"
        return self.hidden

    def select(self, rows: Sequence[int]) -> State:
        """The state of `rows`, in that order."""
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
        """Logits of the next token in float32; computed when first asked for."""
        return self.network.project(self.hidden_BD.to(self.network.dtype)).float()


class Kind(ABC):
    """A kind of thought, frozen: the vector fed next as a function of the state before it."""

    name: ClassVar[str]
    """What `latent_kind` calls it."""

    reads_state: ClassVar[bool] = True
    """Whether the vector depends on the hidden state; if not, all thoughts are read in one pass."""

    is_identity: ClassVar[bool] = False
    """Whether the vector is the hidden state itself."""

    why_not_refined: ClassVar[str] = ""
    """Why memory rate and search have no meaning for it; empty where they have."""

    why_not_searched: ClassVar[str] = ""
    """Why the search has no meaning for it, where the memory rate has."""

    draws_vectors: ClassVar[bool] = False
    """Whether its vectors are drawn at random."""

    min_thoughts: ClassVar[int] = 0
    """How many thoughts are fed before a row may stop."""

    defaults: ClassVar[Mapping[str, Any]] = {
        "latent_stop": "steps",
        "stop_entropy": None,
        "stop_patience": None,
        "confidence_steps": 0,
        "confidence_step_size": 0.05,
        "confidence_noise": 0.1,
    }
    """The options of `RefinementConfig` that it reads beside those that every kind reads."""

    file_keys: ClassVar[str] = ""
    """The keys of the files that it cannot do without; empty if any model will do."""

    marker_texts: ClassVar[tuple[str, str] | None] = None
    """The texts around the thoughts of its checkpoints; None: no such texts."""

    has_marker_tokens: ClassVar[bool] = True
    """Whether `latent_markers=auto` looks for Coconut's tokens in the tokenizer."""

    temperature: float = 1.0
    """At which the entropy of the next token is taken."""

    @classmethod
    @abstractmethod
    def of(cls, materials: Materials) -> Kind:
        """The kind for one backbone; raises LatentRefError if it cannot serve."""

    def ends(self, state: State, end_id: int) -> Tensor:
        """Which rows (B,) end with the token `end_id` after this state."""
        return state.logits_BV.argmax(-1) == end_id

    @abstractmethod
    def vector(self, state: State) -> Tensor:
        """The vector (B, D) that is fed next, before it is refined."""
